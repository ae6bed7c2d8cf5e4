"""FITS binary tables with wavelength, flux and inverse variance or error columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import facts, files, places, segments, wave_units
from remap.spectra import Spectra, SpectrumError

COLUMNS = ("wave_column", "flux_column", "ivar_column", "error_column", "systematic_column", "mask_column")
REQUIRED = ("format", "medium", "axis", "wave_unit", "wave_column", "flux_column")
OPTIONAL = {
    "hdu": 1,
    "row": None,
    "ivar_column": None,
    "error_column": None,
    "systematic_column": None,
    "error_optional": False,
    "mask_column": None,
    "mask_good": None,
    "mask_bits": None,
    "segment_column": None,
    **segments.COMMON,
}
# What one of `segments` may say besides where it is.
OWN = ("row", *COLUMNS, "mask_good", "mask_bits", "segment_column", "facts", "line_spread")
STATED = "column"  # wave_unit: what the column itself states


def read_table_spectrum(
    path: Path, source: Section, within: tuple[float, float] | None = None
) -> tuple[Spectra, ...]:
    """Reads the spectra of a FITS file's binary tables: one row per pixel, or rows with an array in each column.

    Args:
      path: the file, `.fits` or `.fits.gz`.
      source: format "table"; medium; axis, the meaning of the wavelength column ("linear", "ln", "log10");
        wave_unit, or "column" for the unit of length that the column itself states; wave_column; flux_column; at most
        one of ivar_column and error_column (standard deviation), to which systematic_column is added in quadrature;
        error_optional, True if an error column that is absent or has no positive number means that errors are not known
        (False: no pixel is good then); mask_column together with mask_good, "zero" or "nonzero": which of its values
        mean a good pixel; mask_bits, an integer that selects the bits of the mask that count (default all);
        hdu (default 1); row, of a table whose cells are arrays: a number, or "all" for one segment from each row, named
        by segment_column; facts and line_spread (see `remap.io.facts`), whose columns lie in the same table if they
        name no other; segments, a sequence of mappings that say which HDUs are segments: hdu (a number, or a
        regular expression that the whole name matches, whose named groups `segment` and `exposure` become facts),
        segment and exposure themselves, and any other key of a source but format, medium, axis and wave_unit, for these
        HDUs alone.
      within: Å; pixels outside are dropped before any check.

    Returns:
      One spectrum for every segment; a pixel with a null, non-finite or not positive error or inverse variance is
      invalid.

    Raises:
      SpectrumError: the file is broken, a column is missing (the message lists those there are) or is no
        column of N numbers, its unit contradicts the declared one, or the wavelengths do not increase.
      ValueError: the declaration is wrong.
    """
    source = dict(files.plain(source))
    own_unit = source.get("wave_unit") == STATED
    checked = files.check_source(
        source | ({"wave_unit": "Angstrom"} if own_unit else {}), kind="table", required=REQUIRED, optional=OPTIONAL
    )
    source = checked | {"wave_unit": source["wave_unit"]}
    declared = _declared(source)
    where = "several HDUs" if source["segments"] else f"HDU {source['hdu']!r}"
    with files.reading(path, f"a FITS file with a table in {where}"), files.open_fits(path) as hdus:
        found = list(_segments(hdus, declared, path))
    return segments.build_all(found, path, within)


def _declared(source: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """One complete source for every one of `segments`, or the source itself; ConfigError where one cannot be right."""
    given = files.plain(source["segments"])
    if given is None:
        parts: tuple = ({"hdu": source["hdu"]},)
    elif isinstance(given, tuple) and given and all(isinstance(p, Mapping) and "hdu" in p for p in given):
        parts = given
    else:
        raise ConfigError(f"source of table: segments must be mappings with hdu, found {given!r}")
    out = []
    for part in parts:
        unknown = sorted(set(part) - {"hdu", "segment", "exposure", *OWN})
        if unknown:
            raise ConfigError(f"source of table: segments know hdu, segment, exposure, {', '.join(OWN)}, found {unknown}")
        one = {**source, "segment": "", "exposure": "", **part, "named": given is not None}
        if one["ivar_column"] and one["error_column"]:
            raise ConfigError("source of table: give ivar_column or error_column, not both")
        if one["systematic_column"] and not one["error_column"]:
            raise ConfigError("source of table: systematic_column needs an error_column")
        files.check_choice(one, "error_optional", (True, False), "table")
        if one["mask_column"]:
            files.check_choice(one, "mask_good", ("zero", "nonzero"), "table")
        elif one["mask_good"] is not None or one["mask_bits"] is not None:
            raise ConfigError("source of table: mask_good and mask_bits need a mask_column")
        for key, kind in (*((c, str) for c in COLUMNS), ("mask_bits", int), ("segment_column", str)):
            if one[key] is not None and (not isinstance(one[key], kind) or isinstance(one[key], bool)):
                raise ConfigError(f"source of table: {key} must be {kind.__name__}, found {one[key]!r}")
        row = one["row"]
        if isinstance(row, bool) or not (row in (None, "all") or (isinstance(row, int) and row >= 0)):
            raise ConfigError(f"source of table: row must be a number or 'all', found {row!r}")
        if one["named"] and isinstance(one["hdu"], str):
            try:
                re.compile(one["hdu"])
            except re.error as error:
                raise ConfigError(f"source of table: {error} in the hdu {one['hdu']!r} of segments") from error
        one["facts"] = facts.check_facts(one["facts"], "table")
        one["line_spread"] = facts.check_spread(one["line_spread"], "table")
        out.append(one)
    return tuple(out)


def _segments(
    hdus: fits.HDUList, declared: tuple[dict[str, Any], ...], path: Path
) -> Iterator[tuple[segments.Segment, dict[str, Any]]]:
    """The segments in the order in which they are declared, those of one declaration in the order of the file."""
    some = False
    for source in declared:
        for index, names in _hdus(hdus, source, path):
            some = True
            table = hdus[index]
            if table.is_image:
                raise SpectrumError(f"{path}: expected a table in HDU {source['hdu']!r}, found an image or nothing")
            rows = (source["row"],) if source["row"] != "all" else range(len(table.data))
            for row in rows:
                yield _read(hdus, index, row, source, names, path)
    if not some:
        wanted = " or ".join(repr(s["hdu"]) for s in declared)
        raise SpectrumError(f"{path}: expected HDUs like {wanted}, found {segments.describe(hdus)}")


def _hdus(
    hdus: fits.HDUList, source: Mapping[str, Any], path: Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers of the HDUs that are meant, and the facts that their names tell."""
    told = {key: str(source[key]) for key in ("segment", "exposure") if source[key]}
    if not source["named"] or not isinstance(source["hdu"], str):
        # of the list itself, because there may be several of one name
        chosen = files.pick_hdu(hdus, source["hdu"], path)
        yield next(i for i, hdu in enumerate(hdus) if hdu is chosen), told
        return
    pattern = re.compile(source["hdu"], re.IGNORECASE)
    for index, hdu in enumerate(hdus):
        if not hdu.is_image and (match := pattern.fullmatch(hdu.name)):
            yield index, {**{k: v for k, v in match.groupdict().items() if v is not None}, **told}


