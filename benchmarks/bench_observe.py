"""The road from a file to a network's input: how fast is every step, and how much memory does it take?

    python -m benchmarks.bench_observe --output=workdirs/bench_observe                40 minutes
    python -m benchmarks.bench_observe --output=workdirs/bench_observe --count=256    two minutes, for CI

Spectra are LAMOST's (`surveys/lamost_lrs`: some 3,905 pixels, logarithmic, vacuum) with more noise and random
velocities, and for degrading `lte_grid.npz` at R = 30,000 with 4,000 pixels to R = 11,000. A few hundred are made and
used again and again. The arms have about as many pixels. Every step runs in a process of its own with one thread:
rates are spectra per second of CPU time, memory is what the peak of the process grows by, less the outputs that are
kept. Writes observe.md and the numbers as JSON.
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits

from benchmarks.bench_cleaning import mock, observed, rays
from remap import io, surveys
from remap.io import find_data
from remap.predict.observing import read_and_observe
from remap.preprocess import (
    CleaningSettings,
    LineSpread,
    Preprocessing,
    Templates,
    VelocitySettings,
    degrade_and_resample,
    find_stationary,
    make_templates,
    mask_bad,
    mask_cosmic_rays,
    mask_stationary,
    measure_velocities,
    needed_range,
    observed_on_grid,
)
from remap.preprocess.description import PREPROCESSING_VERSION
from remap.preprocess.joining import join
from remap.preprocess.observe import observe_files
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import Observed, concatenate
from remap.preprocess.stacking import stack
from remap.sampling.batches import normalize_in_chunks
from remap.spectra import SPEED_OF_LIGHT, Spectra, make_spectra

NEEDED = 200  # spectra per second and core
AT_A_TIME = 256  # files, as the predictor has them
PIXEL = float(np.log(10) * 1e-4 * SPEED_OF_LIGHT)  # km/s, of LAMOST
LAMOST = {"A": (3850.0, 5800.0, 1.0), "B": (5800.0, 8800.0, 1.5)}
SHARP = {"A": (4870.0, 5270.0, 0.1)}
CLEANING = CleaningSettings()
Chunks = Iterator[list[Spectra]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the table and the numbers")
    parser.add_argument("--count", type=int, default=10_000, help="spectra for every step")
    parser.add_argument(
        "--steps", nargs="+", default=list(STEPS), choices=list(STEPS), help="some of the steps"
    )
    parser.add_argument("--step", help="for the processes of the steps")
    parser.add_argument("--spectra", type=Path, help="for these, too")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments.spectra, arguments.count)))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), min(AT_A_TIME, arguments.count))
        for name in arguments.steps:
            numbers[name] = in_process(name, folder, arguments)
            print(f"{name}: {numbers[name]}", file=sys.stderr)
    text = table(numbers, arguments.count)
    (arguments.output / "observe.md").write_text(text)
    (arguments.output / "observe.json").write_text(json.dumps(numbers, indent=1))
    print(text)


def in_process(name: str, folder: str, arguments: argparse.Namespace) -> dict:
    """What a step gives in a process of its own, whose peak of memory is not another step's."""
    alone = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    alone["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    more = [
        f"--output={arguments.output}",
        f"--count={arguments.count}",
        f"--step={name}",
        f"--spectra={folder}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_observe", *more],
        env={**os.environ, **alone},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(numbers: dict[str, dict], count: int) -> str:
    lines = [
        f"{count:,} spectra; a rate under {NEEDED} is marked *",
        "",
        "| step | spectra per second of CPU time | growth of memory less outputs [MB] | outputs [MB] |",
        "|---|---|---|---|",
    ]
    for name, n in numbers.items():
        mark = " *" if n["rate"] < NEEDED else ""
        lines.append(
            f"| {name} | {n['rate']:.0f}{mark} | {n['memory'] - n['outputs']:.0f} | {n['outputs']:.0f} |"
        )
    return "\n".join(lines) + "\n"


# Spectra


