"""Labels as bins: edges, soft labels and class indices (paper §5 i-iv).

A label (Teff, log g, ...) is a row of equal bins. Labels may differ in their number of bins, so arrays over
all labels are padded to the largest number K; padding has zero width and zero probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class LabelBins:
    """The bins of one label: `bins` equal steps from `low` to `high`, in `unit` (an astropy unit string)."""

    name: str
    low: float
    high: float
    bins: int
    unit: str

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"label {self.name}: expected low < high, found {self.low} and {self.high}")
        if self.bins < 2:
            raise ValueError(f"label {self.name}: expected at least 2 bins, found {self.bins}")

    @property
    def edges(self) -> np.ndarray:
        """float64[bins + 1], the edges of the bins."""
        return np.linspace(self.low, self.high, self.bins + 1)


def label_bins(names: Sequence[str], settings: Mapping[str, Any]) -> tuple[LabelBins, ...]:
    """The bins of each named label, in that order, from a config's `labels` section.

    Examples:
      >>> settings = {"teff": {"low": 4000, "high": 6000, "bins": 4, "unit": "K"}}
      >>> (teff,) = label_bins(["teff"], settings)
      >>> teff.edges.tolist()
      [4000.0, 4500.0, 5000.0, 5500.0, 6000.0]
    """
    missing = [name for name in names if name not in settings]
    if missing:
        raise ValueError(f"labels {missing} have no settings; known are {sorted(settings)}")
    return tuple(
        LabelBins(n, float(s["low"]), float(s["high"]), int(s["bins"]), str(s["unit"]))
        for n, s in ((n, settings[n]) for n in names)
    )


def padded_edges(bins: Sequence[LabelBins]) -> np.ndarray:
    """float64[L, K + 1]: the edges of every label, padded by repeating the last edge."""
    width = max(b.bins for b in bins) + 1
    return np.stack([np.pad(b.edges, (0, width - b.bins - 1), mode="edge") for b in bins])


def bin_mask(bins: Sequence[LabelBins]) -> np.ndarray:
    """bool[L, K]: True for real bins, False for padding."""
    return np.diff(padded_edges(bins), axis=1) > 0


def in_range(values: np.ndarray, bins: Sequence[LabelBins]) -> np.ndarray:
    """bool[S]: True where every known label of a star lies inside its bins and at least one is known.

    Args:
      values: float[S, L], NaN = unknown.
    """
    low, high = np.array([b.low for b in bins]), np.array([b.high for b in bins])
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        inside = (values >= low[None]) & (values <= high[None])
    return np.all(inside | ~known, axis=1) & np.any(known, axis=1)


def check_labels(
    values: np.ndarray, errors: np.ndarray, bins: Sequence[LabelBins], names: Sequence[str]
) -> None:
    """Raises ValueError, naming star and label, if a known label is outside its bins or has no usable error.

    Args:
      values: float[S, L], NaN = unknown.
      errors: float[S, L], the standard deviation of each value, same unit.
      names: S names.
    """
    for j, b in enumerate(bins):
        known = np.isfinite(values[:, j])
        outside = known & ((values[:, j] < b.low) | (values[:, j] > b.high))
        if np.any(outside):
            i = int(np.argmax(outside))
            raise ValueError(
                f"{names[i]}: {b.name} must lie within {b.low:g} to {b.high:g} {b.unit}, found {values[i, j]:g}"
            )
        bad = known & ~(np.isfinite(errors[:, j]) & (errors[:, j] > 0))
        if np.any(bad):
            i = int(np.argmax(bad))
            raise ValueError(f"{names[i]}: the error of {b.name} must be positive, found {errors[i, j]:g}")


def soft_label(
    mean: Float[Array, "*S"], sigma: Float[Array, "*S"], edges: Float[Array, " edges"]
) -> Float[Array, "*S edges-1"]:
    """Probability of each bin for a Gaussian label.

    y_i = Φ((r_i - μ)/σ) - Φ((l_i - μ)/σ), divided by the sum over the range. This is eq. 4 of the paper with
    the factor ½ that its footnote has and the equation lost. A label that is not finite gives zeros.

    Args:
      mean: μ, in the unit of the label.
      sigma: σ > 0, same shape and unit.
      edges: bin edges; bins of zero width (padding) get zero.

    Returns:
      The probabilities, summing to 1 over the last axis (0 where `mean` is not finite).

    Examples:
      >>> import jax.numpy as jnp
      >>> y = soft_label(jnp.array(2.0), jnp.array(0.5), jnp.linspace(0.0, 4.0, 5))
      >>> [f"{p:.3f}" for p in y.tolist()]
      ['0.023', '0.477', '0.477', '0.023']
    """
    known = jnp.isfinite(mean) & jnp.isfinite(sigma)
    mean = jnp.where(known, mean, edges[0])[..., None]
    sigma = jnp.where(known, sigma, edges[-1] - edges[0])[..., None]
    z = (edges.reshape((1,) * (mean.ndim - 1) + edges.shape) - mean) / sigma
    # In the upper tail Φ is 1 to rounding; there the difference of the complements keeps its digits.
    left, right = z[..., :-1], z[..., 1:]
    upper = left > 0
    mass = ndtr(jnp.where(upper, -left, right)) - ndtr(jnp.where(upper, -right, left))
    total = jnp.sum(mass, axis=-1, keepdims=True)
    usable = known[..., None] & (total > 0)
    return jnp.where(usable, mass / jnp.where(usable, total, 1.0), 0.0)


def soft_labels(
    values: Float[Array, "stars labels"],
    errors: Float[Array, "stars labels"],
    edges: Float[Array, "labels edges"],
) -> Float[Array, "labels stars edges-1"]:
    """`soft_label` for all labels at once, with padded edges; the label axis leads, as in the network's heads."""
    return jax.vmap(soft_label, in_axes=(1, 1, 0))(values, errors, edges)


def bin_index(
    values: Float[Array, "stars labels"], edges: Float[Array, "labels edges"]
) -> Int[Array, "labels stars"]:
    """Index of the bin that holds each label (the class of the triplet loss); -1 where it is not finite."""

    def one(value: Float[Array, " stars"], edge: Float[Array, " edges"]) -> Int[Array, " stars"]:
        count = jnp.sum(jnp.diff(edge) > 0)
        index = jnp.clip(jnp.searchsorted(edge[:-1], value, side="right") - 1, 0, count - 1)
        return jnp.where(jnp.isfinite(value), index, -1)

    return jax.vmap(one, in_axes=(1, 0))(values, edges)


def known_labels(values: Float[Array, "stars labels"]) -> Bool[Array, "labels stars"]:
    """True where a label is known."""
    return jnp.isfinite(values).T


def label_prior(
    parts: Sequence[tuple[float, Float[Array, "labels _ bins"]]],
) -> Float[Array, "labels bins"]:
    """Distribution of the labels in training, as PMFs.

    Args:
      parts: for every source of spectra its share of a batch and soft labels of its spectra; all zeros where a
        label is unknown.

    Returns:
      PMFs; zeros for a label that no spectrum has.
    """
    total = 0.0
    for share, target in parts:
        known = jnp.mean(jnp.sum(target, axis=-1) > 0, axis=1)
        mean = jnp.sum(target, axis=1) / jnp.maximum(jnp.sum(target, axis=(1, 2)), 1e-12)[:, None]
        total = total + share * known[:, None] * mean
    return total / jnp.maximum(jnp.sum(total, axis=-1, keepdims=True), 1e-12)
