"""Normal distributions as PMFs, and the pool of two opinions."""

import numpy as np
import pytest
from scipy import stats

from remap.pmf import normal_pmf, pmf_summary, pool


def test_normal_pmf_is_the_integral_over_each_bin():
    edges = np.array([-3.0, -1.0, 0.0, 0.5, 4.0])
    mean, deviation = np.array([0.2, -2.9, 3.0]), np.array([0.7, 2.0, 0.1])
    found = normal_pmf(mean, deviation, edges)
    for row, m, s in zip(found, mean, deviation, strict=True):
        mass = np.diff(stats.norm(m, s).cdf(edges))
        np.testing.assert_allclose(row, mass / mass.sum(), atol=1e-12)


def test_normal_pmf_far_beyond_the_bins_lies_at_the_nearer_end():
    found = normal_pmf(np.array([-1e4, 1e4, np.nan]), np.ones(3), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(found[:2], [[1.0, 0.0], [0.0, 1.0]])
    assert np.isnan(found[2]).all()


def test_pool_of_normals_is_a_normal():
    """Precisions add up, each times its power."""
    edges = np.linspace(-10, 10, 401)
    first, second = (normal_pmf(np.array([m]), np.array([s]), edges) for m, s in ((-0.5, 0.8), (1.0, 1.5)))
    v, w = 0.7, 0.4
    precision = v / 0.8**2 + w / 1.5**2
    mean = (v * -0.5 / 0.8**2 + w * 1.0 / 1.5**2) / precision
    summary = pmf_summary(pool(first, second, powers=(v, w)), edges)
    assert summary["mean"][0] == pytest.approx(mean, abs=2e-3)
    assert summary["std"][0] == pytest.approx(precision**-0.5, rel=2e-3)


def test_pool_leaves_the_one_whose_partner_has_no_power():
    first, second = np.array([[0.2, 0.5, 0.3]]), np.array([[0.9, 0.1, 0.0]])
    np.testing.assert_allclose(pool(first, second, powers=(1.0, 0.0)), first)
    np.testing.assert_allclose(pool(first, second, powers=(0.0, 1.0)), second, atol=1e-11)


def test_pool_of_what_is_missing_is_missing():
    first, second = np.array([[0.2, 0.8], [np.nan, np.nan]]), np.array([[np.nan, np.nan], [0.5, 0.5]])
    assert np.isnan(pool(first, second, powers=(1.0, 1.0))).all()


@pytest.mark.parametrize("powers", [(0.0, 0.0), (-1.0, 1.0), (np.nan, 1.0)])
def test_pool_needs_powers(powers):
    with pytest.raises(ValueError, match="powers"):
        pool([[0.5, 0.5]], [[0.5, 0.5]], powers=powers)
