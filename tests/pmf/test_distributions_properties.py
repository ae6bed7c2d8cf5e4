"""What holds of the arithmetic of PMFs whatever the PMFs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from remap.pmf.distributions import (
    COMBINATIONS,
    combine_arms,
    conflate,
    cumulative,
    pmf_quantile,
    pmf_summary,
    temper,
)

ARMS, STARS, BINS = 3, 2, 8
EDGES = np.linspace(3000.0, 7000.0, BINS + 1)
# Whole numbers, so that bins may be empty; and none of them, so that no product meets the floor of conflation.
WEIGHTS = arrays(np.int64, (STARS, BINS), elements=st.integers(0, 9)).filter(lambda w: w.sum(axis=-1).all())
POSITIVE = arrays(np.int64, (ARMS, STARS, BINS), elements=st.integers(1, 99))
PRESENT = arrays(np.bool_, (ARMS, STARS))
Q = arrays(np.float64, 5, elements=st.floats(0, 1))
POWER = st.floats(0.2, 3.0)


def normalised(weights):
    return weights / weights.sum(axis=-1, keepdims=True)


@given(POSITIVE, PRESENT, st.permutations(range(ARMS)))
def test_conflation_does_not_know_the_order_of_the_arms(weights, present, order):
    pmfs = normalised(weights)
    np.testing.assert_allclose(conflate(pmfs[order], present[order]), conflate(pmfs, present), rtol=1e-12)


@given(POSITIVE)
def test_conflation_may_go_arm_by_arm(weights):
    pmfs = normalised(weights)
    two, three = np.ones((2, STARS), bool), np.ones((3, STARS), bool)
    stepwise = conflate(np.stack([conflate(pmfs[:2], two), pmfs[2]]), two)
    np.testing.assert_allclose(stepwise, conflate(pmfs, three), rtol=1e-9)


@pytest.mark.parametrize("method", COMBINATIONS)
@given(arrays(np.int64, (ARMS, STARS, BINS), elements=st.integers(0, 9)), PRESENT, WEIGHTS)
def test_a_combination_is_a_pmf_or_missing(method, weights, present, prior):
    weights = weights + (weights.sum(axis=-1, keepdims=True) == 0)
    found = combine_arms(normalised(weights), present, method=method, prior=normalised(prior)[0])
    observed = present.any(axis=0)
    np.testing.assert_allclose(found[observed].sum(axis=-1), 1, rtol=1e-12)
    assert np.all(found[observed] >= 0)
    assert np.all(np.isnan(found[~observed]))


@pytest.mark.parametrize("method", COMBINATIONS)
@given(WEIGHTS, WEIGHTS)
def test_one_arm_is_what_it_was(method, weights, prior):
    pmf = normalised(weights)
    alone = combine_arms(pmf[None], np.ones((1, STARS), bool), method=method, prior=normalised(prior)[0])
    np.testing.assert_allclose(alone, pmf, rtol=1e-12)


@given(WEIGHTS, Q)
def test_quantiles_invert_the_cumulative_distribution(weights, q):
    pmf, q = normalised(weights), np.sort(q)
    found = pmf_quantile(pmf, EDGES, q)
    assert np.all(np.diff(found, axis=-1) >= 0)
    for row, cdf in zip(found, cumulative(pmf), strict=True):
        np.testing.assert_allclose(np.interp(row, EDGES, cdf), q, rtol=0, atol=1e-9)


@given(WEIGHTS)
def test_a_summary_lies_within_the_bins_that_are_not_empty(weights):
    summary = pmf_summary(normalised(weights), EDGES)
    low = EDGES[:-1][np.argmax(weights > 0, axis=-1)]
    high = EDGES[::-1][np.argmax(weights[:, ::-1] > 0, axis=-1)]
    for name in ("p16", "median", "p84", "mean", "mode"):
        assert np.all((summary[name] >= low - 1e-9) & (summary[name] <= high + 1e-9)), name
    assert np.all((summary["p16"] <= summary["median"]) & (summary["median"] <= summary["p84"]))
    assert np.all(summary["std"] <= (high - low) / 2 + 1e-9)  # Popoviciu
    assert np.all((summary["entropy"] >= -1e-12) & (summary["entropy"] <= np.log(BINS) + 1e-12))


@given(POSITIVE, POWER, POWER)
def test_powers_multiply(weights, first, second):
    pmf = normalised(weights)
    np.testing.assert_allclose(temper(temper(pmf, first), second), temper(pmf, first * second), rtol=1e-9)
