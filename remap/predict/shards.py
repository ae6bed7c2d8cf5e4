"""A catalogue in parts: a folder with a manifest, a file per shard, and what became of those that failed.

    manifest.json      what the parts are made of: inputs (number, hash of inputs.jsonl), networks, settings, and the
                       inputs of every shard: ranges of files, or of pieces of them where files have very many rows
    inputs.jsonl       path, bytes and time of change of every file, a line each
    part-00000.fits    a catalogue (`remap.predict.catalogue`) of the shard's inputs; in its provenance, `stream`
                       says to which manifest it belongs. Or part-00000.parquet and part-00000_pmf.parquet
    part-00000.failed  why there is no such part; gone once there is one

    process-00000/     whose run.lock says that the process of this number writes its parts; and so merge/

Every file is written whole or not at all, so that a part that exists is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Column, MaskedColumn, Table, vstack

from remap.config import ConfigError
from remap.predict.catalogue import Catalogue, check_output, read_catalogue, write_catalogue
from remap.predict.merging import STREAM, Part, merged_names, missing, open_part, write_merged
from remap.store.atomic import named, read_json, write_files, write_text
from remap.store.checkpoint import check_equal, plain
from remap.store.lock import hold
from remap.writing import check_writable, remove_leftovers_of, sync

logger = logging.getLogger(__name__)

MANIFEST, INPUTS = "manifest.json", "inputs.jsonl"
COMPARED = ("format", "inputs", "networks", "settings", "shards")
FORMAT = 1
_CURE = "give another --output, or delete the folder to start afresh"
_LEFTOVER = re.compile(r"\.part-(\d{5,})(?:_pmf)?\..*\.tmp")
SHARD_FORMATS = ("fits", "parquet")


def part_path(folder: Path, shard: int, kind: str = "fits") -> Path:
    """Where the part of a shard belongs; of Parquet the first of its two files.

    Args:
      kind: one of `SHARD_FORMATS`.
    """
    return folder / f"part-{shard:05d}.{kind}"


def part_kind(manifest: Mapping[str, Any]) -> str:
    """The format of the parts of a folder."""
    return Path(next(iter(manifest["shards"]), "part.fits")).suffix[1:]


def failed_path(folder: Path, shard: int) -> Path:
    """Where the reason belongs for which a shard has no part."""
    return folder / f"part-{shard:05d}.failed"


def open_folder(folder: Path, manifest: Mapping[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Makes the folder of a stream, or finds that it is one of the same inputs, networks and settings.

    Args:
      manifest: JSON values, with the keys `COMPARED` and `created`.
      lines: of `inputs.jsonl`.

    Returns:
      The manifest of the folder: `created` is that of its first run, whoever's that was.

    Raises:
      ConfigError: the folder has other inputs (the first that differs is named), networks or settings (both values
        are), or is none of a stream.
    """
    path, manifest = folder / MANIFEST, plain(manifest)
    if not path.exists():
        if folder.is_dir() and any(folder.glob("part-*")):
            raise ConfigError(f"{folder}: has parts of a catalogue but no {MANIFEST}; {_CURE}")
        # The inputs first: a folder with a manifest has them.
        write_text(folder / INPUTS, "".join(f"{line}\n" for line in lines))
        _create(path, json.dumps(manifest, indent=1) + "\n")
    found = read_manifest(folder)
    if found.get("inputs") != manifest["inputs"]:
        _refuse_inputs(folder, lines)
    for key in COMPARED:
        check_equal(
            found.get(key, "nothing"),
            manifest[key],
            f"{folder}: shards of other {key} than this run's; {_CURE}",
        )
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `open_folder` wrote.

    Raises:
      FileNotFoundError: there is none.
      DamagedError: it is none.
    """
    path = folder / MANIFEST
    found = read_json(path, _CURE)
    with named(path, _CURE):
        if not isinstance(found, dict) or not {*COMPARED, "created"} <= set(found):
            raise ValueError("expected a manifest, found other JSON")
    return found


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what parts of one manifest share."""
    told = json.dumps({key: manifest[key] for key in COMPARED}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _create(path: Path, text: str) -> None:
    """Writes a file, whole, unless another process has done so first."""
    own = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    write_text(own, text)
    try:
        os.link(own, path)
        sync(path.parent)
    except FileExistsError:
        pass
    except (
        OSError
    ):  # no links on this file system: the last one counts, and all say the same but for the time
        os.replace(own, path)
    finally:
        own.unlink(missing_ok=True)


def _refuse_inputs(folder: Path, lines: Sequence[str]) -> None:
    where = f"{folder}: made of other inputs"
    if not (folder / INPUTS).is_file():
        raise ConfigError(f"{where}, of which {INPUTS} is gone; {_CURE}")
    before = (folder / INPUTS).read_text().splitlines()
    for old, new in zip(before, lines, strict=False):
        if old != new:
            old_path, new_path = json.loads(old)[0], json.loads(new)[0]
            if old_path == new_path:
                raise ConfigError(f"{where}: {new_path} has changed since; {_CURE}")
            raise ConfigError(f"{where}: expected {old_path}, found {new_path}; {_CURE}")
    raise ConfigError(f"{where}: expected {len(before)} files, found {len(lines)}; {_CURE}")


def remove_leftovers(folder: Path, mine: Mapping[int, Any] | set[int]) -> None:
    """Deletes what a kill has left of parts that are this process's to write."""
    for path in folder.iterdir():
        found = _LEFTOVER.fullmatch(path.name)
        if found and int(found[1]) in mine:
            path.unlink(missing_ok=True)


def done_part(folder: Path, shard: int, run: str, kind: str = "fits") -> Part | None:
    """The part of a shard, of this run, without its rows; None = there is none yet, a damaged one, or another's.

    Args:
      run: the manifest's `digest`.
      kind: of the parts.

    Raises:
      ConfigError: the part belongs to another run.
    """
    path = part_path(folder, shard, kind)
    if not path.exists():
        return None
    try:
        part = open_part(path)
    except ConfigError as error:
        logger.warning("%s: made again: %s", path, error)
        return None
    if part.stream.get("run") != run:
        raise ConfigError(f"{path}: is a part of another run than {folder / MANIFEST} tells of; {_CURE}")
    if part.stream.get("shard") != shard:
        logger.warning("%s: made again: it is a copy of part %s", path, part.stream.get("shard"))
        return None
    return part


def write_part(
    folder: Path,
    shard: int,
    catalogue: Catalogue,
    run: str,
    order: Sequence[tuple[int, int]] | None,
    unread: Sequence[str] = (),
    kind: str = "fits",
) -> None:
    """Writes the part of a shard.

    Args:
      catalogue: of its inputs.
      run: the manifest's `digest`.
      order: of every row, the number of its first input and which of that one's rows it is; None = rows are in the
        order of the inputs, and so are shards.
      unread: files of many spectra among its inputs that could not be read, or not wholly.
      kind: of the parts.
    """
    stream: dict[str, Any] = {"run": run, "shard": shard}
    if unread:
        stream["unread"] = list(unread)
    if order is not None:
        stream["order"] = [[int(a), int(b)] for a, b in order]
    meta = {**catalogue.meta, STREAM: stream}
    path = part_path(folder, shard, kind)
    write_catalogue(path, catalogue.table, catalogue.pmfs, catalogue.edges, meta, overwrite=True)
    failed_path(folder, shard).unlink(missing_ok=True)


def write_failed(folder: Path, shard: int, reason: str) -> None:
    """Sets a shard aside."""
    write_text(failed_path(folder, shard), reason.rstrip() + "\n")


def merge(folder: str | Path, path: str | Path, *, overwrite: bool = False) -> int:
    """The parts of a stream as one catalogue: what `Predictor.predict_files` would have written.

    As FITS the parts are copied one by one, so that memory does not grow with their number (parts in Parquet become
    FITS files beside the catalogue for that while); other formats are made in memory.

    Returns:
      The number of rows.

    Raises:
      FileNotFoundError: the folder has no manifest.
      ConfigError: a part is missing (and why, if it failed), or belongs to another run; or another process merges.
      FileExistsError: the catalogue exists, and overwrite is False.
    """
    folder, path = Path(folder), Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder}: expected a catalogue in parts, found no {MANIFEST}")
    # One at a time, where something can be written there at all.
    with hold(folder / "merge") if os.access(folder, os.W_OK) else contextlib.nullcontext():
        return _merge(folder, path, overwrite=overwrite)


