"""Label tables: what is known about the stars of a survey or library, one row per spectrum."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy import units

from remap.config import ConfigError, Section
from remap.io import columns as tables
from remap.io.columns import Columns
from remap.io.content import reading
from remap.io.declarations import check_choice, check_source
from remap.io.files import resolve
from remap.io.limits import limited
from remap.io.matching import RULES, match_rows
from remap.io.wave_units import is_absurd
from remap.spectra import SpectrumError

logger = logging.getLogger(__name__)

UNITS = {"teff": "K", "logg": "dex", "feh": "dex", "m_h": "dex", "alpha": "dex"} | {
    name: "km / s" for name in ("vsini", "vmic", "rv")
}
# No star is beyond by far. What repeats there, or is all nines, was never measured.
PLAUSIBLE = {
    "teff": (200.0, 5e5),
    "logg": (-2.0, 9.7),
    "feh": (-8.0, 2.0),
    "m_h": (-8.0, 2.0),
    "alpha": (-2.0, 3.0),
    "vsini": (0.0, 3000.0),
    "vmic": (0.0, 100.0),
    "rv": (-2000.0, 2000.0),
}
NO_NAMES = ("0", "-1", "-99", "-999", "-9999", "9999", "-99999", "99999")  # of stars that have none
OPTIONAL = {
    "error_columns": {},
    "file_column": None,
    "id_column": None,
    "rv_column": None,
    "repeat_stars": False,
    "units": {},
    "offsets": {},
    "missing_values": (),
    "hdu": 1,
    "match": None,
    "separator": None,
    "encoding": None,
    "decimal": ".",
}

_LOGARITHM = re.compile(r"(?:log10|log|lg|dex)\s*[(\[](.*)[)\]]|\[(.*)\]", re.I)
_SAME = {"kelvin": "K", "kelvins": "K", "degk": "K", "deg k": "K", "deg_k": "K", "°k": "K"} | {
    word: "km / s" for word in ("kms", "kms-1", "kms^-1", "kms**-1", "km/sec", "km sec-1", "kmps")
}
_NO_UNIT = ("", "-", "--", "---", "1", "none", "unitless", "dimensionless", "sun", "solar")


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """Labels of S spectra.

    Attributes:
      files: S file names, all different.
      star_ids: S star names; spectra of one star share theirs, so splits by star go by it.
      values: label -> float64[S], NaN where not known.
      errors: label -> float64[S], the standard deviation, NaN where not known; same keys as `values`.
      rv: float64[S], radial velocity in km/s, NaN where not known, or None without such a column.
      match: the rule by which `files` are those of a folder, see `match_rows`.
      path: of the table, for messages.
    """

    files: tuple[str, ...]
    star_ids: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    rv: np.ndarray | None = None
    match: str | None = None
    path: str = "labels"

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names_stars(self) -> bool:
        """Whether the table says whose the spectra are, rather than which files they are in alone."""
        return self.star_ids != self.files

    def rows_of(self, paths: Iterable[Path]) -> np.ndarray:
        """int64[F], the row of each of F files, -1 where it has none; see `match_rows`."""
        return match_rows(self.files, paths, rule=self.match, where=self.path)


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
          beyond the usual K, dex and km/s; values are taken as they are, and columns without a unit are taken to
          be right;
        offsets: label -> what is added to its values, which brings a table to another scale: {"by": a label of
          `columns`, "at": its values, increasing, "add": the offset at each}, linear between them and constant
          beyond; errors stay. A value is not known where that of "by" is not;
        missing_values: numbers or words that stand for "not known", for example (-9999, "no data"), besides
          the usual words (`remap.io.columns.NOTHING`);
        match: how the names of files are compared with those of a folder, one of `matching.RULES`; None
          (default) = the strictest by which there are any;
        separator, encoding, decimal: of CSV tables, see `remap.io.columns.read_columns` and `numbers`;
        hdu: of FITS tables (default 1);
        largest, checksums: see `remap.io.limits.Limits`.
      data_root: the data root.

    Returns:
      The labels in the order of the table; names are text, to the digit. Masked, empty, infinite and declared
      missing values, and errors that are not positive, are NaN. So are, with a warning that counts them, values
      that nobody declared missing but that are: far outside what a label can be, and all nines or repeated.

    Raises:
      SpectrumError: the file is broken or has no rows; a column is missing (the message lists those there
        are), holds no numbers or has another unit; a name is empty or has lost digits; files or stars are duplicates.
      ValueError: the declaration is wrong.
    """
    path = resolve(path, data_root)
    with limited(source, "labels") as plain, reading(path, "a label table"):
        return _read(path, plain)


