"""The probabilities of one star as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from remap.pmf import distributions
from remap.report.figure import COLOURS, axis_name, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def star_pmfs(
    pmfs: Mapping[str, Mapping[str, np.ndarray]],
    edges: Mapping[str, np.ndarray],
    *,
    units: Mapping[str, str] | None = None,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """The PMFs of one star, one panel per label: all arms combined (filled) and each arm (lines).

    Args:
      pmfs: label -> arm -> float[K]; arm "" = all combined. NaN = none, and a panel without any says so.
      edges: label -> float[K + 1].
      units: label -> unit.
      title: of the figure.
      path: where to save it, if anywhere.

    Returns:
      The figure, heights being probabilities per bin.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: there is no label.
    """
    if not pmfs:
        raise ValueError("expected the PMFs of at least one label, found none")
    with page(path, 3.6 * len(pmfs), 3.0) as figure:
        axes = figure.subplots(1, len(pmfs), squeeze=False)[0]
        drawn: dict[str, Any] = {}
        for axis, (label, own) in zip(axes, pmfs.items(), strict=True):
            arms = [arm for arm in own if arm]
            for arm, pmf in own.items():
                if not np.isfinite(pmf).all():
                    continue
                if arm:
                    colour = COLOURS[1 + arms.index(arm) % (len(COLOURS) - 1)]
                    drawn[f"arm {arm}"] = axis.stairs(pmf, edges[label], color=colour, lw=1.4, ls="--")
                    continue
                low, median, high = distributions.pmf_quantile(pmf, edges[label], (0.16, 0.5, 0.84))
                drawn["all arms"] = axis.stairs(pmf, edges[label], fill=True, color=COLOURS[0], alpha=0.6)
                drawn["median"] = axis.axvline(median, color="k", lw=1.2)
                drawn["16-84 %"] = axis.axvspan(low, high, color=COLOURS[5], alpha=0.25, lw=0, zorder=0)
            if not axis.has_data():
                axis.set_title("no prediction", loc="right", pad=3, color="0.4")
                axis.set_yticks([])
            axis.set_xlim(edges[label][0], edges[label][-1])
            axis.set_ylim(bottom=0)
            axis.set_xlabel(axis_name(label, (units or {}).get(label, "")))
        axes[0].set_ylabel("probability")
        if title:
            # A file's name is any text: neither mathematics nor, perhaps, characters that can be drawn.
            text = title.encode("utf-8", "backslashreplace").decode()
            figure.suptitle(text, fontsize=10, parse_math=False)
        if drawn:
            figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn))
    return figure
