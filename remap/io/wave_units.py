"""What a file says of the unit of its wavelengths: refused where it is none of length, or another than declared."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy import units

from remap.spectra import SpectrumError

# Written in files, and unknown to astropy or something else there ("A" is the ampere).
SPELLINGS = {
    **dict.fromkeys(
        ("a", "å", "ang", "angs", "angstrom", "angstroms", "angstroem", "ångström", "ångstrom", "aa"),
        units.AA,
    ),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nanometres", "nms"), units.nm),
    **dict.fromkeys(
        ("micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres", "um"), units.um
    ),
}
LOGARITHM = re.compile(r"\s*(log10|log_10|lg|dex|log|ln)\b\s*[(\[]?\s*(.*?)\s*[)\]]?\s*", re.IGNORECASE)
IN_NAME = re.compile(r".*[(\[]\s*([^()\[\]]+?)\s*[)\]]\s*")
# A power of ten that astropy would work out for minutes, 10**999999999 m.
ABSURD = re.compile(r"(\*\*|\^|[-+(eE])[-+(\s]*\d{4,}")
# "log" alone is either.
LOGARITHMS = {
    "ln": ("ln",),
    "log": ("ln", "log10"),
    **dict.fromkeys(("log10", "log_10", "lg", "dex"), ("log10",)),
}


def check(found: str | None, path: Path, *, axis: str, wave_unit: str, what: str, name: str = "") -> None:
    """Refuses wavelengths whose own unit contradicts the declaration. A unit that nobody knows says nothing.

    Args:
      found: the unit in the file; None or blank = not there, and then one in brackets at the end of `name` counts.
      path: the file, for messages.
      axis: the declared "linear", "ln" or "log10".
      wave_unit: the declared unit.
      what: holds the wavelengths, for messages.
      name: of the column.

    Raises:
      SpectrumError: frequencies, wave numbers, velocities, energies; another unit of length; a logarithm where the
        axis is declared linear, or one of another base.
    """
    text = (found or "").strip()
    if not text and (match := IN_NAME.fullmatch(name)):
        text = match.group(1)
    if not text:
        return
    if match := LOGARITHM.fullmatch(text):
        axes = LOGARITHMS[match.group(1).lower()]
        if axis not in axes:
            raise SpectrumError(
                f"{path}: expected {what} with the declared axis={axis!r}, found the unit {text!r}; set axis to "
                f"{' or '.join(repr(a) for a in axes)}"
            )
        text = match.group(2)
    unit = parse(text)
    if unit is None or unit.physical_type == "dimensionless":
        return
    if unit.physical_type != "length":
        raise SpectrumError(
            f"{path}: expected wavelengths in {what}, found the unit {text!r} ({unit.physical_type}); frequencies, "
            "wave numbers, energies and velocities are not converted: set wave_column to a column of wavelengths"
        )
    declared = units.Unit(wave_unit)
    if not np.isclose(unit.to(declared), 1, rtol=1e-6):
        raise SpectrumError(
            f"{path}: expected {what} in {declared} as declared, found {text!r}; set wave_unit to that of the file"
        )


def is_absurd(text: str) -> bool:
    """True for a unit with a power of so many digits that astropy would work on it for minutes."""
    return ABSURD.search(text) is not None


def parse(text: str) -> units.UnitBase | None:
    """A unit as files spell it, or None where it is not known."""
    text = text.strip().strip("[]").strip()
    if text.lower() in SPELLINGS:
        return SPELLINGS[text.lower()]
    if is_absurd(text):
        return None
    for spelling in (text, text.lower()):
        try:
            unit = units.Unit(spelling, parse_strict="raise")
        except (ValueError, TypeError):
            continue
        return unit if isinstance(unit, units.UnitBase) else None
    return None


def stated(found: str | None, path: Path, *, what: str) -> str:
    """The unit of length that a file states itself, as astropy spells it.

    Raises:
      SpectrumError: it states none.
    """
    text = (found or "").strip()
    match = LOGARITHM.fullmatch(text)
    unit = parse(match.group(2) if match else text) if text else None
    if unit is None or unit.physical_type != "length":
        raise SpectrumError(
            f"{path}: expected a unit of length for {what} in the file, found {text!r}; set wave_unit to what it is"
        )
    return unit.to_string()
