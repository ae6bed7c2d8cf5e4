"""Figures of predictions, training and spectra, as files (`remap.report.figure` has what all figures share)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from remap.pmf import distributions, metrics
from remap.report.figure import COLOURS, MARKERS, SYMBOLS, axis_name, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def one_to_one(
    path: str | Path,
    truth: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    p16: Mapping[str, np.ndarray],
    p84: Mapping[str, np.ndarray],
    *,
    labels: Sequence[str],
    units: Mapping[str, str],
    groups: Sequence[str] | np.ndarray | None = None,
    title: str = "",
) -> None:
    """Predictions against known labels (fig. 4), residuals below, with bias and scatter (table 1).

    Bars run from the 16th to the 84th percentile (none above 2000 stars); the dashed line is 1:1. Stars with
    a value that is not finite are left out. Residuals beyond 8 times the robust scatter are triangles at the
    border of their panel.

    Args:
      truth, predicted, p16, p84: label -> float[S], in the label's unit.
      labels: which to show, one panel each.
      units: label -> unit, "" for none.
      groups: S names (dwarf, giant; folds); each has its colour, marker and statistics. "" is a name too.
      title: above everything.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: no label, or arrays that do not agree.
    """
    if not labels:
        raise ValueError("expected at least one label to plot")
    count = np.size(truth[labels[0]])
    groups = np.full(count, "") if groups is None else np.asarray(groups, str)
    for label in labels:
        shapes = [np.shape(values[label]) for values in (truth, predicted, p16, p84)]
        if {*shapes, groups.shape} != {(count,)}:
            raise ValueError(
                f"label {label}: expected arrays of {count} stars, found {shapes}, groups {groups.shape}"
            )
    names = list(dict.fromkeys(groups.tolist()))
    size, alpha = (4.5, 0.9) if count <= 200 else (3, 0.6) if count <= 2000 else (1.5, 0.3)
    with page(path, 4.2 * len(labels), 5.4 + 0.3 * bool(title)) as figure:
        axes = figure.subplots(2, len(labels), squeeze=False, sharex="col", height_ratios=[3, 1])
        for (top, bottom), label in zip(axes.T, labels, strict=True):
            data = np.array([values[label] for values in (truth, predicted, p16, p84)], float)
            good = np.all(np.isfinite(data), axis=0)
            limit = _residual_limit(data[1, good] - data[0, good])
            for i, name in enumerate(names):
                x, y, low, high = data[:, good & (groups == name)]
                bars = np.maximum([y - low, high - y], 0)  # the caller's value need not lie between
                table = metrics.residual_table(y, x)
                look = {
                    "fmt": MARKERS[i % len(MARKERS)],
                    "color": COLOURS[i % len(COLOURS)],
                    "ms": size,
                    "mew": 0,
                    "alpha": alpha,
                    "elinewidth": 0.7 if count <= 2000 else 0,
                    "rasterized": count > 2000,
                }
                text = _numbers(table)
                top.errorbar(x, y, bars, label=f"{name}: {text}" if name else text, **look)
                near = np.abs(y - x) <= limit
                bottom.errorbar(x[near], (y - x)[near], bars[:, near], **look)
                for sign, marker in ((1, "^"), (-1, "v")):
                    far = x[sign * (y - x) > limit]
                    bottom.plot(
                        far, np.full(far.size, 0.92 * sign * limit), marker, color=look["color"], ms=5
                    )
            _equal_limits(top)
            span = np.array(top.get_xlim())
            top.plot(span, span, "--", color="0.2", lw=1, zorder=3, scalex=False, scaley=False)
            bottom.axhline(0, ls="--", color="0.2", lw=1, zorder=3)
            bottom.set_ylim(-limit, limit)
            unit = f" [{units[label]}]" if units[label] else ""
            symbol = SYMBOLS.get(label, label)
            top.set_ylabel(f"{symbol} predicted{unit}")
            bottom.set_ylabel(f"residual{unit}")
            bottom.set_xlabel(f"{symbol} known{unit}")
            top.legend(
                title="mean ± std of the residuals, robust scatter (n)",
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                fontsize=8,
                title_fontsize=8,
                handletextpad=0.3,
            )
        figure.align_ylabels(axes)
        if title:
            figure.suptitle(title)


def groups_one_to_one(
    path: str | Path,
    table: Table,
    stars: Table,
    members: Mapping[str, np.ndarray],
    *,
    labels: Sequence[str],
    title: str,
) -> None:
    """`one_to_one` of a catalogue's rows that belong to a group; no figure where none does.

    Args:
      table: of the catalogue: LABEL, LABEL_p16 and LABEL_p84 of S rows.
      stars: the known labels of the same S rows.
      members: group -> bool[S]; a row of several groups counts as one of the last.

    Raises:
      ImportError: matplotlib is missing.
    """
    names = np.full(len(stars), "", dtype=object)
    for group, mask in members.items():
        names[mask] = group
    keep = names != ""
    if not keep.any():
        return
    truth = {k: np.asarray(stars[k], float)[keep] for k in labels}
    predicted, p16, p84 = (
        {k: np.asarray(table[k + suffix], float)[keep] for k in labels} for suffix in ("", "_p16", "_p84")
    )
    units = {k: str(table[k].unit or "") for k in labels}
    groups = list(names[keep])
    one_to_one(path, truth, predicted, p16, p84, labels=labels, units=units, groups=groups, title=title)


def training_curves(path: str | Path, records: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Training and validation loss (log axis) and learning rate against the step; dotted: ends of cycles.

    A cycle ends where the learning rate, having fallen, rises again; the last record is an end, too, if its
    rate has come down to that of an earlier end.

    Args:
      records: lines of metrics.jsonl in order, each with `step` and any of `loss`, `val_loss` and
        `learning_rate`; other keys, and values that are None, are ignored.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: no record, or one without a step.
    """
    if not records:
        raise ValueError("expected at least one training record, found none")
    if any("step" not in record for record in records):
        raise ValueError("expected a step in every training record")
    steps, rates = _series(records, "learning_rate")
    ends = steps[_cycle_ends(rates)]
    with page(path, 7, 5.2) as figure:
        from matplotlib.ticker import LogLocator, NullFormatter

        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[2.5, 1])
        for key, name, colour, style in (
            ("loss", "training", COLOURS[0], "-"),
            ("val_loss", "validation", COLOURS[1], "--"),
        ):
            x, y = _series(records, key)
            if x.size:
                loss.plot(x, y, style, color=colour, label=name, lw=1.5, marker="." if x.size < 60 else None)
        rate.plot(steps, rates, color=COLOURS[2], lw=1.5)
        for axis in (loss, rate):
            if any(np.any(line.get_ydata() > 0) for line in axis.lines):
                axis.set_yscale("log")
            for i, end in enumerate(ends):
                axis.axvline(end, color="0.35", lw=1, ls=":", label="cycle ends" if i == 0 else None)
        if loss.get_yscale() == "log":
            # 1, 2, 5 as plain numbers: a loss often spans less than a decade
            loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            loss.yaxis.set_major_formatter("{x:g}")
            loss.yaxis.set_minor_formatter(NullFormatter())
        loss.set_ylabel("loss")
        rate.set_ylabel("learning rate")
        rate.set_xlabel("step")
        if loss.get_legend_handles_labels()[0]:
            loss.legend()
        if title:
            loss.set_title(title)
        figure.align_ylabels()


