"""PMF statistics against SciPy, brute-force integration and samples; flags."""

import itertools

import numpy as np
import pytest
from scipy import integrate, interpolate, signal, stats

from remap.pmf import distributions, metrics
from remap.predict.catalogue import Flag, describe

EDGES = np.linspace(3000.0, 7000.0, 51)
UNEVEN = np.array([0.0, 0.1, 0.5, 0.7, 2.0, 2.1, 4.0])


def random_pmfs(rows, bins, seed=0, empty=0.3):
    rng = np.random.default_rng(seed)
    pmf = rng.dirichlet(np.full(bins, 0.5), rows)
    pmf[rng.random(pmf.shape) < empty] = 0
    pmf[:, bins // 2] += 1e-3  # no row is empty
    return pmf / pmf.sum(axis=1, keepdims=True)


def one_hot(bins, at):
    return np.eye(bins)[np.atleast_1d(at)]


def histogram(pmf, edges):
    """SciPy's own distribution with the same density."""
    return stats.rv_histogram((pmf / np.diff(edges), edges), density=True)


def test_quantiles_equal_scipys_histogram_distribution():
    pmfs = random_pmfs(20, 6, empty=0)
    q = np.array([0.01, 0.16, 0.5, 0.84, 0.99])
    expected = np.stack([histogram(pmf, UNEVEN).ppf(q) for pmf in pmfs])
    np.testing.assert_allclose(distributions.pmf_quantile(pmfs, UNEVEN, q), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        distributions.pmf_quantile(pmfs, UNEVEN, 0.5), expected[:, 2], rtol=1e-10, atol=1e-10
    )


def test_quantiles_equal_those_of_samples():
    pmf, rng = random_pmfs(1, 50)[0], np.random.default_rng(1)
    bins = rng.choice(50, 400_000, p=pmf)
    samples = EDGES[bins] + 80 * rng.random(bins.size)
    q = [0.1, 0.3, 0.5, 0.9]
    found = distributions.pmf_quantile(pmf, EDGES, q)
    # standard error of a sample quantile: sqrt(q (1 - q) / n) / density, here up to 5 K
    density = histogram(pmf, EDGES).pdf(found)
    error = np.sqrt(np.multiply(q, np.subtract(1, q)) / samples.size) / density
    assert np.all(np.abs(found - np.quantile(samples, q)) < 5 * error)


@pytest.mark.parametrize("k", [0, 17, 49])
def test_quantiles_of_one_hot_are_exact(k):
    found = distributions.pmf_quantile(one_hot(50, k), EDGES, [0, 0.25, 0.5, 1])[0]
    np.testing.assert_array_equal(found, EDGES[k] + 80 * np.array([0, 0.25, 0.5, 1]))


def test_quantiles_skip_empty_bins():
    pmf = np.array([0, 0.5, 0, 0, 0.5, 0])
    found = distributions.pmf_quantile(pmf, np.arange(7.0), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(found, [1, 1.5, 2, 4.5, 5])  # at 0.5 the lowest value that reaches it


def test_quantiles_shapes_and_missing_rows():
    pmf = one_hot(50, [3, 4, 5])
    pmf[1, 7] = np.nan
    found = distributions.pmf_quantile(pmf.reshape(3, 1, 50), EDGES, [0.2, 0.8])
    assert found.shape == (3, 1, 2)
    np.testing.assert_array_equal(np.isnan(found[:, 0, 0]), [False, True, False])


@pytest.mark.parametrize(
    ("pmf", "edges", "q", "message"),
    [
        (np.full((2, 4), 0.5), np.arange(5.0), 0.5, "found sum 2"),
        (np.array([[1.5, -0.5]]), np.arange(3.0), 0.5, "least value -0.5"),
        (np.array([[0.0, 0.0]]), np.arange(3.0), 0.5, "found sum 0"),
        (np.array([[0.5, 0.5]]), np.arange(4.0), 0.5, "expected 3 edges"),
        (np.array([[0.5, 0.5]]), np.array([0.0, 1.0, 1.0]), 0.5, "increase strictly"),
        (np.array([[0.5, 0.5]]), np.arange(3.0), 1.5, "probabilities in"),
        (np.array([[0.5, 0.5]]), np.arange(3.0), np.nan, "probabilities in"),
    ],
)
def test_what_is_no_pmf_is_refused(pmf, edges, q, message):
    with pytest.raises(ValueError, match=message):
        distributions.pmf_quantile(pmf, edges, q)


def test_summary_equals_scipys_histogram_distribution():
    pmfs = random_pmfs(10, 6)
    found = distributions.pmf_summary(pmfs, UNEVEN)
    for row, pmf in enumerate(pmfs):
        reference = histogram(pmf, UNEVEN)
        density = pmf / np.diff(UNEVEN)
        k = np.argmax(density)
        expected = {
            "median": reference.median(),
            "mean": reference.mean(),
            "std": reference.std(),
            "mode": (UNEVEN[k] + UNEVEN[k + 1]) / 2,
            "entropy": stats.entropy(pmf),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, rel=1e-7), name
        assert reference.cdf(found["p16"][row]) == pytest.approx(0.16, abs=1e-12)
        assert reference.cdf(found["p84"][row]) == pytest.approx(0.84, abs=1e-12)


def test_summary_of_a_fine_normal_distribution():
    cdf = stats.norm.cdf(EDGES, 5000, 200)
    found = distributions.pmf_summary(np.diff(cdf)[None], EDGES)
    assert found["mean"][0] == pytest.approx(5000, abs=0.1)
    assert found["std"][0] == pytest.approx(
        np.hypot(200, 80 / np.sqrt(12) * np.sqrt(2)), rel=1e-3
    )  # Sheppard
    assert found["median"][0] == pytest.approx(5000, abs=1)


def test_summary_of_missing_rows_is_nan_throughout():
    found = distributions.pmf_summary(np.array([[np.nan] * 6, [np.inf] + [0] * 5]), UNEVEN)
    assert all(np.isnan(v).all() for v in found.values())


def test_conflation_is_the_normalised_product():
    arms = np.stack([random_pmfs(8, 30, seed, empty=0) for seed in (1, 2, 3)])
    arms = (arms + 1e-3) / (arms + 1e-3).sum(-1, keepdims=True)  # above the floor
    found = distributions.conflate(arms, np.ones((3, 8), bool))
    product = np.prod(arms, axis=0)
    np.testing.assert_allclose(found, product / product.sum(1, keepdims=True), rtol=1e-10)


def test_conflation_of_normals_is_their_weighted_mean():
    edges = np.linspace(-10, 10, 2001)
    arms = np.stack([np.diff(stats.norm.cdf(edges, *p))[None] for p in ((-1, 1.0), (2, 0.5))])
    found = distributions.pmf_summary(distributions.conflate(arms, np.ones((2, 1), bool)), edges)
    assert found["mean"][0] == pytest.approx((-1 / 1 + 2 / 0.25) / (1 / 1 + 1 / 0.25), abs=1e-4)
    assert found["std"][0] == pytest.approx((1 / 1 + 1 / 0.25) ** -0.5, rel=1e-3)


def test_conflation_ignores_absent_arms():
    arms = np.stack([random_pmfs(4, 10, seed) for seed in (1, 2)])
    arms[1, :2] = np.nan
    arms[0, 3] = -7
    present = np.array([[True, True, False, False], [False, False, True, False]])
    found = distributions.conflate(arms, present)
    np.testing.assert_allclose(found[:2], arms[0, :2], rtol=1e-12)  # zeros stay zeros: no floor for one arm
    np.testing.assert_allclose(found[2], arms[1, 2], rtol=1e-12)
    assert np.isnan(found[3]).all()


def test_conflation_of_a_missing_pmf_of_a_present_arm_is_missing():
    arms = np.stack([one_hot(5, [1, 2]), one_hot(5, [1, 2])])
    arms[0, 0] = np.nan
    found = distributions.conflate(arms, np.ones((2, 2), bool))
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [True, False])


def test_conflation_of_disjoint_arms_is_shared():
    found = distributions.conflate(np.stack([one_hot(50, 10), one_hot(50, 40)]), np.ones((2, 1), bool))
    assert found[0, [10, 40]] == pytest.approx([0.5, 0.5])
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)


