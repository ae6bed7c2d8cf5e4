"""What holds of degrading and resampling whatever the spectrum and the grids."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from remap.preprocess.resample import FWHM_PER_SIGMA, LineSpread, degrade, resample
from remap.spectra import make_spectra

N, M = 40, 30
FLUX = arrays(np.float64, N, elements=st.floats(-10, 10))
STEPS = arrays(np.float64, N - 1, elements=st.floats(0.4, 0.6))  # no step is a gap
# Thousandths of the length of a spectrum, some of them beyond its ends.
PLACES = arrays(np.int64, M, elements=st.integers(-100, 1100), unique=True)
VALID = arrays(np.bool_, N)
SIGMA = st.floats(0.7, 2.0)  # Å, not below a step
CONSTANT = st.floats(-1e6, 1e6, allow_subnormal=False)


def grid(steps):
    return 5000.0 + np.concatenate([[0.0], np.cumsum(steps)])


def onto(wave, places):
    return np.sort(wave[0] + places / 1000 * (wave[-1] - wave[0]))


def resampled(wave, flux, new, valid=None):
    return resample(make_spectra(wave, flux, medium="air", valid=valid), new, medium="air")


def degraded(wave, flux, sigma):
    return degrade(wave, flux, lsf=LineSpread(fwhm=sigma * FWHM_PER_SIGMA))[0]


@given(STEPS, PLACES, CONSTANT, SIGMA, VALID)
def test_a_constant_stays_a_constant(steps, places, level, sigma, valid):
    wave = grid(steps)
    new = onto(wave, places)
    flux = np.full(N, level)
    found = resampled(wave, flux, new, valid)
    np.testing.assert_allclose(found.flux[found.valid], level, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(degraded(wave, flux, sigma), level, rtol=1e-12, atol=1e-300)


@given(STEPS, PLACES, FLUX, FLUX, st.floats(-3, 3), SIGMA)
def test_both_are_linear_in_the_flux(steps, places, first, second, factor, sigma):
    wave = grid(steps)
    new = onto(wave, places)
    for change in (lambda flux: resampled(wave, flux, new).flux, lambda flux: degraded(wave, flux, sigma)):
        together = change(first + factor * second)
        np.testing.assert_allclose(together, change(first) + factor * change(second), rtol=0, atol=1e-8)


@given(FLUX, st.floats(0.5, 2.0))
def test_degrading_conserves_what_is_far_from_the_ends(flux, sigma):
    """The kernel of a line within 6σ of no end is whole, so that its area is; on an even grid to rounding."""
    wave = np.arange(200.0) * 0.5 + 5000
    padded = np.zeros(200)
    padded[80 : 80 + N] = flux
    found = degraded(wave, padded, sigma)
    np.testing.assert_allclose(found.sum(), padded.sum(), rtol=0, atol=1e-6)


@given(STEPS, FLUX, VALID)
def test_the_same_grid_changes_nothing(steps, flux, valid):
    wave = grid(steps)
    found = resampled(wave, flux, wave, valid)
    np.testing.assert_array_equal(found.valid[0], valid)
    np.testing.assert_allclose(found.flux[0, valid], flux[valid], rtol=0, atol=1e-11)


@given(STEPS, PLACES, VALID, st.integers(1, N - 2))
def test_gaps_stay_gaps(steps, places, valid, at):
    """Against a loop: a pixel needs both of its neighbours, and no wide step between them."""
    steps = steps.copy()
    steps[at] = 20.0
    wave = grid(steps)
    new = onto(wave, places)
    found = resampled(wave, np.ones(N), new, valid)
    for x, good in zip(new, found.valid[0], strict=True):
        nearest = int(np.argmin(abs(wave - x)))
        if abs(wave[nearest] - x) <= 1e-12 * x:
            expected = valid[nearest]
        else:
            right = int(np.searchsorted(wave, x))
            inside = 0 < right < N and right != at + 1
            expected = inside and valid[right - 1] and valid[right]
        assert good == expected
