"""Maps of the latent features. Matplotlib and scikit-learn are imported by the function alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from remap.report.figure import COLOURS, SYMBOLS, axis_name, page


def latent_maps(
    path: str | Path,
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    colour: np.ndarray,
    colour_name: str,
    perplexity: float,
    seed: int,
) -> None:
    """t-SNE of stars and library spectra of the same labels, one column per panel.

    Above, the two domains have a colour each; below, both are coloured by a label. Every column is a map of its
    own: t-SNE cannot place points on an old one. Features are standardised by those of the library.

    Args:
      panels: title -> features of stars float[M, F], of library spectra float[M, F].
      colour: float[M], the label; colour_name: which.
      perplexity, seed: of t-SNE; the perplexity is lowered for fewer than three times as many points.

    Raises:
      ImportError: matplotlib or scikit-learn is missing.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("maps of latent features need scikit-learn: pip install scikit-learn") from error
    with page(path, 4.5 * len(panels), 8.5) as figure:
        axes = figure.subplots(2, len(panels), squeeze=False)
        for (title, (stars, library)), (above, below) in zip(panels.items(), axes.T, strict=True):
            std = library.std(axis=0)
            both = np.concatenate([stars, library])
            both = (both - library.mean(axis=0)) / np.where(std > 0, std, 1.0)
            limited = min(perplexity, (len(both) - 1) / 3)
            place = TSNE(perplexity=limited, init="pca", random_state=seed).fit_transform(both)
            parts = np.split(place, [len(stars)])
            for part, name, hue in zip(parts, ("survey", "library"), COLOURS, strict=False):
                above.scatter(*part.T, s=6, color=hue, alpha=0.6, label=name, linewidths=0)
            above.set_title(title)
            shown = below.scatter(
                *place.T, s=6, c=np.concatenate([colour, colour]), cmap="viridis", linewidths=0
            )
            for axis in (above, below):
                axis.set(xticks=[], yticks=[])
        axes[0, 0].legend(markerscale=2)
        figure.colorbar(shown, ax=list(axes[1]), label=SYMBOLS.get(colour_name, colour_name))


def embedding_maps(
    path: str | Path,
    maps: Mapping[str, Mapping[str, np.ndarray]],
    values: Mapping[str, np.ndarray],
    *,
    label: str,
    unit: str,
    notes: Mapping[str, Mapping[str, str]],
    title: str = "",
) -> None:
    """Maps of one label's embedding, coloured by the label (figs. 2 and 3).

    One column of panels for each time, one row for each part of the spectra. Panels of a column have the same
    limits, and all share one scale of colours. Spectra without the label are grey crosses.

    Args:
      maps: column (an epoch) -> row (training, validation) -> float[S, 2], without unit.
      values: row -> float[S], the label in its unit, NaN = unknown.
      label, unit: of the colours; "" = no unit.
      notes: column -> row -> text above the panel.
      title: above everything.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: nothing to show, or arrays that do not agree.
    """
    if not maps or not values or not any(np.isfinite(v).any() for v in values.values()):
        raise ValueError(f"expected maps of spectra with a known {label}, found none")
    for column, rows in maps.items():
        shapes = {row: np.shape(places) for row, places in rows.items()}
        if shapes != {row: (len(v), 2) for row, v in values.items()}:
            raise ValueError(f"{column}: expected places [S, 2] for each value of {label}, found {shapes}")
    every = np.concatenate(list(values.values()))
    low, high = np.nanmin(every), np.nanmax(every)
    with page(path, 3.1 * len(maps) + 1.1, 3.2 * len(values) + 0.3 * bool(title)) as figure:
        axes = figure.subplots(len(values), len(maps), squeeze=False, sharex="col", sharey="col")
        for column, panels in zip(maps, axes.T, strict=True):
            for axis, (row, value) in zip(panels, values.items(), strict=True):
                x, y = np.asarray(maps[column][row]).T
                known = np.isfinite(value)
                axis.plot(x[~known], y[~known], "x", color="0.6", ms=3, mew=0.6)
                # Drawn in random order, the same each time: sorted spectra would hide each other by label.
                order = np.random.default_rng(0).permutation(np.flatnonzero(known))
                points = axis.scatter(
                    x[order], y[order], c=value[order], s=12, lw=0, cmap="viridis", vmin=low, vmax=high
                )
                axis.set(xticks=(), yticks=())
                axis.spines[["top", "right"]].set_visible(True)
                axis.set_title(notes[column][row], fontsize=9)
            panels[0].annotate(
                column,
                (0.5, 1),
                (0, 20),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="center",
                fontsize=11,
            )
        for axis, row in zip(axes[:, 0], values, strict=True):
            axis.set_ylabel(f"{row} ({len(values[row])})", fontsize=11)
        figure.colorbar(points, ax=axes, label=axis_name(label, unit), aspect=30, pad=0.02)
        if title:
            figure.suptitle(title, fontsize=11)
