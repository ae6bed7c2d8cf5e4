"""Velocities of observed stars, against what their surveys and the lines in the files say."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap.io import find_data
from remap.preprocess.resample import LineSpread, degrade_and_resample, resample
from remap.preprocess.templates import make_templates
from remap.preprocess.velocity import measure_velocities
from remap.spectra import SpectrumError, make_spectra

WAVE = {"A": 4855.4 + 0.9 * np.arange(472), "B": 5280.2 + 0.9 * np.arange(517)}  # of configs/miles.py
SPREAD = LineSpread(fwhm=2.5)


def shared(path):
    try:
        return find_data(path)
    except SpectrumError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def templates():
    with np.load(shared("lte_grid.npz")) as file:
        some = slice(None, None, 6)  # 99 nodes
        library = make_spectra(file["wave_air"], file["flux"][some], medium="air")
        labels = file["labels"][some, :3]
    arms = {a: degrade_and_resample(library, w, medium="air", lsf=SPREAD) for a, w in WAVE.items()}
    flux, valid = {a: s.flux for a, s in arms.items()}, {a: s.valid.all(axis=0) for a, s in arms.items()}
    return make_templates(flux, valid, WAVE, labels, "air")


def on_arms(spectra, *, sharp=False):
    near = spectra.pixels(np.flatnonzero((spectra.wave > 4700) & (spectra.wave < 5900)))
    arms = {}
    for arm, wave in WAVE.items():
        new = (
            degrade_and_resample(near, wave, medium="air", lsf=SPREAD)
            if sharp
            else resample(near, wave, medium="air")
        )
        arms[arm] = (new.flux, new.valid, new.ivar)
    return arms


def image(path):
    flux = np.squeeze(fits.getdata(path)).astype(np.float64)
    header = fits.getheader(path)
    wave = header["CRVAL1"] + header["CDELT1"] * np.arange(flux.size)
    return make_spectra(wave, flux, medium="air", valid=np.isfinite(flux) & (flux != 0))


@pytest.mark.parametrize(
    ("path", "velocity", "tolerance"),
    [
        (
            "harps/HARPS.2006-09-08T02-12-38.604_s1d_A.fits",
            -2.0,
            3.0,
        ),  # 1/16 of a pixel: templates unlike the star
        ("mike/hd122563.fits", 0.0, 4.0),  # the file's own rest frame is good to 3 km/s
        ("sun_image/sun-450-530.fits", 0.0, 3.0),
    ],
)
def test_known_velocities_are_found(templates, path, velocity, tolerance):
    found = measure_velocities(on_arms(image(shared(f"surveys/{path}")), sharp=True), templates)
    assert not found.poor[0]
    assert abs(found.velocity[0] - velocity) < tolerance


@pytest.mark.parametrize("path", ["elodie/exStar.fits"])
def test_a_hot_star_is_poor(templates, path):
    found = measure_velocities(on_arms(image(shared(f"surveys/{path}")), sharp=True), templates)
    assert found.poor[0]


def test_miles_is_at_rest(templates):
    files = sorted(shared("miles/spectra").iterdir())[::12]
    every = [on_arms(image(file)) for file in files]
    arms = {a: (*(np.concatenate([e[a][i] for e in every]) for i in (0, 1)), None) for a in WAVE}
    found = measure_velocities(arms, templates)
    assert found.poor.mean() < 0.05
    assert abs(np.nanmedian(found.velocity)) < 4  # giants are at -3 km/s in both arms; a pixel is 49 km/s
    assert 1.48 * np.nanmedian(np.abs(found.velocity - np.nanmedian(found.velocity))) < 7


def test_lamost_agrees_with_its_pipeline(templates):
    labels = Table.read(shared("surveys/lamost_lrs/labels.ecsv"))
    labels = labels[labels["snr_g"] > 20]
    every = []
    for name in labels["file"]:
        path = shared(f"surveys/lamost_lrs/spectra/{name}")
        header, data = fits.getheader(path), fits.getdata(path).astype(np.float64)
        wave = 10 ** (header["CRVAL1"] + header["CD1_1"] * np.arange(data.shape[1]))
        every.append(on_arms(make_spectra(wave, data[0], ivar=data[1], valid=data[3] == 0, medium="vacuum")))
    arms = {a: tuple(np.concatenate([e[a][i] for e in every]) for i in range(3)) for a in WAVE}
    found = measure_velocities(arms, templates)
    off = found.velocity - np.asarray(labels["rv"])
    assert not found.poor.any()
    assert abs(np.median(off)) < 5
    assert 1.48 * np.median(np.abs(off - np.median(off))) < 10
    # The same with all flux reversed in wavelength is no star.
    backwards = {a: tuple(x[:, ::-1] for x in arms[a]) for a in WAVE}
    assert measure_velocities(backwards, templates).poor.mean() > 0.9
