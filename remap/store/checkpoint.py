"""Orbax checkpoints: one manager per stage for resuming, one final record per stage for use.

A final record holds the averaged network together with the preprocessing description that its inputs must
obey, so that it can be refused when the two do not fit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from remap import sharding
from remap.config import ConfigError
from remap.store.atomic import DamagedError, StorageError, check_space, named, sync_tree

logger = logging.getLogger(__name__)

STATE, META, VARIABLES = "state", "meta", "variables"
HASHES = (
    "hashes"  # of arrays and description; kept in the description's file, and no part of what is described
)
_AGAIN = "delete the folder and start the stage again"
_FULL = ("No space left", "Disk quota", "Read-only file system", "Permission denied", "File too large")


class Checkpoints(ocp.CheckpointManager):
    """The steps of one run on disk, of which the `keep` newest stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.keep = keep
        # What is too old goes when the newest is known to be on the disk, and not before: see `_save`.
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, options=_options(max_to_keep=None, enable_async_checkpointing=False))


def _options(**settings: Any) -> ocp.CheckpointManagerOptions:
    """Options of a manager that is there for one process: what is saved is the same in all, and the first saves."""
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(own, {own}, f"process_{own}") if sharding.several() else None
    more = {} if alone is None else {"multiprocessing_options": alone, "create": False}
    return ocp.CheckpointManagerOptions(**settings, **more)


def open_manager(folder: str | Path, *, keep: int) -> Checkpoints:
    """A manager for the steps of one run; `keep` newest steps stay. Use it in a `with` block.

    Raises:
      StorageError: the folder cannot be written to.
    """
    folder = Path(folder).absolute()
    try:
        return Checkpoints(folder, keep)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to: {error.strerror or error}") from error


def save_state(
    manager: Checkpoints, step: int, state: Any, meta: Mapping[str, Any], partial: Any = None
) -> None:
    """Saves a step, whole or not at all; saving a step that is there already does nothing.

    Args:
      state: any tree of arrays.
      meta: what must agree for the run to be continued.
      partial: JSON values that the run needs to go on.

    Raises:
      StorageError: the disk is full or read-only; what was saved before stays.
    """
    if manager.latest_step() == step:
        return
    record = {"run": dict(meta), "partial": partial}
    record |= {HASHES: _hashes(state, record)}
    _save(manager, step, {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(record)})


def restore_state(manager: Checkpoints, template: Any, meta: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """The newest saved state that is whole, a tree like `template`, with its `partial`; None if none was saved.

    A newer one that is damaged is told of and deleted, since the run will make it again.

    Raises:
      ConfigError: the run was started with another `meta` (both values of each difference are named), or the saved
        state is no tree like `template`.
      DamagedError: none of the saved states is whole; names the folder.
    """
    damaged: list[DamagedError] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found = _restore_step(manager, step, template, meta)
        except DamagedError as error:
            logger.warning("%s", error)
            damaged.append(error)
            continue
        _forget_after(manager, step)
        return found
    if damaged:
        raise DamagedError(f"{manager.directory}: no checkpoint is whole; {_AGAIN} ({damaged[0]})")
    _forget_after(manager, -1)
    return None


def _restore_step(manager: Checkpoints, step: int, template: Any, meta: Mapping[str, Any]) -> tuple[Any, Any]:
    folder = Path(str(manager.directory)) / str(step)
    with named(folder, "this checkpoint is damaged"):
        found = manager.restore(step, args=ocp.args.Composite(**{META: ocp.args.JsonRestore()}))[META]
        hashes = _checked(found)
        run, partial = found["run"], found["partial"]
    check_equal(run, plain(meta), f"{manager.directory}: this run was started with other settings")
    other = (
        f"{manager.directory}: step {step} holds another state than this version trains, and cannot be gone on "
        f"with; {_AGAIN}"
    )
    if hashes is not None and hashes.get("tree") != tree_hash(template):
        raise ConfigError(other)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)})
    if hashes is None:
        logger.warning("%s: saved without a hash of its arrays; damage would not be noticed", folder)
        try:
            return manager.restore(step, args=args)[STATE], partial
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(other) from error
    with named(folder, "this checkpoint is damaged"):
        state = manager.restore(step, args=args)[STATE]
        _compare(hashes, "arrays", array_hash(state))
    return state, partial


