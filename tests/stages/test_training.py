"""Training stages on the tiny experiment: exact resume, refusals, splits by star, and what a run depends on."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers import tiny

from remap import load
from remap.config import ConfigError
from remap.predict.arms import ArmInputs
from remap.sampling import batches as parts
from remap.sampling import correction
from remap.spectra import SpectrumError
from remap.stages import common
from remap.stages.finetune import finetune, finetuning
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain, pretraining
from remap.store import checkpoint
from remap.store.atomic import StorageError
from remap.store.records import read_records
from remap.store.stars import STATUS_UNREADABLE, fold_split, split_settings, within
from remap.store.workdir import check_prepared, load_survey, read_preprocessing, read_stars, stage_folder
from remap.train import loop
from remap.train.embeddings import read_embeddings
from remap.train.loop import Fitted, draw_batch

CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="bit for bit on CPU only")
STAGES = {"pretrain": pretrain, "finetune": finetune}
STEPS = 8  # of pre-training: two cycles of two epochs of two steps

# Statements that a child runs first. SIGTERM comes within the first epoch; SIGKILL at the end of the last one,
# when its record is written and its checkpoint is not.
SIGTERM_AT_STEP_1 = """
import os, signal
from remap.train import loop
step = loop.train_step
def stop(state, *rest, **static):
    out = step(state, *rest, **static)
    if int(out[0].step) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return out
