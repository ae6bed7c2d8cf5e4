"""Widening of PMFs: what it does to a PMF, by arms, kinds of stars and noise, and how it is kept."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from remap.pmf import distributions
from remap.pmf.calibration import (
    Calibration,
    CalibrationSettings,
    FoldCalibration,
    Widening,
    membership,
    widen,
)

EDGES = np.linspace(-10, 10, 81)
SETTINGS = CalibrationSettings(kind="outliers", groups={})


def gaussian_pmfs(centre, sigma):
    cdf = stats.norm.cdf(EDGES, np.asarray(centre)[:, None], sigma)
    pmf = np.diff(cdf, axis=1)
    return pmf / pmf.sum(axis=1, keepdims=True)


def test_temper_of_a_gaussian_is_a_gaussian_of_another_width():
    found = distributions.temper(gaussian_pmfs([0.0], 0.8), 0.25)
    np.testing.assert_allclose(found, gaussian_pmfs([0.0], 1.6), atol=2e-4)
    assert np.isnan(distributions.temper(np.full((1, 4), np.nan), 0.5)).all()
    with pytest.raises(ValueError, match="power must be positive, found 0"):
        distributions.temper(gaussian_pmfs([0.0], 1.0), 0)


def test_widen_is_a_mixture_and_nothing_at_power_one_without_outliers():
    pmf = gaussian_pmfs([0.5, -1.0], 0.7)
    np.testing.assert_allclose(widen(pmf, power=1.0, outliers=0.0, breadth=9.0), pmf, atol=1e-12)
    mixed = widen(pmf, power=1.0, outliers=0.25, breadth=9.0)
    np.testing.assert_allclose(mixed, 0.75 * pmf + 0.25 * gaussian_pmfs([0.5, -1.0], 2.1), atol=2e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "must be one of .*'temperature', 'none'.*found 'magic'"),
        ({"breadth": 0.5}, "breadth >= 1"),
        ({"outliers": 0.0}, "0 < outliers < 1"),
        ({"power_sigma": 0.0}, "positive widths"),
        ({"tails": 1.0}, r"calibrate.tails: expected a share in \[0, 1\), found 1.0"),
        ({"label_breadth": 2.0}, "label_breadth must lie within 4 to 400"),
        ({"snr_sigma": -1.0}, "positive widths"),
        ({"groups": {"dwarfs": {"logg": (5.0, 3.0)}}}, "dwarfs needs limits of labels, each low < high"),
        ({"groups": {"all": {}}}, "all needs limits"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_stars_of_a_fold_use_the_calibration_of_that_fold():
    make = lambda power: Calibration({"x": {"A": Widening(power, 0.0, 9.0, 50)}})  # noqa: E731
    pmf = gaussian_pmfs([0.0, 0.0, 0.0], 1.0)
    chosen = FoldCalibration({0: make(0.25), 1: make(4.0)}, np.array([1, -1, 0]), make(1.0))
    given = {"x": pmf}, {"x": EDGES}, np.ones((1, 3), bool), ("A",)
    width = distributions.pmf_summary(chosen.apply(*given)["x"], EDGES)["std"]
    np.testing.assert_allclose(width, [0.5, 1.0, 2.0], rtol=0.03)
    assert chosen.covers("x", *given).all()
    nothing = dataclasses.replace(chosen, folds={1: Calibration({})})
    assert nothing.covers("x", *given).tolist() == [False, True, True]


def test_calibrations_of_before_groups_are_read():
    old = {"x": {"A": {"power": 0.5, "outliers": 0.1, "breadth": 9.0, "stars": 50}}}
    found = Calibration.from_json(json.loads(json.dumps(old)))
    assert found == Calibration({"x": {"A": Widening(0.5, 0.1, 9.0, 50)}})
    pmf = gaussian_pmfs([0.3], 1.0)
    out = found.apply({"x": pmf}, {"x": EDGES}, np.ones((1, 1), bool), ("A",), np.array([20.0]))
    np.testing.assert_allclose(out["x"], widen(pmf, power=0.5, outliers=0.1, breadth=9.0))


def test_membership_is_the_probability_of_the_limits_and_needs_their_labels():
    pmfs = {"x": gaussian_pmfs([0.0, 0.0, 0.0], 1.0), "z": gaussian_pmfs([0.0, 1.1, -4.0], 0.7)}
    pmfs["z"][2] = np.nan
    both = {"x": EDGES, "z": EDGES}
    box = {"box": {"z": (0.3, 2.0), "x": (-1.0, 99.0)}}
    found = membership(pmfs, both, box)["box"]
    for i, centre in enumerate((0.0, 1.1)):
        z = np.diff(stats.norm.cdf([0.3, 2.0], centre, 0.7))[0]
        assert found[i] == pytest.approx(z * stats.norm.sf(-1.0), rel=0.02)  # bins of 0.25 are 0.36 σ
    assert found[2] == 0
    twice = membership(pmfs, both, {"one": {"z": (-9.0, 9.0)}, "two": {"z": (-9.5, 9.5)}})
    np.testing.assert_allclose(twice["one"] + twice["two"], [1, 1, 0])
    with pytest.raises(ValueError, match=r"box has limits of \['z'\], expected labels among \['x'\]"):
        membership({"x": pmfs["x"]}, both, box)
