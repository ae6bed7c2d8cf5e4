"""Who is held out is what the networks were trained with; the work is done once."""

import json
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.predict import running
from remap.predict.held_out import held_out, predict_survey
from remap.stages import common
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import evaluate
from remap.stages.finetune import finetune
from remap.store.atomic import write_json
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import read_calibration
from remap.train.loop import Fitted


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
    """A trained folder to spoil."""
    return shutil.copytree(tiny_workdir, tmp_path / "work")


@pytest.fixture
def calls(monkeypatch):
    """How often the normaliser and networks run, by name."""
    counts = {"normalize": 0, "member_pmf": 0}

    def count(name):
        run = getattr(running, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            return run(*args, **kwargs)

        monkeypatch.setattr(running, name, counted)

    for name in counts:
        count(name)
    return counts


def test_training_stars_of_another_seed_would_have_been_tested(tiny_data, tiny_workdir):
    """Why the config must be that of the networks."""
    stars = readable_stars(tiny_workdir)
    own, other = (fold_split(stars, split_settings(tiny.config(tiny_data, seed=s)), 0) for s in (0, 1))
    assert np.any((other == "test") & (own == "train"))


@pytest.mark.parametrize("stage", [evaluate, calibrate])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed: expected 1, found 0"),
        ({"split__folds": 3}, r"split\.folds: expected 3, found 2"),
        ({"split__validation": 0.5}, r"split\.validation: expected 0\.5, found 0\.25"),
        (
            {"finetune__select": {"logg": (3.0, 5.5)}},
            r"finetune\.select\.logg: expected \[3\.0, 5\.5\], found",
        ),
        ({"model__activation": "relu"}, r"model\.activation: expected 'relu', found 'mish'"),
        ({"continuum__high": 4.0}, r"continuum\.high: expected 4\.0, found 3\.0"),
        (
            {"predict__combine": "mean"},
            r"config\.json: .*predict\.combine: expected 'mean', found 'conflation'",
        ),
    ],
)
def test_config_that_contradicts_the_networks_is_refused(tiny_data, workdir, stage, change, message):
    with pytest.raises(ValueError, match=rf"{workdir}.*{message}"):
        stage(tiny.config(tiny_data, **change), workdir)
    assert not (workdir / "calibration.json").exists()
    assert not (workdir / "evaluate" / "summary.ecsv").exists()


def test_size_of_batches_is_no_contradiction(tiny_data, workdir):
    config = tiny.config(tiny_data, predict__batch_size=8, predict__small_batch_size=2)
    held_out(config, workdir, readable_stars(workdir), "pretrain")


def test_fine_tuning_writes_the_split_of_every_network_before_it_trains(tiny_data, workdir, monkeypatch):
    shutil.rmtree(workdir / "finetune")
    seen = []

    def no_fit(task, optimizer, run):
        seen.append(json.loads((run.folder / "split.json").read_text()))
        return Fitted(task.params, task.model_state)

    monkeypatch.setattr(common, "fit", no_fit)
    config, stars = tiny.config(tiny_data), readable_stars(workdir)
    finetune(config, workdir)
    assert [s["settings"]["fold"] for s in seen] == [0, 0, 1, 1]
    for found in seen:
        assert found["part"] == fold_split(stars, split_settings(config), found["settings"]["fold"]).tolist()
        assert found["star_id"] == list(stars["star_id"])


def test_a_fine_tuning_that_is_refused_leaves_no_split(tiny_data, tiny_prepared, tmp_path):
    workdir = shutil.copytree(tiny_prepared, tmp_path / "work")
    with pytest.raises(FileNotFoundError, match=r"pretrain.A.final"):
        finetune(tiny.config(tiny_data), workdir)
    assert not (workdir / "finetune").exists()


def test_networks_without_a_saved_split_are_reported_alike(tiny_data, workdir):
    config, stars = tiny.config(tiny_data), readable_stars(workdir)
    expected = held_out(config, workdir, stars, "finetune")
    paths = sorted(workdir.glob("finetune/*/*/split.json"))
    assert len(paths) == 4
    for path in paths:
        path.unlink()
    found = held_out(config, workdir, stars, "finetune")
    np.testing.assert_array_equal(found.fold, expected.fold)
    np.testing.assert_array_equal(found.tested, expected.tested)
    with pytest.raises(ConfigError, match=r"finetune: .*seed: expected 1, found 0"):
        held_out(tiny.config(tiny_data, seed=1), workdir, stars, "finetune")