loop.train_step = stop
"""
SIGKILL_AT_STEP_8 = """
import os, signal
from remap.store import checkpoint
save = checkpoint.save_state
def die(manager, step, *rest):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    save(manager, step, *rest)
checkpoint.save_state = die
"""


def one_arm(data, **changes):
    """The tiny experiment with arm A alone, whose network must not depend on the other arm."""
    return tiny.config(data, arm_names=("A",), **changes)


def losses(workdir, stage="pretrain", *, arm="A"):
    records = read_records(workdir / stage / arm / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def saved_steps(folder):
    with checkpoint.open_manager(folder, keep=2) as manager:
        return list(manager.all_steps())


def same_networks(a, b):
    a, b = (checkpoint.load_final(f / "final")[0] for f in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def prepared_arm(tiny_data, tmp_path_factory):
    """A working folder in which arm A alone has been preprocessed."""
    workdir = tmp_path_factory.mktemp("one_arm")
    preprocess(one_arm(tiny_data), workdir)
    return workdir


@pytest.fixture(scope="module")
def interrupted(tiny_data, tiny_workdir, prepared_arm, tmp_path_factory):
    """Pre-training of arm A by the launch script: stopped by SIGTERM, started again, killed by SIGKILL.

    Returns the folder as the second left it and what was seen after each. `tiny_workdir` comes first so that
    the children find its compiled programs.
    """
    workdir = tmp_path_factory.mktemp("interrupted") / "work"
    shutil.copytree(prepared_arm, workdir)
    arguments = [
        "--config=tests/helpers/tiny.py",
        f"--config.data_root={tiny_data}",
        "--config.arm_names=('A',)",
    ]
    folder = workdir / "pretrain" / "A"
    seen = []
    for before in (SIGTERM_AT_STEP_1, SIGKILL_AT_STEP_8):
        done = tiny.launch("launch.pretrain", *arguments, f"--workdir={workdir}", before=before)
        seen.append((done, saved_steps(folder / "checkpoints"), losses(workdir)))
    return workdir, seen


@CPU
def test_sigterm_saves_and_exits_with_75(interrupted):
    done, steps, records = interrupted[1][0]
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGTERM at step 1; the same command resumes" in done.stderr
    assert "Traceback" not in done.stderr
    assert (steps, records) == ([1], [])


@CPU
def test_killed_run_leaves_its_last_checkpoint(interrupted):
    done, steps, records = interrupted[1][1]
    assert done.returncode == -9, done.stderr
    assert "resuming at step 1" in done.stderr
    assert steps[-1] == 4
    assert [r["step"] for r in records] == [2, 4, 6, 8]
    assert not checkpoint.has_final(interrupted[0] / "pretrain" / "A" / "final")


@CPU
def test_losses_after_sigterm_are_those_of_an_uninterrupted_run(interrupted, tiny_workdir):
    assert interrupted[1][1][2] == losses(tiny_workdir)


@CPU
def test_killed_run_is_refused_with_other_settings_and_resumes_to_the_same_bits(
    interrupted, tiny_data, tiny_workdir, tmp_path
):
    workdir = tmp_path / "work"
    shutil.copytree(interrupted[0], workdir)
    other = one_arm(tiny_data, pretrain__rate_high=0.5)
    with pytest.raises(ValueError, match=r"pretrain\.rate_high: expected 0\.5, found 0\.01"):
        pretrain(other, workdir)
    assert losses(workdir)[-1]["step"] == STEPS  # refused before anything was touched

    pretrain(one_arm(tiny_data), workdir)
    assert losses(workdir) == losses(tiny_workdir)
    assert same_networks(workdir / "pretrain" / "A", tiny_workdir / "pretrain" / "A")


@CPU
def test_interrupted_run_ends_with_the_same_embeddings(interrupted, tiny_workdir):
    """Those of epoch 0 are from before SIGTERM; SIGKILL came after those of the last epoch had been written."""
    ours, theirs = (read_embeddings(w / "pretrain" / "A") for w in (interrupted[0], tiny_workdir))
    assert [e.epoch for e in ours] == [e.epoch for e in theirs] == [0, 2, 4]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_another_network(tiny_data, prepared_arm, tiny_workdir, tmp_path):
    shutil.copytree(prepared_arm, tmp_path / "work")
    pretrain(one_arm(tiny_data, seed=1), tmp_path / "work")
    assert not same_networks(tmp_path / "work" / "pretrain" / "A", tiny_workdir / "pretrain" / "A")
    ours, theirs = losses(tmp_path / "work"), losses(tiny_workdir)
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, theirs, strict=True))


def test_arms_and_folds_get_networks_of_their_own(tiny_workdir):
    folders = [tiny_workdir / "pretrain" / a for a in "AB"]
    folders += [tiny_workdir / "finetune" / a / f"fold_{k}" for a in "AB" for k in (0, 1)]
    for i, a in enumerate(folders):
        assert checkpoint.load_final(a / "final")[1]["step"] == (STEPS if i < 2 else 4)
        assert not any(same_networks(a, b) for b in folders[:i])


def test_finished_stages_are_left_alone(tiny_data, tiny_workdir, monkeypatch):
    monkeypatch.setattr(common, "fit", lambda *_, **__: pytest.fail("trained again"))
    pretrain(tiny.config(tiny_data), tiny_workdir)
    finetune(tiny.config(tiny_data), tiny_workdir)


@CPU
def test_runs_of_single_arms_and_folds_make_the_same_networks_and_the_last_records_the_settings(
    tiny_data, tiny_workdir, tmp_path
):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "pretrain" / "B")
    for arm in "AB":
        shutil.rmtree(workdir / "finetune" / arm / "fold_1")
    (workdir / "config.json").unlink()
    config = tiny.config(tiny_data)
    pretrain(config, workdir, arms=("A",))
    finetune(config, workdir, arms=("A",), folds=(1,))
    assert not (workdir / "config.json").exists()
    assert not (workdir / "pretrain" / "B").exists()
    pretrain(config, workdir, arms=("B",))
    assert (workdir / "config.json").exists()
    (workdir / "config.json").unlink()
    assert not (workdir / "finetune" / "B" / "fold_1").exists()
    finetune(config, workdir, arms=("B",), folds=(1,))
    assert (workdir / "config.json").read_bytes() == (tiny_workdir / "config.json").read_bytes()
    for place in ("pretrain/B", "finetune/A/fold_1", "finetune/B/fold_1"):
        assert same_networks(workdir / place, tiny_workdir / place)


def test_a_run_of_one_arm_is_refused_beside_a_network_of_other_settings(tiny_data, tiny_workdir, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "pretrain" / "B")
    with pytest.raises(
        ValueError, match=r"A: trained with other settings.*model\.kernel: expected 7, found 3"
    ):
        pretrain(tiny.config(tiny_data, model__kernel=7), workdir, arms=("B",))
    assert not (workdir / "pretrain" / "B").exists()


@pytest.mark.parametrize(
    ("stage", "what", "message"),
    [
        ("pretrain", {"arms": ("C",)}, r"arms: expected some of \('A', 'B'\), as prepared, found \['C'\]"),
        ("finetune", {"arms": ("A", "C")}, r"arms: .*found \['C'\]"),
        ("finetune", {"folds": (0, 7)}, r"folds: expected some of \(0, 1\) \(split\.run\), found \[7\]"),
    ],
)
def test_arms_and_folds_that_are_not_there_are_refused(tiny_data, tiny_workdir, stage, what, message):
    with pytest.raises(ConfigError, match=message):
        STAGES[stage](tiny.config(tiny_data), tiny_workdir, **what)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("pretrain", {"model__kernel": 7}, r"model\.kernel: expected 7, found 3"),
        ("finetune", {"finetune__rate_high": 0.5}, r"finetune\.rate_high: expected 0\.5, found 0\.1"),
        ("finetune", {"split__validation": 0.5}, r"split\.validation: expected 0\.5, found 0\.25"),
    ],
)
def test_finished_network_of_other_settings_is_refused(
    tiny_data, tiny_workdir, tmp_path, stage, change, message
):
    shutil.copytree(tiny_workdir, tmp_path / "work")
    with pytest.raises(ValueError, match=f"trained with other settings.*{message}"):
        STAGES[stage](tiny.config(tiny_data, **change), tmp_path / "work")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_refused_run_leaves_the_record_of_the_settings(tiny_data, tiny_workdir, tmp_path, stage):
    """Prediction reads config.json: it must stay that of the networks in the folder."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    recorded = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match="trained with other settings"):
        STAGES[stage](tiny.config(tiny_data, loss__margin=0.5), workdir)
    assert (workdir / "config.json").read_text() == recorded


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_other_preprocessing_than_the_datas_is_refused_with_both_values(
    tiny_data, tiny_workdir, tmp_path, stage
):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    recorded = (workdir / "config.json").read_text()
    config = tiny.config(tiny_data, continuum__high=4.0, labels__teff__bins=40)
    with pytest.raises(ValueError, match="other preprocessing") as error:
        STAGES[stage](config, workdir)
    assert "continuum.high: expected 4.0, found 3.0" in str(error.value)
    assert "bins" in str(error.value)
    assert "40" in str(error.value)
    assert (workdir / "config.json").read_text() == recorded


