"""Which inputs of a stream are read together, and which make a shard: the same in every process and every run."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap import io
from remap.predict.feeding import Item
from remap.predict.observing import FILES_AT_A_TIME
from remap.preprocess.same_star import connected, near_pairs
from remap.spectra import SpectrumError

SPLIT = 1024  # spectra of a file beyond which it is read in parts
UNKNOWN = 512  # spectra that are expected in a file of which it is not known whether it has many


class Inputs(NamedTuple):
    """What is read, part by part: files, and pieces of those with very many spectra."""

    paths: Sequence[str]  # of every file
    names: Sequence[str]  # that tell files apart
    velocities: Sequence[float] | None  # km/s, of every file
    files: Sequence[int]  # of every part, the number of its file
    rows: Mapping[int, tuple[int, int]]  # part -> the piece of `remap.io.split`; other parts are whole files
    sizes: np.ndarray  # int64[P], spectra of every part, as far as it is known
    many: bool = False  # files hold many spectra each

    def item(self, part: int) -> Item:
        """A part for the workers."""
        i = self.files[part]
        velocity = None if self.velocities is None else self.velocities[i]
        if velocity is not None and part in self.rows:
            velocity = (
                math.nan
            )  # one for a file with several stars says nothing of them, also of the last piece
        return Item(self.paths[i], self.names[i], self.rows.get(part), velocity, self.many)


class Plan(NamedTuple):
    """Shards of chunks of parts. What lies in one chunk is read and observed together."""

    shards: Sequence[Sequence[Sequence[int]]]

    def spectra(self, shard: int, sizes: np.ndarray) -> int:
        """How many a shard has, before exposures are joined."""
        return int(sum(sizes[np.asarray(chunk)].sum() for chunk in self.shards[shard]))


def make_inputs(
    files: Sequence[str | Path],
    source: Mapping[str, Any],
    velocities: Sequence[float] | None,
    root: str | None = None,
    *,
    join: bool = True,
) -> Inputs:
    """The parts of some files, in their order. Files of many spectra are asked how many; others are read whole.

    Args:
      source: how they are read.
      velocities: km/s, of every file; None = as the settings say.
      root: folder of the data, None = $REMAP_DATA.
      join: rows of one star become one, so that those of one file belong into one part.

    Raises:
      ConfigError: a declaration that cannot be right, or a package is missing that reads the files.
    """
    paths = [os.fspath(file) for file in files]
    names = io.distinct_names([Path(path) for path in paths])
    if not formats_of(source) & set(io.MANY):
        return Inputs(paths, names, velocities, range(len(paths)), {}, np.ones(len(paths), np.int64))
    owners: list[int] = []
    sizes: list[int] = []
    rows: dict[int, tuple[int, int]] = {}
    for i, path in enumerate(paths):
        pieces = _pieces(path, source, root, join=join)
        if len(pieces) < 2:
            owners.append(i)
            sizes.append(sum(piece.spectra for piece in pieces) if pieces else 1)
            continue
        for piece in pieces:
            rows[len(owners)] = piece.first, piece.last
            owners.append(i)
            sizes.append(piece.spectra)
    many = source["format"] in io.MANY
    return Inputs(paths, names, velocities, owners, rows, np.array(sizes, np.int64), many)


def _pieces(path: str, source: Mapping[str, Any], root: str | None, *, join: bool) -> tuple[io.Piece, ...]:
    """A file in pieces; () where it cannot be read, which is told when it is."""
    if source["format"] == "any":
        return (io.Piece(0, UNKNOWN, UNKNOWN),)
    try:
        return io.split(path, source=source, data_root=root, most=SPLIT, together=join)
    except SpectrumError:
        return ()


def formats_of(source: Mapping[str, Any]) -> set[str]:
    """The formats that a source may mean."""
    return {one["format"] for one in source["options"]} if source["format"] == "any" else {source["format"]}


def says_stars(source: Any) -> bool:
    """Whether a source declares, anywhere, whose the spectra are, or its files may say so themselves."""
    if isinstance(source, Mapping) and source.get("format") == "arrays":
        return True
    if isinstance(source, Mapping) or hasattr(source, "keys"):
        return any(
            (key == "star_id" and bool(source[key])) or says_stars(source[key])
            for key in source.keys()  # noqa: SIM118
        )
    return isinstance(source, list | tuple) and any(says_stars(one) for one in source)


def make_plan(sizes: np.ndarray, *, shard: int, groups: Sequence[Sequence[int]] = ()) -> Plan:
    """Parts in chunks of up to 256 spectra (or one part), chunks in shards of at least `shard` spectra.

    Args:
      sizes: int64[P], spectra of every part.
      shard: spectra.
      groups: parts that must not be separated, since they have spectra of one star; disjoint.
    """
    chunks = list(_filled(_units(sizes, groups), min(FILES_AT_A_TIME, shard), exceed=False))
    return Plan(
        [
            [_ordered(parts) for parts, _ in several]
            for several, _ in _filled(
                ((([chunk, size],), size) for chunk, size in chunks), shard, exceed=True
            )
        ]
    )


def _units(sizes: np.ndarray, groups: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int]]:
    """What is never separated, in the order of its first part, and its spectra."""
    of_first = {min(group): sorted(group) for group in groups}
    later = {part for group in of_first.values() for part in group[1:]}
    for part, size in enumerate(sizes.tolist()):
        if part in later:
            continue
        members = of_first.get(part, (part,))
        yield members, size if len(members) == 1 else int(sizes[members].sum())


def _filled(units: Any, limit: int, *, exceed: bool) -> Iterator[tuple[list[Any], int]]:
    """Units in their order, as many together as reach a limit, or with `exceed=False` as stay within it."""
    some: list[Any] = []
    total = 0
    for members, size in units:
        if some and (total >= limit or (not exceed and total + size > limit)):
            yield some, total
            some, total = [], 0
        some += members
        total += size
    if some:
        yield some, total


def _ordered(parts: list[int]) -> Sequence[int]:
    """Parts in the order of the inputs, as a range where they are one."""
    parts = sorted(parts)
    whole = range(parts[0], parts[-1] + 1)
    return whole if len(whole) == len(parts) else tuple(parts)


def group_stars(stars: Sequence[Sequence[io.Star]]) -> list[list[int]]:
    """Parts that share stars, directly or by others, each group in order; parts alone are left out.

    What `remap.preprocess.joining.star_groups` may join is in one group, and so is what it looks at to decide.

    Args:
      stars: those in every part.

    Examples:
      >>> group_stars([[io.Star(name) for name in part] for part in ("a", "b", "ac", "c", "")])
      [[0, 2, 3]]
    """
    first: dict[str, int] = {}
    pairs = [
        (first.setdefault(star.name, part), part) for part, several in enumerate(stars) for star in several
    ]
    del first
    if any(star.within > 0 for several in stars for star in several):
        part = np.repeat(np.arange(len(stars)), [len(several) for several in stars])
        ra, dec, within = np.array([star[1:] for several in stars for star in several]).T
        pairs += part[near_pairs(ra, dec, within)].tolist()
    return [members for members in connected(len(stars), pairs) if len(members) > 1]


def input_lines(inputs: Inputs) -> Iterator[str]:
    """A line of JSON for every file: path, bytes, time of its last change [ns]; -1 where it cannot be asked."""
    for path in inputs.paths:
        try:
            found = os.stat(path)
            yield json.dumps([path, found.st_size, found.st_mtime_ns])
        except OSError:
            yield json.dumps([path, -1, -1])


def lines_hash(lines: Sequence[str]) -> str:
    """SHA-256 of lines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
