"""Checkpoints come back bit for bit, resume exactly, and are refused where the settings differ."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import damage

from remap.config import ConfigError
from remap.store import checkpoint
from remap.store.atomic import DamagedError, StorageError
from remap.train.optim import average_at_cycle_ends, make_optimizer
from remap.train.state import TrainState, init_state

META = {"arm": "A", "config": {"seed": 0, "filters": (16, 32)}, "nothing_known": None}


def make_run():
    """A state whose optimiser has rates, a frozen group and clipping, and the step that trains it."""
    params = {
        "heads": {"w": jnp.array([0.1, -0.0, 1e-40]), "log_temperature": jnp.zeros(())},
        "stem": {"w": jnp.array([[1.0, 2.0]])},
    }
    stats = {"norm": {"mean": jnp.array([1 / 3])}}
    rules = (("heads/.*", 0.1), ("stem/.*", None))
    optimizer = optax.chain(
        make_optimizer(rules, lambda count: 0.1 / (count + 1), clip_norm=1.0), average_at_cycle_ends(2)
    )

    @jax.jit
    def step(state):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), state.step), (3,))
        grads = jax.tree.map(jnp.ones_like, state.params)
        grads["heads"]["w"] = state.params["heads"]["w"] - noise
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        stats = jax.tree.map(lambda s: 0.9 * s, state.model_state)
        return TrainState(state.step + 1, params, stats, opt_state)

    return init_state(params, stats, optimizer), step


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture
def open_folder(tmp_path):
    """Opens managers and closes them at the end."""
    managers = []

    def one(keep=2):
        managers.append(checkpoint.open_manager(tmp_path / "checkpoints", keep=keep))
        return managers[-1]

    yield one
    for manager in managers:
        manager.close()


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), jax.tree_util.keystr(path)


def test_a_restored_state_has_every_bit_and_trains_on_as_if_never_stopped(run, open_folder):
    state, step = run
    for _ in range(3):
        state = step(state)
    with open_folder() as manager:
        checkpoint.save_state(manager, int(state.step), state, META, partial=[[0.1, [0.2]]])
    with open_folder() as manager:
        restored, partial = checkpoint.restore_state(manager, run[0], META)
    assert partial == [[0.1, [0.2]]]
    assert isinstance(restored, TrainState)
    assert int(restored.step) == 3
    assert int(optax.tree.get(restored.opt_state, "cycles")) == 1
    assert_same_bits(restored, state)
    for _ in range(3):
        state, restored = step(state), step(restored)
    assert_same_bits(restored, state)
    assert np.abs(state.params["heads"]["w"] - run[0].params["heads"]["w"]).max() > 0


def test_the_newest_of_the_kept_steps_is_restored_and_older_ones_go(run, open_folder):
    state, step = run
    with open_folder(keep=2) as manager:
        assert checkpoint.restore_state(manager, state, META) is None
        for _ in range(3):
            state = step(state)
            checkpoint.save_state(manager, int(state.step), state, META)
        checkpoint.save_state(manager, int(state.step), state, META)  # again: nothing to do
        assert sorted(manager.all_steps()) == [2, 3]
        assert int(checkpoint.restore_state(manager, run[0], META)[0].step) == 3


def test_a_save_that_was_killed_leaves_the_one_before(run, open_folder, tmp_path):
    state, step = run
    with open_folder() as manager:
        checkpoint.save_state(manager, 1, step(state), META)
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-0").mkdir()
    with open_folder() as manager:
        assert int(checkpoint.restore_state(manager, state, META)[0].step) == 1


def test_a_run_of_other_settings_is_refused_with_both_values(run, open_folder):
    state, step = run
    with open_folder() as manager:
        checkpoint.save_state(manager, 1, step(state), META)
        other = {**META, "arm": "B", "config": {"seed": 0, "filters": (16,), "depth": 3}}
        with pytest.raises(ValueError, match="started with other settings") as caught:
            checkpoint.restore_state(manager, state, other)
        message = str(caught.value)
        assert str(manager.directory) in message
        assert "arm: expected 'B', found 'A'" in message
        assert "config.filters: expected [16], found [16, 32]" in message
        assert "config.depth: expected 3, found 'nothing'" in message
        assert "seed" not in message
        checkpoint.restore_state(manager, state, {**META, "config": {"filters": [16, 32], "seed": 0}})


def test_final_networks_come_back_bit_for_bit_with_their_description(run, tmp_path):
    folder = tmp_path / "final"
    variables = {"params": run[0].params, "batch_stats": run[0].model_state}
    checkpoint.save_final(folder, variables, META)
    found, meta = checkpoint.load_final(folder)
    assert_same_bits(found, variables)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
    assert meta == {"arm": "A", "config": {"seed": 0, "filters": [16, 32]}, "nothing_known": None}
    assert checkpoint.read_meta(folder) == meta
    checkpoint.save_final(folder, jax.tree.map(lambda v: v + 1, variables), {"arm": "B"})
    found, meta = checkpoint.load_final(folder)
    assert_same_bits(found, jax.tree.map(lambda v: v + 1, variables))
    assert meta == {"arm": "B"}
    assert len([p for p in folder.iterdir() if p.is_dir()]) == 1  # the older one is gone


def test_final_networks_are_saved_without_the_devices_that_made_them(run, tmp_path):
    checkpoint.save_final(tmp_path, {"params": run[0].params, "batch_stats": run[0].model_state}, META)
    devices = [p for p in tmp_path.rglob("*") if p.is_file() and b"sharding_type" in p.read_bytes()]
    assert devices == []


def test_a_folder_without_a_finished_network_is_named(tmp_path):
    missing = tmp_path / "pretrain" / "A" / "final"
    assert not checkpoint.has_final(missing)
    with pytest.raises(FileNotFoundError, match="expected a finished network, found none") as caught:
        checkpoint.load_final(missing)
    with pytest.raises(FileNotFoundError, match="expected a finished network, found none"):
        checkpoint.read_meta(missing)
    assert str(missing) in str(caught.value)
    assert not missing.exists()  # looking makes nothing
    (missing / "0.orbax-checkpoint-tmp-0").mkdir(parents=True)  # a save that was killed
    assert not checkpoint.has_final(missing)
    with pytest.raises(FileNotFoundError, match="expected a finished network"):
        checkpoint.load_final(missing)


def test_has_final_once_it_is_saved(run, tmp_path):
    checkpoint.save_final(tmp_path, {"params": run[0].params, "batch_stats": {}}, {})
    assert checkpoint.has_final(tmp_path)
    assert checkpoint.load_final(tmp_path)[1] == {}


def test_check_equal_names_every_difference_and_passes_equal_values():
    checkpoint.check_equal({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, "here")
    with pytest.raises(
        ValueError, match=r"^here: a\.x: expected 2, found 1; b: expected 'nothing', found 3$"
    ):
        checkpoint.check_equal({"a": {"x": 1, "y": 0}, "b": 3}, {"a": {"x": 2, "y": 0}}, "here")


def test_a_state_of_another_shape_is_refused_with_what_to_do(run, open_folder):
    """What an older version left unfinished."""
    state, _ = run
    with open_folder() as manager:
        checkpoint.save_state(manager, 0, {"params": state.params, "swa": state.params}, META)
    with (
        open_folder() as manager,
        pytest.raises(ValueError, match="delete the folder and start the stage again"),
    ):
        checkpoint.restore_state(manager, state, META)


# ------------------------------------------------------------------------------------------------- damage


def save_two(run, open_folder):
    """Steps 1 and 2 of the run, and the state of step 1."""
    state, step = run
    first = step(state)
    with open_folder() as manager:
        checkpoint.save_state(manager, 1, first, META, partial="first")
        checkpoint.save_state(manager, 2, step(first), META, partial="second")
    return first


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(
    run, open_folder, tmp_path, caplog, kind
):
    first = save_two(run, open_folder)
    damage.KINDS[kind](tmp_path / "checkpoints" / "2")
    with open_folder() as manager:
        restored, partial = checkpoint.restore_state(manager, run[0], META)
        assert_same_bits(restored, first)
        assert partial == "first"
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
        if kind != "a file":  # which is no checkpoint that could be damaged
            assert f"{tmp_path / 'checkpoints' / '2'}: cannot be used" in caplog.text
        # The run makes that step again.
        checkpoint.save_state(manager, 2, run[1](restored), META)
    with open_folder() as manager:
        assert int(checkpoint.restore_state(manager, run[0], META)[0].step) == 2


def test_a_run_none_of_whose_checkpoints_is_whole_is_refused_with_its_folder(run, open_folder, tmp_path):
    save_two(run, open_folder)
    for step, kind in (("1", "arrays cut"), ("2", "description flipped")):
        damage.KINDS[kind](tmp_path / "checkpoints" / step)
    with (
        open_folder() as manager,
        pytest.raises(DamagedError, match=r"checkpoints: no checkpoint is whole; delete the folder"),
    ):
        checkpoint.restore_state(manager, run[0], META)
    assert (tmp_path / "checkpoints" / "1").exists()  # nothing is thrown away


def test_flipped_bits_of_a_finished_network_are_noticed_or_change_nothing(run, tmp_path):
    variables = {"params": run[0].params, "batch_stats": run[0].model_state}
    whole, spoilt, noticed = tmp_path / "whole", tmp_path / "spoilt", 0
    checkpoint.save_final(whole, variables, META)
    expected, rng = checkpoint.load_final(whole), np.random.default_rng(0)
    for _ in range(25):
        shutil.copytree(whole, spoilt)
        damage.flip_somewhere(spoilt, rng)
        try:
            found = checkpoint.load_final(spoilt)
        except DamagedError as error:
            assert str(error).startswith(f"{spoilt}: cannot be used")  # noqa: PT017  either outcome is right
            noticed += 1
        else:
            assert_same_bits(found[0], expected[0])
            assert found[1] == expected[1]
        shutil.rmtree(spoilt)
    assert noticed > 5


def test_arrays_of_another_network_are_not_taken_for_those_of_the_description(run, tmp_path):
    variables = {"params": run[0].params, "batch_stats": run[0].model_state}
    for name in "ab":
        checkpoint.save_final(tmp_path / name, jax.tree.map(lambda v, n=name: v + ord(n), variables), META)
    shutil.rmtree(tmp_path / "a" / "0" / "variables")
    shutil.copytree(tmp_path / "b" / "0" / "variables", tmp_path / "a" / "0" / "variables")
    with pytest.raises(DamagedError, match=r"a: cannot be used \(.*arrays: not what was saved"):
        checkpoint.load_final(tmp_path / "a")


def without_hashes(folder):
    """As a version before there were hashes would have left it."""
    path = damage.largest(folder / "meta")
    found = json.loads(path.read_text())
    del found[checkpoint.HASHES]
    path.write_text(json.dumps(found))


def test_networks_from_before_the_hashes_load_with_a_warning(run, open_folder, tmp_path, caplog):
    variables = {"params": run[0].params, "batch_stats": run[0].model_state}
    checkpoint.save_final(tmp_path / "final", variables, META)
    first = save_two(run, open_folder)
    checkpoint.load_final(tmp_path / "final")
    assert caplog.text == ""
    without_hashes(tmp_path / "final" / "0")
    without_hashes(tmp_path / "checkpoints" / "2")
    found, meta = checkpoint.load_final(tmp_path / "final")
    assert_same_bits(found, variables)
    assert meta == checkpoint.plain(META)
    with open_folder() as manager:
        assert_same_bits(checkpoint.restore_state(manager, run[0], META)[0], run[1](first))
    assert caplog.text.count("saved without a hash of its arrays") == 2


def test_networks_that_are_not_finite_are_neither_saved_nor_loaded(run, tmp_path, monkeypatch):
    variables = {"params": jax.tree.map(np.array, run[0].params), "batch_stats": run[0].model_state}
    variables["params"]["stem"]["w"][0, 1] = np.inf
    with pytest.raises(ConfigError, match=r"final: a network whose params/stem/w is not finite is not saved"):
        checkpoint.save_final(tmp_path / "final", variables, META)
    assert not checkpoint.has_final(tmp_path / "final")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "not_finite", lambda tree: "")
        checkpoint.save_final(tmp_path / "final", variables, META)
    with pytest.raises(DamagedError, match=r"final: cannot be used \(.*params/stem/w is not finite"):
        checkpoint.load_final(tmp_path / "final")


def test_hash_tells_names_types_shapes_and_values(run):
    state = run[0]
    expected = checkpoint.array_hash(state)
    assert checkpoint.array_hash(jax.tree.map(np.asarray, state)) == expected
    minus = jax.tree.map(np.array, state)
    minus.params["heads"]["w"][1] = 0.0  # it was -0.0
    assert checkpoint.array_hash(minus) != expected
    assert checkpoint.tree_hash(minus) == checkpoint.tree_hash(state)
    a = np.zeros((2, 3), np.float32)
    others = [
        {"a": a},
        {"b": a},
        {"a": a.T},
        {"a": a.astype(np.int32)},
        {"a": {"a": a}},
        {"a": a, "b": a[:0]},
    ]
    assert len({checkpoint.array_hash(tree) for tree in others}) == len(others)
    assert len({checkpoint.tree_hash(tree) for tree in others}) == len(others)


def test_a_step_is_on_the_disk_before_an_older_one_goes(run, open_folder, monkeypatch):
    state, step = run
    seen = []
    sync = checkpoint.sync_tree
    with open_folder(keep=1) as manager:
        checkpoint.save_state(manager, 1, step(state), META)
        monkeypatch.setattr(
            checkpoint, "sync_tree", lambda f: (seen.append(list(manager.all_steps())), sync(f))
        )
        checkpoint.save_state(manager, 2, step(step(state)), META)
        assert list(manager.all_steps()) == [2]
    assert seen == [[1, 2]]


def test_a_full_disk_is_told_with_the_folder_and_keeps_what_was_saved(run, open_folder, monkeypatch):
    state, step = run
    with open_folder() as manager:
        checkpoint.save_state(manager, 1, step(state), META)

        def full(*_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device [source locations=…]")

        with monkeypatch.context() as patch:
            patch.setattr(manager, "save", full)
            with pytest.raises(
                StorageError, match=r"checkpoints: step 2 could not be saved: .*No space left"
            ):
                checkpoint.save_state(manager, 2, step(step(state)), META)
        assert int(checkpoint.restore_state(manager, state, META)[0].step) == 1
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
        with pytest.raises(StorageError, match=r"checkpoints: needs about .* MB free"):
            checkpoint.check_room(str(manager.directory), state, keep=2)


def test_a_network_elsewhere_than_its_description_says_is_refused(tmp_path):
    checkpoint.check_place({"stage": "pretrain", "arm": "A"}, tmp_path, stage="pretrain", arm="A")
    with pytest.raises(ConfigError, match=r"holds a network of another place: arm: expected 'B', found 'A'"):
        checkpoint.check_place({"stage": "pretrain", "arm": "A"}, tmp_path, stage="pretrain", arm="B")


def test_hashes_are_not_overlooked_where_a_bit_of_their_name_is_turned(run, tmp_path):
    checkpoint.save_final(tmp_path, {"params": run[0].params, "batch_stats": {}}, META)
    path = damage.largest(tmp_path / "0" / "meta")
    path.write_text(path.read_text().replace(checkpoint.HASHES, "hasles"))
    for read in (checkpoint.load_final, checkpoint.read_meta):
        with pytest.raises(DamagedError, match="found them under another name"):
            read(tmp_path)
