"""Does prediction in a stream keep its memory and its pace, where does the time go, and what do files cost?

    python -m benchmarks.bench_stream --output=workdirs/bench_stream --count=1000000          MARVELS-sized: a night
    python -m benchmarks.bench_stream --output=workdirs/bench_stream --count=10000 --small    a minute or two
    python -m benchmarks.bench_stream --output=workdirs/bench_stream --files=3000 --small     from FITS files

Spectra are made by the workers as they are asked for, noise on a template, and go the whole way of spectra from files
but for the reading: cleaned, resampled, normalised, predicted, written as shards. Networks are untrained, of the size
of `configs/marvels.py` (two arms of 4,300 and 4,700 pixels); `--small` has 500 pixels, a quick normaliser and little
networks, so that memory and pace are those of the stream itself. With `--files` as many FITS files are written into a
temporary folder and predicted in a stream and at once, each in a process of its own; the catalogues must be the same.

Writes stream.md and the numbers, with the memory of every second, as JSON.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from astropy.io import fits

from remap.network.resnet import build_model, init_variables
from remap.predict.ensemble import Network
from remap.predict.feeding import Item, Watch
from remap.predict.observing import observe_some
from remap.predict.plan import make_plan
from remap.predict.predictor import Predictor
from remap.predict.running import Runner
from remap.predict.shards import merge, open_folder
from remap.predict.stream import Progress, StreamSettings, predict_stream, run_stream
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed
from remap.spectra import Spectra, make_spectra

FEW = (
    20  # shards, of whose halves nothing can be said: the last ones have been read before they are waited for
)
MANIFEST = ("format", "inputs", "networks", "settings", "shards")
FILE_SOURCE = {
    "format": "table",
    "medium": "air",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "wavelength",
    "flux_column": "flux",
    "ivar_column": "ivar",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables and the numbers")
    parser.add_argument("--count", type=int, default=0, help="spectra made on the way")
    parser.add_argument("--files", type=int, default=0, help="FITS files, compared with a prediction at once")
    parser.add_argument(
        "--small", action="store_true", help="few pixels, little networks, a quick normaliser"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--shard", type=int, default=2048)
    parser.add_argument("--road", choices=("stream", "at once"), help="for the processes of --files")
    parser.add_argument("--folder", type=Path, help="for these, too")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/deep-remap").expanduser()))
    if arguments.road:
        print(json.dumps(one_road(arguments)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; {arguments.workers} workers\n\n"
    )
    numbers = {}
    if arguments.count:
        numbers["count"] = on_the_way(arguments)
        text += table(numbers["count"])
    if arguments.files:
        numbers["files"] = from_files(arguments)
        text += files_table(numbers["files"])
    print(text)
    (arguments.output / "stream.md").write_text(text)
    (arguments.output / "stream.json").write_text(json.dumps(numbers))


# Spectra that are made on the way


@dataclasses.dataclass
class Made:
    """Spectra out of nothing; goes to the workers."""

    preprocessing: Preprocessing
    settings: ObserveSettings
    wave: np.ndarray
    flux: np.ndarray

    def __call__(self, items: Sequence[Item], watch: Watch) -> list[Observed]:
        def read(i: int, within: tuple[float, float] | None) -> tuple[Spectra]:
            with watch.reading(i):
                return (spectrum(self.wave, self.flux, items[i].name),)

        names = [item.name for item in items]
        return observe_some(
            names, self.preprocessing, [Path(name) for name in names], read, settings=self.settings
        )


def spectrum(wave: np.ndarray, flux: np.ndarray, name: str) -> Spectra:
    """The template with noise of its own."""
    rng = np.random.default_rng(int(name.split("-")[1].split(".")[0]))
    sigma = rng.uniform(0.005, 0.02)
    noisy = flux + sigma * rng.standard_normal(wave.size)
    return make_spectra(wave, noisy, medium="air", ivar=np.full(wave.size, sigma**-2), names=[name])


def template(preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths a third of a pixel off the arms' own, and lines on a slope."""
    low = min(arm[0] for arm in preprocessing.arms.values())
    high = max(arm[1] for arm in preprocessing.arms.values())
    step = min(arm[2] for arm in preprocessing.arms.values())
    wave = np.arange(low - 10, high + 10, step) + step / 3
    rng = np.random.default_rng(0)
    flux = 1 + 0.2 * (wave - wave[0]) / np.ptp(wave)
    for centre, depth in zip(rng.uniform(wave[0], wave[-1], 400), rng.uniform(0.02, 0.4, 400), strict=True):
        near = np.abs(wave - centre) < 10
        flux[near] *= 1 - depth * np.exp(-0.5 * ((wave[near] - centre) / 0.2) ** 2)
    return wave, flux


