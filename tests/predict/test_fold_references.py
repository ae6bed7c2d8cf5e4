"""Stars of the training are compared by the networks that did not see them, and never with themselves."""

import shutil

import numpy as np
import pytest
from helpers import tiny

from remap import load
from remap.predict import read_catalogue
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Flag
from remap.predict.held_out import predict_survey
from remap.predict.references import ALL
from remap.stages import evaluate
from remap.stages.references import references
from remap.store.stars import readable_stars
from remap.store.workdir import load_survey

LABELS = ("teff", "logg", "feh")
SETTINGS = {"references__library": 60, "references__spectra": 60, "far__rate": 0.1}


@pytest.fixture(scope="module")
def workdir(tiny_data, tiny_workdir, tmp_path_factory):
    """A trained folder with references; tests must not change it."""
    folder = tmp_path_factory.mktemp("folds") / "work"
    shutil.copytree(tiny_workdir, folder)
    references(tiny.config(tiny_data, **SETTINGS), folder)
    return folder


@pytest.fixture(scope="module")
def survey(tiny_data, workdir):
    stars = readable_stars(workdir)
    return predict_survey(tiny.config(tiny_data, **SETTINGS), workdir, stars, "finetune", references=True)


@pytest.fixture(scope="module")
def found(survey):
    """The held-out stars and their table."""
    held = survey.held_out()
    return held, held.catalogue(survey.stars).table


def neighbours(workdir, stars, folds):
    """Of all survey spectra in the networks of some folds, straight from these."""
    predictor = load(workdir, folds=folds)
    arms = {}
    for arm in "AB":
        spectra, snr = load_survey(workdir, arm)
        arms[arm] = predictor.predict_arm(arm, ArmInputs(spectra.flux, spectra.valid, snr))
    looks, used = {arm: a.look for arm, a in arms.items()}, np.stack([a.used for a in arms.values()])
    return predictor.known.neighbors(looks, used, star_ids=list(stars["star_id"]))


def test_a_star_is_compared_in_its_own_fold(workdir, survey, found):
    held, table = found
    assert set(held.fold) == {-1, 0, 1}
    for fold in (-1, 0, 1):
        expected = neighbours(workdir, survey.stars, None if fold < 0 else [fold])
        rows = np.flatnonzero(held.fold == fold)
        for key, name in ((ALL, "near1"), (ALL, "near3"), ("teff", "teff_near2"), ("feh", "feh_near1")):
            at = int(name[-1]) - 1
            distance = np.asarray(table[f"{name}_distance"], float)[rows]
            np.testing.assert_allclose(distance, expected[key].distance[rows, at], atol=1e-5)
            assert list(table[name][rows]) == list(expected[key].names[rows, at])
    both = neighbours(workdir, survey.stars, None)[ALL].distance[:, 0]
    own = np.asarray(table["near1_distance"], float)
    assert np.nanmax(np.abs(own - both)[held.fold >= 0]) > 1e-3  # else the folds say nothing


def test_no_spectrum_of_a_star_is_its_neighbour(survey, found):
    """D00 was seen twice, and both spectra are references."""
    _, table = found
    ids = [str(name) for name in survey.stars["star_id"]]
    assert ids.count("D00") == 2
    names = [f"{start}near{i}" for start in ("", *(f"{label}_" for label in LABELS)) for i in (1, 2, 3)]
    for name in names:
        assert not [star for star, near in zip(ids, table[name], strict=True) if star == str(near)], name
    # Nor has it a part in the mixture that explains it: each is compared as the threshold was learned.
    labelled = np.isin(ids, survey.predictor.known.star_ids)
    far = np.asarray(table["flags"]) & Flag.FAR != 0
    assert np.isfinite(np.asarray(table["far"], float)[labelled]).all()
    assert np.count_nonzero(far[labelled]) <= 1
    itself = survey.predictor.combine(found[0].arms, ids).table  # without regard to who is who
    assert np.all(np.asarray(itself["misfit_A"])[labelled] < np.asarray(table["misfit_A"])[labelled])


def test_predictions_are_those_without_references(tiny_data, workdir, survey, found):
    config = tiny.config(tiny_data, **SETTINGS)
    held = predict_survey(config, workdir, survey.stars, "finetune").held_out()
    assert held.known is None
    np.testing.assert_array_equal(held.tested, found[0].tested)
    without = held.catalogue(survey.stars)
    with_them = found[0].catalogue(survey.stars)
    assert "near1" not in without.table.colnames
    for key, pmf in without.pmfs.items():
        np.testing.assert_allclose(with_them.pmfs[key], pmf, atol=1e-6)


def test_the_report_has_neighbours_and_far_of_fine_tuned_networks(tiny_data, workdir, tmp_path, monkeypatch):
    folder = shutil.copytree(workdir, tmp_path / "work")
    for name in ("_plot", "_plot_calibration", "_plot_training"):
        monkeypatch.setattr(evaluate, name, lambda *_: None)
    table = evaluate.evaluate(tiny.config(tiny_data, **SETTINGS), folder)
    written = read_catalogue(folder / "evaluate" / "finetune.fits")
    assert {"near1", "teff_near1_value", "far", "misfit_B"} <= set(written.table.colnames)
    assert written.meta["references"]["sha256"] == load(folder).known.digest
    assert "near1" not in read_catalogue(folder / "evaluate" / "pretrain.fits").table.colnames
    without = evaluate.evaluate(tiny.config(tiny_data, **SETTINGS), folder, references=False)
    assert "near1" not in read_catalogue(folder / "evaluate" / "finetune.fits").table.colnames
    for name in ("n", "bias", "scatter_star", "crps"):
        np.testing.assert_allclose(table[name], without[name], rtol=1e-4, atol=1e-5)


def test_folds_in_another_order_are_compared_with_their_own(workdir):
    there, back = (load(workdir, folds=folds) for folds in ([0, 1], [1, 0]))
    star = tiny.spectra((2, 5))
    for name in ("near1_distance", "teff_near2_distance"):
        first, second = (np.asarray(p.predict(star).table[name]) for p in (there, back))
        np.testing.assert_allclose(first, second, atol=1e-4)
