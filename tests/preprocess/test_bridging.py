"""Straight lines over missing pixels are those of NumPy, row by row."""

import numpy as np
import pytest

from remap.preprocess.bridging import bridge_gaps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_those_of_interp(dtype):
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.uniform(0.1, 2, 60))
    values = rng.standard_normal((200, 60)).astype(dtype)
    good = rng.random(values.shape) > rng.choice([0.02, 0.5, 0.97], (200, 1))
    good[0], good[1], good[2] = True, False, np.arange(60) == 7
    good[3], good[4] = np.arange(60) > 20, np.arange(60) < 20
    expected = values.copy()
    for row, ok in zip(expected, good, strict=True):
        if ok.any():
            row[~ok] = np.interp(at[~ok], at[ok], row[ok])
    bridge_gaps(values, good, at)
    np.testing.assert_array_equal(values, expected)
