"""Shared by scripts that predict in a stream: flags, progress in a terminal or a log, and what came of it."""

import abc
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from remap.command import flags as cli
from remap.config import ConfigError
from remap.predict.catalogue import check_output
from remap.predict.plan import make_inputs
from remap.predict.predictor import Predictor
from remap.predict.shards import SHARD_FORMATS, merge
from remap.predict.stream import Progress, Streamed, StreamSettings, default_process, predict_stream
from remap.train.loop import Preempted

MANY = 5000  # spectra beyond which a catalogue is made shard by shard
EVERY = 30.0  # seconds between lines of a log
# What to do without a stream of what it cannot give.
_WHOLE = {
    "--report": "run launch.report on the catalogue",
    "--embeddings": "leave --stream, --merge, --share_count and a folder as --output out",
}
INCOMPLETE = 2  # exit status where shards, or inputs of many spectra, were set aside


class StreamFlags:
    """`--stream`, `--workers`, `--shard`, ... ; see docs/scale.md."""

    def __init__(self, values: flags.FlagValues = flags.FLAGS) -> None:
        own = {"flag_values": values}
        self._stream = flags.DEFINE_bool(
            "stream",
            None,
            f"Predict shard by shard, in flat memory; default: beyond {MANY} spectra, or where --output is a folder.",
            **own,
        )
        self._workers = flags.DEFINE_integer(
            "workers", None, "Processes that read files ahead; default: one less than there are cores.", **own
        )
        self._shard = flags.DEFINE_integer("shard", 2048, "Spectra of a shard.", **own)
        self._format = flags.DEFINE_enum(
            "shard_format", "fits", SHARD_FORMATS, "Format of the shards.", **own
        )
        self._seconds = flags.DEFINE_float(
            "file_seconds", 120.0, "Seconds after which a file that is still being read is flagged.", **own
        )
        self._index = flags.DEFINE_integer(
            "share_index", None, "Which of the runs that share the shards this one is, from 0.", **own
        )
        self._count = flags.DEFINE_integer(
            "share_count", None, "How many runs share the shards; --output is a folder then.", **own
        )
        self._merge = flags.DEFINE_string(
            "merge", "", "Catalogue to write from the shards of --output once all are there.", **own
        )
        self._quiet = flags.DEFINE_bool("quiet", False, "Show warnings and errors alone.", **own)
        self._verbose = flags.DEFINE_bool("verbose", False, "Tell of every shard.", **own)

    def wanted(
        self, predictor: Predictor, files: Sequence[Path], how: dict[str, Any], output: str, *, whole: str
    ) -> bool:
        """Whether the flags, the output or the number of spectra ask for a stream.

        Args:
          whole: a flag that asks for what a stream does not keep, "" = none.

        Raises:
          ConfigError: flags that contradict each other.
        """
        folder = is_folder(output)
        asked = bool(self._stream.value or self._merge.value or folder or self._count.value)
        if self._stream.value is False and (self._merge.value or folder or self._count.value):
            raise ConfigError("--nostream: --merge, --share_count and a folder as --output ask for a stream")
        if asked and whole:
            raise ConfigError(f"{whole}: a stream does not keep what that needs; {_WHOLE[whole]}")
        if self._stream.value is not None or asked or whole:
            return asked
        reading = predictor.reading(files, **how)
        inputs = make_inputs(
            files, dict(reading.source), reading.velocities, predictor.config["data_root"] or None
        )
        return int(inputs.sizes.sum()) > MANY

    def settings(self) -> StreamSettings:
        """The flags as settings."""
        index, count = default_process()
        count = count if self._count.value is None else self._count.value
        if self._index.value is not None:
            index = self._index.value
        workers = self._workers.value
        if workers is None:
            workers = max(1, _cores() - 1)
        return StreamSettings(
            shard=self._shard.value,
            workers=workers,
            timeout=self._seconds.value,
            process_index=index,
            process_count=count,
            shard_format=self._format.value,
        )

    def set_level(self) -> None:
        """How much is told."""
        if self._quiet.value or self._verbose.value:
            cli.logger.setLevel(logging.WARNING if self._quiet.value else logging.DEBUG)

    def run(
        self,
        predictor: Predictor,
        files: Sequence[Path],
        how: dict[str, Any],
        output: str,
        *,
        overwrite: bool,
    ) -> None:
        """Predicts in a stream and merges what it may; leaves with status 2 where shards or inputs were set aside."""
        settings, folder, catalogue = self.settings(), Path(output), self._merge.value
        if settings.process_count > 1 and catalogue:
            raise ConfigError("--merge: give it to a run of its own, without --share_count, after the others")
        if not is_folder(output):
            if settings.process_count > 1:
                raise ConfigError(
                    f"--output={output}: several processes share a folder; merge it afterwards with --merge"
                )
            folder, catalogue = Path(f"{output}.parts"), catalogue or output
        if catalogue:
            check_output(catalogue, overwrite=overwrite)
        with _stoppable():
            with _shown(quiet=self._quiet.value) as show:
                done = predict_stream(predictor, files, folder, **how, stream=settings, progress=show)
            _tell(done)
            if done.failed:
                cli.logger.error("set aside, each with the reason beside it: %s", ", ".join(done.failed))
                sys.exit(INCOMPLETE)
            rows = merge(folder, catalogue, overwrite=overwrite) if catalogue else 0
        if catalogue:
            cli.logger.info("%s: %d rows from %d shards", catalogue, rows, done.shards)
            if catalogue == output:
                _remove(folder)
        if done.unread:
            cli.logger.error(
                "files of many spectra that could not be read, or not wholly (their rows say why): %s",
                ", ".join(done.unread),
            )
            sys.exit(INCOMPLETE)


