"""Hostile copies of files through their readers, in a process of limited time and memory.

A mutant is refused by a `SpectrumError` that names the file, or read. Anything else is a fault: another exception,
more than `SECONDS` of processor time, more than `BYTES` of memory (also where a reader answers that there is not
enough), or the end of the process. `benchmarks.bench_readers --hostile=5000` is the command, and to look at one:

    fuzzing.mutant("image", SAMPLES["image"], 7)  # the content of the eighth
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
import zlib
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks import mutation
from benchmarks.small_files import Sample
from remap.spectra import Spectra, SpectrumError

SECONDS, BYTES = 10, 2**30  # of processor time, and beyond what the process has before
WAITED = 600.0  # seconds after which a process that does nothing is taken to hang


@dataclasses.dataclass(frozen=True)
class Fuzzed:
    """What a reader made of its mutants.

    Attributes:
      refused, read: their numbers.
      slowest: seconds of processor time of the slowest.
      grown: bytes by which the process grew at most.
      behind: how many refusals began as which exception of a parser.
      faults: number of the mutant -> what was wrong with its outcome.
      seconds: of processor time in all.
    """

    refused: int
    read: int
    slowest: float
    grown: int
    behind: Mapping[str, int]
    faults: Mapping[int, str]
    seconds: float

    def told(self) -> dict:
        """In words and numbers for a table."""
        return {
            "refused": self.refused,
            "read": self.read,
            "slowest_s": round(self.slowest, 2),
            "grown_MB": round(self.grown / 1e6),
            "faults": dict(self.faults),
            "behind": dict(self.behind),
            "seconds": round(self.seconds, 1),
        }


def mutant(name: str, sample: Sample, number: int, seed: int = 0) -> bytes:
    """One of the mutants of a sample."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / sample.file
        sample.write(path)
        return mutation.mutant(path.read_bytes(), _rng(name, number, seed))


def _rng(name: str, number: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def judge(path: Path, sample: Sample, source: dict) -> tuple[str, str]:
    """What a reader makes of a file: "refused" and the exception behind it, "read", or "fault" and what it is."""
    try:
        found = sample.read(path, source)
    except SpectrumError as error:
        behind: BaseException | None = error
        kinds = []
        while behind is not None:
            kinds.append(type(behind).__name__)
            behind = behind.__cause__ or behind.__context__
        if "MemoryError" in kinds or "_ArrayMemoryError" in kinds:
            return "fault", f"memory: {error}"[:300]
        if path.name not in str(error):
            return "fault", f"no file in the message: {error}"[:300]
        return "refused", kinds[-1]
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"[:300]
    if sample.spectra:
        for part in found if isinstance(found, tuple) else (found,):
            wrong = _unsound(part)
            if wrong:
                return "fault", wrong
    return "read", ""


def _unsound(spectra: Spectra) -> str:
    """What no spectrum can be that is handed on, "" where nothing is wrong."""
    wave, valid = spectra.wave, spectra.valid
    if not (np.all(np.isfinite(wave)) and np.all(np.diff(wave) > 0)):
        return "wavelengths that do not increase"
    if not np.all(np.isfinite(spectra.flux[valid])):
        return "a good pixel without a flux"
    if spectra.ivar is not None and not np.all(spectra.ivar[valid] > 0):
        return "a good pixel with an inverse variance that is not positive"
    return ""


def _work(pipe: Connection, samples: Mapping[str, Sample], seed: int, seconds: int) -> None:
    """Reads the mutants that it is sent, (reader, first, last), and tells the outcome of each."""
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, -1))
    with tempfile.TemporaryDirectory() as folder:
        while (task := pipe.recv()) is not None:
            name, first, last = task
            sample, path = samples[name], Path(folder) / name / samples[name].file
            path.parent.mkdir()
            source, content = sample.write(path), path.read_bytes()
            _allow(seconds)
            pipe.send((first, "begun", "", 0.0, 0))
            judge(path, sample, source)  # what is imported or built once is no growth
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number in range(first, last):
                hostile = mutation.mutant(content, _rng(name, number, seed))
                path.write_bytes(hostile)
                _allow(seconds)
                pipe.send((number, "begun", "", 0.0, 0))
                start = time.process_time()
                outcome, what = judge(path, sample, source)
                taken = time.process_time() - start
                grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
                pipe.send((number, outcome, what, taken, grown))
            pipe.send((last, "done", "", 0.0, 0))


def _allow(seconds: int) -> None:
    """Gives this process so much more processor time: the system ends what takes longer, wherever it is."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, -1))


def fuzz(
    samples: Mapping[str, Sample], mutants: int, *, seed: int = 0, limit: int = SECONDS
) -> dict[str, Fuzzed]:
    """Reads mutants of samples, in one process after another where one does not survive.

    Args:
      samples: name -> small file and its reader.
      mutants: of each.
      seed: of the mutants.
      limit: seconds of processor time for a mutant.
    """
    context = multiprocessing.get_context("spawn")
    worker, pipe = None, None
    out = {}
    try:
        for name in samples:
            counts: collections.Counter = collections.Counter()
            behind: collections.Counter = collections.Counter()
            faults: dict[int, str] = {}
            slowest, grown, seconds, first, begun = 0.0, 0, 0.0, 0, 0
            done = False
            while not done and first < mutants:
                if worker is None:
                    pipe, other = context.Pipe()
                    worker = context.Process(
                        target=_work, args=(other, dict(samples), seed, limit), daemon=True
                    )
                    worker.start()
                    other.close()
                pipe.send((name, first, mutants))
                begun = first
                try:
                    while True:
                        if not pipe.poll(WAITED):
                            raise TimeoutError
                        number, outcome, what, taken, more = pipe.recv()
                        if outcome == "begun":
                            begun = number
                            continue
                        if outcome == "done":
                            done = True
                            break
                        counts[outcome] += 1
                        seconds += taken
                        slowest, grown = max(slowest, taken), max(grown, more)
                        if outcome == "fault":
                            faults[number] = what
                        elif outcome == "refused":
                            behind[what] += 1
                except (EOFError, ConnectionError, TimeoutError) as error:
                    if isinstance(error, TimeoutError):
                        worker.kill()
                    worker.join()
                    code = worker.exitcode
                    slow = code == -signal.SIGXCPU or isinstance(error, TimeoutError)
                    faults[begun] = (
                        f"more than {limit} s" if slow else f"the process ended with status {code}"
                    )
                    worker, first = None, begun + 1
            out[name] = Fuzzed(counts["refused"], counts["read"], slowest, grown, behind, faults, seconds)
    finally:
        if worker is not None:
            pipe.send(None)
            worker.join(10)
    return out
