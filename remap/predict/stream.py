"""Prediction of any number of spectra in flat memory: read ahead by workers, written shard by shard, resumed.

    from remap.predict.stream import StreamSettings, predict_stream
    done = predict_stream(predictor, files, "catalogue.parts", stream=StreamSettings(workers=8))
    merge("catalogue.parts", "catalogue.fits")

`remap.predict.shards` documents the folder. What is predicted does not depend on how it is split: the merged
catalogue is that of `Predictor.predict_files`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import datetime
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from remap import io
from remap._version import __version__
from remap.config import ConfigError
from remap.predict.arms import ArmPrediction
from remap.predict.catalogue import Flag
from remap.predict.feeding import Fed, Feeder, FeedError, FileReader, Item, Reads, StarReader
from remap.predict.parquet_format import check_parquet
from remap.predict.plan import (
    Inputs,
    Plan,
    group_stars,
    input_lines,
    lines_hash,
    make_inputs,
    make_plan,
    says_stars,
)
from remap.predict.predictor import Predictor
from remap.predict.shards import (
    FORMAT,
    SHARD_FORMATS,
    digest,
    done_part,
    open_folder,
    part_path,
    remove_leftovers,
    write_failed,
    write_part,
)
from remap.predict.treatment import Reading
from remap.preprocess.joining import join, star_groups
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed, concatenate
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.preprocess.velocity_choice import warn_of_velocities
from remap.store.atomic import named, read_json, write_json
from remap.store.checkpoint import array_hash
from remap.store.lock import hold
from remap.surveys import Survey
from remap.writing import check_space

logger = logging.getLogger(__name__)

SOFTWARE = {"deep-remap": __version__}
HOPELESS = 10  # shards that fail one after the other, before any has been done, that end a run
LARGE_GROUP = 4  # shards; whose spectra must be in memory together, because stars are in several files


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stream runs; what it gives does not depend on it, but for the number and size of the shards.

    Attributes:
      shard: spectra of a shard, at least (the last one may have fewer).
      workers: processes that read, clean and resample; 0 = the main process does it itself.
      timeout: seconds for one file, after which it becomes a flagged row.
      process_index: of this process among those that share the shards of one folder: it makes those whose number
        leaves this remainder.
      process_count: how many share them.
      shard_format: of the shards, "fits" or "parquet" (pyarrow, the extra `parquet`).

    Raises:
      ConfigError: a value out of its range.
    """

    shard: int = 2048
    workers: int = 1
    timeout: float = 120.0
    process_index: int = 0
    process_count: int = 1
    shard_format: str = "fits"

    def __post_init__(self) -> None:
        if self.shard < 1 or self.workers < 0 or not self.timeout > 0:
            raise ConfigError(
                "a stream needs a shard of 1 spectrum or more, 0 workers or more and a positive timeout, found "
                f"{self.shard}, {self.workers} and {self.timeout}"
            )
        if self.shard_format not in SHARD_FORMATS:
            raise ConfigError(f"shard_format must be one of {SHARD_FORMATS}, found {self.shard_format!r}")
        if self.shard_format == "parquet":
            check_parquet()
        if not 0 <= self.process_index < self.process_count:
            raise ConfigError(
                f"process_index: expected 0 to {self.process_count - 1}, found {self.process_index}"
            )


class Progress(NamedTuple):
    """Where a run stands."""

    spectra: int  # predicted in this run
    total: int  # that this run has to predict
    shards: int  # written in this run
    failed: int  # shards
    read: int  # spectra, read and on the grids


class Streamed(NamedTuple):
    """What a run has done."""

    folder: Path
    made: int  # shards
    kept: int  # shards, of earlier runs
    failed: tuple[str, ...]  # parts that were set aside
    rows: int  # made
    bad: int  # of these, that could not be used
    shards: int  # of all processes together
    seconds: Mapping[str, float]  # reading and observing in the workers; waiting, predicting, writing
    unread: tuple[str, ...] = ()  # files of many spectra that could not be read, or not wholly; of all runs


