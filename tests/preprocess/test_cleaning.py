"""Bad pixels, cosmic rays and what stands still on the detector: what is found, and above all what stays."""

import logging

import numpy as np
import pytest
from astropy.io import fits

from remap import io
from remap.config import ConfigError
from remap.preprocess import (
    CleaningSettings,
    StationaryMask,
    find_stationary,
    mask_bad,
    mask_cosmic_rays,
    mask_cosmic_rays_in_stack,
    mask_stationary,
    measure_line_width,
)
from remap.spectra import SpectrumError, doppler_shift, make_spectra, vacuum_to_air

SETTINGS = CleaningSettings()
WAVE = 5000 + 0.1 * np.arange(2000)
FWHM = 0.45  # Å, 4.5 pixels
NOISE = 0.01


def star(seed=0, *, velocity=0.0, wave=WAVE, fwhm=FWHM, lines=400, metals=1.0):
    """A continuum of 1 with narrow lines of every depth, seen through the line spread."""
    rng = np.random.default_rng(seed)
    centres, depths = rng.uniform(4980, 5220, lines), metals * rng.uniform(0, 0.9, lines) ** 3
    tau = np.zeros(wave.size)
    for centre, depth in zip(doppler_shift(centres, velocity), depths, strict=True):
        near = slice(*np.searchsorted(wave, [centre - 3, centre + 3]))
        tau[near] += depth * np.exp(-4 * np.log(2) * ((wave[near] - centre) / fwhm) ** 2)
    return np.exp(-tau)


def spectra(flux, wave=WAVE, **more):
    return make_spectra(wave, flux, medium="air", **({"fwhm": FWHM} | more))


def noisy(flux, seed=1, noise=NOISE):
    return flux + noise * np.random.default_rng(seed).standard_normal(flux.shape)


def masked(found, row=0):
    return np.flatnonzero(~found.valid[row]).tolist()


# Bad pixels


def test_zeros_at_the_ends_and_between_chips_are_bad():
    flux = noisy(star())
    flux[:7] = flux[900:950] = flux[1990:] = 0
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [*range(7), *range(900, 950), *range(1990, 2000)]


def test_a_single_zero_is_bad():
    flux = noisy(star())
    flux[500] = 0
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [500]


def test_zero_counts_in_a_black_line_are_good():
    rng = np.random.default_rng(0)
    depth = np.exp(-0.5 * ((np.arange(2000) - 1000) / 12) ** 2)
    flux = rng.poisson(200 * (1 - depth) ** 2 + 0.5).astype(float)
    assert np.count_nonzero(flux == 0) > 3
    assert mask_bad(spectra(flux), SETTINGS).valid.all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_spectrum_of_one_value_has_no_good_pixel(value):
    assert not mask_bad(spectra(np.full(2000, value)), SETTINGS).valid.any()


@pytest.mark.parametrize("value", [1.5e21, -1.5e21, 1e300, 500.0])
def test_one_absurd_value_is_bad(value):
    flux = noisy(star())
    flux[700] = value
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [700]


@pytest.mark.parametrize("value", [-0.5, -3.0, -10.0])
def test_flux_far_below_zero_is_bad(value):
    flux = noisy(star())
    flux[700:702] = value
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [700, 701]


def test_noise_below_zero_is_good():
    rng = np.random.default_rng(0)
    flux = star() + rng.normal(size=(20, len(WAVE))) / 2
    assert np.count_nonzero(flux < 0) > 100
    assert mask_bad(spectra(flux), SETTINGS).valid.mean() > 0.99999


def test_deep_lines_are_good_where_the_sky_was_overestimated_or_the_level_taken_away():
    lines = np.exp(-0.5 * ((WAVE[:, None] - np.linspace(5010, 5290, 8)) / 1.5) ** 2).sum(axis=1)
    flux = noisy(np.stack([star() - 1.03 * lines, star() - lines - 1]))
    assert np.all(flux.min(axis=1) < -0.02)
    assert mask_bad(spectra(flux), SETTINGS).valid.all()


def test_a_few_absurd_values_side_by_side_are_bad():
    flux = noisy(star())
    flux[700:705] = 1e20
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [*range(700, 705)]