def make_files(folder: Path, count: int) -> None:
    """Copies of LAMOST's files, moved by whole pixels, with more noise; and spectra at R = 30,000."""
    rng = np.random.default_rng(0)
    files = io.list_files(find_data("surveys/lamost_lrs/spectra"), "*.fits")
    for i in range(count):
        with fits.open(files[i % len(files)], memmap=False) as hdus:
            moved = int(rng.integers(-4, 5))
            data = np.roll(hdus[0].data, moved, axis=1)
            noise = rng.standard_normal(data.shape[1]) / np.sqrt(np.where(data[1] > 0, data[1], np.inf))
            data[0] += noise.astype(np.float32)
            data[1] /= 2
            hdus[0].data = data
            hdus[0].header["Z"] = hdus[0].header["Z"] + moved * PIXEL / SPEED_OF_LIGHT
            hdus.writeto(folder / f"spec-{i:05d}.fits")
    with np.load(find_data("lte_grid.npz")) as file:
        rows = rng.permutation(len(file["flux"]))[:count]
        nodes = make_spectra(file["wave_vac"], file["flux"][rows].astype(np.float64), medium="vacuum")
    wave = np.exp(np.linspace(np.log(4855.0), np.log(5290.0), 4000))
    spectra = degrade_and_resample(nodes, wave, medium="vacuum", lsf=LineSpread(resolution=30_000.0))
    flux = spectra.flux * (1 + 0.01 * rng.standard_normal(spectra.flux.shape))
    valid = spectra.valid & (rng.random(flux.shape) > 1e-3)
    np.savez(folder / "sharp.npz", wave=wave, flux=flux, valid=valid, ivar=1e4 / spectra.flux**2)


@functools.cache
def lamost() -> Preprocessing:
    """Arms over all of LAMOST's range, with about its pixels."""
    return described(LAMOST, (1600.0, 1800.0, 2000.0))


@functools.cache
def sharp() -> Preprocessing:
    return described(SHARP, (10_000.0, 11_000.0, 12_000.0))


def described(arms: dict[str, tuple[float, float, float]], resolutions: tuple[float, ...]) -> Preprocessing:
    return Preprocessing(
        arms=arms,
        medium="air",
        spreads=("resolution", resolutions),
        continuum={"name": "algorithm1"},
        labels=(),
        version=PREPROCESSING_VERSION,
    )


def paths(folder: Path, count: int) -> Iterator[list[Path]]:
    """Chunks of files, `count` in all."""
    files = io.list_files(folder, "*.fits")
    for start in range(0, count, AT_A_TIME):
        yield [files[i % len(files)] for i in range(start, min(start + AT_A_TIME, count))]


def read(files: Sequence[Path]) -> list[tuple[Spectra, ...]]:
    within = needed_range(lamost(), velocity=VelocitySettings().limit)
    source = dict(surveys.get("lamost_lrs").source)
    return [io.read_segments(file, source=source, within=within) for file in files]


def one_by_one(folder: Path, count: int) -> Chunks:
    """Chunks of spectra as they come from files."""
    for files in paths(folder, count):
        yield [segments[0] for segments in read(files)]


def together(folder: Path, count: int) -> Chunks:
    """The same as one table each."""
    for spectra in one_by_one(folder, count):
        yield [as_table(spectra)]


def as_table(spectra: Sequence[Spectra]) -> Spectra:
    wave = min((s.wave for s in spectra), key=len)
    cut = [s.pixels(slice(*np.searchsorted(s.wave, wave[[0, -1]] * [1 - 1e-6, 1 + 1e-6]))) for s in spectra]
    stacked = {k: np.concatenate([getattr(s, k) for s in cut]) for k in ("flux", "valid", "ivar")}
    return make_spectra(
        wave,
        stacked["flux"],
        medium=cut[0].medium,
        valid=stacked["valid"],
        ivar=stacked["ivar"],
        fwhm=cut[0].fwhm,
        facts={"rv": np.concatenate([s.fact("rv") for s in cut])},
    )


def at_high_resolution(folder: Path, count: int) -> Chunks:
    with np.load(folder / "sharp.npz") as file:
        made = make_spectra(
            file["wave"],
            file["flux"],
            medium="vacuum",
            valid=file["valid"],
            ivar=file["ivar"],
            fwhm=file["wave"] / 30_000,
        )
    for start in range(0, count, AT_A_TIME):
        yield [made.rows(np.arange(start, min(start + AT_A_TIME, count)) % len(made))]


def with_rays(folder: Path, count: int) -> Chunks:
    """R = 11,000 in 0.1 Å pixels, with a cosmic ray in every 500 pixels."""
    flux, sigma, _, rng = mock(11_000, min(count, AT_A_TIME), 4)
    flux, sigma = flux[:, :4000], sigma[:, :4000]
    flux = flux + sigma * (rng.standard_normal(flux.shape) + rays(flux.shape, rng)[0])
    spectra = observed(11_000, flux, sigma)
    for start in range(0, count, AT_A_TIME):
        yield [spectra.rows(np.arange(start, min(start + AT_A_TIME, count)) % len(spectra))]


