"""Which inputs of a stream are read together, and which make a shard: the same in every process and every run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap import io
from remap.predict.feeding import Item
from remap.predict.observing import FILES_AT_A_TIME

SPLIT = 1024  # spectra of a file beyond which it is read in parts
UNKNOWN = 512  # spectra that are expected in a file with many, which does not say how many


class Inputs(NamedTuple):
    """What is read, part by part: files, and ranges of rows of those with very many."""

    paths: Sequence[str]  # of every file
    names: Sequence[str]  # that tell files apart
    velocities: Sequence[float] | None  # km/s, of every file
    files: Sequence[int]  # of every part, the number of its file
    rows: Mapping[int, tuple[int, int]]  # part -> the rows that it is; other parts are whole files
    sizes: np.ndarray  # int64[P], spectra of every part, as far as it is known

    def item(self, part: int) -> Item:
        """A part for the workers."""
        i = self.files[part]
        velocity = None if self.velocities is None else self.velocities[i]
        return Item(self.paths[i], self.names[i], self.rows.get(part), velocity)


class Plan(NamedTuple):
    """Shards of chunks of parts. What lies in one chunk is read and observed together."""

    shards: Sequence[Sequence[Sequence[int]]]

    def spectra(self, shard: int, sizes: np.ndarray) -> int:
        """How many a shard has, before exposures are joined."""
        return int(sum(sizes[np.asarray(chunk)].sum() for chunk in self.shards[shard]))


def make_inputs(
    files: Sequence[str | Path], source: Mapping[str, Any], velocities: Sequence[float] | None
) -> Inputs:
    """The parts of some files, in their order. Bundles are asked how many spectra they have; others are read whole.

    Args:
      source: how they are read.
      velocities: km/s, of every file; None = as the settings say.
    """
    paths = [os.fspath(file) for file in files]
    names = io.distinct_names([Path(path) for path in paths])
    many = formats_of(source) & {"targets", "bundle"}
    if not many:
        return Inputs(paths, names, velocities, range(len(paths)), {}, np.ones(len(paths), np.int64))
    owners: list[int] = []
    sizes: list[int] = []
    rows: dict[int, tuple[int, int]] = {}
    for i, path in enumerate(paths):
        count = io.count_bundle(path) if many == {"bundle"} else None
        ranges = [(k, min(k + SPLIT, count)) for k in range(0, count, SPLIT)] if count else []
        if len(ranges) < 2:
            owners.append(i)
            sizes.append(count or (1 if many == {"bundle"} else UNKNOWN))
            continue
        for first, last in ranges:
            rows[len(owners)] = first, last
            owners.append(i)
            sizes.append(last - first)
    return Inputs(paths, names, velocities, owners, rows, np.array(sizes, np.int64))


def formats_of(source: Mapping[str, Any]) -> set[str]:
    """The formats that a source may mean."""
    return {one["format"] for one in source["options"]} if source["format"] == "any" else {source["format"]}


def says_stars(source: Any) -> bool:
    """Whether a source declares, anywhere, whose the spectra are."""
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


def group_stars(stars: Sequence[Sequence[str]]) -> list[list[int]]:
    """Parts that share stars, directly or by others, each group in order; parts alone are left out.

    Args:
      stars: identifiers in every part.

    Examples:
      >>> group_stars([("a",), ("b",), ("a", "c"), ("c",), ()])
      [[0, 2, 3]]
    """
    parent = list(range(len(stars)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for part, several in enumerate(stars):
        for star in several:
            a, b = root(first.setdefault(star, part)), root(part)
            parent[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for part in range(len(stars)):
        found.setdefault(root(part), []).append(part)
    return [members for members in found.values() if len(members) > 1]


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
