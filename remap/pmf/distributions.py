"""Arithmetic of probability mass functions (PMFs): quantiles, combination of arms, what a flag asks for.

A PMF is a float array [..., K] over K bins with edges float[K + 1]; within a bin the probability is taken
as uniform, so the cumulative distribution F is piecewise linear, and every number here (quantiles, CRPS,
PIT, ...) is exact for that distribution. A row that holds a value that is not finite is "missing":
it gives NaN (or False, or 0 modes) and never an error. A negative value, or a row whose sum is not 1 to
within `SUM_TOLERANCE`, raises ValueError; smaller differences are rounding, and are normalised away.
Everything is computed in float64, whatever the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

SUM_TOLERANCE = 1e-3  # float32 sums are good to 1e-6; more than this is no rounding but a mistake
PMF_FLOOR = 1e-12  # below float32 rounding of a PMF's largest bin, so only tails without meaning are touched
COMBINATIONS = ("conflation", "prior_corrected", "mean")


def pmf_quantile(
    pmf: ArrayLike, edges: ArrayLike, q: float | Sequence[float] | np.ndarray
) -> np.ndarray | np.floating:
    """Quantiles of PMFs, in the unit of `edges`: F^-1(q) by linear interpolation within bins.

    Where F is flat at exactly q (empty bins), the lowest value that reaches q is given; q = 0 gives the
    lower end of the first bin that is not empty.

    Args:
      pmf: float[..., K].
      edges: float[K + 1], strictly increasing.
      q: probabilities in [0, 1], scalar or [Q].

    Returns:
      float64[...] for a scalar q, float64[..., Q] otherwise; NaN for missing rows.

    Raises:
      ValueError: a PMF, edges or q that is not one (see the module's docstring).

    Examples:
      >>> edges = [4000, 4500, 5000, 5500, 6000]
      >>> pmf_quantile([0.0, 0.2, 0.6, 0.2], edges, [0.16, 0.5, 0.84]).round(1).tolist()
      [4900.0, 5250.0, 5600.0]
    """
    pmf, edges = checked(pmf, edges)
    probabilities = np.asarray(q, np.float64)
    if probabilities.ndim > 1 or not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise ValueError(f"quantiles must be probabilities in [0, 1], found {q!r}")
    cdf = cumulative(pmf)
    found = [_quantile(cdf, edges, p) for p in np.atleast_1d(probabilities)]
    return np.stack(found, axis=-1) if probabilities.ndim else found[0]


def pmf_summary(pmf: ArrayLike, edges: ArrayLike) -> dict[str, np.ndarray | np.floating]:
    """Location, width and information of PMFs.

    Args:
      pmf: float[..., K].
      edges: float[K + 1], strictly increasing.

    Returns:
      float64[...] arrays: `median`, `p16`, `p84` (quantiles 0.16 and 0.84), `mean`, `std`
      (with the w²/12 of a uniform bin of width w), `mode` (centre of the bin with the highest density; the
      lowest of equals), all in the unit of `edges`; `entropy` of the PMF in nats, 0 to ln K.

    Raises:
      ValueError: a PMF or edges that is not one.

    Examples:
      >>> summary = pmf_summary([0.0, 0.2, 0.6, 0.2], [4000, 4500, 5000, 5500, 6000])
      >>> {name: round(float(summary[name]), 2) for name in ("median", "std", "mode", "entropy")}
      {'median': 5250.0, 'std': 347.61, 'mode': 5250.0, 'entropy': 0.95}
    """
    pmf, edges = checked(pmf, edges)
    cdf = cumulative(pmf)
    width = np.diff(edges)
    centre = edges[:-1] + width / 2
    mean = np.sum(pmf * centre, axis=-1)  # as a product of matrices a row would depend on how many there are
    variance = np.sum(pmf * ((centre - mean[..., None]) ** 2 + width**2 / 12), axis=-1)
    mode = centre[np.argmax(pmf / width, axis=-1)]
    return {
        "median": _quantile(cdf, edges, 0.5),
        "p16": _quantile(cdf, edges, 0.16),
        "p84": _quantile(cdf, edges, 0.84),
        "mean": mean,
        "std": np.sqrt(variance),
        "mode": np.where(np.isnan(mean), np.nan, mode),
        "entropy": np.sum(special.entr(pmf), axis=-1),
    }


def conflate(
    pmfs: ArrayLike, present: ArrayLike, *, prior: ArrayLike | None = None, floor: float = PMF_FLOOR
) -> np.ndarray:
    """Conflation of the arms' PMFs: y_i = Π_a y_ai / Σ_j Π_a y_aj (eq. 6; Hill & Miller 2011), by logs.

    Every arm's PMF holds the distribution of the labels that it was trained on, so that the product of A arms
    counts it A times. With `prior` it counts once: the product is divided by prior^(A - 1).

    Bins below `floor` count as `floor` where two or more arms combine, so that one arm's zero (a softmax
    that underflowed) cannot veto what all others say: two arms with nothing in common share the result,
    half each. Above the floor this is eq. 6 exactly; one arm alone is returned as it is.

    Args:
      pmfs: float[A, S, K]; rows of absent arms may hold anything.
      present: bool[A, S], True = the arm was observed.
      prior: float[K], the PMF of the labels in training; None = as eq. 6 has it. Bins below `floor` count as
        `floor`.
      floor: smallest probability of a bin, above 0.

    Returns:
      float64[S, K], normalised; NaN for stars without an arm, or with NaN in an arm that is present.

    Raises:
      ValueError: shapes that do not agree, or a PMF of a present arm that is not one.

    Examples:
      >>> import numpy as np
      >>> arms = np.array([[[0.5, 0.3, 0.2]], [[0.2, 0.6, 0.2]]])  # two arms, one star
      >>> conflate(arms, np.array([[True], [True]])).round(4).tolist()
      [[0.3125, 0.5625, 0.125]]
      >>> conflate(arms, np.array([[True], [False]])).tolist()
      [[0.5, 0.3, 0.2]]
    """
    pmfs, present = _checked_arms(pmfs, present)
    if not 0 < floor < 1:
        raise ValueError(f"floor must lie between 0 and 1, found {floor!r}")
    logs = np.sum(np.log(np.maximum(pmfs, floor)), axis=0, where=present[..., None])
    if prior is not None:
        extra = np.maximum(np.sum(present, axis=0) - 1, 0)
        logs -= extra[:, None] * np.log(np.maximum(_normalised(prior), floor))
    product = np.exp(logs - np.max(logs, axis=-1, keepdims=True))
    product /= np.sum(product, axis=-1, keepdims=True)
    alone = np.sum(pmfs, axis=0, where=present[..., None])
    count = np.sum(present, axis=0)[:, None]
    return np.where(count > 1, product, np.where(count == 1, alone, np.nan))


def combine_arms(
    pmfs: ArrayLike, present: ArrayLike, *, method: str, prior: ArrayLike | None = None
) -> np.ndarray:
    """The arms' PMFs as one, by one of `COMBINATIONS`.

    Args:
      pmfs, present: see `conflate`.
      method: "conflation" (eq. 6), "prior_corrected" (eq. 6 with `prior` counted once) or "mean" (the mixture
        with equal weights, which takes nothing for independent).
      prior: float[K] for "prior_corrected".

    Returns:
      As `conflate`.

    Raises:
      ValueError: another method, or "prior_corrected" without a prior.
    """
    if method == "conflation":
        return conflate(pmfs, present)
    if method == "prior_corrected":
        if prior is None:
            raise ValueError("the combination 'prior_corrected' needs the prior of the training, found none")
        return conflate(pmfs, present, prior=prior)
    if method == "mean":
        pmfs, present = _checked_arms(pmfs, present)
        count = np.sum(present, axis=0)[:, None]
        total = np.sum(pmfs, axis=0, where=present[..., None])
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)
    raise ValueError(f"the combination of the arms must be one of {COMBINATIONS}, found {method!r}")


def temper(pmf: ArrayLike, power: ArrayLike) -> np.ndarray:
    """p_i^w / Σ_j p_j^w: wider for a power w < 1, narrower for w > 1; 1 / w is a temperature (§4.5).

    Args:
      pmf: float[..., K].
      power: w, above 0, one for all or float[...].

    Returns:
      float64[..., K], normalised; NaN rows stay NaN. Bins below what float32 holds count as its least value.

    Raises:
      ValueError: a PMF that is not one, or a power that is not positive.

    Examples:
      >>> temper([0.8, 0.2], 0.5).round(3).tolist()
      [0.667, 0.333]
    """
    power = np.asarray(power, np.float64)
    if not np.all(power > 0):
        raise ValueError(f"power must be positive, found {power}")
    logs = power[..., None] * np.log(np.maximum(_normalised(pmf), np.finfo(np.float32).tiny))
    weights = np.exp(logs - np.max(logs, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def normal_pmf(mean: ArrayLike, deviation: ArrayLike, edges: ArrayLike) -> np.ndarray:
    """PMFs of normal distributions, cut at the ends of the bins.

    One that lies beyond an end by so much that none of it is left gives that end's bin all its probability.

    Args:
      mean: float[S], in the unit of `edges`.
      deviation: float[S], positive.
      edges: float[K + 1], strictly increasing.

    Returns:
      float64[S, K], normalised; NaN where a mean or deviation is NaN.

    Examples:
      >>> normal_pmf([5000.0], [100.0], [4800.0, 4900.0, 5000.0, 5100.0, 5200.0]).round(2).tolist()
      [[0.14, 0.36, 0.36, 0.14]]
    """
    mean, deviation = (np.asarray(x, np.float64)[..., None] for x in (mean, deviation))
    scaled = (np.asarray(edges, np.float64) - mean) / deviation
    # Differences of the smaller tail, which keep their digits far from the mean.
    upper = scaled[..., :-1] > 0
    mass = np.where(
        upper,
        special.ndtr(-scaled[..., :-1]) - special.ndtr(-scaled[..., 1:]),
        special.ndtr(scaled[..., 1:]) - special.ndtr(scaled[..., :-1]),
    )
    total = np.sum(mass, axis=-1, keepdims=True)
    lost = total[..., 0] < PMF_FLOOR
    ends = np.zeros_like(mass)
    ends[..., 0] = scaled[..., 0] > 0
    ends[..., -1] = scaled[..., -1] < 0
    return np.where(lost[..., None], ends, mass / np.where(total > 0, total, 1.0))


def pool(
    first: ArrayLike, second: ArrayLike, *, powers: tuple[ArrayLike, ArrayLike], floor: float = PMF_FLOOR
) -> np.ndarray:
    """p_i^v q_i^w / Σ_j p_j^v q_j^w: two opinions, each as sharp as its power says (Genest & Zidek 1986).

    With both powers 1 it is the conflation of the two; less where they share their mistakes.

    Args:
      first, second: float[S, K].
      powers: v and w, each a number or float[S], not negative and not both 0.
      floor: smallest probability of a bin, above 0, so that neither can veto what the other says.

    Returns:
      float64[S, K], normalised; NaN for rows that either lacks.

    Raises:
      ValueError: a PMF that is not one, or powers that cannot be.

    Examples:
      >>> pool([[0.5, 0.4, 0.1]], [[0.2, 0.4, 0.4]], powers=(1.0, 1.0)).round(3).tolist()
      [[0.333, 0.533, 0.133]]
    """
    v, w = (np.asarray(power, np.float64) for power in powers)
    if not np.all((v >= 0) & (w >= 0) & (v + w > 0)):
        raise ValueError(f"powers must not be negative, and not both 0, found {powers}")
    one, other = (np.log(np.maximum(_normalised(pmf), floor)) for pmf in (first, second))
    logs = v[..., None] * one + w[..., None] * other
    weights = np.exp(logs - np.max(logs, axis=-1, keepdims=True))
    return weights / np.sum(weights, axis=-1, keepdims=True)


def mass_within(pmf: ArrayLike, edges: ArrayLike, low: float, high: float) -> np.ndarray:
    """float64[S]: probability of values from `low` to `high`, uniform within bins; NaN for missing rows.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.

    Examples:
      >>> mass_within([[0.2, 0.6, 0.2]], [0.0, 1.0, 2.0, 3.0], 0.5, 2.0).round(3).tolist()
      [0.7]
    """
    pmf, edges = checked(pmf, edges)
    share = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, None) / np.diff(edges)
    return np.sum(pmf * share, axis=-1)


def arm_disagreement(pmfs: ArrayLike, edges: ArrayLike, present: ArrayLike) -> np.ndarray:
    """How far the arms' medians lie apart in units of their widths, the largest over all pairs of arms.

    |m_a - m_b| / sqrt(h_a² + h_b²) with h = (p84 - p16) / 2: about the number of standard deviations.

    Args:
      pmfs: float[A, S, K]; rows of absent arms may hold anything.
      edges: float[K + 1], strictly increasing.
      present: bool[A, S].

    Returns:
      float64[S], dimensionless; NaN where fewer than two arms are present.

    Raises:
      ValueError: shapes that do not agree, or a PMF of a present arm that is not one.
    """
    pmfs, present = _checked_arms(pmfs, present)
    low, median, high = np.moveaxis(
        pmf_quantile(np.where(present[..., None], pmfs, np.nan), edges, (0.16, 0.5, 0.84)), -1, 0
    )
    half = (high - low) / 2
    worst = np.full(present.shape[1], np.nan)
    for a in range(len(pmfs)):
        for b in range(a):
            worst = np.fmax(worst, np.abs(median[a] - median[b]) / np.hypot(half[a], half[b]))
    return worst


def is_edge(pmf: ArrayLike, *, bins: int, mass: float) -> np.ndarray:
    """True where the first or the last `bins` bins hold at least the probability `mass`.

    Args:
      pmf: float[..., K].
      bins: how many bins make an edge, 1 to K.
      mass: probability in (0, 1].

    Returns:
      bool[...]; False for missing rows.

    Raises:
      ValueError: a PMF that is not one, or settings outside those limits.
    """
    pmf = _normalised(pmf)
    if not (1 <= bins <= pmf.shape[-1] and 0 < mass <= 1):
        raise ValueError(
            f"expected 1 to {pmf.shape[-1]} bins and a mass in (0, 1], found {bins!r} and {mass!r}"
        )
    return np.fmax(pmf[..., :bins].sum(axis=-1), pmf[..., -bins:].sum(axis=-1)) >= mass


def is_near(
    pmf: ArrayLike, edges: ArrayLike, limits: tuple[float, float] | list[float], *, widths: float
) -> np.ndarray:
    """True where the median lies within `widths` half widths of the 68 % interval of a limit, or beyond it.

    Args:
      pmf: float[S, K].
      edges: float[K + 1].
      limits: low and high, in the label's unit.
      widths: 0 or more.

    Returns:
      bool[S]; False for missing rows.

    Raises:
      ValueError: limits that are none.
    """
    low, high = limits
    if not low < high or not widths >= 0:
        raise ValueError(f"expected low < high and widths of 0 or more, found {low}, {high} and {widths}")
    found = pmf_summary(pmf, edges)
    reach = widths * (found["p84"] - found["p16"]) / 2
    with np.errstate(invalid="ignore"):
        return (found["median"] + reach > high) | (found["median"] - reach < low)


def count_modes(pmf: ArrayLike, *, prominence: float) -> np.ndarray:
    """Number of peaks that stand out by at least `prominence` times the highest bin (bins of equal width).

    The prominence of a peak is its height above the higher of the two valleys that part it from higher
    peaks, with zeros beyond the ends of the range, as in `scipy.signal.find_peaks`.

    Args:
      pmf: float[..., K].
      prominence: fraction of the highest bin, in (0, 1].

    Returns:
      int[...], at least 1; 0 for missing rows.

    Raises:
      ValueError: a PMF that is not one, or a prominence outside those limits.
    """
    pmf = _normalised(pmf)
    if not 0 < prominence <= 1:
        raise ValueError(f"prominence must lie in (0, 1], found {prominence!r}")
    swing = prominence * np.max(pmf, axis=-1)
    count = np.zeros(pmf.shape[:-1], int)
    climbing = np.ones(pmf.shape[:-1], bool)
    extreme = np.zeros(pmf.shape[:-1])  # highest value of this climb, or lowest of this descent
    for value in [*np.moveaxis(pmf, -1, 0), np.zeros(pmf.shape[:-1])]:
        # A peak is over once the PMF has fallen by `swing`, a valley once it has risen by as much.
        top = climbing & (extreme - value >= swing)
        bottom = ~climbing & (value - extreme >= swing)
        count += top
        extreme = np.where(climbing, np.fmax(extreme, value), np.fmin(extreme, value))
        extreme = np.where(top | bottom, value, extreme)
        climbing = climbing ^ (top | bottom)
    return count


def _normalised(pmf: ArrayLike) -> np.ndarray:
    """float64[..., K] with rows that sum to 1; missing rows all NaN."""
    pmf = np.asarray(pmf, np.float64)
    if pmf.ndim < 1 or pmf.shape[-1] < 1:
        raise ValueError(f"expected PMFs of shape [..., K] with K > 0, found {pmf.shape}")
    missing = ~np.all(np.isfinite(pmf), axis=-1, keepdims=True)
    pmf = np.where(missing, np.nan, pmf)
    total = np.sum(pmf, axis=-1, keepdims=True)
    wrong = np.any(pmf < 0, axis=-1) | (np.abs(total[..., 0] - 1) > SUM_TOLERANCE)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"expected PMFs without negative values that sum to 1, found sum {total[at][0]:.6g} and least "
            f"value {pmf[at].min():.6g} in row {at} and {np.count_nonzero(wrong) - 1} others"
        )
    return pmf / total


def checked(pmf: ArrayLike, edges: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """PMFs, normalised, and edges, both float64; ValueError for what is not one (see the module's docstring)."""
    pmf, edges = _normalised(pmf), np.asarray(edges, np.float64)
    if edges.shape != (pmf.shape[-1] + 1,):
        raise ValueError(
            f"expected {pmf.shape[-1] + 1} edges for {pmf.shape[-1]} bins, found shape {edges.shape}"
        )
    if not (np.all(np.isfinite(edges)) and np.all(np.diff(edges) > 0)):
        raise ValueError(f"edges must be finite and increase strictly, found {edges}")
    return pmf, edges


def _checked_arms(pmfs: ArrayLike, present: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """PMFs [A, S, K] with 1s (never NaN) for absent arms, and the mask [A, S]."""
    pmfs, present = np.asarray(pmfs, np.float64), np.asarray(present, bool)
    if pmfs.ndim != 3 or present.shape != pmfs.shape[:2]:
        raise ValueError(
            f"expected PMFs [A, S, K] and present [A, S], found {pmfs.shape} and {present.shape}"
        )
    return _normalised(np.where(present[..., None], pmfs, 1 / pmfs.shape[-1])), present


def cumulative(pmf: np.ndarray) -> np.ndarray:
    """F at the edges, [..., K + 1]: exactly 0 first and exactly 1 from the last bin that is not empty."""
    cdf = np.concatenate([np.zeros((*pmf.shape[:-1], 1)), np.cumsum(pmf, axis=-1)], axis=-1)
    return cdf / cdf[..., -1:]


def _quantile(cdf: np.ndarray, edges: np.ndarray, q: float) -> np.ndarray | np.floating:
    start, end = cdf[..., :-1], cdf[..., 1:]
    k = np.argmax((end >= q) & (end > start), axis=-1)
    start, end = take_along(start, k), take_along(end, k)
    return edges[k] + (edges[k + 1] - edges[k]) * ((q - start) / (end - start))


def take_along(array: np.ndarray, k: np.ndarray | np.integer) -> np.ndarray | np.number:
    """array[..., k] for an index k int[...] of each row."""
    return np.take_along_axis(array, k[..., None], axis=-1)[..., 0]
