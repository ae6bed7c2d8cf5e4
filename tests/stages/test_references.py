"""References of a working folder: what is kept of whom, what the catalogue says of it, and what is refused."""

import dataclasses
import json
import logging
import re
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap import load, make_spectra
from remap.config import ConfigError
from remap.io import list_files
from remap.predict import read_catalogue
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Flag
from remap.predict.references import ALL, pull
from remap.report.html import Neighbour
from remap.stages.neighbours import catalogue_neighbours
from remap.stages.references import references
from remap.stages.report import make_report
from remap.store.atomic import unseal
from remap.store.stars import read_split, readable_stars, split_settings
from remap.store.workdir import load_survey

LABELS = ("teff", "logg", "feh")
SETTINGS = {"references__library": 130, "references__spectra": 100, "far__rate": 0.1}


@pytest.fixture(scope="module")
def workdir(tiny_data, tiny_workdir, tmp_path_factory):
    """A trained folder with references; tests must not change it."""
    folder = tmp_path_factory.mktemp("references") / "work"
    shutil.copytree(tiny_workdir, folder)
    references(tiny.config(tiny_data, **SETTINGS), folder)
    return folder


@pytest.fixture
def spoilt(workdir, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(workdir, tmp_path / "work")


@pytest.fixture(scope="module")
def predictor(workdir):
    return load(workdir)


@pytest.fixture(scope="module")
def catalogue(predictor):
    """Five training stars, a spectrum of nothing but a line-free continuum, one of noise and one without pixels."""
    wave = tiny.WAVE
    odd = [make_spectra(wave, (1e4 * (1 + 0.002 * (wave - 5100)))[None], medium="air", names=["flat"])]
    rng = np.random.default_rng(0)
    odd.append(make_spectra(wave, rng.uniform(0, 1, (1, wave.size)), medium="air", names=["noise"]))
    odd.append(make_spectra(wave, np.full((1, wave.size), np.nan), medium="air", names=["empty"]))
    return predictor.predict([tiny.spectra(), *odd])


def test_references_are_the_stars_of_the_folds_and_draws_of_the_library(tiny_data, workdir, predictor):
    known, stars = predictor.known, readable_stars(workdir)
    how = split_settings(tiny.config(tiny_data))
    mine = np.any([read_split(workdir, stars, how, "AB", f) != "other" for f in (0, 1)], axis=0)
    assert list(known.names[: mine.sum()]) == list(stars["star_id"][mine])
    assert list(known.names[mine.sum() :]) == [f"library:{i}" for i in range(130)]
    np.testing.assert_allclose(known.labels[: mine.sum(), 0], np.asarray(stars["teff"], float)[mine])
    drawn = known.labels[mine.sum() :]
    assert np.all((drawn >= [4500, 3.0, -1.0]) & (drawn <= [6000, 5.0, 0.0]))
    assert len(np.unique(drawn, axis=0)) == 130
    assert len(known.sheets.flux) == mine.sum() + 100


def test_library_spectra_are_those_of_their_labels_in_all_arms(predictor):
    known = predictor.known
    rows = range(len(known.sheets.flux) - 5, len(known.sheets.flux))
    for row in rows:
        own = known.spectra(row, {"A": tiny.PIXELS, "B": tiny.PIXELS})
        for arm, (low, _) in tiny.ARMS.items():
            wave = low + np.arange(tiny.PIXELS)
            clean = tiny.flux(wave, known.labels[row], tiny.SURVEY_WIDTH).astype(np.float32)
            inputs = ArmInputs(clean, np.ones(clean.shape, bool), np.array([np.nan]))
            expected = predictor.normalize_arm(arm, inputs).flux[0]
            # Between nodes the logarithm is interpolated, the line spreads differ a little, and float16 rounds.
            np.testing.assert_allclose(own[arm], expected, atol=0.05)
    assert known.spectra(len(known.sheets.flux), {"A": tiny.PIXELS, "B": tiny.PIXELS}) == {}


def test_catalogue_has_the_neighbours_of_every_spectrum(catalogue, predictor):
    table = catalogue.table
    stars = [s for _, s, *_ in tiny.DWARFS[:5]]
    assert list(table["near1"][:5]) == stars  # itself: its own spectrum is a reference
    np.testing.assert_allclose(table["near1_distance"][:5], 0.0, atol=1e-3)
    for label in LABELS:
        assert list(table[f"{label}_near1"][:5]) == stars
        assert np.all(np.diff([table[f"{label}_near{i}_distance"][0] for i in (1, 2, 3)]) >= 0)
        assert np.isfinite(table[f"{label}_near_pull"][[0, 1, 2, 4]]).all()
    assert table["near1_teff"].unit == "K"
    np.testing.assert_allclose(table["near1_teff"][:5], [t for _, _, t, *_ in tiny.DWARFS[:5]])
    assert np.isnan(table["near1_feh"][3])  # NO_METALLICITY
    assert list(table["near1"][7:]) == [""]
    assert np.isnan(table["near1_distance"][7])
    assert np.isnan(table["far"][7])
    assert catalogue.meta["references"]["count"] == 148
    assert catalogue.meta["references"]["far"]["use"] == ["stars", "library"]


def test_what_is_no_star_is_far_and_stars_are_not(catalogue):
    far = np.asarray(catalogue.table["flags"]) & Flag.FAR != 0
    assert not far[:5].any()
    assert far[5:7].all()
    assert catalogue.table["flags"][7] == Flag.UNREADABLE
    threshold = catalogue.meta["references"]["far"]["threshold"]
    np.testing.assert_array_equal(far[:7], np.asarray(catalogue.table["far"])[:7] > threshold)
    assert np.all(
        np.asarray(catalogue.table["misfit_A"])[5:7] > np.asarray(catalogue.table["misfit_A"])[:5].max()
    )


def test_predictions_are_those_without_references(catalogue, workdir):
    without = load(workdir, references=False)
    assert without.known is None
    found = without.predict(tiny.spectra())
    for key, pmf in found.pmfs.items():
        np.testing.assert_allclose(catalogue.pmfs[key][:5], pmf, atol=1e-6)
    assert found.meta["references"] == "none"
    assert not [name for name in found.table.colnames if "near" in name or name == "far"]
    np.testing.assert_array_equal(found.table["flags"], catalogue.table["flags"][:5])


def test_neighbours_are_those_of_sorting_the_embeddings(predictor):
    spectra = tiny.spectra((0, 7))
    found = predictor.neighbors(spectra, 5)
    with pytest.raises(ConfigError, match="one neighbour or more, found k = 0"):
        predictor.neighbors(spectra, 0)
    everything = predictor.neighbors(spectra, 10**6)["all"].names
    assert everything.shape[1] == len(predictor.known.names)
    assert set(found) == {*LABELS, ALL}
    observed = predictor._observe([[spectra]], None, None)
    squares = []
    for arm, on in observed.arms.items():
        flux = predictor.normalize_arm(arm, ArmInputs(on.flux, on.valid, on.snr)).flux
        own = predictor.member_embeddings(arm, flux, on.valid)  # [M, L, S, F]
        known = predictor.known.embedding[arm]
        members, labels, _, size = own.shape
        theirs = known.reshape(labels, -1, members, size).transpose(2, 0, 1, 3) * np.sqrt(members)
        squares.append(np.sum((own[:, :, :, None] - theirs[:, :, None]) ** 2, axis=-1).mean(axis=0))
    square = np.mean(squares, axis=0)
    for key, each in (*zip(LABELS, square, strict=True), (ALL, square.mean(axis=0))):
        expected = np.sqrt(np.sort(each, axis=1)[:, :5])
        np.testing.assert_allclose(found[key].distance, expected, atol=2e-3)
        assert found[key].names.shape == (2, 5)
        at = found[key].index
        np.testing.assert_array_equal(found[key].labels, predictor.known.labels[at])


def test_a_star_can_be_compared_with_the_others_alone(predictor):
    known = predictor.known
    own = known.groups(["D00", "nobody"])
    assert own[0][1] == -1
    assert np.count_nonzero(own[1] == own[0][0]) == 2  # seen twice
    assert own[1][known.star_ids == ""].max() == -1


def test_quality_is_the_difference_in_half_widths():
    summary = {
        "median": np.array([5000.0, 5000.0, 5.0]),
        "p16": np.array([4900.0, 4950, 5]),
        "p84": np.array([5100.0, 5050, 5]),
    }
    values = np.array([[5100.0, 5300.0], [np.nan, 5025.0], [5.0, 5.0]])
    np.testing.assert_allclose(pull(values, summary), [2.0, 0.5, np.nan])
    assert np.isnan(pull(np.full((1, 2), np.nan), {k: v[:1] for k, v in summary.items()}))[0]


def test_the_catalogue_can_be_written_and_its_neighbours_are_in_the_report(catalogue, predictor, tmp_path):
    for name in ("c.fits", "c.ecsv"):
        catalogue.write(tmp_path / name)
        again = read_catalogue(tmp_path / name)
        for column in ("near1", "teff_near2", "near1_teff", "far", "misfit_B", "feh_near_pull"):
            np.testing.assert_array_equal(again.table[column], catalogue.table[column])
    found = catalogue_neighbours(catalogue, range(8), predictor)
    assert [len(found[row]) for row in range(8)] == [3] * 7 + [0]
    assert all(isinstance(n, Neighbour) for n in found[0])
    assert found[0][0].name == "D00"
    assert set(found[0][0].spectra) == {"A", "B"}
    assert "feh" not in found[3][0].labels
    assert catalogue_neighbours(catalogue._replace(table=catalogue.table["file", "flags"]), range(2)) == {}
    pytest.importorskip("jinja2", reason="needs Jinja2 (extra `report`)")
    page = make_report(tmp_path / "page.html", catalogue, predictor=predictor).read_text()
    assert str(found[5][0].name) in page
    assert "<h3>Neighbours</h3>" in page


def test_fewer_folds_have_the_embeddings_of_these(workdir, predictor):
    one = load(workdir, folds=[1])
    for arm, whole in predictor.known.embedding.items():
        size = whole.shape[2] // 2
        np.testing.assert_allclose(one.known.embedding[arm], whole[..., size:] * np.sqrt(2), rtol=1e-5)
    assert one.predict(tiny.spectra((2,))).table["near1"][0] == "D02"


def test_references_repeat(tiny_data, workdir, spoilt):
    references(tiny.config(tiny_data, **SETTINGS), spoilt)
    for name in ("references.json", "references.npz"):
        assert (spoilt / "references" / name).read_bytes() == (workdir / "references" / name).read_bytes()


def test_references_of_other_networks_are_refused(spoilt):
    path = spoilt / "references" / "references.json"
    value = unseal(json.loads(path.read_text()))
    own = value["weights"]["B"]["1"]
    value["weights"]["B"]["1"] = "0" * 64
    path.write_text(json.dumps(value))
    told = rf"references of other networks: arm B, fold 1: expected {own}, found 0{{64}}; .*--noreferences"
    with pytest.raises(ConfigError, match=told):
        load(spoilt)
    assert load(spoilt, references=False).known is None
    assert load(spoilt, folds=[0]).known is not None


def other_digit(path, name):
    """One digit of a number is another one."""
    text = path.read_text()
    changed = re.sub(rf'("{name}": )(\d)', lambda found: found[1] + str(int(found[2]) ^ 1), text)
    assert changed != text
    path.write_text(changed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "references.npz").unlink(), "is not what launch.references wrote last"),
        (lambda f: (f / "references.npz").write_bytes(b"PK"), "is not what launch.references wrote last"),
        (lambda f: (f / "references.json").write_text("{"), r"references\.json: cannot be used"),
        (lambda f: (f / "references.json").write_text("{}"), r"references\.json: cannot be used"),
        (lambda f: other_digit(f / "references.json", "threshold"), "not what was written, by its hash"),
        (lambda f: other_digit(f / "references.json", "neighbors"), "not what was written, by its hash"),
        (lambda f: (f / "references.json").unlink(), r"expected references\.json beside references\.npz"),
    ],
)
def test_damaged_references_are_refused(spoilt, spoil, message):
    spoil(spoilt / "references")
    with pytest.raises(ConfigError, match=message):
        load(spoilt)


