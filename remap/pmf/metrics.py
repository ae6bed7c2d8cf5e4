"""Predictions against known labels: residuals, calibration, scores.

PMFs are those of `remap.pmf.distributions`: uniform within a bin, exact sums, NaN for a row that is missing, float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from remap.pmf.distributions import checked, cumulative, take_along
from remap.pmf.observed import checked_errors, cumulative_kernel, density_kernel

MAD_TO_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


def residual_table(predicted: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Bias and scatter of predicted - true for one label, in its unit (table 1).

    Args:
      predicted, truth: float[S]; pairs with a value that is not finite are left out.

    Returns:
      `n` (pairs used), `bias` (mean, μ_Δ of table 1), `median`, `std` (σ_Δ of table 1, over n - 1),
      `robust` (1.4826 times the median absolute deviation from the median), `slope` (least squares of the
      residuals against the truth, label unit per label unit: 0 is ideal, negative means that predictions
      are drawn to the middle), `prediction_slope` (of the predictions against the truth: 1 + `slope`) and
      `slope_error` (standard error of both). NaN where n is too small for a number to exist. See
      `attainable_slope` for what errors of the labels do to the slopes.

    Raises:
      ValueError: shapes that do not agree.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if predicted.shape != truth.shape or truth.ndim != 1:
        raise ValueError(f"expected two arrays of one shape [S], found {predicted.shape} and {truth.shape}")
    good = np.isfinite(predicted) & np.isfinite(truth)
    truth = truth[good]
    residual = predicted[good] - truth
    n = truth.size
    names = ("bias", "median", "std", "robust", "slope", "prediction_slope", "slope_error")
    table = {"n": n} | dict.fromkeys(names, np.nan)
    if n > 0:
        table["bias"] = float(np.mean(residual))
        table["median"] = float(np.median(residual))
        table["robust"] = float(MAD_TO_SIGMA * np.median(np.abs(residual - table["median"])))
    if n > 1:
        table["std"] = float(np.std(residual, ddof=1))
        offset = truth - np.mean(truth)
        if np.any(offset):
            square = offset @ offset
            table["slope"] = float(offset @ residual / square)
            table["prediction_slope"] = 1 + table["slope"]
            if n > 2:
                rest = residual - table["bias"] - table["slope"] * offset
                table["slope_error"] = float(np.sqrt(rest @ rest / (n - 2) / square))
    return table


def decimals(scatter: float) -> int:
    """Decimal places that show a scatter to two significant digits; 2 where it is 0 or unknown."""
    return max(0, 1 - int(np.floor(np.log10(scatter)))) if np.isfinite(scatter) and scatter > 0 else 2


def attainable_slope(truth: ArrayLike, errors: ArrayLike) -> float:
    """Slope against the known labels that exact predictions would have, given the errors of those labels.

    1 - mean(error²) / variance(label): errors spread the known labels and so flatten every line through them
    (regression dilution). A `prediction_slope` below this number is the network's own.

    Args:
      truth: float[S], known labels; NaN = unknown.
      errors: float[S], their standard deviations, same unit.

    Returns:
      At most 1 and not below 0; NaN for fewer than two known labels, or equal ones.

    Raises:
      ValueError: shapes that do not agree.
    """
    truth, errors = np.asarray(truth, np.float64), np.asarray(errors, np.float64)
    if truth.shape != errors.shape or truth.ndim != 1:
        raise ValueError(f"expected two arrays of one shape [S], found {truth.shape} and {errors.shape}")
    good = np.isfinite(truth) & np.isfinite(errors)
    if np.unique(truth[good]).size < 2:
        return float("nan")
    return float(max(0.0, 1 - np.mean(errors[good] ** 2) / np.var(truth[good], ddof=1)))


def pit(
    pmf: ArrayLike, edges: ArrayLike, truth: ArrayLike, errors: ArrayLike | None = None
) -> np.ndarray | np.floating:
    """Probability integral transform F(truth): uniform on [0, 1] for calibrated PMFs.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      truth: float[S], in the unit of `edges`; NaN = unknown.
      errors: float[S], standard deviations of what is given as the truth, 0 = exact: F is then that of the PMF
        convolved with the error (`remap.pmf.observed`), and the transform is uniform if the PMF is that of the
        star's own value. NaN = unknown, and so is the transform. None = all are exact.

    Returns:
      float64[S]; 0 or 1 for exact truths outside the range, NaN for missing rows and unknown truths.

    Raises:
      ValueError: a PMF or edges that is not one, or shapes that do not agree.

    Examples:
      >>> pit([[0.5, 0.5]], [0, 1, 2], [0.5]).tolist()
      [0.25]
      >>> pit([[0.5, 0.5]], [0, 1, 2], [0.5], errors=[1.0]).round(4).tolist()
      [0.3342]
    """
    pmf, edges, truth = _checked_truth(pmf, edges, truth)
    k, fraction = _locate(edges, truth)
    cdf = cumulative(pmf)
    start, end = take_along(cdf, k), take_along(cdf, k + 1)
    exact = start + fraction * (end - start)
    if errors is None:
        return exact
    errors = checked_errors(errors, truth)
    out, inexact = np.where(np.isnan(errors), np.nan, exact), errors > 0
    kernel = cumulative_kernel(edges, truth[inexact], errors[inexact])
    out[inexact] = np.sum(pmf[inexact] * kernel, axis=1)
    return out


def uniform_distance(values: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance of values from the uniform distribution on [0, 1]: sup_u |F_n(u) - u|.

    Of the PIT it says in one number how far PMFs are from calibrated: 0 is ideal; for calibrated PMFs of n
    independent stars it exceeds 1.36 / √n in about 5 % of samples.

    Args:
      values: float[S] in [0, 1]; NaNs are left out.

    Returns:
      The distance, 0 to 1; NaN without any value.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan")
    steps = np.arange(values.size + 1) / values.size
    return float(max(np.max(steps[1:] - values), np.max(values - steps[:-1])))


def binomial_band(
    probabilities: float | Sequence[float] | np.ndarray, count: int, *, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where the fraction of `count` independent stars lies by chance, if each counts with that probability.

    Args:
      probabilities: [P] in [0, 1].
      count: stars, at least 1.
      confidence: probability of the band in (0, 1), split evenly between what lies below and above.

    Returns:
      Lower and upper ends, float64[P] each: quantiles of the binomial distribution over `count`.

    Raises:
      ValueError: values outside those limits.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)) or count < 1 or not 0 < confidence < 1:
        raise ValueError(
            "expected probabilities in [0, 1], a count of at least 1 and a confidence in (0, 1), found "
            f"{probabilities!r}, {count!r} and {confidence!r}"
        )
    cdf = special.bdtr(np.arange(count + 1.0)[None], count, p[:, None])
    # 1e-12: as in `coverage`, and so that a tail of exactly that probability counts
    ends = [np.argmax(cdf >= q - 1e-12, axis=1) / count for q in ((1 - confidence) / 2, (1 + confidence) / 2)]
    return ends[0], ends[1]


def coverage(
    pmf: ArrayLike,
    edges: ArrayLike,
    truth: ArrayLike,
    levels: float | Sequence[float] | np.ndarray,
    errors: ArrayLike | None = None,
) -> np.ndarray:
    """Fraction of stars whose truth lies in the central interval of each probability: `levels` if calibrated.

    The central interval of level p runs from quantile (1 - p)/2 to (1 + p)/2; exact truths outside the range of the
    bins are never covered. With `errors` the intervals are those of the PMF convolved with the error of the star's
    label: as many labels lie in them as stars in the intervals of the PMF alone, if the PMF is right, so that the
    number is the coverage of the star's own value, which nobody knows. Labels wrong by more than their errors
    lower it.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      truth: float[S], in the unit of `edges`; NaN = unknown.
      levels: probabilities [L] in (0, 1], e.g. 0.68.
      errors: float[S], standard deviations of what is given as the truth, see `pit`.

    Returns:
      float64[L], over the stars with a PMF and a truth; NaN if there is none.

    Raises:
      ValueError: a PMF, edges or level that is not one, or shapes that do not agree.

    Examples:
      >>> flat = [[0.25] * 4] * 4
      >>> coverage(flat, [0, 1, 2, 3, 4], [0.5, 1.5, 2.5, 3.5], [0.5, 0.9]).tolist()
      [0.5, 1.0]
    """
    inside = covered(pmf, edges, truth, levels, errors)
    known = ~np.isnan(inside).any(axis=1)
    return np.mean(inside[known], axis=0) if known.any() else np.full(inside.shape[1], np.nan)


def covered(
    pmf: ArrayLike,
    edges: ArrayLike,
    truth: ArrayLike,
    levels: float | Sequence[float] | np.ndarray,
    errors: ArrayLike | None = None,
) -> np.ndarray:
    """float64[S, L]: 1 for each star whose truth lies in the interval of a level, else 0; NaN where not known.

    `coverage` is the mean of it, and says what the arguments are.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or not np.all((levels > 0) & (levels <= 1)):
        raise ValueError(f"levels must be a sequence of probabilities in (0, 1], found {levels!r}")
    transform, truth = pit(pmf, edges, truth, errors), np.asarray(truth, np.float64)
    with np.errstate(invalid="ignore"):
        inside = (truth >= edges[0]) & (truth <= edges[-1])
        if errors is not None:
            inside |= np.asarray(errors, np.float64) > 0
        # 1e-12: the transform of a truth exactly on an interval's end carries the rounding of a cumulative sum
        found = (np.abs(transform - 0.5)[:, None] <= levels / 2 + 1e-12) & inside[:, None]
    return np.where(np.isfinite(transform)[:, None], found.astype(np.float64), np.nan)


