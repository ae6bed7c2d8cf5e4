"""How far apart two sets of features are, pure, jittable and differentiable: what alignment makes small."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remap.config import ConfigError

KINDS = ("none", "mmd", "coral", "autoencoder")
WIDTHS = (0.5, 1.0, 2.0)  # of the kernels of the MMD, in median distances of the library's features


def squared_distances(x: Float[Array, "n features"], y: Float[Array, "m features"]) -> Float[Array, "n m"]:
    """Squared Euclidean distances of all pairs, not negative."""
    product = jnp.matmul(x, y.T, precision="highest")  # the difference below cancels
    square = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None, :] - 2.0 * product
    return jnp.maximum(square, 0.0)


def median_distance(x: Float[Array, "n features"], y: Float[Array, "m features"]) -> Float[Array, ""]:
    """Median distance between all pairs of both sets together, a common width for Gaussian kernels."""
    both = jnp.concatenate([x, y])
    upper = jnp.triu(jnp.ones((both.shape[0],) * 2, bool), k=1)
    return jnp.sqrt(jnp.nanmedian(jnp.where(upper, squared_distances(both, both), jnp.nan)))


def mmd(
    x: Float[Array, "n features"], y: Float[Array, "m features"], *, widths: Float[Array, " kernels"]
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy: unbiased estimate of E k(x, x') + E k(y, y') - 2 E k(x, y).

    k is the mean of Gaussian kernels exp(-d²/2s²). The estimate is 0 on average for equal distributions and may be
    negative.

    Args:
      widths: s of each kernel, in units of the features, for instance multiples of `median_distance`.

    References:
      Gretton et al. 2012, JMLR 13, 723, eq. 3.
    """
    n = x.shape[0]
    gram = kernel_matrix(jnp.concatenate([x, y]), widths)
    return mmd_of_kernel(gram, jnp.arange(gram.shape[0]) < n)


def coral(x: Float[Array, "n features"], y: Float[Array, "m features"]) -> Float[Array, ""]:
    """CORAL: ‖C_x - C_y‖²_F / 4 F², C the covariance of each set over its n - 1.

    References:
      Sun & Saenko 2016, arXiv:1607.01719, eq. 1.
    """
    return jnp.sum((_covariance(x) - _covariance(y)) ** 2) / (4.0 * x.shape[1] ** 2)


def kernel_matrix(both: Array, widths: Array) -> Array:
    """float[n, n]: the mean of Gaussian kernels of all pairs of rows of float[n, F]."""
    square = squared_distances(both, both)
    return jnp.mean(jnp.exp(-0.5 * square[None] / widths[:, None, None] ** 2), axis=0)


def mmd_of_kernel(gram: Array, first: Array) -> Array:
    """Squared MMD from the kernel of all pairs, for a bool[n + m] that names the first set."""
    a = first.astype(gram.dtype)
    b = 1.0 - a
    n, m = jnp.sum(a), jnp.sum(b)
    # In full precision: the three terms nearly cancel.
    pair = lambda s, t: jnp.dot(s, jnp.dot(gram, t, precision="highest"), precision="highest")  # noqa: E731
    within = lambda s, k: (pair(s, s) - jnp.sum(jnp.diagonal(gram) * s)) / (k * (k - 1))  # noqa: E731
    return within(a, n) + within(b, m) - 2.0 * pair(a, b) / (n * m)


def _covariance(x: Array) -> Array:
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    return jnp.matmul(centred.T, centred, precision="highest") / (x.shape[0] - 1)


@dataclasses.dataclass(frozen=True)
class AlignSettings:
    """How features are aligned (config sections `align` and `adapt.align`).

    Attributes:
      kind: a discrepancy of `remap.network.discrepancy`, "mmd" or "coral"; "autoencoder", the main route
        alone, see `remap.stages.align`; "none" leaves the term out.
      weight: of the term in the loss.
      match: True compares the stars with library spectra from the cells that the networks, before they are
        aligned, put the stars in, so that it is the same kinds of stars that are compared; False with the whole
        library.
    """

    kind: str = "none"
    weight: float = 30.0
    match: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"align.kind must be one of {KINDS}, found {self.kind!r}")
        if self.weight < 0:
            raise ConfigError(f"align.weight: expected at least 0, found {self.weight}")


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


def find_scale(features: Float[np.ndarray | Array, "spectra features"], *, floor: float) -> Scale:
    """The units of library features.

    Args:
      floor: least variance of a direction, as a fraction of the largest: what is below is not blown up.

    Raises:
      ValueError: fewer than four spectra, or features that never change.
    """
    features = np.asarray(features, np.float64)
    if len(features) < 4:
        raise ConfigError(f"units of features need at least 4 library spectra, found {len(features)}")
    variance, directions = np.linalg.eigh(np.cov(features, rowvar=False))
    if not variance[-1] > 0:
        raise ConfigError("units of features: expected features that vary over the library, found none")
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
    raise ConfigError(f"a discrepancy of features must be 'mmd' or 'coral', found {kind!r}")
