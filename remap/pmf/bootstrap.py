"""Predictions of the same stars compared: statistics that pass over what is absent, and paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from remap.pmf.distributions import take_along
from remap.pmf.metrics import MAD_TO_SIGMA


def nan_mean(values: ArrayLike) -> np.ndarray | np.floating:
    """Mean along the last axis of float[..., S], NaN = absent; NaN without any."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.sum(values, axis=-1, where=present) / np.sum(present, axis=-1)


def nan_std(values: ArrayLike) -> np.ndarray | np.floating:
    """Standard deviation (over n - 1) along the last axis of float[..., S], NaN = absent; NaN for n < 2."""
    offset = values - nan_mean(values)[..., None]
    present = ~np.isnan(values)
    count = np.sum(present, axis=-1)
    square = np.sum(offset**2, axis=-1, where=present) / np.maximum(count - 1, 1)
    return np.where(count > 1, np.sqrt(square), np.nan)


def nan_robust(values: ArrayLike) -> np.ndarray | np.floating:
    """1.4826·MAD about the median along the last axis of float[..., S], NaN = absent; NaN without any."""
    return MAD_TO_SIGMA * _nan_median(np.abs(values - _nan_median(values)[..., None]))


class Interval(NamedTuple):
    """A comparison with its bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """About the smallest change that the data could have shown."""
        return (self.high - self.low) / 2

    def excludes(self, value: float) -> bool:
        """True where `value` lies outside; False for an interval that does not exist."""
        return bool(value < self.low or value > self.high)


def paired_interval(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray | np.floating],
    *,
    stars: Sequence[Any] | np.ndarray,
    compare: str,
    resamples: int,
    level: float,
    resample_runs: bool,
    seed: int,
) -> Interval:
    """A statistic of one method compared with that of another, with a paired percentile bootstrap.

    The statistic is taken per run (training seed) and averaged over the runs. Every resample draws stars with all
    their spectra, and runs if wanted, independently of each other and the same for both methods (the "pigeonhole"
    bootstrap of crossed factors, Owen 2007, AnnApplStat 1, 386, which errs on the wide side; few runs err on the
    narrow side, as the mean of n drawn ones varies by (n - 1) / n of the true variance).

    Args:
      first, second: float[R, S], one value per run and spectrum; pairs with a NaN are left out.
      statistic: float[..., S] with NaN for absent entries -> float[...], for example `nan_robust`.
      stars: [S], the star of each spectrum.
      compare: "ratio" (first / second) or "difference" (first - second).
      resamples: number of draws.
      level: probability of the interval, for example 0.95.
      resample_runs: False keeps the runs as they are: the interval is for these networks alone.
      seed: of the draws.

    Returns:
      The comparison and its interval, with infinite limits where too many resamples give no finite number, and
      NaN without any star.

    Raises:
      ValueError: shapes that do not agree, or an unknown comparison.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    unique, star = np.unique(np.asarray(stars), return_inverse=True)
    if first.shape != second.shape or first.ndim != 2 or star.shape != first.shape[1:]:
        raise ValueError(
            f"expected two arrays [R, S] and S stars, found {first.shape}, {second.shape} and {star.shape}"
        )
    if compare not in ("ratio", "difference"):
        raise ValueError(f"compare must be 'ratio' or 'difference', found {compare!r}")
    absent = np.isnan(first) | np.isnan(second)
    both = np.where(absent, np.nan, np.stack([first, second]))
    runs = both.shape[1]

    def combined(per_run: np.ndarray) -> np.ndarray | np.floating:
        one, two = np.mean(per_run, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return one / two if compare == "ratio" else one - two

    if not len(unique):
        return Interval(np.nan, np.nan, np.nan)
    value = float(combined(statistic(both)))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(unique), size=(resamples, len(unique)))
    chosen = rng.integers(runs, size=(resamples, runs)) if resample_runs else np.arange(runs)[None]
    chosen = np.broadcast_to(chosen, (resamples, runs))
    spectra = _rows_of(star, len(unique))
    padded = np.concatenate([both, np.full((2, runs, 1), np.nan)], axis=2)  # what index -1 finds
    size = max(1, 2_000_000 // (runs * spectra.size))  # keeps the arrays below a few times 32 MB
    found = []
    for i in range(0, resamples, size):
        rows = spectra[drawn[i : i + size]].reshape(len(drawn[i : i + size]), -1)
        per_run = statistic(padded[:, :, rows])  # [2, R, resamples of this part]
        found.append(combined(np.take_along_axis(per_run, chosen[i : i + size].T[None], axis=1)))
    values = np.concatenate(found)

    def limit(probability: float, unknown: float) -> float:
        filled = np.where(np.isnan(values), unknown, values)
        return float(np.quantile(filled, probability, method="inverted_cdf"))  # no arithmetic with infinities

    # A resample without a number (a scatter of 0 over one of 0) might have had any: it counts against both ends.
    return Interval(value, limit((1 - level) / 2, -np.inf), limit((1 + level) / 2, np.inf))


def star_scatter(
    residuals: ArrayLike,
    errors: ArrayLike,
    *,
    stars: Sequence[Any] | np.ndarray,
    resamples: int,
    level: float,
    seed: int,
) -> Interval:
    """Robust scatter about the stars' own values: that about their labels without what the labels' errors add.

    sqrt(robust² - median(error²)), 0 where the errors alone would scatter by more; `robust` is 1.4826 times the
    median absolute deviation, which follows the middle of the errors, not their mean square. The interval is a
    percentile bootstrap over stars with all their spectra. It does not know how well the errors are known: a low
    end of 0 says that the labels could explain all of the scatter.

    Args:
      residuals: float[S], predicted - known label; NaN = absent.
      errors: float[S], standard deviations of the known labels, same unit; stars of unknown error are left out.
      stars: [S], the star of each spectrum.
      resamples: number of draws.
      level: probability of the interval, for example 0.95.
      seed: of the draws.

    Returns:
      In the unit of the residuals; NaN without a star.

    Raises:
      ValueError: shapes that do not agree, or a negative error.

    Examples:
      >>> found = star_scatter([-5, 5, -5, 5], [1, 1, 1, 1], stars=[0, 1, 2, 3], resamples=9, level=0.9, seed=0)
      >>> round(found.value, 2)
      7.35
    """
    residuals, errors = np.asarray(residuals, np.float64), np.asarray(errors, np.float64)
    star = np.asarray(stars)
    if residuals.ndim != 1 or not residuals.shape == errors.shape == star.shape:
        raise ValueError(
            f"expected residuals, errors and stars [S], found {residuals.shape}, {errors.shape} and {star.shape}"
        )
    if np.any(errors < 0):
        raise ValueError(f"errors of labels must not be negative, found {np.nanmin(errors)}")
    absent = ~(np.isfinite(residuals) & np.isfinite(errors))
    if absent.all():
        return Interval(np.nan, np.nan, np.nan)
    both = np.where(absent, np.nan, np.stack([residuals, errors**2]))

    def statistic(values: np.ndarray) -> np.ndarray | np.floating:
        return np.sqrt(np.clip(nan_robust(values[0]) ** 2 - _nan_median(values[1]), 0, None))

    return star_interval(both, statistic, stars=star, resamples=resamples, level=level, seed=seed)


def star_interval(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray | np.floating],
    *,
    stars: Sequence[Any] | np.ndarray,
    resamples: int,
    level: float,
    seed: int,
) -> Interval:
    """A statistic with a percentile bootstrap interval over stars, each drawn with all its spectra.

    Args:
      values: float[V, S], what the statistic is of; NaN = absent.
      statistic: of float[V, ..., S] along the last axis, passing over NaN (`nan_mean`, ...).
      stars: [S], the star of each spectrum.
      resamples: number of draws.
      level: probability of the interval, for example 0.95.
      seed: of the draws.

    Returns:
      The statistic and its interval; NaN without a star. Resamples without a number are left out.

    Raises:
      ValueError: shapes that do not agree.

    Examples:
      >>> found = star_interval(
      ...     [[1.0, 2.0, 3.0]], lambda v: nan_mean(v[0]), stars=[0, 1, 2], resamples=99, level=0.9, seed=0
      ... )
      >>> found.value, bool(found.low < 2.0 < found.high)
      (2.0, True)
    """
    values = np.asarray(values, np.float64)
    unique, star = np.unique(np.asarray(stars), return_inverse=True)
    if values.ndim != 2 or star.shape != values.shape[1:]:
        raise ValueError(f"expected values [V, S] and stars [S], found {values.shape} and {star.shape}")
    if np.isnan(values).any(axis=0).all():
        return Interval(np.nan, np.nan, np.nan)
    rows = _rows_of(star, len(unique))
    drawn = np.random.default_rng(seed).integers(len(unique), size=(resamples, len(unique)))
    padded = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)  # what index -1 finds
    size = max(1, 4_000_000 // (len(values) * rows.size))  # keeps the arrays below a few times 32 MB
    found = np.concatenate(
        [
            statistic(padded[:, rows[drawn[i : i + size]].reshape(len(drawn[i : i + size]), -1)])
            for i in range(0, resamples, size)
        ]
    )
    found = found[~np.isnan(found)]
    ends = (np.nan, np.nan)
    if found.size:
        ends = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(statistic(values)), float(ends[0]), float(ends[1]))


def _rows_of(star: np.ndarray, count: int) -> np.ndarray:
    """int[count, V]: the entries of each star in `star`, filled up with -1."""
    order = np.argsort(star, kind="stable")
    start = np.searchsorted(star[order], np.arange(count + 1))
    place = start[:-1, None] + np.arange(np.max(np.diff(start)))
    return np.where(place < start[1:, None], order[np.minimum(place, len(star) - 1)], -1)


def _nan_median(values: np.ndarray) -> np.ndarray | np.floating:
    """Median along the last axis, NaN = absent; without NumPy's warnings and much faster than its own."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.sum(~np.isnan(values), axis=-1)
    low, high = (
        take_along(ordered, np.maximum(count - 1, 0) // 2),
        take_along(ordered, count // 2 * (count > 0)),
    )
    return (low + high) / 2
