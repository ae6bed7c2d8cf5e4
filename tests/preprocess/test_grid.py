"""Grids of the arms: gaps."""

import itertools

import numpy as np
import pytest

from remap.preprocess import grid
from remap.preprocess.grid import longest_gap


@pytest.mark.parametrize("block", [3, 1000])
def test_the_longest_gap_is_that_of_a_plain_count(monkeypatch, block):
    monkeypatch.setattr(grid, "BLOCK", block)
    rng = np.random.default_rng(0)
    valid = rng.random((50, 40)) < rng.random((50, 1))
    valid[0], valid[1], valid[2] = True, False, np.arange(40) > 6
    expected = [
        max((len(list(run)) for good, run in itertools.groupby(row) if not good), default=0) for row in valid
    ]
    assert expected[:3] == [0, 40, 7]
    np.testing.assert_array_equal(longest_gap(valid), expected)
