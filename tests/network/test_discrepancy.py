"""Distances between two sets of features, against closed forms, loops and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from remap.network.discrepancy import coral, median_distance, mmd
from remap.report.two_sample import auc, classifier_auc, feature_tests, mmd_test

SETTINGS = {"folds": 5, "repeats": 2, "ridge": 1.0, "resamples": 100, "level": 0.95, "seed": 0}


def normal(seed, n, shift=0.0, width=1.0, features=3):
    rng = np.random.default_rng(seed)
    x = width * rng.standard_normal((n, features))
    x[:, 0] += shift
    return x.astype(np.float32)


def test_mmd_is_the_plain_double_sum():
    x, y, widths = normal(0, 7), normal(1, 5, 0.5), np.array([0.5, 2.0])

    def k(a, b):
        return np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * s**2)) for s in widths])

    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    found = jax.jit(mmd)(jnp.asarray(x), jnp.asarray(y), widths=jnp.asarray(widths))
    assert float(found) == pytest.approx(within_x + within_y - 2 * between, abs=1e-6)


def test_mmd_of_gaussians_is_its_closed_form():
    """In one dimension E k = s / sqrt(s² + v) exp(-d² / 2 (s² + v)), v the variance of the difference."""
    s, shift, n = 1.5, 1.0, 3000
    expected = 2 * s / np.sqrt(s**2 + 2) * (1 - np.exp(-(shift**2) / (2 * (s**2 + 2))))
    x, y = normal(0, n, features=1), normal(1, n, shift, features=1)
    found = float(mmd(jnp.asarray(x), jnp.asarray(y), widths=jnp.array([s])))
    assert found == pytest.approx(expected, abs=4 * 2 / np.sqrt(n) * np.sqrt(expected))  # 4σ of the estimate
    same = float(mmd(jnp.asarray(x), jnp.asarray(normal(2, n, features=1)), widths=jnp.array([s])))
    assert abs(same) < 0.05 * expected


def test_mmd_and_coral_have_finite_gradients_that_bring_the_sets_together():
    x, y = jnp.asarray(normal(0, 40)), jnp.asarray(normal(1, 40, 1.0, 2.0))
    for distance in (lambda z: mmd(z, y, widths=jnp.array([1.0, 3.0])), lambda z: coral(z, y)):
        grad = jax.jit(jax.grad(distance))(x)
        assert bool(jnp.isfinite(grad).all())
        assert float(distance(x - 0.1 * grad / jnp.abs(grad).max())) < float(distance(x))
    doubled = jnp.concatenate([x, x])  # pairs at distance zero
    assert bool(jnp.isfinite(jax.grad(lambda z: mmd(z, y, widths=jnp.array([1.0])))(doubled)).all())


def test_coral_is_the_distance_of_numpys_covariances():
    x, y = normal(0, 30), normal(1, 20, 0.0, 1.7)
    expected = np.sum((np.cov(x.T) - np.cov(y.T)) ** 2) / (4 * 9)
    assert float(jax.jit(coral)(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(expected, rel=1e-4)
    assert float(coral(jnp.asarray(x), jnp.asarray(x + 5))) == pytest.approx(
        0, abs=1e-6
    )  # means do not count


def test_median_distance_is_numpys():
    x, y = normal(0, 9), normal(1, 6, 2.0)
    both = np.concatenate([x, y])
    expected = np.median([np.linalg.norm(both[i] - both[j]) for i in range(15) for j in range(i)])
    assert float(median_distance(jnp.asarray(x), jnp.asarray(y))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("paired", [True, False])
def test_permutation_test_finds_a_shift_and_keeps_its_level(paired):
    settings = {"widths": np.array([1.0, 2.0]), "permutations": 99, "paired": paired}
    assert mmd_test(normal(0, 60), normal(1, 60, 1.5), seed=0, **settings)[1] == pytest.approx(0.01)
    p_values = [mmd_test(normal(2 * i, 30), normal(2 * i + 1, 30), seed=i, **settings)[1] for i in range(40)]
    # P(more than 7 of 40 below 0.05) = 0.001 for a test of the right level
    assert np.count_nonzero(np.array(p_values) <= 0.05) <= 7
    assert 0.3 < np.mean(p_values) < 0.7


def test_paired_permutations_are_swaps_within_pairs():
    """Of three pairs there are eight; the p-value is the share of those that are at least as large."""
    x, y, widths = normal(0, 3), normal(1, 3, 1.0), np.array([1.0])
    values = []
    for swap in itertools.product((False, True), repeat=3):
        first, second = (np.where(np.array(swap)[:, None], b, a) for a, b in ((x, y), (y, x)))
        values.append(float(mmd(jnp.asarray(first), jnp.asarray(second), widths=jnp.asarray(widths))))
    expected = np.mean(np.array(values) >= values[0] - 1e-6)
    found, p_value = mmd_test(x, y, widths=widths, permutations=4000, seed=0, paired=True)
    assert found == pytest.approx(values[0], abs=1e-6)
    assert 0.2 < expected < 0.9
    assert p_value == pytest.approx(expected, abs=0.03)  # 4σ of 4000 draws


def test_auc_is_the_share_of_ordered_pairs():
    score = np.array([1.0, 2.0, 2.0, 3.0, 0.0])
    positive = np.array([False, True, False, True, False])
    # positives 2 and 3 against 1, 2, 0: wins 1, ½, 1 and 1, 1, 1
    assert auc(score, positive) == pytest.approx(5.5 / 6)
    assert auc(-score, positive) == pytest.approx(0.5 / 6)
    with pytest.raises(ValueError, match="both classes, found 5 and 0"):
        auc(score, np.ones(5, bool))


def test_classifier_reaches_the_best_possible_auc_of_two_gaussians():
    shift, n, count = 1.5, 150, 4
    best = stats.norm.cdf(shift / np.sqrt(2))
    found = [
        classifier_auc(normal(2 * i, n), normal(2 * i + 1, n, shift), paired=False, **SETTINGS)
        for i in range(count)
    ]
    # Standard error of an AUC A of n against n, Hanley & McNeil 1982, eq. 2.
    first, second = best / (2 - best), 2 * best**2 / (1 + best)
    error = np.sqrt((best * (1 - best) + (n - 1) * (first + second - 2 * best**2)) / n**2)
    assert np.mean([f.value for f in found]) == pytest.approx(best, abs=3 * error / np.sqrt(count))
    widths = [f.high - f.low for f in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_classifier_sees_widths_that_a_linear_one_cannot():
    assert classifier_auc(normal(0, 200), normal(1, 200, width=3.0), paired=False, **SETTINGS).value > 0.8


@pytest.mark.parametrize("paired", [True, False])
def test_classifier_cannot_tell_equal_distributions_apart(paired):
    values = []
    for i in range(6):
        common = 3 * normal(100 + i, 100)
        x, y = (
            normal(2 * i, 100) + common,
            normal(2 * i + 1, 100) + (common if paired else 3 * normal(200 + i, 100)),
        )
        values.append(classifier_auc(x, y, paired=paired, **(SETTINGS | {"resamples": 0})).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)  # 0.04 is the standard error of one


def test_an_interval_needs_no_feature_that_changes():
    found = classifier_auc(np.ones((20, 2)), np.ones((20, 2)), paired=True, **SETTINGS)
    assert found == (0.5, 0.5, 0.5)


def test_feature_tests_are_scipys_and_leave_out_silent_features():
    x, y = normal(0, 50), normal(1, 60, 1.0)
    x[:, 2] = y[:, 2] = 0.0
    found = feature_tests(x, y)
    for j in range(2):
        expected = stats.ks_2samp(x[:, j], y[:, j], method="asymp")
        assert (found.statistic[j], found.p_value[j]) == (expected.statistic, expected.pvalue)
    assert np.isnan(found.statistic[2])
    assert found.p_value[0] < 1e-3 < found.p_value[1]


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected pairs, found 20 and 21"):
        classifier_auc(normal(0, 20), normal(1, 21), paired=True, **SETTINGS)
    with pytest.raises(ValueError, match=r"one number of features, found \(20, 3\) and \(20, 2\)"):
        mmd_test(normal(0, 20), normal(1, 20)[:, :2], widths=np.ones(1), permutations=1, seed=0, paired=False)
    with pytest.raises(ValueError, match="between 2 and 4 folds, found 5"):
        classifier_auc(normal(0, 4), normal(1, 20), paired=False, **SETTINGS)