def _read(
    hdus: fits.HDUList,
    index: int,
    row: int | None,
    source: Mapping[str, Any],
    names: Mapping[str, str],
    path: Path,
) -> tuple[segments.Segment, dict[str, Any]]:
    table = hdus[index]
    there = {n.lower() for n in table.columns.names}
    wanted = {key: source[key] for key in COLUMNS if source[key]}
    if source["error_optional"] and source["error_column"] and source["error_column"].lower() not in there:
        wanted.pop("error_column")
    columns = {key: _cells(table, name, row, path) for key, name in wanted.items()}
    if len({len(c) for c in columns.values()}) > 1:
        found = ", ".join(f"{source[key]} {len(c)}" for key, c in columns.items())
        raise SpectrumError(f"{path}: expected columns of one length, found {found}")
    column = _column(table, source["wave_column"], path)
    unit = source["wave_unit"]
    if unit == STATED:
        unit = wave_units.stated(column.unit, path, what=column.name)
    wave_units.check(
        column.unit, path, axis=source["axis"], wave_unit=unit, what=source["wave_column"], name=column.name
    )

    error = _numbers(columns, "error_column")
    if error is not None and source["error_optional"] and not np.any(np.isfinite(error) & (error > 0)):
        error = None
    if error is not None and source["systematic_column"]:
        systematic = _numbers(columns, "systematic_column")
        error = np.where((error >= 0) & (systematic >= 0), np.hypot(error, systematic), np.nan)
    valid = None
    if source["mask_column"]:
        valid = places.good_pixels(
            columns["mask_column"], path, good=source["mask_good"], bits=source["mask_bits"], what=source["mask_column"]
        )
    told = facts.gather(source["facts"], path, hdus=hdus, hdu=index, rows=None if row is None else (row,))
    told |= {key: np.array([value], dtype=object) for key, value in names.items() if key in ("segment", "exposure")}
    if source["row"] == "all":
        name = str(row)
        if source["segment_column"]:
            name = facts.as_text(table.data[_column(table, source["segment_column"], path).name][row])
        told["segment"] = np.array([name], dtype=object)
    return segments.Segment(
        coordinate=_numbers(columns, "wave_column"),
        # float64, because inverse variances of fluxes in physical units overflow float32
        flux=_numbers(columns, "flux_column")[None],
        ivar=None if "ivar_column" not in columns else _numbers(columns, "ivar_column")[None],
        error=None if error is None else error[None],
        valid=None if valid is None else valid[None],
        spread=facts.fetch_spread(source["line_spread"], path, hdus, index, row),
        names=(path.name,),
        facts=told,
    ), {**source, "wave_unit": unit}