@pytest.mark.parametrize("height", [10, 50])
def test_emission_and_black_lines_are_good(height):
    shape = np.exp(-0.5 * ((WAVE - 5100) / 1.5) ** 2)
    flux = noisy(star() + height * shape - np.exp(-0.5 * ((WAVE - 5150) / 1.5) ** 2))
    assert mask_bad(spectra(flux), SETTINGS).valid.all()


def test_a_dead_run_is_bad_and_a_flat_continuum_good():
    flux = noisy(star())
    flux[300:320] = flux[300]
    assert masked(mask_bad(spectra(flux), SETTINGS)) == [*range(300, 320)]
    model = star(lines=10)
    assert np.count_nonzero(model == 1) > 500
    assert mask_bad(spectra(model), SETTINGS).valid.all()


def test_flux_is_untouched_and_the_units_do_not_matter():
    flux = noisy(star())
    flux[[3, 700]] = 0, 1e9
    for unit in (1e-17, 1e12):
        found = mask_bad(spectra(flux * unit), SETTINGS)
        assert masked(found) == [3, 700]
        np.testing.assert_array_equal(found.flux[0], flux * unit)


# Cosmic rays along wavelength


def hit(flux, places, sigma, width=1):
    flux = flux.copy()
    for place in places:
        flux[place : place + width] += sigma * NOISE
    return flux


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("sigma", "width"), [(12, 1), (100, 1), (30, 2), (1000, 3)])
def test_cosmic_rays_are_found(sigma, width, known):
    places = np.arange(50, 1950, 100)
    flux = hit(noisy(star()), places, sigma, width)
    ivar = np.full(2000, NOISE**-2) if known else None
    found = ~mask_cosmic_rays(spectra(flux, ivar=ivar), SETTINGS).valid[0]
    struck = (places[:, None] + np.arange(width)).ravel()
    assert found[struck].mean() >= 0.9
    assert found.sum() - found[struck].sum() <= 0.005 * 2000


@pytest.mark.parametrize("step", [0.25, 0.28, 0.3, 0.33])
@pytest.mark.parametrize("snr", [100, 1e4])
def test_cosmic_rays_are_found_however_far_the_lines_stand_above_the_noise(step, snr):
    """Also in lines of two to four pixels: the filter's sum over two of them has no variance there."""
    wave = np.arange(5000.0, 5000 + 1200 * step, step)
    places = [200, 500, 1000]
    flux = star(wave=wave, fwhm=0.85)
    flux = flux + np.random.default_rng(0).normal(size=wave.size) / snr
    flux[places] += 8.0
    ivar = np.full(wave.size, float(snr) ** 2)
    found = mask_cosmic_rays(make_spectra(wave, flux, medium="air", ivar=ivar, fwhm=0.85), SETTINGS)
    assert not found.valid[0, places].any()


@pytest.mark.parametrize("snr", [20, 100, 1000])
def test_no_line_is_taken_for_a_cosmic_ray(snr):
    flux = np.stack([noisy(star(seed), seed, 1 / snr) for seed in range(20)])
    found = ~mask_cosmic_rays(spectra(flux, ivar=np.full(flux.shape, float(snr) ** 2)), SETTINGS).valid
    assert found.mean() < 3e-4


@pytest.mark.parametrize("height", [0.3, 3, 50])
def test_emission_as_wide_as_the_line_spread_stays(height):
    centres = 5010 + 9.97 * np.arange(18)  # at every place within a pixel
    peaks = np.exp(-4 * np.log(2) * ((WAVE[:, None] - centres) / FWHM) ** 2).sum(axis=1)
    clean = star() + height * peaks
    noise = NOISE * np.sqrt(np.maximum(clean, 1))
    flux = clean + noise * np.random.default_rng(0).standard_normal(clean.shape)
    found = ~mask_cosmic_rays(spectra(flux, ivar=noise**-2), SETTINGS).valid[0]
    assert not found[peaks > 0.3].any()


def test_a_dip_does_not_make_its_neighbours_cosmic_rays():
    flux = noisy(star())
    flux[np.arange(100, 1900, 300)] -= 0.5
    assert np.count_nonzero(~mask_cosmic_rays(spectra(flux), SETTINGS).valid) <= 2


def test_errors_that_are_too_small_do_not_make_cosmic_rays():
    flux = noisy(star())
    found = mask_cosmic_rays(spectra(flux, ivar=np.full(2000, (4 / NOISE) ** 2)), SETTINGS)
    assert np.mean(~found.valid) < 4e-3


