"""From the members' values to probabilities: mixtures, their widths, and what is written of them."""

import numpy as np
import pytest
from scipy import stats

from remap.autoencoder.estimate import (
    CatalogueSettings,
    Estimates,
    EstimateSettings,
    fine_bins,
    kernel_width,
    make_catalogue,
    mixture_pmf,
)
from remap.autoencoder.sources import Sky
from remap.config import ConfigError
from remap.labels import LabelBins
from remap.pmf.distributions import pmf_summary
from remap.predict.catalogue import Flag

EDGES = np.linspace(4000.0, 6000.0, 201)


def test_mixture_is_the_mean_of_the_members_gaussians():
    values = np.array([[5000.0, 4800.0], [5100.0, 4800.0], [5600.0, 4800.0]])
    width = np.array([[50.0, 30.0], [20.0, 30.0], [80.0, 30.0]])
    found = mixture_pmf(values, width, EDGES)
    expected = np.mean([stats.norm(values[m], width[m]).cdf(EDGES[:, None]) for m in range(3)], axis=0)
    np.testing.assert_allclose(found, np.diff(expected, axis=0).T, atol=1e-6)
    summary = pmf_summary(found, EDGES)
    assert summary["median"][1] == pytest.approx(4800, abs=0.5)
    assert summary["p84"][1] - summary["p16"][1] == pytest.approx(60, rel=0.02)
    # Two members agree and one lies above: the upper side is the longer one.
    assert summary["p84"][0] - summary["median"][0] > 2 * (summary["median"][0] - summary["p16"][0])


def test_what_lies_beyond_the_range_is_kept_in_the_outermost_bin():
    found = mixture_pmf(np.array([[3000.0, 7000.0, np.nan]]), np.full((1, 3), 50.0), EDGES)
    np.testing.assert_allclose(found[:2].sum(axis=1), 1)
    assert found[0, 0] == pytest.approx(1)
    assert found[1, -1] == pytest.approx(1)
    assert np.isnan(found[2]).all()


def test_members_that_agree_exactly_still_give_a_distribution():
    values = np.full((4, 1), 5003.0)
    width = kernel_width(values, np.zeros(4), kernel="spread")
    found = mixture_pmf(values, width, EDGES)
    assert found.sum() == pytest.approx(1)
    assert pmf_summary(found, EDGES)["median"][0] == pytest.approx(5003, abs=2)


def test_width_of_the_kernel():
    values = np.random.default_rng(0).normal(5000, 100, (12, 5))
    spread = kernel_width(values, np.full(12, 7.0), kernel="spread")
    for j in range(5):
        scipy = stats.gaussian_kde(values[:, j], bw_method="silverman").covariance[0, 0] ** 0.5
        np.testing.assert_allclose(spread[:, j], scipy)
    residual = kernel_width(values, np.arange(12.0), kernel="residual")
    np.testing.assert_array_equal(residual[:, 3], np.arange(12.0))
    with pytest.raises(ValueError, match=r"estimate\.kernel must be one of .*'none'"):
        kernel_width(values, np.zeros(12), kernel="none")


def test_one_member_alone_has_no_spread():
    np.testing.assert_array_equal(
        kernel_width(np.ones((1, 3)), np.zeros(1), kernel="spread"), np.zeros((1, 3))
    )


def test_bins_are_divided_and_keep_their_range():
    found = fine_bins(LabelBins("teff", 3000.0, 7000.0, 50, "K"), 10)
    assert (found.low, found.high, found.bins, found.unit) == (3000.0, 7000.0, 500, "K")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel": "box"}, r"estimate\.kernel must be one of"), ({"refine": 0}, r"estimate\.refine: expected")],
)
def test_settings_that_cannot_be_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        EstimateSettings(**change)


def test_a_star_without_finite_estimates_is_flagged_and_harms_no_other():
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(5000, 50, (2, 2, 4)), rng.normal(4, 0.1, (2, 2, 4))], axis=2)
    limits = {"edge_mass": 0.5, "mode_prominence": 0.5, "min_snr": 20.0, "full_coverage": 0.95}
    labels = (LabelBins("teff", 4000.0, 6000.0, 25, "K"), LabelBins("logg", 3.0, 5.0, 20, "dex"))
    usable, held = np.array([True, True, False, True]), np.zeros(4, bool)
    sky = Sky(None, (), 1, usable, held, np.ones((1, 4)), np.full((1, 4), 50.0))

    def make(values):
        estimates = Estimates(values, np.ones((2, 2, 2)))
        settings = CatalogueSettings(EstimateSettings(), limits, {})
        names = ["a", "b", "c", "d"]
        return make_catalogue(
            settings, labels, ("A",), estimates, sky, files=names, star_ids=names, steps=[1], date=None
        )

    whole = make(values)
    spoilt = values.copy()
    spoilt[1, 0, 1, 1] = np.nan  # log g of one member, of the second star
    found = make(spoilt)
    assert list(found.table["flags"]) == [0, Flag.UNREADABLE | Flag.NOT_FINITE, Flag.UNREADABLE, 0]
    assert found.table["message"][1] == "the networks give no finite PMF"
    assert np.isnan(found.table["teff"][1])
    assert list(found.table["arms"]) == ["A", "", "", "A"]
    for name, pmf in whole.pmfs.items():
        np.testing.assert_array_equal(found.pmfs[name][[0, 3]], pmf[[0, 3]])