def test_pretrained_network_of_other_preprocessing_is_refused_at_fine_tuning(
    tiny_data, tiny_workdir, tmp_path
):
    """The data were preprocessed anew with other settings; the network is still of the old ones."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    config = tiny.config(tiny_data, continuum__high=4.0)
    preprocess(config, workdir)
    with pytest.raises(ValueError, match=r"continuum\.high: expected 4\.0, found 3\.0"):
        finetune(config, workdir)


def test_pretrained_network_of_another_model_is_refused_at_fine_tuning(tiny_data, tiny_workdir, tmp_path):
    """Pooling has no parameters: nothing else would notice. Dropout may differ."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    config = tiny.config(tiny_data, model__pooling="max", model__filters=(8, 4), model__dropout=0.0)
    with pytest.raises(ValueError, match=r"another network than that of config\.model") as error:
        finetune(config, workdir)
    assert "filters: expected [8, 4], found [4, 8]; pooling: expected 'max', found 'avg_max'" in str(
        error.value
    )
    assert "dropout" not in str(error.value)


def test_each_stage_names_the_one_that_is_missing(tiny_data, tiny_prepared, tmp_path):
    config = tiny.config(tiny_data)
    for stage in (pretrain, finetune):
        with pytest.raises(FileNotFoundError, match=r"preprocessing\.json.*preprocess.*run it first"):
            stage(config, tmp_path / "empty")
    shutil.copytree(tiny_prepared, tmp_path / "work")
    with pytest.raises(FileNotFoundError, match=r"pretrain.A.final.*expected a finished network, found none"):
        finetune(config, tmp_path / "work")