def test_a_zero_in_one_arm_is_no_veto():
    arms = np.array([[[1 - 1e-9, 1e-9]], [[1 - 1e-9, 1e-9]], [[0.0, 1.0]]])
    found = distributions.conflate(arms, np.ones((3, 1), bool))
    assert found[0, 1] == pytest.approx(1e-18 / distributions.PMF_FLOOR, rel=1e-5)
    strict = distributions.conflate(arms, np.ones((3, 1), bool), floor=1e-30)
    assert strict[0, 0] == pytest.approx(1e-30 / 1e-18, rel=1e-5)


def test_conflation_of_many_confident_arms_does_not_underflow():
    arms = np.repeat(one_hot(50, 10)[None], 100, axis=0)
    np.testing.assert_allclose(
        distributions.conflate(arms, np.ones((100, 1), bool)), one_hot(50, 10), atol=1e-12
    )


def test_a_prior_is_counted_once():
    edges = np.linspace(-10, 10, 2001)
    centre = (edges[1:] + edges[:-1]) / 2
    prior, *likelihoods = (stats.norm.pdf(centre, *p) for p in ((1, 2.0), (-1, 1.0), (2, 0.5), (0, 0.8)))
    arms = np.stack([(prior * like / np.sum(prior * like))[None] for like in likelihoods])
    expected = prior * np.prod(likelihoods, axis=0)
    given = {"prior": prior / prior.sum()}
    found = distributions.combine_arms(arms, np.ones((3, 1), bool), method="prior_corrected", **given)
    # Beyond 5 standard deviations the floor of 1e-12 acts, on bins that hold nothing.
    np.testing.assert_allclose(found[0], expected / expected.sum(), atol=1e-9)
    alone = np.array([[True], [False], [False]])
    np.testing.assert_allclose(
        distributions.combine_arms(arms, alone, method="prior_corrected", **given)[0], arms[0, 0], rtol=1e-12
    )
    flat = {"prior": np.full(2000, 1 / 2000)}
    np.testing.assert_allclose(
        distributions.combine_arms(arms, np.ones((3, 1), bool), method="prior_corrected", **flat),
        distributions.combine_arms(arms, np.ones((3, 1), bool), method="conflation"),
        rtol=1e-12,
    )


