"""HDF5 files as arrays, by h5py (the extra `hdf5`), without what else such a file can be.

Links to other files, data kept in other files and objects of Python are refused: a file of spectra needs none of
them, and they reach where its reader did not mean to look.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from remap.config import ConfigError
from remap.io import containers
from remap.spectra import SpectrumError

LONGEST_TEXT = 4096  # bytes that a text may have


def h5py() -> Any:
    """The package.

    Raises:
      ConfigError: it is not there; names the extra that brings it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ConfigError("spectra in HDF5 need h5py: pip install 'deep-remap[hdf5]'") from error
    return h5py


class Hdf5:
    """An open file. See `containers.Container`; names may be paths into groups."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        self._known: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arrays and groups at the root."""
        return tuple(self._file)

    def _dataset(self, name: str) -> Any:
        if name not in self._known:
            self._known[name] = self._checked(name)
        return self._known[name]

    def _checked(self, name: str) -> Any:
        package, where = h5py(), self._file
        steps = [step for step in name.split("/") if step]
        for step in steps:
            link = where.get(step, getlink=True) if isinstance(where, package.Group) else None
            if not isinstance(link, package.HardLink):
                there = ", ".join(sorted(self._file)[:20])
                found = "none" if link is None else "a link to elsewhere"
                raise SpectrumError(f"{self._path}: expected an array {name!r}, found {found} among {there}")
            where = where[step]
        if not isinstance(where, package.Dataset):
            raise SpectrumError(f"{self._path}: expected an array {name!r}, found a group")
        text = package.check_string_dtype(where.dtype)
        if where.is_virtual or where.external:
            raise SpectrumError(f"{self._path}: expected {name!r} in this file, found that it lies in others")
        if where.shape is None or (text is None and where.dtype.kind not in "fiubS"):
            raise SpectrumError(
                f"{self._path}: expected numbers or texts in {name!r}, found {where.dtype} of shape {where.shape}"
            )
        width = where.dtype.itemsize
        containers.check_size(self._path, math.prod(where.shape) * width, repr(name))
        if where.chunks:
            containers.check_size(self._path, math.prod(where.chunks) * width, f"a chunk of {name!r}")
        return where

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array."""
        return tuple(self._dataset(name).shape)

    def whole(self, name: str) -> np.ndarray:
        """All of an array."""
        return self._values(name, ())

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of an array."""
        return self._values(name, slice(first, last))

    def _values(self, name: str, which: Any) -> np.ndarray:
        found = self._dataset(name)
        if h5py().check_string_dtype(found.dtype) is None:
            return np.asarray(found[which])
        texts = found[which]
        return np.array([_text(value) for value in np.ravel(texts)], dtype=object).reshape(np.shape(texts))


def _text(value: Any) -> str:
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    return raw[:LONGEST_TEXT].decode("utf-8", "replace")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5]:
    """An HDF5 file, read-only and without a lock.

    Raises:
      ConfigError: h5py is missing.
    """
    with h5py().File(path, "r", locking=False) as file:
        yield Hdf5(file, path)
