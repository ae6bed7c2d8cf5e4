"""What the arms say becomes rows: arms that are not given, rows that are lost, and whose reason is told."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.pmf.calibration import Calibration, Widening
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Flag
from remap.predict.combining import Rows, complete_arms, reasons
from remap.preprocess.observe import observe

DATE = "2026-01-01T00:00:00+00:00"
PIXELS = {"A": tiny.PIXELS, "B": tiny.PIXELS}


@pytest.fixture(scope="module")
def inputs(tiny_predictor):
    """Arm -> three stars."""
    observed = observe([[tiny.spectra((0, 1, 4))]], tiny_predictor.preprocessing)
    return {arm: ArmInputs(on.flux, on.valid, on.snr) for arm, on in observed.arms.items()}


@pytest.fixture(scope="module")
def calibrated(tiny_predictor):
    """The tiny networks with a widening of their own for each set of arms."""
    powers = {"A": 0.5, "B": 0.6, "A+B": 0.25}
    own = {key: Widening(power=power, outliers=0.0, breadth=9.0, stars=9) for key, power in powers.items()}
    return dataclasses.replace(
        tiny_predictor,
        calibration=Calibration(dict.fromkeys(tiny_predictor.labels, own)),
        calibration_hash="x",
    )


def test_an_arm_that_is_not_given_is_one_that_the_spectra_lack(calibrated, inputs):
    """The calibration is that of the arm alone, not that and the one of all arms besides."""
    one = calibrated.predict_arm("A", inputs["A"])
    dark = inputs["B"]._replace(valid=np.zeros_like(inputs["B"].valid))
    lacking = calibrated.combine({"A": one, "B": calibrated.predict_arm("B", dark)}, "abc", date=DATE)
    found = calibrated.combine({"A": one}, "abc", date=DATE)
    assert list(found.table["arms"]) == ["A"] * 3
    assert np.all(found.table["flags"] & Flag.MISSING_ARM)
    assert found.table.colnames == lacking.table.colnames
    for name in found.table.colnames:
        np.testing.assert_array_equal(found.table[name], lacking.table[name], err_msg=name)
    for key, pmf in lacking.pmfs.items():
        np.testing.assert_array_equal(found.pmfs[key], pmf)
    plain = dataclasses.replace(calibrated, calibration=None).combine({"A": one}, "abc", date=DATE)
    wider = plain.pmfs["teff"] ** 0.5
    np.testing.assert_allclose(found.pmfs["teff"], wider / wider.sum(axis=1, keepdims=True), atol=1e-6)


def test_the_order_in_which_arms_are_given_is_of_no_consequence(calibrated, inputs):
    arms = {arm: calibrated.predict_arm(arm, each) for arm, each in inputs.items()}
    there = calibrated.combine(arms, "abc", date=DATE)
    back = calibrated.combine(dict(reversed(arms.items())), "abc", date=DATE)
    assert list(back.pmfs) == list(there.pmfs)
    for key, pmf in there.pmfs.items():
        np.testing.assert_array_equal(back.pmfs[key], pmf)
    assert list(back.table["arms"]) == ["A,B"] * 3


@pytest.mark.parametrize(("names", "found"), [((), "none"), (("A", "C"), r"also \['C'\]")])
def test_arms_that_the_networks_do_not_have_are_refused(tiny_predictor, inputs, names, found):
    one = tiny_predictor.predict_arm("A", inputs["A"])
    with pytest.raises(ConfigError, match=rf"arms among \['A', 'B'\], found {found}"):
        complete_arms(dict.fromkeys(names, one), PIXELS)


def test_what_is_known_of_a_spectrum_is_told_before_what_becomes_of_it():
    used = np.array([[True, False, False, True]])
    rows = Rows(used, np.array([True, False, True, False]), np.array(["lost", "", "lost", ""], object))
    share = {"A": np.array([1.0, 0.25, 1.0, 1.0]), "B": np.zeros(4)}
    short = "no arm has enough valid pixels: 25% of arm A, 0% of arm B"
    assert reasons(None, rows, share) == ["lost", short, "lost", ""]
    assert reasons(["", "cut", "cut", ""], rows, share) == ["lost", "cut", "cut", ""]