def _read(path: Path, source: Section) -> LabelTable:
    source = check_source(source, kind="labels", required=("format", "columns"), optional=OPTIONAL)
    check_choice(source, "format", tables.FORMATS, "labels")
    check_choice(source, "match", (None, *RULES), "labels")
    check_choice(source, "separator", (None, *tables.SEPARATORS), "labels")
    check_choice(source, "decimal", (".", ","), "labels")
    try:
        "".encode(source["encoding"] or "utf-8")
    except LookupError as error:
        raise ConfigError(f"source of labels: encoding {source['encoding']!r} is not known") from error
    columns, error_columns = (
        {label: tables.composed(name) for label, name in dict(source[key]).items()}
        for key in ("columns", "error_columns")
    )
    if not columns:
        raise ConfigError("source of labels: columns names no label")
    if extra := sorted(set(error_columns) - set(columns)):
        raise ConfigError(f"source of labels: error_columns has {extra}, which columns has not")
    name_columns = [tables.composed(source[key]) for key in ("file_column", "id_column") if source[key]]
    if not name_columns:
        raise ConfigError("source of labels: missing 'file_column' or 'id_column'")
    velocity = {"rv": tables.composed(source["rv_column"])} if source["rv_column"] else {}
    table = tables.read_columns(
        path,
        (*columns.values(), *error_columns.values(), *velocity.values(), *name_columns),
        **{key: source[key] for key in ("format", "separator", "encoding", "hdu")},
    )
    values = {label: _values(table, name, label, source) for label, name in columns.items()}
    values = _with_offsets(values, source["offsets"], path)
    errors = {label: np.full(len(table), np.nan) for label in columns}
    for label, name in error_columns.items():
        error = _values(table, name, label, source, error=True)
        errors[label] = np.where(error > 0, error, np.nan)
    rv = _values(table, velocity["rv"], "rv", source) if velocity else None

    named = {name: tables.texts(table, name) for name in name_columns}
    file_names, star_ids = named[name_columns[0]], named[name_columns[-1]]
    _refuse_duplicates(file_names, path, name_columns[0], "")
    if not source["repeat_stars"]:
        hint = "; set repeat_stars where a star may have several spectra"
        _refuse_duplicates(star_ids, path, name_columns[-1], hint)
    else:
        hint = ", which is no name of a star"
        _refuse_duplicates((n for n in star_ids if n in NO_NAMES), path, name_columns[-1], hint)
    return LabelTable(file_names, star_ids, values, errors, rv, source["match"], str(path))


def read_velocities(
    path: str | os.PathLike,
    *,
    column: str = "rv",
    name_column: str = "file",
    format: str | None = None,
    unit: str = "km / s",
    missing_values: Sequence[float | str] = (),
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str = ".",
    data_root: str | os.PathLike | None = None,
) -> dict[str, float]:
    """Radial velocities [km/s] by name, from a table.

    Args:
      path: the table, as it is or under the data root (see `find_data`).
      column: of the velocities.
      name_column: of files or stars; `match_rows(list(velocities), files)` compares them with files.
      format: "csv", "ecsv" or "fits"; None = as the file begins.
      unit: of the column, as the table writes it or equal to it, where it has one; values are taken as they are.
      missing_values: numbers or words that stand for "not known", as in `read_labels`.
      separator, encoding, decimal: of CSV tables, as in `read_labels`.
      data_root: the data root.

    Returns:
      Name -> velocity, NaN where not known, in the order of the table.

    Raises:
      SpectrumError: as `read_labels`; a name that appears twice.
    """
    path = resolve(path, data_root)
    format = tables.guess_format(path) if format is None else format
    source = {"format": format, "columns": {"rv": column}, "units": {"rv": unit}, "file_column": name_column}
    source |= {"missing_values": missing_values}
    source |= {"separator": separator, "encoding": encoding, "decimal": decimal}
    read = read_labels(path, source=source)
    return dict(zip(read.files, read.values["rv"].tolist(), strict=True))


