"""Who was trained on is written beside the network, and read from there."""

import json

import numpy as np
import pytest
from astropy.table import Table
from helpers import tiny

from remap.config import ConfigError
from remap.store.stars import fold_split, read_split, save_split, split_settings, within
from remap.store.workdir import stage_folder

SETTINGS = split_settings(tiny.config("nowhere"))


def stars_table(count=24):
    i = np.arange(count)
    return Table(
        {
            "star_id": [f"S{k:02d}" for k in i],
            "file": [f"{k}.fits" for k in i],
            "status": ["unlabelled" if k == 3 else "ok" for k in i],
            "logg": np.where(i % 6 == 5, 2.0, 4.0),
        }
    )


@pytest.fixture
def saved(tmp_path):
    """A folder in which the splits of two arms and two folds have been saved, and its stars."""
    stars = stars_table()
    for fold in (0, 1):
        for arm in "AB":
            folder = stage_folder(tmp_path, "finetune", arm, fold)
            save_split(folder, stars, fold_split(stars, SETTINGS, fold), SETTINGS, fold)
    return tmp_path, stars


def test_limits_include_their_ends_and_leave_out_unknown_labels():
    stars = stars_table(4)
    stars["logg"] = [3.0, 4.0, np.nan, 4.0]  # the last one is not labelled
    np.testing.assert_array_equal(within(stars, {"logg": (3.0, 4.0)}), [True, True, False, False])
    np.testing.assert_array_equal(within(stars, {}), [True, True, True, False])


def test_the_split_is_read_as_it_was_saved(saved):
    workdir, stars = saved
    for fold in (0, 1):
        split = read_split(workdir, stars, SETTINGS, "AB", fold)
        np.testing.assert_array_equal(split, fold_split(stars, SETTINGS, fold))
        assert {"train", "val", "test", "other"} == set(split)
    assert not list(workdir.rglob("*.tmp"))


def test_the_split_is_that_of_the_file_and_not_of_the_labels_of_today(saved):
    workdir, stars = saved
    before = read_split(workdir, stars, SETTINGS, "AB", 0)
    stars["logg"] = 4.0  # all would be selected now
    np.testing.assert_array_equal(read_split(workdir, stars, SETTINGS, "AB", 0), before)


def test_networks_from_before_it_was_saved_get_the_split_of_their_config(tmp_path):
    stars = stars_table()
    np.testing.assert_array_equal(
        read_split(tmp_path, stars, SETTINGS, "AB", 1), fold_split(stars, SETTINGS, 1)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"seed: expected 1, found 0"),
        ({"split__folds": 3}, r"split\.folds: expected 3, found 2"),
        ({"split__validation": 0.5}, r"split\.validation: expected 0\.5, found 0\.25"),
        ({"finetune__select": {}}, r"finetune\.select\.logg: expected 'nothing', found \[3\.5, 5\.5\]"),
    ],
)
def test_config_of_another_split_is_refused_with_folder_and_both_values(saved, change, message):
    workdir, stars = saved
    with pytest.raises(ConfigError, match=rf"finetune/A/fold_0/split\.json: .*{message}"):
        read_split(workdir, stars, split_settings(tiny.config("nowhere", **change)), "AB", 0)


def test_arms_that_do_not_agree_are_refused(saved):
    workdir, stars = saved
    path = stage_folder(workdir, "finetune", "B", 0) / "split.json"
    found = json.loads(path.read_text())
    row = found["part"].index("test")
    found["part"][row] = "train"
    path.write_text(json.dumps(found))
    with pytest.raises(
        ConfigError, match=rf"B/fold_0.*A/fold_0.*1 of 24 .*row {row}: expected 'test', found 't"
    ):
        read_split(workdir, stars, SETTINGS, "AB", 0)


def test_another_survey_table_is_refused(saved):
    workdir, stars = saved
    with pytest.raises(ValueError, match=r"split\.json.*'S02' in row 1, found 'S01'; .*fine-tune them again"):
        read_split(workdir, stars[[0, 2, 1, *range(3, 24)]], SETTINGS, "AB", 0)
    with pytest.raises(ValueError, match=r"split\.json.*23 of them, found 24"):
        read_split(workdir, stars[:23], SETTINGS, "AB", 0)


def test_a_training_that_has_begun_keeps_its_split(saved, monkeypatch):
    workdir, stars = saved
    folder = stage_folder(workdir, "finetune", "A", 0)
    other = split_settings(tiny.config("nowhere", seed=1))
    text = (folder / "split.json").read_text()
    (folder / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"A/fold_0: this run was started with .*seed: expected 1, found 0"):
        save_split(folder, stars, fold_split(stars, other, 0), other, 0)
    moved = stars[[0, 2, 1, *range(3, 24)]]
    with pytest.raises(ValueError, match=r"A/fold_0/split\.json: expected the stars of data/stars\.ecsv"):
        save_split(folder, moved, fold_split(moved, SETTINGS, 0), SETTINGS, 0)
    save_split(folder, stars, fold_split(stars, SETTINGS, 0), SETTINGS, 0)  # the same goes on
    assert (folder / "split.json").read_text() == text
    (folder / "checkpoints" / "4").rmdir()
    save_split(folder, stars, fold_split(stars, other, 0), other, 0)  # nothing had been trained yet
    assert json.loads((folder / "split.json").read_text())["settings"]["seed"] == 1
