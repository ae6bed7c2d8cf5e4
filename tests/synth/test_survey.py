"""The mock survey: files as declared, known truth, exact repetition, instrument effects of the right size."""

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from remap.config import ConfigError
from remap.preprocess.rotation import broaden
from remap.synth import ELEMENTS, SurveySettings, make_survey
from remap.synth.mock import make_mock_data

SURVEY = {
    "seed": 5,
    "dwarfs": 6,
    "giants": 3,
    "labelled_dwarfs": 4,
    "labelled_giants": 1,
    "calibration_dwarfs": 1,
    "calibration_giants": 0,
    "dwarf_teff": (4500.0, 6500.0),
    "dwarf_logg": ((4500.0, 4.6), (6500.0, 4.2)),
    "giant_teff": (4200.0, 5200.0),
    "giant_logg": ((4200.0, 1.5), (5200.0, 3.2)),
    "logg_scatter": 0.1,
    "feh": (-0.1, 0.3),
    "feh_range": (-1.5, 0.5),
    "label_errors": (60.0, 0.1, 0.05),
    "calibration_errors": (15.0, 0.02, 0.01),
    "missing_labels": 0.0,
    "abundance_scatter": 0.1,
    "loggf_scatter": 0.1,
    "vmic": (0.8, 2.0),
    "vsini": (1.0, 8.0),
    "macroturbulence": (1.0, 4.0),
    "rv_scatter": 0.3,
    "lsf_fwhm": 0.48,
    "lsf_tilt": 0.1,
    "lsf_drift": 0.02,
    "response": 0.2,
    "blaze": 0.4,
    "snr": (50.0, 200.0),
    "calibration_snr": (300.0, 400.0),
    "bright_features": 1,
    "bright_height": (0.3, 0.5),
    "bright_fwhm": 0.4,
    "bright_jitter": 0.2,
    "cosmic_rays": 3.0,
    "dead_pixels": 2,
    "wave_range": (5160.0, 5200.0),
    "wave_step": 0.1,
    "oversample": 4,
    "chunk": 3,
}


def settings(**changes):
    return SurveySettings(**SURVEY | changes)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survey")
    make_survey(folder, settings())
    return folder


def spectrum(folder, name):
    return Table.read(folder / "spectra" / name, hdu=1, character_as_bytes=False)


def test_files_and_units(survey):
    truth = Table.read(survey / "truth.ecsv")
    assert len(truth) == 9
    assert sorted(p.name for p in (survey / "spectra").iterdir()) == sorted(truth["file"])
    star = spectrum(survey, truth["file"][0])
    assert star.colnames == ["wavelength", "flux", "ivar"]
    assert star["wavelength"].unit == units.AA
    np.testing.assert_allclose(star["wavelength"], 5160 + 0.1 * np.arange(401))
    header = fits.getheader(survey / "spectra" / truth["file"][0], 1)
    assert header["WAVEMED"] == "air"
    assert header["OBJECT"] == truth["star_id"][0]


def test_labels_are_the_truth_with_the_quoted_errors(survey):
    labels, truth = Table.read(survey / "labels.ecsv"), Table.read(survey / "truth.ecsv")
    assert labels.colnames == ["file", "star_id", "teff", "logg", "feh", "teff_err", "logg_err", "feh_err"]
    assert [str(labels[c].unit) for c in ("teff", "logg", "feh")] == ["K", "dex", "dex"]
    known = truth[np.asarray(truth["labelled"])]
    assert list(labels["file"]) == list(known["file"])
    assert list(known["kind"]) == ["dwarf"] * 4 + ["giant"]
    assert set(known["split"]) == {"train"}
    assert list(known["calibration"]) == [True, False, False, False, False]
    assert not np.any(truth["calibration"][~np.asarray(truth["labelled"])])
    low, high = SURVEY["calibration_snr"]
    assert list((truth["snr"] >= low) & (truth["snr"] <= high)) == list(truth["calibration"])
    for j, name in enumerate(("teff", "logg", "feh")):
        error = np.where(known["calibration"], SURVEY["calibration_errors"][j], SURVEY["label_errors"][j])
        pull = (np.asarray(labels[name]) - np.asarray(known[name])) / error
        assert np.all(pull != 0)
        assert np.all(np.abs(pull) < 4)
        np.testing.assert_array_equal(labels[f"{name}_err"], error)


