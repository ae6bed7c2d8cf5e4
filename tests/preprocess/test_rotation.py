"""Rotational broadening of a library against a direct sum over Gray's profile."""

import numpy as np
import pytest

from remap.preprocess.rotation import rotate
from remap.spectra import SPEED_OF_LIGHT, make_spectra

WAVE = 8800.0 * np.exp(np.arange(3000) * 0.3 / SPEED_OF_LIGHT)  # 0.3 km/s per pixel
CENTRE = 1400


def spectra(valid=None):
    velocity = 0.3 * (np.arange(3000) - CENTRE)
    flux = (1 + 1e-4 * np.arange(3000)) * (1 - 0.6 * np.exp(-0.5 * (velocity / 1.5) ** 2))
    labels = {"teff": np.array([3500.0, 3600.0]), "logg": np.array([4.5, 5.0])}
    return make_spectra(WAVE, np.stack([flux, 2 * flux]), medium="vacuum", valid=valid, labels=labels)


def profile(vsini):
    """Gray, eq. 18.14, for a limb darkening of 0.6, on the pixels, of sum 1."""
    x = 0.3 * np.arange(-200, 201) / vsini
    y = np.clip(1 - x**2, 0, None)
    kernel = 2 * (1 - 0.6) * np.sqrt(y) + 0.5 * np.pi * 0.6 * y
    return kernel / kernel.sum()


def test_a_line_is_convolved_with_the_rotation_profile():
    found = rotate(spectra(), (0.0, 12.0))
    original = spectra()
    assert len(found) == 4
    np.testing.assert_array_equal(found.labels["vsini"], [0, 12, 0, 12])
    np.testing.assert_array_equal(found.labels["teff"], [3500, 3500, 3600, 3600])
    np.testing.assert_array_equal(found.flux[::2], original.flux)
    expected = np.convolve(original.flux[0], profile(12.0), mode="same")
    inner = slice(300, -300)  # np.convolve takes the flux beyond the ends for 0
    # 2e-3: the profile is sampled in pixels here and its transform is not
    np.testing.assert_allclose(found.flux[1, inner], expected[inner], atol=2e-3)
    assert found.flux[1, CENTRE] > original.flux[0, CENTRE] + 0.3
    np.testing.assert_allclose(found.flux[3], 2 * found.flux[1], rtol=1e-6)
    # The slope goes on to the ends, though the transform is periodic.
    np.testing.assert_allclose(found.flux[1, 60:300], original.flux[0, 60:300], rtol=1e-4)


def test_pixels_that_would_need_what_is_not_there_are_invalid():
    valid = np.ones((2, 3000), bool)
    valid[0, 700] = False
    found = rotate(spectra(valid), (0.0, 3.0))
    reach = 10  # 3 km/s
    assert found.valid[0].sum() == 2999
    bad = np.flatnonzero(~found.valid[1])
    assert {0, reach - 1, 3000 - reach, 2999, 700 - reach + 1, 700, 700 + reach - 1} <= set(bad)
    assert not {reach + 1, 2999 - reach - 1, 700 - reach - 1, 700 + reach + 1} & set(bad)
    assert np.isfinite(found.flux).all()


@pytest.mark.parametrize("speeds", [(), (-1.0,), (np.nan,)])
def test_speeds_that_cannot_be_are_refused(speeds):
    with pytest.raises(ValueError, match="velocities >= 0 km/s, found"):
        rotate(spectra(), speeds)
