"""Exposures of one star on one grid."""

import numpy as np
import pytest

from remap.preprocess.stacking import StackSettings, stack
from remap.spectra import make_spectra

WAVE = np.arange(5000.0, 5400.0)
LINES = 1 - 0.5 * np.exp(-0.5 * ((WAVE[:, None] - [5050.0, 5183.0, 5270.0]) / 2) ** 2).sum(axis=1)


def exposures(levels, noise, seed=0, slope=0.0):
    rng = np.random.default_rng(seed)
    flux = np.stack([lv * LINES * (1 + slope * k * (WAVE - 5200) / 200) for k, lv in enumerate(levels)])
    sigma = np.asarray(noise)[:, None] * np.asarray(levels)[:, None] * np.ones_like(WAVE)
    return make_spectra(WAVE, flux + sigma * rng.normal(size=flux.shape), medium="air", ivar=1 / sigma**2)


def test_mean_is_that_of_inverse_variances_on_one_level():
    spectra = exposures([1.0, 1.0], [0.01, 0.02])
    both = stack(spectra)
    weight = spectra.ivar / spectra.ivar.sum(axis=0)
    # The level of the second is fitted, to 0.1 % with this noise.
    np.testing.assert_allclose(both.flux[0], (weight * spectra.flux).sum(axis=0), rtol=2e-3)
    np.testing.assert_allclose(both.ivar[0], spectra.ivar.sum(axis=0), rtol=1e-2)


def test_noise_falls_and_the_inverse_variance_tells_it():
    """Ten exposures of other levels and slopes: what is left scatters as it should."""
    spectra = exposures(np.geomspace(0.1, 10, 10), np.full(10, 0.05), slope=0.02)
    both = stack(spectra)
    best = int(np.argmax(np.sum(spectra.flux**2 * spectra.ivar, axis=1)))
    shape = both.flux[0] / LINES
    smooth = np.polyval(np.polyfit(WAVE - 5200, shape, 3), WAVE - 5200)
    pull = (both.flux[0] - smooth * LINES) * np.sqrt(both.ivar[0])
    assert np.std(pull) == pytest.approx(1, abs=0.12)
    assert np.median(smooth) == pytest.approx(spectra.flux[best].max(), rel=0.3)


def test_a_masked_stretch_of_one_is_filled_by_the_other_without_a_step():
    """The two differ by a slope of 20 % to either side: the level is that of the one with more signal."""
    spectra = exposures([1.0, 5.0], [1e-3, 1e-4], slope=0.2)
    spectra.valid[1, 100:200] = False
    both = stack(spectra)
    assert both.valid.all()
    truth = 5 * LINES * (1 + 0.2 * (WAVE - 5200) / 200)
    np.testing.assert_allclose(both.flux[0], truth, rtol=6e-3)
    assert np.abs(spectra.flux.mean(axis=0) / truth - 1).max() > 0.1


def test_parts_without_common_pixels_keep_their_levels():
    spectra = exposures([1.0, 3.0], [1e-3, 1e-3])
    spectra.valid[0, 200:] = False
    spectra.valid[1, :200] = False
    both = stack(spectra)
    np.testing.assert_allclose(both.flux[0, :200], spectra.flux[0, :200])
    np.testing.assert_allclose(both.flux[0, 200:], spectra.flux[1, 200:])


def test_without_inverse_variances_the_noisier_counts_less():
    spectra = exposures([1.0, 1.0], [0.001, 0.1])
    blind = make_spectra(WAVE, spectra.flux, medium="air")
    both = stack(blind)
    assert both.ivar is None
    assert np.std(both.flux[0] - LINES) < 0.003
    assert np.std(spectra.flux.mean(axis=0) - LINES) > 0.03


def test_one_spectrum_is_itself_and_one_without_pixels_does_not_count():
    one = exposures([2.0], [0.01])
    assert stack(one) is one
    spectra = exposures([2.0, 1.0], [0.01, 0.01])
    spectra.valid[1] = False
    both = stack(spectra, settings=StackSettings(degree=1))
    np.testing.assert_allclose(both.flux[0], spectra.flux[0])
    np.testing.assert_allclose(both.ivar[0], spectra.ivar[0])


def test_a_chain_of_spectra_comes_to_one_level():
    """The third has no pixel in common with the first and more signal than the second, which lies between them."""
    size = WAVE.size
    third = size // 3
    valid = np.zeros((3, size), bool)
    valid[0, : third + 20] = valid[1, third : 2 * third + 20] = valid[2, 2 * third :] = True
    level = np.array([8.0, 1.0, 4.0])
    flux = level[:, None] * np.ones(size)
    spectra = make_spectra(WAVE, flux, medium="air", valid=valid, ivar=np.full(flux.shape, 100.0))
    np.testing.assert_allclose(stack(spectra).flux[0], 8.0, rtol=1e-6)
