"""The training loop by itself, on batches that need no normaliser: what it records, keeps, resumes and refuses."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import damage

from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings, init_variables, make_model
from remap.sampling.augment import Batch
from remap.sampling.batches import source_tree
from remap.store import checkpoint, lock
from remap.store.atomic import StorageError
from remap.store.checkpoint import unstack
from remap.store.records import read_records
from remap.train import loop, stopping
from remap.train.loop import DivergedError, FitSettings, Preempted, Run, fit
from remap.train.objectives import NetworkObjective, Task, reestimate_stats
from remap.train.optim import sgdr

PIXELS, STARS, BINS = 48, 4, 5
LOSS = LossSettings(gamma=2.0, cost_weight=1.0, triplet_weight=0.001, margin=0.2, label_weights=())
SETTINGS = FitSettings(
    cycles=2,
    epochs_per_cycle=2,
    rate_high=1e-2,
    rate_low=1e-4,
    clip_norm=1.0,
    checkpoint_epochs=2,
    keep=2,
    stats_batches=3,
    average="swa",
)
STEPS = 2  # per epoch
MODEL = make_model(
    ModelSettings(
        stem_filters=2,
        stem_kernel=3,
        stem_stride=2,
        filters=(2, 3),
        kernel=3,
        dropout=0.2,
        embedding=3,
        activation="mish",
        pooling="avg_max",
        validity_channel=True,
        temperature=True,
        batch_norm_momentum=0.9,
    ),
    np.ones((2, BINS), bool),
)
SCHEDULE = sgdr(peak=1e-2, end=1e-4, cycles=2, steps_per_cycle=4)


@source_tree
class Lines:
    """`batch_fn`."""

    nan_at: jax.Array

    def draw(self, key, step):
        return batch_fn(key, step, self.nan_at)


def batch_fn(key, step, data):
    """Lines whose depth is the class, in fresh noise; `data` is the step at which the flux is NaN."""
    star_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
    classes = jax.random.randint(star_key, (2, STARS), 0, BINS)
    depth = 0.1 * classes.mean(axis=0)
    flux = 1 - depth[:, None] * (jnp.arange(PIXELS)[None] % 8 == 0)
    flux += 0.01 * jax.random.normal(noise_key, flux.shape)
    flux = jnp.where(step == data, jnp.nan, flux)
    return Batch(flux, jnp.ones(flux.shape, bool), jax.nn.one_hot(classes, BINS), classes)


@pytest.fixture(scope="module")
def variables():
    return init_variables(MODEL, jax.random.key(1), PIXELS)


@pytest.fixture(scope="module")
def run(variables):
    """fit() with everything but what the test changes."""

    def call(
        folder,
        *,
        settings=SETTINGS,
        freeze=False,
        nan_at=-1,
        meta=None,
        validation=None,
        seed=0,
        on_epoch=None,
    ):
        task = Task(
            NetworkObjective(MODEL, LOSS, freeze),
            variables["params"],
            variables["batch_stats"],
            Lines(jnp.asarray(nan_at)),
            validation,
        )
        meta = {"rate": 0.01} if meta is None else meta
        one = Run(settings, STEPS, jax.random.key(seed), folder, meta, "tiny", on_epoch)
        found = fit(task, one.optimizer(), one)
        return {"params": found.params, "batch_stats": found.model_state}

    return call


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("whole")
    validation = batch_fn(jax.random.key(9), jnp.asarray(0), jnp.asarray(-1))
    return folder, run(folder, validation=validation)


def saved_steps(folder):
    with checkpoint.open_manager(folder / "checkpoints", keep=2) as manager:
        return list(manager.all_steps())


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_record_per_epoch_with_losses_rate_and_validation(whole):
    records = read_records(whole[0] / "metrics.jsonl")
    assert [(r["step"], r["epoch"]) for r in records] == [(2, 1), (4, 2), (6, 3), (8, 4)]
    for r in records:
        assert r["learning_rate"] == pytest.approx(float(SCHEDULE(r["step"] - 1)))
        for prefix in ("", "val_"):
            assert np.shape(r[prefix + "focal"]) == np.shape(r[prefix + "nll"]) == (2,)  # one per label
            parts = sum(np.sum(r[prefix + k]) * w for k, w in (("focal", 1), ("cost", 1), ("triplet", 1e-3)))
            assert r[prefix + "loss"] == pytest.approx(parts, rel=1e-5)  # eq. 7, float32 sums


def test_the_given_variables_are_left_alone_and_the_network_moves(whole, variables):
    assert np.isfinite(jax.tree.leaves(variables)[0]).all()  # donated buffers would raise here
    assert not same(whole[1]["params"], variables["params"])


def test_checkpoints_are_written_every_few_epochs_and_at_the_end(whole):
    assert saved_steps(whole[0]) == [4, 8]


def test_result_is_the_mean_of_the_parameters_at_the_ends_of_the_cycles(run, whole, tmp_path, monkeypatch):
    """eq. 5, against parameters caught outside the loop's own averaging."""
    ends = {}
    save = checkpoint.save_state

    def catch(manager, step, state, *rest):
        ends[step] = jax.tree.map(np.array, state.params)
        save(manager, step, state, *rest)

    monkeypatch.setattr(checkpoint, "save_state", catch)
    found = run(tmp_path)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, ends[4], ends[8])
    for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # float32 running mean
    assert same(found["params"], whole[1]["params"])  # the validation batch of `whole` changes nothing


