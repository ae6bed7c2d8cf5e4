"""Files of many spectra on one grid, as arrays with a row for each: `.npz`, HDF5 or Parquet.

    wave   [N]     wavelengths
    flux   [S, N]
    ivar   [S, N]  inverse variance, if there is one; or `error`, where the source names it
    mask   [S, N]  if there is one: what is not zero is bad, unless the source says otherwise
    ids    [S]     texts or numbers that tell the spectra apart, if there are any
    star_id, exposure, ra, dec, rv, rv_err, snr, ...   [S], facts, each if it is there (`remap.spectra`)

In HDF5 these are data sets at the root, in Parquet columns: lists of N numbers, and numbers or texts. `wave` of a
Parquet file stands in the schema's metadata, as a list in JSON, or is a column whose rows are all the same. The kind
of a file is seen by how it begins, not by its name.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remap.config import ConfigError, Section
from remap.io import containers, facts, places, segments
from remap.io.content import native_float, reading
from remap.io.declarations import check_choice, check_source
from remap.io.stars import WHOSE, asked
from remap.spectra import NUMBER_FACTS, TEXT_FACTS, Spectra, SpectrumError

logger = logging.getLogger(__name__)

REQUIRED = ("format", "medium")
OPTIONAL = {
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave": "wave",
    "flux": "flux",
    "ivar": None,
    "error": None,
    "mask": None,
    "mask_good": "zero",
    "mask_bits": None,
    "ids": None,
    "facts": None,
    "line_spread": None,
}
THERE = ("ivar", "mask", "ids")  # are taken where they are there and the source does not name others
# What standard deviations may be called. They are not taken: they may be variances, or shares of the flux.
ERRORS = re.compile(
    r"(flux|f|e)?_?(err(or)?s?|sig(ma)?|std(dev)?|unc(ertaint(y|ies))?|noise)(_?flux)?|e_?flux", re.I
)


def read_arrays(
    path: Path,
    source: Section,
    *,
    within: tuple[float, float] | None = None,
    rows: tuple[int, int] | None = None,
) -> tuple[Spectra, ...]:
    """Reads the spectra of a file of arrays, or some of them.

    Args:
      path: `.npz`, HDF5 (h5py, the extra `hdf5`) or Parquet (pyarrow, the extra `parquet`).
      source: format "arrays"; medium; axis and wave_unit of the wavelengths (default linear, Angstrom); the names of
        the arrays, where they are not those of this module's documentation: wave, flux, ivar or error (standard
        deviations), mask, ids; mask_good, "zero" (default) or "nonzero", and mask_bits; facts, fact ->
        {"column": NAME, ...} (see `remap.io.facts`), beside or in place of arrays with the names of facts;
        line_spread, as elsewhere, without a place.
      within: Å; pixels outside are dropped before anything there is checked.
      rows: first and last + 1; None = all.

    Returns:
      One `Spectra`, named "file[id]", or "file[row]" where there are no ids.

    Raises:
      SpectrumError: the file is broken, an array is missing or has the wrong shape.
      ConfigError: the declaration is wrong, or the package that reads the file is missing.
    """
    source = _check(source)
    with reading(path, "arrays of spectra"), containers.opened(path) as found:
        count, pixels = _shape(found, source, path)
        first, last = (0, count) if rows is None else rows
        if not 0 <= first < last <= count:
            raise SpectrumError(f"{path}: expected rows {first} to {last}, found {count}")
        segment = _segment(found, source, path, (first, last), pixels)
        return segments.build_all([(segment, source)], path, within)


def count_arrays(path: Path, source: Section) -> int:
    """How many spectra a file of arrays has.

    Raises:
      SpectrumError, ConfigError: as `read_arrays`.
    """
    source = _check(source)
    with reading(path, "arrays of spectra"), containers.opened(path) as found:
        return _shape(found, source, path)[0]


def array_stars(path: Path, source: Section, rows: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """The facts `stars.WHOSE` of the rows that `read_arrays` would read, as far as there are any; reads no pixels."""
    source = _check(source)
    with reading(path, "arrays of spectra"), containers.opened(path) as found:
        rows = rows or (0, _shape(found, source, path)[0])
        there = {name: () for name in WHOSE if name in found.names} | source["facts"]
        return _facts(found, source, path, rows, asked(there))


def _facts(
    found: containers.Container,
    source: Mapping[str, Any],
    path: Path,
    rows: tuple[int, int],
    names: Sequence[str] = (*TEXT_FACTS, *NUMBER_FACTS),
) -> dict[str, np.ndarray]:
    """What arrays with the names of facts say, and what the source declares instead."""

    def column(name: str) -> np.ndarray | None:
        if "/" not in name and name not in found.names:
            return None
        return _rows(found, name, path, rows, ())

    own = {name: ({"column": name},) for name in names if name in found.names}
    declared = {name: place for name, place in source["facts"].items() if name in names}
    return facts.gather(own | declared, path, count=rows[1] - rows[0], columns=column)


def _check(source: Section) -> dict[str, Any]:
    source = check_source(source, kind="arrays", required=REQUIRED, optional=OPTIONAL)
    if source["error"] and source["ivar"]:
        raise ConfigError("source of arrays: give ivar or error, not both")
    check_choice(source, "mask_good", ("zero", "nonzero"), "arrays")
    for key in ("wave", "flux", "ivar", "error", "mask", "ids"):
        if source[key] is not None and not isinstance(source[key], str):
            raise ConfigError(f"source of arrays: {key} must be the name of an array, found {source[key]!r}")
    source["facts"] = facts.check_facts(source["facts"], "arrays")
    for name, options in source["facts"].items():
        if any(place.get("column") is None and place.get("value") is None for place in options):
            raise ConfigError(f"source of arrays: the fact {name!r} needs a column or a value")
    source["line_spread"] = facts.check_spread(source["line_spread"], "arrays")
    if source["line_spread"] and "place" in source["line_spread"]:
        raise ConfigError("source of arrays: line_spread must have resolution or fwhm, found a place")
    return source


def _shape(found: containers.Container, source: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """S and N; SpectrumError where an array that is needed is missing or has another shape."""
    names = found.names
    for key in ("wave", "flux"):
        if "/" not in source[key] and source[key] not in names:
            there = ", ".join(sorted(names)[:20])
            raise SpectrumError(f"{path}: expected an array {source[key]!r}, found {there or 'none'}")
    shape = found.shape(source["flux"])
    if len(shape) != 2 or 0 in shape:
        raise SpectrumError(f"{path}: expected flux of shape [S, N], found {list(shape)}")
    return int(shape[0]), int(shape[1])


def _segment(
    found: containers.Container,
    source: Mapping[str, Any],
    path: Path,
    rows: tuple[int, int],
    pixels: int,
) -> segments.Segment:
    count = rows[1] - rows[0]
    containers.check_piece(path, 8 * count * pixels, f"{count} rows of {source['flux']!r}")
    names = {key: source[key] or _there(key, source, found) for key in (*THERE, "error")}

    def read(key: str) -> np.ndarray | None:
        if names[key] is None:
            return None
        return _rows(found, names[key], path, rows, (pixels,))

    likely = [name for name in sorted(found.names) if ERRORS.fullmatch(name)]
    if likely and rows[0] == 0 and not (names["ivar"] or names["error"]):
        logger.warning(
            "%s: the errors of the flux are not known, and the array %r is not read; if it is their standard "
            "deviation, declare error=%r",
            *(path, likely[0], likely[0]),
        )
    flux = native_float(_rows(found, source["flux"], path, rows, (pixels,)))
    ivar, error, mask = (read(key) for key in ("ivar", "error", "mask"))
    valid = None
    if mask is not None:
        valid = places.good_pixels(
            places.native(mask), path, good=source["mask_good"], bits=source["mask_bits"], what=names["mask"]
        )

    ids = range(*rows)
    if names["ids"] is not None:
        ids = [facts.as_text(value) for value in _rows(found, names["ids"], path, rows, ())]
    return segments.Segment(
        coordinate=_wave(found, source["wave"], path, rows, pixels),
        flux=flux,
        ivar=None if ivar is None else native_float(ivar),
        error=None if error is None else native_float(error),
        valid=valid,
        names=tuple(f"{path.name}[{name}]" for name in ids),
        facts=_facts(found, source, path, rows),
    )


def _there(key: str, source: Mapping[str, Any], found: containers.Container) -> str | None:
    """The name of an array that need not be there, if it is."""
    wanted = key in THERE and not (key == "ivar" and source["error"])
    return key if wanted and key in found.names else None


def _rows(
    found: containers.Container, name: str, path: Path, rows: tuple[int, int], width: tuple[int, ...]
) -> np.ndarray:
    """Rows of an array whose shape is checked before."""
    shape = found.shape(name)
    if shape[1:] != width or shape[:1] < (rows[1],):
        raise SpectrumError(
            f"{path}: expected {name!r} of shape {['S', *width]} with {rows[1]} rows or more, found {list(shape)}"
        )
    values = found.rows(name, *rows)
    if width and values.dtype.kind not in "fiub":
        raise SpectrumError(f"{path}: expected numbers in {name!r}, found {values.dtype}")
    return values


def _wave(
    found: containers.Container, name: str, path: Path, rows: tuple[int, int], pixels: int
) -> np.ndarray:
    """float64[N], which all rows share."""
    shape = found.shape(name)
    if math.prod(shape[-1:]) != pixels or len(shape) > 2:
        raise SpectrumError(f"{path}: expected {name!r} of shape [{pixels}], found {list(shape)}")
    if len(shape) == 1:
        wave = found.whole(name)
    else:
        wave, own = found.rows(name, 0, 1)[0], _rows(found, name, path, rows, (pixels,))
        if np.any(own != wave):
            raise SpectrumError(f"{path}: expected wavelengths that all rows share, found others in {name!r}")
    if wave.dtype.kind not in "fiu":
        raise SpectrumError(f"{path}: expected numbers in {name!r}, found {wave.dtype}")
    return wave.astype(np.float64)
