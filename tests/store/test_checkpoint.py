"""Checkpoints come back bit for bit, resume exactly, and are refused where the settings differ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remap.store import checkpoint
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