def predict_stream(
    predictor: Predictor,
    files: Sequence[str | Path],
    output: str | Path,
    *,
    survey: Survey | str | None = None,
    source: Mapping[str, Any] | None = None,
    velocities: Mapping[str, float] | Sequence[float] | np.ndarray | str | None = None,
    settings: ObserveSettings | None = None,
    stationary: StationaryMask | None = None,
    stream: StreamSettings | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Streamed:
    """Stellar parameters of spectra in files as a folder of parts of a catalogue.

    Args:
      files: any number, in any order, which is kept; the same in every process and run.
      output: the folder; shards that it has are not made again.
      survey, source, velocities, settings, stationary: see `Predictor.observe_files`.
      stream: None = `StreamSettings()`.
      progress: hears of every chunk that has been read and every shard.

    Returns:
      What was done. Shards that failed twice are set aside and named there; the rest is complete.

    Raises:
      ConfigError: the folder has parts of other inputs, networks or settings, another run writes them, or the
        declaration of the files cannot be right.
      StorageError: the folder cannot be written to.
    """
    stream, output = stream or StreamSettings(), Path(output)
    if not files:
        raise ValueError("expected at least one file, found none")
    paths = [Path(file) for file in files]
    how = predictor.reading(
        paths, survey=survey, source=source, velocities=velocities, settings=settings, stationary=stationary
    )
    plain_source = json.loads(json.dumps(how.told["source"]))
    read = FileReader(
        predictor.preprocessing,
        how.source if isinstance(how.source, dict) else plain_source,
        predictor.config["data_root"] or None,
        how.settings,
        predictor.templates,
        how.stationary,
    )
    inputs = make_inputs(files, read.source, how.velocities, read.root, join=how.settings.join)
    lines = list(input_lines(inputs))
    with hold(output / f"process-{stream.process_index:05d}"):
        groups: list[list[int]] = []
        if how.settings.join and says_stars(read.source):
            # Another declaration may find other identifiers in the same files.
            declared = json.dumps(how.told["source"], sort_keys=True)
            groups = _groups(output, read, inputs, lines_hash([*lines, declared]), stream)
        plan = make_plan(inputs.sizes, shard=stream.shard, groups=groups)
        manifest = open_folder(output, make_manifest(predictor, how, inputs, plan, lines, stream), lines)
        del lines, paths  # of millions of files they are gigabytes
        return run_stream(
            predictor, read, plan, inputs.item, inputs.sizes, output, manifest, how, stream, progress
        )


def make_manifest(
    predictor: Predictor,
    how: Reading,
    inputs: Inputs,
    plan: Plan,
    lines: Sequence[str],
    stream: StreamSettings,
) -> dict[str, Any]:
    """What the parts of a stream share, JSON values (`remap.predict.shards`)."""
    # Folders of before there was a choice say nothing of it.
    kind = {} if stream.shard_format == "fits" else {"shard_format": stream.shard_format}
    velocities = hashlib.sha256(np.asarray(how.velocities or (), np.float64).tobytes()).hexdigest()
    masked = "none" if how.stationary is None else lines_hash([how.stationary.to_json()])
    return {
        "format": FORMAT,
        "software": SOFTWARE,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": {"files": len(inputs.paths), "parts": len(inputs.sizes), "sha256": lines_hash(lines)},
        "networks": describe_networks(predictor),
        "settings": {
            **how.told,
            "velocities": velocities,
            "stationary": masked,
            "shard": stream.shard,
            **kind,
        },
        "shards": {
            part_path(Path(), k, stream.shard_format).name: _ranges(chunks)
            for k, chunks in enumerate(plan.shards)
        },
    }


def describe_networks(predictor: Predictor) -> dict[str, Any]:
    """By what networks, calibration, expert, references and templates are known, JSON values."""
    config = json.dumps(predictor.config, sort_keys=True, default=str)
    known, templates = predictor.known, predictor.templates
    return {
        "stage": predictor.description.get("stage", ""),
        "weights": predictor.weights,
        "calibration": predictor.calibration_hash or "none",
        "expert": predictor.expert_hash or "none",
        "references": "none" if known is None else known.digest,
        "templates": "none" if templates is None else _templates_hash(templates),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "preprocessing_version": predictor.preprocessing.version,
    }


def _templates_hash(templates: Templates) -> str:
    told = {field.name: getattr(templates, field.name) for field in dataclasses.fields(templates)}
    return array_hash({name: value for name, value in told.items() if not isinstance(value, str | float)})


def _ranges(chunks: Sequence[Sequence[int]]) -> list[list[int]]:
    """The parts of a shard as ranges, first and last."""
    out: list[list[int]] = []
    for part in sorted(part for chunk in chunks for part in chunk):
        if out and out[-1][1] == part - 1:
            out[-1][1] = part
        else:
            out.append([part, part])
    return out


def _groups(
    folder: Path, read: FileReader, inputs: Inputs, sha: str, stream: StreamSettings
) -> list[list[int]]:
    """Parts that share stars, from a first look at all files; kept in the folder, so that it is had once."""
    path = folder / "stars.json"
    if path.exists():
        cure = "delete it, so that it is made again"
        kept = read_json(path, cure)
        with named(path, cure):
            if kept["inputs"] == sha:
                return [[int(part) for part in group] for group in kept["groups"]]
    logger.info(
        "looking for stars that are in several of %d files, since their rows become one", len(inputs.paths)
    )
    size = 64
    tasks = [range(i, min(i + size, len(inputs.sizes))) for i in range(0, len(inputs.sizes), size)]
    stars: list[Sequence[io.Star]] = []
    with Feeder(
        StarReader(read),
        len(tasks),
        lambda k: [inputs.item(part) for part in tasks[k]],
        workers=stream.workers,
        ahead=4 * max(1, stream.workers),
        timeout=stream.timeout,
    ) as feeder:
        for fed in feeder:
            if isinstance(fed, FeedError):
                raise fed
            stars += fed.found
    groups = group_stars(stars)
    largest = max((int(inputs.sizes[group].sum()) for group in groups), default=0)
    if largest > LARGE_GROUP * stream.shard:
        logger.warning(
            "%d spectra lie in files that share stars, and are in memory together: shards are of %d",
            largest,
            stream.shard,
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"inputs": sha, "groups": groups})
    return groups