def _forget_after(manager: Checkpoints, step: int) -> None:
    """Deletes what is there of later steps: what is damaged, or was never finished."""
    for path in Path(str(manager.directory)).iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    manager.reload()


def save_final(folder: str | Path, variables: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Saves the finished network (`params`, `batch_stats`) with its description, replacing an older one.

    Of several processes, which must all call it, the first one saves.

    Raises:
      ConfigError: an array that is not finite; names it.
      StorageError: the disk is full or read-only; an older one stays.
    """
    folder = Path(folder).absolute()
    # As NumPy arrays: Orbax would record the devices, and a CPU would refuse what a GPU wrote.
    arrays = jax.tree.map(np.asarray, dict(variables))
    if bad := not_finite(arrays):
        raise ConfigError(f"{folder}: a network whose {bad} is not finite is not saved")
    record = dict(meta) | {HASHES: _hashes(arrays, dict(meta))}

    def save() -> None:
        with open_manager(folder, keep=1) as manager:
            latest = manager.latest_step()
            _save(
                manager,
                0 if latest is None else latest + 1,
                {VARIABLES: ocp.args.StandardSave(arrays), META: ocp.args.JsonSave(record)},
            )

    sharding.from_first(save)


def _save(manager: Checkpoints, step: int, items: Mapping[str, Any]) -> None:
    """Saves a step, waits until it is on the disk, and deletes what is older than `keep` steps."""
    folder = Path(str(manager.directory))
    try:
        manager.save(step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
        sync_tree(folder / str(step))
        for old in sorted(manager.all_steps())[: -manager.keep]:
            manager.delete(old)
    except Exception as error:
        # The libraries below have errors of their own for what the operating system says.
        if isinstance(error, OSError) or any(text in str(error) for text in _FULL):
            told = str(error).partition("\n")[0][:200]
            raise StorageError(f"{folder}: step {step} could not be saved: {told}") from error
        raise


def check_room(folder: str | Path, state: Any, *, keep: int) -> None:
    """Refuses a run whose checkpoints would not fit on the disk.

    Args:
      folder: of the checkpoints, which is there.
      state: any tree of arrays.
      keep: checkpoints to keep; one more is there while it is written.

    Raises:
      StorageError: says how much is needed and free.
    """
    folder = Path(folder)
    there = sum(path.name.isdecimal() for path in folder.iterdir())
    size = sum(np.dtype(x.dtype).itemsize * x.size for x in jax.tree.leaves(state))
    check_space(folder, size * max(2, keep + 2 - there))


def has_final(folder: str | Path) -> bool:
    """True if `save_final` has finished once in `folder`."""
    return has_state(folder)


def has_state(folder: str | Path) -> bool:
    """True if a manager of `folder` has saved a step."""
    return Path(folder).is_dir() and bool(ocp.utils.checkpoint_steps(Path(folder).absolute()))


def is_finished(folder: str | Path, meta: Mapping[str, Any]) -> bool:
    """True if `folder`/final holds a finished network of this description; its `step` may be any.

    Raises:
      ConfigError: it holds one of another description (both values of each difference are named), or is damaged.
    """
    folder = Path(folder)
    if not has_final(folder / "final"):
        return False
    found = {k: v for k, v in read_meta(folder / "final").items() if k != "step"}
    check_equal(found, plain(meta), f"{folder}: trained with other settings")
    logger.info("%s: already trained", folder)
    return True


def load_final(folder: str | Path) -> tuple[dict, dict]:
    """The finished network and its description, compared with the hashes that were saved with them.

    Raises:
      FileNotFoundError: `folder` holds no finished network.
      DamagedError: it is not what was saved, or holds an array that is not finite; names the folder.
    """
    folder = _final_folder(folder)
    with named(folder, _damaged(folder)):
        items = {VARIABLES: ocp.args.StandardRestore(), META: ocp.args.JsonRestore()}
        with ocp.CheckpointManager(folder, options=_options()) as manager:
            restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))
        variables, meta = jax.tree.map(np.asarray, restored[VARIABLES]), restored[META]
        hashes = _checked(meta)
        if hashes is None:
            logger.warning("%s: saved without a hash of its arrays; damage would not be noticed", folder)
        else:
            _compare(hashes, "arrays", array_hash(variables))
        if bad := not_finite(variables):
            raise ValueError(f"{bad} is not finite")
    return variables, meta


def read_meta(folder: str | Path) -> dict:
    """The description of a finished network alone; no array is read.

    Raises:
      FileNotFoundError: `folder` holds no finished network.
      DamagedError: it is not what was saved; names the folder.
    """
    folder = _final_folder(folder)
    with named(folder, _damaged(folder)):
        with ocp.CheckpointManager(folder, options=_options()) as manager:
            args = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
            meta = manager.restore(manager.latest_step(), args=args)[META]
        _checked(meta)
    return meta


def _final_folder(folder: str | Path) -> Path:
    folder = Path(folder).absolute()
    if not has_final(folder):
        raise FileNotFoundError(
            f"{folder}: expected a finished network, found none; was the stage run to its end?"
        )
    return folder


def _damaged(folder: Path) -> str:
    return f"bring back {folder.parent} from a copy, or delete it and run its stage again"


def check_place(meta: Mapping[str, Any], folder: Path, **place: Any) -> None:
    """Refuses a network that does not lie where its description says.

    Args:
      meta: its description.
      folder: where it was found.
      place: stage, arm and fold of that folder, as far as there are any.

    Raises:
      ConfigError: both values of every difference.
    """
    check_equal({k: meta.get(k) for k in place}, place, f"{folder}: holds a network of another place")


def not_finite(tree: Any) -> str:
    """The name of the first array of a tree that holds NaN or infinity, "" if there is none."""
    for name, leaf in _named_leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            return name
    return ""


def array_hash(tree: Any) -> str:
    """SHA-256 of a tree of arrays: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, leaf in _named_leaves(tree):
        digest.update(_form(name, leaf).encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def tree_hash(tree: Any) -> str:
    """SHA-256 of the names, types and shapes of a tree of arrays, without their values."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return _text_hash(sorted(_form(_name(path), leaf) for path, leaf in leaves))


def _named_leaves(tree: Any) -> list[tuple[str, np.ndarray]]:
    found = [(_name(path), np.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return sorted(found, key=lambda pair: pair[0])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _form(name: str, leaf: Any) -> str:
    return f"{name} {np.dtype(leaf.dtype).name} {list(np.shape(leaf))}\n"


def _hashes(arrays: Any, record: Mapping[str, Any]) -> dict[str, str]:
    return {
        "arrays": array_hash(arrays),
        "tree": tree_hash(arrays),
        "description": _text_hash(plain(record)),
    }


def _text_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checked(meta: dict[str, Any]) -> dict[str, str] | None:
    """The hashes in a description, which they are taken out of; None for networks from before there were any."""
    hashes = meta.pop(HASHES, None)
    if hashes is None and any(isinstance(v, Mapping) and {"arrays", "tree"} <= set(v) for v in meta.values()):
        raise ValueError(f"expected {HASHES!r}, found them under another name")  # a bit of it was turned
    _compare(hashes, "description", _text_hash(meta))
    return hashes


def _compare(hashes: Mapping[str, str] | None, what: str, found: str) -> None:
    if hashes is not None and hashes.get(what) != found:
        raise ValueError(f"{what}: not what was saved, by its hash")


def check_equal(found: Any, expected: Any, where: str) -> None:
    """Raises ConfigError naming every entry in which two JSON-like descriptions differ, with both values.

    Entries called "software" may differ: a new version reads what an older one wrote, or says why it cannot by the
    versions of formats.
    """
    differences = list(_differences(found, expected, ""))
    if differences:
        lines = "; ".join(f"{path}: expected {b!r}, found {a!r}" for path, a, b in differences)
        raise ConfigError(f"{where}: {lines}")


def plain(value: Any) -> Any:
    """`value` as JSON gives it back (tuples become lists), for comparisons."""
    return json.loads(json.dumps(value))


def _differences(a: Any, b: Any, path: str) -> Any:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b} - {"software"}):
            yield from _differences(
                a.get(key, "nothing"), b.get(key, "nothing"), f"{path}.{key}" if path else key
            )
    elif a != b:
        yield path, a, b


def stack(networks: list[dict[str, Any]]) -> dict[str, Any]:
    """Networks as one whose arrays have a leading axis."""
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *networks)


def unstack(network: dict[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `stack`."""
    count = jax.tree.leaves(network)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], network) for i in range(count)]
