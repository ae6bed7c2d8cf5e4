"""Degrading and resampling against analytic results, SciPy and genuine PHOENIX files."""

import numpy as np
import pytest
from scipy import integrate, interpolate

from remap import io
from remap.preprocess.resample import (
    FWHM_PER_SIGMA,
    LineSpread,
    degrade,
    degrade_and_resample,
    line_fwhm,
    resample,
)
from remap.spectra import SpectrumError, air_to_vacuum, make_spectra, vacuum_to_air

RNG = np.random.default_rng(0)


def shared(path):
    try:
        return io.find_data(path)
    except SpectrumError as error:
        pytest.skip(str(error))


def line(wave, sigma, area=0.3, centre=5100.0):
    """A Gaussian absorption line [Å] in a continuum of 1."""
    return 1 - area / (sigma * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((wave - centre) / sigma) ** 2)


GRIDS = {
    "even": np.linspace(5080, 5120, 1001),
    "log": np.exp(np.linspace(np.log(5080), np.log(5120), 1001)),
    "stretched": 5080 + 40 * np.linspace(0, 1, 1001) ** 1.2,
    "step jumps at the line": np.concatenate([np.arange(5080, 5100.1, 0.03), np.arange(5100.15, 5120, 0.05)]),
    "jittered": np.linspace(5080, 5120, 2001) + np.random.default_rng(1).uniform(-0.006, 0.006, 2001),
}


@pytest.mark.parametrize("name", GRIDS)
def test_a_gaussian_line_becomes_the_wider_gaussian(name):
    wave = GRIDS[name]
    own, wanted = 0.2, 0.5
    flux, ok = degrade(
        wave,
        line(wave, own),
        lsf=LineSpread(fwhm=wanted * FWHM_PER_SIGMA),
        native=LineSpread(fwhm=own * FWHM_PER_SIGMA),
    )
    # The cubic spline onto an even grid errs by (5/384) h⁴ f'''' where the step h jumps.
    atol = 1e-6 if name in ("even", "log") else 5e-6
    np.testing.assert_allclose(flux[ok], line(wave, wanted)[ok], rtol=0, atol=atol)
    np.testing.assert_array_equal(
        ok,
        (wave >= wave[0] + 4 * (wanted**2 - own**2) ** 0.5)
        & (wave <= wave[-1] - 4 * (wanted**2 - own**2) ** 0.5),
    )


@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.5])
def test_kernels_narrower_than_a_pixel_keep_their_width(ratio):
    wave = np.linspace(5080, 5120, 1001)
    own = 0.12  # three pixels: properly sampled
    wanted = np.hypot(own, ratio * 0.04)
    flux, _ = degrade(
        wave,
        line(wave, own),
        lsf=LineSpread(fwhm=wanted * FWHM_PER_SIGMA),
        native=LineSpread(fwhm=own * FWHM_PER_SIGMA),
    )
    # A sampled kernel of 0.3 pixels would do nothing, which is 2e-2 off here; the spline is 1e-4 off.
    np.testing.assert_allclose(flux, line(wave, wanted), rtol=0, atol=5e-4)


def test_degrading_conserves_flux():
    wave = GRIDS["log"]
    flux = 1 + np.where(np.abs(wave - 5100) < 10, RNG.normal(0, 0.2, (3, wave.size)), 0)
    out, _ = degrade(wave, flux, lsf=LineSpread(fwhm=1.0))
    np.testing.assert_allclose(integrate.trapezoid(out, wave), integrate.trapezoid(flux, wave), rtol=1e-6)


def test_degrading_keeps_constants_to_the_very_end():
    for wave in GRIDS.values():
        out, _ = degrade(wave, np.full(wave.size, 3.0), lsf=LineSpread(resolution=5000.0))
        np.testing.assert_allclose(out, 3.0, rtol=1e-12)


def test_the_renormalised_kernel_at_an_end():
    wave = np.linspace(0, 40, 401) + 5080
    out, ok = degrade(wave, wave - 5080, lsf=LineSpread(fwhm=FWHM_PER_SIGMA))
    # The mean of half a Gaussian of σ = 1 is sqrt(2/π); the rule errs by h²/12 of the slope there.
    np.testing.assert_allclose(out[[0, -1]], [np.sqrt(2 / np.pi), 40 - np.sqrt(2 / np.pi)], atol=1e-3)
    assert not ok[[0, -1]].any()