def _merge(folder: Path, path: Path, *, overwrite: bool) -> int:
    manifest = read_manifest(folder)
    for file in check_output(path, overwrite=overwrite):
        remove_leftovers_of(file)
    run, shards, kind = digest(manifest), range(len(manifest["shards"])), part_kind(manifest)
    parts = [done_part(folder, k, run, kind) for k in shards]
    missing = [k for k in shards if parts[k] is None]
    if missing:
        raise ConfigError(
            f"{folder}: {_missing(folder, missing, kind)}; the command that made the others makes them"
        )
    places = _places(parts)
    check_writable(path, size=sum(part.path.stat().st_size for part in parts))
    if path.suffix == ".fits":
        with _in_fits(parts, path.parent) as written:
            write_files({path: lambda file: write_merged(file, written, places, manifest["created"])})
    else:
        whole = _in_memory(parts, places, manifest["created"])
        write_catalogue(path, whole.table, whole.pmfs, whole.edges, whole.meta, overwrite=overwrite)
    return sum(part.rows for part in parts)


@contextlib.contextmanager
def _in_fits(parts: Sequence[Part], folder: Path) -> Iterator[Sequence[Part]]:
    """Parts as FITS files, those of another format rewritten into a folder that is gone afterwards."""
    if all(part.path.suffix == ".fits" for part in parts):
        yield parts
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merging-") as name:
        out = []
        for part in parts:
            path = Path(name) / f"{part.path.stem}.fits"
            write_catalogue(path, *read_catalogue(part.path))
            out.append(part._replace(path=path))
        yield out


