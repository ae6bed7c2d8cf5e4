"""What is observed of a star: its PMF convolved with the Gaussian error of a label.

A PMF is the distribution of the star's own value. A label of that star is the value plus an error, so that a label
tells about the PMF only through this convolution. With p_k spread evenly over bin k, from l_k to r_k and w_k
wide, and an error σ, density and cumulative distribution of a label x are exactly

    f(x) = Σ_k (p_k / w_k) [Φ((x - l_k) / σ) - Φ((x - r_k) / σ)]
    F(x) = Σ_k (p_k / w_k) [G(x - l_k) - G(x - r_k)],   G(z) = z Φ(z / σ) + σ φ(z / σ),

Φ and φ being the standard normal distribution and its density, and G the integral of Φ(z / σ). Both are linear in the
PMF: what multiplies it is `density_kernel` and `cumulative_kernel`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


def density_kernel(edges: np.ndarray, label: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Logarithm of [Φ((x - l_k) / σ) - Φ((x - r_k) / σ)] / w_k, the density of a label x if the star is in bin k.

    The difference is taken between logarithms of the lower tail, so that it keeps its digits however far the
    label is.

    Args:
      edges: float[K + 1], strictly increasing.
      label: x, float[S], in the unit of `edges`; NaN = unknown.
      error: σ > 0, float[S], same unit.

    Returns:
      float64[S, K], per unit of `edges`; NaN for unknown labels or errors.

    Examples:
      >>> kernel = density_kernel(np.array([-1.0, 1.0]), np.array([0.0, 50.0]), np.array([0.01, 1.0]))
      >>> kernel.round(3).tolist()
      [[-0.693], [-1206.004]]
    """
    z = (label[:, None] - edges) / error[:, None]
    above, below = (
        z[:, :-1],
        z[:, 1:],
    )  # above the bin's lower end, above its upper end: the smaller of the two
    # Φ(a) - Φ(b) = Φ(-b) - Φ(-a): the pair that lies in the lower tail has the digits.
    flip = below > 0
    high, low = np.where(flip, -below, above), np.where(flip, -above, below)
    first, second = special.log_ndtr(high), special.log_ndtr(low)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = first + np.log(-np.expm1(second - first))
    return found - np.log(np.diff(edges))


def cumulative_kernel(edges: np.ndarray, label: np.ndarray, error: np.ndarray) -> np.ndarray:
    """[G(x - l_k) - G(x - r_k)] / w_k, the probability of a label up to x if the star is in bin k.

    Args:
      edges: float[K + 1], strictly increasing.
      label: x, float[S], in the unit of `edges`; NaN = unknown.
      error: σ > 0, float[S], same unit.

    Returns:
      float64[S, K], 0 to 1; NaN for unknown labels or errors.

    Examples:
      >>> cumulative_kernel(np.array([-1.0, 1.0]), np.array([-9.0, 0.0, 9.0]), np.ones(3)).round(6).tolist()
      [[0.0], [0.5], [1.0]]
    """
    # Of |z|: G(z) = z + G(-z) for z > 0, and z + … would cancel where x is far above the bins of a small error.
    z = (label[:, None] - edges) / error[:, None]
    rest = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) - np.abs(z) * special.ndtr(-np.abs(z))  # G(-|z|) / σ
    passed = np.clip(label[:, None] - edges, 0, None)
    integral = passed + error[:, None] * rest
    return np.clip((integral[:, :-1] - integral[:, 1:]) / np.diff(edges), 0, 1)


def checked_errors(errors: ArrayLike, truth: np.ndarray) -> np.ndarray:
    """Standard deviations of labels, float64[S], as they may be used: 0 for exact labels, NaN = unknown.

    Raises:
      ValueError: a negative or infinite one, or not as many as labels.
    """
    errors = np.asarray(errors, np.float64)
    if errors.shape != truth.shape:
        raise ValueError(f"expected an error for each label, found shapes {errors.shape} and {truth.shape}")
    if np.any(errors < 0) or np.any(np.isinf(errors)):
        raise ValueError(f"errors of labels must not be negative or infinite, found {errors}")
    return errors
