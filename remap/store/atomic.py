"""Files of the working folder: written whole or not at all (`remap.writing`), named in every complaint about them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from remap.config import ConfigError
from remap.writing import (
    StorageError,
    check_space,
    check_writable,
    remove_leftovers,
    save_arrays,
    sync,
    sync_tree,
    write_files,
    write_json,
    write_text,
)

__all__ = [
    "Blocks",
    "DamagedError",
    "StorageError",
    "check_space",
    "check_writable",
    "file_hash",
    "map_arrays",
    "named",
    "read_arrays",
    "read_json",
    "remove_leftovers",
    "save_arrays",
    "save_blocks",
    "seal",
    "sync",
    "sync_tree",
    "unseal",
    "write_files",
    "write_json",
    "write_text",
]

SEAL = "hash"  # key of a file's own hash
CHUNK = 2**20  # bytes
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class DamagedError(ConfigError):
    """A file or folder that does not hold what was written there."""


class Blocks(NamedTuple):
    """An array that comes in pieces, which follow each other along its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def save_blocks(path: Path, **arrays: np.ndarray | Blocks) -> None:
    """Writes what `save_arrays` would, byte for byte, with no more than a piece of an array in memory.

    Raises:
      ValueError: pieces that do not make up the shape.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    if isinstance(array, Blocks):
                        _write_blocks(member, array, name)
                    else:
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_files({path: write})


def _write_blocks(member: io.BufferedIOBase, blocks: Blocks, name: str) -> None:
    told = {
        "descr": np.lib.format.dtype_to_descr(blocks.dtype),
        "fortran_order": False,
        "shape": blocks.shape,
    }
    np.lib.format.write_array_header_1_0(member, told)
    rows = 0
    for piece in blocks.pieces:
        if piece.dtype != blocks.dtype or piece.shape[1:] != blocks.shape[1:]:
            raise ValueError(
                f"{name}: expected {blocks.dtype} {blocks.shape}, found {piece.dtype} {piece.shape}"
            )
        rows += len(piece)
        member.write(np.ascontiguousarray(piece).tobytes())
    if rows != blocks.shape[0]:
        raise ValueError(f"{name}: expected {blocks.shape[0]} rows, found {rows}")


def map_arrays(path: Path, names: Collection[str], cure: str) -> dict[str, np.ndarray]:
    """As `read_arrays`, with arrays that stay in the file until they are looked at; changes to them stay in memory.

    Args:
      names, cure: as there.

    Raises:
      FileNotFoundError, DamagedError: as there.
    """
    with named(path, cure), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        out = {}
        for info in archive.infolist():
            with archive.open(info) as member:  # all of it is read once, for its checksum
                version = np.lib.format.read_magic(member)
                shape, fortran, dtype = _HEADERS[version](member)
                start = member.tell()
                while member.read(CHUNK):
                    pass
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED or dtype.hasobject or not math.prod(shape):
                with archive.open(info) as member:
                    out[name] = np.lib.format.read_array(member, allow_pickle=False)
                continue
            file.seek(info.header_offset)
            lengths = struct.unpack("<26x2H", file.read(30))
            at = info.header_offset + 30 + sum(lengths) + start
            order = "F" if fortran else "C"
            out[name] = np.asarray(np.memmap(path, dtype, mode="c", offset=at, shape=shape, order=order))
        if missing := sorted(set(names) - set(out)):
            raise ValueError(f"expected the arrays {sorted(names)}, found none called {missing}")
        return out


@contextlib.contextmanager
def named(path: Path, cure: str) -> Iterator[None]:
    """Says of whatever goes wrong within which file it was in.

    Args:
      path: that is read.
      cure: what a user can do, for the message.

    Raises:
      FileNotFoundError: `path` is not there.
      DamagedError: for every other error.
    """
    try:
        yield
    except Exception as error:  # there is no end to what broken files raise
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise
        told = str(error).partition("\n")[0][:200]
        told = told.removeprefix(f"{path}: ")
        raise DamagedError(f"{path}: cannot be used ({type(error).__name__}: {told}); {cure}") from error


def read_json(path: Path, cure: str) -> Any:
    """What `write_json` wrote.

    Args:
      cure: what a user can do where it is damaged, for the message.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedError: it is no JSON; names the file.
    """
    with named(path, cure):
        return json.loads(path.read_text(encoding="utf-8"))


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with a hash of themselves, for files of which a digit decides something."""
    value = json.loads(json.dumps(value))
    return {**value, SEAL: _json_hash(value)}


def unseal(found: dict[str, Any]) -> dict[str, Any]:
    """What was sealed, as JSON gave it back; what has no seal, of before there was any, is believed.

    Raises:
      ValueError: it is not what was sealed.
    """
    value = {key: each for key, each in found.items() if key != SEAL}
    if SEAL in found and found[SEAL] != _json_hash(value):
        raise ValueError(f"not what was written, by its hash; if you have edited it, delete its {SEAL!r}")
    return value


def _json_hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_arrays(path: Path, names: Collection[str], cure: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`, whose checksums are compared.

    Args:
      names: that must be among them.
      cure: what a user can do where it is damaged, for the message.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedError: it is none, is damaged, or lacks an array; names the file.
    """
    with named(path, cure), path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        if missing := sorted(set(names) - set(found)):
            raise ValueError(f"expected the arrays {sorted(names)}, found none called {missing}")
        return dict(found)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
