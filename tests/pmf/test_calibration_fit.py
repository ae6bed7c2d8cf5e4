"""The fit of widths: recovers a known fault, leaves honest PMFs alone, and finds the stars behind their labels."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from remap.pmf import distributions, metrics
from remap.pmf.calibration import Calibration, CalibrationSettings, Widening, rescale
from remap.pmf.calibration_fit import anderson_darling, fit, fit_widening

EDGES = np.linspace(-10, 10, 81)
SETTINGS = CalibrationSettings(kind="outliers", groups={})
DECONVOLVED = CalibrationSettings(groups={}, snr_sigma=0.0, tails=0.0)
GROUPS = {"dwarfs": {"z": (0.0, 10.0)}, "giants": {"z": (-10.0, 0.0)}}
BOTH = {"x": EDGES, "z": EDGES}


def gaussian_pmfs(centre, sigma):
    cdf = stats.norm.cdf(EDGES, np.asarray(centre)[:, None], sigma)
    pmf = np.diff(cdf, axis=1)
    return pmf / pmf.sum(axis=1, keepdims=True)


def conflated(label, values):
    return distributions.conflate(values, np.ones(values.shape[:2], bool))


def predictions(rng, stars, *, claimed, actual, outliers=0.0):
    """PMFs of width `claimed` for truths whose scatter about them is `actual`, three times that for outliers."""
    centre = rng.uniform(-3, 3, stars)
    scatter = np.where(rng.random(stars) < outliers, 3 * actual, actual)
    return gaussian_pmfs(centre, claimed), centre + scatter * rng.standard_normal(stars)


def test_coverage_is_restored_where_the_likelihood_pays_for_a_few():
    """A core that is as wide as claimed and 15 % of stars ten times as far: 68 % intervals must hold 68 %."""
    rng = np.random.default_rng(4)
    centre = rng.uniform(-3, 3, 3000)
    scatter = np.where(rng.random(3000) < 0.15, 3.0, 0.3)
    pmf, truth = gaussian_pmfs(centre, 0.3), centre + scatter * rng.standard_normal(3000)
    held = {}
    for kind in ("outliers", "coverage"):
        found = fit_widening(pmf, EDGES, truth, dataclasses.replace(SETTINGS, kind=kind))
        held[kind] = metrics.coverage(found(pmf, EDGES), EDGES, truth, [0.68])[0]
    assert held["coverage"] == pytest.approx(0.68, abs=0.03)
    assert abs(held["outliers"] - 0.68) > 2 * abs(held["coverage"] - 0.68)


def test_anderson_darling_of_uniform_values_is_about_one_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    uniform = [anderson_darling(rng.random(200)) for _ in range(300)]
    assert np.mean(uniform) == pytest.approx(1.0, abs=0.1)
    assert anderson_darling(rng.random(200) ** 2) > 10
    assert np.isfinite(anderson_darling(np.array([0.0, 0.0, 1.0])))


def test_overconfidence_is_measured():
    pmf, truth = predictions(np.random.default_rng(0), 3000, claimed=0.5, actual=1.0)
    found = fit_widening(pmf, EDGES, truth, dataclasses.replace(SETTINGS, kind="temperature"))
    assert found.power == pytest.approx(0.25, rel=0.1)
    assert found.outliers == 0
    assert metrics.coverage(found(pmf, EDGES), EDGES, truth, (0.68,))[0] == pytest.approx(0.68, abs=0.03)
    assert metrics.coverage(pmf, EDGES, truth, (0.68,))[0] < 0.45


def test_outliers_do_not_widen_the_others():
    pmf, truth = predictions(np.random.default_rng(1), 3000, claimed=0.8, actual=0.8, outliers=0.1)
    found = fit_widening(pmf, EDGES, truth, SETTINGS)
    assert found.power == pytest.approx(1.0, rel=0.1)
    assert found.outliers == pytest.approx(0.1, abs=0.03)
    alone = fit_widening(pmf, EDGES, truth, dataclasses.replace(SETTINGS, kind="temperature"))
    assert alone.power < 0.8  # what a temperature alone makes of them
    held = metrics.coverage(found(pmf, EDGES), EDGES, truth, (0.68, 0.95))
    np.testing.assert_allclose(held, (0.68, 0.95), atol=0.03)


def test_honest_pmfs_stay_as_they_are():
    pmf, truth = predictions(np.random.default_rng(2), 3000, claimed=1.0, actual=1.0)
    found = fit_widening(pmf, EDGES, truth, SETTINGS)
    assert found.power == pytest.approx(1.0, abs=0.1)
    assert found.outliers < 0.03


def test_few_stars_unknown_labels_and_kind_none_change_nothing():
    pmf, truth = predictions(np.random.default_rng(3), 12, claimed=0.5, actual=1.0)
    for settings in (SETTINGS, DECONVOLVED):
        assert fit_widening(pmf, EDGES, truth, settings).fitted
    truth[:3] = np.nan
    nothing = Widening(1.0, 0.0, 9.0, 9, fitted=False)
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, kind="none", min_stars=2)):
        assert fit_widening(pmf, EDGES, truth, settings) == nothing
    assert fit_widening(pmf, EDGES, truth, DECONVOLVED) == dataclasses.replace(nothing, scaled=True)


def test_every_set_of_arms_has_its_own_widening_and_stars_without_one_stay():
    rng = np.random.default_rng(4)
    a, truth = predictions(rng, 400, claimed=0.7, actual=1.0)
    used = np.ones((2, 400), bool)
    settings = dataclasses.replace(SETTINGS, kind="temperature")
    found = fit({"x": np.stack([a, a])}, {"x": EDGES}, {"x": truth}, used, ("A", "B"), settings, conflated)
    assert set(found.widenings["x"]) == {"A", "B", "A+B"}
    # The same evidence twice: conflation halves σ², so its power must be half that of one arm.
    one, both = found.widenings["x"]["A"], found.widenings["x"]["A+B"]
    assert both.power == pytest.approx(one.power / 2, rel=0.15)
    again = Calibration.from_json(found.to_json())
    assert again == found
    used = np.array([[True, True, False, True], [True, False, False, True]])
    pmf = a[:4].copy()
    pmf[3] = np.nan
    out = found.apply({"x": pmf, "unknown": pmf}, {"x": EDGES, "unknown": EDGES}, used, ("A", "B"))
    np.testing.assert_allclose(out["x"][0], both(a[:1], EDGES)[0])
    np.testing.assert_allclose(out["x"][1], one(a[1:2], EDGES)[0])
    np.testing.assert_array_equal(out["x"][2], a[2])
    assert np.isnan(out["x"][3]).all()
    np.testing.assert_array_equal(out["unknown"], pmf)
    covered = found.covers("x", {"x": pmf}, {"x": EDGES}, used, ("A", "B"))
    assert covered.tolist() == [True, True, False, False]
    assert not found.covers("unknown", {"unknown": pmf}, {"unknown": EDGES}, used, ("A", "B")).any()


def drawn(rng, stars, *, claimed, power, error, wrong=0.05):
    """PMFs of width `claimed`, stars drawn from them to a power, and labels of a few of which are wrong.

    Returns:
      PMFs, stars, labels, their errors (within a factor of two of `error`).
    """
    pmf = gaussian_pmfs(rng.uniform(-3, 3, stars), claimed)
    true = rescale(pmf, EDGES, np.full(stars, power))
    k = (np.cumsum(true, axis=1) < rng.random(stars)[:, None]).sum(axis=1)
    star = EDGES[k] + (EDGES[1] - EDGES[0]) * rng.random(stars)
    errors = error * rng.uniform(0.7, 1.4, stars)
    scale = np.where(rng.random(stars) < wrong, 8.0, 1.0)
    return pmf, star, star + scale * errors * rng.standard_normal(stars), errors


@pytest.mark.parametrize("power", [0.4, 3.0])
@pytest.mark.parametrize("error", [0.25, 0.8])  # of labels; the stars scatter by 0.7 about their predictions
def test_the_width_is_that_of_the_star_whatever_the_labels(power, error):
    """Errors of labels smaller and larger than PMFs, 5 % of them wrong: power and coverage of the star come back."""
    pmf, star, label, errors = drawn(
        np.random.default_rng(0), 6000, claimed=0.7 * np.sqrt(power), power=power, error=error
    )
    found = fit_widening(pmf, EDGES, label, DECONVOLVED, errors=errors)
    assert found.fitted
    assert found.outliers == 0
    assert found.power == pytest.approx(power, rel=0.15)
    assert 0.03 < found.label_outliers < 0.07
    held = metrics.coverage(found(pmf, EDGES), EDGES, star, (0.68, 0.95))
    assert 0.66 < held[0] < 0.70
    assert 0.93 < held[1] < 0.965
    # Taken for the stars themselves, labels give their own width.
    exact = fit_widening(pmf[:500], EDGES, label[:500], SETTINGS)
    assert metrics.coverage(exact(pmf, EDGES), EDGES, star, (0.68,))[0] > (0.7 if error < 0.5 else 0.85)


@pytest.mark.parametrize("far", [0.0, 0.1])
def test_stars_that_networks_are_far_off_for_are_tails_and_do_not_widen_the_others(far):
    rng = np.random.default_rng(7)
    pmf, star = predictions(rng, 4000, claimed=0.6, actual=0.6, outliers=far)
    errors = 0.3 * 10 ** rng.uniform(-1.0, 0.3, 4000)  # wrong labels of one error would look the same
    label = star + errors * rng.standard_normal(4000)
    found = fit_widening(pmf, EDGES, label, dataclasses.replace(DECONVOLVED, tails=0.05), errors=errors)
    assert found.power == pytest.approx(1.0, rel=0.1)
    assert found.outliers == pytest.approx(far, abs=0.03)
    held = metrics.coverage(found(pmf, EDGES), EDGES, star, (0.68, 0.95, 0.997))
    np.testing.assert_allclose(held[:2], (0.68, 0.95), atol=0.025)
    assert held[2] == pytest.approx(0.997, abs=0.003)
    if far:
        without = fit_widening(pmf, EDGES, label, DECONVOLVED, errors=errors)
        assert without.power < 0.9 * found.power
        assert metrics.coverage(without(pmf, EDGES), EDGES, star, (0.997,))[0] < 0.99


def test_tails_are_those_of_all_kinds():
    pmfs, _, truth, errors = kinds(np.random.default_rng(2), 300, 300)
    found = fit_kinds(pmfs, truth, errors, tails=0.05)
    share = found.widenings["x"]["A"].outliers
    assert 0 < share < 0.2
    assert {own.outliers for own in found.by_group["x"]["A"].values()} == {share}


def test_labels_without_errors_are_exact():
    pmf, star, *_ = drawn(np.random.default_rng(1), 2000, claimed=0.8, power=2.0, error=0.1)
    assert fit_widening(pmf, EDGES, star, DECONVOLVED).power == pytest.approx(2.0, rel=0.1)


def kinds(rng, dwarfs, giants):
    """Two kinds of stars by a label z (0 to 10), with powers 3 and 0.5 in x; PMFs, labels and their errors."""
    stars = dwarfs + giants
    dwarf = np.arange(stars) < dwarfs
    x = [drawn(rng, n, claimed=0.7, power=power, error=0.2) for n, power in ((dwarfs, 3.0), (giants, 0.5))]
    pmf, star, label, errors = (np.concatenate(a) for a in zip(*x, strict=True))
    z = np.where(dwarf, 5.0, -5.0) + rng.uniform(-2, 2, stars)
    pmfs = {"x": pmf, "z": gaussian_pmfs(z, 0.5)}
    truth = {"x": label, "z": z + 0.1 * rng.standard_normal(stars)}
    return pmfs, star, truth, {"x": errors, "z": np.full(stars, 0.1)}


def fit_kinds(pmfs, truth, errors, **changes):
    used = np.ones((1, len(truth["x"])), bool)
    settings = dataclasses.replace(DECONVOLVED, groups=GROUPS, **changes)
    one = {label: pmf[None] for label, pmf in pmfs.items()}
    return fit(one, BOTH, truth, used, ("A",), settings, conflated, errors=errors)


def test_a_star_that_is_there_twice_counts_once():
    pmf, _, label, errors = drawn(np.random.default_rng(6), 60, claimed=0.8, power=2.0, error=0.3)
    once = fit_widening(pmf, EDGES, label, DECONVOLVED, errors=errors)
    twice = fit_widening(
        *(np.tile(pmf, (2, 1)), EDGES, np.tile(label, 2), DECONVOLVED), errors=np.tile(errors, 2), weight=0.5
    )
    assert twice.stars == once.stars == 60
    assert twice.power == pytest.approx(once.power, rel=1e-3)
    unweighted = fit_widening(
        *(np.tile(pmf, (2, 1)), EDGES, np.tile(label, 2), DECONVOLVED), errors=np.tile(errors, 2)
    )
    assert abs(unweighted.power - once.power) > 3 * abs(twice.power - once.power)  # the prior counts for less


def test_each_kind_of_stars_has_its_own_power():
    pmfs, star, truth, errors = kinds(np.random.default_rng(2), 1500, 1500)
    found = fit_kinds(pmfs, truth, errors)
    own = found.by_group["x"]["A"]
    assert own["dwarfs"].power == pytest.approx(3.0, rel=0.15)
    assert own["giants"].power == pytest.approx(0.5, rel=0.15)
    assert 0.5 < found.widenings["x"]["A"].power < 3.0
    assert (own["dwarfs"].stars, own["dwarfs"].fitted) == (1500, True)
    given = pmfs, BOTH, np.ones((1, 3000), bool), ("A",)
    out = found.apply(*given)["x"]
    for rows in (slice(1500), slice(1500, None)):
        assert 0.65 < metrics.coverage(out[rows], EDGES, star[rows], (0.68,))[0] < 0.71
    assert found.covers("x", *given).all()
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_between_the_kinds_the_width_changes_smoothly():
    found = fit_kinds(*(kinds(np.random.default_rng(3), 300, 300)[i] for i in (0, 2, 3)))
    z = np.linspace(-4, 4, 400)
    pmfs = {"x": gaussian_pmfs(np.zeros(400), 1.0), "z": gaussian_pmfs(z, 0.5)}
    out = found.apply(pmfs, BOTH, np.ones((1, 400), bool), ("A",))["x"]
    width = distributions.pmf_summary(out, EDGES)["std"]
    assert width[0] > 2 * width[-1]
    assert np.all(np.diff(width) < 1e-9)
    assert np.max(-np.diff(width)) < 0.03 * (width[0] - width[-1])  # one step of 400


def test_kinds_with_few_or_no_labelled_stars_are_not_narrowed_and_not_covered():
    pmfs, _, truth, errors = kinds(np.random.default_rng(4), 200, 6)
    for giants in (6, 0):
        rows = np.arange(200 + giants)
        part, known, error = ({k: v[rows] for k, v in a.items()} for a in (pmfs, truth, errors))
        found = fit_kinds(part, known, error)
        common, own = found.widenings["x"]["A"], found.by_group["x"]["A"]["giants"]
        assert common.power > 1.5
        assert own == dataclasses.replace(common, power=1.0, stars=giants, fitted=False)
        given = pmfs, BOTH, np.ones((1, 206), bool), ("A",)
        before, after = (
            distributions.pmf_summary(p, EDGES)["std"] for p in (pmfs["x"], found.apply(*given)["x"])
        )
        np.testing.assert_allclose(after[200:], before[200:], rtol=0.01)
        assert np.all(after[:200] < 0.9 * before[:200])
        assert found.covers("x", *given).tolist() == [True] * 200 + [False] * 6


def test_kinds_without_labelled_stars_are_widened_as_all_are():
    pmfs, _, truth, errors = kinds(np.random.default_rng(4), 6, 200)
    rows = np.arange(6, 206)
    part, known, error = ({k: v[rows] for k, v in a.items()} for a in (pmfs, truth, errors))
    found = fit_kinds(part, known, error)
    own = found.by_group["x"]["A"]["dwarfs"]
    assert own == dataclasses.replace(found.widenings["x"]["A"], stars=0, fitted=False)
    assert own.power < 0.8


def test_the_power_may_depend_on_the_noise():
    rng = np.random.default_rng(5)
    snr = 10 ** rng.uniform(1, 2.5, 3000)
    powers = np.exp(0.8 * np.log10(snr / 56.0))
    pmf, star, label, errors = drawn(rng, 3000, claimed=0.8, power=powers, error=0.2)
    with_slope = dataclasses.replace(DECONVOLVED, snr_sigma=0.5)
    found = fit_widening(pmf, EDGES, label, with_slope, errors=errors, snr=snr)
    assert found.snr_slope == pytest.approx(0.8, abs=0.2)
    assert found.snr_low < 15 < 200 < found.snr_high
    offset = found.snr_offset(np.array([1.0, found.snr_low, np.nan, found.snr_high, 1e4]))
    np.testing.assert_allclose(
        offset, -offset[::-1], atol=1e-12
    )  # as at the ends beyond them, 0 where unknown
    assert offset[0] == offset[1] < offset[2] == 0
    for rows in (snr < 25, snr > 150):
        held = metrics.coverage(found(pmf[rows], EDGES, snr[rows]), EDGES, star[rows], (0.68,))[0]
        assert held == pytest.approx(0.68, abs=0.05)
    for same in (np.full(3000, 50.0), np.full(3000, np.nan), None):
        assert (
            fit_widening(
                pmf[:50],
                EDGES,
                label[:50],
                with_slope,
                errors=errors[:50],
                snr=None if same is None else same[:50],
            ).snr_slope
            == 0
        )