def _values(table: Columns, name: str, label: str, source: Section, *, error: bool = False) -> np.ndarray:
    """A column of a label, or of its error, as float64[S], NaN where it is not known."""
    expected = (UNITS | dict(source["units"])).get(label)
    missing = source["missing_values"]
    missing = (missing,) if isinstance(missing, str | int | float) else tuple(missing)
    values = tables.numbers(table, name, missing, decimal=source["decimal"])
    if np.any(np.isfinite(values)):
        _check_unit(table.units[name], name, label, table.path, expected)
    usual = PLAUSIBLE.get(label) if expected == UNITS.get(label) else None
    return _without_sentinels(values, usual, where=f"{table.path}: column {name!r}", label=label, error=error)


def known_values(
    values: np.ndarray,
    *,
    label: str,
    name: str,
    unit: object = None,
    error: bool = False,
    where: str = "labels",
) -> np.ndarray:
    """A column of labels in memory as `read_labels` would give it: its unit checked, NaN where it is not known.

    Args:
      values: float64[S].
      label: what they are, which says their unit (`UNITS`) and range (`PLAUSIBLE`); of others nothing is known.
      name: of the column, for messages.
      unit: that it has, or None.
      error: they are standard deviations.
      where: the table, for messages.

    Raises:
      SpectrumError: another unit.
    """
    if unit is not None and np.any(np.isfinite(values)):
        _check_unit(str(unit), name, label, where, UNITS.get(label), hint="")
    return _without_sentinels(
        values, PLAUSIBLE.get(label), where=f"{where}: column {name!r}", label=label, error=error, hint=""
    )


def _with_offsets(values: Mapping[str, np.ndarray], offsets: Section, path: Path) -> dict[str, np.ndarray]:
    """Labels on another scale, each offset looked up at the values of before any was added.

    Raises:
      ConfigError: an offset of or by a label that the table is not read for, or points that are none.
    """
    out = dict(values)
    for label, offset in dict(offsets).items():
        where = f"source of labels: offsets.{label}"
        if set(offset) != {"by", "at", "add"}:
            raise ConfigError(f"{where}: expected the fields by, at and add, found {sorted(offset)}")
        if missing := [name for name in (label, offset["by"]) if name not in values]:
            raise ConfigError(
                f"{where}: expected labels of columns, which has {sorted(values)}, found {missing[0]!r}"
            )
        at, add = (np.atleast_1d(np.asarray(offset[name], np.float64)) for name in ("at", "add"))
        if (
            at.shape != add.shape
            or at.ndim != 1
            or not np.all(np.diff(at) > 0)
            or not np.isfinite([at, add]).all()
        ):
            raise ConfigError(
                f"{where}: expected as many numbers in add as in at, which increases, found {offset['at']} and "
                f"{offset['add']}"
            )
        by = values[offset["by"]]
        lost = np.isfinite(values[label]) & ~np.isfinite(by)
        if lost.any():
            logger.warning(
                "%s: %d values of %s have no %s that says what to add: taken as not known",
                *(path, lost.sum(), label, offset["by"]),
            )
        out[label] = values[label] + np.where(np.isfinite(by), np.interp(by, at, add), np.nan)
    return out