@dataclasses.dataclass(frozen=True)
class TimedRunner(Runner):
    """A runner that waits for the device, and knows for how long it did."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def normalize(self, arm, flux, valid):
        """As the runner's own."""
        return self._clocked("normaliser", super().normalize, arm, flux, valid)

    def pmfs(self, arm, flux, valid):
        """As the runner's own."""
        return self._clocked("network", super().pmfs, arm, flux, valid)

    def _clocked(self, name, call, *args):
        begin = time.perf_counter()
        out = jax.block_until_ready(call(*args))
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return out


@dataclasses.dataclass(frozen=True)
class Timed(Predictor):
    """A predictor with such a runner."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def runner(self):
        """What runs the networks over spectra, in batches."""
        own = super().runner
        plain = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
        return TimedRunner(**plain, seconds=self.seconds)


def predictor(*, small: bool) -> Timed:
    """Untrained networks of one member for each arm."""
    config = importlib.import_module("configs.marvels").get_config()
    with config.unlocked():
        config.survey.source = FILE_SOURCE
        config.observe.update({"join": False, "stationary": False})
        if small:
            config.arms = {"A": {"start": 5000.0, "stop": 5125.0, "step": 0.5}}
            config.arms.B = {"start": 5125.0, "stop": 5250.0, "step": 0.5}
            config.continuum = {"name": "chebyshev", "degree": 2, "low": 1.2, "high": 3.0, "iterations": 5}
            config.model.update({"stem_filters": 4, "filters": (4, 8), "kernel": 3, "embedding": 4})
    preprocessing = make_preprocessing(config)
    model = build_model(config.model, preprocessing.labels)
    networks = {}
    for i, arm in enumerate(preprocessing.arms):
        variables = init_variables(model, jax.random.key(i), len(preprocessing.wave(arm)))
        networks[arm] = Network(model, (variables,), (-1,), (0,))
    plain = json.loads(json.dumps(config.to_dict()))
    return Timed(preprocessing, networks, plain)


def on_the_way(arguments: argparse.Namespace) -> dict:
    """Numbers of a stream of spectra that are made by its workers."""
    own = predictor(small=arguments.small)
    wave, flux = template(own.preprocessing)
    settings = dataclasses.replace(own.observe_settings, velocity="rest", check=False)
    how = own.reading([], settings=settings, source=FILE_SOURCE)
    sizes = np.ones(arguments.count, np.int64)
    plan = make_plan(sizes, shard=arguments.shard)
    history: list[tuple[float, int, float]] = []
    with tempfile.TemporaryDirectory(dir=arguments.output) as folder, Memory() as memory:
        told = {key: {} for key in MANIFEST} | {"created": "2026-01-01T00:00:00+00:00"}
        manifest = open_folder(Path(folder), told | {"format": 1}, [])
        begin = time.perf_counter()

        def progress(now: Progress) -> None:
            history.append((time.perf_counter() - begin, now.spectra, time.process_time()))

        done = run_stream(
            own,
            Made(own.preprocessing, settings, wave, flux),
            plan,
            lambda k: Item(f"made-{k}.fits", f"made-{k}.fits"),
            sizes,
            Path(folder),
            manifest,
            how,
            StreamSettings(workers=arguments.workers, shard=arguments.shard),
            progress,
        )
        wall = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    if done.failed or done.rows != arguments.count or done.bad:
        raise RuntimeError(f"expected {arguments.count} good rows, found {done}")
    return {
        "count": arguments.count,
        "small": arguments.small,
        "shards": done.shards,
        "wall": wall,
        "seconds": {**done.seconds, **own.seconds},
        "history": history[:: max(1, len(history) // 1000)],
        "halves": halves(history, arguments.count),
        "memory": memory.seen,
        "processor": {"main": time.process_time(), "workers": sum(memory.processor.values())},
        "bytes": size,
    }


def halves(history: list[tuple[float, int, float]], count: int) -> tuple[float, float]:
    """Wall clock and processor time of this process for a spectrum, second half to first; without the first shard."""
    first = next(mark for mark in history if mark[1])
    middle = next(mark for mark in history if mark[1] >= first[1] + 0.5 * (count - first[1]))
    last = next(mark for mark in history if mark[1] == count)
    both = []
    for clock in (0, 2):
        pace = [(b[clock] - a[clock]) / max(b[1] - a[1], 1) for a, b in ((first, middle), (middle, last))]
        both.append(pace[1] / max(pace[0], 1e-9))
    return both[0], both[1]


class Memory:
    """MB of this process and of its children, every second, and the processor time of these."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []
        self.processor: dict[str, float] = {}  # child -> seconds, when last seen
        self._end = threading.Event()

    def __enter__(self) -> "Memory":
        self._begin = time.perf_counter()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(1.0):
            children = [c for t in Path("/proc/self/task").iterdir() for c in _words(t / "children")]
            workers = sum(_resident(child) for child in children)
            self.processor |= {child: seconds for child in children if (seconds := _seconds(child))}
            self.seen.append((time.perf_counter() - self._begin, _resident("self"), workers))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # the thread has ended
        return []