def test_a_line_spread_that_varies_along_the_detector():
    wave = np.linspace(5080, 5120, 1001)
    fwhm = np.linspace(0.6, 2.0, wave.size)
    flux = RNG.normal(1, 0.1, wave.size)
    out, ok = degrade(wave, flux, lsf=LineSpread(fwhm=fwhm))
    for i in (300, 500, 700):
        alone, _ = degrade(wave, flux, lsf=LineSpread(fwhm=fwhm[i]))
        np.testing.assert_allclose(out[i], alone[i], rtol=1e-12)
        kernel = np.exp(-0.5 * ((wave - wave[i]) / (fwhm[i] / FWHM_PER_SIGMA)) ** 2)
        np.testing.assert_allclose(out[i], kernel @ flux / kernel.sum(), rtol=1e-8)
    assert np.count_nonzero(~ok[:500]) < np.count_nonzero(~ok[500:])


def test_blocks_shapes_and_precision(monkeypatch):
    wave = np.linspace(5080, 5120, 1001)
    flux = RNG.normal(1, 0.1, (2, 3, wave.size)).astype(np.float32)
    whole, _ = degrade(wave, flux, lsf=LineSpread(fwhm=1.0))
    monkeypatch.setattr("remap.preprocess.resample.BLOCK", 5000)
    monkeypatch.setattr("remap.preprocess.resample.CHUNK", 2000)
    pieces, _ = degrade(wave, flux, lsf=LineSpread(fwhm=1.0))
    assert whole.shape == flux.shape
    assert whole.dtype == np.float32
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)


def test_equal_line_spreads_change_nothing_and_sharper_ones_raise():
    wave = np.linspace(5080, 5120, 1001)
    flux = RNG.normal(1, 0.1, wave.size)
    out, ok = degrade(wave, flux, lsf=LineSpread(resolution=1e4), native=LineSpread(fwhm=wave / 1e4))
    np.testing.assert_array_equal(out, flux)
    assert ok.all()
    with pytest.raises(
        ValueError, match=r"cannot sharpen: expected a native FWHM of at most 0.508 Å at 5080 Å, found 2.5"
    ):
        degrade(wave, flux, lsf=LineSpread(resolution=1e4), native=LineSpread(fwhm=2.5))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"resolution": 1e4, "fwhm": 1.0}, {"fwhm": 0.0}, {"fwhm": [1.0, np.nan]}, {"resolution": -1}],
)
def test_line_spread_is_checked(arguments):
    with pytest.raises(ValueError, match="LineSpread"):
        LineSpread(**arguments)


def test_degrade_is_checked():
    wave = np.linspace(5080, 5120, 11)
    with pytest.raises(ValueError, match="expected 11 values, one per pixel, found 3"):
        line_fwhm(LineSpread(fwhm=np.ones(3)), wave)
    with pytest.raises(ValueError, match="flux must have 11 pixels"):
        degrade(wave, np.ones(12), lsf=LineSpread(fwhm=1.0))
    with pytest.raises(ValueError, match="strictly increasing"):
        degrade(wave[::-1], np.ones(11), lsf=LineSpread(fwhm=1.0))


def test_resampling_equals_scipy_on_an_irregular_grid():
    wave = GRIDS["jittered"]
    flux = RNG.normal(1, 0.1, (3, wave.size))
    new = np.linspace(5085, 5115, 777)
    out = resample(
        make_spectra(wave, flux, medium="air", labels={"teff": [1, 2, 3]}, names="abc"), new, medium="air"
    )
    for row, mine in zip(flux, out.flux, strict=True):
        np.testing.assert_allclose(mine, interpolate.CubicSpline(wave, row)(new), rtol=1e-12)
    assert out.valid.all()
    assert out.names == ("a", "b", "c")
    assert out.labels["teff"].tolist() == [1, 2, 3]
    assert out.ivar is None


