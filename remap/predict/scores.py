"""How good a catalogue is: its values against known labels, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.table import Table

from remap import io
from remap.config import ConfigError
from remap.io.labels import known_values
from remap.pmf.bootstrap import Interval, nan_mean, nan_robust, nan_std, star_interval, star_scatter
from remap.pmf.metrics import covered, crps
from remap.predict.catalogue import Catalogue

LEVELS = (0.68, 0.95)  # of the intervals whose coverage is told
_TEXTS = {
    "n": "spectra compared",
    "stars": "stars that they are of",
    "lost": "spectra with a known label and no prediction",
    "bias": "mean of predicted - known",
    "scatter": "1.4826 times the median absolute deviation of predicted - known",
    "std": "standard deviation of predicted - known",
    "slope": "of predicted - known against known; 0 is ideal, below it values are drawn to the middle",
    "cover68": "fraction of labels within the central interval of 68 %",
    "cover95": "fraction of labels within the central interval of 95 %",
    "crps": "mean continuous ranked probability score",
    "scatter_star": "scatter without what the labels' errors add",
    "cover68_star": "as cover68, of the stars' own values: the labels' errors taken into account",
    "cover95_star": "as cover95, of the stars' own values: the labels' errors taken into account",
}
_IN_UNITS = ("bias", "scatter", "std", "crps", "scatter_star")


def evaluate(
    catalogue: Catalogue,
    labels: Any,
    *,
    on: str | None = None,
    columns: Mapping[str, str] | None = None,
    without: int = 0,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Table:
    """A catalogue against known labels: bias, scatter, slope, coverage and CRPS of every label.

    Whether the networks trained on these stars is not known here. If they did, the numbers are too good:
    `launch.evaluate` predicts every star of the networks' own survey by networks that never saw it.

    Args:
      catalogue: of S spectra.
      labels: a table (astropy, pandas, a mapping of columns) or a file that astropy reads as one. Columns are called
        as the labels, their standard errors X_err; columns with units are converted. Values that are not finite,
        masked, or placeholders (-9999 and its like, which a warning counts) are unknown. Rows may be fewer than the
        catalogue's, or more.
      on: column by which rows belong together, of `labels` as of the catalogue: "file" or "star_id". None = the
        first of these that `labels` has; without either, row i is of row i.
      columns: label -> column of `labels`, where they are called otherwise.
      without: bits of `Flag`; rows with any of them are left out.
      resamples: of the bootstrap, which draws stars (`star_id`, where the catalogue has it) with all their spectra.
      level: probability of the intervals.
      seed: of the draws.

    Returns:
      One row per label: label, unit, n, stars, lost (labels known but no prediction), and bias, scatter (robust),
      std, slope, cover68, cover95, crps, each X with its interval X_low to X_high. Where the labels have errors,
      scatter_star, cover68_star and cover95_star are of the stars' own values, over the stars whose errors are known
      (see `remap.stages.evaluate.summarize`); else NaN.

    Raises:
      ConfigError: no label is known, no row is of the catalogue, rows that are told twice, or units that
        cannot be converted.
      SpectrumError: values of a label without dimension in a unit that is none of its.

    Examples:
      See docs/catalogue.md.
    """
    known = _table(labels)
    of_row = _matched(catalogue.table, known, on)
    if without:
        of_row = np.where(np.asarray(catalogue.table["flags"]) & without != 0, -1, of_row)
    names = {label: (columns or {}).get(label, label) for label in catalogue.edges}
    if extra := sorted(set(columns or {}) - set(names)):
        raise ConfigError(f"labels: the catalogue has the labels {list(names)}, not {extra}")
    there = {label: name for label, name in names.items() if name in known.colnames}
    if not there:
        raise ConfigError(
            f"labels: expected some of the columns {list(names.values())}, found {known.colnames}"
        )
    stars = _stars(catalogue.table)
    how = {"resamples": resamples, "level": level, "seed": seed}
    rows = []
    for label, name in there.items():
        unit = catalogue.table[label].unit
        truth = _values(known, label, name, unit, of_row)
        error_name = f"{name}_err"
        errors = np.full(len(truth), np.nan)
        if error_name in known.colnames:
            errors = _values(known, label, error_name, unit, of_row, error=True)
        told = {"label": label, "unit": str(unit or "")}
        rows.append(told | _scores(catalogue, label, truth, errors, stars, how))
    out = Table(rows=rows)
    for name, text in _TEXTS.items():
        for end, words in (("", text), ("_low", f"lower end of {name}"), ("_high", f"upper end of {name}")):
            if name + end in out.colnames:
                out[name + end].description = words + (", in `unit`" if name in _IN_UNITS else "")
                if name not in ("n", "stars", "lost"):
                    out[name + end].info.format = ".4g"
    return out


def _scores(
    catalogue: Catalogue,
    label: str,
    truth: np.ndarray,
    errors: np.ndarray,
    stars: np.ndarray,
    how: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of one label; truth and errors float[S], NaN = unknown."""
    predicted = np.asarray(catalogue.table[label], float)
    used = np.isfinite(truth) & np.isfinite(predicted)
    out: dict[str, Any] = {
        "n": int(used.sum()),
        "stars": len(np.unique(stars[used])),
        "lost": int(np.sum(np.isfinite(truth) & ~np.isfinite(predicted))),
    }
    predicted, truth, errors, stars = predicted[used], truth[used], errors[used], stars[used]
    pmf, edges = np.asarray(catalogue.pmfs[label])[used], catalogue.edges[label]
    residual = predicted - truth
    inside = covered(pmf, edges, truth, LEVELS)
    known = np.where(errors >= 0, errors, np.nan)
    inside_star = covered(pmf, edges, truth, LEVELS, known)

    def mean(values: np.ndarray) -> Interval:
        return star_interval(values[None], lambda v: nan_mean(v[0]), stars=stars, **how)

    found = {
        "bias": mean(residual),
        "scatter": star_interval(residual[None], lambda v: nan_robust(v[0]), stars=stars, **how),
        "std": star_interval(residual[None], lambda v: nan_std(v[0]), stars=stars, **how),
        "slope": star_interval(np.stack([residual, truth]), _slope, stars=stars, **how),
        "cover68": mean(inside[:, 0]),
        "cover95": mean(inside[:, 1]),
        "crps": mean(crps(pmf, edges, truth)),
        "scatter_star": star_scatter(residual, known, stars=stars, **how),
        "cover68_star": mean(inside_star[:, 0]),
        "cover95_star": mean(inside_star[:, 1]),
    }
    for name, interval in found.items():
        out |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return out