def _resident(process: str) -> float:
    found = _words(Path("/proc") / process / "statm")
    return int(found[1]) * resource.getpagesize() / 1e6 if found else 0.0


def _seconds(process: str) -> float:
    found = _words(Path("/proc") / process / "stat")
    return sum(map(int, found[13:15])) / os.sysconf("SC_CLK_TCK") if found else 0.0


def table(n: dict) -> str:
    s, wall = n["seconds"], n["wall"]
    seen = np.array(n["memory"])
    lines = [
        f"{n['count']:,} spectra{', small' if n['small'] else ''}: {n['count'] / wall:.1f} a second, {wall:.0f} s, "
        f"shards of {n['bytes'] / n['count'] / 1e3:.1f} kB a spectrum",
        "",
        "| | ms a spectrum |",
        "|---|---|",
    ]
    names = {
        "reading": "making (for reading), in the workers",
        "observing": "cleaning and resampling, in the workers",
        "waiting": "waiting for the workers",
        "predicting": "normaliser and networks, with what lies between",
        "normaliser": "of this the normaliser",
        "network": "of this the networks",
        "writing": "catalogue and shards, in a thread",
    }
    lines += [f"| {text} | {1e3 * s.get(name, 0.0) / n['count']:.3f} |" for name, text in names.items()]
    for who, seconds in n["processor"].items():
        lines.append(f"| processor time, {who} | {1e3 * seconds / n['count']:.3f} |")
    lines += ["", "| share of the run | main process [MB] | workers [MB] |", "|---|---|---|"]
    for share in (0.1, 0.25, 0.5, 0.75, 1.0):
        row = seen[min(int(share * len(seen)), len(seen) - 1)]
        lines.append(f"| {share:.0%} | {row[1]:.0f} | {row[2]:.0f} |")
    lines.append(f"| largest | {seen[:, 1].max():.0f} | {seen[:, 2].max():.0f} |")
    clock, processor = n["halves"]
    if n["shards"] < FEW:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        f"Time for a spectrum, second half to first: {clock:.2f} by the clock, {processor:.2f} of the main",
    ]
    lines += ["process's processor time", ""]
    return "\n".join(lines) + "\n"