@pytest.mark.parametrize("stopped_by", ["kill", "interrupt", "full disk", "two errors"])
def test_data_whose_preparation_was_stopped_are_refused_until_it_has_ended(
    tiny_data, tiny_prepared, tmp_path, monkeypatch, stopped_by
):
    """Its files may be of two preparations."""
    workdir, config = shutil.copytree(tiny_prepared, tmp_path / "work"), tiny.config(tiny_data)
    errors = {
        "kill": SystemError,
        "interrupt": KeyboardInterrupt,
        "full disk": StorageError,
        "two errors": OSError,
    }

    def die(*_):
        raise errors[stopped_by]

    other = tiny.config(tiny_data, observe__cosmic_rays=False)
    with monkeypatch.context() as patch:
        patch.setattr("remap.stages.preprocess.save_stationary", die)
        if stopped_by == "kill":
            patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # a kill deletes no lock
        with pytest.raises(errors[stopped_by]):
            preprocess(other, workdir)
    if stopped_by == "two errors":  # the second before it has written anything
        with pytest.raises(SpectrumError):
            preprocess(tiny.config(tiny_data, library__path="none.npz"), workdir)
    for call in (lambda: pretrain(config, workdir), lambda: load(workdir)):
        with pytest.raises(
            ConfigError, match=r"data: launch\.preprocess is writing here, or was stopped before"
        ):
            call()
    preprocess(config, workdir)
    check_prepared(config, workdir)


def test_a_preparation_that_is_refused_leaves_the_data_as_they_were(tiny_data, tiny_prepared, tmp_path):
    workdir, config = shutil.copytree(tiny_prepared, tmp_path / "work"), tiny.config(tiny_data)
    with pytest.raises(SpectrumError):
        preprocess(tiny.config(tiny_data, library__path="none.npz"), workdir)
    check_prepared(config, workdir)
    assert not (workdir / "data" / "run.lock").exists()


def test_unknown_start_of_fine_tuning_is_refused(tiny_data, tiny_prepared, tmp_path):
    shutil.copytree(tiny_prepared, tmp_path / "work")
    with pytest.raises(ValueError, match=r"finetune\.init must be 'pretrained' or 'scratch', found 'warm'"):
        finetune(tiny.config(tiny_data, finetune__init="warm"), tmp_path / "work")


def test_network_keeps_the_preprocessing_it_was_trained_with(tiny_workdir):
    expected = json.loads((tiny_workdir / "data" / "preprocessing.json").read_text())
    for path in tiny_workdir.glob("*/*/**/final"):
        meta = checkpoint.load_final(path)[1]
        assert meta["preprocessing"] == expected
        assert {"model", "loss", "augment", "seed", meta["stage"]} <= set(meta["config"])


# -------------------------------------------------------------------------------------------- who trains


def readable(workdir):
    stars = read_stars(workdir)
    return stars[[s != STATUS_UNREADABLE for s in stars["status"]]]


def test_spectra_of_one_star_never_straddle_train_and_test(tiny_data, tiny_prepared):
    stars, config = readable(tiny_prepared), tiny.config(tiny_data)
    tested = []
    for fold in (0, 1):
        split = fold_split(stars, split_settings(config), fold)
        members = {s: set(stars["star_id"][split == s]) for s in ("train", "val", "test")}
        assert not members["train"] & members["test"]
        assert not members["val"] & (members["train"] | members["test"])
        tested += list(stars["file"][split == "test"])
    assert sorted(tested) == [
        row[0] for row in tiny.DWARFS
    ]  # each once, the repeated stars with both spectra


