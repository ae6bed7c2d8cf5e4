"""Presets: the records, the shared files that they read, and what is found out about a file."""

import dataclasses
import itertools

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap import io, surveys
from remap.config import ConfigError
from remap.predict.plan import group_stars
from remap.spectra import SpectrumError, air_to_vacuum
from remap.surveys import identification


def shared(pattern):
    """The shared files of a pattern, or a skip."""
    folder, _, name = f"surveys/{pattern}".rpartition("/")
    try:
        return io.list_files(io.find_data(folder), name)
    except SpectrumError as error:
        pytest.skip(str(error))


def read(survey, pattern, **options):
    return io.read_segments(shared(pattern)[0], source=surveys.get(survey).source, **options)


def deepest(spectra, near, width):
    """The wavelength of the deepest point near a line, of the parabola through three valid pixels."""
    inside = (np.abs(spectra.wave - near) < width) & spectra.valid[0]
    wave, flux = spectra.wave[inside], spectra.flux[0, inside].astype(float)
    at = int(np.clip(np.argmin(flux), 1, len(flux) - 2))
    left, middle, right = flux[at - 1 : at + 2]
    bend = left - 2 * middle + right
    return wave[at] + (0.5 * (left - right) / bend if bend > 0 else 0.0) * (wave[at] - wave[at - 1])


def test_records():
    for name in surveys.names():
        survey = surveys.get(name)
        assert survey.name == name
        assert survey.about.endswith(".")
        assert survey.patterns
    with pytest.raises(ConfigError, match=r"survey must be one of .*miles.*, found 'sloan'"):
        surveys.get("sloan")
    miles = surveys.get("miles")
    with pytest.raises(ConfigError, match="frame must be one of"):
        dataclasses.replace(miles, frame="moving")
    with pytest.raises(ConfigError, match="no format"):
        dataclasses.replace(miles, source={})


def test_every_field_can_be_overridden(tmp_path):
    fits.writeto(tmp_path / "x.fits", np.ones(9), fits.Header({"CRVAL1": 5000.0, "CDELT1": 1.0}))
    miles = surveys.get("miles")
    changed = miles.with_source({"line_spread": None, "medium": "vacuum", "segments": [{"segment": "A"}]})
    assert io.read(tmp_path / "x.fits", source=changed.source).medium == "vacuum"
    assert io.read(tmp_path / "x.fits", source=changed.source).fwhm is None
    assert surveys.get("miles") == miles
    lamost = surveys.get("lamost_lrs").with_source({"line_spread": {"resolution": 1000.0}})
    assert {o["line_spread"]["resolution"] for o in lamost.source["options"]} == {1000.0}
    own = dataclasses.replace(miles, name="own", frame="observed")
    assert (own.frame, own.source) == ("observed", miles.source)


def test_lamost_lrs():
    source = surveys.get("lamost_lrs").source
    offsets = []
    for path in shared("lamost_lrs/spectra/*.fits"):
        spectra = io.read(path, source=source)
        rv = spectra.fact("rv")[0]
        offsets.append(deepest(spectra, 6564.61 * (1 + rv / 299792.458), 12) / 6564.61 - 1 - rv / 299792.458)
        assert spectra.fact("star_id")[0].startswith("LAMOST J")
        assert spectra.fact("snr")[0] > 0
        assert abs(10**3.5682 - spectra.wave[0]) < 1e-6
    assert abs(np.median(offsets)) * 299792.458 < 30  # a third of a pixel


@pytest.mark.parametrize("name", ["lamost_lrs", "lamost_mrs"])
def test_visits_of_lamost_are_one_star(name):
    """Their identifiers, positions, differ by up to 1 arcsec; of 18 stars of the 36 no two visits have the same."""
    paths = shared(
        {"lamost_lrs": "lamost_repeats/spectra/*.fits.gz", "lamost_mrs": "lamost_mrs/*.fits*"}[name]
    )
    stars = [io.stars(path, source=surveys.get(name).source) for path in paths]
    joined = {tuple(group) for group in group_stars(stars)}
    if name == "lamost_mrs":
        assert joined == {(0, 1)}
        return
    listed = Table.read(paths[0].parents[1] / "repeats.csv", format="ascii.csv")
    group = {str(row["file"]): int(row["group"]) for row in listed}
    expected: dict[int, list[int]] = {}
    for i, path in enumerate(paths):
        expected.setdefault(group[path.name], []).append(i)
    assert joined == {tuple(members) for members in expected.values()}
    names = [{star.name for i in members for star in stars[i]} for members in expected.values()]
    assert sum(len(several) > 1 for several in names) == 18


def test_lamost_lrs_with_wavelengths_in_a_row():
    source = surveys.get("lamost_lrs").source
    path = shared("lamost_repeats/spectra/*.fits.gz")[0]
    spectra = io.read(path, source=source)
    rows = fits.getdata(path)
    np.testing.assert_array_equal(spectra.wave, rows[2].astype(float))
    np.testing.assert_array_equal(spectra.ivar[0], rows[1].astype(float))
    axis = fits.getheader(path)["CRVAL1"] + 1e-4 * np.arange(spectra.wave.size)
    np.testing.assert_allclose(spectra.wave, 10**axis, rtol=1e-6)


