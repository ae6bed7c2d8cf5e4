"""What holds of bins and soft labels whatever the labels: values, bins and back."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from remap.labels import LabelBins, bin_index, bin_mask, padded_edges, soft_labels

BINS = (
    LabelBins("teff", 3000.0, 7000.0, 50, "K"),
    LabelBins("logg", 1.0, 5.5, 30, "dex"),
    LabelBins("feh", -2.0, 1.0, 60, "dex"),
)
EDGES = jnp.asarray(padded_edges(BINS), jnp.float32)
STARS = 4
LOW, HIGH = (np.array([getattr(b, end) for b in BINS], np.float32) for end in ("low", "high"))
WIDTH = (HIGH - LOW) / np.array([b.bins for b in BINS], np.float32)
# As fractions of a label's range, its ends included; and of the width of a bin.
PLACES = arrays(np.float32, (STARS, 3), elements=st.floats(0, 1, width=32))
SIGMAS = arrays(np.float32, (STARS, 3), elements=st.floats(0.125, 16, width=32))
UNKNOWN = arrays(np.bool_, (STARS, 3))

jit_soft_labels = jax.jit(soft_labels)
jit_bin_index = jax.jit(bin_index)


def values_of(places):
    return np.clip(LOW + places * (HIGH - LOW), LOW, HIGH)


@given(PLACES, UNKNOWN)
def test_a_value_lies_in_its_bin(places, unknown):
    values = np.where(unknown, np.nan, values_of(places))
    index = np.asarray(jit_bin_index(values, EDGES))
    np.testing.assert_array_equal(index == -1, unknown.T)
    for j, edges in enumerate(np.asarray(EDGES)):
        for value, k in zip(values[:, j], index[j], strict=True):
            if k >= 0:
                assert k < BINS[j].bins
                assert edges[k] <= value
                # The upper end of the range belongs to the last bin.
                assert value < edges[k + 1] or (k == BINS[j].bins - 1 and value == edges[k + 1])


@given(arrays(np.int64, (STARS, 3), elements=st.integers(0, 29)))
def test_the_middle_of_a_bin_leads_back_to_it(index):
    middles = LOW + (index + 0.5) * WIDTH
    np.testing.assert_array_equal(jit_bin_index(middles.astype(np.float32), EDGES), index.T)


@given(PLACES, SIGMAS, UNKNOWN)
def test_soft_labels_are_pmfs_of_the_real_bins(places, sigmas, unknown):
    values = np.where(unknown, np.nan, values_of(places)).astype(np.float32)
    found = np.asarray(jit_soft_labels(values, sigmas * WIDTH, EDGES))
    assert found.shape == (3, STARS, 60)
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=-1), np.where(unknown.T, 0, 1), rtol=0, atol=2e-6)  # 60 float32
    assert not np.any(found.transpose(1, 0, 2)[:, ~bin_mask(BINS)])


@given(PLACES, SIGMAS)
def test_no_bin_is_likelier_than_that_of_the_value(places, sigmas):
    values = values_of(places)
    found = np.asarray(jit_soft_labels(values, sigmas * WIDTH, EDGES))
    own = np.take_along_axis(found, np.asarray(jit_bin_index(values, EDGES))[..., None], axis=-1)
    # A value at an edge has two bins that are equal, but for the rounding of (edge - value) / σ in float32.
    assert np.all(found.max(axis=-1, keepdims=True) <= own + 1e-3)
