"""Which prepared data a training has seen: the checksums of their arrays, kept beside the network.

Settings say how data were prepared, not from which files: a corrected table of labels, or another library at the same
place, would otherwise go on with a training of the old ones, or leave its networks as they are, without a word.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from remap.config import ConfigError
from remap.store.atomic import named, read_json, write_json
from remap.store.checkpoint import has_state
from remap.store.workdir import PREPARE

NAME = "inputs.json"


def save_inputs(folder: Path, workdir: Path, files: Sequence[Path]) -> None:
    """Writes `folder`/inputs.json before the first step of a training; compares it with the data of one that goes on.

    Args:
      folder: of the network.
      files: `.npz` below `workdir`/data that the training reads.

    Raises:
      ConfigError: as `check_inputs`.
    """
    if has_state(folder / "checkpoints"):
        check_inputs(folder, workdir)
    data = workdir / "data"
    write_json(folder / NAME, {file.relative_to(data).as_posix(): _checksums(file) for file in files})


def keep_inputs(folder: Path, workdir: Path, files: Sequence[Path]) -> None:
    """Of a study that keeps results: its first run writes `folder`/inputs.json, all others compare it.

    Raises:
      ConfigError: as `check_inputs`.
    """
    if (folder / NAME).is_file():
        check_inputs(folder, workdir)
    else:
        save_inputs(folder, workdir, files)


def check_inputs(folder: Path, workdir: Path) -> None:
    """Refuses a network that was trained, or has begun to be, on other data than the folder now has.

    One of before there was a record is believed.

    Raises:
      ConfigError: names the file and what of it has changed.
    """
    path = folder / NAME
    if not path.is_file():
        return
    cure = f"train again, or delete {NAME} if it may stay as it is"
    kept = read_json(path, cure)
    with named(path, cure):
        kept = {name: dict(sums) for name, sums in kept.items()}
    for name, expected in kept.items():
        file = workdir / "data" / name
        found = _checksums(file)
        if changed := [key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)]:
            raise ConfigError(
                f"{folder}: trained on other data than those of {file}, which has another {', '.join(changed)}: "
                f"it was prepared anew from other files; {cure}"
            )


def _checksums(file: Path) -> dict[str, int]:
    """CRC-32 of every array of an `.npz`, as its directory says; whoever reads one compares it."""
    with named(file, PREPARE), zipfile.ZipFile(file) as archive:
        return {info.filename.removesuffix(".npy"): info.CRC for info in archive.infolist()}