def test_sdss_spspec():
    (spectra,) = read("sdss_spspec", "sdss_spSpec/*.fits")
    assert 0.98 < spectra.valid.mean() < 1
    assert 2.3 < spectra.fwhm[0] < 2.7  # 1.2 pixels of 69 km/s
    assert round(spectra.fact("ra")[0], 5) == 2.02344
    assert np.isnan(spectra.fact("rv")[0])  # z = 0.0454102: a galaxy


def test_apogee_apstar():
    found = read("apogee", "apogee_apStar/*.fits")
    assert [s.fact("exposure")[0] for s in found] == ["", "visit1", "visit2", "visit3"]
    rows = fits.getdata(shared("apogee_apStar/*.fits")[0], 1)
    np.testing.assert_array_equal(found[0].flux[0], rows[0])
    np.testing.assert_array_equal(found[2].flux[0], rows[3])
    assert not found[0].valid[found[0].flux == 0].any()
    assert found[0].fact("star_id")[0] == "2M00005143+5615568"
    assert abs(deepest(found[0], 15892.8, 2) - 15892.8) < 0.6  # Si I 15892.8, vacuum, at rest


def test_apogee_apvisit():
    found = read("apogee", "apogee_apVisit/*.fits")
    assert [s.fact("segment")[0] for s in found] == ["red", "green", "blue"]
    assert all(np.all(np.diff(s.wave) > 0) for s in found)
    with pytest.raises(SpectrumError, match=r"found 3 \(red, green, blue\): read_segments"):
        io.read(shared("apogee_apVisit/*.fits")[0], source=surveys.get("apogee").source)
    (green,) = read("apogee", "apogee_apVisit/*.fits", within=(16000.0, 16100.0))
    assert green.fact("segment")[0] == "green"


def test_aspcapstar_and_a_star_of_one_visit(tmp_path):
    axis = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
    flux, error = np.ones(8575, np.float32), np.full(8575, 0.01, np.float32)
    flux[:9], error[:9] = 0, 1e10
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(a, axis) for a in (flux, error, flux))]
    fits.HDUList(hdus).writeto(tmp_path / "aspcapStar-r8-2M1.fits")
    mask = np.zeros(8575, np.int16)
    mask[20:22] = 1 << 3, 1 << 9
    hdus[3] = fits.ImageHDU(mask)
    fits.HDUList(hdus).writeto(tmp_path / "apStar-r8-2M00005143+5615568.fits")
    source = surveys.get("apogee").source
    spectra = io.read(tmp_path / "aspcapStar-r8-2M1.fits", source=source)
    assert np.flatnonzero(~spectra.valid[0]).tolist() == list(range(9))
    spectra = io.read(tmp_path / "apStar-r8-2M00005143+5615568.fits", source=source)
    assert np.flatnonzero(~spectra.valid[0]).tolist() == [*range(9), 20]
    assert spectra.fact("star_id")[0] == "2M00005143+5615568"


def test_harps_uves_and_mike():
    (harps,) = read("harps", "harps/*.fits")
    assert abs(deepest(harps, 6562.8, 0.6) - 6562.79 * (1 - 2 / 299792.458)) < 0.03
    assert harps.fact("star_id")[0] == "HD189733"
    assert np.count_nonzero(harps.flux == 0) > 3290  # left to the cleaning
    (uves,) = read("uves", "uves/*.fits")
    assert (uves.medium, uves.fact("star_id")[0]) == ("air", "MN-Lup")
    (mike,) = read("mike", "mike/hd122563.fits")
    assert abs(deepest(mike, 6562.8, 1) - 6562.79) < 0.1  # 5 km/s; in vacuum it were 83


def test_elodie_as_image_and_as_text():
    (image,) = read("elodie", "elodie/*.fits")
    (text,) = read("text", "elodie/*.dat")
    assert np.count_nonzero(~image.valid) == 98
    both = np.interp(text.wave, image.wave[image.valid[0]], image.flux[0, image.valid[0]])
    inside = text.valid[0] & (text.wave < 6790)
    assert np.median(np.abs(both / text.flux[0] - 1)[inside]) < 0.02
    assert image.ivar[0, 0] == pytest.approx(1 / 1631.6677**2, rel=1e-6)
    assert image.fwhm[0] == pytest.approx(0.1321429)
    assert image.fact("dec")[0] == pytest.approx(15.18361, abs=1e-5)


def test_the_sun_as_image_and_as_text():
    (image,) = read("linear_image", "sun_image/*.fits")
    (text,) = read("text", "sun_text/*.txt")
    assert abs(deepest(image, 5183.6, 0.5) - 5183.604) < 0.02  # Mg b, air
    assert abs(deepest(text, 5183.6, 0.5) - 5183.604) < 0.02


