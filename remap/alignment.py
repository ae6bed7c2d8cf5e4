"""Features of library and survey pulled together without labels: the term that a loss gets for it.

Both routes use it: the autoencoder's fine-tuning (`remap.bridge`) on its latent features, and the stage align of
the main route (`remap.align`) on those that its heads see.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remap.data import Library
from remap.network.discrepancy import coral, median_distance, mmd

KINDS = ("none", "mmd", "coral", "autoencoder")
WIDTHS = (0.5, 1.0, 2.0)  # of the kernels of the MMD, in median distances of the library's features


@dataclasses.dataclass(frozen=True)
class AlignSettings:
    """How features are aligned (config sections `align` and `adapt.align`).

    Attributes:
      kind: a discrepancy of `remap.network.discrepancy`, "mmd" or "coral"; "autoencoder", the main route
        alone, see `remap.align`; "none" leaves the term out.
      weight: of the term in the loss.
      match: True compares the stars with library spectra from the cells that the networks, before they are
        aligned, put the stars in, so that it is the same kinds of stars that are compared; False with the whole
        library.
    """

    kind: str
    weight: float
    match: bool

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"align.kind must be one of {KINDS}, found {self.kind!r}")
        if self.weight < 0:
            raise ValueError(f"align.weight: expected at least 0, found {self.weight}")


class Scale(NamedTuple):
    """Units of the features, from library spectra before the alignment; they stay, so that nothing can shrink.

    In these units the library's features are uncorrelated with variance 1, so that directions in which the library
    hardly varies, where a gap shows first, count as much as those of the labels.
    """

    mean: Float[Array, " features"]
    whiten: Float[Array, "features features"]
    widths: Float[Array, " kernels"]  # of the kernels, in those units

    def __call__(self, features: Float[Array, "spectra features"]) -> Float[Array, "spectra features"]:
        return jnp.matmul(features - self.mean[None], self.whiten, precision="highest")


def find_scale(features: Float[np.ndarray, "spectra features"], *, floor: float) -> Scale:
    """The units of library features.

    Args:
      floor: least variance of a direction, as a fraction of the largest: what is below is not blown up.

    Raises:
      ValueError: fewer than four spectra, or features that never change.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 4:
        raise ValueError(f"units of features need at least 4 library spectra, found {len(features)}")
    variance, directions = np.linalg.eigh(np.cov(features, rowvar=False))
    if not variance[-1] > 0:
        raise ValueError("units of features: expected features that vary over the library, found none")
    whiten = directions / np.sqrt(np.maximum(variance, floor * variance[-1]))
    scaled = jnp.asarray((features - features.mean(axis=0)) @ whiten, jnp.float32)
    half = len(features) // 2
    width = jnp.maximum(median_distance(scaled[:half], scaled[half:]), 1e-6)
    return Scale(
        jnp.asarray(features.mean(axis=0), jnp.float32),
        jnp.asarray(whiten, jnp.float32),
        jnp.asarray(WIDTHS, jnp.float32) * width,
    )


def discrepancy(
    library: Float[Array, "n features"], stars: Float[Array, "m features"], scale: Scale, *, kind: str
) -> Float[Array, ""]:
    """How far apart two sets of features are, in the units of `scale`; 0 for kind "none"."""
    if kind == "none":
        return jnp.zeros(())
    x, y = scale(library), scale(stars)
    if kind == "mmd":
        return mmd(x, y, widths=scale.widths)
    if kind == "coral":
        return coral(x, y)
    raise ValueError(f"a discrepancy of features must be 'mmd' or 'coral', found {kind!r}")


def matched_cells(library: Library, cell: np.ndarray) -> Library:
    """The library with one cell for each star that is in one, so that draws have the stars' distribution.

    Args:
      cell: int[S], index into `library.cells`, -1 = none (`correction.locate`).

    Raises:
      ValueError: no star is in a cell, or cells are single nodes, which no star is in.
    """
    if np.asarray(library.cells).shape[1] == 1:
        raise ValueError("align.match needs library.interpolate, found nodes without cells")
    inside = cell[cell >= 0]
    if not len(inside):
        raise ValueError(
            f"align.match: none of {len(cell)} stars is inside the library, as far as the networks can tell"
        )
    return library._replace(cells=np.asarray(library.cells)[inside])