def test_another_preprocessing_is_refused(spoilt):
    path = spoilt / "references" / "references.json"
    value = unseal(json.loads(path.read_text()))
    value["preprocessing"]["version"] = 0
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="other preprocessing"):
        load(spoilt)


def test_a_folder_without_references_predicts_as_before(tiny_workdir, caplog):
    with caplog.at_level(logging.INFO, logger="remap"):
        found = load(tiny_workdir)
    assert found.known is None
    assert [r.message for r in caplog.records if "no references" in r.message] == [
        f"{tiny_workdir}: no references: no neighbours in the catalogue, and the flag FAR is never set"
    ]
    with pytest.raises(ConfigError, match=r"run launch\.references"):
        found.neighbors(tiny.spectra((1,)))


def test_switched_off_or_with_too_few_stars_nothing_is_far(tiny_data, spoilt, caplog):
    with caplog.at_level(logging.WARNING, logger="remap"):
        found = references(tiny.config(tiny_data, **SETTINGS, far__use=()), spoilt)
        assert not len(found)
        assert not caplog.records
        references(tiny.config(tiny_data, **SETTINGS, far__min_stars=50), spoilt)
    assert "18 labelled stars" in caplog.text
    table = load(spoilt).predict(tiny.spectra((2,))).table
    assert "near1" in table.colnames
    assert "far" not in table.colnames