def test_the_mean_of_the_arms_leaves_absent_ones_out():
    arms = np.stack([random_pmfs(3, 10, seed) for seed in (1, 2)])
    arms[1, 0] = np.nan
    present = np.array([[True, True, False], [False, True, False]])
    found = distributions.combine_arms(arms, present, method="mean")
    np.testing.assert_allclose(found[0], arms[0, 0], rtol=1e-12)
    np.testing.assert_allclose(found[1], (arms[0, 1] + arms[1, 1]) / 2, rtol=1e-12)
    assert np.isnan(found[2]).all()


def test_combinations_are_known_by_name():
    arms, present = np.full((2, 1, 4), 0.25), np.ones((2, 1), bool)
    with pytest.raises(ValueError, match=r"'conflation', 'prior_corrected', 'mean'.*found 'product'"):
        distributions.combine_arms(arms, present, method="product")
    with pytest.raises(ValueError, match="needs the prior"):
        distributions.combine_arms(arms, present, method="prior_corrected")


def test_conflation_refuses_shapes_that_do_not_agree():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(3, 2\)"):
        distributions.conflate(np.full((2, 3, 4), 0.25), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="floor"):
        distributions.conflate(np.full((2, 3, 4), 0.25), np.ones((2, 3), bool), floor=0)


def test_arm_disagreement_counts_standard_deviations():
    edges = np.linspace(-20, 20, 4001)
    arms = np.stack([np.diff(stats.norm.cdf(edges, *p))[None] for p in ((0, 1.0), (5, 2.0), (1, 1.0))])
    found = distributions.arm_disagreement(arms, edges, np.ones((3, 1), bool))
    # h is the half-width at 0.16 and 0.84: 0.9945 standard deviations; the first pair is the worst
    assert found[0] == pytest.approx(5 / np.hypot(1, 2) / stats.norm.ppf(0.84), rel=1e-4)
    pair = distributions.arm_disagreement(arms, edges, np.array([[True], [False], [True]]))
    assert pair[0] == pytest.approx(1 / np.sqrt(2) / stats.norm.ppf(0.84), rel=1e-4)
    assert np.isnan(distributions.arm_disagreement(arms, edges, np.array([[True], [False], [False]]))[0])