def _cells(table: fits.BinTableHDU, name: str, row: int | None, path: Path) -> np.ma.MaskedArray:
    """A numeric column `[N]`, or one row of a column whose cells are arrays, nulls masked."""
    column = _column(table, name, path)
    values = table.data[column.name]
    rows = len(values)
    if row is not None:
        if row >= rows:
            raise SpectrumError(f"{path}: expected row {row} of the column {name!r}, found {rows} rows")
        values = values[row]
    elif rows == 1 and np.ndim(values[0]) > 0:
        values = values[0]
    values = np.asarray(values)
    if values.ndim > 1 and values.size in values.shape:  # axes of length one say nothing
        values = values.reshape(-1)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "biuf":
        many = row is None and rows > 1 and (values.ndim > 1 or values.dtype.kind == "O")
        raise SpectrumError(
            f"{path}: expected a column {name!r} of N numbers, found {values.dtype} of shape {list(values.shape)}"
            + ("; row says which row is meant" if many else "")
        )
    if column.null is None:
        masked = np.zeros(values.shape, bool)
    else:  # which is a number of the file, before its scaling
        masked = values == column.null * (column.bscale or 1) + (column.bzero or 0)
    return np.ma.array(places.native(values), mask=masked)


def _column(table: fits.BinTableHDU, name: str, path: Path) -> fits.Column:
    """A column by name. FITS does not tell upper from lower case in them."""
    for column in table.columns:
        if column.name.lower() == name.lower():
            return column
    raise SpectrumError(f"{path}: expected a column {name!r}, found {', '.join(table.columns.names)}")


def _numbers(columns: Mapping[str, np.ma.MaskedArray], key: str) -> np.ndarray | None:
    return places.numbers(columns[key]) if key in columns else None
