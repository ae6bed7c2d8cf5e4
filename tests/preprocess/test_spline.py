"""Splines of many spectra at the same places are SciPy's."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from remap.preprocess.spline import Spline


@pytest.mark.parametrize(("pixels", "places"), [(4, 9), (5, 3), (300, 200)])
def test_the_numbers_are_those_of_scipy(pixels, places):
    rng = np.random.default_rng(pixels)
    wave = 5000 + np.cumsum(rng.uniform(0.3, 2.0, pixels))
    at = np.sort(rng.uniform(wave[0], wave[-1], places))
    at[[0, -1]], at[1] = wave[[0, -1]], wave[2]
    for values in (rng.standard_normal((6, pixels)), rng.standard_normal((1, pixels)).astype(np.float32)):
        expected = CubicSpline(wave, values, axis=1)(at)
        np.testing.assert_array_equal(Spline.make(wave, at).values(values), expected)


def test_the_values_given_are_left_alone():
    wave = np.arange(9.0)
    values = np.sin(wave)[None]
    Spline.make(wave, wave[:-1] + 0.5).values(values)
    np.testing.assert_array_equal(values, np.sin(wave)[None])