def _missing(folder: Path, shards: Sequence[int], kind: str) -> str:
    names = ", ".join(part_path(folder, k, kind).name for k in shards[:5]) + (
        ", …" if len(shards) > 5 else ""
    )
    reasons = []
    for k in shards:
        with contextlib.suppress(FileNotFoundError):
            reasons.append(failed_path(folder, k).read_text().strip().rpartition("\n")[2])
    told = f" ({reasons[0][:200]})" if reasons else ""
    return f"{len(shards)} parts are missing: {names}{told}"


def _places(parts: Sequence[Part]) -> list[np.ndarray]:
    """int64[S] of every part: in which rows of the whole its rows belong."""
    if all(part.stream.get("order") is None for part in parts):
        ends = np.cumsum([part.rows for part in parts])
        return [np.arange(end - part.rows, end) for part, end in zip(parts, ends, strict=True)]
    keys = np.concatenate([np.reshape(part.stream["order"], (-1, 2)) for part in parts])
    place = np.empty(len(keys), np.int64)
    place[np.lexsort((keys[:, 1], keys[:, 0]))] = np.arange(len(keys))
    return np.split(place, np.cumsum([part.rows for part in parts])[:-1])


def _in_memory(parts: Sequence[Part], places: Sequence[np.ndarray], created: str) -> Catalogue:
    """All parts as one, rows in their places."""
    found = [read_catalogue(part.path) for part in parts]
    order = np.argsort(np.concatenate(places))
    names = merged_names([one.table.colnames for one in found])
    table = vstack([one.table for one in found], metadata_conflicts="silent")[names][order]
    for name in names:
        column = table[name]
        if isinstance(column, MaskedColumn):
            column = column.filled(missing(column.dtype, name))
        table.replace_column(name, Column(column))
        own = next(one.table[name] for one in found if name in one.table.colnames)
        table[name].unit, table[name].description = own.unit, own.description
    pmfs = {key: np.concatenate([one.pmfs[key] for one in found])[order] for key in found[0].pmfs}
    meta = {key: value for key, value in found[0].meta.items() if key != STREAM}
    return Catalogue(
        Table(table, meta={}), pmfs, found[0].edges, {**meta, "date": created, "inputs": len(table)}
    )
