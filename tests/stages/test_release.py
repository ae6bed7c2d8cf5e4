"""A working folder becomes a network to hand on, whose card says what it is; one without a report does not."""

import re
import shutil

import pytest
import safetensors.numpy
from astropy.table import Table
from helpers import tiny

import remap
from remap.config import ConfigError
from remap.stages import release as stage
from remap.stages.calibrate import calibrate
from remap.stages.release import COLUMNS, release

ABOUT = "# tiny\n\nMock stars.\n\nCite nobody.\n"


@pytest.fixture(scope="module")
def calibrated(tiny_data, tiny_workdir, tmp_path_factory):
    work = shutil.copytree(tiny_workdir, tmp_path_factory.mktemp("release") / "work")
    calibrate(tiny.config(tiny_data), work)
    return work


def test_the_card_says_what_was_trained_and_what_came_of_it(calibrated, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"run launch\.evaluate"):
        release(calibrated, tmp_path / "out", name="tiny", about=ABOUT)
    (calibrated / "evaluate").mkdir()
    numbers = dict.fromkeys(COLUMNS[3:], 12.3456)
    rows = [
        {"stage": stage, "group": "dwarfs", "label": "teff", "n": 7, **numbers}
        for stage in ("pretrain", "finetune")
    ]
    Table(rows=rows).write(calibrated / "evaluate" / "summary.ecsv", format="ascii.ecsv")
    sizes = release(calibrated, tmp_path / "out", name="tiny", about=ABOUT)
    card = (tmp_path / "out" / "CARD.md").read_text()
    assert sizes["CARD.md"] == len(card.encode())
    assert card.startswith(ABOUT)
    assert card.count("| dwarfs | teff | 7 | 12 | 12 | 12 | 12.35 | 12.35 | 12 |") == 1
    assert "Bins: teff " in card
    assert "Fine-tuned on stars with " in card
    assert "Networks: 2 of arm A, 2 of arm B, one per fold of the stars." in card
    assert "## Stars kept aside\n\nEach star by the networks of the fold that it was kept out of" in card
    assert "What is released is the mean over the folds: it has seen every star" in card
    assert remap.load(tmp_path / "out").calibration is not None
    # One network per arm.
    monkeypatch.setattr(stage, "ALIKE", 0.0)
    with pytest.raises(
        ConfigError, match=r"moves teff of one spectrum in twenty by more than 0\.\d\d widths"
    ):
        release(calibrated, tmp_path / "one", name="tiny", about=ABOUT, average=True)
    monkeypatch.setattr(stage, "ALIKE", 5.0)
    release(calibrated, tmp_path / "one", name="tiny", about=ABOUT, average=True)
    whole, mean = (safetensors.numpy.load_file(tmp_path / x / "weights.safetensors") for x in ("out", "one"))
    assert {key.split("/")[1] for key in whole} == {"0", "1", "prior"}
    assert {key.split("/")[1] for key in mean} == {"0", "prior"}
    card = (tmp_path / "one" / "CARD.md").read_text()
    assert re.search(
        r"Networks: 1 of arm A, 1 of arm B, the average of the weights .* teff \d\.\d\d \(\d\.\d\d\), logg ",
        card,
    )
    assert "What is released is the average of the folds' weights: it has seen every star" in card
    one = remap.load(tmp_path / "one")
    found = one.predict(tiny.spectra((0, 1))).meta
    assert set(found["weights"]["A"]) == {"-1"}


def test_networks_without_a_calibration_are_not_released(tiny_workdir, tmp_path):
    with pytest.raises(ConfigError, match=r"run launch\.calibrate"):
        release(tiny_workdir, tmp_path / "out", name="tiny", about=ABOUT)
    assert not (tmp_path / "out").exists()