def test_survey_that_was_prepared_anew_is_refused(tiny_data, workdir):
    config, stars = tiny.config(tiny_data), readable_stars(workdir)
    with pytest.raises(
        ValueError, match=r"finetune/A/fold_0/split\.json: expected the stars of data/stars\.ecsv"
    ):
        held_out(config, workdir, stars[::-1], "finetune")
    with pytest.raises(ValueError, match=r"data: expected 22 spectra of arm A, .*found 23"):
        held_out(config, workdir, stars[:-1], "pretrain")


def test_arms_with_different_splits_are_refused(tiny_data, workdir):
    path = workdir / "finetune" / "B" / "fold_1" / "split.json"
    found = json.loads(path.read_text())
    found["part"][0] = "val" if found["part"][0] != "val" else "train"
    write_json(path, found)
    with pytest.raises(ConfigError, match=r"B/fold_1/split\.json: the split of .*A/fold_1.* 1 of 23 spectra"):
        held_out(tiny.config(tiny_data), workdir, readable_stars(workdir), "finetune")


def test_the_report_normalises_once_and_runs_every_network_once(tiny_data, workdir, calls):
    """23 spectra in batches of 4, two arms: 12 of each kind; 1 pre-trained and 2 fine-tuned networks per arm."""
    config = tiny.config(tiny_data, calibrate__min_stars=2)
    calibrate(config, workdir)
    assert calls == {"normalize": 12, "member_pmf": 24}
    calls.update(dict.fromkeys(calls, 0))
    table = evaluate(config, workdir)
    assert set(table["stage"]) == {"pretrain", "finetune", "uncalibrated", "validation"}
    assert calls == {"normalize": 12, "member_pmf": 36}


def test_parts_are_chosen_from_the_same_predictions(tiny_data, workdir):
    """Each part as its own call gives it, whichever was asked for first."""
    config, stars = tiny.config(tiny_data), readable_stars(workdir)
    survey = predict_survey(config, workdir, stars, "finetune")
    for part in ("test", "val", "test"):
        found, expected = survey.held_out(part), held_out(config, workdir, stars, "finetune", part)
        np.testing.assert_array_equal(found.tested, expected.tested)
        for arm in "AB":
            np.testing.assert_array_equal(found.arms[arm].pmf, expected.arms[arm].pmf)


@pytest.mark.parametrize("part", ["test", "val"])
def test_rows_are_predicted_as_among_all_others(tiny_data, workdir, part):
    config = tiny.config(tiny_data, calibrate__min_stars=2)
    calibrate(config, workdir)
    stars = readable_stars(workdir)
    rows = np.array([22, 0, 5, 18, 9, 16, 3])
    whole = predict_survey(config, workdir, stars, "finetune").held_out(part)
    some = predict_survey(config, workdir, stars, "finetune", rows=rows)
    found = some.held_out(part)
    assert list(some.stars["file"]) == list(stars["file"][rows])
    np.testing.assert_array_equal(found.tested, whole.tested[rows])
    np.testing.assert_array_equal(found.fold, whole.fold[rows])
    assert len(set(found.fold)) > 1
    expected, own = whole.catalogue(stars), found.catalogue(some.stars)
    for key, pmf in expected.pmfs.items():
        np.testing.assert_allclose(own.pmfs[key], pmf[rows], atol=1e-6)


def test_a_spectrum_is_its_stars_without_the_one_that_was_trained_on(tiny_data, workdir):
    """dwarf_16 is a second visit to D00; here it was not selected, and the first one is not among the rows."""
    stars = readable_stars(workdir)
    first, second = (list(stars["file"]).index(f"dwarf_{i:02d}.fits") for i in (0, 16))
    for path in workdir.glob("finetune/*/*/split.json"):
        found = json.loads(path.read_text())
        assert found["part"][first] == found["part"][second] != "other"
        found["part"][second] = "other"
        del found["labels"]  # of those that train
        write_json(path, found)
    config = tiny.config(tiny_data)
    whole = held_out(config, workdir, stars, "finetune")
    alone = held_out(config, workdir, stars, "finetune", rows=np.array([second]))
    assert alone.fold[0] == whole.fold[second] >= 0


def test_calibration_that_lacks_a_fold_is_refused(tiny_data, workdir):
    """Its test stars would be calibrated by the fit to all, in which they may have a part."""
    calibrate(tiny.config(tiny_data, calibrate__min_stars=2, split__run=(0,)), workdir)
    assert list(read_calibration(workdir)["folds"]) == ["0"]
    with pytest.raises(
        ConfigError, match=r"calibration\.json: expected fits for the folds \[0, 1\], found \[0\]"
    ):
        evaluate(tiny.config(tiny_data), workdir)