def test_statistics_are_the_mean_over_batches_of_each_batchs_own(variables):
    """Momentum 0.9 and 0.5 must give the same; and the stem's mean is that of its convolution's output."""
    batches = [batch_fn(jax.random.key(3), jnp.asarray(i), jnp.asarray(-1)) for i in range(3)]
    found = reestimate_stats(MODEL, variables["params"], variables["batch_stats"], batches, jax.random.key(0))
    kernel = variables["params"]["stem"]["kernel"]
    means = []
    for b in batches:
        x = jnp.stack([jnp.where(b.valid, b.flux - 1, 0), b.valid.astype(b.flux.dtype)], axis=-1)
        y = jax.lax.conv_general_dilated(x, kernel, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        means.append(y.mean(axis=(0, 1)))
    np.testing.assert_allclose(found["stem_norm"]["mean"], np.mean(means, axis=0), rtol=1e-4, atol=1e-6)


def test_snapshots_are_the_ends_of_the_cycles_and_their_mean_is_the_average(run, whole, tmp_path):
    found = run(tmp_path, settings=dataclasses.replace(SETTINGS, average="snapshots"))
    ends = unstack(found)
    assert len(ends) == 2
    last = run(tmp_path / "last", settings=dataclasses.replace(SETTINGS, average="last"))
    assert same(ends[1], last)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, ends[0]["params"], ends[1]["params"])
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(whole[1]["params"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_best_average_is_that_of_the_least_validation_loss(run, whole, tmp_path):
    """Once with labels that the first cycle knows better, once with labels that the average does."""
    settings = dataclasses.replace(SETTINGS, average="best")
    validation = batch_fn(jax.random.key(9), jnp.asarray(0), jnp.asarray(-1))
    snapshots = run(tmp_path / "s", settings=dataclasses.replace(SETTINGS, average="snapshots"))
    first = unstack(snapshots)[0]["params"]
    # Either network has statistics of its own, from the same batches.
    one = {"params": first, "batch_stats": _statistics(first, whole[1]["batch_stats"])}
    p_one, p_mean = (
        jax.nn.softmax(MODEL.apply(n, validation.flux, validation.valid, train=False, running=True).logits)
        for n in (one, whole[1])
    )
    for name, ratio, expected in (
        ("first", p_one / p_mean, first),
        ("mean", p_mean / p_one, whole[1]["params"]),
    ):
        classes = jnp.argmax(ratio, axis=-1)
        labelled = validation._replace(target=jax.nn.one_hot(classes, BINS), classes=classes)
        found = run(tmp_path / name, settings=settings, validation=labelled)
        for a, b in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="'best' needs validation spectra"):
        run(tmp_path / "none", settings=settings)


def _statistics(params, like):
    keys = loop.run_keys(jax.random.key(0))
    batches = [batch_fn(keys.stats, jnp.asarray(i), jnp.asarray(-1)) for i in range(SETTINGS.stats_batches)]
    return reestimate_stats(MODEL, params, like, batches, keys.stats_dropout)


def test_without_averaging_the_result_is_the_last_step_with_its_running_statistics(
    run, whole, tmp_path, monkeypatch
):
    last = {}
    save = checkpoint.save_state

    def catch(manager, step, state, *rest):
        last["params"], last["batch_stats"] = jax.tree.map(np.array, (state.params, state.model_state))
        save(manager, step, state, *rest)

    monkeypatch.setattr(checkpoint, "save_state", catch)
    found = run(tmp_path, settings=dataclasses.replace(SETTINGS, average="last"))
    assert same(found, last)
    assert not same(found["params"], whole[1]["params"])
    assert not same(found["batch_stats"], whole[1]["batch_stats"])
    with pytest.raises(ValueError, match=r"average must be one of .*'best', 'snapshots'.*found 'mean'"):
        dataclasses.replace(SETTINGS, average="mean")


def test_statistics_are_found_with_keys_that_their_batches_do_not_have(run, tmp_path, monkeypatch):
    given = []

    def settle(self, params, model_state, batches, key):
        given.append(key)
        return model_state

    monkeypatch.setattr(NetworkObjective, "settle", settle)
    run(tmp_path, settings=dataclasses.replace(SETTINGS, cycles=1))
    keys = loop.run_keys(jax.random.key(0))
    assert given == [keys.stats_dropout]
    assert given != [keys.stats]


def test_frozen_statistics_stay_as_given(run, variables, tmp_path):
    found = run(tmp_path, settings=dataclasses.replace(SETTINGS, cycles=1), freeze=True)
    assert same(found["batch_stats"], variables["batch_stats"])
    assert not same(found["params"], variables["params"])


def test_nan_stops_the_run_and_names_the_step_and_the_loss(run, tmp_path):
    with pytest.raises(
        DivergedError,
        match=r"tiny: the loss is not finite at step 6 \(epoch 3; focal, .*\); the last good checkpoint is that of "
        r"step 4 in .*checkpoints$",
    ):
        run(tmp_path, nan_at=5)  # steps are counted from 1: the sixth batch has the NaN
    assert saved_steps(tmp_path) == [4]  # nothing spoilt is kept
    assert len(read_records(tmp_path / "metrics.jsonl")) == 2


def test_nan_of_the_last_step_is_seen_before_its_checkpoint(run, tmp_path, monkeypatch):
    """The loss of that step was finite; the parameters after it are not."""
    step = loop.train_step

    def spoil_at_4(state, *rest, **static):
        state, terms = step(state, *rest, **static)
        if int(state.step) == 4:
            stem = jax.tree.map(lambda v: v.at[(0,) * v.ndim].set(jnp.inf), state.params["stem"])
            state = state._replace(params=state.params | {"stem": stem})
        return state, terms

    monkeypatch.setattr(loop, "train_step", spoil_at_4)
    with pytest.raises(
        DivergedError, match=r"tiny: params/stem/\w+ is not finite after step 4; no checkpoint was saved"
    ):
        run(tmp_path)
    assert saved_steps(tmp_path) == []


def test_nan_is_seen_before_a_signal_saves_it(run, tmp_path, monkeypatch):
    step = loop.train_step

    def stop_at_3(state, *rest, **static):
        state, terms = step(state, *rest, **static)
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return state, terms

    monkeypatch.setattr(loop, "train_step", stop_at_3)
    with pytest.raises(DivergedError, match=r"not finite at step 3 \(epoch 2; "):
        run(tmp_path, nan_at=2)
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("kind", ["arrays flipped", "description cut", "emptied"])
def test_a_run_whose_newest_checkpoint_is_damaged_ends_with_the_same_bits(run, whole, tmp_path, kind, caplog):
    shutil.copytree(whole[0], tmp_path / "run")
    damage.KINDS[kind](tmp_path / "run" / "checkpoints" / "8")
    caplog.set_level("INFO")
    assert same(run(tmp_path / "run"), whole[1])
    assert "checkpoints/8: cannot be used" in caplog.text
    assert "resuming at step 4" in caplog.text
    assert saved_steps(tmp_path / "run") == [4, 8]
    ours, theirs = (
        [r["loss"] for r in read_records(f / "metrics.jsonl")] for f in (tmp_path / "run", whole[0])
    )
    assert ours == theirs


def test_lost_records_come_back_from_the_checkpoint(run, whole, tmp_path, caplog):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    run(tmp_path / "run", validation=batch_fn(jax.random.key(9), jnp.asarray(0), jnp.asarray(-1)))
    assert read_records(path) == read_records(whole[0] / "metrics.jsonl")
    assert "held 0 of the 2 records up to step 4; written anew from the checkpoint" in caplog.text


def test_two_runs_in_one_folder_are_one_too_many(run, tmp_path):
    process = subprocess.Popen(["sleep", "600"])
    try:
        holder = lock.identity() | {"pid": process.pid, "started": lock.started(process.pid)}
        (tmp_path / lock.NAME).write_text(json.dumps(holder))
        with pytest.raises(lock.LockedError, match=rf"another run writes here \(process {process.pid}"):
            run(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]
    finally:
        process.kill()
        process.wait()
    run(tmp_path, settings=dataclasses.replace(SETTINGS, cycles=1, epochs_per_cycle=1))
    assert not (tmp_path / lock.NAME).exists()


def test_a_disk_without_room_is_told_before_the_first_step(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 5000))
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(StorageError, match=r"checkpoints: needs about 0\.\d MB, found 0\.0 MB free"):
        run(tmp_path)