def test_stars_of_one_arm_are_compared_in_that_arm(tiny_data, predictor):
    found = predictor.predict_files([tiny_data / "survey" / "spectra" / "one_arm.fits"]).table
    assert found["arms"][0] == "A"
    assert found["near1"][0] != ""
    assert np.isfinite(found["misfit_A"][0])
    assert np.isnan(found["misfit_B"][0])


def test_predictions_of_one_arm_alone_are_compared_in_that_arm(predictor):
    """A call with some of the arms only, from which the others' pixels are missing."""
    observed = predictor._observe([[tiny.spectra((0, 7))]], None, None)
    for arm, other in ("AB", "BA"):
        on = observed.arms[arm]
        one = predictor.predict_arm(arm, ArmInputs(on.flux, on.valid, on.snr))
        found = predictor.combine({arm: one}, observed.names).table
        assert np.isfinite(found["far"]).all()
        assert np.isfinite(found[f"misfit_{arm}"]).all()
        assert np.isnan(found[f"misfit_{other}"]).all()
        assert found["near1"][0] == "D00"
        dark = ArmInputs(*(np.zeros_like(x) for x in observed.arms[other][:2]), on.snr)
        both = {arm: one, other: predictor.predict_arm(other, dark)}
        expected = predictor.combine({a: both[a] for a in "AB"}, observed.names).table
        for name in ("far", "near2", "teff_near1_distance", f"misfit_{arm}", "flags"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_rows_do_not_depend_on_their_company(tiny_data, predictor):
    files = list_files(tiny_data / "survey" / "spectra", "*.fits")
    whole = predictor.predict_files(files).table
    some = predictor.predict_files(files[3:5]).table
    for name in ("near1", "near2", "teff_near3"):
        assert list(some[name]) == list(whole[name][3:5])
    np.testing.assert_allclose(some["far"], whole["far"][3:5], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [{"library": -1}, {"neighbors": 0}])
def test_settings_that_cannot_be_are_refused(tiny_data, tiny_workdir, change):
    changes = {f"references__{name}": value for name, value in change.items()}
    with pytest.raises(ConfigError, match="references: expected library >= 0"):
        references(tiny.config(tiny_data, **changes), tiny_workdir)


def test_stages_without_references_say_nothing_of_them(workdir):
    assert load(workdir, stage="pretrain").known is None
    assert (
        dataclasses.replace(load(workdir), known=None).predict(tiny.spectra((1,))).meta["references"]
        == "none"
    )


def test_survey_of_the_folder_has_as_many_spectra_as_references_need(workdir, predictor):
    survey, _ = load_survey(workdir, "A")
    assert len(survey.flux) == 23
    assert np.count_nonzero(predictor.known.star_ids != "") == 18