def test_is_near():
    edges = np.arange(0.0, 101.0)
    place = np.arange(0.5, 100.0)
    pmf = np.exp(-0.5 * ((place - np.array([[50.0], [63.0], [69.0], [80.0], [28.0]])) / 3.0) ** 2)
    pmf = np.concatenate([pmf / pmf.sum(axis=1, keepdims=True), np.full((1, 100), np.nan)])
    near = distributions.is_near(pmf, edges, (30.0, 70.0), widths=2.0)
    assert near.tolist() == [False, False, True, True, True, False]
    assert distributions.is_near(pmf, edges, (30.0, 70.0), widths=3.0).tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    with pytest.raises(ValueError, match="low < high"):
        distributions.is_near(pmf, edges, (70.0, 30.0), widths=2.0)


def test_is_edge():
    pmf = np.array([[0.5, 0.5, 0, 0], [0, 0.3, 0.3, 0.4], [0.3, 0, 0.4, 0.3], [np.nan] * 4])
    np.testing.assert_array_equal(distributions.is_edge(pmf, bins=1, mass=0.5), [True, False, False, False])
    np.testing.assert_array_equal(distributions.is_edge(pmf, bins=2, mass=0.65), [True, True, True, False])
    with pytest.raises(ValueError, match="1 to 4 bins"):
        distributions.is_edge(pmf, bins=5, mass=0.5)


@pytest.mark.parametrize("prominence", [0.05, 0.2, 0.6, 1.0])
def test_modes_equal_scipys_prominent_peaks(prominence):
    pmfs = np.concatenate(
        [
            random_pmfs(200, 30, 4),
            random_pmfs(200, 6, 5, empty=0)[:, :, None].repeat(5, 2).reshape(200, -1) / 5,
        ]
    )
    expected = []
    for pmf in pmfs:
        padded = np.concatenate([[0], pmf, [0]])
        expected.append(signal.find_peaks(padded, prominence=prominence * pmf.max())[0].size)
    np.testing.assert_array_equal(distributions.count_modes(pmfs, prominence=prominence), expected)


def test_modes_of_missing_and_one_hot_rows():
    pmf = np.stack([one_hot(5, 0)[0], one_hot(5, 4)[0], np.full(5, np.nan), np.full(5, 0.2)])
    np.testing.assert_array_equal(distributions.count_modes(pmf, prominence=0.5), [1, 1, 0, 1])


def test_residuals_equal_numpy_and_scipy():
    rng = np.random.default_rng(3)
    truth = rng.uniform(4000, 7000, 200)
    predicted = 1.5 + 0.9 * truth + rng.normal(0, 50, 200)
    with_gaps = (
        np.concatenate([predicted, [np.nan, 1.0, np.inf]]),
        np.concatenate([truth, [1.0, np.nan, 1.0]]),
    )
    found = metrics.residual_table(*with_gaps)
    residual = predicted - truth
    assert found["n"] == 200
    assert found["bias"] == pytest.approx(residual.mean())
    assert found["median"] == pytest.approx(np.median(residual))
    assert found["std"] == pytest.approx(residual.std(ddof=1))
    assert found["robust"] == pytest.approx(stats.median_abs_deviation(residual, scale="normal"), rel=1e-4)
    line = stats.linregress(truth, residual)
    assert (found["slope"], found["slope_error"]) == pytest.approx((line.slope, line.stderr))
    line = stats.linregress(truth, predicted)
    assert (found["prediction_slope"], found["slope_error"]) == pytest.approx((line.slope, line.stderr))


def test_residuals_of_few_stars():
    nothing = metrics.residual_table(np.array([np.nan]), np.array([1.0]))
    assert nothing["n"] == 0
    assert all(np.isnan(v) for k, v in nothing.items() if k != "n")
    one = metrics.residual_table(np.array([3.0]), np.array([1.0]))
    assert (one["n"], one["bias"], one["robust"]) == (1, 2.0, 0.0)
    assert np.isnan([one["std"], one["slope"]]).all()
    assert np.isnan(metrics.residual_table(np.array([3.0, 4.0]), np.array([1.0, 1.0]))["slope"])
    two = metrics.residual_table(np.array([2.0, 5.0]), np.array([1.0, 3.0]))
    assert (two["slope"], two["prediction_slope"]) == (0.5, 1.5)
    assert np.isnan(two["slope_error"])  # no star is left to tell
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        metrics.residual_table(np.zeros(2), np.zeros(3))


