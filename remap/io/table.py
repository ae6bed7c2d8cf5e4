"""FITS binary tables with wavelength, flux and inverse variance or error columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import bintable, facts, places, segments, wave_units
from remap.io.content import reading
from remap.io.declarations import check_choice, check_source, plain
from remap.io.fits_files import open_fits, pick_hdu
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
# Keys that one of `segments` may set for itself.
OWN = ("row", *COLUMNS, "mask_good", "mask_bits", "segment_column", "facts")
STATED = "column"  # wave_unit: what the column itself states


def read_table_spectra(
    path: Path, source: Section, *, within: tuple[float, float] | None = None, exposures: bool = True
) -> tuple[Spectra, ...]:
    """Reads the spectra of a FITS file's binary tables: one row per pixel, or rows with an array in each column.

    Args:
      path: the file, `.fits` or `.fits.gz`.
      source: format "table"; medium; axis, the meaning of the wavelength column ("linear", "ln", "log10");
        wave_unit, or "column" for the unit of length that the column itself states; wave_column; flux_column; at most
        one of ivar_column and error_column (standard deviation), to which systematic_column is added in quadrature;
        error_optional, True if an error column that is absent or has no positive number means that errors are not
        known (False: no pixel is good then); mask_column together with mask_good, "zero" or "nonzero": which of its
        values mean a good pixel; mask_bits, an integer that selects the bits of the mask that count (default all);
        hdu (default 1); row, of a table whose cells are arrays and that has several; segments (see
        `remap.io.segments.expand`), each with any other key of a source but those that say what the numbers mean (its
        facts are added to the others or replace them); segment_column, which names segments that are rows; facts and
        line_spread (see `remap.io.facts`), whose columns are those of the same table if they name no other.
      within: Å, in the medium of the source; pixels outside are dropped before anything is checked.
      exposures: False leaves out segments that are single exposures.

    Returns:
      The segments, each one spectrum; a pixel with a null, non-finite or not positive error or inverse variance is
      invalid.

    Raises:
      SpectrumError: the file is broken, a column is missing (the message lists those there are) or is no
        column of N numbers, its unit contradicts the declared one, or the wavelengths do not increase.
      ValueError: the declaration is wrong.
    """
    stated = source.get("wave_unit") == STATED
    declared = dict(plain(source)) | ({"wave_unit": "Angstrom"} if stated else {})
    source = _check(check_source(declared, kind="table", required=REQUIRED, optional=OPTIONAL))
    if stated:
        source["wave_unit"] = STATED
    where = "several HDUs" if source["segments"] else f"HDU {source['hdu']!r}"
    with reading(path, f"a FITS file with a table in {where}"), open_fits(path) as hdus:
        found = [_read(hdus, one, path) for one in segments.expand(source, hdus, path, exposures=exposures)]
    return segments.build_all(found, path, within)


def _check(source: dict[str, Any]) -> dict[str, Any]:
    source["facts"] = facts.check_facts(source["facts"], "table")
    source["line_spread"] = facts.check_spread(source["line_spread"], "table")
    source["segments"] = segments.check_segments(source["segments"], OWN, "table")
    check_choice(source, "error_optional", (True, False), "table")
    if source["segments"]:
        own = [facts.check_facts(part.get("facts"), "table") for part in source["segments"]]
        source["segments"] = tuple(
            {**part, "facts": source["facts"] | more}
            for part, more in zip(source["segments"], own, strict=True)
        )
    for part in source["segments"] or ({},):
        one = {**source, **part}
        if one["ivar_column"] and one["error_column"]:
            raise ConfigError("source of table: give ivar_column or error_column, not both")
        if one["systematic_column"] and not one["error_column"]:
            raise ConfigError("source of table: systematic_column needs an error_column")
        if one["mask_column"]:
            check_choice(one, "mask_good", ("zero", "nonzero"), "table")
        elif one["mask_good"] is not None or one["mask_bits"] is not None:
            raise ConfigError("source of table: mask_good and mask_bits need a mask_column")
        for key, kind in (
            *((c, str) for c in COLUMNS),
            ("mask_bits", int),
            ("segment_column", str),
            ("row", int),
        ):
            value = one[key]
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise ConfigError(f"source of table: {key} must be {kind.__name__}, found {value!r}")
        if one["row"] is not None and one["row"] < 0:
            raise ConfigError(f"source of table: row must be 0 or more, found {one['row']}")
    return source


def _read(
    hdus: fits.HDUList, source: Mapping[str, Any], path: Path
) -> tuple[segments.Segment, dict[str, Any]]:
    hdu, row = source["hdu"], source["row"]
    chosen = pick_hdu(hdus, hdu, path)
    if chosen.is_image:
        raise SpectrumError(f"{path}: expected a table in HDU {hdu!r}, found an image or nothing")
    table = bintable.open_table(chosen, path)
    names = {key: source[key] for key in COLUMNS if source[key]}
    if (
        source["error_optional"]
        and source["error_column"]
        and source["error_column"].lower() not in table.fields
    ):
        del names["error_column"]
        names.pop("systematic_column", None)
    columns = {key: _cells(table, name, row) for key, name in names.items()}
    if len({len(c) for c in columns.values()}) > 1:
        found = ", ".join(f"{source[key]} {len(c)}" for key, c in columns.items())
        raise SpectrumError(f"{path}: expected columns of one length, found {found}")
    column = table.field(source["wave_column"])
    unit = source["wave_unit"]
    if unit == STATED:
        unit = wave_units.stated(column.unit, path, what=column.name)
    wave_units.check(
        column.unit, path, axis=source["axis"], wave_unit=unit, what=source["wave_column"], name=column.name
    )

    error = _numbers(columns, "error_column")
    if error is not None and source["error_optional"] and not np.any(np.isfinite(error) & (error > 0)):
        error = None
    if error is not None and "systematic_column" in columns:
        systematic = _numbers(columns, "systematic_column")
        error = np.where((error >= 0) & (systematic >= 0), np.hypot(error, systematic), np.nan)
    valid = None
    if source["mask_column"]:
        valid = places.good_pixels(
            columns["mask_column"],
            path,
            good=source["mask_good"],
            bits=source["mask_bits"],
            what=source["mask_column"],
        )
    told = facts.gather(
        source["facts"],
        path,
        hdus=hdus,
        hdu=hdu,
        rows=None if row is None else (row,),
        number=source["number"],
    )
    told = segments.name_facts(told, source)
    if source["segment_column"] and row is not None:
        cell = table.cells(source["segment_column"], row)
        told["segment"] = np.array([facts.as_text(cell)], dtype=object)
    return segments.Segment(
        coordinate=_numbers(columns, "wave_column"),
        # float64, because inverse variances of fluxes in physical units overflow float32
        flux=_numbers(columns, "flux_column")[None],
        ivar=None if "ivar_column" not in columns else _numbers(columns, "ivar_column")[None],
        error=None if error is None else error[None],
        valid=None if valid is None else valid[None],
        spread=facts.fetch_spread(source["line_spread"], path, hdus, hdu, row, source["number"]),
        names=(path.name,),
        facts=told,
    ), {**source, "wave_unit": unit}


def _cells(table: bintable.BinTable, name: str, row: int | None) -> np.ma.MaskedArray:
    """A numeric column `[N]`, or one row of a column whose cells are arrays, nulls masked."""
    values = table.cells(name, row)
    if row is None and values.ndim > 1 and len(values) == 1:
        values = values[0]
    if values.ndim > 1 and values.size in values.shape:  # axes of length one say nothing
        values = values.reshape(-1)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "biuf":
        kind = "text" if values.dtype.kind == "O" else values.dtype
        raise SpectrumError(
            f"{table.path}: expected a column {name!r} of N numbers, found {kind} of shape {list(values.shape)}"
            + ("; row says which row is meant" if row is None and values.ndim > 1 else "")
        )
    return values


def _numbers(columns: Mapping[str, np.ma.MaskedArray], key: str) -> np.ndarray | None:
    return places.numbers(columns[key]) if key in columns else None