def is_folder(output: str) -> bool:
    """Whether the shards themselves are what is asked for."""
    return not Path(output).suffix or Path(output).is_dir()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM is Ctrl-C, and both end in `Preempted`; shards that are there stay.

    Within it is a KeyboardInterrupt: readers and shards take any `Exception` for a fault of a file or of their own.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Preempted("stopped by a signal; the same command makes the shards that are missing") from stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(done: Streamed) -> None:
    cli.logger.info(
        "%s: %d shards made, %d there before; %d rows, %d of them could not be used",
        *(done.folder, done.made, done.kept, done.rows, done.bad),
    )
    cli.logger.info("seconds: %s", ", ".join(f"{name} {value:.1f}" for name, value in done.seconds.items()))


def _remove(folder: Path) -> None:
    """Deletes shards that are in a catalogue now; only what a stream writes."""
    parts = [path for kind in SHARD_FORMATS for path in folder.glob(f"part-*.{kind}")]
    for path in [*parts, *(folder / n for n in ("inputs.jsonl", "stars.json"))]:
        path.unlink(missing_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for lock in [*folder.glob("process-*"), folder / "merge"]:  # empty, where a run was killed
        with contextlib.suppress(OSError):
            lock.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _shown(*, quiet: bool) -> "_Shown":
    return _InTerminal() if sys.stderr.isatty() and not quiet else _InLog()


class _Shown(abc.ABC):
    """Hears of the progress of a run."""

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @abc.abstractmethod
    def __call__(self, now: Progress) -> None: ...


class _InTerminal(_Shown):
    """A line that stays where it is: spectra, rate, time left."""

    def __enter__(self) -> "_Shown":
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task("spectra", total=None, rate="")
        self._begin = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, now: Progress) -> None:
        rate = now.spectra / max(time.monotonic() - self._begin, 1e-9)
        failed = f", {now.failed} shards failed" if now.failed else ""
        told = f"{rate:.0f} a second{failed}" if now.spectra else f"{now.read} read"
        self._bar.update(self._task, total=now.total, completed=now.spectra, rate=told)


class _InLog(_Shown):
    """A line every half minute."""

    def __enter__(self) -> "_Shown":
        self._begin = self._last = time.monotonic()
        return self

    def __call__(self, now: Progress) -> None:
        moment = time.monotonic()
        if moment - self._last < EVERY:
            return
        self._last = moment
        rate = now.spectra / (moment - self._begin)
        left = f", {(now.total - now.spectra) / rate / 60:.0f} min left" if rate else ""
        cli.logger.info(
            "%d of %d spectra (%d read), %.1f a second%s", now.spectra, now.total, now.read, rate, left
        )