def test_exact_predictions_have_the_attainable_slope():
    rng = np.random.default_rng(5)
    exact, errors = rng.normal(4.4, 0.3, 20_000), rng.uniform(0.1, 0.2, 20_000)
    known = exact + errors * rng.standard_normal(exact.size)
    found = metrics.attainable_slope(known, errors)
    table = metrics.residual_table(exact, known)
    assert 0.75 < found < 0.85
    assert found == pytest.approx(table["prediction_slope"], abs=4 * table["slope_error"])
    gaps = np.append(known, [np.nan, 4.0]), np.append(errors, [0.1, np.nan])
    assert metrics.attainable_slope(*gaps) == pytest.approx(found)
    assert metrics.attainable_slope(known, 10 * errors) == 0  # errors larger than the spread
    assert np.isnan(metrics.attainable_slope(np.ones(3), np.ones(3)))


@pytest.mark.parametrize(
    ("scatter", "places"), [(75.0, 0), (9.9, 1), (0.12, 2), (0.083, 3), (1000.0, 0), (0.0, 2), (np.nan, 2)]
)
def test_decimals_show_two_digits(scatter, places):
    assert metrics.decimals(scatter) == places


def test_pit_equals_scipys_cdf():
    pmfs = random_pmfs(30, 6)
    truth = np.random.default_rng(2).uniform(-1, 5, 30)
    expected = [histogram(pmf, UNEVEN).cdf(t) for pmf, t in zip(pmfs, truth, strict=True)]
    np.testing.assert_allclose(metrics.pit(pmfs, UNEVEN, truth), expected, atol=1e-12)


def test_pit_is_uniform_and_coverage_right_for_calibrated_pmfs():
    pmfs, rng = random_pmfs(4000, 50), np.random.default_rng(5)
    bins = np.array([rng.choice(50, p=pmf) for pmf in pmfs])
    truth = EDGES[bins] + 80 * rng.random(4000)
    assert stats.kstest(metrics.pit(pmfs, EDGES, truth), "uniform").pvalue > 0.01
    found = metrics.coverage(pmfs, EDGES, truth, [0.5, 0.68, 0.95])
    np.testing.assert_allclose(found, [0.5, 0.68, 0.95], atol=0.03)  # 4 binomial standard errors


def test_distance_from_uniform_is_that_of_kolmogorov_and_smirnov():
    values = np.random.default_rng(8).beta(1.3, 0.9, 70)
    expected = stats.kstest(values, "uniform").statistic
    assert metrics.uniform_distance(np.append(values, np.nan)) == pytest.approx(expected, abs=1e-15)
    assert metrics.uniform_distance([0.5]) == 0.5
    assert metrics.uniform_distance(np.arange(0.005, 1, 0.01)) == pytest.approx(0.005)
    assert np.isnan(metrics.uniform_distance([np.nan]))


@pytest.mark.parametrize("count", [1, 7, 183])
def test_binomial_bands_equal_scipys(count):
    levels = np.linspace(0.05, 0.95, 19)
    found = metrics.binomial_band(levels, count, confidence=0.95)
    expected = stats.binom.interval(0.95, count, levels)
    np.testing.assert_allclose(np.multiply(found, count), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("p", "count", "confidence"), [([1.1], 5, 0.9), ([0.5], 0, 0.9), ([0.5], 5, 1.0), (0.5, 5, 0.9)]
)
def test_impossible_binomial_bands_are_refused(p, count, confidence):
    with pytest.raises(ValueError, match="expected probabilities"):
        metrics.binomial_band(p, count, confidence=confidence)


