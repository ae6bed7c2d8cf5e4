"""Labels of library spectra that do not come with the pixels: in the header, in the file's name, or in a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io.content import reading
from remap.io.fits_files import card, open_fits, pick_hdu
from remap.io.limits import limited
from remap.spectra import SpectrumError

# A group of this ending holds so many times the label: "g45" with (?P<logg_x10>45) is log g 4.5.
MULTIPLE = re.compile(r"(?P<label>.+)_x(?P<factor>10|100|1000)")
PLACE = {"hdu": None, "factor": 1.0, "missing": ()}


def labels_from_name(name: str, pattern: str) -> dict[str, float]:
    """Labels that the name of a spectrum holds.

    A group's text is a number as it is usually written, or
    - with `p` or `m` in front for the sign: "p0.5" is 0.5, "m1.5" is -1.5, and two digits without a point are
      tenths, as in the names of ATLAS models: "p05" is 0.5, "m15" is -1.5; other numbers of digits are refused;
    - with `p` or `_` between digits for the point: "4p5" and "4_5" are 4.5.

    Args:
      name: of the spectrum, which is that of its file.
      pattern: a regular expression with a named group for each label; a group named `LABEL_x10` (or `_x100`,
        `_x1000`) holds that many times the label. It is looked for anywhere in the name; a group that takes no part
        gives no label.

    Raises:
      SpectrumError: the name does not fit the pattern, or a group holds no number.
      ConfigError: the pattern is no regular expression, or has no named group.

    Examples:
      >>> labels_from_name("t5750g45m15.dat", r"t(?P<teff>\\d+)g(?P<logg_x10>\\d+)(?P<feh>[pm]\\d+)")
      {'teff': 5750.0, 'logg': 4.5, 'feh': -1.5}
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"labels_from_name: expected a regular expression, found {pattern!r}: {error}"
        ) from error
    if not compiled.groupindex:
        raise ConfigError(f"labels_from_name: expected named groups like (?P<teff>\\d+), found {pattern!r}")
    found = compiled.search(name)
    if found is None:
        raise SpectrumError(f"{name}: expected a name like {pattern!r}, which labels_from_name declares")
    labels: dict[str, float] = {}
    for group, text in found.groupdict().items():
        if text is None:
            continue
        multiple = MULTIPLE.fullmatch(group)
        label, factor = (multiple["label"], float(multiple["factor"])) if multiple else (group, 1.0)
        if label in labels:
            raise ConfigError(f"labels_from_name: two groups of {pattern!r} hold {label}")
        labels[label] = _number(text, group, name) / factor
    return labels


def _number(text: str, group: str, name: str) -> float:
    """The number that a part of a name stands for, see `labels_from_name`."""
    plain = text.strip().replace("\N{MINUS SIGN}", "-")
    signed = re.fullmatch(r"([pmPM])(\d.*)", plain)
    if signed:
        sign, digits = {"p": 1.0, "m": -1.0}[signed[1].lower()], signed[2]
        if digits.isdigit() and len(digits) != 2:
            raise SpectrumError(
                f"{name}: expected two digits (tenths) or a point after the sign of {group}, found {text!r}"
            )
        scale = sign / 10 if digits.isdigit() else sign
    else:
        scale, digits = 1.0, plain
    digits = re.sub(r"(?<=\d)[_p](?=\d)", ".", digits)
    try:
        value = float(digits)
    except ValueError:
        value = np.nan
    if not np.isfinite(value) or "_" in digits:
        raise SpectrumError(f"{name}: expected a number for {group}, found {text!r}")
    return value * scale + 0.0  # no -0.0


def labels_from_header(
    path: Path, places: Section, hdu: int | str = 0, *, source: Section | None = None
) -> dict[str, float]:
    """Labels that the header of a FITS file holds.

    Args:
      path: the file.
      places: label -> keyword, or label -> a mapping with `keyword` and, where they differ from what is usual,
        `hdu` (of this card), `factor` (the card's value times it is the label) and `missing` (numbers that mean that
        it is not known).
      hdu: where the spectrum is; keywords are looked up there and then in the primary HDU.
      source: whose limits hold for the file (`remap.io.limits.Limits`).

    Returns:
      The labels, NaN where the file says that they are not known.

    Raises:
      SpectrumError: the file is broken, or a card is not there or holds no number.
      ConfigError: a place that names no keyword or has other keys.
    """
    wanted = {label: _place(label, place) for label, place in places.items()}
    with (
        limited(source or {}, "a library"),
        reading(path, "a FITS file with labels in its header"),
        open_fits(path) as hdus,
    ):
        return {
            label: _card(hdus, place, hdu if place["hdu"] is None else place["hdu"], path)
            for label, place in wanted.items()
        }


def _place(label: str, place: str | Section) -> dict[str, object]:
    found = {"keyword": place} if isinstance(place, str) else dict(place)
    unknown = sorted(set(found) - {"keyword", *PLACE})
    if "keyword" not in found or unknown:
        raise ConfigError(
            f"library.labels.{label}: expected a keyword, or a mapping of {['keyword', *PLACE]}, found {found}"
        )
    return {**PLACE, **found}


def _card(hdus: fits.HDUList, place: Mapping[str, object], hdu: int | str, path: Path) -> float:
    key = str(place["keyword"])
    for where in (hdu, 0):
        header = pick_hdu(hdus, where, path).header
        if key in header:
            value = card(header, key, path)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(float(value)):
                raise SpectrumError(f"{path}: expected a number for {key} in the header, found {value!r}")
            return np.nan if value in tuple(place["missing"]) else float(value) * float(place["factor"])
    raise SpectrumError(f"{path}: expected {key} in the header of HDU {hdu!r} or the primary one, found none")
