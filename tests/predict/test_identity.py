"""What belongs together is compared, what is missing is told, and the catalogue says what it was made with."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers import damage, tiny

from remap import load
from remap.config import ConfigError
from remap.predict.catalogue import Flag, read_catalogue
from remap.predict.held_out import predict_survey
from remap.predict.running import Runner
from remap.predict.stream import StreamSettings, predict_stream
from remap.preprocess.description import PREPROCESSING_VERSION
from remap.stages.calibrate import calibrate
from remap.stages.finetune import finetune
from remap.store import checkpoint
from remap.store.atomic import DamagedError, write_json
from remap.store.stars import readable_stars
from remap.store.workdir import read_calibration, read_config


@pytest.fixture(scope="module")
def config(tiny_data):
    return tiny.config(tiny_data, calibrate__min_stars=2)


@pytest.fixture(scope="module")
def calibrated(config, tiny_workdir, tmp_path_factory):
    """A trained and calibrated folder; tests must not change it."""
    workdir = shutil.copytree(tiny_workdir, tmp_path_factory.mktemp("calibrated") / "work")
    calibrate(config, workdir)
    return workdir


@pytest.fixture
def workdir(calibrated, tmp_path):
    """The same to spoil."""
    return shutil.copytree(calibrated, tmp_path / "work")


# ----------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("arms", ["A", "AB"])
def test_a_missing_or_unfinished_fold_is_refused_unless_the_others_are_asked_for(workdir, arms):
    for arm, gone in zip(arms, ("final", ""), strict=False):
        shutil.rmtree(workdir / "finetune" / arm / "fold_1" / gone)
    with pytest.raises(
        ConfigError,
        match=r"finetune/A: expected the finished networks of the folds \[0, 1\], .*found none of \[1\].*"
        r"folds=\[0\], --folds=0\)",
    ):
        load(workdir)
    with pytest.raises(
        ConfigError, match=r"calibration\.json: expected fits for the folds \[0\], found \[0, 1"
    ):
        load(workdir, folds=[0])
    found = load(workdir, folds=[0], calibrated=False).predict(tiny.spectra((0,)))
    assert found.meta["folds"] == {"A": [0], "B": [0]}


def test_a_fold_that_was_put_aside_is_none_of_them(workdir):
    expected = load(workdir).weights
    for name in ("fold_1_old", "fold_01", "fold_x"):
        shutil.copytree(workdir / "finetune/A/fold_1", workdir / "finetune/A" / name)
    assert load(workdir).weights == expected


def respell(folder, change):
    """The description of a network, changed and saved as if it were so."""
    variables, meta = checkpoint.load_final(folder / "final")
    change(meta)
    checkpoint.save_final(folder / "final", variables, meta)


@pytest.mark.parametrize(("source", "target"), [("A/fold_0", "A/fold_1"), ("A/fold_0", "B/fold_0")])
def test_a_network_twice_is_refused_whatever_its_description_says(workdir, source, target):
    shutil.rmtree(workdir / "finetune" / target / "final")
    shutil.copytree(workdir / "finetune" / source / "final", workdir / "finetune" / target / "final")
    arm, fold = target.split("/fold_")
    respell(workdir / "finetune" / target, lambda meta: meta.update(arm=arm, fold=int(fold)))
    with pytest.raises(
        ConfigError, match=rf"finetune/{target}: holds the network of .*finetune/{source} once"
    ):
        load(workdir)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_arms_that_were_swapped_are_refused_by_prediction_and_by_the_next_stage(config, workdir, stage):
    for a, b in (("A", "C"), ("B", "A"), ("C", "B")):
        (workdir / stage / a).rename(workdir / stage / b)
    with pytest.raises(ConfigError, match=r"holds a network of another place: arm: expected 'A', found 'B'"):
        load(workdir, stage=stage)
    shutil.rmtree(workdir / "finetune")
    if stage == "pretrain":
        with pytest.raises(ConfigError, match=r"pretrain/A/final: holds a network of another place: arm"):
            finetune(config, workdir)
        assert not list(workdir.glob("finetune/*/*/checkpoints"))


def test_arrays_that_were_swapped_below_their_descriptions_are_refused(workdir):
    step = [next((workdir / "finetune" / arm / "fold_0/final").iterdir()) / "variables" for arm in "AB"]
    for a, b in ((step[0], workdir / "aside"), (step[1], step[0]), (workdir / "aside", step[1])):
        a.rename(b)
    with pytest.raises(DamagedError, match=r"finetune/A/fold_0/final: cannot be used .*arrays: not what was"):
        load(workdir)


# ----------------------------------------------------------------------------------------- calibration


def test_a_calibration_that_is_gone_is_missed(config, workdir):
    (workdir / "calibration.json").unlink()
    with pytest.raises(
        ConfigError,
        match=r"calibration\.json: expected the calibration of the networks, found none; run launch\.calibrate",
    ):
        load(workdir)
    found = load(workdir, calibrated=False)
    assert found.calibration is None
    assert found.predict(tiny.spectra((0,))).meta["calibration"] == "none"
    with pytest.raises(ConfigError, match="found none"):
        predict_survey(config, workdir, readable_stars(workdir), "finetune")
    calibrate(config, workdir)
    assert load(workdir).calibration is not None


def test_networks_that_were_never_calibrated_need_no_calibration(tiny_workdir):
    found = load(tiny_workdir)
    assert found.calibration is None
    assert found.predict(tiny.spectra((0,))).meta["calibration"] == "none"


def test_a_calibration_of_other_folds_networks_or_numbers_is_refused(workdir):
    path, found = workdir / "calibration.json", read_calibration(workdir)

    def refused(change, message):
        other = json.loads(json.dumps(found))
        change(other)
        write_json(path, other)
        with pytest.raises(ConfigError, match=message):
            load(workdir)

    refused(
        lambda c: c["folds"].pop("1"), r"expected fits for the folds \[0, 1\], found \[0\]; run launch\.cal"
    )
    refused(
        lambda c: c["weights"]["B"].update({"1": "0" * 64}),
        r"fitted to other networks of arm B, folds \['1'\]",
    )
    widening = next(iter(found["all"]["widenings"]["teff"]))
    refused(
        lambda c: c["all"]["widenings"]["teff"][widening].update(power=0.1),
        r"is not the file that launch\.calibrate wrote",
    )
    refused(lambda c: c.pop("all"), r"calibration\.json: cannot be used .*found none of \['all'\]")
    path.write_text("{")
    with pytest.raises(
        DamagedError, match=r"calibration\.json: cannot be used .*run launch\.calibrate again"
    ):
        load(workdir)


def test_a_calibration_from_before_all_that_is_used(calibrated, workdir):
    """It has no hashes, and nothing beside the networks says that there is one."""
    found = read_calibration(workdir)
    del found["weights"]
    write_json(workdir / "calibration.json", found)
    (workdir / "finetune" / "calibrated.json").unlink()
    spectra = tiny.spectra((0,))
    before, after = (load(w).predict(spectra).pmfs["teff"] for w in (calibrated, workdir))
    np.testing.assert_array_equal(before, after)


# ------------------------------------------------------------------------------------------ provenance


def test_the_catalogue_says_what_it_was_made_with(calibrated, tmp_path):
    predictor = load(calibrated)
    path = tiny.write_table(tmp_path / "star.fits", *tiny.star(3))
    source = dict(predictor.config["survey"]["source"]) | {"line_spread": {"resolution": 2000}}
    catalogue = predictor.predict_files([path], source=source)
    for name in ("out.fits", "out.ecsv"):
        catalogue.write(tmp_path / name)
        meta = read_catalogue(tmp_path / name).meta
        assert meta["stage"] == "finetune"
        assert meta["folds"] == {"A": [0, 1], "B": [0, 1]}
        text = (calibrated / "calibration.json").read_bytes()
        assert meta["calibration"] == hashlib.sha256(text).hexdigest()
        assert meta["preprocessing_version"] == PREPROCESSING_VERSION
        assert meta["survey"] == ""
        assert meta["source_overrides"] == {"line_spread": {"resolution": 2000}}
        assert meta["source"]["medium"] == "air"
        assert meta["observe"]["velocity"] == "rest"
        for arm in "AB":
            for fold in (0, 1):
                variables = checkpoint.load_final(calibrated / f"finetune/{arm}/fold_{fold}/final")[0]
                variables.pop("prior")
                assert meta["weights"][arm][str(fold)] == checkpoint.array_hash(variables)
    by_name = predictor.predict_files([path], survey="miles").meta
    assert by_name["survey"] == "miles"
    assert by_name["source_overrides"] == {}
    plain = load(calibrated, stage="pretrain").predict(tiny.spectra((3,))).meta
    assert (plain["stage"], plain["folds"], plain["calibration"]) == (
        "pretrain",
        {"A": [-1], "B": [-1]},
        "none",
    )
    assert plain["source"] == {}


# ---------------------------------------------------------------------------------- damage and not finite


def test_damaged_files_of_the_folder_are_named(tiny_workdir, tmp_path):
    """Every file that prediction reads, cut in half or holding something else."""
    names = ["config.json", "data/preprocessing.json", "data/templates.npz", "pretrain/B/final"]
    for name in names:
        for content in (None, b"{}", b"\0" * 100):
            work = shutil.copytree(tiny_workdir, tmp_path / "work")
            path = work / name
            target = damage.largest(path) if path.is_dir() else path
            damage.cut(target) if content is None else target.write_bytes(content)
            with pytest.raises(ConfigError, match=str(path)):
                load(work, stage="pretrain")
            shutil.rmtree(work)


def test_every_flipped_bit_of_the_settings_is_noticed(tiny_workdir, tmp_path):
    """Thresholds of flags, the kind of combination, how spectra are treated: one digit is another catalogue."""
    path = tmp_path / "config.json"
    content = (tiny_workdir / "config.json").read_bytes()
    expected, rng, noticed = read_config(tiny_workdir), np.random.default_rng(0), 0
    for position in [*rng.choice(8 * len(content), 200), *range(8 * (len(content) - 90), 8 * len(content))]:
        spoilt = bytearray(content)
        spoilt[position // 8] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        try:
            assert read_config(tmp_path) == expected  # a blank that became another one
        except DamagedError as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is right
            noticed += 1
    assert noticed > 700
    told = json.loads(content)
    write_json(path, told | {"seed": 5})
    with pytest.raises(DamagedError, match=r"by its hash; if you have edited it, delete its 'sha256'"):
        read_config(tmp_path)
    del told["sha256"]  # edited on purpose, or of before
    write_json(path, told | {"seed": 5})
    assert read_config(tmp_path)["seed"] == 5


def test_damaged_files_of_the_survey_are_named(config, workdir):
    stars = readable_stars(workdir)
    for name in ("data/survey_B.npz", "finetune/A/fold_1/split.json"):
        whole = (workdir / name).read_bytes()
        damage.cut(workdir / name)
        with pytest.raises(DamagedError, match=str(workdir / name)):
            predict_survey(config, workdir, stars, "finetune")
        (workdir / name).write_bytes(whole)
    (workdir / "data" / "stars.ecsv").write_text("nothing")
    with pytest.raises(DamagedError, match=r"stars\.ecsv: cannot be used"):
        readable_stars(workdir)


@pytest.fixture
def broken(tiny_predictor, monkeypatch):
    """Predicts the first four dwarfs with networks of arm A that fail on the second of them."""
    whole = Runner.pmfs

    def fail(self, arm, flux, valid):
        found = np.array(whole(self, arm, flux, valid))
        if arm == "A":
            found[-1, 0, 1] = np.nan  # one label of one member
        return found

    monkeypatch.setattr(Runner, "pmfs", fail)
    return tiny_predictor


def test_an_arm_whose_pmf_is_not_finite_is_left_out_flagged_and_harms_no_other(broken, monkeypatch, caplog):
    found = broken.predict(tiny.spectra((0, 1, 2, 3)))
    table = found.table
    assert table["flags"][1] & (Flag.NOT_FINITE | Flag.MISSING_ARM | Flag.UNREADABLE) == (
        Flag.NOT_FINITE | Flag.MISSING_ARM
    )
    assert table["message"][1] == "the networks of arm A give no finite PMF"
    assert "1 spectra of which networks give no finite PMF are flagged: dwarf_01.fits" in caplog.text
    assert table["arms"][1] == "B"
    monkeypatch.undo()
    expected = broken.predict(tiny.spectra((0, 1, 2, 3)))
    keep = [0, 2, 3]
    for key, pmf in expected.pmfs.items():
        np.testing.assert_array_equal(found.pmfs[key][keep], pmf[keep])
        if not isinstance(key, str):
            alone = pmf[1] if key[1] == "B" else np.full_like(pmf[1], np.nan)
            np.testing.assert_array_equal(found.pmfs[key][1], alone)
            if key[1] == "B":
                np.testing.assert_allclose(found.pmfs[key[0]][1], pmf[1], rtol=1e-5)
    for name in ("flags", "message", "teff", "arms"):
        np.testing.assert_array_equal(table[name][keep], expected.table[name][keep])


def test_a_row_none_of_whose_arms_is_finite_is_not_used_and_counted(tiny_predictor, monkeypatch, tmp_path):
    whole = Runner.pmfs

    def fail(self, arm, flux, valid):
        found = np.array(whole(self, arm, flux, valid))
        found[0, 1 if arm == "A" else 2, 1] = np.inf
        return found

    monkeypatch.setattr(Runner, "pmfs", fail)
    found = tiny_predictor.predict(tiny.spectra((0, 1, 2, 3)))
    assert found.table["flags"][1] == Flag.UNREADABLE | Flag.NOT_FINITE
    assert found.table["message"][1] == "the networks of arm A, B give no finite PMF"
    assert found.table["arms"][1] == ""
    for label in ("teff", "logg", "feh"):
        assert np.isnan([found.table[label][1], found.table[f"{label}_mean"][1]]).all()
    assert all(np.isnan(pmf[1]).all() for pmf in found.pmfs.values())
    assert not np.any(found.table["flags"][[0, 2, 3]] & Flag.NOT_FINITE)
    files = [tiny.write_table(tmp_path / tiny.DWARFS[i][0], *tiny.star(i)) for i in range(4)]
    stream = StreamSettings(workers=0)
    assert predict_stream(tiny_predictor, files, tmp_path / "parts", stream=stream).bad == 1


def test_a_combined_pmf_that_is_not_finite_is_a_flagged_row(tiny_predictor):
    class Lost:
        def apply(self, pmfs, edges, used, arms, snr=None):
            lost = (np.arange(used.shape[1]) == 2)[:, None]
            return {label: np.where(lost & (label == "logg"), np.nan, pmf) for label, pmf in pmfs.items()}

        def covers(self, label, pmfs, edges, used, arms):
            return np.ones(used.shape[1], bool)

    predictor = dataclasses.replace(tiny_predictor, calibration=Lost(), calibration_hash="x")
    found = predictor.predict(tiny.spectra((0, 1, 2, 3)))
    assert list(found.table["flags"] & Flag.NOT_FINITE != 0) == [False, False, True, False]
    assert found.table["message"][2] == "the combined PMF is not finite"
    assert np.isnan(found.table["teff"][2])
    assert np.isfinite(found.table["teff"][[0, 1, 3]]).all()
