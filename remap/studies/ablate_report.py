"""The tables of an ablation: every variant against the full model, star by star and seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from astropy.table import Table

from remap.config import ConfigError, Section
from remap.pmf.bootstrap import Interval, nan_mean, nan_robust, nan_std, paired_interval
from remap.store.stars import within

# metric -> score per star that it is made of, statistic over the stars, and how two models are compared in it.
# The NLL of a density has no zero point, so that its ratio means nothing.
METRICS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "robust": ("residual", nan_robust, "ratio"),
    "std": ("residual", nan_std, "ratio"),
    "crps": ("crps", nan_mean, "ratio"),
    "nll": ("nll", nan_mean, "difference"),
}
NO_CHANGE = {"ratio": 1.0, "difference": 0.0}


def compare(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    stars: Table,
    *,
    labels: Sequence[str],
    groups: Section,
    resamples: int,
    level: float,
) -> Table:
    """All variants against the first.

    Args:
      results: variant -> one entry per seed, in one order, with "file" [S] and "labels" (`ablate.score`).
      stars: the survey's spectra, which say what belongs to which star and group.
      labels, groups: of the report; a group without tested stars is left out.
      resamples, level: of the bootstrap over stars and seeds (`bootstrap.paired_interval`).

    Returns:
      One row per group, label, metric and variant: `spectra` that any seed tested, `value` (mean over the seeds)
      and `seeds_std` (over n - 1; NaN for one seed), both in the label's unit or nats; `compare` ("ratio" or
      "difference"), `change` against the full model with `low` and `high`, `smallest` (half of the interval: about
      the smallest change that so many stars and seeds could have shown) and `visible` (the interval excludes no
      change). Not finite where a training diverged or stars are too few.
    """
    full = next(iter(results))
    rows = []
    for group, limits in groups.items():
        member = within(stars, limits)
        ids = np.asarray(stars["star_id"])[member]
        for label in labels:
            for metric, (score, statistic, how) in METRICS.items():
                found = {v: _aligned(seeds, stars, label, score)[:, member] for v, seeds in results.items()}
                tested = int(np.count_nonzero(~np.isnan(found[full]).all(axis=0)))
                if not tested:
                    continue
                for variant, values in found.items():
                    per_seed = statistic(values)
                    interval = Interval(NO_CHANGE[how], np.nan, np.nan)
                    if variant != full:
                        interval = paired_interval(
                            values,
                            found[full],
                            statistic,
                            stars=ids,
                            compare=how,
                            resamples=resamples,
                            level=level,
                            resample_runs=True,
                            seed=0,
                        )
                    row = {"group": group, "label": label, "metric": metric, "variant": variant}
                    row |= {"spectra": tested, "value": float(np.mean(per_seed))}
                    row |= {"seeds_std": _std(per_seed), "compare": how, "change": interval.value}
                    row |= {"low": interval.low, "high": interval.high, "smallest": interval.half_width}
                    rows.append(row | {"visible": interval.excludes(NO_CHANGE[how])})
    if not rows:
        raise ConfigError(f"ablate: none of the groups {sorted(groups)} has stars that were predicted")
    return Table(rows=rows)


def markdown(
    table: Table,
    changes: Mapping[str, tuple[Sequence[str], bool]],
    diverged: Mapping[str, Sequence[str]],
    *,
    units: Mapping[str, str],
    seeds: Sequence[int],
    level: float,
) -> str:
    """The report: what was changed, the full model, and what each change did.

    Args:
      table: of `compare`.
      changes: variant -> what differs, and whether that is nothing; the full model first.
      diverged: variant -> per seed the error that ended its training, "" where none did.
      units: of the labels.
      seeds: that the table is made of.
      level: of the intervals.
    """
    full = next(iter(changes))
    lines = [f"Seeds {', '.join(map(str, seeds))}. Held-out stars, PMFs before calibration."]
    if changes[full][0]:
        lines[0] += f" All models, the full one too: {'; '.join(changes[full][0])}."
    lines += ["", "| variant | change |", "|---|---|"]
    for variant, (told, same) in changes.items():
        if variant != full:
            lines.append(f"| {variant} | {'; '.join(told)}{' (as in the full model: not trained)' * same} |")
    for variant, errors in diverged.items():
        bad = [f"seed {seed}: {e}" for seed, e in zip(seeds, errors, strict=True) if e]
        if bad:
            lines += ["", f"{variant} has no result, as a training diverged ({'; '.join(bad)})."]
    lines += ["", "The full model, mean over the seeds ± their standard deviation:", ""]
    lines += [f"| group | label | spectra | {' | '.join(METRICS)} |", "|" + "---|" * (3 + len(METRICS))]
    for group, label, part in _blocks(table):
        own = part[part["variant"] == full]
        cells = [_number(r["value"]) + _spread(r["seeds_std"]) for r in own]
        unit = f" [{units[label]}]" if units[label] else ""
        lines.append(f"| {group} | {label}{unit} | {own['spectra'][0]} | {' | '.join(cells)} |")
    others = [v for v in dict.fromkeys(table["variant"]) if v != full]
    lines += ["", _explanation(table, full, seeds, level)]
    for group in dict.fromkeys(table["group"]):
        heads = [f"{m}, {how}" for m, (_, _, how) in METRICS.items()]
        lines += ["", f"**{group}**", "", f"| variant | label | {' | '.join(heads)} |"]
        lines.append("|" + "---|" * (2 + len(METRICS)))
        for variant in others:
            for name, label, part in _blocks(table):
                if name == group:
                    cells = [_cell(r) for r in part[part["variant"] == variant]]
                    lines.append(f"| {variant} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _aligned(seeds: Sequence[Mapping[str, Any]], stars: Table, label: str, score: str) -> np.ndarray:
    """float[R, S]: one score of every seed, in the order of `stars`; NaN for spectra that a seed lacks."""
    out = np.full((len(seeds), len(stars)), np.nan)
    row = {str(file): i for i, file in enumerate(stars["file"])}
    for values, result in zip(out, seeds, strict=True):
        if not result["diverged"]:
            for file, value in zip(result["file"], result["labels"][label][score], strict=True):
                if file in row:
                    values[row[file]] = value
    return out


def _std(per_seed: np.ndarray) -> float:
    known = np.isfinite(per_seed).all() and len(per_seed) > 1
    return float(np.std(per_seed, ddof=1)) if known else float("nan")


def _blocks(table: Table) -> list[tuple[str, str, Table]]:
    """The rows of each group and label, in the table's order."""
    keys = dict.fromkeys(zip(table["group"], table["label"], strict=True))
    return [(g, n, table[(table["group"] == g) & (table["label"] == n)]) for g, n in keys]


