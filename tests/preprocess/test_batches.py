"""What becomes of a spectrum does not depend on those that it comes with."""

import dataclasses

import numpy as np
import pytest

from remap.preprocess import blocks, cosmic_rays
from remap.preprocess.cleaning import CleaningSettings, mask_bad
from remap.preprocess.cosmic_rays import mask_cosmic_rays
from remap.preprocess.flattening import flatten
from remap.preprocess.grid import snr_estimate
from remap.preprocess.resample import resample
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import make_spectra

SETTINGS = CleaningSettings()
WAVE = 5000 + 0.4 * np.arange(700)
COUNT = 24


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(blocks, "ELEMENTS", 5 * WAVE.size)  # five rows a block


def spoiled(*, known=True):
    """Stars with cosmic rays, dips, gaps, errors that are too small, and some that are nothing at all."""
    rng = np.random.default_rng(0)
    centres, depths = rng.uniform(4990, 5290, (COUNT, 60)), rng.uniform(0, 0.8, (COUNT, 60)) ** 2
    lines = np.exp(-0.5 * ((WAVE - centres[:, :, None]) / 0.6) ** 2)
    sigma = 10 ** rng.uniform(-2.3, -1, (COUNT, 1))
    flux = np.exp(-np.sum(depths[:, :, None] * lines, axis=1)) * rng.uniform(1e-3, 1e3, (COUNT, 1))
    sigma = sigma * np.median(flux, axis=1, keepdims=True)
    flux += sigma * rng.standard_normal(flux.shape)
    for row, place in zip(rng.integers(0, COUNT, 60), rng.integers(5, WAVE.size - 5, 60), strict=True):
        flux[row, place : place + rng.integers(1, 4)] += rng.choice([-8, 5, 20, 500]) * sigma[row]
    valid = rng.random(flux.shape) > np.where(np.arange(COUNT) % 3 == 0, 0.03, 0)[:, None]
    valid[4, 200:330] = False
    flux[5], flux[6, :300], valid[7] = 0, np.nan, False
    ivar = np.broadcast_to((sigma * rng.choice([1.0, 0.5], (COUNT, 1))) ** -2, flux.shape)
    return make_spectra(
        WAVE, flux, medium="air", valid=valid, ivar=ivar if known else None, fwhm=1.5, facts={"snr": 9.0}
    )


def one_by_one(spectra, work):
    return np.concatenate([work(spectra.rows(slice(i, i + 1))) for i in range(len(spectra))])


@pytest.mark.parametrize("known", [True, False])
def test_cosmic_rays_are_the_same_alone(known):
    spectra = mask_bad(spoiled(known=known), SETTINGS)
    found = mask_cosmic_rays(spectra, SETTINGS).valid
    assert np.count_nonzero(spectra.valid & ~found) > 30
    np.testing.assert_array_equal(
        found, one_by_one(spectra, lambda one: mask_cosmic_rays(one, SETTINGS).valid)
    )


@pytest.mark.parametrize("known", [True, False])
def test_bad_pixels_are_the_same_alone(known):
    spectra = spoiled(known=known)
    found = mask_bad(spectra, SETTINGS).valid
    assert np.count_nonzero(spectra.valid & ~found) >= WAVE.size
    np.testing.assert_array_equal(found, one_by_one(spectra, lambda one: mask_bad(one, SETTINGS).valid))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_spectra_whose_scatter_is_not_looked_at_have_no_cosmic_rays(scale, monkeypatch):
    """Only those with a deviation beyond the threshold are: for the others it changes nothing."""
    spectra = mask_bad(spoiled(), SETTINGS)
    spectra = dataclasses.replace(spectra, ivar=spectra.ivar * scale)
    asked = []
    suspects = cosmic_rays.suspects

    def listed(windows, count, settings):
        asked.append(suspects(windows, count, settings))
        return asked[-1]

    monkeypatch.setattr(cosmic_rays, "suspects", listed)
    quick = mask_cosmic_rays(spectra, SETTINGS).valid
    monkeypatch.setattr(cosmic_rays, "suspects", lambda windows, count, settings: np.ones(count, bool))
    np.testing.assert_array_equal(quick, mask_cosmic_rays(spectra, SETTINGS).valid)
    assert 0 < np.concatenate(asked).sum() < COUNT


def test_resampled_spectra_are_the_same_alone():
    spectra = spoiled()
    at = np.concatenate([np.linspace(5001, 5270, 500), WAVE[690:693], WAVE[-1:]])
    together = resample(spectra, at, medium="air")
    for name in ("flux", "valid", "ivar"):
        alone = one_by_one(spectra, lambda one, name=name: getattr(resample(one, at, medium="air"), name))
        np.testing.assert_array_equal(getattr(together, name), alone)
    for row in (0, 1, 4):
        good = spectra.valid[row]
        expected = 1 / np.interp(at, WAVE[good], 1 / spectra.ivar[row, good])
        keep = together.valid[row]
        np.testing.assert_array_equal(together.ivar[row, keep], expected[keep])
    assert not together.ivar[~together.valid].any()


@pytest.mark.parametrize("known", [True, False])
def test_the_signal_to_noise_is_that_of_every_row(known):
    spectra = spoiled(known=known)
    found = snr_estimate(spectra.flux, spectra.valid, spectra.ivar)
    for i, snr in enumerate(found):
        flux, good = spectra.flux[i], spectra.valid[i]
        if not good.any():
            assert np.isnan(snr)
        elif known:
            assert snr == np.median(flux[good] * np.sqrt(spectra.ivar[i, good]))
        elif flux[good].any():
            triple = good[4:] & good[2:-2] & good[:-4]
            noise = np.median(np.abs(2 * flux[2:-2] - flux[:-4] - flux[4:])[triple])
            assert snr == np.median(flux[good]) / (1.482602 / np.sqrt(6) * noise)


def test_flattened_spectra_are_the_same_alone():
    spectra, settings = spoiled(), VelocitySettings()

    def flat(some):
        return np.stack(flatten(some.flux, some.valid, some.ivar, wave=WAVE, settings=settings), axis=1)

    together = flat(spectra)
    assert np.count_nonzero(together[:, 1].any(axis=1)) >= COUNT - 3
    np.testing.assert_array_equal(together, one_by_one(spectra, flat))