def run_stream(
    predictor: Predictor,
    read: Reads,
    plan: Plan,
    item: Callable[[int], Item],
    sizes: np.ndarray,
    folder: Path,
    manifest: Mapping[str, Any],
    how: Reading,
    stream: StreamSettings,
    progress: Callable[[Progress], object] | None = None,
) -> Streamed:
    """The shards of this process that a folder lacks, each tried twice.

    Args:
      read: makes `Observed` of every item; goes to the workers.
      plan: of all processes.
      item: part -> what `read` is given for it.
      sizes: int64[P], spectra of every part.
      manifest: of `open_folder`.
      how: of `Predictor.reading`.

    Raises:
      ConfigError, StorageError: as `predict_stream`.
      RuntimeError: the first shards all fail; the last reason is told.
    """
    run = digest(manifest)
    mine = [k for k in range(len(plan.shards)) if k % stream.process_count == stream.process_index]
    remove_leftovers(folder, set(mine))
    there = {k: done_part(folder, k, run, stream.shard_format) for k in mine}
    todo = [k for k in mine if there[k] is None]
    unread = [path for part in there.values() if part for path in part.stream.get("unread", ())]
    if todo and (before := manifest.get("software", SOFTWARE)) != SOFTWARE:
        raise ConfigError(
            f"{folder}: expected shards of this version, {SOFTWARE}, found those of {before}: make the {len(todo)} "
            "that are missing with that version, or give another --output"
        )
    limits = predictor.config["predict"]
    few = int(sizes.sum()) <= limits["small_batch_size"]
    if predictor.batch_size is None:  # one shape for all shards, that of a prediction at once
        size = limits["small_batch_size"] if few else limits["batch_size"]
        predictor = dataclasses.replace(predictor, batch_size=size)
    counts = {k: plan.spectra(k, sizes) for k in todo}
    shrunk = 1.0 if stream.shard_format == "fits" else 0.5
    check_space(folder, int(shrunk * predictor.row_bytes * sum(counts.values())))
    work = _Run(predictor, folder, run, manifest["created"], how, counts, progress, stream.shard_format)
    if len(todo) < len(mine):
        logger.info("%s: %d of %d shards are there already", folder, len(mine) - len(todo), len(mine))
    for attempt in (1, 2):
        failed = work.make(todo, plan, read, item, stream)
        for k, reason in failed.items():
            again = "once more" if attempt == 1 else "set aside"
            logger.warning("%s failed, %s: %s", work.path(k).name, again, reason.strip().rpartition("\n")[2])
        todo = list(failed)
    for k, reason in failed.items():
        write_failed(folder, k, reason)
    return Streamed(
        folder,
        work.made,
        len(mine) - len(counts),
        tuple(work.path(k).name for k in failed),
        work.rows,
        work.bad,
        len(plan.shards),
        dict(work.seconds),
        tuple(dict.fromkeys(unread + work.unread)),
    )


