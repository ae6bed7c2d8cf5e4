"""Worker processes that read files and bring them onto the arms' grids, ahead of the networks and in order.

The workers are spawned, since JAX has threads and a fork would copy their locks. They compute on the CPU alone. The
memory is bounded: no task is given out that is more than `ahead` tasks beyond the one that is waited for.

A program that streams must guard its main part (`if __name__ == "__main__":`), as `multiprocessing` asks for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from remap import io
from remap.config import ConfigError
from remap.predict.observing import observe_some
from remap.preprocess.description import Preprocessing
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.spectra import Spectra, SpectrumError

logger = logging.getLogger(__name__)

STARTING = (
    300.0  # seconds in which a worker must be there: a network disk takes its time for the first import
)
FAILED_STARTS = 3  # in a row, after which workers cannot be started at all
OBSERVING = 32  # files that are cleaned and resampled in the time that one may take to be read
SAID = 20  # messages of one kind that are told
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Item(NamedTuple):
    """A file, or some rows of one."""

    path: str
    name: str  # tells it from all other files
    rows: tuple[int, int] | None = None  # a piece of `remap.io.split`; None = all
    velocity: float | None = None  # km/s, None = as the settings say
    many: bool = False  # the file holds many spectra, so that more than a row is lost where it cannot be read


@runtime_checkable
class Watch(Protocol):
    """What a `Reads` tells of its work, so that a death or a standstill can be laid to a file."""

    def reading(self, i: int) -> contextlib.AbstractContextManager[None]:
        """Around the reading of item i; raises SpectrumError for one that is to be left out."""


@runtime_checkable
class Reads(Protocol):
    """Makes something of every item of a task; goes to the workers as a pickle."""

    def __call__(self, items: Sequence[Item], watch: Watch) -> Sequence[Any]: ...


class FeedError(RuntimeError):
    """A task that a worker could not do, for a reason that lies in no single file; names the first and last."""


class Fed(NamedTuple):
    """What came of a task."""

    found: Sequence[Any]  # of every item
    reading: float  # seconds
    observing: float  # seconds


@dataclasses.dataclass
class FileReader:
    """Items as rows on the arms' grids (`observe_some`), not yet joined.

    Attributes:
      preprocessing, source, root, settings, templates, stationary: see `remap.predict.observing.read_and_observe`.
    """

    preprocessing: Preprocessing
    source: dict[str, Any]
    root: str | None
    settings: ObserveSettings
    templates: Templates | None = None
    stationary: StationaryMask | None = None

    def __call__(self, items: Sequence[Item], watch: Watch) -> list[Observed]:
        def read(i: int, within: tuple[float, float] | None) -> Sequence[Spectra]:
            with watch.reading(i):
                return self.segments(items[i], within)

        given = None if all(item.velocity is None for item in items) else [item.velocity for item in items]
        return observe_some(
            [item.name for item in items],
            self.preprocessing,
            [Path(item.path) for item in items],
            read,
            settings=self.settings,
            velocities=given,
            templates=self.templates,
            stationary=self.stationary,
        )

    def segments(self, item: Item, within: tuple[float, float] | None) -> tuple[Spectra, ...]:
        """The segments of an item."""
        return io.read_segments(
            item.path,
            source=self.source,
            data_root=self.root,
            within=within,
            rows=item.rows,
            together=self.settings.join,
        )


@dataclasses.dataclass
class StarReader:
    """The stars in every item, () where it cannot be read."""

    files: FileReader

    def __call__(self, items: Sequence[Item], watch: Watch) -> list[tuple[io.Star, ...]]:
        return [self._stars(i, item, watch) for i, item in enumerate(items)]

    def _stars(self, i: int, item: Item, watch: Watch) -> tuple[io.Star, ...]:
        try:
            with watch.reading(i):
                return io.stars(
                    item.path,
                    source=self.files.source,
                    data_root=self.files.root,
                    rows=item.rows,
                    together=self.files.settings.join,
                )
        except SpectrumError:
            return ()


class _Task(NamedTuple):
    """A task on its way."""

    number: int
    items: Sequence[Item]
    deaths: int = 0  # of workers, so far, that nothing could be blamed for
    suspect: int | None = None  # the item that one has died of
    skip: Mapping[int, str] = {}  # item -> why it is left out
    alone: bool = False  # the items one by one: one of them kills


class Feeder:
    """Does tasks in worker processes and gives what came of them, in order. A context; iterate it once.

    Args:
      read: does a task.
      count: number of tasks.
      make: the items of task k; called when it is given out, so that few are in memory.
      workers: processes; 0 = none, every task is done when it is asked for, without a limit of time.
      ahead: tasks that may be done or under way beyond the one that is waited for.
      timeout: seconds after which a file that is still being read is left out.

    A file that the same task has lost two workers on, or that takes too long, is left out: `read` hears of it as a
    `SpectrumError`.

    Raises:
      ConfigError: of `read`, where the task is asked for, and so is
      FeedError: everything else that it raises, as an entry in place of a `Fed`.
      RuntimeError: no worker can be started.
    """

    def __init__(
        self,
        read: Reads,
        count: int,
        make: Callable[[int], Sequence[Item]],
        *,
        workers: int,
        ahead: int,
        timeout: float,
    ) -> None:
        self._read, self._count, self._make = read, count, make
        self._ahead, self._timeout = max(1, ahead), timeout
        self._number = min(workers, count)
        self._ready: dict[int, Fed | FeedError] = {}
        self._again: list[_Task] = []
        self._given = self._wanted = self._bad_starts = 0
        self._said: collections.Counter[str] = collections.Counter()
        self._changed = threading.Condition()
        self._fatal: BaseException | None = None
        self._closed = False
        self._workers: list[_Worker] = []
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def __enter__(self) -> Feeder:
        if self._number:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for worker in self._workers:
            worker.kill()

    def __iter__(self) -> Iterator[Fed | FeedError]:
        for k in range(self._count):
            if not self._number:
                found = _do(self._read, self._make(k), _Here())
                if isinstance(found, ConfigError):
                    raise found
                yield found
                continue
            with self._changed:
                self._wanted = k
                self._changed.notify_all()
                self._changed.wait_for(lambda k=k: k in self._ready or self._fatal is not None)
                if k not in self._ready:
                    raise self._fatal
                found = self._ready.pop(k)
            yield found

    def _run(self) -> None:
        try:
            self._workers = [_Worker(self._read) for _ in range(self._number)]
            while not self._closed and (self._given < self._count or self._again or self._busy()):
                self._give_out()
                self._listen()
        except BaseException as error:
            with self._changed:
                self._fatal = error
                self._changed.notify_all()

    def _busy(self) -> bool:
        return any(worker.task is not None for worker in self._workers)

    def _give_out(self) -> None:
        for worker in self._workers:
            if worker.task is not None or not worker.ready:
                continue
            if self._again:
                worker.give(self._again.pop(0))
            elif self._given < self._count and self._given <= self._wanted + self._ahead:
                worker.give(_Task(self._given, self._make(self._given)))
                self._given += 1

    def _listen(self) -> None:
        """Hears the workers for a moment, and looks after those that are silent for too long."""
        heard = wait([worker.connection for worker in self._workers], timeout=0.1)
        for i, worker in enumerate(self._workers):
            if worker.connection in heard:
                try:
                    self._hear(worker, worker.connection.recv())
                except (EOFError, OSError):
                    self._lost(i, f"the process that read it has ended ({worker.end()})")
            elif worker.late(self._timeout):
                self._lost(i, f"not read within {self._timeout:g} s", blame=True)

    def _hear(self, worker: _Worker, message: tuple[str, Any]) -> None:
        kind, value = message
        worker.since = time.monotonic()
        if kind == "ready":
            worker.ready, self._bad_starts = True, 0
        elif kind == "item":
            worker.item = value
        elif kind == "log":
            self._tell(*value)
        elif isinstance(value, ConfigError):
            raise value
        else:
            with self._changed:
                self._ready[worker.task.number] = value
                self._changed.notify_all()
            worker.task = worker.item = None

    def _tell(self, name: str, level: int, kind: str, message: str) -> None:
        """What a worker logs, of one kind so many times: of a million bad files all are in the catalogue."""
        self._said[kind] += 1
        if self._said[kind] <= SAID:
            more = "" if self._said[kind] < SAID else " (more of this kind are not told)"
            logging.getLogger(name).log(level, "%s%s", message, more)

    def _lost(self, i: int, why: str, *, blame: bool = False) -> None:
        """A worker is gone, or stands still: another one takes its place, and the task comes again."""
        worker = self._workers[i]
        worker.kill()
        if not worker.ready:
            self._bad_starts += 1
            if self._bad_starts >= FAILED_STARTS:
                raise RuntimeError(
                    f"workers cannot be started ({why}); a program that streams must guard its main part: "
                    "if __name__ == '__main__'"
                )
        if (task := worker.task) is not None:
            item = worker.item
            if item is None:  # while it cleaned and resampled: the second time one by one
                task = task._replace(deaths=task.deaths + 1, alone=task.deaths > 0)
                logger.warning("a worker was lost (%s); its %d files come again", why, len(task.items))
                if task.deaths > len(task.items) + 3:
                    raise RuntimeError(
                        f"{task.items[0].path} to {task.items[-1].path}: {why}, again and again"
                    )
            elif blame or task.suspect == item:
                told = f"{task.items[item].path}: {why}"
                task = task._replace(skip={**task.skip, item: told}, suspect=None)
            else:
                logger.warning(
                    "a worker was lost (%s) on %s, which it tries again", why, task.items[item].path
                )
                task = task._replace(suspect=item)
            self._again.append(task)
        self._workers[i] = _Worker(self._read)


class _Worker:
    """A process and the end of the pipe to it."""

    def __init__(self, read: Reads) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, read), name="remap-reader", daemon=True)
        with _one_thread():
            self.process.start()
        there.close()
        self.ready, self.since = False, time.monotonic()
        self.task: _Task | None = None
        self.item: int | None = None

    def give(self, task: _Task) -> None:
        self.task, self.item, self.since = task, None, time.monotonic()
        with contextlib.suppress(OSError):  # it has died: `_listen` hears of it
            self.connection.send((task.items, dict(task.skip), task.alone))

    def late(self, timeout: float) -> bool:
        """Whether it has been silent for too long."""
        silent = time.monotonic() - self.since
        if not self.ready:
            return silent > max(timeout, STARTING)
        if self.task is None:
            return False
        whole = self.item is None and not self.task.alone
        return silent > timeout * (1 + len(self.task.items) / OBSERVING if whole else 1)

    def end(self) -> str:
        self.process.join(timeout=1)
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"status {code}"

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_ENVIRONMENT = threading.Lock()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes that start within have one thread each for linear algebra: there are as many of them as cores."""
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ |= {name: value or "1" for name, value in before.items()}
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]


