"""The stage `fetch_library`: the part of PHOENIX-ACES HiRes that a config selects, from its server into a folder.

What is there, what the server lacks and what went wrong is in `manifest.json` of that folder:

    url, pixels     where from; number of wavelengths
    files           NAME -> status, and with it:
      there         bytes, sha256, mtime_ns of the file, url, etag, modified; odd_pixels (negative or not finite)
      hole          the server has no such file; url
      wrong         it has another file under that name, or a damaged one, which was deleted; url, message
      failed        it could not be had; url, message
      missing       not asked for yet; url

A second run asks for what is failed, wrong or missing; for holes where `ask_again` is set or the URL is another.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_collections

from remap.config import ConfigError, record
from remap.io.declarations import check_source
from remap.io.download import (
    NotThereError,
    StoppedError,
    TransferError,
    TransferSettings,
    WrongFileError,
    check_url,
    download,
    part_path,
    sha256,
)
from remap.io.files import data_path
from remap.io.phoenix import OPTIONAL, REQUIRED
from remap.io.phoenix_server import (
    FLUX_BYTES,
    GRID,
    WAVE_BYTES,
    WAVE_NAME,
    Node,
    check_flux,
    check_wave,
    file_name,
    grid_nodes,
    remote_path,
)
from remap.labels import label_bins
from remap.spectra import SpectrumError
from remap.stages.library import LibraryFiles
from remap.store.atomic import write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATUSES = ("there", "hole", "wrong", "failed", "missing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchSettings(TransferSettings):
    """Which models, from where, and how (config section `fetch`), besides what a download has.

    Attributes:
      url: folder with the WAVE file and `PHOENIX-ACES-AGSS-COND-2011/`: the server's or a mirror's.
      folder: where the files go, absolute or under the data root; "" = `library.path`.
      teff: (low, high) [K], both included; () = what `launch.preprocess` uses: within the bins and `library.select`.
      logg: the same [dex].
      feh: the same, [M/H].
      alpha: the same, [α/M].
      connections: files at a time.
      give_up: files in a row that fail or are wrong after which no more are asked for; the server is down, or
        the URL is not of this library.
      progress: seconds between two messages and two saves of the manifest.
      ask_again: True asks for the files that the server lacked, too.
      verify: True reads every file that is there again.
    """

    url: str = "https://phoenix.astro.physik.uni-goettingen.de/data/HiResFITS/"
    folder: str = ""
    teff: Sequence[float] = ()
    logg: Sequence[float] = ()
    feh: Sequence[float] = ()
    alpha: Sequence[float] = ()
    connections: int = 4
    give_up: int = 20
    progress: float = 10.0
    ask_again: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url(self.url)
        for name in Node._fields:
            limits = getattr(self, name)
            if len(limits) and not (len(limits) == 2 and limits[0] <= limits[1]):
                raise ConfigError(f"{name}: expected (low, high) or (), found {tuple(limits)}")
        for name in ("connections", "give_up"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        if not self.progress > 0:
            raise ConfigError(f"progress: expected more than 0 seconds, found {self.progress}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetching:
    """What a run has to do, or has done.

    Attributes:
      folder: where the files are.
      selected: models that the config selects, by the names of their files.
      counts: of these, by status (see the module); in a plan "missing" are those that would be asked for.
      size: bytes that are still to come, as far as that is known before they are asked for.
      free: bytes that the disk has.
    """

    folder: Path
    selected: tuple[str, ...]
    counts: Mapping[str, int]
    size: int
    free: int


def fetch_library(config: ml_collections.ConfigDict, *, dry_run: bool = False) -> Fetching:
    """Fetches the WAVE file and the models that a config selects, as far as they are not there.

    Args:
      config: its `library` must be PHOENIX HiRes; see `FetchSettings` for its section `fetch`.
      dry_run: only says what would be fetched; asks the server for nothing and writes nothing.

    Raises:
      ConfigError: the config selects nothing, no PHOENIX library, more than the disk holds, or a folder that another
        run is fetching into.
      SpectrumError: the WAVE file could not be had, or some models; the rest is there and in the manifest, and
        the same command goes on. Or the server has none of them.
    """
    settings = record(FetchSettings, config.fetch, "fetch")
    library = record(LibraryFiles, config.library, "library")
    source = dict(library.source)
    if source.get("format") != "phoenix_hires":
        raise ConfigError(
            "fetch: expected a config whose library.source.format is 'phoenix_hires', found "
            f"{source.get('format')!r}"
        )
    check_source(source, kind="phoenix_hires", required=REQUIRED, optional=OPTIONAL)
    folder = _folder(settings, library, config.data_root or None)
    nodes = {file_name(node): node for node in grid_nodes(selected_limits(config))}
    if not nodes:
        told = ", ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in selected_limits(config).items())
        raise ConfigError(f"fetch: PHOENIX has no model within {told}; see fetch, library.select and labels")
    run = _Run(settings, folder, nodes, str(source["wave_unit"]))
    plan = run.plan()
    logger.info(
        "fetch_library: %d models selected, %d there, %d holes, %d to fetch: about %s into %s (%s free)",
        len(nodes),
        plan.counts["there"],
        plan.counts["hole"],
        plan.counts["missing"],
        _bytes(plan.size),
        folder,
        _bytes(plan.free),
    )
    if plan.size > plan.free:
        raise ConfigError(
            f"fetch: about {_bytes(plan.size)} are to come and {folder} has {_bytes(plan.free)} free; narrow "
            "library.select or the ranges of fetch, or name another folder (fetch.folder)"
        )
    if dry_run:
        return plan
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return run.fetch()
    except OSError as error:
        raise SpectrumError(f"{folder}: cannot be written to: {error}") from error


def selected_limits(config: ml_collections.ConfigDict) -> dict[str, tuple[float, float]]:
    """(low, high) of the labels of PHOENIX: those of `fetch`, or what bins and `library.select` have in common."""
    bins = {b.name: (b.low, b.high) for b in label_bins(config.label_names, config.labels.to_dict())}
    limits = {}
    for name in Node._fields:
        given = config.fetch[name]
        both = [tuple(x[name]) for x in (bins, config.library.select) if name in x]
        if len(given):
            limits[name] = (float(given[0]), float(given[1]))
        elif both:
            limits[name] = (float(max(low for low, _ in both)), float(min(high for _, high in both)))
    return limits


def _folder(settings: FetchSettings, library: LibraryFiles, root: str | None) -> Path:
    """Where the files go; in the library's own folder under names that `launch.preprocess` finds there."""
    if settings.folder:
        return data_path(settings.folder, root=root)
    example = Path(file_name(Node(5800, 4.5, 0.0)))
    if not any(example.match(pattern) for pattern in library.patterns):
        raise ConfigError(
            f"fetch: files have names like {example}, but library.patterns are {library.patterns}"
        )
    if Path(library.source["wave_path"]).name != WAVE_NAME:
        raise ConfigError(
            f"fetch: the wavelengths will be in {WAVE_NAME}, but library.source.wave_path is "
            f"{library.source['wave_path']!r}"
        )
    return data_path(library.path, root=root)


