"""Two-sample tests of features, with intervals: can library and survey be told apart?

A classifier's cross-validated AUC, the MMD's permutation test and Kolmogorov-Smirnov tests per feature. Where
sample i of one set belongs to sample i of the other (a star and a library spectrum of its labels), `paired` keeps
the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from remap.network.discrepancy import kernel_matrix, median_distance, mmd_of_kernel

ROUNDING = 1e-6  # of an MMD: sums of kernels, which are at most 1, in float32


class Interval(NamedTuple):
    """A number with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class FeatureTests(NamedTuple):
    """Two-sample Kolmogorov-Smirnov tests of F features; NaN for features that never change."""

    statistic: np.ndarray  # float[F], largest distance of the two cumulative distributions
    p_value: np.ndarray  # float[F]


def mmd_test(
    x: np.ndarray, y: np.ndarray, *, widths: np.ndarray, permutations: int, seed: int, paired: bool
) -> tuple[float, float]:
    """The squared MMD, and its p-value by permutation of the two sets' names.

    Args:
      x, y: float[n, F], float[m, F].
      widths: float[K], as for `mmd`.
      permutations: of the names; the p-value is (1 + those at least as large) / (1 + permutations).
      seed: of the permutations.
      paired: True swaps names within pairs alone (n = m), which is exact where a pair shares what the
        features depend on.

    Raises:
      ValueError: paired sets of different sizes.
    """
    check_pairs(x, y, paired)
    n, total = len(x), len(x) + len(y)
    rng = np.random.default_rng(seed)
    if paired:
        swap = rng.random((permutations, n)) < 0.5
        names = np.concatenate([~swap, swap], axis=1)
    else:
        names = np.argsort(rng.random((permutations, total)), axis=1) < n
    names = np.concatenate([(np.arange(total) < n)[None], names])
    gram = kernel_matrix(jnp.concatenate([jnp.asarray(x), jnp.asarray(y)]), jnp.asarray(widths))
    found = np.asarray(jax.jit(jax.vmap(mmd_of_kernel, in_axes=(None, 0)))(gram, jnp.asarray(names)))
    ties = found[1:] >= found[0] - ROUNDING  # swapping all names gives the same value, but for rounding
    return float(found[0]), float((1 + np.count_nonzero(ties)) / (1 + permutations))


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a positive's score is the higher one, ties counting half."""
    rank = stats.rankdata(score)
    n = np.count_nonzero(positive)
    m = len(score) - n
    if n == 0 or m == 0:
        raise ValueError(f"an AUC needs both classes, found {n} and {m}")
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def classifier_auc(
    x: np.ndarray,
    y: np.ndarray,
    *,
    folds: int,
    repeats: int,
    ridge: float,
    resamples: int,
    level: float,
    seed: int,
    paired: bool,
) -> Interval:
    """Cross-validated AUC of a classifier that tells the two sets apart: 0.5 = it cannot, 1 = always.

    The classifier is kernel ridge regression of ±1 on the standardised features, with a Gaussian kernel of the
    median distance: it sees differences of means, widths and shapes. Scores are those of folds that did not train
    on the sample; with several repeats of the folds an AUC is their mean.

    Args:
      x, y: float[n, F], float[m, F].
      folds, repeats: of the cross-validation.
      ridge: penalty, in units of the kernel's value at distance 0.
      resamples, level: of the bootstrap over samples (or pairs) that gives the interval. The scores stay as they
        are, so that it does not hold the scatter from training on other samples.
      seed: of folds and bootstrap.
      paired: True keeps pairs together in folds and bootstrap (n = m).

    Raises:
      ValueError: fewer samples than folds, or paired sets of different sizes.
    """
    check_pairs(x, y, paired)
    n, m = len(x), len(y)
    if not 2 <= folds <= min(n, m):
        raise ValueError(f"expected between 2 and {min(n, m)} folds, found {folds}")
    both = np.concatenate([x, y]).astype(np.float64)
    std = both.std(axis=0)
    both = ((both - both.mean(axis=0)) / np.where(std > 0, std, 1.0)).astype(np.float32)
    width = median_distance(jnp.asarray(both[:n]), jnp.asarray(both[n:]))
    width = jnp.where(width > 0, width, 1.0)  # samples may all be alike
    gram = np.asarray(kernel_matrix(jnp.asarray(both), width[None]), np.float64)
    positive = np.arange(n + m) < n
    rng = np.random.default_rng(seed)
    scores = np.stack(
        [_fold_scores(gram, positive, _folds(rng, n, m, folds, paired), ridge) for _ in range(repeats)]
    )
    value = float(np.mean([auc(s, positive) for s in scores]))
    draws = []
    for _ in range(resamples):
        first = rng.integers(0, n, n)
        index = np.concatenate([first, n + (first if paired else rng.integers(0, m, m))])
        draws.append(np.mean([auc(s[index], positive) for s in scores]))
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail]) if draws else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def feature_tests(x: np.ndarray, y: np.ndarray) -> FeatureTests:
    """Two-sample Kolmogorov-Smirnov tests, feature by feature."""
    found = []
    for a, b in zip(np.asarray(x).T, np.asarray(y).T, strict=True):
        if np.ptp(np.concatenate([a, b])) == 0:
            found.append((np.nan, np.nan))
            continue
        result = stats.ks_2samp(a, b, method="asymp")
        found.append((result.statistic, result.pvalue))
    statistic, p_value = np.array(found, float).reshape(-1, 2).T
    return FeatureTests(statistic, p_value)


def check_pairs(x: np.ndarray, y: np.ndarray, paired: bool) -> None:
    """Raises ValueError if the sets cannot be compared, or are paired and have different sizes."""
    if np.ndim(x) != 2 or np.ndim(y) != 2 or np.shape(x)[1] != np.shape(y)[1]:
        raise ValueError(
            f"expected two sets of one number of features, found {np.shape(x)} and {np.shape(y)}"
        )
    if paired and len(x) != len(y):
        raise ValueError(f"expected pairs, found {len(x)} and {len(y)} samples")


def _folds(rng: np.random.Generator, n: int, m: int, folds: int, paired: bool) -> np.ndarray:
    """int[n + m]: the fold of every sample; each class is spread evenly, and a pair has one fold."""
    first = rng.permutation(np.arange(n) % folds)
    second = first if paired else rng.permutation(np.arange(m) % folds)
    return np.concatenate([first, second])


def _fold_scores(gram: np.ndarray, positive: np.ndarray, fold: np.ndarray, ridge: float) -> np.ndarray:
    """float[n + m]: scores of samples by classifiers that were not trained on their fold."""
    target = np.where(positive, 1.0, -1.0)
    score = np.empty(len(fold))
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        kernel = gram[np.ix_(train, train)] + ridge * np.eye(np.count_nonzero(train))
        score[test] = gram[np.ix_(test, train)] @ np.linalg.solve(kernel, target[train])
    return score
