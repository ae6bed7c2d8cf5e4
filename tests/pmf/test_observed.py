"""PMFs convolved with label errors: against numerical integration, in the limits, and in what is built on them."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from remap.pmf import metrics
from remap.pmf.bootstrap import star_scatter
from remap.pmf.observed import cumulative_kernel, density_kernel

EDGES = np.array([0.0, 0.1, 0.5, 0.7, 2.0, 2.1, 4.0])
# Labels in bins, between and far beyond them; errors much smaller and much larger than bins and range.
LABELS, ERRORS = (
    a.ravel() for a in np.meshgrid([-3.0, 0.05, 0.7, 2.05, 3.9, 9.0], [1e-3, 0.03, 0.4, 7.0], indexing="ij")
)


def random_pmfs(rows):
    rng = np.random.default_rng(0)
    pmf = rng.dirichlet(np.full(len(EDGES) - 1, 0.7), rows)
    pmf[:, 2] = 0  # an empty bin
    return pmf / pmf.sum(axis=1, keepdims=True)


def convolved(pmf, function):
    """∫ p(t) function(t) dt, by quadrature of the smooth function over each bin."""
    widths = np.diff(EDGES)
    parts = [
        integrate.quad(function, low, high, epsabs=1e-14, limit=200)[0]
        for low, high in itertools.pairwise(EDGES)
    ]
    return np.sum(pmf / widths * parts)


@pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")  # of steps that are 1e-3 wide
def test_density_and_distribution_equal_numerical_integration():
    pmfs = random_pmfs(len(LABELS))
    density = np.exp(-metrics.nll(pmfs, EDGES, LABELS, ERRORS))
    transform = metrics.pit(pmfs, EDGES, LABELS, ERRORS)
    for i, (pmf, label, error) in enumerate(zip(pmfs, LABELS, ERRORS, strict=True)):
        if error > 0.01:  # quadrature misses narrower peaks
            expected = convolved(pmf, lambda t, x=label, s=error: stats.norm.pdf(x, t, s))
            assert density[i] == pytest.approx(expected, rel=1e-8, abs=1e-13), (label, error)
            expected = convolved(pmf, lambda t, x=label, s=error: stats.norm.cdf(x, t, s))
            assert transform[i] == pytest.approx(expected, rel=1e-8, abs=1e-12), (label, error)


def test_small_errors_give_the_density_and_distribution_of_the_pmf():
    pmfs = random_pmfs(4)
    label = np.array([0.05, 0.3, 1.3, 3.0])  # far from edges in units of the error
    exact = metrics.pit(pmfs, EDGES, label)
    for error in (0.0, 1e-9, 1e-3):
        errors = np.full(4, error)
        np.testing.assert_allclose(metrics.pit(pmfs, EDGES, label, errors), exact, atol=1e-12)
        np.testing.assert_allclose(
            metrics.nll(pmfs, EDGES, label, errors), metrics.nll(pmfs, EDGES, label), rtol=1e-10
        )


def test_kernels_integrate_to_one_and_the_distribution_to_the_density():
    x = np.linspace(-20, 24, 40_001)
    error = np.full(x.shape, 0.8)
    density = np.exp(density_kernel(EDGES, x, error))
    cumulative = cumulative_kernel(EDGES, x, error)
    np.testing.assert_allclose(integrate.trapezoid(density, x, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(np.gradient(cumulative, x, axis=0)[1:-1], density[1:-1], atol=1e-5)
    assert np.all(np.diff(cumulative, axis=0) >= -1e-14)
    np.testing.assert_allclose(cumulative[[0, -1]], [[0] * 6, [1] * 6], atol=1e-12)


def test_a_label_far_away_has_a_finite_likelihood_that_falls_like_a_gaussian():
    pmf = np.eye(6)[[0, 0]]
    far, further = metrics.nll(pmf, EDGES, np.array([100.0, 200.0]), np.array([1.0, 1.0]))
    assert further - far == pytest.approx((199.9**2 - 99.9**2) / 2, rel=1e-3)


def test_unknown_labels_errors_and_pmfs_are_nan_and_bad_errors_refused():
    pmf = random_pmfs(4)
    pmf[0] = np.nan
    label, errors = np.array([1.0, np.nan, 1.0, 1.0]), np.array([0.1, 0.1, np.nan, 0.1])
    for found in (metrics.nll(pmf, EDGES, label, errors), metrics.pit(pmf, EDGES, label, errors)):
        np.testing.assert_array_equal(np.isfinite(found), [False, False, False, True])
    assert metrics.coverage(pmf, EDGES, label, [1.0], errors) == [1.0]
    with pytest.raises(ValueError, match="must not be negative"):
        metrics.pit(pmf, EDGES, label, -np.ones(4))
    with pytest.raises(ValueError, match="an error for each label"):
        metrics.nll(pmf, EDGES, label, np.ones(3))


@pytest.mark.parametrize("error", [0.2, 1.0, 3.0])
def test_coverage_with_errors_is_that_of_the_star(error):
    """Stars drawn from their PMFs: labels lie in the wide intervals as often as stars in the narrow ones."""
    rng = np.random.default_rng(1)
    edges, stars = np.linspace(-10, 10, 81), 10_000
    pmf = np.diff(stats.norm.cdf(edges, rng.uniform(-3, 3, stars)[:, None], 1.0), axis=1)
    pmf /= pmf.sum(axis=1, keepdims=True)
    k = (np.cumsum(pmf, axis=1) < rng.random(stars)[:, None]).sum(axis=1)
    star = edges[k] + 0.25 * rng.random(stars)
    label = star + error * rng.standard_normal(stars)
    found = metrics.coverage(pmf, edges, label, [0.68, 0.95], np.full(stars, error))
    np.testing.assert_allclose(found, [0.68, 0.95], atol=0.014)  # 3 and 6.4 standard errors
    own = metrics.coverage(pmf, edges, star, [0.68, 0.95])
    np.testing.assert_allclose(found, own, atol=0.015)
    if error >= 1:  # what the labels' errors do if they are not accounted for
        assert metrics.coverage(pmf, edges, label, [0.68])[0] < 0.55


def test_scatter_of_the_star_is_without_the_labels_errors():
    rng = np.random.default_rng(2)
    errors = np.where(rng.random(4000) < 0.8, 0.5, 0.8)
    residuals = 0.3 + rng.normal(0, 1.2, 4000) + errors * rng.standard_normal(4000)
    given = {"stars": np.arange(4000), "resamples": 300, "level": 0.95, "seed": 0}
    found = star_scatter(residuals, errors, **given)
    assert found.value == pytest.approx(1.2, rel=0.05)
    assert found.low < 1.2 < found.high
    # The standard error of the robust scatter is 1.166 σ / √n for a Gaussian, and σ / 1.2 times as much without
    # errors.
    assert found.half_width == pytest.approx(1.96 * 1.166 * 1.33**2 / 1.2 / np.sqrt(4000), rel=0.2)
    assert star_scatter(residuals, 0 * errors, **given).value == pytest.approx(1.32, rel=0.05)
    nothing = star_scatter(0.5 * residuals / 1.32, np.full(4000, 0.6), **given)
    assert nothing == (0.0, 0.0, 0.0)


def test_scatter_of_the_star_resamples_stars_and_leaves_out_what_is_absent():
    given = {"resamples": 200, "level": 0.9, "seed": 0}
    residuals, errors = np.array([1.0, -1.0, 2.0, np.nan, 9.0]), np.array([0.1, 0.1, 0.1, 0.1, np.nan])
    found = star_scatter(residuals, errors, stars=list("abcde"), **given)
    assert found.value == pytest.approx(np.sqrt(1.4826**2 - 0.01))  # of 1, -1 and 2
    one = star_scatter(residuals, errors, stars=["a"] * 5, **given)
    assert one == (found.value, found.value, found.value)  # one star has no scatter between stars
    assert np.isnan(star_scatter([np.nan], [1.0], stars=["a"], **given)).all()
    with pytest.raises(ValueError, match="must not be negative"):
        star_scatter([1.0], [-1.0], stars=["a"], **given)
    with pytest.raises(ValueError, match=r"stars \[S\]"):
        star_scatter([1.0], [1.0], stars=["a", "b"], **given)