# Files


def from_files(arguments: argparse.Namespace) -> dict:
    """Numbers of both roads over the same files, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=arguments.output) as name:
        folder = Path(name)
        (folder / "spectra").mkdir()
        own = predictor(small=arguments.small)
        wave, flux = template(own.preprocessing)
        for i in range(arguments.files):
            one = spectrum(wave, flux, f"made-{i}.fits")
            columns = [
                fits.Column("wavelength", "D", unit="Angstrom", array=wave),
                fits.Column("flux", "D", array=one.flux[0]),
                fits.Column("ivar", "D", array=one.ivar[0]),
            ]
            fits.BinTableHDU.from_columns(columns).writeto(folder / "spectra" / f"made-{i:07d}.fits")
        found = {}
        for road in ("at once", "stream"):
            more = ["--output", arguments.output, "--folder", folder, "--road", road]
            more += ["--workers", arguments.workers, "--shard", arguments.shard]
            command = [sys.executable, "-m", "benchmarks.bench_stream", *map(str, more)]
            command += ["--small"] if arguments.small else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[road] = json.loads(done.stdout.splitlines()[-1])
        pair = [(folder / f"{road}.fits").read_bytes() for road in found]
        found["same"] = pair[0] == pair[1]
        found["count"] = arguments.files
        return found


def one_road(arguments: argparse.Namespace) -> dict:
    own = predictor(small=arguments.small)
    settings = dataclasses.replace(own.observe_settings, velocity="rest", check=False)
    files = sorted((arguments.folder / "spectra").iterdir())
    own.predict_files(files[:64], settings=settings)  # compiles one shape
    if len(files) > 64:
        dataclasses.replace(own, batch_size=own.config["predict"]["batch_size"]).predict_files(
            files[:8], settings=settings
        )
    begin, before = time.perf_counter(), time.process_time()
    with Memory() as memory:
        if arguments.road == "at once":
            found = own.predict_files(files, settings=settings, date="2026-01-01T00:00:00+00:00")
            found.write(arguments.folder / "at once.fits")
        else:
            parts = arguments.folder / "parts"
            stream = StreamSettings(workers=arguments.workers, shard=arguments.shard)
            predict_stream(own, files, parts, settings=settings, stream=stream)
            manifest = parts / "manifest.json"  # the time of the other road
            merge(parts, arguments.folder / "merged.fits")
            created = json.loads(manifest.read_text())["created"].encode()
            content = (arguments.folder / "merged.fits").read_bytes()
            (arguments.folder / "stream.fits").write_bytes(
                content.replace(created, b"2026-01-01T00:00:00+00:00")
            )
            shutil.rmtree(parts)
    seen = np.array(memory.seen)
    return {
        "wall": time.perf_counter() - begin,
        "processor": time.process_time() - before + sum(memory.processor.values()),
        "main": float(seen[:, 1].max()),
        "workers": float(seen[:, 2].max()),
    }


def files_table(n: dict) -> str:
    lines = [
        f"{n['count']:,} FITS files; the catalogues are {'the same' if n['same'] else 'NOT the same'}, byte for byte",
        "",
        "| road | seconds | processor time [ms a file] | main process, largest [MB] | workers [MB] |",
        "|---|---|---|---|---|",
    ]
    for road in ("at once", "stream"):
        r = n[road]
        each = 1e3 * r["processor"] / n["count"]
        lines.append(f"| {road} | {r['wall']:.1f} | {each:.1f} | {r['main']:.0f} | {r['workers']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
