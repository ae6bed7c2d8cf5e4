"""Tables of the report: how it depends on the signal-to-noise, and the paper's table 1."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from remap.config import ConfigError, Section
from remap.pmf.metrics import attainable_slope, decimals, residual_table

MINUS = "\N{MINUS SIGN}"


def by_snr(
    predicted: np.ndarray,
    truth: np.ndarray,
    errors: np.ndarray,
    snr: np.ndarray,
    edges: Sequence[float],
) -> list[dict[str, float]]:
    """Bias, scatter and slope of one label in bins of the signal-to-noise.

    Where a survey gives no errors of the flux, its signal-to-noise is estimated from the flux and counts lines as
    noise (`grid.snr_estimate`): the bins then sort by the strength of the lines, too.

    Args:
      predicted, truth, errors: float[S], prediction, known label and its standard deviation, in its unit.
      snr: float[S] per pixel, NaN = unknown.
      edges: between the bins, increasing; the first bin begins at 0, the last has no end. A star whose
        signal-to-noise is an edge belongs to the bin above.

    Returns:
      One row per bin, empty ones too: `snr_low`, `snr_high`, then `n`, `prediction_slope`, `slope_error`,
      `attainable_slope`, `bias`, `std` and `robust` (`metrics.residual_table`). Stars of unknown
      signal-to-noise, if any, are the last row, with limits of NaN.

    Raises:
      ValueError: edges that are not positive, finite and increasing, or shapes that do not agree.
    """
    inner = np.asarray(edges, np.float64)
    if inner.ndim != 1 or not np.all(np.isfinite(inner)) or np.any(np.diff(np.append(0.0, inner)) <= 0):
        raise ConfigError(f"evaluate.snr_edges must be positive and increase, found {tuple(edges)}")
    predicted, truth, errors, snr = (np.asarray(a, np.float64) for a in (predicted, truth, errors, snr))
    limits = [0.0, *inner.tolist(), np.inf]
    place = np.where(np.isnan(snr), -1, np.searchsorted(inner, snr, side="right"))
    bins = [(i, low, high) for i, (low, high) in enumerate(itertools.pairwise(limits))]
    rows = []
    for i, low, high in [*bins, (-1, np.nan, np.nan)]:
        member = (place == i) & np.isfinite(predicted) & np.isfinite(truth)
        if i < 0 and not member.any():
            continue
        table = residual_table(predicted[member], truth[member])
        rows.append(
            {
                "snr_low": low,
                "snr_high": high,
                "n": table["n"],
                "prediction_slope": table["prediction_slope"],
                "slope_error": table["slope_error"],
                "attainable_slope": attainable_slope(truth[member], errors[member]),
                "bias": table["bias"],
                "std": table["std"],
                "robust": table["robust"],
            }
        )
    return rows


def table1(
    rows: Iterable[Mapping[str, Any]],
    *,
    units: Mapping[str, str],
    quoted: Section,
    source: str,
) -> str:
    """The paper's table 1 in Markdown, one for each stage and group.

    Args:
      rows: of the summary: `stage`, `group`, `label`, `n`, `bias`, `std`, `robust`.
      units: label -> unit, "" for none.
      quoted: label -> bias and scatter that someone else reports; labels without get a dash.
      source: whose numbers those are, the head of their columns.
    """
    lines = [
        "# Bias and scatter of predicted - known labels",
        "",
        "In the form of the paper's table 1: μ_Δ is the mean difference, σ_Δ the standard deviation of the "
        "differences; the robust scatter is 1.4826 times their median absolute deviation. Stars that the networks "
        f"did not train on. The last two columns are quoted, not computed here, and are of other stars: {source}.",
    ]
    head = ("Parameter", "n", "μ_Δ (bias)", "σ_Δ (scatter)", "robust scatter", "quoted: μ_Δ", "quoted: σ_Δ")
    section = None
    for row in rows:
        if section != (section := (row["stage"], row["group"])):
            lines += ["", f"## {row['stage']}, {row['group']}", ""]
            lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        unit = units[row["label"]]
        digits = decimals(row["std"])
        cells = [
            row["label"] + (f" ({unit})" if unit else ""),
            str(row["n"]),
            _number(row["bias"], f"+.{digits}f", unit),
            _number(row["std"], f".{digits}f", unit),
            _number(row["robust"], f".{digits}f", unit),
        ]
        bias, scatter = quoted.get(row["label"], (np.nan, np.nan))
        cells += [_number(bias, "+g", unit), _number(scatter, "g", unit)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float, form: str, unit: str) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:{form}} {unit}".strip().replace("-", MINUS)
