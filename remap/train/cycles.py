"""The parameters at the ends of the cycles, kept beside a run, and what can be made of them besides their mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from remap.store.atomic import read_arrays, save_arrays
from remap.train.state import TrainState

KEPT = ("best", "snapshots")  # values of `FitSettings.average` that need the cycles one by one


def _path(folder: Path, cycle: int) -> Path:
    return folder / f"cycle_{cycle}.npz"


def cycle_recorder(folder: str | Path, epochs_per_cycle: int) -> Callable[[int, TrainState], None]:
    """An `on_epoch` for `loop.fit` that writes `cycle_K.npz` at the end of cycle K, whole or not at all."""

    def record(epoch: int, state: TrainState) -> None:
        if epoch == 0 or epoch % epochs_per_cycle:
            return
        kept = {"params": state.params, "model_state": state.model_state}
        flat = traverse_util.flatten_dict(kept, sep="/")
        arrays = {name: np.asarray(value) for name, value in flat.items()}
        save_arrays(_path(Path(folder), epoch // epochs_per_cycle), **arrays)

    return record


def read_cycles(folder: str | Path, cycles: int) -> list[tuple[Any, Any]]:
    """Parameters and model state at the end of each cycle, in order."""
    found = []
    for cycle in range(1, cycles + 1):
        arrays = read_arrays(_path(Path(folder), cycle), (), "delete the folder and start the stage again")
        tree = traverse_util.unflatten_dict(arrays, sep="/")
        found.append((tree["params"], tree.get("model_state", ())))
    return found


def running_means(params: list[Any]) -> list[Any]:
    """Mean of the first, of the first two, ... parameters: the stochastic average had the run stopped there."""
    return [jax.tree.map(lambda *x: np.mean(x, axis=0), *params[: k + 1]) for k in range(len(params))]
