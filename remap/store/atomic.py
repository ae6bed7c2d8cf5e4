"""Files of the working folder: written whole or not at all (`remap.writing`), named in every complaint about them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

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
    "DamagedError",
    "StorageError",
    "check_space",
    "check_writable",
    "file_hash",
    "named",
    "read_arrays",
    "read_json",
    "remove_leftovers",
    "save_arrays",
    "sync",
    "sync_tree",
    "write_files",
    "write_json",
    "write_text",
]


class DamagedError(ConfigError):
    """A file or folder that does not hold what was written there."""


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