def test_noise_has_the_stated_size(survey):
    truth = Table.read(survey / "truth.ecsv")
    for row in truth:
        star = spectrum(survey, row["file"])
        good = np.asarray(star["ivar"]) > 0
        ratio = np.median(np.asarray(star["flux"] * np.sqrt(star["ivar"]))[good])
        assert ratio == pytest.approx(row["snr"], rel=0.05)


def test_dead_pixels_are_stationary_and_marked(survey):
    truth = Table.read(survey / "truth.ecsv")
    bad = np.array([np.asarray(spectrum(survey, f)["ivar"]) == 0 for f in truth["file"]])
    assert bad[0].sum() == SURVEY["dead_pixels"]
    assert np.all(bad == bad[0])


def test_repeats_from_its_seed(survey, tmp_path):
    make_survey(tmp_path / "same", settings())
    make_survey(tmp_path / "other", settings(seed=6))
    for name in ["labels.ecsv", "truth.ecsv", "spectra/star_0000.fits", "spectra/star_0008.fits"]:
        original = (survey / name).read_bytes()
        assert (tmp_path / "same" / name).read_bytes() == original
        assert (tmp_path / "other" / name).read_bytes() != original


def test_line_errors_make_a_domain_gap(tmp_path):
    quiet = {"cosmic_rays": 0.0, "dead_pixels": 0, "snr": (1e4, 1e4), "dwarfs": 1, "giants": 0}
    quiet |= {"labelled_dwarfs": 0, "labelled_giants": 0, "calibration_dwarfs": 0, "bright_features": 0}
    quiet |= {"loggf_scatter": 0.0, "abundance_scatter": 0.0}
    make_survey(tmp_path / "right", settings(**quiet))
    right = np.asarray(spectrum(tmp_path / "right", "star_0000.fits")["flux"], float)
    for change in ({"loggf_scatter": 0.2}, {"abundance_scatter": 0.2}):
        make_survey(tmp_path / next(iter(change)), settings(**quiet | change))
        wrong = np.asarray(spectrum(tmp_path / next(iter(change)), "star_0000.fits")["flux"], float)
        gap = np.std(wrong / right)
        assert 0.003 < gap < 0.1  # far above the noise of 1e-4, far below the lines


def test_abundances_scatter_but_for_iron(survey):
    truth = Table.read(survey / "truth.ecsv")
    names = [f"{e.lower()}_m" for e in ELEMENTS if e != "H"]
    values = np.array([truth[n] for n in names if n != "fe_m"])
    assert np.all(np.asarray(truth["fe_m"]) == 0)
    assert values.std() == pytest.approx(SURVEY["abundance_scatter"], rel=0.2)  # 153 draws: 6 %
    assert abs(values.mean()) < 0.03
    assert str(truth["mg_m"].unit) == "dex"


def test_one_label_of_some_stars_is_missing(tmp_path):
    counts = {"labelled_dwarfs": 6, "labelled_giants": 3, "missing_labels": 1.0}
    make_survey(tmp_path, settings(**counts))
    labels = Table.read(tmp_path / "labels.ecsv")
    missing = np.isnan([labels[n] for n in ("teff", "logg", "feh")])
    errors = np.isnan([labels[f"{n}_err"] for n in ("teff", "logg", "feh")])
    np.testing.assert_array_equal(missing, errors)
    np.testing.assert_array_equal(missing.sum(axis=0), [0] + [1] * 8)  # the calibration star has them all