def crps(pmf: ArrayLike, edges: ArrayLike, truth: ArrayLike) -> np.ndarray | np.floating:
    """Continuous ranked probability score ∫ (F(x) - 1{x >= truth})² dx, in the unit of `edges`; 0 is best.

    Exact for the piecewise-linear F: over a stretch of length d on which the integrand's root runs
    linearly from a to b, the integral is d (a² + ab + b²) / 3.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      truth: float[S], in the unit of `edges`; NaN = unknown.

    Returns:
      float64[S]; a truth outside the range adds its distance to it. NaN for missing rows, unknown truths.

    Raises:
      ValueError: a PMF or edges that is not one, or shapes that do not agree.

    Examples:
      >>> crps([[0, 1], [0, 1]], [0, 1, 2], [1.5, 3.0]).round(4).tolist()
      [0.0833, 1.3333]
    """
    pmf, edges, truth = _checked_truth(pmf, edges, truth)
    cdf = cumulative(pmf)
    start, end = cdf[:, :-1], cdf[:, 1:]
    width = np.diff(edges)
    left = np.clip((truth[:, None] - edges[:-1]) / width, 0, 1)  # fraction of each bin below the truth
    at = start + left * (end - start)
    below = left * (start**2 + start * at + at**2)
    above = (1 - left) * ((1 - at) ** 2 + (1 - at) * (1 - end) + (1 - end) ** 2)
    outside = np.maximum(edges[0] - truth, 0) + np.maximum(truth - edges[-1], 0)
    return np.sum(width * (below + above), axis=1) / 3 + outside