class _Told(logging.Handler):
    """What a worker logs, told by the main process."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(("log", (record.name, record.levelno, str(record.msg), record.getMessage())))


class _Here:
    """A `Watch` of this process."""

    def __init__(self) -> None:
        self.seconds, self.item = 0.0, None

    @contextlib.contextmanager
    def reading(self, i: int) -> Iterator[None]:
        begin, self.item = time.perf_counter(), i
        try:
            yield
        except SpectrumError:
            self.item = None
            raise
        finally:
            self.seconds += time.perf_counter() - begin
        self.item = None


class _There(_Here):
    """A `Watch` that tells the main process.

    Args:
      first: number of its item 0 within the task; None = it has all.
    """

    def __init__(self, connection: Connection, skip: Mapping[int, str], first: int | None = None) -> None:
        super().__init__()
        self._connection, self._skip, self._first = connection, skip, first

    @contextlib.contextmanager
    def reading(self, i: int) -> Iterator[None]:
        number = i + (self._first or 0)
        if number in self._skip:
            raise SpectrumError(self._skip[number])
        self._connection.send(("item", number))
        try:
            with super().reading(i):
                yield
        finally:
            if self._first is None:  # alone, what comes after is laid to it, too
                self._connection.send(("item", None))


def _serve(connection: Connection, read: Reads) -> None:
    """The main program of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends this one
    jax.config.update("jax_platforms", "cpu")
    own = logging.getLogger("remap")
    own.addHandler(_Told(connection))
    own.setLevel(logging.INFO)
    own.propagate = False
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process has ended
        connection.send(("ready", None))
        while True:
            items, skip, alone = connection.recv()
            if alone:
                each = [_do(read, [item], _There(connection, skip, i)) for i, item in enumerate(items)]
                connection.send(("done", _together(each)))
            else:
                connection.send(("done", _do(read, items, _There(connection, skip))))


def _together(each: Sequence[Fed | FeedError | ConfigError]) -> Fed | FeedError | ConfigError:
    """What came of the items of a task one by one as one; the first error if there is one."""
    for one in each:
        if not isinstance(one, Fed):
            return one
    found = [part for one in each for part in one.found]
    return Fed(found, sum(one.reading for one in each), sum(one.observing for one in each))


def _do(read: Reads, items: Sequence[Item], watch: _Here) -> Fed | FeedError | ConfigError:
    """A task done, or why it is not."""
    begin = time.perf_counter()
    try:
        found = read(items, watch)
    except ConfigError as error:
        return error
    except Exception:
        where = items[watch.item].path if watch.item is not None else f"{items[0].path} to {items[-1].path}"
        return FeedError(f"{where}: {traceback.format_exc()}")
    return Fed(found, watch.seconds, time.perf_counter() - begin - watch.seconds)
