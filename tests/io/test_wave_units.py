"""Units of wavelengths as files spell them."""

import time

import pytest
from astropy import units

from remap.io.labels import _unit
from remap.io.wave_units import parse


@pytest.mark.parametrize(
    "text", ["10**999999999 m", "10^(-99999999) Angstrom", "10+99999999 m", "m10E9999999"]
)
def test_powers_that_would_take_minutes_are_not_known(text):
    began = time.process_time()
    assert parse(text) is None
    assert _unit(text) is None  # of a table of labels
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["10**-10 m", "1e-10 m", "0.0001 um", "Angstrom", "ANGSTROMS"])
def test_angstroms_are_known(text):
    unit = parse(text)
    assert unit is not None
    assert unit.to(units.AA) == pytest.approx(1.0)
