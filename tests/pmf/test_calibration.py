"""Widening of PMFs: recovers a known fault, leaves honest PMFs alone, and reports without looking at itself."""

import dataclasses
import shutil

import numpy as np
import pytest
from helpers import tiny
from scipy import stats

from remap import load
from remap.pmf import distributions, metrics
from remap.pmf.calibration import (
    Calibration,
    CalibrationSettings,
    FoldCalibration,
    Widening,
    anderson_darling,
    fit,
    fit_widening,
    widen,
)
from remap.predict.held_out import held_out, predict_held_out
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import evaluate
from remap.store.atomic import write_json
from remap.store.workdir import read_calibration, read_stars

EDGES = np.linspace(-10, 10, 81)
SETTINGS = CalibrationSettings("outliers", 9.0, 1.0, 0.05, 1.5, 10)


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


def test_coverage_is_restored_where_the_likelihood_pays_for_a_few():
    """A core that is as wide as claimed and 15 % of stars ten times as far: 68 % intervals must hold 68 %."""
    rng = np.random.default_rng(4)
    centre = rng.uniform(-3, 3, 3000)
    scatter = np.where(rng.random(3000) < 0.15, 3.0, 0.3)
    pmf, truth = gaussian_pmfs(centre, 0.3), centre + scatter * rng.standard_normal(3000)
    held = {}
    for kind in ("outliers", "coverage"):
        found = fit_widening(pmf, EDGES, truth, dataclasses.replace(SETTINGS, kind=kind))
        held[kind] = metrics.coverage(found(pmf), EDGES, truth, [0.68])[0]
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
    assert metrics.coverage(found(pmf), EDGES, truth, (0.68,))[0] == pytest.approx(0.68, abs=0.03)
    assert metrics.coverage(pmf, EDGES, truth, (0.68,))[0] < 0.45


def test_outliers_do_not_widen_the_others():
    pmf, truth = predictions(np.random.default_rng(1), 3000, claimed=0.8, actual=0.8, outliers=0.1)
    found = fit_widening(pmf, EDGES, truth, SETTINGS)
    assert found.power == pytest.approx(1.0, rel=0.1)
    assert found.outliers == pytest.approx(0.1, abs=0.03)
    alone = fit_widening(pmf, EDGES, truth, dataclasses.replace(SETTINGS, kind="temperature"))
    assert alone.power < 0.8  # what a temperature alone makes of them
    held = metrics.coverage(found(pmf), EDGES, truth, (0.68, 0.95))
    np.testing.assert_allclose(held, (0.68, 0.95), atol=0.03)


def test_honest_pmfs_stay_as_they_are():
    pmf, truth = predictions(np.random.default_rng(2), 3000, claimed=1.0, actual=1.0)
    found = fit_widening(pmf, EDGES, truth, SETTINGS)
    assert found.power == pytest.approx(1.0, abs=0.1)
    assert found.outliers < 0.03