def test_resampling_converts_the_medium():
    wave = np.linspace(5080, 5120, 1001)
    vacuum = make_spectra(wave, line(wave, 0.5), medium="vacuum")
    new = np.linspace(5090, 5110, 400)
    air = resample(vacuum, new, medium="air")
    np.testing.assert_allclose(air.flux[0], line(air_to_vacuum(new), 0.5), rtol=0, atol=1e-6)
    assert air.medium == "air"
    same = resample(vacuum, vacuum_to_air(wave), medium="air")
    np.testing.assert_allclose(same.flux, vacuum.flux, rtol=1e-12)
    assert same.valid.all()  # the ends coincide but for rounding
    np.testing.assert_allclose(resample(same, wave, medium="vacuum").flux, vacuum.flux, rtol=1e-10)


def test_resampling_masks():
    wave = np.arange(5000.0, 5020.0)
    flux = 2 + 0.5 * (wave - 5000)
    broken = flux.copy()
    broken[10] = 1e9
    broken[[15, 16]] = np.nan
    valid = np.ones(wave.size, bool)
    valid[10] = False
    new = np.array(
        [4999.5, 5000, 5008.5, 5009, 5009.5, 5010, 5010.5, 5011, 5014, 5014.5, 5015.5, 5017, 5019, 5019.1]
    )
    out = resample(make_spectra(wave, broken, medium="air", valid=valid), new, medium="air")
    assert out.valid[0].tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
        False,
    ]
    # The bridge is linear and so is the flux: nothing rings.
    np.testing.assert_allclose(out.flux[0, 1:-1], 2 + 0.5 * (new[1:-1] - 5000), rtol=1e-12)
    assert np.all(np.isfinite(out.flux))


def test_gaps_in_the_grid_are_not_filled():
    wave = np.concatenate([np.arange(5000.0, 5010.0), np.arange(5030.0, 5040.0)])
    out = resample(
        make_spectra(wave, np.ones(wave.size), medium="air"), np.arange(5000.5, 5039), medium="air"
    )
    inside = (out.wave > 5009) & (out.wave < 5030)
    np.testing.assert_array_equal(out.valid[0], ~inside)


def test_resampling_without_a_valid_pixel_or_overlap():
    wave = np.linspace(5000, 5010, 50)
    flux = np.stack([np.full(50, np.nan), np.ones(50)])
    bad = make_spectra(wave, flux, medium="air", ivar=np.ones((2, 50)))
    for out in (
        resample(bad, wave[5:20] + 0.01, medium="air"),
        degrade_and_resample(bad, wave[20:30] + 0.01, medium="air", lsf=LineSpread(fwhm=0.5)),
    ):
        assert not out.valid[0].any()
        assert out.valid[1].all()
        assert np.all(np.isfinite(out.flux))
    for new in ([4000.0, 4001.0], [6000.0, 6001.0], [4999.0, 5000.0 - 1e-6]):
        assert not resample(bad, new, medium="air").valid.any()
        assert not degrade_and_resample(bad, new, medium="air", lsf=LineSpread(fwhm=0.5)).valid.any()


def test_resampling_inverse_variance():
    wave = np.arange(5000.0, 5010.0)
    ivar = 1 / (1 + np.arange(10.0))
    ivar[4] = 0
    out = resample(
        make_spectra(wave, np.ones(10), medium="air", ivar=ivar),
        [5000.0, 5002.5, 5004.0, 5008.25],
        medium="air",
    )
    np.testing.assert_allclose(out.ivar[0], [1, 1 / 3.5, 0, 1 / 9.25])
    assert out.valid[0].tolist() == [True, True, False, True]


def test_resample_is_checked():
    short = make_spectra([5000.0, 5001.0], np.ones(2), medium="air", names=["short.fits"])
    with pytest.raises(SpectrumError, match=r"short.fits: expected at least 4 pixels to resample, found 2"):
        resample(short, [5000.0, 5000.5], medium="air")
    with pytest.raises(ValueError, match="new_wave must be"):
        resample(short, [5001.0, 5000.0], medium="air")
    with pytest.raises(ValueError, match="medium must be one of"):
        resample(short, [5000.0, 5000.5], medium="glass")