def test_the_second_ctrl_c_does_not_wait_and_an_ignored_one_stays_ignored():
    before = signal.getsignal(signal.SIGINT)
    with stopping.signals() as seen:
        os.kill(os.getpid(), signal.SIGINT)
        assert seen == ["SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with stopping.signals() as seen:
            os.kill(os.getpid(), signal.SIGINT)
            assert seen == []
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("which", ["SIGTERM", "SIGINT"])
def test_sigterm_saves_within_an_epoch_and_the_same_call_resumes_with_the_same_losses(
    run, whole, tmp_path, monkeypatch, which
):
    step = loop.train_step

    def stop_at_3(state, *rest, **static):
        state, terms = step(state, *rest, **static)
        if int(state.step) == 3:
            os.kill(os.getpid(), signal.Signals[which])
        return state, terms

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(loop, "train_step", stop_at_3)
    with pytest.raises(Preempted, match=f"tiny: stopped by {which} at step 3; the same command resumes"):
        run(tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert saved_steps(tmp_path) == [3]  # though a checkpoint was due at step 4 only
    monkeypatch.undo()
    assert same(run(tmp_path), whole[1])
    losses = [[r["loss"] for r in read_records(f / "metrics.jsonl")] for f in (tmp_path, whole[0])]
    assert losses[0] == losses[1]


def test_sigterm_in_the_last_step_ends_the_run_too(run, whole, tmp_path, monkeypatch):
    """What follows, the next arm or fold, must not start; the finished run is saved."""
    save = checkpoint.save_state

    def save_and_terminate(manager, step, *rest):
        save(manager, step, *rest)
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "save_state", save_and_terminate)
    with pytest.raises(Preempted, match="stopped by SIGTERM at step 8"):
        run(tmp_path)
    monkeypatch.undo()
    assert same(run(tmp_path), whole[1])


def test_on_epoch_sees_every_epoch_before_its_checkpoint_and_changes_nothing(run, whole, variables, tmp_path):
    seen = []

    def watch(epoch, state):
        steps = saved_steps(tmp_path) if (tmp_path / "checkpoints").is_dir() else []
        seen.append((epoch, int(state.step), steps, jax.tree.map(np.array, state.params)))

    assert same(run(tmp_path, on_epoch=watch), whole[1])
    assert [s[:3] for s in seen] == [(0, 0, []), (1, 2, []), (2, 4, []), (3, 6, [4]), (4, 8, [4])]
    assert same(seen[0][3], variables["params"])
    assert not any(same(a[3], b[3]) for a, b in itertools.pairwise(seen))


def test_a_resumed_run_calls_on_epoch_for_what_it_repeats(run, tmp_path):
    seen = []

    def die(epoch, state):
        seen.append(epoch)
        if len(seen) == 4:  # epoch 3; the last checkpoint is that of epoch 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_epoch=die)
    run(tmp_path, on_epoch=die)
    assert seen == [0, 1, 2, 3, 3, 4]
    run(tmp_path, on_epoch=die)  # finished
    assert len(seen) == 6


def test_a_run_with_other_settings_is_refused_with_both_values(run, whole):
    text = (whole[0] / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"other settings: rate: expected 0\.02, found 0\.01"):
        run(whole[0], meta={"rate": 0.02})
    assert (whole[0] / "metrics.jsonl").read_text() == text


def test_a_finished_run_trains_no_further(run, whole, monkeypatch):
    monkeypatch.setattr(loop, "_epoch_record", lambda *_: pytest.fail("trained again"))
    text = (whole[0] / "metrics.jsonl").read_text()
    assert same(run(whole[0]), whole[1])
    assert (whole[0] / "metrics.jsonl").read_text() == text


def test_a_torn_last_record_is_dropped_on_resume(run, whole, tmp_path):
    run(tmp_path)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    run(tmp_path)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6, 8]


def test_another_seed_gives_another_run(run, whole, tmp_path):
    other = run(tmp_path, settings=dataclasses.replace(SETTINGS, cycles=1), seed=1)
    assert not same(other["params"], whole[1]["params"])