def _explanation(table: Table, full: str, seeds: Sequence[int], level: float) -> str:
    compared = table[(table["variant"] != full) & np.isfinite(table["smallest"])]
    chance = (1 - level) * len(compared)
    text = (
        f"Each variant over the full model, or minus it (nll, nats), with the {level:.0%} interval: stars and seeds "
        "drawn again, the same for both. ± is half of it, about the smallest change that so many stars and seeds "
        "could have shown; where the interval includes no change at all, the change is not visible. "
        f"If nothing mattered, about {chance:.0f} of the {len(compared)} intervals would exclude no change by chance."
    )
    if len(seeds) == 1:
        return text + " With one seed the intervals leave out how far networks differ from seed to seed."
    return text + f" With {len(seeds)} seeds they are somewhat too narrow." * (len(seeds) < 5)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _spread(std: float) -> str:
    return f" ± {_number(std)}" if np.isfinite(std) else ""


def _cell(row: Any) -> str:
    sign = "+" if row["compare"] == "difference" else ""
    change = f"{row['change']:{sign}.2f}" if np.isfinite(row["change"]) else "none"
    if not np.isfinite(row["smallest"]):
        return f"{change}, no interval"
    text = f"{change} ({row['low']:{sign}.2f} to {row['high']:{sign}.2f}), ± {row['smallest']:.2f}"
    return f"**{text}**" if row["visible"] else f"{text}, not visible"
