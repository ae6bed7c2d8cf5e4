"""The stage: writes what prediction uses, reports without looking at itself, and says what it could not fit."""

import shutil

import numpy as np
import pytest
from helpers import tiny

from remap import load
from remap.config import ConfigError
from remap.pmf.calibration import Calibration, with_tails
from remap.predict.held_out import held_out, predict_held_out
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import evaluate
from remap.store.atomic import write_json
from remap.store.workdir import read_calibration, read_stars


@pytest.fixture(scope="module")
def calibrated(tiny_data, tiny_workdir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calibrated") / "work"
    shutil.copytree(tiny_workdir, workdir)
    config = tiny.config(tiny_data, calibrate__min_stars=2)
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr(
            "remap.stages.calibrate.logger.warning", lambda text, *values: told.append(text % values)
        )
        return config, workdir, calibrate(config, workdir), told


def star_powers(calibration, raw):
    """float[S]: power of Teff for stars with both arms, again from what the calibration says of itself."""
    common, own = (v["teff"]["A+B"] for v in (calibration.widenings, calibration.by_group))
    dwarf = np.array([np.interp(3.5, raw.edges["logg"], np.cumsum(np.r_[0, p])) for p in raw.pmfs["logg"]])
    mean = (1 - dwarf) * np.log(own["dwarfs"].power) + dwarf * np.log(own["giants"].power)
    return np.exp(mean + common.snr_offset(np.asarray(raw.table["snr"], float)))


def test_the_stage_writes_what_prediction_uses(calibrated):
    config, workdir, table, told = calibrated
    assert set(table["arms"]) == {"A", "B", "A+B"}
    assert set(table["group"]) == {"", "dwarfs", "giants"}
    # No giant is trained on.
    assert not table["stars"][table["group"] == "giants"].any()
    assert len(told) == 1
    assert told[0].startswith(
        "calibrate: validation stars of giants: there are none, so they are uncalibrated"
    )
    assert "teff (A+B)" in told[0]
    predictor, plain = load(workdir), load(workdir, calibrated=False)
    assert plain.calibration is None
    stars = read_stars(workdir)
    stars = stars[[s != "unreadable" for s in stars["status"]]]
    found = held_out(config, workdir, stars, "finetune", calibrated=False)
    raw = plain.combine(found.arms, list(stars["file"]), date="2026-01-01")
    wide = predictor.combine(found.arms, list(stars["file"]), date="2026-01-01")
    power = star_powers(predictor.calibration, raw)
    both = np.stack([a.used for a in found.arms.values()]).all(axis=0)
    common = predictor.calibration.widenings["teff"]["A+B"]
    assert common.outliers > 0
    tails = {"share": common.outliers, "breadth": common.breadth}
    expected = with_tails(raw.pmfs["teff"][both], raw.edges["teff"], power[both], **tails)
    np.testing.assert_allclose(wide.pmfs["teff"][both], expected)
    np.testing.assert_array_equal(wide.pmfs["teff", "A"], raw.pmfs["teff", "A"])  # arms are shown as they are


def test_test_stars_took_no_part_in_the_calibration_of_their_report(calibrated):
    """Other labels of a fold's test stars change neither its calibration nor the PMFs in the report."""
    config, workdir, *_ = calibrated
    stars = read_stars(workdir)
    stars = stars[[s != "unreadable" for s in stars["status"]]]
    before, tested = predict_held_out(config, workdir, stars, "finetune")
    found = held_out(config, workdir, stars, "finetune")
    folds = read_calibration(workdir)["folds"]
    everyone = read_calibration(workdir)["all"]
    assert folds["0"] != everyone
    counts = [folds[k]["widenings"]["teff"]["A+B"]["stars"] for k in ("0", "1")]
    assert max(counts) < everyone["widenings"]["teff"]["A+B"]["stars"]
    own = {k: Calibration.from_json(v) for k, v in folds.items()}
    raw, _ = predict_held_out(config, workdir, stars, "finetune", calibrated=False)
    both = np.stack([a.used for a in found.arms.values()]).all(axis=0)
    for i in np.flatnonzero(tested & both & (found.fold >= 0)):
        fit = own[str(found.fold[i])]
        power, common = star_powers(fit, raw)[i], fit.widenings["teff"]["A+B"]
        tails = {"share": common.outliers, "breadth": common.breadth}
        expected = with_tails(raw.pmfs["teff"][[i]], raw.edges["teff"], np.array([power]), **tails)[0]
        np.testing.assert_allclose(before.pmfs["teff"][i], expected)


def test_the_report_shows_both(calibrated):
    config, workdir, *_ = calibrated
    table = evaluate(config, workdir)
    assert list(dict.fromkeys(table["stage"])) == ["pretrain", "finetune", "uncalibrated", "validation"]


def test_a_calibration_of_other_networks_is_refused(calibrated, tmp_path):
    _, source, *_ = calibrated
    shutil.copytree(source, tmp_path / "work")
    found = read_calibration(tmp_path / "work")
    found["networks"]["config"]["finetune"]["rate_high"] = 0.5
    write_json(tmp_path / "work" / "calibration.json", found)
    with pytest.raises(ValueError, match=r"calibration of other networks: config\.finetune\.rate_high"):
        load(tmp_path / "work")


def test_calibration_without_validation_stars_is_an_error(tiny_data, tiny_workdir):
    with pytest.raises(ValueError, match=r"set split\.validation above 0"):
        calibrate(tiny.config(tiny_data, split__validation=0.0), tiny_workdir)


def test_groups_by_a_label_that_the_networks_lack_are_refused(tiny_data, tiny_workdir):
    config = tiny.config(tiny_data)
    with config.unlocked():
        config.calibrate.groups = {"fast": {"vsini": (10.0, 99.0)}}
    with pytest.raises(
        ConfigError, match=r"groups\.fast has limits of \['vsini'\], expected labels of the net"
    ):
        calibrate(config, tiny_workdir)
