"""Observed spectra in files while a survey is prepared: rows are written as they come and read as they are wanted."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from remap.preprocess.description import Preprocessing
from remap.preprocess.observed import ArmOnGrid, Observed

PIXELS = {"flux": np.dtype(np.float32), "valid": np.dtype(bool), "ivar": np.dtype(np.float32)}  # in files
PER_ARM = ("snr", "scale")  # numbers of a row in each arm
NUMBERS = {
    "velocity": float, "velocity_error": float, "measured": float, "poor": bool, "doubtful": bool, "coarse": bool,
    "ra": float, "dec": float, "star_within": float, "inputs": int,
}  # fmt: skip
BLOCK = 256  # rows that are in memory together


class ObservedRows:
    """`Observed` whose pixels are in files. Made by `observed_rows`; a row is 9 bytes a pixel on the disk.

    Args:
      folder: for the files.
      count: rows, all of them empty.
      preprocessing: has the arms' grids.
    """

    def __init__(self, folder: Path, count: int, preprocessing: Preprocessing) -> None:
        self._width = {arm: len(preprocessing.wave(arm)) for arm in preprocessing.arms}
        self._files: dict[tuple[str, str], BinaryIO] = {
            (arm, name): (folder / f"{i}_{name}").open("x+b")
            for i, arm in enumerate(preprocessing.arms)
            for name in PIXELS
        }
        self._names, self._star_ids, self._messages = ([""] * count for _ in range(3))
        self._numbers = {name: np.zeros(count, kind) for name, kind in NUMBERS.items()}
        self._arms = {arm: {name: np.zeros(count) for name in PER_ARM} for arm in preprocessing.arms}

    def __len__(self) -> int:
        return len(self._names)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def put(self, rows: Sequence[int], observed: Observed) -> None:
        """Writes rows, one for each of those observed."""
        for k, row in enumerate(rows):
            self._names[row], self._star_ids[row] = observed.names[k], observed.star_ids[k]
            self._messages[row] = observed.messages[k]
        index = np.asarray(rows, int)
        for name, values in self._numbers.items():
            values[index] = getattr(observed, name)
        for arm, on in observed.arms.items():
            for name in PER_ARM:
                self._arms[arm][name][index] = getattr(on, name)
            for name, dtype in PIXELS.items():
                file, size = self._files[arm, name], self._width[arm] * dtype.itemsize
                values = np.ascontiguousarray(getattr(on, name), dtype)
                for run in _runs(index):
                    file.seek(int(index[run.start]) * size)
                    file.write(values[run].tobytes())

    def take(self, rows: Sequence[int] | np.ndarray) -> Observed:
        """Rows in the order in which they are asked for."""
        arms = {
            arm: ArmOnGrid(
                **{name: self.pixels(arm, name, rows) for name in PIXELS},
                **{name: self._arms[arm][name][np.asarray(rows, int)] for name in PER_ARM},
            )
            for arm in self._arms
        }
        return self._facts(rows, arms)

    def facts(self, rows: Sequence[int] | np.ndarray) -> Observed:
        """As `take`, without the arms."""
        return self._facts(rows, {})

    def _facts(self, rows: Sequence[int] | np.ndarray, arms: dict[str, ArmOnGrid]) -> Observed:
        index = np.asarray(rows, int)
        return Observed(
            names=tuple(self._names[i] for i in index),
            star_ids=tuple(self._star_ids[i] for i in index),
            messages=tuple(self._messages[i] for i in index),
            arms=arms,
            **{name: values[index] for name, values in self._numbers.items()},
        )

    def snr(self, arm: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """float64[K]: signal-to-noise ratio of rows in an arm."""
        return self._arms[arm]["snr"][np.asarray(rows, int)]

    def width(self, arm: str) -> int:
        """Pixels of an arm."""
        return self._width[arm]

    def pixels(self, arm: str, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """`[K, N]`: one of `PIXELS` of rows."""
        index, dtype = np.asarray(rows, int), PIXELS[name]
        file, width = self._files[arm, name], self._width[arm]
        out = np.zeros((len(index), width), dtype)
        for run in _runs(index):
            file.seek(int(index[run.start]) * width * dtype.itemsize)
            content = file.read((run.stop - run.start) * width * dtype.itemsize)
            found = np.frombuffer(content, dtype).reshape(-1, width)
            out[run.start : run.start + len(found)] = (
                found  # rows that were never written are zero, and end the file
            )
        return out

    def blocks(self, arm: str, name: str, rows: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """`pixels` of a few rows at a time."""
        for i in range(0, len(rows), BLOCK):
            yield self.pixels(arm, name, rows[i : i + BLOCK])


def _runs(index: np.ndarray) -> list[slice]:
    """Places in an index whose rows follow each other."""
    ends = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    return [slice(a, b) for a, b in itertools.pairwise(ends) if b > a]


@contextlib.contextmanager
def observed_rows(parent: Path, preprocessing: Preprocessing) -> Iterator[Callable[[int], ObservedRows]]:
    """Makes `ObservedRows` in a folder of their own below another one; all are gone afterwards.

    What a kill has left there is deleted before: of all processes one alone may prepare a survey.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(".rows-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    made: list[ObservedRows] = []
    with tempfile.TemporaryDirectory(dir=parent, prefix=".rows-") as folder:

        def make(count: int) -> ObservedRows:
            own = Path(folder) / str(len(made))
            own.mkdir()
            made.append(ObservedRows(own, count, preprocessing))
            return made[-1]

        try:
            yield make
        finally:
            for one in made:
                one.close()


def join_blocks(groups: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Groups of rows, as many together as have `BLOCK` rows, or one."""
    some: list[Sequence[int]] = []
    total = 0
    for group in groups:
        if some and total + len(group) > BLOCK:
            yield some
            some, total = [], 0
        some.append(group)
        total += len(group)
    if some:
        yield some
