"""Bins, soft labels against SciPy in float64, class indices, and the checks of labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from remap.labels import (
    LabelBins,
    bin_index,
    bin_mask,
    check_labels,
    in_range,
    known_labels,
    label_bins,
    padded_edges,
    soft_label,
    soft_labels,
)

TEFF = LabelBins("teff", 3000.0, 7000.0, 50, "K")
LOGG = LabelBins("logg", 1.0, 5.5, 30, "dex")
FEH = LabelBins("feh", -2.0, 1.0, 60, "dex")
BINS = (TEFF, LOGG, FEH)
EDGES = jnp.asarray(padded_edges(BINS), jnp.float32)

jit_soft_label = jax.jit(soft_label)
jit_soft_labels = jax.jit(soft_labels)
jit_bin_index = jax.jit(bin_index)


def reference_soft_label(mean, sigma, edges):
    """Eq. 4 in float64, every tail by the survival function of its own side."""
    mean, sigma, edges = (np.asarray(v, np.float64) for v in (mean, sigma, edges))
    z = (edges - mean[..., None]) / sigma[..., None]
    left, right = z[..., :-1], z[..., 1:]
    mass = np.where(left > 0, norm.sf(left) - norm.sf(right), norm.cdf(right) - norm.cdf(left))
    return mass / mass.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("bins", BINS, ids=lambda b: b.name)
def test_soft_label_equals_the_normal_distribution_into_the_tails(bins):
    step = (bins.high - bins.low) / bins.bins
    places = np.array([0.0, 0.02, 0.5, 0.503, 0.97, 1.0, -0.01, 1.01])
    widths = np.array([0.05, 0.25, 1.0, 2.0, 5.0, 60.0]) * step
    mean, sigma = (a.ravel() for a in np.meshgrid(bins.low + places * (bins.high - bins.low), widths))
    # Beyond 8 sigma outside the range nothing is left of the label: that is an error elsewhere.
    near = np.maximum(bins.low - mean, mean - bins.high) / sigma < 8
    mean, sigma = (
        jnp.asarray(np.where(near, a, b), jnp.float32) for a, b in ((mean, bins.low), (sigma, step))
    )
    edges = jnp.asarray(bins.edges, jnp.float32)
    y = np.asarray(jit_soft_label(mean, sigma, edges))
    expected = reference_soft_label(mean, sigma, edges)
    # Rounding z by float32's 6e-8 changes exp(-z²/2) by z²·6e-8, 1e-5 at the 13 sigma where float32 ends;
    # the sixty-bin Gaussian loses digits in the difference of two nearly equal Φ. Below 1e-30: denormals.
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=1e-30)
    np.testing.assert_allclose(y.sum(axis=-1), 1.0, atol=1e-6)
    deep = (expected > 1e-28) & (expected < 1e-12)
    above = np.asarray(edges)[:-1] > np.asarray(mean)[:, None]
    assert (deep & above).any(), "the upper tail was not tested"
    assert (deep & ~above).any(), "the lower tail was not tested"


def test_soft_label_is_symmetric_and_follows_a_shift_by_whole_bins():
    edges = jnp.arange(9, dtype=jnp.float32)
    y = np.asarray(jit_soft_label(jnp.array([4.0, 3.0, 5.0]), jnp.full(3, 0.5), edges))
    np.testing.assert_array_equal(y[0], y[0][::-1])  # same operations on mirrored numbers
    np.testing.assert_array_equal(y[1], y[2][::-1])
    np.testing.assert_allclose(y[1, 1:6], y[0, 2:7], rtol=1e-6)  # sums of different roundings


def test_soft_labels_put_the_label_axis_first_and_nothing_into_padding_or_unknown_labels():
    values = jnp.array([[5000.0, 4.5, -0.3], [jnp.nan, 2.0, 0.99], [6900.0, jnp.nan, jnp.inf]], jnp.float32)
    errors = jnp.array([[80.0, 0.15, 0.05], [80.0, 0.15, 0.05], [20.0, 0.1, 0.1]], jnp.float32)
    y = np.asarray(jit_soft_labels(values, errors, EDGES))
    assert y.shape == (3, 3, 60)
    known = np.isfinite(np.asarray(values)).T
    np.testing.assert_array_equal(np.asarray(known_labels(values)), known)
    for j, bins in enumerate(BINS):
        assert not y[j, :, bins.bins :].any()
        for i in range(3):
            if known[j, i]:
                expected = reference_soft_label(values[i, j], errors[i, j], EDGES[j, : bins.bins + 1])
                np.testing.assert_allclose(y[j, i, : bins.bins], expected, rtol=2e-4, atol=1e-30)  # as above
            else:
                assert not y[j, i].any()


def test_soft_label_of_an_unknown_label_has_no_gradient_and_no_nan():
    def first_bin(mean, sigma):
        return jit_soft_label(mean, sigma, EDGES[1])[..., 0].sum()

    grads = jax.grad(first_bin, argnums=(0, 1))(jnp.array([jnp.nan, 1.1]), jnp.array([0.1, 0.1]))
    for g in grads:
        assert g[0] == 0
        assert np.isfinite(g[1])
        assert g[1] != 0


def test_bin_index_counts_edges_to_the_bin_above_and_the_top_edge_to_the_last_bin():
    values = np.array(
        [
            [3000.0, 1.0, -2.0],
            [3079.9, 1.15, -1.96],
            [3080.0, 1.16, -1.94],
            [7000.0, 5.5, 1.0],
            [np.nan, np.inf, -np.inf],
        ]
    )
    index = np.asarray(jit_bin_index(jnp.asarray(values, jnp.float32), EDGES))
    assert index.tolist() == [[0, 0, 1, 49, -1], [0, 1, 1, 29, -1], [0, 0, 1, 59, -1]]


def test_bin_index_equals_digitize():
    unit = np.random.default_rng(0).uniform(size=(5, 3))
    values = np.array([b.low for b in BINS]) + unit * np.array([b.high - b.low for b in BINS])
    index = np.asarray(jit_bin_index(jnp.asarray(values, jnp.float32), EDGES))
    for j, b in enumerate(BINS):
        assert index[j].tolist() == (np.digitize(values[:, j], b.edges) - 1).tolist()


def test_padded_edges_repeat_the_last_edge_and_the_mask_is_false_there():
    edges, mask = padded_edges(BINS), bin_mask(BINS)
    assert edges.shape == (3, 61)
    assert edges.dtype == np.float64
    for j, b in enumerate(BINS):
        np.testing.assert_array_equal(edges[j, : b.bins + 1], b.edges)
        assert (edges[j, b.bins :] == b.high).all()
        assert mask[j].tolist() == [True] * b.bins + [False] * (60 - b.bins)
    np.testing.assert_allclose(np.diff(TEFF.edges), 80.0, rtol=1e-12)  # linspace rounds


def test_label_bins_follow_the_asked_order_and_name_what_is_missing():
    settings = {b.name: {k: v for k, v in dataclasses.asdict(b).items() if k != "name"} for b in BINS}
    assert label_bins(("feh", "teff"), settings) == (FEH, TEFF)
    with pytest.raises(ValueError, match=r"labels \['vsini'\] have no settings; known are \['feh', 'logg'"):
        label_bins(("teff", "vsini"), settings)


@pytest.mark.parametrize(
    ("low", "high", "bins", "message"),
    [
        (5.0, 5.0, 10, "label x: expected low < high, found 5.0 and 5.0"),
        (np.nan, 5.0, 10, "expected low < high, found nan"),
        (0.0, np.inf, 10, "found 0.0 and inf"),
        (0.0, 1.0, 1, "label x: expected at least 2 bins, found 1"),
    ],
)
def test_impossible_bins_are_refused(low, high, bins, message):
    with pytest.raises(ValueError, match=message):
        LabelBins("x", low, high, bins, "K")


def test_in_range_judges_known_labels_only_and_wants_at_least_one():
    values = np.array(
        [
            [5000.0, 4.5, 0.0],
            [3000.0, 5.5, 1.0],  # both ends belong to the range
            [np.nan, 4.5, np.nan],
            [np.nan, 5.6, np.nan],
            [7000.1, 4.5, 0.0],
            [np.nan, np.nan, np.nan],
        ]
    )
    assert in_range(values, BINS).tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (7100.0, 80.0, "b: teff must lie within 3000 to 7000 K, found 7100"),
        (5000.0, 0.0, "b: the error of teff must be positive, found 0"),
        (5000.0, np.nan, "b: the error of teff must be positive, found nan"),
        (5000.0, np.inf, "b: the error of teff must be positive, found inf"),
    ],
)
def test_check_labels_names_star_label_and_value(value, error, message):
    values = np.array([[5000.0, 4.5, 0.0], [value, np.nan, np.nan]])
    errors = np.array([[80.0, 0.15, 0.05], [error, np.nan, np.nan]])
    with pytest.raises(ValueError, match=message):
        check_labels(values, errors, BINS, ["a", "b"])
    values[1, 0], errors[1, 0] = np.nan, -1.0  # an unknown label needs no error
    check_labels(values, errors, BINS, ["a", "b"])
