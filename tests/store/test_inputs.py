"""What a network was trained on: other data are no reason to go on, or to leave it as it is, in silence."""

import json
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.stages import common
from remap.stages.finetune import finetune
from remap.stages.pretrain import pretrain
from remap.store.atomic import read_arrays, save_arrays
from remap.store.stars import fold_split, read_split, readable_stars, save_split, split_settings


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
    return shutil.copytree(tiny_workdir, tmp_path / "work")


def change(workdir, file, name):
    """Another value of one array of the prepared data, which is a whole file with its checksums."""
    path = workdir / "data" / file
    arrays = read_arrays(path, (), "")
    arrays[name] = arrays[name] + np.asarray(1, arrays[name].dtype)
    save_arrays(path, **arrays)


@pytest.mark.parametrize("whole", [True, False])
def test_trainings_of_other_data_are_refused_until_they_are_made_again(
    tiny_data, workdir, whole, monkeypatch
):
    monkeypatch.setattr(common, "fit", lambda *_, **__: pytest.fail("trained"))
    config = tiny.config(tiny_data)
    for stage, folder, file, name in (
        (finetune, "finetune/A/fold_1", "survey_A.npz", "labels"),
        (pretrain, "pretrain/B", "library_B.npz", "log_flux"),
        (finetune, "finetune/B/fold_0", "library_B.npz", "log_flux"),  # what it was pre-trained on
    ):
        stage(config, workdir)
        kept = (workdir / "data" / file).read_bytes()
        change(workdir, file, name)
        if not whole:  # it was stopped
            for fold in (0, 1):
                shutil.rmtree(workdir / folder.replace("1", str(fold)) / "final", ignore_errors=True)
        with pytest.raises(
            ConfigError, match=rf"trained on other data than .*{file}, which has another {name}"
        ):
            stage(config, workdir)
        for path in workdir.rglob("inputs.json"):
            path.rename(path.with_suffix(".aside"))
        if whole:
            stage(config, workdir)  # of before there was a record
        for path in workdir.rglob("inputs.aside"):
            path.rename(path.with_suffix(".json"))
        (workdir / "data" / file).write_bytes(kept)
        if not whole:
            return


def test_other_labels_of_stars_that_networks_were_trained_with_are_refused(tiny_data, workdir):
    how = split_settings(tiny.config(tiny_data))
    stars = readable_stars(workdir)
    split = fold_split(stars, how, 0)
    giant = list(stars["file"]).index("giant_0.fits")
    stars["teff"][giant] += 10.0  # no network was trained with it
    assert read_split(workdir, stars, how, ("A", "B"), 0).tolist() == split.tolist()
    one, folder = int(np.flatnonzero(split == "train")[0]), workdir / "finetune" / "A" / "fold_0"
    for column, by in (("logg", 0.01), ("teff_err", 1.0)):
        before = stars[column][one]
        stars[column][one] = before + by
        for call in (
            lambda: read_split(workdir, stars, how, ("A", "B"), 0),
            lambda: save_split(folder, stars, split, how, 0),
        ):
            with pytest.raises(ConfigError, match=r"A/fold_0/split\.json: stars .* have other labels"):
                call()
        stars[column][one] = before
    found = json.loads((folder / "split.json").read_text())
    del found["labels"]  # as versions before wrote it
    (folder / "split.json").write_text(json.dumps(found))
    stars["logg"][one] += 0.01
    assert read_split(workdir, stars, how, ("A",), 0).tolist() == split.tolist()
