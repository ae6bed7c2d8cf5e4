"""What disks, kills and people do to the folder of a checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np


def files(folder: Path) -> list[Path]:
    """All files below a folder, the largest first."""
    found = [p for p in folder.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: (-p.stat().st_size, str(p)))


def largest(folder: Path) -> Path:
    """The file that holds the arrays."""
    return files(folder)[0]


def cut(path: Path) -> None:
    """Half of a file is there."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, bit: int) -> None:
    """One bit is the other one."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def flip_somewhere(folder: Path, rng: np.random.Generator) -> tuple[Path, int]:
    """One bit of any of the files, each bit as likely as the next; says which."""
    every = files(folder)
    sizes = np.array([p.stat().st_size for p in every])
    path = every[rng.choice(len(every), p=sizes / sizes.sum())]
    bit = int(rng.integers(8 * path.stat().st_size))
    flip(path, bit)
    return path, bit


def as_file(folder: Path) -> None:
    """Something else stands in its place."""
    shutil.rmtree(folder)
    folder.write_text("")


def emptied(folder: Path) -> None:
    """The folder alone is there."""
    shutil.rmtree(folder)
    folder.mkdir()


# Of the folder of one step; `state` is the item with the arrays, `meta` the one with the description.
KINDS: dict[str, Callable[[Path], object]] = {
    "arrays cut": lambda step: cut(largest(step)),
    "arrays empty": lambda step: largest(step).write_bytes(b""),
    "arrays zeroed": lambda step: largest(step).write_bytes(bytes(largest(step).stat().st_size)),
    "arrays flipped": lambda step: flip(largest(step), 4 * largest(step).stat().st_size),
    "arrays missing": lambda step: largest(step).unlink(),
    "state missing": lambda step: shutil.rmtree(step / "state"),
    "description missing": lambda step: shutil.rmtree(step / "meta"),
    "description cut": lambda step: cut(largest(step / "meta")),
    "description flipped": lambda step: flip(
        largest(step / "meta"), 4 * largest(step / "meta").stat().st_size
    ),
    "description zeroed": lambda step: largest(step / "meta").write_bytes(bytes(64)),
    "manifest missing": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "every file empty": lambda step: [p.write_bytes(b"") for p in files(step)],
    "emptied": emptied,
    "a file": as_file,
}
