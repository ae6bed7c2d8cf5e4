"""Files that are written whole or not at all, at places that were tried before the work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from remap import sharding
from remap.config import ConfigError

PROBE = 4096  # bytes that must fit where something is to be written
_LEFTOVER = re.compile(r"\..*\.\d+\.[0-9a-f]{8}\.tmp")


class StorageError(ConfigError, OSError):
    """A place that cannot be written to: full, read-only, or no folder."""


def write_files(writers: Mapping[Path, Callable[[BinaryIO], Any]]) -> None:
    """Writes all files beside their places first, then moves them there in order, each in one step.

    All is on the disk before anything is moved, and so are the moves when this returns: what a loss of power leaves
    is the old file or the new one. A temporary file is always made afresh, so that no link is followed. Of several
    processes the first one writes, the others do nothing.

    Args:
      writers: path -> writes the content into an open file; missing folders are made.

    Raises:
      StorageError: a place that cannot be written to; names it.
    """
    if not sharding.writes():
        return
    temporary: dict[Path, Path] = {}
    path = Path()
    try:
        for path, write in writers.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _new_file(path) as file:
                temporary[path] = Path(file.name)
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path in writers:
            os.replace(temporary[path], path)
        for folder in {path.parent for path in writers}:
            sync(folder)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _new_file(path: Path) -> BinaryIO:
    """A file that did not exist before, beside `path`."""
    # Part of the name alone, because names have a limit, too.
    name = path.with_name(f".{path.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    return open(name, "wb", opener=lambda *_: handle)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files that a kill has left. Only for who alone writes into the folder."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def remove_leftovers_of(path: Path) -> None:
    """Deletes temporary files of one file. Only for who alone writes it."""
    begin = f".{path.name[:80]}."
    for other in path.parent.glob(".*.tmp"):
        if other.name.startswith(begin) and _LEFTOVER.fullmatch(other.name) and not other.is_dir():
            other.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk, where the file system can say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # of folders, on some network disks
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` of everything below a folder, of itself and of its entry."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.is_file():
            sync(path)
    sync(folder)
    sync(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all."""
    write_files({path: lambda file: file.write(text.encode())})


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an `.npz` whole or not at all."""
    write_files({path: lambda file: np.savez(file, **arrays)})


def check_writable(path: Path, *, size: int = PROBE) -> None:
    """Refuses a file that could not be written, before the work whose result it is to hold; makes no folder.

    Args:
      path: of the file.
      size: bytes that must be free there.

    Raises:
      StorageError: it is a folder, or its own folder cannot be written to or is too full.
    """
    if not sharding.writes():
        return
    if path.is_dir():
        raise StorageError(f"{path}: is a folder, expected the name of a file")
    folder = path.parent
    while not (folder.exists() or folder.is_symlink()) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise StorageError(f"{folder}: expected a folder to write {path.name} into, found none")
    try:
        with _new_file(folder / path.name) as file:
            try:
                file.write(bytes(PROBE))
                file.flush()
                os.fsync(file.fileno())
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written to: {error.strerror or error}") from error
    check_space(folder, size)


def check_space(folder: Path, size: int) -> None:
    """Raises StorageError where fewer than `size` bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(f"{folder}: needs about {size / 1e6:.1f} MB, found {free / 1e6:.1f} MB free")
