"""Maps of the latent features. Matplotlib and scikit-learn are imported by the function alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from remap.figure import COLOURS, SYMBOLS, page


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
