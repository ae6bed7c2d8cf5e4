"""Orbax checkpoints: one manager per stage for resuming, one final record per stage for use.

A final record holds the averaged network together with the preprocessing description that its inputs must
obey, so that it can be refused when the two do not fit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from remap.config import ConfigError

logger = logging.getLogger(__name__)

STATE, META, VARIABLES = "state", "meta", "variables"


def open_manager(folder: str | Path, *, keep: int) -> ocp.CheckpointManager:
    """A manager for the steps of one run; `keep` newest steps stay. Use it in a `with` block."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save_state(
    manager: ocp.CheckpointManager, step: int, state: Any, meta: Mapping[str, Any], partial: Any = None
) -> None:
    """Saves a step, whole or not at all; saving a step that is there already does nothing.

    Args:
      state: any tree of arrays.
      meta: what must agree for the run to be continued.
      partial: JSON values that the run needs to go on within an epoch.
    """
    if manager.latest_step() == step:
        return
    record = {"run": dict(meta), "partial": partial}
    manager.save(
        step,
        args=ocp.args.Composite(**{STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(record)}),
    )
    manager.wait_until_finished()


def restore_state(
    manager: ocp.CheckpointManager, template: Any, meta: Mapping[str, Any]
) -> tuple[Any, Any] | None:
    """The newest saved state, a tree like `template`, with its `partial`; None if there is none.

    Raises:
      ValueError: the run was started with another `meta` (both values of each difference are named), or the saved
        state is no tree like `template`.
    """
    step = manager.latest_step()
    if step is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    found = manager.restore(step, args=ocp.args.Composite(**{META: ocp.args.JsonRestore()}))[META]
    check_equal(found["run"], plain(meta), f"{manager.directory}: this run was started with other settings")
    try:
        restored = manager.restore(
            step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)})
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{manager.directory}: step {step} holds another state than this version trains, and cannot be gone on "
            "with; delete the folder and start the stage again"
        ) from error
    return restored[STATE], found["partial"]


def save_final(folder: str | Path, variables: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Saves the finished network (`params`, `batch_stats`) with its description, replacing an older one."""
    folder = Path(folder).absolute()
    with ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True, enable_async_checkpointing=False),
    ) as manager:
        latest = manager.latest_step()
        manager.save(
            0 if latest is None else latest + 1,
            args=ocp.args.Composite(
                # As NumPy arrays: Orbax would record the devices, and a CPU would refuse what a GPU wrote.
                **{
                    VARIABLES: ocp.args.StandardSave(jax.tree.map(np.asarray, dict(variables))),
                    META: ocp.args.JsonSave(dict(meta)),
                }
            ),
        )
        manager.wait_until_finished()


def has_final(folder: str | Path) -> bool:
    """True if `save_final` has finished once in `folder`."""
    return has_state(folder)


def has_state(folder: str | Path) -> bool:
    """True if a manager of `folder` has saved a step."""
    return Path(folder).is_dir() and bool(ocp.utils.checkpoint_steps(Path(folder).absolute()))


def is_finished(folder: str | Path, meta: Mapping[str, Any]) -> bool:
    """True if `folder`/final holds a finished network of this description; its `step` may be any.

    Raises:
      ValueError: it holds one of another description (both values of each difference are named).
    """
    folder = Path(folder)
    if not has_final(folder / "final"):
        return False
    found = {k: v for k, v in read_meta(folder / "final").items() if k != "step"}
    check_equal(found, plain(meta), f"{folder}: trained with other settings")
    logger.info("%s: already trained", folder)
    return True


def load_final(folder: str | Path) -> tuple[dict, dict]:
    """The finished network and its description.

    Raises:
      FileNotFoundError: `folder` holds no finished network.
    """
    restored = _restore_final(folder, {VARIABLES: ocp.args.StandardRestore(), META: ocp.args.JsonRestore()})
    return jax.tree.map(np.asarray, restored[VARIABLES]), restored[META]


def read_meta(folder: str | Path) -> dict:
    """The description of a finished network alone; no array is read.

    Raises:
      FileNotFoundError: `folder` holds no finished network.
    """
    return _restore_final(folder, {META: ocp.args.JsonRestore()})[META]


def _restore_final(folder: str | Path, items: Mapping[str, Any]) -> Any:
    folder = Path(folder).absolute()
    if not has_final(folder):
        raise FileNotFoundError(
            f"{folder}: expected a finished network, found none; was the stage run to its end?"
        )
    with ocp.CheckpointManager(folder) as manager:
        return manager.restore(manager.latest_step(), args=ocp.args.Composite(**items))


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