def test_undersampled_lines_are_left_alone_and_the_log_says_so(caplog):
    flux = hit(noisy(star()), [500], 50)
    with caplog.at_level(logging.DEBUG, logger="remap"):
        found = mask_cosmic_rays(spectra(flux, fwhm=0.15), SETTINGS)
    assert found.valid.all()
    assert "fewer than 2 pixels" in caplog.text


def test_the_line_spread_is_measured_where_it_is_not_known(caplog):
    flux = hit(noisy(star(), noise=0.003), [500, 1200], 100)
    with caplog.at_level(logging.DEBUG, logger="remap"):
        found = mask_cosmic_rays(make_spectra(WAVE, flux, medium="air"), SETTINGS)
    assert {500, 1200} <= set(masked(found))
    assert "line spread is not known" in caplog.text
    clean = noisy(star(), noise=0.003)[None]
    assert measure_line_width(clean, np.ones_like(clean, bool)) == pytest.approx(4.5, rel=0.15)


def test_spectra_without_good_pixels_pass():
    flux = np.full((2, 2000), np.nan)
    flux[1] = hit(noisy(star()), [500], 50)
    found = mask_cosmic_rays(spectra(flux), SETTINGS)
    assert 500 in masked(found, 1)


# Exposures


def exposure(seed, scale=1.0, places=(), wave=WAVE, sigma=15, **more):
    flux = scale * (1 + 0.2 * (wave - 5100) / 100) * hit(noisy(star(wave=wave), seed), places, sigma)
    return spectra(flux, wave, **more)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_stack_tells_whose_cosmic_ray_it_is(count):
    places = [[100 + 300 * i, 220 + 300 * i] for i in range(count)]
    found = mask_cosmic_rays_in_stack(
        [exposure(i, 1 + i, places[i], sigma=25) for i in range(count)], SETTINGS
    )
    for i in range(count):
        assert set(places[i]) <= set(masked(found[i]))
        assert len(masked(found[i])) <= 2 + 3


def test_exposures_on_other_pixels_are_interpolated():
    other = WAVE + 0.037
    found = mask_cosmic_rays_in_stack(
        [exposure(0, places=[500]), exposure(1, wave=other, places=[900]), exposure(2, wave=other)], SETTINGS
    )
    assert [500 in masked(found[0]), 900 in masked(found[1])] == [True, True]
    assert sum(len(masked(f)) for f in found) <= 8


def test_one_exposure_is_looked_at_along_wavelength():
    (found,) = mask_cosmic_rays_in_stack([exposure(0, places=[500], sigma=50)], SETTINGS)
    assert 500 in masked(found)


def test_exposures_must_be_single():
    with pytest.raises(SpectrumError, match="one spectrum per exposure"):
        mask_cosmic_rays_in_stack([spectra(np.ones((2, 2000)))] * 2, SETTINGS)


# What stands still


def survey(count=60, spread=60.0, features=((300, 4, 5.0), (900, 1, -4.0), (1500, 6, 3.0)), share=1.0):
    rng = np.random.default_rng(5)
    velocities = rng.uniform(-spread, spread, count)
    flux = np.array(
        [star(0, velocity=v, metals=m) for v, m in zip(velocities, rng.uniform(0.3, 1, count), strict=True)]
    )
    flux = noisy(flux)
    truth = np.zeros(WAVE.size, bool)
    for place, width, height in features:
        truth[place : place + width] = True
        flux[: int(share * count), place : place + width] += height * NOISE
    return spectra(flux), velocities, truth


@pytest.mark.parametrize("known", [True, False])
def test_what_stands_still_is_found(known):
    stars, velocities, truth = survey()
    mask = find_stationary(stars, velocities=velocities if known else None, settings=SETTINGS)
    found = mask.pixels(WAVE, "air")
    assert found[truth].all()
    assert found[~truth].mean() < 0.005
    assert (mask.medium, mask.stars) == ("air", 60)


def test_a_feature_of_a_third_of_the_stars_is_found():
    stars, velocities, truth = survey(150, features=((300, 4, 6.0), (1500, 6, 6.0)), share=1 / 3)
    assert find_stationary(stars, velocities=velocities, settings=SETTINGS).pixels(WAVE, "air")[truth].all()