def test_bright_features_stay_on_their_pixels(tmp_path):
    quiet = {"cosmic_rays": 0.0, "dead_pixels": 0, "snr": (1e4, 1e4), "calibration_snr": (1e4, 1e4)}
    make_survey(tmp_path / "with", settings(**quiet))
    make_survey(tmp_path / "without", settings(**quiet, bright_height=(0.0, 0.0)))
    truth = Table.read(tmp_path / "with" / "truth.ecsv")
    (place,) = truth.meta["bright_pixels"]
    for name in truth["file"]:
        a, b = (np.asarray(spectrum(tmp_path / f, name)["flux"], float) for f in ("with", "without"))
        excess = (a - b) / 1e8
        assert abs(np.argmax(excess) - place) <= 1
        assert 0.25 < excess.max() < 0.55  # sampling and the place within a pixel take up to a tenth
        assert abs(excess[np.abs(np.arange(excess.size) - place) > 10]).max() < 1e-3


def test_broadening_conserves_area_and_has_the_right_width():
    wave = 5000.0 * np.exp(np.arange(-2000, 2000) * 1.0 / 299792.458)  # 1 km/s per pixel
    velocity = np.arange(-2000, 2000)
    line = 1 - 0.5 * np.exp(-0.5 * (velocity / 3.0) ** 2)
    seen = broaden(wave, line, vsini=20.0, macroturbulence=4.0, velocity=7.0)
    depth = 1 - seen
    mean = np.sum(velocity * depth) / depth.sum()
    variance = np.sum((velocity - mean) ** 2 * depth) / depth.sum()
    # variance of the rotation profile: v² [(1-ε)/4 + (2ε/3)/5] / (1-ε/3), from the moments of its two parts
    rotation = 20.0**2 * ((1 - 0.6) / 4 + (2 * 0.6 / 3) / 5) / (1 - 0.6 / 3)
    assert depth.sum() == pytest.approx((1 - line).sum(), rel=1e-4)
    assert mean == pytest.approx(7.0, abs=0.01)
    assert variance == pytest.approx(3.0**2 + 4.0**2 + rotation, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labelled_dwarfs": 7}, "cannot label 7 of 6 dwarfs"),
        (
            {"dwarfs": 0, "giants": 0, "labelled_dwarfs": 0, "labelled_giants": 0, "calibration_dwarfs": 0},
            "no stars",
        ),
        ({"calibration_dwarfs": 5}, "cannot take 5 calibration stars from 4 labelled dwarfs"),
        ({"missing_labels": 1.5}, "missing_labels must be in"),
        ({"blaze": 1.0}, "blaze must be in"),
        ({"lsf_fwhm": 0.0}, "lsf_fwhm must be positive"),
        ({"rv_scatter": -1.0}, "rv_scatter must not be negative"),
        ({"cosmic_rays": -1.0}, "cosmic_rays must not be negative"),
        ({"snr": (200.0, 50.0)}, "snr must be a positive range"),
        ({"dead_pixels": 402}, "dead_pixels must be 0 to 401"),
        ({"wave_step": 0.0}, "at least two pixels"),
        ({"oversample": 0}, "oversample must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"loggf_scatter": -0.1}, "seed and loggf_scatter must not be negative"),
        ({"dwarf_teff": (9000.0, 9500.0)}, "teff = .* outside"),
    ],
)
def test_survey_refuses(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_survey(tmp_path, settings(**change))
    assert not (tmp_path / "spectra").exists()


def test_survey_does_not_overwrite(survey):
    with pytest.raises(FileExistsError, match="already has files"):
        make_survey(survey, settings())


@pytest.mark.parametrize(
    ("survey", "message"),
    [
        (SURVEY | {"blaze": 1.0}, "synthetic.survey: blaze must be in"),
        (SURVEY | {"glare": 1.0}, r"synthetic.survey: unknown fields \['glare'\]"),
    ],
)
def test_mock_data_refuse_a_survey_before_any_work(tmp_path, survey, message):
    with pytest.raises(ConfigError, match=message):
        make_mock_data(tmp_path / "mock", {"library": {}, "survey": survey})
    assert not (tmp_path / "mock").exists()