class _Run:
    """One run over some shards: networks in this thread, catalogues and files in another."""

    def __init__(
        self,
        predictor: Predictor,
        folder: Path,
        run: str,
        date: str,
        how: Reading,
        counts: Mapping[int, int],
        progress: Callable[[Progress], object] | None,
        kind: str,
    ) -> None:
        self._kind = kind
        self._predictor, self._folder, self._run, self._date = predictor, folder, run, date
        self._how, self._counts, self._progress = how, counts, progress
        self.made = self.rows = self.bad = self._done = self._read = 0
        self._failed: dict[int, str] = {}
        self.unread: list[str] = []
        self.seconds: collections.Counter[str] = collections.Counter()

    def path(self, k: int) -> Path:
        """Where a shard belongs."""
        return part_path(self._folder, k, self._kind)

    def make(
        self,
        shards: Sequence[int],
        plan: Plan,
        read: Reads,
        item: Callable[[int], Item],
        stream: StreamSettings,
    ) -> dict[int, str]:
        """Makes shards; gives those that failed, and why."""
        self._failed = {}
        tasks = [chunk for k in shards for chunk in plan.shards[k]]
        # While the networks have one shard, the next one is read.
        ahead = max((len(plan.shards[k]) for k in shards), default=0) + 2 * stream.workers
        self._read = self._done
        with (
            Feeder(
                read,
                len(tasks),
                lambda i: [item(part) for part in tasks[i]],
                workers=stream.workers,
                ahead=ahead,
                timeout=stream.timeout,
            ) as feeder,
            concurrent.futures.ThreadPoolExecutor(1, "writer") as writer,
        ):
            pending: tuple[int, concurrent.futures.Future[None]] | None = None
            fed = iter(feeder)
            for k in shards:
                chunks = self._collect(fed, len(plan.shards[k]))
                future = None
                try:
                    observed, order = self._observed(chunks, plan.shards[k])
                    unread = _unread(chunks, plan.shards[k], item)
                    del chunks
                    begin = time.perf_counter()
                    arms = self._predictor.predict_arms(observed)
                    self.seconds["predicting"] += time.perf_counter() - begin
                    future = writer.submit(self._write, k, arms, observed, order, unread)
                except (ConfigError, MemoryError):
                    raise
                except Exception as error:
                    self._fail(k, error)
                if pending is not None:
                    self._finish(*pending)
                pending = None if future is None else (k, future)
            if pending is not None:
                self._finish(*pending)
        return self._failed

    def _collect(self, fed: Iterator[Fed | FeedError], count: int) -> list[Fed | FeedError]:
        """What the workers made of the chunks of a shard."""
        out = []
        for _ in range(count):
            begin = time.perf_counter()
            one = next(fed)
            self.seconds["waiting"] += time.perf_counter() - begin
            if isinstance(one, Fed):
                self.seconds["reading"] += one.reading
                self.seconds["observing"] += one.observing
                self._read += sum(len(part) for part in one.found)
                self._tell()
            out.append(one)
        return out

    def _observed(
        self, chunks: Sequence[Fed | FeedError], parts: Sequence[Sequence[int]]
    ) -> tuple[Observed, list[tuple[int, int]] | None]:
        """The spectra of a shard, joined where that is wanted, and then the place of every row."""
        for one in chunks:
            if isinstance(one, FeedError):
                raise one
        found = [part for one in chunks for part in one.found]
        observed = concatenate(found)
        warn_of_velocities(observed, self._how.settings)
        order = None
        if self._how.settings.join:
            numbers = [number for chunk in parts for number in chunk]
            keys = [(n, row) for n, one in zip(numbers, found, strict=True) for row in range(len(one))]
            order = [keys[group[0]] for group in star_groups(observed, settings=self._how.settings)]
            observed = join(observed, self._predictor.preprocessing, settings=self._how.settings)
        return dataclasses.replace(observed, told=self._how.told), order

    def _write(
        self,
        k: int,
        arms: Mapping[str, ArmPrediction],
        observed: Observed,
        order: list[tuple[int, int]] | None,
        unread: list[str],
    ) -> None:
        begin = time.perf_counter()
        found = self._predictor.combine_observed(arms, observed, date=self._date)
        write_part(self._folder, k, found, self._run, order, unread, self._kind)
        self.unread += unread
        self.seconds["writing"] += time.perf_counter() - begin
        self.rows += len(found.table)
        self.bad += int(np.count_nonzero(found.table["flags"] & Flag.UNREADABLE))

    def _finish(self, k: int, future: concurrent.futures.Future[None]) -> None:
        try:
            future.result()
        except (ConfigError, MemoryError):  # StorageError, too: the others would meet it as well
            raise
        except Exception as error:
            self._fail(k, error)
            return
        self.made += 1
        self._done += self._counts[k]
        logger.debug("%s", self.path(k))
        self._tell()

    def _fail(self, k: int, error: Exception) -> None:
        self._failed[k] = "".join(traceback.format_exception(error))
        if not self.made and len(self._failed) >= HOPELESS:
            raise RuntimeError(f"none of {len(self._failed)} shards could be made: {error}") from error

    def _tell(self) -> None:
        if self._progress is not None:
            total = sum(self._counts.values())
            self._progress(Progress(self._done, total, self.made, len(self._failed), self._read))


def _unread(
    chunks: Sequence[Fed | FeedError], parts: Sequence[Sequence[int]], item: Callable[[int], Item]
) -> list[str]:
    """The files of many spectra in a shard of which a row says that they could not be read."""
    out = []
    for one, numbers in zip(chunks, parts, strict=True):
        for found, number in zip(one.found, numbers, strict=True):
            its = item(number)
            if its.many and tuple(found.names) == (its.name,) and found.messages[0]:
                out.append(its.path)
    return list(dict.fromkeys(out))


def default_process() -> tuple[int, int]:
    """Number of this process and of all, where `jax.distributed` knows them; else 0 and 1."""
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)
