"""Where files lie, and which of a folder are meant."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from remap.spectra import SpectrumError

logger = logging.getLogger(__name__)


def find_data(path: str | os.PathLike, *, root: str | os.PathLike | None = None) -> Path:
    """Where a data file or folder lies.

    Args:
      path: absolute, or relative to `root`.
      root: the folder looked into; None = that of the environment variable $REMAP_DATA.

    Raises:
      SpectrumError: it is not there (the message names the place), or no folder of the data is known.
    """
    found = data_path(path, root=root)
    if not found.exists():
        absolute = Path(path).expanduser().is_absolute()
        hint = "" if absolute else "; data_root in the config and $REMAP_DATA say where data are"
        raise SpectrumError(f"{path}: not found; expected it at {found}{hint}")
    return found


def data_path(path: str | os.PathLike, *, root: str | os.PathLike | None = None) -> Path:
    """Where a data file or folder belongs, there or not; see `find_data`.

    Raises:
      SpectrumError: no folder of the data is known.
    """
    path = Path(path).expanduser()
    root = root or os.environ.get("REMAP_DATA")
    if not path.is_absolute() and not root:
        raise SpectrumError(
            f"{path}: expected to know the folder of the data: set $REMAP_DATA to it, or data_root in the config "
            "(--config.data_root=FOLDER), or give an absolute path"
        )
    return path if path.is_absolute() else Path(root).expanduser() / path


def resolve(path: str | os.PathLike, root: str | os.PathLike | None) -> Path:
    """A path as it is where that exists, else as `find_data` finds it."""
    path = Path(path).expanduser()
    return path if path.exists() else find_data(path, root=root)


def list_files(path: str | os.PathLike, patterns: str | Iterable[str]) -> list[Path]:
    """The files that a path stands for, sorted: the file itself, or a folder's files that match a pattern.

    What else a folder has is told: files of other names and, in a warning, folders, which are not looked into.

    Args:
      path: a file (returned whatever its name) or a folder.
      patterns: one or more glob patterns, for example ("*.fits", "*.fits.gz"); "**/*.fits" descends.

    Raises:
      SpectrumError: the path does not exist, or no file in the folder matches.
    """
    path = Path(path).expanduser()
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SpectrumError(f"{path}: expected a file or a folder, found nothing")
    # Beside every file macOS leaves one of its own, `._NAME`, on discs that are not its own.
    found = sorted(
        {f for pattern in patterns for f in path.glob(pattern) if f.is_file() and not f.name.startswith("._")}
    )
    others = sorted(set(path.iterdir()) - set(found))
    folders = [f.name for f in others if f.is_dir()]
    within = f"{len(folders)} folders ({', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''})"
    if not found:
        hint = f"; {within} are not looked into: name them, separated by commas" if folders else ""
        raise SpectrumError(
            f"{path}: expected files like {' or '.join(patterns)}, found none among {len(others)} entries{hint}"
        )
    if folders and not any("/" in pattern for pattern in patterns):
        logger.warning(
            "%s: %s are not looked into; to have their files, too, name them, separated by commas",
            path,
            within,
        )
    files = [f.name for f in others if not f.is_dir() and not f.name.startswith(".")]
    if files:
        logger.info(
            "%s: %d of %d files are not like %s, such as %s, and left out",
            *(path, len(files), len(files) + len(found), " or ".join(patterns), files[0]),
        )
    return found