def test_both_at_once_equals_one_after_the_other():
    wave = np.linspace(5000, 5200, 4001)
    flux = RNG.normal(1, 0.1, (2, wave.size))
    spectra = make_spectra(wave, flux, medium="vacuum")
    new = np.linspace(5080, 5120, 300)
    native, fwhm = LineSpread(fwhm=np.linspace(0.2, 0.4, wave.size)), np.linspace(0.8, 1.2, new.size)
    both = degrade_and_resample(spectra, new, medium="vacuum", lsf=LineSpread(fwhm=fwhm), native=native)
    slow, _ = degrade(wave, flux, lsf=LineSpread(fwhm=np.interp(wave, new, fwhm)), native=native)
    np.testing.assert_allclose(both.flux, interpolate.CubicSpline(wave, slow, axis=1)(new), rtol=1e-9)
    assert both.valid.all()


def test_a_native_line_spread_may_be_too_wide_beyond_the_new_grid():
    wave = np.linspace(5000, 5040, 1001)
    spectra = make_spectra(wave, np.ones(wave.size), medium="air")
    native = LineSpread(fwhm=np.linspace(0.5, 1.5, wave.size))  # 1.0 Å at 5020 Å
    lsf = LineSpread(fwhm=1.0)
    assert degrade_and_resample(spectra, wave[300:490], medium="air", lsf=lsf, native=native).valid.all()
    with pytest.raises(ValueError, match="cannot sharpen"):
        degrade_and_resample(spectra, wave[300:520], medium="air", lsf=lsf, native=native)


def test_both_at_once_masks_what_bad_pixels_and_ends_reach():
    wave = np.linspace(5000, 5040, 1001)
    valid = np.ones(wave.size, bool)
    valid[500:510] = False
    flux = np.where(valid, 1.0, 50.0)
    spectra = make_spectra(wave, flux, medium="air", valid=valid)
    sigma = 0.4
    out = degrade_and_resample(spectra, wave, medium="air", lsf=LineSpread(fwhm=sigma * FWHM_PER_SIGMA))
    np.testing.assert_allclose(out.flux, 1, rtol=1e-9)
    good = out.wave[out.valid[0]]
    assert good[0] - 5000 == pytest.approx(4 * sigma, abs=0.05)
    assert 5040 - good[-1] == pytest.approx(4 * sigma, abs=0.05)
    lost = (out.wave > 5002) & (out.wave < 5038) & ~out.valid[0]
    assert lost[500:510].all()
    # Ten pixels of 0.04 Å hold 1 % of a kernel of σ = 0.4 Å whose centre is 2.0 σ beyond them.
    assert np.count_nonzero(lost) == pytest.approx(10 + 2 * 2.0 * sigma / 0.04, abs=6)


def test_both_at_once_propagates_variance():
    wave = np.linspace(5000, 5040, 401)
    noise = np.random.default_rng(2).normal(0, 0.1, (2000, wave.size))
    ivar = np.full(noise.shape, 100.0)
    out = degrade_and_resample(
        make_spectra(wave, noise, medium="air", ivar=ivar),
        wave[100:300],
        medium="air",
        lsf=LineSpread(fwhm=1.0),
    )
    # 2000 draws × about 30 independent stretches give the scatter to 0.3 %
    np.testing.assert_allclose(np.std(out.flux) * np.sqrt(np.median(out.ivar)), 1, rtol=0.02)


def test_phoenix_hires_degraded_equals_medres():
    name = "lte05800-4.50-0.0.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits"
    medres = {"format": "image", "medium": "vacuum", "axis": "ln", "wave_unit": "Angstrom"}
    hires = {
        "format": "phoenix_hires",
        "medium": "vacuum",
        "wave_unit": "Angstrom",
        "wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits",
    }
    coarse = io.read(shared(f"phoenix/medres/{name}"), source=medres)
    fine = io.read(shared(f"phoenix/hires_cut/{name}"), source=hires)
    inside = (coarse.wave > 5010) & (coarse.wave < 5790)
    out = degrade_and_resample(fine, coarse.wave[inside], medium="vacuum", lsf=LineSpread(resolution=1e4))
    ratio = (
        out.flux[0] / np.median(out.flux[0]) / (coarse.flux[0, inside] / np.median(coarse.flux[0, inside]))
    )
    assert out.valid.all()
    assert np.std(ratio) < 1e-5  # 1.5e-6 seen; a shift by one pixel gives 1.6e-2
    np.testing.assert_allclose(ratio.mean(), 1, atol=1e-4)