def learning_rates(
    path: str | Path, rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], chosen: float
) -> None:
    """Loss and its running mean against the rising learning rate (log axis), and the suggested upper limit.

    Raises:
      ImportError: matplotlib is missing.
    """
    with page(path, 7, 4) as figure:
        axis = figure.subplots()
        axis.plot(rates, losses, color="0.75", lw=0.8, label="loss of a batch")
        axis.plot(rates, smooth, color=COLOURS[0], lw=1.5, label="running mean")
        axis.axvline(chosen, color=COLOURS[1], ls="--", lw=1.5, label=f"suggested upper limit {chosen:.1e}")
        axis.set_xscale("log")
        axis.set_ylim(0.9 * min(smooth), 1.5 * float(np.median(smooth)))
        axis.set_xlabel("learning rate")
        axis.set_ylabel("loss")
        axis.legend()


def spectra_gallery(
    path: str | Path,
    wave: np.ndarray,
    flux: np.ndarray,
    titles: Sequence[str],
    valid: np.ndarray | None = None,
) -> None:
    """Spectra above each other, one panel each; pixels that are not valid are gaps over a shaded band.

    Args:
      wave: float[N], Å.
      flux: float[S, N].
      titles: S texts.
      valid: bool[S, N], True = good; None = all.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: no spectrum, or arrays that do not agree.
    """
    wave, flux = np.asarray(wave), np.asarray(flux)
    valid = np.ones(flux.shape, bool) if valid is None else np.asarray(valid, bool)
    if flux.ndim != 2 or not flux.size or (flux.shape[1:], flux.shape) != (wave.shape, valid.shape):
        raise ValueError(
            f"expected flux [S, N], wave [N], valid [S, N], found {flux.shape}, {wave.shape}, {valid.shape}"
        )
    _check_titles(titles, len(flux))
    valid = valid & np.isfinite(flux)
    with page(path, 8, 0.8 + 1.5 * len(flux)) as figure:
        axes = figure.subplots(len(flux), 1, squeeze=False, sharex=True)[:, 0]
        for axis, y, good, title in zip(axes, flux, valid, titles, strict=True):
            # Extended to the pixel before each gap and after it, so that single pixels show, too.
            bad = ~good
            wide = bad | np.append(bad[1:], False) | np.append(False, bad[:-1])
            axis.fill_between(
                wave, 0, 1, where=wide, transform=axis.get_xaxis_transform(), color="0.88", lw=0
            )
            axis.plot(wave, np.where(good, y, np.nan), color=COLOURS[0], lw=0.7)
            axis.set_title(title, loc="left", pad=2)
            if good.any():
                low, high = np.percentile(y[good], [0.2, 99.5])  # a cosmic ray must not flatten the rest
                margin = 0.15 * (high - low) or 0.1
                axis.set_ylim(low - margin, high + margin)
        axes[-1].set_xlim(wave[0], wave[-1])
        axes[-1].set_xlabel("wavelength [Å]")
        figure.supylabel("flux", fontsize=10)


