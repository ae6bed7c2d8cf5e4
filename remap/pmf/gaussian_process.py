"""Gaussian processes with errors of the labels, for a few hundred stars (Rasmussen & Williams 2006, ch. 2 and 5).

The inputs of a star come in blocks (its pixels, what a network makes of them), each with a squared-exponential
kernel of its own, because distances in them mean different things. Distances are all that is asked for:

    k(x, x') = Σ_b a_b² exp(-|x_b - x'_b|² / 2 l_b²),    label = mean + f(x) + N(0, s² + error²)

Amplitudes a, lengths l and the scatter s that inputs do not explain maximise the marginal likelihood (eq. 5.8) times
a wide prior around what the data themselves suggest. A label that the others contradict by far gets a larger
error, so that one wrong label does not bend the fit around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

JITTER = 1e-8  # of the variance, for the factorisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """How `fit_process` fits.

    Attributes:
      prior: width of the prior on the natural logarithms of amplitudes, lengths and scatter.
      scatter: centre of the prior on the scatter, in units of the labels' standard deviation.
      iterations: at most, of the optimiser.
      clip: a label that the fit to all others misses by more than this many standard deviations gets an error as
        large as what it is missed by; 0 = none does.
    """

    prior: float = 2.0
    scatter: float = 0.2
    iterations: int = 60
    clip: float = 4.0


@dataclasses.dataclass(frozen=True)
class Process:
    """A fitted process of one label.

    Attributes:
      mean, scale: of the labels: what follows is in units of `scale`.
      amplitude, length: float[B], of each block's kernel.
      scatter: of the labels beyond their errors.
      error: float[S], of the labels, larger where a label is an outlier.
      weights: float[S], K⁻¹ (label - mean).
      factor: float[S, S], the lower Cholesky factor of K.
    """

    mean: float
    scale: float
    amplitude: np.ndarray
    length: np.ndarray
    scatter: float
    error: np.ndarray
    weights: np.ndarray
    factor: np.ndarray

    def predict(self, distances: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations float64[T] of new stars' labels, without any error of a label.

        Args:
          distances: float[T, S] of every block, squared, from the new stars to those that it was fitted to.
        """
        kernel = np.sum(_parts(distances, self.amplitude, self.length), axis=0)
        explained = solve_triangular(self.factor, kernel.T, lower=True)
        variance = np.sum(self.amplitude**2) - np.sum(explained**2, axis=0)
        deviation = np.sqrt(np.maximum(variance, 0.0) + self.scatter**2)
        return self.mean + self.scale * (kernel @ self.weights), self.scale * deviation

    def to_json(self) -> dict[str, Any]:
        """What `restore` needs besides distances and labels, as JSON values."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "amplitude": self.amplitude.tolist(),
            "length": self.length.tolist(),
            "scatter": self.scatter,
            "error": self.error.tolist(),
        }


def squared_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64[T, S]: |a_i - b_j|² of rows float[T, D] and float[S, D]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1)[None] - 2.0 * a @ b.T
    return np.maximum(square, 0.0)


def fit_process(
    distances: Sequence[np.ndarray], label: np.ndarray, error: np.ndarray, settings: ProcessSettings
) -> Process:
    """The process of highest posterior density.

    Args:
      distances: float[S, S] of every block, squared, between the stars; a block's unit is free.
      label: float[S], finite.
      error: float[S], standard deviations of the labels, positive.

    Raises:
      ValueError: fewer than three stars, or values that are not finite.
    """
    label, error = np.asarray(label, np.float64), np.asarray(error, np.float64)
    if len(label) < 3:
        raise ValueError(f"a Gaussian process needs three stars or more, found {len(label)}")
    for name, values in [("labels", label), ("errors", error), *(("distances", d) for d in distances)]:
        if not np.all(np.isfinite(values)):
            raise ValueError(f"a Gaussian process needs finite {name}, found NaN or infinity")
    if not np.all(error > 0):
        raise ValueError(f"a Gaussian process needs positive errors, found {error.min()}")
    weight = 1.0 / (error**2 + np.median(error) ** 2)
    mean, scale = float(np.average(label, weights=weight)), float(np.std(label)) or 1.0
    # Lengths start at the typical distance, below which stars are hardly alike.
    typical = [max(float(np.median(d)), 1e-12) for d in distances]
    start = np.concatenate([np.zeros(len(distances)), 0.5 * np.log(typical), [np.log(settings.scatter)]])
    found, errors = start, error / scale
    target = (label - mean) / scale
    for attempt in range(2):
        found = _optimum(distances, target, errors, found, start, settings)
        fitted = _factorised(distances, target, errors, found)
        if settings.clip <= 0 or attempt:
            break
        missed, expected = _left_out(*fitted)
        wild = np.abs(missed) > settings.clip * expected
        if not wild.any():
            break
        errors = np.where(wild, np.hypot(errors, missed), errors)
    amplitude, length, scatter = _unpack(found, len(distances))
    weights, factor = fitted
    return Process(mean, scale, amplitude, length, scatter, errors * scale, weights, factor)


def restore(value: Mapping[str, Any], distances: Sequence[np.ndarray], label: np.ndarray) -> Process:
    """The process that `to_json` wrote, with the distances and labels that it was fitted to."""
    mean, scale, scatter = float(value["mean"]), float(value["scale"]), float(value["scatter"])
    amplitude, length = np.asarray(value["amplitude"], float), np.asarray(value["length"], float)
    error = np.asarray(value["error"], float)
    parameters = np.log(np.concatenate([amplitude, length, [scatter]]))
    target = (np.asarray(label, float) - mean) / scale
    weights, factor = _factorised(distances, target, error / scale, parameters)
    return Process(mean, scale, amplitude, length, scatter, error, weights, factor)


def _unpack(parameters: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray, float]:
    values = np.exp(parameters)
    return values[:blocks], values[blocks : 2 * blocks], float(values[-1])


def _parts(distances: Sequence[np.ndarray], amplitude: np.ndarray, length: np.ndarray) -> list[np.ndarray]:
    """The kernel of every block."""
    found = zip(distances, amplitude, length, strict=True)
    return [a**2 * np.exp(-0.5 * np.asarray(d, np.float64) / s**2) for d, a, s in found]


def _covariance(parts: Sequence[np.ndarray], errors: np.ndarray, scatter: float) -> np.ndarray:
    out = np.sum(parts, axis=0)
    out[np.diag_indices_from(out)] += scatter**2 + errors**2 + JITTER
    return out


def _factorised(
    distances: Sequence[np.ndarray], target: np.ndarray, errors: np.ndarray, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and lower factor of the covariance."""
    amplitude, length, scatter = _unpack(parameters, len(distances))
    matrix = _covariance(_parts(distances, amplitude, length), errors, scatter)
    factor, lower = cho_factor(matrix, lower=True)
    return cho_solve((factor, lower), target), np.tril(factor)


