"""The preprocessing description, spectra on the arms' grids, and the stage with everything that can be wrong."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import tiny

from configs import miles
from remap import make_spectra
from remap.config import ConfigError
from remap.preprocess.description import PREPROCESSING_VERSION, Preprocessing, make_preprocessing
from remap.preprocess.grid import library_on_grid, observed_on_grid, scale_to_unit, snr_estimate
from remap.spectra import SpectrumError, air_to_vacuum, doppler_shift, vacuum_to_air
from remap.stages.preprocess import preprocess
from remap.store.workdir import (
    check_preprocessing,
    load_library,
    load_stationary,
    load_survey,
    read_preprocessing,
    read_stars,
)

DESCRIPTION = make_preprocessing(tiny.with_algorithm1(tiny.get_config()))
SUN = np.array([5770.0, 4.4, 0.0])


# -------------------------------------------------------------------------------------- the description


def test_arms_start_at_start_and_end_before_stop():
    wave = DESCRIPTION.wave("A")
    np.testing.assert_array_equal(wave, 5000.0 + np.arange(tiny.PIXELS))
    c = tiny.get_config()
    c.arms.A.update({"start": 4850.0, "stop": 5280.0, "step": 0.1})
    assert len(make_preprocessing(c).wave("A")) == 4300  # MARVELS; rounding of 430 / 0.1 adds no pixel


def test_description_survives_json():
    text = json.dumps(DESCRIPTION.to_json())
    again = Preprocessing.from_json(json.loads(text))
    assert again == DESCRIPTION
    assert json.dumps(again.to_json()) == text
    assert again.continuum_settings("B") == DESCRIPTION.continuum_settings("B")
    hash(again.continuum_settings("B"))  # a static argument of jit


def test_description_of_another_version_is_refused_with_both():
    other = DESCRIPTION.to_json() | {"version": 99, "software": "deep-remap 7"}
    with pytest.raises(ValueError, match=rf"expected {PREPROCESSING_VERSION}, found 99 .*deep-remap 7"):
        Preprocessing.from_json(other)


def test_a_difference_is_named_with_both_values_and_the_software_may_differ():
    expected = DESCRIPTION.to_json()
    check_preprocessing(expected | {"software": "deep-remap 7"}, expected, "here")
    found = json.loads(json.dumps(expected))
    found["arms"]["B"][2] = 0.5
    found["medium"] = "vacuum"
    with pytest.raises(ValueError, match="here") as error:
        check_preprocessing(found, expected, "here")
    assert "medium: expected 'air', found 'vacuum'" in str(error.value)
    assert "arms.B: expected [5120.0, 5240.0, 1.0], found [5120.0, 5240.0, 0.5]" in str(error.value)


def test_smoothing_is_given_in_angstrom_and_exceed_zero_means_the_rule():
    settings = DESCRIPTION.continuum_settings("A")
    assert (settings.pixel, settings.sigma) == (1.0, 15.0)
    assert settings.exceed is None
    c = tiny.with_algorithm1(tiny.config(""))
    c.continuum.exceed = 7
    assert make_preprocessing(c).continuum_settings("A").exceed == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_medium": "water"}, r"grid_medium must be one of .*air.*found 'water'"),
        ({"continuum__name": "splines"}, r"continuum\.name must be one of .*'algorithm1'.*, found 'splines'"),
        ({"arm_names": ("A", "C")}, r"arm C has no grid; the config knows \['A', 'B'\]"),
        ({"arm_names": ()}, "at least one arm"),
        ({"arms__A__stop": 4000.0}, r"arm A: expected 0 < start < stop .*found .*4000"),
        ({"arms__B__step": 0.0}, r"arm B: expected .*step > 0"),
        ({"label_names": ("teff", "mass")}, r"labels \['mass'\] have no settings"),
    ],
)
def test_contradictions_in_the_config_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_preprocessing(tiny.config("", **change))


# ------------------------------------------------------------------------------------- spectra on grids


def star(wave, *, medium="air"):
    air = wave if medium == "air" else vacuum_to_air(wave)
    return make_spectra(wave, tiny.flux(air, SUN, tiny.SURVEY_WIDTH), medium=medium, names=["sun"])


def test_vacuum_spectra_land_on_the_same_air_pixels():
    expected = tiny.flux(DESCRIPTION.wave("B"), SUN, tiny.SURVEY_WIDTH)
    fine = np.arange(4990.0, 5260.0, 0.25)
    for medium, wave in (("air", fine), ("vacuum", air_to_vacuum(fine) + 0.1)):
        on = observed_on_grid(star(wave, medium=medium), DESCRIPTION, "B")
        assert on.valid.all()
        np.testing.assert_allclose(on.flux, expected, atol=1e-4)  # the spline's error at σ = 1.2 Å / 0.25 Å


def test_velocity_is_removed_and_its_sign_matters():
    velocity = 80.0  # km/s: 1.4 Å
    fine = np.arange(4990.0, 5260.0, 0.25)
    shifted = vacuum_to_air(doppler_shift(air_to_vacuum(fine), velocity))
    moved = dataclasses.replace(star(fine), wave=shifted)
    at_rest = observed_on_grid(star(fine), DESCRIPTION, "A").flux
    np.testing.assert_allclose(
        observed_on_grid(moved, DESCRIPTION, "A", velocity=velocity).flux, at_rest, atol=1e-9
    )
    wrong = observed_on_grid(moved, DESCRIPTION, "A", velocity=-velocity).flux
    assert np.abs(wrong - at_rest).max() > 0.1


def test_pixels_that_the_spectrum_does_not_cover_are_invalid():
    on = observed_on_grid(star(np.arange(5050.0, 5300.0, 0.25)), DESCRIPTION, "A")
    np.testing.assert_array_equal(on.valid[0], DESCRIPTION.wave("A") >= 5050.0)
    outside = observed_on_grid(star(np.arange(6000.0, 6100.0, 0.25)), DESCRIPTION, "A")
    assert not outside.valid.any()


def library(change=lambda flux: flux, *, wave=None):
    wave = np.arange(4975.0, 5265.0, 0.25) if wave is None else wave
    labels = np.stack([SUN, SUN - [500, 0, 0.5]])
    flux = change(tiny.flux(wave, labels, tiny.LIBRARY_WIDTH))
    return make_spectra(wave, flux, medium="air", names=["node 0", "node 1"])


def test_library_is_degraded_once_per_line_spread():
    """Gaussian lines stay Gaussian: widths add in quadrature, areas are kept."""
    log_flux, valid = library_on_grid(library(), DESCRIPTION, "A", native=None)
    assert log_flux.shape == (2, 2, tiny.PIXELS)
    assert log_flux.dtype == np.float32
    assert valid.all()
    for i, fwhm in enumerate((2.4, 2.6)):
        wide = np.hypot(tiny.LIBRARY_WIDTH, fwhm / 2.3548)
        expected = tiny.flux(DESCRIPTION.wave("A"), SUN, wide)[0]
        np.testing.assert_allclose(np.exp(log_flux[i, 0]), expected / expected.max(), atol=1e-4)


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (library(wave=np.arange(5030.0, 5265.0, 0.25)), r"cover arm A \(5000\.0-5119\.0 Å air\), found 7\d%"),
        (
            library(lambda f: np.where([[False], [True]], f - 0.95, f)),
            "node 1 has flux at or below zero in arm A",
        ),
        (library(lambda f: f * 0), "node 0 has flux at or below zero in arm A"),
    ],
)
def test_library_that_cannot_serve_is_refused_by_name(spoilt, message):
    with pytest.raises(ValueError, match=message):
        library_on_grid(spoilt, DESCRIPTION, "A", native=None)


# ------------------------------------------------------------------------------------ scale and noise


@pytest.mark.parametrize("scale", [1e-30, 1e-17, 1.0, 1e15, 1e60])
def test_flux_of_any_unit_is_scaled_without_loss(scale):
    flux = np.array([[0.5, 2.0, -1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    valid = np.array([[True, True, True, False], [True] * 4])
    found = scale_to_unit(flux * scale, valid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.25, 1.0, -0.5, 0.0], [0, 0, 0, 0]], rtol=1e-6)


def test_invalid_pixels_may_hold_anything():
    flux, valid = np.array([[1.0, np.nan, np.inf, 2.0]]), np.array([[True, False, False, True]])
    np.testing.assert_array_equal(scale_to_unit(flux, valid), [[0.5, 0, 0, 1.0]])


@pytest.mark.parametrize("scale", [1e-17, 1.0, 1e15])
@pytest.mark.parametrize("snr", [20.0, 200.0])
def test_signal_to_noise_is_found_with_and_without_errors(snr, scale):
    rng = np.random.default_rng(0)
    flux = scale * (1 + rng.standard_normal((3, 4000)) / snr)
    valid = rng.random(flux.shape) < 0.95
    ivar = np.full(flux.shape, (snr / scale) ** 2)
    np.testing.assert_allclose(snr_estimate(flux, valid, ivar), snr, rtol=0.01)
    # DER_SNR: a median of 3,300 absolute values, each from three pixels, is good to 2-3 %; 4σ here
    np.testing.assert_allclose(snr_estimate(flux, valid, None), snr, rtol=0.1)


@pytest.mark.parametrize("with_ivar", [True, False])
def test_signal_to_noise_of_nothing_is_nan_and_of_dead_pixels_no_trouble(with_ivar):
    flux, valid = np.zeros((3, 50)), np.zeros((3, 50), bool)
    valid[1] = True  # dead: all zero
    valid[2, :3] = True  # too few for an estimate from the flux
    found = snr_estimate(flux, valid, np.ones(flux.shape) if with_ivar else None)
    assert np.isnan(found[0])
    assert not found[1] > 0
    assert not found[2] > 0


# ------------------------------------------------------------------------------------------- the stage


def run(data, workdir, **changes):
    preprocess(tiny.config(data, **changes), workdir)
    return read_stars(workdir)


def row(stars, file):
    return stars[list(stars["file"]).index(file)]


def test_stage_writes_every_arm_and_one_row_per_file(tiny_prepared):
    stars = read_stars(tiny_prepared)
    assert len(stars) == len(tiny.DWARFS) + len(tiny.OTHERS)
    assert str(stars["teff"].unit) == "K"
    description = read_preprocessing(tiny_prepared)
    assert description == make_preprocessing(tiny.get_config())
    for arm in "AB":
        survey, snr = load_survey(tiny_prepared, arm)
        assert survey.flux.shape == (23, tiny.PIXELS)  # all but the truncated file
        assert np.abs(survey.flux).max() <= 1
        assert survey.valid[:-1].all()
        assert survey.valid[-1].sum() == (110 if arm == "A" else 0)  # one_arm.fits, which ends at 5109.3 Å
        np.testing.assert_allclose(snr[:-1], tiny.SNR, rtol=0.2)  # the slope of the continuum
        assert np.isfinite(snr[-1]) == (arm == "A")
        nodes = load_library(tiny_prepared, description, arm, interpolate=True)
        assert nodes.log_flux.shape == (2, 27, tiny.PIXELS)
        assert nodes.cells.shape == (8, 8)


def test_stage_counts_and_keeps_what_it_leaves_out(tiny_data, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="remap"):
        stars = run(tiny_data, tmp_path)
    status = {r["file"]: r["status"] for r in stars}
    expected = dict.fromkeys((r[0] for r in tiny.DWARFS), "ok")
    expected |= dict.fromkeys(("giant_0.fits", "giant_1.fits"), "ok")
    expected |= {"hot.fits": "outside", "nameless.fits": "unlabelled", "one_arm.fits": "unlabelled"}
    expected |= {"truncated.fits": "unreadable"}
    assert status == expected
    assert "'ok': 20, 'outside': 1, 'unlabelled': 2, 'unreadable': 1" in caplog.text
    reason = row(stars, "truncated.fits")["reason"]
    assert "truncated.fits: expected a FITS file, found a truncated file" in reason
    assert "truncated" in reason.split("found")[1]
    partly = row(stars, tiny.NO_METALLICITY)
    assert np.isnan(partly["feh"])
    assert np.isfinite(partly["teff"])
    assert partly["teff_err"] == 60.0  # of the table
    assert partly["logg_err"] == 0.15  # of the config: the table has none


def test_bad_files_are_left_out_and_the_rest_keeps_its_values(tiny_data, tiny_prepared, tmp_path):
    good = [row[0] for row in tiny.DWARFS[:3]]
    data = tiny.small_survey(tmp_path / "data", tiny_data, tuple(good))
    files = data / "survey" / "spectra"
    wave, flux, ivar = tiny.star(4)
    (files / "a_text.fits").write_text("no FITS at all")
    (files / "b_empty.fits").touch()
    tiny.write_table(files / "c_backwards.fits", np.where(wave == wave[1], wave[0] - 1, wave), flux, ivar)
    tiny.write_table(files / "d_twice.fits", np.repeat(wave[::2], 2), flux, ivar)
    tiny.write_image(files / "e_image.fits", 4990.0, 1.0, flux)
    tiny.write_table(files / "f_nan_wave.fits", np.where(wave == wave[5], np.nan, wave), flux, ivar)
    stars = run(data, tmp_path / "work")
    reasons = {r["file"]: r["reason"] for r in stars if r["status"] == "unreadable"}
    assert sorted(reasons) == sorted({p.name for p in files.iterdir()} - set(good))
    for name, reason in reasons.items():
        assert name in reason
        assert "expected" in reason
        assert "found" in reason
    assert "empty file" in reasons["b_empty.fits"]
    assert (
        "expected wavelengths that increase strictly, found 4990.3 then 4989.3" in reasons["c_backwards.fits"]
    )
    for arm in "AB":
        ours, theirs = (load_survey(w, arm)[0] for w in (tmp_path / "work", tiny_prepared))
        np.testing.assert_array_equal(ours.flux, theirs.flux[:3])


def test_bad_pixels_are_invalid_and_do_not_spread(tiny_data, tiny_prepared, tmp_path):
    name = tiny.DWARFS[0][0]
    data = tiny.small_survey(tmp_path / "data", tiny_data)
    wave, flux, ivar = tiny.star(0)
    flux[40], flux[60], ivar[80] = np.nan, np.inf, 0.0  # 5030.3, 5050.3, 5070.3 Å
    # Arm B: an exact zero is no measurement; what negative flux is worth is the normaliser's decision.
    flux[150], flux[170] = 0.0, -5.0  # 5140.3, 5160.3 Å
    tiny.write_table(data / "survey" / "spectra" / name, wave, flux, ivar)
    run(data, tmp_path / "work")
    survey, _ = load_survey(tmp_path / "work", "A")
    grid = DESCRIPTION.wave("A")
    np.testing.assert_array_equal(grid[~survey.valid[0]], [5030, 5031, 5050, 5051, 5070, 5071])
    assert np.isfinite(survey.flux).all()
    clean = load_survey(tiny_prepared, "A")[0].flux[0]
    far = np.abs(grid[:, None] - [5030.3, 5050.3, 5070.3]).min(axis=1) > 8
    # The spline reaches over the gap with a factor 0.27 per pixel: 3e-5 of a line's depth after 8
    np.testing.assert_allclose(survey.flux[0][far], clean[far], atol=1e-4)
    other, grid = load_survey(tmp_path / "work", "B")[0], DESCRIPTION.wave("B")
    np.testing.assert_array_equal(grid[~other.valid[0]], [5140, 5141])


def test_one_bad_star_among_labels_stops_nothing_but_doubles_do(tiny_data, tmp_path):
    data = tiny.small_survey(tmp_path / "data", tiny_data, ("dwarf_00.fits", "dwarf_16.fits"))
    with pytest.raises(
        SpectrumError, match=r"labels\.ecsv: expected every 'star_id' once, found duplicates of D00"
    ):
        run(data, tmp_path / "a", survey__labels__repeat_stars=False)
    tiny.write_labels(data / "survey" / "labels.ecsv", [tiny.DWARFS[0], tiny.DWARFS[0]])
    with pytest.raises(SpectrumError, match="expected every 'file' once, found duplicates of dwarf_00"):
        run(data, tmp_path / "b")


def test_missing_and_empty_folders_are_named(tiny_data, tmp_path):
    data = tiny.small_survey(tmp_path / "data", tiny_data)
    with pytest.raises(
        SpectrumError, match=r"spectra: expected files like \*\.fits, found none among 0 entries"
    ):
        run(data, tmp_path / "a")
    (data / "survey" / "spectra" / "readme.txt").touch()
    with pytest.raises(SpectrumError, match="found none among 1 entries"):
        run(data, tmp_path / "b")
    shutil.rmtree(data / "survey" / "spectra")
    with pytest.raises(SpectrumError, match=r"survey/spectra: not found; expected it at .*REMAP_DATA"):
        run(data, tmp_path / "c")
    with pytest.raises(SpectrumError, match=r"library\.npz: not found"):
        run(tmp_path, tmp_path / "d")


def test_library_outside_the_bins_or_without_a_label_is_refused(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="none of 27 spectra has labels inside the bins"):
        run(tiny_data, tmp_path / "a", labels__teff__high=3500.0)
    data = tiny.small_survey(tmp_path / "data", tiny_data)
    unlabelled = ("mass", "logg", "m_h")
    with np.load(data / "library.npz") as arrays:
        arrays = dict(arrays) | {"label_names": np.array(unlabelled)}
    np.savez(data / "library.npz", **arrays)
    with pytest.raises(SpectrumError, match=r"expected the labels \['teff'\] with the library, found"):
        run(data, tmp_path / "b", library__source__label_columns=unlabelled)


def test_library_nodes_outside_the_bins_are_left_out_and_counted(tiny_data, tmp_path, caplog):
    data = tiny.small_survey(tmp_path / "data", tiny_data, ("nameless.fits",))
    with caplog.at_level(logging.INFO, logger="remap"):
        run(data, tmp_path / "work", labels__teff__high=5500.0)
    assert "library of 27 spectra, 9 left out" in caplog.text
    nodes = load_library(tmp_path / "work", read_preprocessing(tmp_path / "work"), "A", interpolate=True)
    assert nodes.labels[:, 0].max() == 5250


def test_library_select_limits_any_label(tiny_data, tmp_path):
    data = tiny.small_survey(tmp_path / "data", tiny_data, ("nameless.fits",))
    run(data, tmp_path / "work", library__select={"logg": (3.5, 5.5)})
    with np.load(tmp_path / "work" / "data" / "library_A.npz") as arrays:
        assert len(arrays["labels"]) == 18
    with pytest.raises(ValueError, match=r"library\.select names 'alpha'"):
        run(data, tmp_path / "b", library__select={"alpha": (0.0, 0.1)})


def test_velocities_of_the_label_table_take_stars_to_rest(tiny_data, tiny_prepared, tmp_path):
    data = tiny.small_survey(tmp_path / "data", tiny_data)
    labels = Table.read(data / "survey" / "labels.ecsv")[:3]
    labels["rv"] = [0.0, 120.0, np.nan]
    labels.write(data / "survey" / "labels.ecsv", overwrite=True)
    for i, velocity in enumerate((0.0, 120.0, 0.0)):
        wave, flux, ivar = tiny.star(i)
        shifted = vacuum_to_air(doppler_shift(air_to_vacuum(wave), velocity))
        tiny.write_table(data / "survey" / "spectra" / tiny.DWARFS[i][0], shifted, flux, ivar)
    stars = run(data, tmp_path / "work", survey__labels__rv_column="rv")
    assert list(stars["status"]) == ["ok", "ok", "unreadable"]
    assert "dwarf_02.fits: expected a radial velocity [km/s], found nan" in stars["reason"][2]
    for arm in "AB":
        ours, theirs = (load_survey(w, arm)[0] for w in (tmp_path / "work", tiny_prepared))
        np.testing.assert_allclose(ours.flux, theirs.flux[:2], atol=1e-6)  # float32


# ----------------------------------------------------------------------------------------- real spectra


def test_real_library_and_stars_meet_on_miles_own_pixels(data_root, tmp_path):
    """MILES through the stage: nothing is interpolated, so the survey's pixels are those of the files."""
    folder = data_root / "miles" / "spectra"
    names = sorted(p.name for p in folder.glob("*.fits"))[:4]
    (tmp_path / "spectra").mkdir()
    for name in names:
        shutil.copy(folder / name, tmp_path / "spectra")
    c = miles.get_config("short")
    c.data_root = str(data_root)
    c.survey.path = str(tmp_path / "spectra")
    c.library.select = {"teff": (5500.0, 6000.0), "logg": (4.0, 5.0)}
    preprocess(c, tmp_path / "work")
    stars = read_stars(tmp_path / "work")
    assert list(stars["file"]) == names
    description = read_preprocessing(tmp_path / "work")
    for arm in "AB":
        survey, snr = load_survey(tmp_path / "work", arm)
        assert survey.valid.all()
        assert np.all(snr > 10)
        wave = description.wave(arm)
        for flux, name in zip(survey.flux, stars["file"][stars["status"] != "unreadable"], strict=True):
            with fits.open(folder / name) as hdus:
                header, raw = hdus[0].header, hdus[0].data.ravel()
            first = round((wave[0] - header["CRVAL1"]) / header["CDELT1"] + header["CRPIX1"] - 1)
            own = raw[first : first + len(wave)]
            np.testing.assert_allclose(flux, own / np.abs(own).max(), atol=1e-6)
        nodes = load_library(tmp_path / "work", description, arm, interpolate=True)
        assert np.isfinite(nodes.log_flux).all()
        assert nodes.valid.all()