def templates(folder: Path) -> Templates:
    """Of stars themselves: the rate does not care how good they are."""
    spectra = next(together(folder, AT_A_TIME))[0]
    speeds = spectra.fact("rv")
    flux, valid, wave = {}, {}, {}
    for arm in LAMOST:
        rest = [
            observed_on_grid(s, lamost(), arm, velocity=v)
            for s, v in zip(singles(spectra), speeds, strict=True)
        ]
        good = np.stack([s.valid[0] for s in rest])
        flux[arm] = np.stack([s.flux[0] for s in rest])
        valid[arm], wave[arm] = good.mean(axis=0) > 0.5, lamost().wave(arm)
    labels = np.random.default_rng(1).random((len(spectra), 3))
    return make_templates(flux, valid, wave, labels, lamost().medium)


def singles(spectra: Spectra) -> list[Spectra]:
    return [spectra.rows(slice(i, i + 1)) for i in range(len(spectra))]


# Steps


class Clock:
    """CPU time of the parts that count, and the growth of the peak of memory from when it is made."""

    def __init__(self) -> None:
        self.seconds, self.before = 0.0, peak_memory()

    def time(self, job: Callable, *args: object, **more: object) -> object:
        start = time.process_time()
        out = job(*args, **more)
        self.seconds += time.process_time() - start
        return out

    def result(self, count: int, outputs: float = 0.0) -> dict:
        """Spectra per second, and MB."""
        return {"rate": count / self.seconds, "memory": peak_memory() - self.before, "outputs": outputs}


def peak_memory() -> float:
    """MB; NaN where the system does not tell it."""
    try:  # getrusage would count what the parent had, too
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def each(
    source: Callable[[Path, int], Chunks], make: Callable[[Path], Callable[[Spectra], object]]
) -> Callable:
    """A step that takes one `Spectra` at a time; what it needs beforehand is not timed."""

    def run(folder: Path, count: int) -> dict:
        job = make(folder)
        for spectra in next(source(folder, 8)):
            job(spectra)
        clock = Clock()
        for chunk in source(folder, count):
            for spectra in chunk:
                clock.time(job, spectra)
        return clock.result(count)

    return run


def reading(folder: Path, count: int) -> dict:
    read(next(paths(folder, 8)))
    clock = Clock()
    for files in paths(folder, count):
        clock.time(read, files)
    return clock.result(count)


def stationary(folder: Path, count: int) -> dict:
    """As a survey does it: found once from all spectra, which are all in memory, then masked in each."""
    clock = Clock()
    spectra = [s for chunk in one_by_one(folder, min(count, 1000)) for s in chunk]
    outputs = sum(s.flux.nbytes + s.valid.nbytes + s.ivar.nbytes for s in spectra) / 2**20
    found = clock.time(find_stationary, spectra, settings=CLEANING)
    for s in spectra:
        clock.time(mask_stationary, s, found)
    return clock.result(len(spectra), outputs)


def on_arms(preprocessing: Preprocessing, velocity: Callable[[Spectra], float]) -> Callable:
    def job(spectra: Spectra) -> None:
        for arm in preprocessing.arms:
            observed_on_grid(spectra, preprocessing, arm, velocity=velocity(spectra))

    return job


def row_by_row(preprocessing: Preprocessing) -> Callable:
    """Every row of a table with a velocity of its own."""
    rng = np.random.default_rng(2)

    def job(spectra: Spectra) -> None:
        for one in singles(spectra):
            on_arms(preprocessing, lambda _: rng.uniform(-200, 200))(one)

    return job


def placed(folder: Path, count: int) -> Iterator[Observed]:
    """Spectra on the arms' grids, with nothing else done."""
    plain = ObserveSettings(check=False, bad_pixels=False)
    for files in paths(folder, count):
        found = observe_files(read(files), lamost(), settings=plain, velocities=None, templates=None)
        yield concatenate(found)


def measuring(folder: Path, count: int) -> dict:
    library = templates(folder)
    clock = Clock()
    for found in placed(folder, count):
        arms = {arm: (on.flux, on.valid, on.ivar) for arm, on in found.arms.items()}
        clock.time(measure_velocities, arms, library)
    return clock.result(count)