def _left_out(weights: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far every label is from what the others say of it, and the standard deviation (eqs. 5.10-5.12)."""
    precision = np.diag(cho_solve((factor, True), np.eye(len(factor))))
    return weights / precision, 1.0 / np.sqrt(precision)


def _optimum(
    distances: Sequence[np.ndarray],
    target: np.ndarray,
    errors: np.ndarray,
    first: np.ndarray,
    centre: np.ndarray,
    settings: ProcessSettings,
) -> np.ndarray:
    """Logarithms of amplitudes, lengths and scatter, by the gradient of eq. 5.9."""
    blocks = len(distances)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        amplitude, length, scatter = _unpack(parameters, blocks)
        parts = _parts(distances, amplitude, length)
        try:
            factor = cho_factor(_covariance(parts, errors, scatter), lower=True)
        except LinAlgError:  # the optimiser steps back from here
            return 1e12, np.zeros(len(parameters))
        weights = cho_solve(factor, target)
        inverse = cho_solve(factor, np.eye(len(target)))
        inner = inverse - np.outer(weights, weights)
        slopes = [np.sum(inner * part) for part in parts]  # d/d ln a is 2 part, and ½ of the trace
        slopes += [
            0.5 * np.sum(inner * part * d) / s**2 for part, d, s in zip(parts, distances, length, strict=True)
        ]
        slopes.append(np.trace(inner) * scatter**2)
        away = (parameters - centre) / settings.prior
        value = 0.5 * target @ weights + np.sum(np.log(np.diag(factor[0]))) + 0.5 * away @ away
        return float(value), np.array(slopes) + away / settings.prior

    bounds = [(c - 8.0, c + 8.0) for c in centre]
    options = {"maxiter": settings.iterations}
    return minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
