"""Statistics of present values against NumPy's own, and paired intervals against what is known of the samples."""

import itertools

import numpy as np
import pytest

from remap.pmf import bootstrap, metrics


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's own functions warn of rows without values
def test_statistics_of_present_values_equal_numpys_own():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3, 9))
    values[rng.random(values.shape) < 0.4] = np.nan
    values[0, 0], values[0, 1, 1:], values[1, 2] = np.nan, np.nan, rng.normal(size=9)
    values[0, 1, 0] = 2.5
    centre = np.nanmedian(values, axis=-1, keepdims=True)
    expected = {
        bootstrap.nan_mean: np.nanmean(values, axis=-1),
        bootstrap.nan_std: np.nanstd(values, axis=-1, ddof=1),
        bootstrap.nan_robust: 1.4826 * np.nanmedian(np.abs(values - centre), axis=-1),
    }
    for statistic, reference in expected.items():
        np.testing.assert_allclose(statistic(values), reference, rtol=1e-12)
        assert np.isnan(statistic(values)[0, 0])
    table = metrics.residual_table(values[1, 2], np.zeros(9))
    found = [statistic(values[1, 2]) for statistic in expected]
    np.testing.assert_allclose(found, [table["bias"], table["std"], table["robust"]], rtol=1e-12)


def interval(first, second, statistic=bootstrap.nan_mean, **changes):
    settings = {"compare": "ratio", "resamples": 40_000, "level": 0.95, "resample_runs": True, "seed": 0}
    settings |= {"stars": list("abcdefgh"[: np.shape(first)[1]])} | changes
    return bootstrap.paired_interval(np.array(first), np.array(second), statistic, **settings)


@pytest.mark.parametrize("compare", ["ratio", "difference"])
@pytest.mark.parametrize("runs", [True, False])
def test_bootstrap_interval_equals_that_of_all_resamples(compare, runs):
    """Two runs of three stars: every resample there is, by hand, each as likely as any other."""
    first, second = [[2.0, 4.0, 9.0], [3.0, 5.0, 7.0]], [[1.0, 2.0, 2.5], [1.0, 3.0, 6.0]]
    every = []
    for a, b, c in itertools.product(range(3), repeat=3):
        for run in itertools.product(range(2), repeat=2) if runs else [(0, 1)]:
            one, two = (sum(sum(x[r][s] for s in (a, b, c)) / 3 for r in run) / 2 for x in (first, second))
            every.append(one / two if compare == "ratio" else one - two)
    found = interval(first, second, compare=compare, level=0.8, resample_runs=runs)
    assert found.value == pytest.approx(5 / (15.5 / 6) if compare == "ratio" else 5 - 15.5 / 6)
    # 40,000 draws know a probability to 0.002; there the sorted values of all resamples must lie.
    for limit, probability in ((found.low, 0.1), (found.high, 0.9)):
        low, high = np.quantile(every, [probability - 0.01, probability + 0.01], method="inverted_cdf")
        assert low - 1e-12 <= limit <= high + 1e-12
    assert found.half_width == pytest.approx((found.high - found.low) / 2)


def test_bootstrap_is_paired_and_repeats():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 8)) * 10
    same = interval(values, 1.1 * values, bootstrap.nan_std)
    np.testing.assert_allclose(same, 1 / 1.1)  # no width at all: what is drawn for one is drawn for both
    assert same.excludes(1.0)
    other = rng.permuted(values, axis=1)
    assert interval(values, other, bootstrap.nan_std) == interval(values, other, bootstrap.nan_std)
    assert interval(values, other, bootstrap.nan_std, resample_runs=False).low > 0


def test_all_spectra_of_a_star_are_drawn_together_and_gaps_are_left_out_of_both():
    first, second = [[1.0, 5.0, 2.0, np.nan]], [[1.0, 1.0, 1.0, 3.0]]
    found = interval(first, second, stars=["a", "b", "a", "c"], level=1.0)
    assert found.value == pytest.approx(8 / 3)
    # Stars c alone have no pair in common: such a resample (1 of 27) could have given anything.
    assert (found.low, found.high) == (-np.inf, np.inf)
    assert not found.excludes(1.0)
    # The others: a alone 3/2 at the least, b alone 5 at the most.
    assert interval(first, second, stars=["a", "b", "a", "c"], level=0.9).low == 1.5
    assert interval(first, second, stars=["a", "b", "a", "c"], level=0.9).high == 5.0


def test_bootstrap_without_stars_or_of_other_shapes():
    assert np.isnan(interval(np.zeros((2, 0)), np.zeros((2, 0)))).all()
    assert not interval(np.zeros((2, 0)), np.zeros((2, 0))).excludes(1.0)
    with pytest.raises(ValueError, match=r"two arrays \[R, S\] and S stars, found \(1, 2\), \(2, 2\)"):
        interval([[1.0, 2.0]], [[1.0, 2.0]] * 2)
    with pytest.raises(ValueError, match="'ratio' or 'difference', found 'quotient'"):
        interval([[1.0]], [[1.0]], compare="quotient")


def test_an_interval_over_stars_is_that_of_a_loop():
    """Spectra of one star come together, and values that are absent are passed over."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, 9))
    values[:, 4] = np.nan
    stars = np.array(list("abacdbeff"))
    found = bootstrap.star_interval(
        values, lambda v: bootstrap.nan_mean(v[0] * v[1]), stars=stars, resamples=40, level=0.5, seed=7
    )
    names = sorted(set(stars))
    means = []
    for drawn in np.random.default_rng(7).integers(len(names), size=(40, len(names))):
        rows = np.concatenate([np.flatnonzero(stars == names[i]) for i in drawn])
        means.append(np.nanmean(values[0, rows] * values[1, rows]))
    assert found.value == pytest.approx(np.nanmean(values[0] * values[1]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.25, 0.75))))
    nothing = bootstrap.star_interval(
        np.zeros((1, 0)), lambda v: v[0].mean(), stars=[], resamples=3, level=0.5, seed=0
    )
    assert np.isnan(nothing).all()