def _without_sentinels(
    values: np.ndarray,
    usual: tuple[float, float] | None,
    *,
    where: str,
    label: str,
    error: bool = False,
    hint: str = "; declare it in missing_values",
) -> np.ndarray:
    """Values with NaN for those that stand for "not known" though nobody said so, which are counted in warnings.

    Args:
      values: float64[S].
      usual: the range in which a value can lie; None = not known.
      where: table and column, for messages.
      label: what the values are, for messages.
      error: they are standard deviations of such values.
      hint: what to do, for messages.
    """
    usual = usual and ((-np.inf, usual[1] - usual[0]) if error else usual)
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    nines = np.array([_is_nines(v) for v in distinct], bool)
    if usual is None:
        others = np.abs(distinct[~nines])
        outside = nines & (np.abs(distinct) > 10 * others.max(initial=1.0))
    else:
        outside = (distinct < usual[0]) | (distinct > usual[1])
    sentinels = outside & (nines | (counts > 1))
    for value, count in zip(distinct[sentinels], counts[sentinels], strict=True):
        logger.warning(
            "%s: %d values are %g, which no %s is: taken as not known%s",
            *(where, count, value, label, hint),
        )
    if np.any(odd := outside & ~sentinels):
        logger.warning(
            "%s: %d values lie outside %g to %g, where every %s should be; the first is %g",
            *(where, counts[odd].sum(), *usual, label, distinct[odd][0]),
        )
    if np.any(odd := nines & ~sentinels & (counts > 1)):
        logger.warning(
            "%s: %d values are %g; declare it in missing_values if it means that a %s is not known",
            *(where, counts[odd].sum(), distinct[odd][0], label),
        )
    return np.where(np.isin(values, distinct[sentinels]), np.nan, values)


def _is_nines(value: float) -> bool:
    """True for -9999, 99.9, 999.99 and their like, also as single precision has them."""
    digits = str(np.float32(value)).lstrip("-").removesuffix(".0")
    return len(digits) > 1 and set(digits) <= {"9", "."}


def _check_unit(
    written: str, name: str, label: str, path: Path | str, expected: str | None, *, hint: str | None = None
) -> None:
    """Refuses a column whose unit is another than is expected of its label."""
    if not written or expected is None or written.strip() == expected:
        return
    found, wanted = _unit(written), _unit(expected)
    same = found is not None and found == wanted
    if wanted == units.dex:
        # log g is written dex(cm / s2), which is a dex for this purpose, while dex(m / s2) has another zero
        # point; errors and many metallicities are written as plain dex or without dimension.
        zero_points = (units.dimensionless_unscaled, *([] if label != "logg" else [units.cm / units.s**2]))
        physical = getattr(found, "physical_unit", found)
        same |= isinstance(found, units.DexUnit) and physical in zero_points
        same |= found == units.dimensionless_unscaled
    if not same:
        if hint is None:
            hint = f"; where the values are right as they are, set units to {{{label!r}: {written!r}}}"
        raise SpectrumError(f"{path}: expected {name!r} in {expected}, found the unit {written!r}{hint}")


def _unit(text: str) -> units.UnitBase | units.FunctionUnitBase | None:
    """What a unit means, however it is written; None where that is not known.

    Logarithms are written as log(cm.s**-2), log10(cm/s^2), dex(cm/s**2) or, in the catalogues of the CDS, [cm/s2].

    Examples:
      >>> _unit("log(cm.s**-2)"), _unit("[cm/s2]"), _unit("Kelvin"), _unit("[Sun]")
      (Unit("dex(cm / s2)"), Unit("dex(cm / s2)"), Unit("K"), Unit("dex(1)"))
    """
    text = " ".join(text.replace("\N{MINUS SIGN}", "-").replace("²", "2").replace("⁻", "-").split())
    text = text.replace("¹", "1")
    if text.lower() in ("dex", "log", "log10"):
        return units.dex
    if logarithm := _LOGARITHM.fullmatch(text):
        inner = logarithm[1] if logarithm[1] is not None else logarithm[2]
        physical = (
            units.cm / units.s**2 if inner.strip().lower() in ("cgs", "log cgs") else _unit(inner.strip())
        )
        plain = isinstance(physical, units.UnitBase)
        return units.DexUnit(physical) if plain else None
    if text.lower() in _NO_UNIT:
        return units.dimensionless_unscaled
    if is_absurd(text):
        return None
    text = _SAME.get(text.lower(), text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", units.UnitsWarning)
        for style in ("generic", "cds", "fits", "vounit"):
            try:
                return units.Unit(text, format=style)
            except (ValueError, TypeError):
                continue
    return None


def _refuse_duplicates(names: Iterable[str], path: Path, column: str, hint: str) -> None:
    twice = [name for name, times in collections.Counter(names).items() if times > 1]
    if twice:
        shown = ", ".join(twice[:5]) + (f" and {len(twice) - 5} more" if len(twice) > 5 else "")
        raise SpectrumError(f"{path}: expected every {column!r} once, found duplicates of {shown}{hint}")
