"""Figures that show whether networks may be believed: calibration of their PMFs, order of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from remap.pmf.metrics import binomial_band, uniform_distance
from remap.report.figure import COLOURS, SYMBOLS, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")


class CalibrationFound(NamedTuple):
    """What known labels say of a set of PMFs."""

    pit: np.ndarray  # float[S], NaN = no PMF or no known label
    held: np.ndarray  # float[P], fraction of the stars inside the central interval of each level


def calibration_curves(
    path: str | Path,
    found: Mapping[str, Mapping[str, Mapping[str, CalibrationFound]]],
    levels: Sequence[float],
    *,
    bins: int,
    confidence: float,
    title: str = "",
) -> None:
    """PIT histograms, and below them the reliability curves: nominal against empirical coverage.

    Shaded: where calibrated PMFs of as many independent stars lie by chance, by the binomial distribution,
    each bin or level for itself. A PIT heaped at both ends, or a curve below the diagonal, means intervals
    that are too narrow. Legends have the Kolmogorov-Smirnov distance of the PIT from uniform.

    Args:
      found: group -> label -> name of a curve -> what was found; two rows of panels for each group, one
        column for each label. All curves of a panel are of the same stars.
      levels: float[P] in (0, 1), the probabilities of the central intervals in `CalibrationFound.held`.
      bins: of the histograms.
      confidence: probability of the shaded bands.
      title: above everything.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: no group or label.
    """
    if not found or not all(found.values()):
        raise ValueError("expected at least one group and label to plot")
    labels = list(dict.fromkeys(label for group in found.values() for label in group))
    with page(path, 3.5 * len(labels), 4.9 * len(found) + 0.3 * bool(title)) as figure:
        axes = figure.subplots(2 * len(found), len(labels), squeeze=False)
        for i, (group, by_label) in enumerate(found.items()):
            for j, label in enumerate(labels):
                histogram, curve = axes[2 * i : 2 * i + 2, j]
                curves = by_label.get(label, {})
                count = max((int(np.count_nonzero(~np.isnan(c.pit))) for c in curves.values()), default=0)
                histogram.set_title(f"{group}: {SYMBOLS.get(label, label)} ({count})".lstrip(": "))
                histogram.set_xlabel("PIT, F(known label)")
                curve.set_xlabel("probability of the interval")
                if not count:
                    for axis in (histogram, curve):
                        axis.text(0.5, 0.5, "no star", ha="center", transform=axis.transAxes, color="0.4")
                        axis.set(xlim=(0, 1), yticks=())
                    continue
                _histogram(histogram, curves, count, bins, confidence)
                _reliability(curve, curves, count, levels, confidence)
            axes[2 * i, 0].set_ylabel("density")
            axes[2 * i + 1, 0].set_ylabel("stars inside")
        figure.align_ylabels(axes[:, 0])
        if title:
            figure.suptitle(title)


def _histogram(
    axis: Axes, curves: Mapping[str, CalibrationFound], count: int, bins: int, confidence: float
) -> None:
    edges = np.linspace(0, 1, bins + 1)
    low, high = (float(end[0]) * bins for end in binomial_band([1 / bins], count, confidence=confidence))
    axis.axhspan(low, high, color="0.88", lw=0)
    axis.axhline(1, color="0.2", ls="--", lw=1)
    top = high
    for i, (name, found) in enumerate(curves.items()):
        density, _ = np.histogram(found.pit[~np.isnan(found.pit)], edges, density=True)
        axis.stairs(
            density,
            edges,
            baseline=None,
            color=COLOURS[i % len(COLOURS)],
            ls=_DASHES[i % len(_DASHES)],
            lw=1.6,
            label=f"{name}, KS {uniform_distance(found.pit):.2f}",
        )
        top = max(top, density.max())
    axis.set(xlim=(0, 1), ylim=(0, 1.45 * top))  # room for the legend
    axis.legend(loc="upper center", fontsize=8)


def _reliability(
    axis: Axes, curves: Mapping[str, CalibrationFound], count: int, levels: Sequence[float], confidence: float
) -> None:
    low, high = binomial_band(levels, count, confidence=confidence)
    axis.fill_between(levels, low, high, color="0.88", lw=0, label=f"{100 * confidence:g} % by chance")
    axis.plot([0, 1], [0, 1], color="0.2", ls="--", lw=1)
    for i, (name, found) in enumerate(curves.items()):
        axis.plot(
            levels,
            found.held,
            color=COLOURS[i % len(COLOURS)],
            ls=_DASHES[i % len(_DASHES)],
            lw=1.6,
            label=name,
        )
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", fontsize=8)