class _Run:
    """One run: the manifest, and the work of the threads and of the one that waits for them."""

    def __init__(
        self, settings: FetchSettings, folder: Path, nodes: Mapping[str, Node], wave_unit: str
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.nodes = nodes
        self.wave_unit = wave_unit
        self.url = check_url(settings.url)
        self.stop = threading.Event()
        self.pixels = 0
        self.come = 0
        self._counting = threading.Lock()
        # What reads a file watches the warnings, which are those of the whole process.
        self._checking = threading.Lock()
        self.known = _read_manifest(folder)
        self.files: dict[str, dict[str, Any]] = dict(self.known["files"])

    def plan(self) -> Fetching:
        """What there is to do, by the manifest and the files in the folder, which are not read."""
        counts = dict.fromkeys(STATUSES, 0)
        size = 0 if (self.folder / WAVE_NAME).exists() else WAVE_BYTES
        for name in self.nodes:
            if (self.folder / name).exists():
                counts["there"] += 1
            elif self._is_hole(name):
                counts["hole"] += 1
            else:
                counts["missing"] += 1
                part = part_path(self.folder / name)
                size += max(FLUX_BYTES - (part.stat().st_size if part.is_file() else 0), 0)
        return self._told(counts, size)

    def fetch(self) -> Fetching:
        """Fetches, and leaves a manifest, however it ends."""
        todo = [name for name in self.nodes if not (self._is_trusted(name) or self._is_hole(name))]
        self._expect(todo)
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.connections, "fetch")
        try:
            self._fetch_wave(pool)
            if self.pixels != self.known["pixels"]:  # what was right for other wavelengths may not be now
                todo = [name for name in self.nodes if not self._is_hole(name)]
                self._expect(todo)
            stopped = self._fetch_models(pool, todo)
        finally:
            self.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._save()
        counts = {s: 0 for s in STATUSES}
        for name in self.nodes:
            counts[self.files[name]["status"]] += 1
        self._tell_empty_folders()
        logger.info("fetch_library: %s of %d models", _counted(counts), len(self.nodes))
        bad = [n for n in self.nodes if self.files[n]["status"] in ("wrong", "failed")]
        if bad:
            end = (
                f"stopped after {self.settings.give_up} failures in a row"
                if stopped
                else "all were asked for"
            )
            raise SpectrumError(
                f"{self.folder}: {_counted(counts)} of {len(self.nodes)} models; {end}; the first: "
                f"{self.files[bad[0]]['message']}; the same command asks for them again"
            )
        if not counts["there"]:
            raise SpectrumError(
                f"{self.url}: {_counted(counts)} of {len(self.nodes)} models: the server has none of them; with "
                "--config.fetch.ask_again=True they are asked for again"
            )
        return self._told(counts, 0)

    def _expect(self, names: Sequence[str]) -> None:
        """Enters them as missing, so that the manifest of a run that is stopped says so."""
        for name in names:
            self.files[name] = {"status": "missing", "url": self._address(name)}

    def _fetch_wave(self, pool: concurrent.futures.Executor) -> None:
        """The wavelengths come first: without them no model can be checked, and tell whether the URL is right."""
        job = pool.submit(self._obtain, WAVE_NAME)
        try:
            while not concurrent.futures.wait([job], timeout=self.settings.progress).done:
                logger.info("fetch_library: waiting for %s, %s so far", WAVE_NAME, _bytes(self.come))
            entry = job.result()
        except NotThereError as error:
            raise SpectrumError(
                f"{self.url}: expected {WAVE_NAME} and a folder {GRID} there, found none; see fetch.url"
            ) from error
        except (TransferError, WrongFileError) as error:
            raise SpectrumError(str(error)) from error
        self.files[WAVE_NAME] = entry
        self.pixels = entry["pixels"]

    def _fetch_models(self, pool: concurrent.futures.Executor, todo: Sequence[str]) -> bool:
        """Fetches them, a few at a time; True if it gave up before the last."""
        names, running, in_a_row, done = iter(todo), {}, 0, 0
        began = saved = time.monotonic()
        while True:
            if in_a_row < self.settings.give_up:
                for name in itertools.islice(names, self.settings.connections - len(running)):
                    running[pool.submit(self._obtain, name)] = name
            if not running:
                break
            finished = concurrent.futures.wait(
                running, timeout=self.settings.progress, return_when=concurrent.futures.FIRST_COMPLETED
            ).done
            for job in finished:
                name, done = running.pop(job), done + 1
                self.files[name] = self._outcome(name, job)
                in_a_row = in_a_row + 1 if self.files[name]["status"] in ("wrong", "failed") else 0
            if time.monotonic() - saved >= self.settings.progress:
                saved = time.monotonic()
                self._save()
                rate = self.come / (saved - began)
                left = f"{(len(todo) - done) * (saved - began) / done / 60:.0f} min left" if done else ""
                logger.info(
                    "fetch_library: %d of %d, %s, %s/s %s",
                    done,
                    len(todo),
                    _bytes(self.come),
                    _bytes(rate),
                    left,
                )
        return in_a_row >= self.settings.give_up and next(names, None) is not None

    def _outcome(self, name: str, job: concurrent.futures.Future) -> dict[str, Any]:
        """The entry of a model whose job has ended."""
        url = self._address(name)
        try:
            return job.result()
        except NotThereError:
            return {"status": "hole", "url": url}
        except WrongFileError as error:
            logger.warning("fetch_library: wrong file: %s", error)
            return {"status": "wrong", "url": url, "message": str(error)}
        except TransferError as error:
            logger.warning("fetch_library: failed: %s", error)
            return {"status": "failed", "url": url, "message": str(error)}

    def _obtain(self, name: str) -> dict[str, Any]:
        """The entry of a file that is there and right, or is fetched. Runs in a thread."""
        if self.stop.is_set():
            raise StoppedError(name)
        path = self.folder / name
        found: dict[str, Any] = {}

        def check(candidate: Path) -> None:
            with self._checking:
                if name == WAVE_NAME:
                    found["pixels"] = check_wave(candidate, wave_unit=self.wave_unit)
                else:
                    found["odd_pixels"] = check_flux(candidate, self.nodes[name], pixels=self.pixels)

        known = {"url": self._address(name), "etag": "", "modified": ""}
        if path.exists():
            ours = self.known["files"].get(name, {})
            try:
                check(path)
                digest = sha256(path)
                if ours.get("sha256") == digest:
                    known = {key: ours.get(key, "") for key in known}
                else:  # put there by someone, from wherever
                    known["url"] = ""
            except SpectrumError as error:
                found.clear()
                _put_aside(path, error, ours=ours.get("status") == "there")
        if not found:
            got = download(
                known["url"], path, check=check, settings=self.settings, stop=self.stop, count=self._count
            )
            digest = got.sha256
            known.update(etag=got.etag, modified=got.modified)
        if found.get("odd_pixels"):
            logger.warning(
                "fetch_library: %s: %d pixels are negative or not finite", name, found["odd_pixels"]
            )
        stat = path.stat()
        entry = {"status": "there", "bytes": stat.st_size, "sha256": digest, "mtime_ns": stat.st_mtime_ns}
        return {**entry, **known, **found}

    def _address(self, name: str) -> str:
        return self.url + (remote_path(self.nodes[name]) if name in self.nodes else name)

    def _count(self, size: int) -> None:
        with self._counting:
            self.come += size

    def _is_hole(self, name: str) -> bool:
        """The server was asked before and had none; another server was not asked."""
        entry = self.known["files"].get(name, {})
        hole = entry.get("status") == "hole" and entry.get("url") == self._address(name)
        return hole and not self.settings.ask_again and not (self.folder / name).exists()

    def _is_trusted(self, name: str) -> bool:
        """The file was checked before and nobody has touched it since."""
        entry, path = self.known["files"].get(name, {}), self.folder / name
        if self.settings.verify or entry.get("status") != "there" or not path.is_file():
            return False
        stat = path.stat()
        return (entry.get("bytes"), entry.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)

    def _tell_empty_folders(self) -> None:
        """Holes are single models; a mirror without a whole folder is another matter, and is told."""
        folders: dict[str, set[str]] = {}
        for name, node in self.nodes.items():
            folders.setdefault(remote_path(node).split("/")[1], set()).add(self.files[name]["status"])
        empty = sorted(folder for folder, found in folders.items() if found == {"hole"})
        if empty:
            logger.warning(
                "fetch_library: %s has none of the models selected from %s: more likely the mirror is not whole, or "
                "the URL not right, than that PHOENIX has no such models",
                self.url,
                ", ".join(empty),
            )

    def _save(self) -> None:
        files = {name: self.files[name] for name in sorted(self.files)}
        pixels = self.pixels or self.known["pixels"]
        write_json(self.folder / MANIFEST, {"url": self.url, "pixels": pixels, "files": files})

    def _told(self, counts: Mapping[str, int], size: int) -> Fetching:
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.is_dir())
        return Fetching(
            folder=self.folder,
            selected=tuple(self.nodes),
            counts=counts,
            size=size,
            free=shutil.disk_usage(there).free,
        )


def _put_aside(path: Path, error: SpectrumError, *, ours: bool) -> None:
    """Takes a file that is not what its name says away; one that this stage did not fetch is someone's, and kept."""
    if ours and path.is_file():
        path.unlink()
        logger.warning("fetch_library: deleted: %s", error)
        return
    aside = path.with_name(path.name + ".wrong")
    os.replace(path, aside)
    logger.warning("fetch_library: renamed to %s: %s", aside.name, error)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of earlier runs; an empty one where there is none, or none that can be read."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
        entries = {str(name): dict(entry) for name, entry in found["files"].items()}
        known = {n: e for n, e in entries.items() if e.get("status") in STATUSES}
        return {"files": known, "pixels": int(found["pixels"])}
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning(
            "fetch_library: %s cannot be read (%s); every file is checked again", path, error or "?"
        )
    return {"files": {}, "pixels": 0}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder, since both would write the same parts."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"fetch: another run is fetching into {folder}") from error
    finally:
        os.close(lock)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
