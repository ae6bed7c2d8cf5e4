"""Files of arrays, read row by row: `.npz`, HDF5 and Parquet behind one face.

Each array has a row for every spectrum, but for the few that all share (wavelengths). No reader allocates more than
the rows that are asked for, and none of them takes the word of a damaged file for how much there is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from remap.io import limits
from remap.spectra import SpectrumError

MAGIC = {b"PK\x03\x04": "npz", b"\x89HDF\r\n\x1a\n": "hdf5", b"PAR1": "parquet"}


@runtime_checkable
class Container(Protocol):
    """An open file of arrays."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all arrays."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, the rows first."""

    def whole(self, name: str) -> np.ndarray:
        """An array that all rows share; its shape is small."""

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last - 1` of an array."""


def kind(path: Path) -> str:
    """ "npz", "hdf5" or "parquet", by how a file begins.

    Raises:
      SpectrumError: it is none of them.
    """
    with path.open("rb") as file:
        start = file.read(8)
    found = next((name for magic, name in MAGIC.items() if start.startswith(magic)), None)
    if found is None:
        raise SpectrumError(
            f"{path}: expected arrays as .npz, HDF5 or Parquet, found a file that begins with {start[:4]!r}"
        )
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Container]:
    """A file of arrays, whatever its kind.

    Raises:
      SpectrumError: it is none, or its arrays are larger than they may be (`limits.Limits`).
      ConfigError: h5py or pyarrow is missing.
    """
    which = kind(path)
    if which == "npz":
        from remap.io.npz import open_npz as own
    elif which == "hdf5":
        from remap.io.hdf5 import open_hdf5 as own
    else:
        from remap.io.parquet import open_parquet as own
    with own(path) as found:
        yield found


def check_size(path: Path, size: int, what: str) -> None:
    """SpectrumError where arrays of a file, or one of them, are said to have more bytes than they may."""
    most = limits.limits().unpacked(path.stat().st_size, pieces=True)
    if size > most:
        raise SpectrumError(
            f"{path}: expected arrays of up to {most:.3g} bytes, found {what} of {size:.3g}{limits.HINT}"
        )


def check_piece(path: Path, size: int, what: str) -> None:
    """SpectrumError where what is read at a time has more bytes than it may."""
    most = limits.limits().largest or limits.LARGEST
    if size > most:
        raise SpectrumError(
            f"{path}: expected up to {most:.3g} bytes at a time, found {what} of {size:.3g}{limits.HINT}"
        )
