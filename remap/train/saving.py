"""The checkpoints of one run, which the first of several processes reads and writes for all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from remap import sharding
from remap.store import checkpoint
from remap.train.state import TrainState


class RunCheckpoints(contextlib.AbstractContextManager):
    """The checkpoints in a folder; all processes call every method, and errors of the first are raised in all.

    Args:
      folder: that receives them.
      keep: checkpoints to keep.
      meta: what must agree for the run to be continued.
    """

    def __init__(self, folder: Path, *, keep: int, meta: Mapping[str, Any]) -> None:
        self.folder = folder
        self._keep = keep
        self._meta = meta
        self._manager: checkpoint.Checkpoints | None = None

    def restore(self, template: TrainState) -> tuple[TrainState, Any] | None:
        """Opens the folder and gives what is there, see `checkpoint.restore_state`; refuses a disk without room."""

        def restore() -> tuple[TrainState, Any] | None:
            self._manager = checkpoint.open_manager(self.folder, keep=self._keep)
            found = checkpoint.restore_state(self._manager, _saved(template), self._meta)
            checkpoint.check_room(self.folder, template, keep=self._keep)
            return found

        return sharding.from_first(restore)

    def save(self, step: int, state: TrainState, partial: Any) -> None:
        """See `checkpoint.save_state`."""
        sharding.from_first(
            lambda: checkpoint.save_state(self._manager, step, _saved(state), self._meta, partial)
        )

    def told(self) -> str:
        """Which is the last, and where."""
        step = sharding.from_first(lambda: self._manager.latest_step())
        last = (
            "no checkpoint was saved" if step is None else f"the last good checkpoint is that of step {step}"
        )
        return f"{last} in {self.folder}"

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.close()


def _saved(state: TrainState) -> TrainState:
    """The state as Orbax takes it: of one device, and, where other processes have parts in it, as NumPy arrays."""
    return jax.tree.map(sharding.to_host, state) if sharding.several() else sharding.local(state)