def test_only_selected_stars_with_labels_inside_the_bins_may_be_trained_on(tiny_data, tiny_prepared):
    stars = readable(tiny_prepared)
    chosen = within(stars, tiny.config(tiny_data).finetune.select)
    assert list(stars["file"][chosen]) == [row[0] for row in tiny.DWARFS]  # one of them lacks its metallicity
    everyone = within(stars, {})
    assert set(stars["file"][everyone]) - {r[0] for r in tiny.DWARFS} == {"giant_0.fits", "giant_1.fits"}


def test_selection_that_leaves_no_star_is_an_error(tiny_data, tiny_prepared):
    config = tiny.config(tiny_data, finetune__select={"teff": (3000.0, 3100.0)})
    with pytest.raises(ValueError, match=r"finetune\.select.*3100.*leaves none of 23 stars"):
        fold_split(readable(tiny_prepared), split_settings(config), 0)


def test_spectra_that_an_arm_cannot_use_do_not_train_it(tiny_data, tiny_workdir, tmp_path, monkeypatch):
    """As at prediction, where `predict.min_coverage` and positive flux decide."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    path = workdir / "data" / "survey_B.npz"
    with np.load(path) as arrays:
        arrays = dict(arrays)
    arrays["valid"][:4] = False  # dwarf_00 to dwarf_03: both folds have some of them
    np.savez(path, **arrays)
    trained = []

    def no_fit(task, optimizer, run):
        trained.append(drawn_stars(task.source))
        return Fitted(task.params, task.model_state)

    monkeypatch.setattr(common, "fit", no_fit)
    finetune(tiny.config(tiny_data), workdir)
    assert len(trained) == 4
    assert all(np.asarray(stars.valid).any(axis=1).all() for stars in trained)


def test_more_folds_than_stars_is_an_error(tiny_data, tiny_prepared):
    with pytest.raises(ValueError, match="expected between 2 and 16 folds"):
        fold_split(readable(tiny_prepared), split_settings(tiny.config(tiny_data, split__folds=17)), 0)


def test_survey_without_any_readable_file_is_an_error(tiny_data, tmp_path):
    data = tiny.small_survey(tmp_path / "data", tiny_data, ("truncated.fits",))
    with pytest.raises(SpectrumError, match=r"none of 1 files is readable: .*truncated\.fits"):
        preprocess(tiny.config(data), tmp_path / "work")


def drawn_stars(source):
    """The stars that fine-tuning draws, without those of the other folds."""
    spectra = source.stars.spectra
    rows = np.asarray(spectra.rows)[: int(spectra.count)]
    return jax.tree.map(lambda a: np.asarray(a)[rows], spectra.stars)


def finetuned_batches(monkeypatch, config, workdir):
    """What fine-tuning would train on: (batch of step 0, source) per arm and fold."""
    found = []

    def no_fit(task, optimizer, run):
        found.append((draw_batch(task.source, run.key, jax.numpy.asarray(0)), task.source))
        return Fitted(task.params, task.model_state)

    monkeypatch.setattr(common, "fit", no_fit)
    finetune(config, workdir)
    return found


def test_rehearsal_mixes_stars_and_corrected_library_spectra(tiny_data, tiny_workdir, tmp_path, monkeypatch):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    change = {"split__folds": 4, "split__run": (0,), "split__validation": 0.0, "finetune__rehearsal": 0.75}
    corrected = {"finetune__correction": "linear", "finetune__residual_weight": (0.5, 1.0)}
    plain = finetuned_batches(monkeypatch, tiny.config(tiny_data, **change), workdir)
    shutil.rmtree(workdir / "finetune")
    better = finetuned_batches(monkeypatch, tiny.config(tiny_data, **change, **corrected), workdir)
    for (a, data_a), (b, data_b) in zip(plain, better, strict=True):
        # One star, and three library spectra with the library's narrow soft labels.
        np.testing.assert_array_equal(a.flux[0], b.flux[0])
        np.testing.assert_array_equal(a.target, b.target)
        assert not np.allclose(a.flux[1:], b.flux[1:], atol=1e-4)
        rehearsed_a, rehearsed_b = (data.rehearsal.spectra for data in (data_a, data_b))
        assert rehearsed_a.residuals is None
        assert np.isfinite(np.asarray(b.flux)).all()
        # Pixel by pixel the stars' residuals do not lean to one side: the correction took that away.
        residuals = np.asarray(rehearsed_b.residuals)[: int(rehearsed_b.count)]
        assert np.abs(residuals.mean(axis=0)).max() < 0.2 * residuals.std() + 1e-3
        assert residuals.any(axis=1).all()
        assert not np.allclose(rehearsed_a.library.log_flux, rehearsed_b.library.log_flux)


def test_anchored_spectra_are_those_of_no_fold_and_keep_what_the_pretrained_network_says(
    tiny_data, tiny_workdir, tmp_path, monkeypatch
):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    change = {"finetune__unlabelled": 0.5, "finetune__anchor": ("logg",), "split__run": (0,)}
    config = tiny.config(tiny_data, **change)
    found = finetuned_batches(monkeypatch, config, workdir)
    stars = readable(workdir)
    other = fold_split(stars, split_settings(config), 0) == "other"
    before = load(workdir, stage="pretrain")
    for arm, (batch, data) in zip(config.arm_names, found, strict=True):
        survey, snr = load_survey(workdir, arm)
        said = before.predict_arm(arm, ArmInputs(survey.flux, survey.valid, snr))
        expected = said.pmf[1][other & said.used]
        np.testing.assert_allclose(data.anchors.spectra.target[1], expected, atol=1e-5)
        assert len(expected) > 0
        # In the other labels these spectra teach nothing, whatever the table says of them.
        assert not np.asarray(data.anchors.spectra.target[::2]).any()
        assert (np.asarray(data.anchors.spectra.classes[::2]) == -1).all()
        assert np.isfinite(np.asarray(stars["teff"])[other]).any()
        # Two labelled stars and two of these.
        assert np.asarray(batch.target[0].sum(axis=-1)).tolist() == pytest.approx([1, 1, 0, 0])
        assert np.asarray(batch.target[1].sum(axis=-1)).tolist() == pytest.approx([1, 1, 1, 1], abs=1e-4)


def test_the_prior_is_the_mean_of_what_is_trained_on(tiny_data, tiny_workdir):
    """By many batches of labels, against the distribution that is kept with the networks."""
    config = tiny.config(tiny_data)
    preprocessing = read_preprocessing(tiny_workdir)
    start = pretraining(config, tiny_workdir, preprocessing, "A")
    steps = [draw_batch(start.source, start.fit_key, jax.numpy.asarray(i)).target for i in range(60)]
    drawn = np.mean(np.concatenate(steps, axis=1), axis=1)
    np.testing.assert_allclose(np.cumsum(start.prior, axis=1), np.cumsum(drawn, axis=1), atol=0.05)
    kept, _ = checkpoint.load_final(stage_folder(tiny_workdir, "pretrain", "A") / "final")
    np.testing.assert_allclose(kept["prior"], start.prior, atol=1e-6)
    # Fine-tuning without rehearsal draws the stars alone.
    stars = readable(tiny_workdir)
    split = fold_split(stars, split_settings(config), 0)
    tuned = finetuning(config, tiny_workdir, preprocessing, "A", 0, split)
    values = np.asarray(stars["teff"], float)[split == "train"]
    b = preprocessing.labels[0]
    mean = float(np.asarray(tuned.prior[0])[: b.bins] @ (b.edges[1:] + b.edges[:-1]) / 2)
    assert mean == pytest.approx(values.mean(), abs=(b.edges[1] - b.edges[0]) / 2)


def test_nodes_alone_are_rehearsed_with_a_correction_fitted_between_them(
    tiny_data, tiny_workdir, tmp_path, monkeypatch
):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    change = {"split__folds": 4, "split__run": (0,), "split__validation": 0.0, "finetune__rehearsal": 0.75}
    change["finetune__correction"] = "linear"
    _, cells = finetuned_batches(monkeypatch, tiny.config(tiny_data, **change), workdir)[0]
    shutil.rmtree(workdir / "finetune")
    config = tiny.config(tiny_data, library__interpolate=False, **change)
    batch, nodes = finetuned_batches(monkeypatch, config, workdir)[0]
    nodes, cells = nodes.rehearsal.spectra, cells.rehearsal.spectra
    np.testing.assert_array_equal(nodes.library.log_flux, cells.library.log_flux)  # the same correction
    np.testing.assert_array_equal(nodes.library.cells[:, 0], np.arange(27))
    assert (nodes.library.cells.shape[1], cells.library.cells.shape[1]) == (1, 8)
    # Three library spectra of the batch: nodes at 4500, 5250 or 6000 K, in the bin of 80 K that holds each.
    assert set(np.asarray(batch.classes[0, 1:])) <= {18, 28, 37}


def test_an_epoch_of_size_0_is_the_fixed_set_of_the_paper(tiny_data, tiny_prepared):
    """27 nodes less a quarter, two line spreads, five noise values, three draws, in batches of eight."""
    steps = {}
    for size in (0, 48):
        change = {"library__interpolate": False, "augment__kind": "paper", "pretrain__epoch_size": size}
        config = tiny.config(tiny_data, **change)
        preprocessing = check_prepared(config, tiny_prepared)
        steps[size] = pretraining(config, tiny_prepared, preprocessing, "A").steps
    assert steps == {0: 20 * 2 * 5 * 3 // 8, 48: 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetune__batches": "hard"}, "'random' or 'paired', found 'hard'"),
        ({"finetune__unlabelled": 0.25, "finetune__anchor": ("vsini",)}, r"found \['vsini'\]"),
        ({"finetune__unlabelled": 0.25, "finetune__init": "scratch"}, "needs a pre-trained network"),
        ({"finetune__rehearsal": 1.0}, "no room for stars in a batch of 4"),
        ({"finetune__rehearsal": 0.5, "finetune__correction": "cubic"}, "'none' or 'linear', found 'cubic'"),
    ],
)
def test_impossible_batches_are_refused(tiny_data, tiny_workdir, tmp_path, change, message):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    with pytest.raises(ValueError, match=message):
        finetune(tiny.config(tiny_data, **change), workdir)


# ----------------------------------------------------------------------------------------- augmentation


def on(section, **fields):
    return {f"{section}__{name}": value for name, value in fields.items()}


def spy_on_draws(monkeypatch):
    """What the stages give to `library_draw` and `survey_draw`: name -> (wave, fields that are on, σ)."""
    seen = {}

    def wrap(module, name):
        function = getattr(module, name)

        def wrapped(key, step, source, wave, *, settings, **rest):
            seen[name] = np.asarray(wave), settings.effects, settings.noise_high
            return function(key, step, source, wave, settings=settings, **rest)

        monkeypatch.setattr(module, name, wrapped)

    wrap(parts, "library_draw")
    wrap(parts, "survey_draw")
    return seen


def test_pretraining_draws_with_the_augmentation_and_the_grid_of_the_arm(
    tiny_data, prepared_arm, monkeypatch
):
    seen = spy_on_draws(monkeypatch)
    config = one_arm(tiny_data, **on("augment", velocity=5.0), **on("finetune__augment", tilt=0.1))
    preprocessing = check_prepared(config, prepared_arm)
    start = pretraining(config, prepared_arm, preprocessing, "A")
    jax.eval_shape(start.source.draw, start.fit_key, 0)
    wave, effects, noise = seen.pop("library_draw")
    np.testing.assert_array_equal(wave, 5000.0 + np.arange(120))
    assert (effects, noise) == ({"velocity": 5.0}, 0.02)
    assert not seen


def test_stars_and_rehearsal_have_augmentation_of_their_own(tiny_data, prepared_arm, tmp_path, monkeypatch):
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    seen, found = spy_on_draws(monkeypatch), []

    def no_fit(task, optimizer, run):
        found.append((task.source, run.key))
        return Fitted(task.params, task.model_state)

    def source_of(**more):
        shutil.rmtree(workdir / "finetune", ignore_errors=True)
        change = {"finetune__init": "scratch", "split__run": (0,), "split__validation": 0.0}
        finetune(one_arm(tiny_data, **change, **more), workdir)
        return found.pop()

    monkeypatch.setattr(common, "fit", no_fit)
    stars = on("finetune__augment", velocity=7.0, gaps=3, gap_pixels=10)
    source, key = source_of(finetune__rehearsal=0.5, **stars, **on("augment", scattered=0.1))
    jax.eval_shape(source.draw, key, 0)
    for name, effects, noise in (
        ("survey_draw", {"velocity": 7.0, "gaps": 3}, 0.0),
        ("library_draw", {"scattered": 0.1}, 0.02),
    ):
        assert seen[name][1:] == (effects, noise)
        np.testing.assert_array_equal(seen[name][0], 5000.0 + np.arange(120))

    # Stars without noise, but with gaps: they are normalised after those, where a gap becomes the continuum.
    source, key = source_of(**stars)
    batch = jax.jit(source.draw)(key, 0)
    cut = ~np.asarray(batch.valid)
    assert 0 < cut.sum() <= 4 * 31
    assert (np.asarray(batch.flux)[cut] == 1).all()


@pytest.mark.parametrize("section", ["augment", "finetune__augment"])
def test_the_paper_s_fixed_set_takes_noise_alone(tiny_data, prepared_arm, tmp_path, section):
    workdir = tmp_path / "work"
    shutil.copytree(prepared_arm, workdir)
    config = one_arm(
        tiny_data,
        augment__kind="paper",
        library__interpolate=False,
        finetune__init="scratch",
        **on(section, tilt=0.1),
    )
    with pytest.raises(ValueError, match=r"'paper' is a fixed set .* found {'tilt': 0\.1}"):
        finetune(config, workdir)
    if section == "augment":
        with pytest.raises(ValueError, match=r"'paper' is a fixed set"):
            pretrain(config, workdir)


def test_folds_share_their_compiled_programs(tiny_data, tiny_workdir, tmp_path):
    """Their stars are others, and more or fewer; the normaliser alone takes seconds to compile for each shape."""
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir)
    shutil.rmtree(workdir / "finetune")
    change = {
        "split__folds": 3,
        "finetune__batch_size": 8,
        "finetune__rehearsal": 0.25,
        "finetune__correction": "linear",
        "finetune__residual_weight": (0.0, 1.0),
        "finetune__unlabelled": 0.25,
        "finetune__anchor": ("logg",),
    }
    programs = (
        loop.draw_batch,
        loop.train_step,
        loop.evaluate,
        parts._normalized,
        correction._ratios,
        common._pmfs,
    )
    sizes, stars = [], []
    for fold in (0, 1, 2):
        config = tiny.config(tiny_data, split__run=(fold,), **change)
        split = fold_split(readable(workdir), split_settings(config), fold)
        stars.append([int((split == part).sum()) for part in ("train", "val")])
        finetune(config, workdir)
        sizes.append([program._cache_size() for program in programs])
    assert len({tuple(s) for s in stars}) > 1, stars
    assert sizes[1] == sizes[2] == sizes[0]