def test_iraf():
    found = read("iraf_multispec", "iraf/TRES.fits")
    assert len(found) == 51
    assert all(a.wave[0] < b.wave[0] for a, b in itertools.pairwise(found))
    # Orders overlap, and where they do both must see one star: Hβ of an A star is in one of them.
    (order,) = [s for s in found if s.wave[0] + 10 < 4861.3 < s.wave[-1] - 10][:1]
    smooth = np.convolve(order.flux[0], np.ones(41) / 41, "same")
    inside = np.abs(order.wave - 4861.3) < 15
    assert abs(order.wave[inside][np.argmin(smooth[inside])] - 4861.3) < 1.5
    orders = read("iraf_multispec", "iraf/multispec_equispec.fits")
    assert [round(s.wave[0], 3) for s in orders] == [14740.266, 19492.349]


def test_galah_has_relative_errors_and_counts_pixels_from_one(tmp_path):
    header = fits.Header({"CRVAL1": 4713.6, "CDELT1": 0.0458, "CRPIX1": 0, "RA": 10.0})
    flux = np.array([100.0, -50.0, 0.0])
    parts = [fits.PrimaryHDU(flux, header), *(fits.ImageHDU(np.full(3, v)) for v in (0.1, 1.0, 1.0, 1.0))]
    fits.HDUList(parts).writeto(tmp_path / "1401210010010011.fits")
    spectra = io.read(tmp_path / "1401210010010011.fits", source=surveys.get("galah").source)
    assert spectra.wave[0] == 4713.6
    np.testing.assert_allclose(spectra.ivar[0, :2], [0.01, 0.04])
    assert spectra.valid.tolist() == [[True, True, False]]
    assert (spectra.fact("star_id")[0], spectra.fact("segment")[0]) == ("140121001001001", "1")


def test_marvels(tmp_path):
    wave = 5000.0 + np.arange(50.0)
    columns = [
        fits.Column(n, "D", array=a) for n, a in (("wavelength", wave), ("flux", wave), ("ivar", wave))
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "x.fits")
    spectra = io.read(tmp_path / "x.fits", source=surveys.get("marvels").source)
    np.testing.assert_array_equal(spectra.ivar, [wave])
    best = surveys.identify(tmp_path / "x.fits")[0]
    assert best.name == "marvels"
    assert "INSTRUME is MARVELS" in best.lacks


def test_phoenix():
    try:
        folder = io.find_data("phoenix")
    except SpectrumError as error:
        pytest.skip(str(error))
    source = surveys.get("phoenix").source
    medres = io.read(io.list_files(folder / "medres", "*.fits")[3], source=source)
    assert abs(deepest(medres, 6564.61, 25) - 6564.61) < 0.1
    hires = io.read(io.list_files(folder / "hires_cut", "lte*.fits")[0], source=source)
    assert abs(deepest(hires, air_to_vacuum(5183.604), 0.5) - air_to_vacuum(5183.604)) < 0.02


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("lamost_lrs/spectra/*.fits", "lamost_lrs"),
        ("lamost_repeats/spectra/*.fits.gz", "lamost_lrs"),
        ("lamost_mrs/*", "lamost_mrs"),
        ("sdss_spec/*", "sdss"),
        ("boss_spec/*", "sdss"),
        ("sdss_spSpec/*", "sdss_spspec"),
        ("apogee_apStar/*", "apogee"),
        ("apogee_apVisit/*", "apogee"),
        ("desi/*", "desi"),
        ("harps/*", "harps"),
        ("uves/*", "uves"),
        ("elodie/*.fits", "elodie"),
        ("elodie/*.dat", "text"),
        ("mike/*", "linear_image"),
        ("calspec/*", "calspec"),
        ("hires/*", "hires"),
        ("ferre/*", "ferre"),
        ("sun_image/*", "linear_image"),
        ("sun_text/*", "text"),
        ("iraf/TRES.fits", "iraf_multispec"),
        ("iraf/multispec_equispec.fits", "iraf_multispec"),
    ],
)
def test_files_are_identified_with_reasons(pattern, name):
    for path in shared(pattern)[:3]:
        best = surveys.identify(path)[0]
        assert best.name == name
        assert best.reasons


def test_every_survey_can_be_identified():
    """Except those whose files say nothing of themselves."""
    assert set(surveys.names()) - set(identification.SIGNS) == {"mike"}
    assert set(identification.SIGNS) <= set(surveys.names())


def test_what_cannot_be_identified(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0\1\2" * 100)
    with pytest.raises(SpectrumError, match="found another binary one"):
        surveys.identify(tmp_path / "x.bin")
    with pytest.raises(SpectrumError, match="found no file"):
        surveys.identify(tmp_path / "none.fits")
    fits.writeto(tmp_path / "cube.fits", np.ones((2, 3, 4)))
    assert surveys.identify(tmp_path / "cube.fits") == ()
    assert surveys.describe(tmp_path / "cube.fits") == "0 'PRIMARY' [2, 3, 4]"