def test_few_stars_unknown_labels_and_kind_none_change_nothing():
    pmf, truth = predictions(np.random.default_rng(3), 12, claimed=0.5, actual=1.0)
    assert fit_widening(pmf, EDGES, truth, SETTINGS) != Widening(1.0, 0.0, 9.0, 12)
    truth[:3] = np.nan
    assert fit_widening(pmf, EDGES, truth, SETTINGS) == Widening(1.0, 0.0, 9.0, 9)
    none = dataclasses.replace(SETTINGS, kind="none", min_stars=2)
    assert fit_widening(pmf, EDGES, truth, none) == Widening(1.0, 0.0, 9.0, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "must be one of .*'temperature', 'none'.*found 'magic'"),
        ({"breadth": 0.5}, "breadth >= 1"),
        ({"outliers": 0.0}, "0 < outliers < 1"),
        ({"power_sigma": 0.0}, "positive widths"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


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
    out = found.apply("x", pmf, used, ("A", "B"))
    np.testing.assert_allclose(out[0], both(a[0]))
    np.testing.assert_allclose(out[1], one(a[1]))
    np.testing.assert_array_equal(out[2], a[2])
    assert np.isnan(out[3]).all()
    np.testing.assert_array_equal(found.apply("unknown", pmf, used, ("A", "B")), pmf)


def test_stars_of_a_fold_use_the_calibration_of_that_fold():
    make = lambda power: Calibration({"x": {"A": Widening(power, 0.0, 9.0, 50)}})  # noqa: E731
    pmf = gaussian_pmfs([0.0, 0.0, 0.0], 1.0)
    chosen = FoldCalibration({0: make(0.25), 1: make(4.0)}, np.array([1, -1, 0]), make(1.0))
    out = chosen.apply("x", pmf, np.ones((1, 3), bool), ("A",))
    width = distributions.pmf_summary(out, EDGES)["std"]
    np.testing.assert_allclose(width, [0.5, 1.0, 2.0], rtol=0.03)


@pytest.fixture(scope="module")
def calibrated(tiny_data, tiny_workdir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calibrated") / "work"
    shutil.copytree(tiny_workdir, workdir)
    config = tiny.config(tiny_data, calibrate__min_stars=2)
    return config, workdir, calibrate(config, workdir)


def test_the_stage_writes_what_prediction_uses(calibrated):
    config, workdir, table = calibrated
    assert set(table["arms"]) == {"A", "B", "A+B"}
    predictor, plain = load(workdir), load(workdir, calibrated=False)
    assert plain.calibration is None
    stars = read_stars(workdir)
    stars = stars[[s != "unreadable" for s in stars["status"]]]
    found = held_out(config, workdir, stars, "finetune", calibrated=False)
    raw = plain.combine(found.arms, list(stars["file"]), date="2026-01-01")
    wide = predictor.combine(found.arms, list(stars["file"]), date="2026-01-01")
    widening = predictor.calibration.widenings["teff"]["A+B"]
    both = np.stack([a.used for a in found.arms.values()]).all(axis=0)
    np.testing.assert_allclose(wide.pmfs["teff"][both], widening(raw.pmfs["teff"][both]))
    np.testing.assert_array_equal(wide.pmfs["teff", "A"], raw.pmfs["teff", "A"])  # arms are shown as they are


def test_test_stars_took_no_part_in_the_calibration_of_their_report(calibrated):
    """Other labels of a fold's test stars change neither its calibration nor the PMFs in the report."""
    config, workdir, _ = calibrated
    stars = read_stars(workdir)
    stars = stars[[s != "unreadable" for s in stars["status"]]]
    before, tested = predict_held_out(config, workdir, stars, "finetune")
    found = held_out(config, workdir, stars, "finetune")
    folds = read_calibration(workdir)["folds"]
    everyone = read_calibration(workdir)["all"]
    assert folds["0"] != everyone
    counts = [folds[k]["teff"]["A+B"]["stars"] for k in ("0", "1")]
    assert max(counts) < everyone["teff"]["A+B"]["stars"]
    own = {k: Calibration.from_json(v).widenings["teff"]["A+B"] for k, v in folds.items()}
    raw, _ = predict_held_out(config, workdir, stars, "finetune", calibrated=False)
    both = np.stack([a.used for a in found.arms.values()]).all(axis=0)
    for i in np.flatnonzero(tested & both & (found.fold >= 0)):
        expected = own[str(found.fold[i])](raw.pmfs["teff"][i : i + 1])[0]
        np.testing.assert_allclose(before.pmfs["teff"][i], expected)


def test_the_report_shows_both(calibrated):
    config, workdir, _ = calibrated
    table = evaluate(config, workdir)
    assert list(dict.fromkeys(table["stage"])) == ["pretrain", "finetune", "uncalibrated", "validation"]


def test_a_calibration_of_other_networks_is_refused(calibrated, tmp_path):
    _, source, _ = calibrated
    shutil.copytree(source, tmp_path / "work")
    found = read_calibration(tmp_path / "work")
    found["networks"]["config"]["finetune"]["rate_high"] = 0.5
    write_json(tmp_path / "work" / "calibration.json", found)
    with pytest.raises(ValueError, match=r"calibration of other networks: config\.finetune\.rate_high"):
        load(tmp_path / "work")


def test_calibration_without_validation_stars_is_an_error(tiny_data, tiny_workdir):
    with pytest.raises(ValueError, match=r"set split\.validation above 0"):
        calibrate(tiny.config(tiny_data, split__validation=0.0), tiny_workdir)