def _slope(values: np.ndarray) -> np.ndarray | np.floating:
    """Least-squares slope of values[0] against values[1], both [..., S]; NaN = absent (in both)."""
    y, x = (v - nan_mean(v)[..., None] for v in values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nansum(x * y, axis=-1) / np.nansum(x * x, axis=-1)


def _table(labels: Any) -> Table:
    if isinstance(labels, str | Path):
        try:
            return Table.read(labels)
        except Exception as error:  # every format has mistakes of its own
            if isinstance(error, FileNotFoundError):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{labels}: expected a table of labels, found none that is readable ({reason})"
            ) from error
    if isinstance(labels, Table):
        return labels
    if hasattr(labels, "to_numpy") and hasattr(labels, "columns"):  # pandas, without need of it
        return Table({str(name): np.asarray(labels[name]) for name in labels.columns})
    if isinstance(labels, Mapping):
        return Table({name: values for name, values in labels.items()})
    raise ConfigError(
        f"labels: expected a table, a mapping of columns or a file, found {type(labels).__name__}"
    )


def _matched(table: Table, known: Table, on: str | None) -> np.ndarray:
    """int[S]: the row of `known` of each row of the catalogue, -1 = none."""
    if on is None:
        on = next(
            (name for name in ("file", "star_id") if name in known.colnames and name in table.colnames), None
        )
        if on is None:
            if len(known) != len(table):
                raise ConfigError(
                    f"labels: expected a column file or star_id, or {len(table)} rows, found {len(known)} rows with "
                    f"the columns {known.colnames}"
                )
            return np.arange(len(table))
    for each, whose in ((known, "labels"), (table, "catalogue")):
        if on not in each.colnames:
            raise ConfigError(f"{whose}: expected a column {on}, found {each.colnames}")
    rows: dict[str, int] = {}
    for i, name in enumerate(_texts(known[on])):
        if name in rows:
            raise ConfigError(f"labels: expected one row for {on} {name!r}, found {rows[name]} and {i}")
        if name:
            rows[name] = i
    wanted = _texts(table[on])
    found = np.array([rows.get(name, -1) for name in wanted], np.int64)
    if on == "file" and not np.any(found >= 0) and len(table) and rows:
        # paths, or names with and without endings
        found = io.match_rows(list(rows), [Path(name) for name in wanted], where="labels")
        found = np.where(found >= 0, np.array(list(rows.values()))[found], -1)
    if not np.any(found >= 0):
        raise ConfigError(
            f"labels: expected some of the catalogue's {len(table)} rows, found no {on} of theirs among {len(known)}"
        )
    return found


def _texts(column: Any) -> list[str]:
    values = (
        np.ma.filled(column, "")
        if isinstance(column, np.ma.MaskedArray) and column.dtype.kind in "UO"
        else column
    )
    return [v.decode() if isinstance(v, bytes) else str(v) for v in np.asarray(values).tolist()]


def _values(
    known: Table, label: str, name: str, unit: Any, of_row: np.ndarray, *, error: bool = False
) -> np.ndarray:
    """float[S], in the catalogue's unit: a column of a label, or of its error, by the catalogue's rows."""
    column = known[name]
    try:
        given = getattr(column, "unit", None)
        plain = np.asarray(
            np.ma.filled(np.ma.asarray(getattr(column, "value", column)).astype(float), np.nan), float
        )
        if given is not None and unit not in (None, u.dex) and given != unit:
            plain, given = plain * u.Unit(given).to(unit), unit
    except (u.UnitsError, TypeError, ValueError) as wrong:
        raise ConfigError(f"labels: expected {name} as numbers in {unit}, found others ({wrong})") from wrong
    if plain.ndim != 1:
        raise ConfigError(f"labels: expected {name} with one number per row, found shape {plain.shape}")
    plain = known_values(plain, label=label, name=name, unit=given, error=error)
    found = np.where(of_row >= 0, plain[of_row] if len(plain) else np.nan, np.nan)
    return np.where(np.isfinite(found), found, np.nan)


def _stars(table: Table) -> np.ndarray:
    """str[S]: whose each spectrum is: of its identifier, or, without one, a star of its own."""
    ids = _texts(table["star_id"]) if "star_id" in table.colnames else [""] * len(table)
    return np.array([f"star {name}" if name else f"row {i}" for i, name in enumerate(ids)])