def nll(
    pmf: ArrayLike, edges: ArrayLike, truth: ArrayLike, errors: ArrayLike | None = None
) -> np.ndarray | np.floating:
    """Negative log likelihood -ln(p_k / w_k) of the bin k with the truth, w_k its width; nats.

    It is that of a density per unit of `edges`, so it depends on this unit. Bins are [l, r), the last [l, r].

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      truth: float[S], in the unit of `edges`; NaN = unknown.
      errors: float[S], standard deviations of what is given as the truth, 0 = exact: the density is then that of the
        PMF convolved with the error. NaN = unknown, and so is the likelihood. None = all are exact.

    Returns:
      float64[S]; +inf where the PMF excludes the truth (an empty bin, or outside the range); NaN for missing
      rows and unknown truths.

    Raises:
      ValueError: a PMF or edges that is not one, or shapes that do not agree.

    Examples:
      >>> nll([[0.5, 0.5], [0, 1]], [0, 1, 2], [0.5, 0.5]).round(4).tolist()
      [0.6931, inf]
    """
    pmf, edges, truth = _checked_truth(pmf, edges, truth)
    k, _ = _locate(edges, truth)
    density = take_along(pmf, k) / np.diff(edges)[k]
    density = np.where((truth < edges[0]) | (truth > edges[-1]), 0 * density, density)
    with np.errstate(divide="ignore"):
        exact = np.where(np.isnan(truth), np.nan, -np.log(density))
    if errors is None:
        return exact
    errors = checked_errors(errors, truth)
    out, inexact = np.where(np.isnan(errors), np.nan, exact), errors > 0
    kernel = density_kernel(edges, truth[inexact], errors[inexact])
    out[inexact] = -special.logsumexp(kernel, b=pmf[inexact], axis=1)
    return out


def _checked_truth(
    pmf: ArrayLike, edges: ArrayLike, truth: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pmf, edges = checked(pmf, edges)
    truth = np.asarray(truth, np.float64)
    if pmf.ndim != 2 or truth.shape != pmf.shape[:1]:
        raise ValueError(f"expected PMFs [S, K] and truths [S], found {pmf.shape} and {truth.shape}")
    return pmf, edges, np.where(np.isfinite(truth), truth, np.nan)


def _locate(edges: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bin [S] with each value, and how far into it the value lies, 0 to 1; the nearest end if outside."""
    k = np.clip(np.searchsorted(edges, value, side="right") - 1, 0, edges.size - 2)
    return k, np.clip((value - edges[k]) / (edges[k + 1] - edges[k]), 0, 1)
