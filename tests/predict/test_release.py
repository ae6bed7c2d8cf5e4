"""Networks as files to hand on: the same answers, damage is seen, and nothing but the files is needed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import tiny

import remap
from remap.config import ConfigError
from remap.predict import release
from remap.predict.catalogue import Flag
from remap.store.atomic import DamagedError

PRECISION = 0.1  # half widths
CARD = "# tiny\n\nTwo folds for tests.\n"


@pytest.fixture(scope="module")
def folder(tiny_predictor, tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "tiny"
    # So small a network may move by more than a hundredth of a width, on one processor and not on another.
    sizes = release.release(tiny_predictor, out, name="tiny", card=CARD, precision=PRECISION)
    assert {f.name: f.stat().st_size for f in out.iterdir()} == sizes
    return out


def test_a_release_predicts_as_its_working_folder(tiny_predictor, folder):
    found, known = (
        remap.load(folder).predict(tiny.spectra((0, 1, 2))),
        tiny_predictor.predict(tiny.spectra((0, 1, 2))),
    )
    assert found.table.colnames == known.table.colnames
    # Nobody says how wide the lines are, and these are not the spectra of the networks' own survey.
    assert np.all(found.table["flags"] & Flag.RESOLUTION)
    np.testing.assert_array_equal(found.table["flags"] & ~np.int32(Flag.RESOLUTION), known.table["flags"])
    for name in ("teff", "logg", "feh"):
        width = known.table[f"{name}_p84"] - known.table[f"{name}_p16"]
        assert np.all(np.abs(found.table[name] - known.table[name]) < PRECISION / 2 * width)
        assert not np.array_equal(found.table[name], known.table[name])  # it is rounded
    assert set(found.meta["weights"]["A"]) == set(known.meta["weights"]["A"])


def test_a_release_is_whole_without_the_working_folder(folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    predictor = remap.load(moved)
    assert predictor.templates is not None
    assert predictor.config["data_root"] == ""
    assert release.card_of(moved) == CARD


@pytest.mark.parametrize("name", [release.RECORD, release.WEIGHTS, release.TEMPLATES])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_damaged_releases_are_refused_by_name(folder, tmp_path, name, how):
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes({"flipped": bytes(content), "cut": bytes(content[:-9]), "empty": b""}[how])
    with pytest.raises(DamagedError, match=name):
        remap.load(copy)


def test_a_release_of_a_later_version_says_so(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    record = json.loads((copy / release.RECORD).read_text()) | {
        "format": release.FORMAT + 1,
        "software": "99",
    }
    (copy / release.RECORD).write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="of version 99; install a newer version"):
        remap.load(copy)


def test_options_of_working_folders_are_refused(folder):
    with pytest.raises(ConfigError, match="a released network has no folds"):
        remap.load(folder, folds=[0])
    assert remap.load(folder, calibrated=False, folds=None).calibration is None


@pytest.mark.parametrize("large", [False, True])
def test_weights_that_float16_would_change_stay_as_they_are(tiny_predictor, tmp_path, large):
    networks = dict(tiny_predictor.networks)
    if (
        large
    ):  # beyond the largest float16; without effect on the PMFs, which the bias of every bin moves alike
        first = networks["A"].members[0]
        heads = first["params"]["heads"]
        bias = {**heads["logits"], "bias": heads["logits"]["bias"] + 1e5}
        changed = {**first, "params": {**first["params"], "heads": {**heads, "logits": bias}}}
        networks["A"] = networks["A"]._replace(members=(changed, *networks["A"].members[1:]))
    predictor = dataclasses.replace(tiny_predictor, networks=networks)
    precision = {} if large else {"precision": 1e-9}
    release.release(predictor, tmp_path / "x", name="x", card=CARD, **precision)
    one, other = (p.predict(tiny.spectra((0, 1))) for p in (predictor, remap.load(tmp_path / "x")))
    for label in ("teff", "logg", "feh"):
        np.testing.assert_array_equal(other.pmfs[label], one.pmfs[label])


def test_networks_are_found_by_name(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "networks" / "tiny")
    monkeypatch.setattr(release, "_shipped", lambda: tmp_path / "networks")
    assert remap.networks() == {"tiny": "Two folds for tests."}
    assert remap.load("tiny").labels == ("teff", "logg", "feh")
    assert release.card_of("tiny") == CARD
    with pytest.raises(FileNotFoundError, match=r"medium: .* network that comes with the package \(tiny\)"):
        remap.load("medium")