def test_beams_of_a_star_in_files_of_their_own_become_one_star(tiny_data, tiny_prepared, tmp_path):
    """Labels of the table for either file; the second star has one beam, the third's labels contradict each other."""
    data = tiny.small_survey(tmp_path / "data", tiny_data)
    labels = Table.read(data / "survey" / "labels.ecsv")[:2]
    folder = data / "survey" / "spectra"
    for file in folder.iterdir():
        file.unlink()
    rows = []
    for i, beams in ((0, "12"), (1, "1")):
        wave, flux, ivar = tiny.star(i)
        for beam in beams:
            part = wave < 5124 if beam == "1" else wave > 5116
            name = f"star{i}_{beam}.fits"
            tiny.write_table(folder / name, wave[part], flux[part], ivar[part])
            rows.append(
                {**dict(zip(labels.colnames, labels[i], strict=True)), "file": name, "star_id": f"star{i}"}
            )
    table = Table(rows=rows, names=labels.colnames)
    table.write(data / "survey" / "labels.ecsv", overwrite=True)
    change = {"observe__join": True, "survey__labels__repeat_stars": True}
    stars = run(data, tmp_path / "work", **change)
    assert list(stars["file"]) == ["star0_1.fits+star0_2.fits", "star1_1.fits"]
    assert list(stars["star_id"]) == ["star0", "star1"]
    for arm in "AB":
        ours, theirs = (load_survey(w, arm)[0] for w in (tmp_path / "work", tiny_prepared))
        assert ours.valid[0].all()
        np.testing.assert_allclose(ours.flux[0], theirs.flux[0], atol=5e-3)  # the spline at the new ends
        assert ours.valid[1].mean() == (
            1.0 if arm == "A" else pytest.approx(0, abs=0.05)
        )  # beam 1 ends at 5124 Å
        np.testing.assert_allclose(ours.labels[0], theirs.labels[0])
    table["teff"][1] += 500
    table.write(data / "survey" / "labels.ecsv", overwrite=True)
    with pytest.raises(ConfigError, match=r"are of the star star0, but have different labels \['teff'\]"):
        run(data, tmp_path / "other", **change)


def test_stationary_features_are_looked_for_when_the_config_asks(tiny_data, tmp_path):
    """The stars of the mock survey are at rest, so nothing can be told; the folder says that it was looked for."""
    data = tiny.small_survey(tmp_path / "data", tiny_data, ("dwarf_00.fits", "dwarf_01.fits"))
    run(data, tmp_path / "without")
    assert load_stationary(tmp_path / "without") is None
    run(data, tmp_path / "with", observe__stationary=True)
    mask = load_stationary(tmp_path / "with")
    assert mask.intervals == ()
    run(data, tmp_path / "with")
    assert load_stationary(tmp_path / "with") is None  # not of an earlier run