def pmf_panels(
    path: str | Path,
    pmfs: Mapping[str, np.ndarray],
    edges: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray] | None = None,
    titles: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
) -> None:
    """PMFs, one row per star and one column per label, with median, 16th to 84th percentile and the truth.

    Args:
      pmfs: label -> float[S, K]; a row of NaN gives a panel that says so.
      edges: label -> float[K + 1].
      truth: label -> float[S]; NaN or a missing label = unknown.
      titles: S texts.
      units: label -> unit.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: no star or label, arrays that do not agree, or what is no PMF.
    """
    count = len(next(iter(pmfs.values()))) if pmfs else 0
    if not count or any(len(pmf) != count for pmf in pmfs.values()):
        raise ValueError(
            f"expected PMFs of one number of stars, found {[np.shape(p) for p in pmfs.values()]}"
        )
    titles = [""] * count if titles is None else titles
    _check_titles(titles, count)
    with page(path, 3.4 * len(pmfs), 0.9 + 1.5 * count) as figure:
        axes = figure.subplots(count, len(pmfs), squeeze=False, sharex="col")
        for column, (label, pmf) in zip(axes.T, pmfs.items(), strict=True):
            quantiles = distributions.pmf_quantile(pmf, edges[label], (0.16, 0.5, 0.84))
            known = (truth or {}).get(label, np.full(count, np.nan))
            for axis, y, (low, median, high), true in zip(column, pmf, quantiles, known, strict=True):
                axis.axvspan(low, high, color=COLOURS[5], alpha=0.3, lw=0, label="16-84 %")
                axis.stairs(y, edges[label], fill=True, color=COLOURS[0], alpha=0.85, label="PMF")
                axis.axvline(median, color="k", lw=1.2, label="median")
                if truth is not None:
                    axis.axvline(true, color=COLOURS[1], ls="--", lw=1.8, label="truth")
                axis.set_xlim(edges[label][0], edges[label][-1])
                axis.grid(visible=False)
                if np.isnan(median):
                    axis.set_yticks([])
                    axis.set_title("no prediction", loc="right", pad=3, color="0.4")
                else:
                    axis.set_ylim(0, 1.1 * np.max(y))
            unit = (units or {}).get(label, "")
            column[-1].set_xlabel(axis_name(label, unit))
        for row, title in zip(axes, titles, strict=True):
            row[0].set_ylabel("probability")
            row[0].set_title(title, loc="left", pad=3)
        figure.align_ylabels(axes[:, 0])
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=2 if len(pmfs) == 1 else len(names))


def _residual_limit(residuals: np.ndarray) -> float:
    """Half the height of a residual panel: all residuals, but no more than 8 times their robust scatter."""
    if not residuals.any():
        return 1.0
    largest = 1.25 * float(np.abs(residuals).max())
    robust = metrics.residual_table(residuals, np.zeros(residuals.size))["robust"]
    return min(largest, 8 * robust) if robust > 0 else largest


def _numbers(table: Mapping[str, float]) -> str:
    """Bias ± std, robust scatter and n, to two significant digits of the scatter."""
    scatter = table["std"]
    digits = metrics.decimals(scatter)
    text = f"{table['bias']:+.{digits}f} ± {scatter:.{digits}f}, robust {table['robust']:.{digits}f}"
    return f"{text} ({table['n']})".replace("-", "\N{MINUS SIGN}")


def _equal_limits(axis: Axes) -> None:
    low = min(axis.get_xlim()[0], axis.get_ylim()[0])
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.set(xlim=(low, high), ylim=(low, high))


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records that have the key."""
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _cycle_ends(rates: np.ndarray) -> np.ndarray:
    """Indices where the learning rate stops falling: before it rises, or at the end if as low as before."""
    ends, falling = [], False
    for i, change in enumerate(np.diff(rates)):
        if change > 0 and falling:
            ends.append(i)
        falling = falling if change == 0 else change < 0
    if ends and falling and rates[-1] <= 1.01 * rates[ends].max():
        ends.append(rates.size - 1)
    return np.array(ends, int)


def _check_titles(titles: Sequence[str], count: int) -> None:
    if len(titles) != count:
        raise ValueError(f"expected {count} titles, found {len(titles)}")
