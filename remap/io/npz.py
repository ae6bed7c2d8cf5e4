"""Archives of arrays as numpy writes them, without taking their word for how much they hold, whole or some rows."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from remap.io import limits
from remap.spectra import SpectrumError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LOCAL = 30  # bytes of a member's own header, before its name
CHUNK = 2**20  # bytes


def check_archive(
    file: BinaryIO, path: Path, names: Collection[str] | None = None, *, pieces: bool = False
) -> None:
    """SpectrumError where arrays of an open `.npz` file are not as large as they say, or too large to unpack.

    Args:
      file: at its start, where it is left.
      path: the file.
      names: of the arrays that are looked at, None = all.
      pieces: they are never in memory as a whole.
    """
    if file.read(6) == np.lib.format.MAGIC_PREFIX:
        raise SpectrumError(f"{path}: expected an .npz bundle, found a single array")
    file.seek(0)
    most, size = limits.limits().unpacked(path.stat().st_size, pieces=pieces), 0
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            size += info.file_size
            if size > most:
                raise SpectrumError(
                    f"{path}: expected arrays of up to {most:.3g} bytes, found more: {info.filename} alone has "
                    f"{info.file_size:.3g}{limits.HINT}"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise SpectrumError(
                    f"{path}: expected arrays as numpy packs them, found method {info.compress_type}"
                )
        members = [n for n in archive.NameToInfo if n.endswith(".npy")]
        for name in members if names is None else [f"{name}.npy" for name in names]:
            if name in archive.NameToInfo:
                _check_array(archive, name, path)
    file.seek(0)


def _check_array(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """SpectrumError unless an array is as large as its header says, for which numpy makes room before it reads."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        if version not in HEADERS:
            raise SpectrumError(
                f"{path}: expected an array {name} of numpy's version 1 or 2, found {version}"
            )
        shape, _, dtype = HEADERS[version](member)
        size = member.tell() + math.prod(shape) * dtype.itemsize
    if size != archive.getinfo(name).file_size or dtype.kind not in "fiubUS":
        raise SpectrumError(
            f"{path}: expected {archive.getinfo(name).file_size} bytes of numbers or names in {name}, found {dtype} "
            f"of shape {list(shape)}"
        )


class Npz:
    """An open archive, whose arrays are read from the rows that are asked for. See `containers.Container`."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path

    @property
    def names(self) -> tuple[str, ...]:
        """Of all arrays."""
        return tuple(n.removesuffix(".npy") for n in self._archive.NameToInfo if n.endswith(".npy"))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array."""
        with self._archive.open(f"{name}.npy") as member:
            return _header(member)[0]

    def whole(self, name: str) -> np.ndarray:
        """All of an array."""
        with self._archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of an array. What is packed is unpacked up to them, so that rows at the end take as long as all."""
        info = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(info) as member:
            shape, fortran, dtype = _header(member)
            if fortran and len(shape) > 1:  # no row lies together
                return self.whole(name)[first:last]
            width = math.prod(shape[1:]) * dtype.itemsize
            at, size = member.tell() + first * width, (last - first) * width
            if info.compress_type == zipfile.ZIP_STORED:
                content = _stored(self._archive, info, at, size)
            else:
                member.seek(at)
                content = member.read(size)
        if len(content) != size:
            raise SpectrumError(f"{self._path}: expected rows {first} to {last} of {name}, found fewer")
        return np.frombuffer(content, dtype).reshape(last - first, *shape[1:])


def _header(member: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    return HEADERS[np.lib.format.read_magic(member)](member)


def _stored(archive: zipfile.ZipFile, info: zipfile.ZipInfo, at: int, size: int) -> bytes:
    """Bytes of a member that is not packed, straight from the file."""
    file = archive.fp
    file.seek(info.header_offset)
    name, extra = struct.unpack("<26x2H", file.read(LOCAL))
    file.seek(info.header_offset + LOCAL + name + extra + at)
    return file.read(size)


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """An archive of arrays, checked.

    Raises:
      SpectrumError: it is damaged, or larger than it may be.
    """
    place = path.stat()
    with path.open("rb") as file:
        check_archive(file, path, pieces=True)
        _check_sums(path, place.st_size, place.st_mtime_ns)
        with zipfile.ZipFile(file) as archive:
            yield Npz(archive, path)


@functools.lru_cache(maxsize=16)
def _check_sums(path: Path, size: int, changed: int) -> None:
    """SpectrumError where a member is not that of its checksum: once for a file, since rows of it tell nothing of it.

    Args:
      path: the file.
      size, changed: of it, so that another one of its name is looked at again.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                while member.read(CHUNK):
                    pass