def test_coverage_equals_quantile_intervals():
    pmfs = random_pmfs(300, 6, empty=0)
    truth = np.random.default_rng(6).uniform(-0.5, 4.5, 300)
    truth[:5] = np.nan
    pmfs[5:8] = np.nan
    for level in (0.3, 0.68, 1.0):
        low, high = distributions.pmf_quantile(pmfs, UNEVEN, [(1 - level) / 2, (1 + level) / 2]).T
        expected = ((truth >= low) & (truth <= high))[8:].mean()
        assert metrics.coverage(pmfs, UNEVEN, truth, [level])[0] == pytest.approx(expected)


def test_coverage_includes_the_ends_and_needs_a_star():
    pmf = np.full((3, 10), 0.1)
    found = metrics.coverage(pmf, np.linspace(0, 1, 11), np.array([0.16, 0.84, 0.159]), [0.68])
    assert found[0] == pytest.approx(2 / 3)
    assert np.isnan(metrics.coverage(pmf, np.linspace(0, 1, 11), np.full(3, np.nan), [0.68, 0.9])).all()
    with pytest.raises(ValueError, match="levels"):
        metrics.coverage(pmf, np.linspace(0, 1, 11), np.zeros(3), [1.1])


def test_crps_equals_numerical_integration():
    pmfs = random_pmfs(12, 6)
    truth = np.array([-1.0, 0.0, 0.05, 0.5, 0.6, 1.0, 2.05, 3.0, 4.0, 5.0, 2.0, 0.7])
    found = metrics.crps(pmfs, UNEVEN, truth)
    for pmf, t, value in zip(pmfs, truth, found, strict=True):
        cdf = interpolate.interp1d(
            UNEVEN, np.append(0, np.cumsum(pmf)), bounds_error=False, fill_value=(0, 1)
        )
        points = np.unique(np.concatenate([UNEVEN, [t, -2, 6]]))
        pieces = [
            integrate.quad(lambda x, t=t, cdf=cdf: (cdf(x) - (x >= t)) ** 2, a, b)[0]
            for a, b in itertools.pairwise(points)
        ]
        assert value == pytest.approx(sum(pieces), rel=1e-6, abs=1e-9)


def test_crps_of_a_normal_distribution():
    edges = np.linspace(-8, 8, 3201)
    pmf = np.diff(stats.norm.cdf(edges))[None]
    y = 0.7  # Gneiting & Raftery 2007, eq. 21
    expected = y * (2 * stats.norm.cdf(y) - 1) + 2 * stats.norm.pdf(y) - 1 / np.sqrt(np.pi)
    assert metrics.crps(pmf, edges, np.array([y]))[0] == pytest.approx(expected, rel=1e-5)


def test_nll_is_that_of_the_density():
    pmfs = random_pmfs(7, 6, empty=0)
    truth = np.array([0.0, 0.1, 0.3, 1.9, 4.0, 2.05, 0.69])
    expected = [
        -np.log(histogram(pmf, UNEVEN).pdf(min(t, 3.999))) for pmf, t in zip(pmfs, truth, strict=True)
    ]
    np.testing.assert_allclose(metrics.nll(pmfs, UNEVEN, truth), expected, rtol=1e-10)


def test_nll_where_the_pmf_excludes_the_truth():
    found = metrics.nll(np.tile(one_hot(6, 1), (5, 1)), UNEVEN, np.array([0.2, 3.0, -0.1, 4.1, np.nan]))
    np.testing.assert_allclose(found, [np.log(0.4), np.inf, np.inf, np.inf, np.nan])


@pytest.mark.parametrize("function", [metrics.pit, metrics.crps, metrics.nll])
def test_scores_of_missing_rows_are_nan(function):
    pmf = np.stack([one_hot(6, 1)[0], np.full(6, np.nan), one_hot(6, 2)[0]])
    found = function(pmf, UNEVEN, np.array([0.2, 0.2, np.nan]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, True])
    with pytest.raises(ValueError, match=r"\[S, K\]"):
        function(pmf, UNEVEN, np.zeros(2))


def test_flags_are_distinct_bits_with_meanings():
    described = describe()
    assert [int(f) for f in Flag] == list(described) == [1 << i for i in range(len(described))]
    assert all(text.startswith(f"{Flag(bit).name}: ") for bit, text in described.items())
    # released numbers never change
    assert Flag.LOW_SNR == 1
    assert Flag.UNREADABLE == 256
    assert Flag.UNREADABLE | Flag.MISSING_ARM < 2**31
