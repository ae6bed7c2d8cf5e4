"""What a file is: parts, survey, pixels, and what a network could do with it."""

import numpy as np
import pytest
from astropy.io import fits
from helpers import tiny

from remap.spectra import SpectrumError, air_to_vacuum, doppler_shift, make_spectra, vacuum_to_air
from remap.stages.inspect import inspect, plot
from remap.surveys import Survey


def survey(**changes):
    source = {"format": "table", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
    columns = {"wave_column": "wavelength", "flux_column": "flux", "ivar_column": "ivar"}
    own = {"frame": "rest", "line_spread": {"fwhm": 2.8}} | changes
    frame = own.pop("frame")
    return Survey(
        name="tiny", about="", source=source | columns | own, patterns=("*.fits",), frame=frame, reference=""
    )


@pytest.fixture
def file(tmp_path):
    """A star in air and at rest, with two exact zeros and a bad error."""
    wave, flux, ivar = tiny.star(3)
    flux, ivar = flux.copy(), ivar.copy()
    flux[[0, 1]], ivar[5] = 0.0, 0.0
    return tiny.write_table(tmp_path / "star.fits", wave, flux, ivar)


def test_a_file_of_a_known_survey_is_recognised(tmp_path):
    path = tmp_path / "s0123.fits"
    header = fits.Header({"CRVAL1": 4900.0, "CDELT1": 0.5, "INSTRUME": "HARPS"})
    flux = 1 + 0.01 * np.random.default_rng(0).normal(size=400)
    fits.PrimaryHDU(flux.astype(np.float32), header).writeto(path)
    found = inspect(path)
    assert found.matches[0].name == found.survey.name == "harps"
    text = "\n".join(found.lines())
    assert "4900.00 to 5099.50 Å, 400 pixels of 0.5 Å" in text
    assert "INSTRUME is HARPS" in text
    assert found.coverage == {}  # without a working folder


def test_pixels_are_counted(file):
    segment = inspect(file, survey=survey()).segments[0]
    size = len(tiny.WAVE)
    assert segment.zeros == pytest.approx(2 / size)
    assert segment.masked == pytest.approx(1 / size)
    assert segment.cleaned == pytest.approx(2 / size)  # the zeros, which no mask tells
    assert segment.declared == 2.8
    assert segment.step == pytest.approx(1.0)
    assert np.isfinite(segment.snr)


def test_arms_line_width_and_velocity_are_held_against_a_network(file, tiny_prepared):
    found = inspect(file, survey=survey(), workdir=tiny_prepared)
    assert set(found.coverage) == {"A", "B"}
    assert min(found.coverage.values()) > 0.9
    assert not found.coarse
    assert found.expected == 0
    assert abs(found.media.declared.velocity[0]) < 20
    text = "\n".join(found.lines())
    assert "covers of its arms" in text
    assert "km/s in air" in text
    unknown = inspect(file, survey=survey(line_spread=None), workdir=tiny_prepared)
    assert unknown.coarse
    assert "of unknown width" in "\n".join(unknown.lines())


def test_a_file_in_another_medium_than_declared_is_told(tmp_path, tiny_prepared):
    """The lines of these spectra are wide, so the velocity is good to some 10 km/s; 83 is seen."""
    wave, flux, ivar = tiny.star(3)
    path = tiny.write_table(tmp_path / "vacuum.fits", air_to_vacuum(wave), flux, ivar)
    wrong = inspect(path, survey=survey(medium="air"), workdir=tiny_prepared)
    right = inspect(path, survey=survey(medium="vacuum"), workdir=tiny_prepared)
    difference = wrong.media.declared.velocity[0] - right.media.declared.velocity[0]
    assert difference == pytest.approx(83, abs=5)
    assert wrong.media.verdict[0] in ("other", "undecided")
    assert right.media.verdict[0] in ("declared", "undecided")
    assert "air" in "\n".join(wrong.lines())


def test_a_moving_star_does_not_tell_its_medium(tmp_path, tiny_prepared):
    wave, flux, ivar = tiny.star(3)
    moved = vacuum_to_air(doppler_shift(air_to_vacuum(wave), 40.0))
    path = tiny.write_table(tmp_path / "moved.fits", moved, flux, ivar)
    found = inspect(path, survey=survey(frame="observed"), workdir=tiny_prepared)
    assert np.isnan(found.expected)
    assert found.media.verdict[0] == "undecided"
    assert "cannot be told" in "\n".join(found.lines())


def test_what_cannot_be_read_is_said_and_what_is_broken_raises(tmp_path, tiny_prepared):
    path = tmp_path / "image.fits"
    fits.PrimaryHDU(np.ones((3, 4, 5))).writeto(path)
    found = inspect(path, workdir=tiny_prepared)
    assert found.segments == ()
    assert "not read" in "\n".join(found.lines())
    with pytest.raises(SpectrumError, match="nothing to draw"):
        plot(found, tmp_path / "x.png")
    broken = tmp_path / "broken.fits"
    broken.write_bytes(b"")
    with pytest.raises(SpectrumError, match=r"broken\.fits"):
        inspect(broken)
    with pytest.raises(SpectrumError, match=r"gone\.fits"):
        inspect(tmp_path / "gone.fits")


def test_what_begins_in_the_ultraviolet_is_read_where_stars_are(tmp_path):
    """As predictions do, which never look there: Kurucz models begin at 90 Å."""
    wave = np.concatenate([[90.9, 300.0, 900.0], np.arange(5000.0, 5200.0)])
    columns = [fits.Column(n, "D", array=a) for n, a in (("WAVELENGTH", wave), ("FLUX", np.sqrt(wave)))]
    path = tmp_path / "model.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    found = inspect(path, survey="calspec")
    assert (found.trouble, found.segments[0].spectra.wave.size) == ("", 200)


def test_picture_is_written(file, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "pictures" / "star.png"
    plot(inspect(file, survey=survey()), target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_blank_targets_do_not_hide_the_others(tiny_prepared, tmp_path, monkeypatch):
    """Of a file of many targets the fullest one is looked at."""
    wave, flux, ivar = tiny.star(3)
    two = make_spectra(
        wave, np.stack([np.zeros_like(flux), flux]), medium="air", ivar=np.stack([0 * ivar, ivar]), fwhm=2.8
    )
    path = tiny.write_table(tmp_path / "two.fits", wave, flux, ivar)
    monkeypatch.setattr("remap.stages.inspect.io.read_segments", lambda *a, **k: (two,))
    found = inspect(path, survey=survey(), workdir=tiny_prepared)
    assert min(found.coverage.values()) > 0.9