def test_clean_stars_lose_nothing():
    stars, velocities, _ = survey(features=())
    assert find_stationary(stars, velocities=velocities, settings=SETTINGS).pixels(WAVE, "air").mean() < 0.002


def test_stars_of_one_velocity_are_refused(caplog):
    stars, velocities, _ = survey(30, spread=5.0)
    with caplog.at_level(logging.WARNING):
        assert find_stationary(stars, velocities=velocities, settings=SETTINGS).intervals == ()
    assert "1.5 line spreads" in caplog.text


def test_few_stars_are_refused(caplog):
    stars, velocities, _ = survey(5)
    with caplog.at_level(logging.WARNING):
        assert find_stationary(stars, velocities=velocities, settings=SETTINGS).intervals == ()
    assert "at least 12 stars" in caplog.text


def test_single_spectra_of_other_lengths_are_one_detector():
    stars, velocities, truth = survey(30, features=((300, 4, 6.0),))
    parts = [stars.rows(slice(i, i + 1)).pixels(slice(i % 3, 2000 - i % 2)) for i in range(30)]
    mask = find_stationary(parts, velocities=velocities, settings=SETTINGS)
    assert mask.pixels(WAVE, "air")[truth].all()


def test_velocities_must_be_as_many_as_stars():
    with pytest.raises(SpectrumError, match="30 velocities"):
        find_stationary(survey(30)[0], velocities=np.zeros(3), settings=SETTINGS)


def test_the_mask_is_kept_and_applied_in_either_medium():
    mask = StationaryMask.from_json(
        StationaryMask(((5010.0, 5010.5), (5100.0, 5100.2)), "vacuum", 9).to_json()
    )
    assert mask == StationaryMask(((5010.0, 5010.5), (5100.0, 5100.2)), "vacuum", 9)
    found = mask_stationary(spectra(np.ones(2000)), mask)
    low, high = vacuum_to_air([5010.0, 5010.5])
    assert WAVE[masked(found)][:5].tolist() == WAVE[(low <= WAVE) & (high > WAVE)].tolist()
    assert mask_stationary(found, StationaryMask((), "air")).valid.sum() == found.valid.sum()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"intervals": [[2, 1]], "medium": "air", "stars": 1}'])
def test_a_file_that_is_no_mask_is_refused(text):
    with pytest.raises(SpectrumError, match="stationary mask"):
        StationaryMask.from_json(text)


# Settings and real files


@pytest.mark.parametrize(
    "wrong",
    [
        {"absurd": 0.0},
        {"negative": 0.0},
        {"zero_run": 1},
        {"fwhm": -1.0},
        {"fwhm": 1.0, "resolution": 2000.0},
        {"min_stars": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CleaningSettings(**wrong)


def survey_file(pattern):
    try:
        return next(io.find_data("surveys").glob(pattern))
    except SpectrumError as error:
        pytest.skip(str(error))


def image(path):
    flux, header = fits.getdata(path, header=True)
    return header["CRVAL1"] + header["CDELT1"] * np.arange(flux.size), flux.astype(float)


@pytest.mark.parametrize(("kind", "zeros"), [("harps", 3294), ("uves", 1343)])
def test_the_zeros_of_real_files_are_bad_and_their_lines_stay(kind, zeros):
    wave, flux = image(survey_file(f"{kind}/*.fits"))
    cleaned = mask_bad(make_spectra(wave, flux, medium="air"), SETTINGS)
    assert zeros <= np.count_nonzero(~cleaned.valid) <= zeros + 1
    assert not cleaned.valid[0][flux == 0].any()


def test_lines_of_a_real_star_stay():
    wave, flux = image(survey_file("mike/g64-12.fits"))
    part = mask_bad(make_spectra(wave, flux, medium="air", fwhm=wave / 30_000), SETTINGS)
    found = mask_cosmic_rays(part, SETTINGS)
    assert np.mean(part.valid & ~found.valid) < 2e-3


def test_a_spectrum_of_one_pixel_stays_as_it_is():
    """A segment that reaches into the range that is needed by no more: it must not end the batch."""
    one = make_spectra([5000.0], [1.0], medium="air", fwhm=0.5)
    assert mask_cosmic_rays(one, SETTINGS).valid.all()
    assert all(e.valid.all() for e in mask_cosmic_rays_in_stack([one, one, one], SETTINGS))
