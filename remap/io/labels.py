"""Label tables: what is known about the stars of a survey or library, one row per spectrum."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from astropy import units
from astropy.table import Column, MaskedColumn, Table

from remap.config import ConfigError, Section
from remap.io import files
from remap.spectra import SpectrumError

TEXT_FORMATS = {"ecsv": "ascii.ecsv", "csv": "ascii.csv"}
UNITS = {"teff": "K", "logg": "dex", "feh": "dex", "alpha": "dex", "vsini": "km / s", "rv": "km / s"}
OPTIONAL = {
    "error_columns": {},
    "file_column": None,
    "id_column": None,
    "rv_column": None,
    "repeat_stars": False,
    "units": {},
    "missing_values": (),
    "hdu": 1,
}


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labels of S spectra.

    Attributes:
      files: S file names, all different.
      star_ids: S star names; spectra of one star share theirs, so splits by star go by it.
      values: label -> float64[S], NaN where not known.
      errors: label -> float64[S], the standard deviation, NaN where not known; same keys as `values`.
      rv: float64[S], radial velocity in km/s, NaN where not known, or None without such a column.
    """

    files: tuple[str, ...]
    star_ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    rv: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)


def read_labels(
    path: str | os.PathLike, *, source: Section, data_root: str | os.PathLike | None = None
) -> LabelTable:
    """Reads a label table.

    Args:
      path: the table, as it is or under the data root (see `find_data`).
      source: a mapping (dict or ConfigDict) with the keys
        format: "ecsv", "csv" or "fits";
        columns: label -> column, for example {"teff": "Teff_K"}; its order is kept (a ConfigDict sorts);
        error_columns: label -> column of its standard deviation, for all, some or none of the labels;
        file_column, id_column: one of them at least; where one is left out it takes the other's values;
        rv_column: radial velocity in km/s;
        repeat_stars: True where several files may belong to one star (several visits), which is
          legitimate; False (default) refuses a star that appears twice. A file may never appear twice;
        units: label (or "rv") -> unit that the column must have, as the table writes it or equal to it,
          beyond the usual K, dex and km/s; columns without a unit are taken to be right;
        missing_values: numbers that stand for "not known", for example (-9999,);
        hdu: of FITS tables (default 1).
      data_root: the data root.

    Returns:
      The labels in the order of the table. Masked, empty, infinite and declared missing values, and errors
      that are not positive, are NaN.

    Raises:
      SpectrumError: the file is broken or has no rows; a column is missing (the message lists those there
        are), holds no numbers or has another unit; a name is empty; files or stars are duplicates.
      ValueError: the declaration is wrong.
    """
    source = files.check_source(source, kind="labels", required=("format", "columns"), optional=OPTIONAL)
    files.check_choice(source, "format", ("fits", *TEXT_FORMATS), "labels")
    columns, error_columns = dict(source["columns"]), dict(source["error_columns"])
    if not columns:
        raise ConfigError("source of labels: columns names no label")
    if extra := sorted(set(error_columns) - set(columns)):
        raise ConfigError(f"source of labels: error_columns has {extra}, which columns has not")
    if not (source["file_column"] or source["id_column"]):
        raise ConfigError("source of labels: missing 'file_column' or 'id_column'")
    path = files.resolve(path, data_root)
    with files.reading(path, f"a label table of format {source['format']!r}"):
        if source["format"] == "fits":
            with files.open_fits(path) as hdus:
                files.pick_hdu(hdus, source["hdu"], path)
                table = Table.read(hdus, format="fits", hdu=source["hdu"])
        else:
            table = Table.read(path, format=TEXT_FORMATS[source["format"]])
    if len(table) == 0:
        raise SpectrumError(f"{path}: expected a label table with rows, found none")

    expected = UNITS | dict(source["units"])
    missing = tuple(source["missing_values"])
    values, errors = {}, {}
    for label, column in columns.items():
        values[label] = _numbers(table, column, path, expected.get(label), missing)
        errors[label] = np.full(len(table), np.nan)
        if label in error_columns:
            error = _numbers(table, error_columns[label], path, expected.get(label), missing)
            errors[label] = np.where(error > 0, error, np.nan)
    rv = None
    if source["rv_column"]:
        rv = _numbers(table, source["rv_column"], path, expected["rv"], missing)

    named = {key: _names(table, source[key], path) for key in ("file_column", "id_column") if source[key]}
    file_names = named.get("file_column", named.get("id_column"))
    star_ids = named.get("id_column", file_names)
    _refuse_duplicates(file_names, path, source["file_column"] or source["id_column"], "")
    if not source["repeat_stars"]:
        hint = "; set repeat_stars where a star may have several spectra"
        _refuse_duplicates(star_ids, path, source["id_column"] or source["file_column"], hint)
    return LabelTable(file_names, star_ids, values, errors, rv)


def _get(table: Table, name: str, path: Path) -> Column | MaskedColumn:
    if name not in table.colnames:
        raise SpectrumError(f"{path}: expected a column {name!r}, found {', '.join(table.colnames)}")
    column = table[name]
    if column.ndim != 1:
        raise SpectrumError(
            f"{path}: expected one value per row in {name!r}, found shape {list(column.shape)}"
        )
    return column


def _numbers(table: Table, name: str, path: Path, unit: str | None, missing: tuple[float, ...]) -> np.ndarray:
    """A column as float64[S], NaN where masked, infinite or declared missing."""
    column = _get(table, name, path)
    masked = np.ma.getmaskarray(np.ma.asarray(column))
    if np.all(masked):  # an empty CSV column has no type
        return np.full(len(column), np.nan)
    if column.dtype.kind not in "iuf":
        raise SpectrumError(
            f"{path}: expected numbers in {name!r}, found {np.asarray(column)[~masked][0]!r} ({column.dtype})"
        )
    _check_unit(column, name, path, unit)
    values = np.ma.asarray(column).astype(np.float64).filled(np.nan)
    return np.where(np.isfinite(values) & ~np.isin(values, missing), values, np.nan)


def _check_unit(column: Column | MaskedColumn, name: str, path: Path, expected: str | None) -> None:
    found = column.unit
    if found is None or expected is None or str(found) == expected:
        return
    wanted = units.Unit(expected, parse_strict="silent")
    # log g is written dex(cm / s2), which is a dex for this purpose, while dex(m / s2) has another zero
    # point; errors and many metallicities are written as plain dex or without dimension.
    same = found == wanted
    if wanted == units.dex:
        physical = getattr(found, "physical_unit", None)
        same |= found == units.dimensionless_unscaled
        same |= physical is not None and physical in (units.dimensionless_unscaled, units.cm / units.s**2)
    if not same:
        raise SpectrumError(f"{path}: expected {name!r} in {expected}, found the unit {str(found)!r}")


def _names(table: Table, name: str, path: Path) -> tuple[str, ...]:
    """A column as S strings, none of them empty."""
    column = _get(table, name, path)
    masked = np.ma.getmaskarray(np.ma.asarray(column))
    values = np.ma.getdata(np.ma.asarray(column))
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
    names = tuple("" if m else t.strip() for t, m in zip(texts, masked, strict=True))
    if "" in names:
        raise SpectrumError(
            f"{path}: expected a name in every row of {name!r}, found none in row {names.index('')}"
        )
    return names


def _refuse_duplicates(names: Iterable[str], path: Path, column: str, hint: str) -> None:
    twice = [name for name, times in collections.Counter(names).items() if times > 1]
    if twice:
        shown = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
        raise SpectrumError(f"{path}: expected every {column!r} once, found duplicates of {shown}{hint}")
