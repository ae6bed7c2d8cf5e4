"""Readers that misbehave, for worker processes, which import them from here."""

import dataclasses
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from remap.predict.feeding import FileReader, Item, Watch
from remap.spectra import SpectrumError


@dataclasses.dataclass
class Misbehaving(FileReader):
    """Kills its process, or stands still, when it reads files of some names.

    Attributes:
      kills: at these names, always.
      kills_once: at these, if `marks` has no file of that name yet.
      hangs: at these.
    """

    kills: tuple[str, ...] = ()
    kills_once: tuple[str, ...] = ()
    hangs: tuple[str, ...] = ()
    marks: str = ""

    def segments(self, item: Item, within: tuple[float, float] | None):
        name = Path(item.path).name
        mark = Path(self.marks) / name
        if name in self.kills or (name in self.kills_once and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name in self.hangs:
            time.sleep(600)
        return super().segments(item, within)


@dataclasses.dataclass
class DiesLater:
    """Gives names back; dies with the files `bad` after it has read all, as cleaning and resampling might."""

    bad: tuple[str, ...]

    def __call__(self, items: Sequence[Item], watch: Watch) -> list[str]:
        out = []
        for i, item in enumerate(items):
            try:
                with watch.reading(i):
                    out.append(item.name)
            except SpectrumError as error:
                out.append(str(error))
        if set(out) & set(self.bad):
            os.kill(os.getpid(), signal.SIGKILL)
        return out


class Fails:
    """Has a fault of its own."""

    def __call__(self, items: Sequence[Item], watch: Watch) -> list[str]:
        for i, item in enumerate(items):
            with watch.reading(i):
                if item.name == "b":
                    raise ZeroDivisionError("a fault")
        return [item.name for item in items]