def stacking(folder: Path, count: int) -> dict:
    """Pairs as one `Spectra` each; rates are of spectra, not of pairs."""
    clock = Clock()
    for found in placed(folder, count):
        for arm, on in found.arms.items():
            whole = make_spectra(lamost().wave(arm), on.flux, medium="air", valid=on.valid, ivar=on.ivar)
            pairs = [whole.rows(slice(i, i + 2)) for i in range(0, len(whole), 2)]
            clock.time(lambda pairs: [stack(pair) for pair in pairs], pairs)
    return clock.result(count)


def joining(folder: Path, count: int) -> dict:
    clock = Clock()
    for found in placed(folder, count):
        ids = tuple(f"star {i // 2}" for i in range(len(found)))
        away = np.full(len(found), np.nan)
        clock.time(join, dataclasses.replace(found, star_ids=ids, ra=away, dec=away), lamost())
    return clock.result(count)


def whole(settings: ObserveSettings) -> Callable[[Path, int], dict]:
    """From the files on, as the predictor does it."""

    def run(folder: Path, count: int) -> dict:
        library, source = templates(folder), dict(surveys.get("lamost_lrs").source)

        def some(files: list[Path]) -> list[Observed]:
            return read_and_observe(
                files, lamost(), source=source, root=None, settings=settings, templates=library
            )

        some(next(paths(folder, 8)))
        clock = Clock()
        parts: list[Observed] = []
        for files in paths(folder, count):
            parts += clock.time(some, files)
        outputs = sum(x.nbytes for p in parts for on in p.arms.values() for x in on) / 2**20
        return clock.result(count, outputs)

    return run


def normalising(folder: Path, count: int) -> dict:
    normalize = {arm: lamost().normalizer(arm) for arm in LAMOST}

    def some(found: Observed) -> None:
        for arm, on in found.arms.items():
            normalize_in_chunks(normalize[arm], on.flux, on.valid).block_until_ready()

    some(next(placed(folder, 8)))
    clock = Clock()
    for found in placed(folder, count):
        clock.time(some, found)
    return clock.result(count)


STEPS: dict[str, Callable[[Path, int], dict]] = {
    "reading (`lamost_lrs`)": reading,
    "`mask_bad`, one by one": each(one_by_one, lambda _: lambda s: mask_bad(s, CLEANING)),
    "`mask_bad`, 256 together": each(together, lambda _: lambda s: mask_bad(s, CLEANING)),
    "`mask_cosmic_rays`, one by one": each(one_by_one, lambda _: lambda s: mask_cosmic_rays(s, CLEANING)),
    "`mask_cosmic_rays`, 256 together": each(together, lambda _: lambda s: mask_cosmic_rays(s, CLEANING)),
    "`mask_cosmic_rays`, R = 11,000, 256 together": each(
        with_rays, lambda _: lambda s: mask_cosmic_rays(s, CLEANING)
    ),
    "`find_stationary`, `mask_stationary`": stationary,
    "`observed_on_grid`, at rest, one by one": each(one_by_one, lambda _: on_arms(lamost(), lambda _: 0.0)),
    "`observed_on_grid`, at rest, 256 together": each(together, lambda _: on_arms(lamost(), lambda _: 0.0)),
    "`observed_on_grid`, own velocities": each(
        one_by_one, lambda _: on_arms(lamost(), lambda s: float(s.fact("rv")[0]))
    ),
    "`observed_on_grid`, from R = 30,000, 256 together": each(
        at_high_resolution, lambda _: on_arms(sharp(), lambda _: 0.0)
    ),
    "`observed_on_grid`, from R = 30,000, own velocities": each(
        at_high_resolution, lambda _: row_by_row(sharp())
    ),
    "`measure_velocities`": measuring,
    "`stack` of pairs": stacking,
    "`join` of pairs": joining,
    "normaliser (input batch)": normalising,
    "all from the files on, at rest": whole(ObserveSettings(check=False, cosmic_rays=False)),
    "all, velocities from the files": whole(ObserveSettings(velocity="file", check=False, cosmic_rays=False)),
    "all, velocities measured": whole(ObserveSettings(velocity="measure", cosmic_rays=False)),
    "all, velocities measured, and cosmic rays": whole(ObserveSettings(velocity="measure", cosmic_rays=True)),
}


if __name__ == "__main__":
    main()
