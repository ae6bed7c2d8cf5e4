"""Kills, flipped bits and lost files: do training and streaming come back bit for bit, and is damage noticed?

    python -m benchmarks.bench_faults --output=workdirs/bench_faults [--kills=50] [--flips=200]

Kills: a small training in a process of its own gets SIGKILL at a random time and is started again, until so many
kills have been seen; every run that ends so must have the network and the records of one that was left alone, byte
for byte, though records are deleted after some of the kills.
Streams: the same of a prediction of a few hundred spectra in FITS files in a stream, with its merging; one in five
children has a worker process, and of some a part is cut short after the kill. The merged catalogue must be that of a
prediction at once, byte for byte (all of one date), and nothing of a killed run may stay.
Flips: one random bit of a finished network, or of the newest of two checkpoints, is turned, each time on a fresh
copy. It must be refused with the name of its folder (a run then goes on from the older checkpoint) or change nothing.
Cost: what the hashes take for a network of ten million parameters.
Exit status 1 if anything came out otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from astropy.io import fits

from benchmarks import bench_stream
from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings, init_variables, make_model
from remap.predict import stream
from remap.predict.predictor import Predictor
from remap.predict.shards import merge
from remap.preprocess.observe_settings import ObserveSettings
from remap.sampling.augment import Batch
from remap.sampling.batches import source_tree
from remap.store import checkpoint
from remap.store.atomic import DamagedError, write_json, write_text
from remap.train.loop import FitSettings, Run, fit
from remap.train.objectives import NetworkObjective, Task

logger = logging.getLogger("remap")

OUTPUT = flags.DEFINE_string(
    "output", "workdirs/bench_faults", "Folder of the table, and of the runs meanwhile."
)
KILLS = flags.DEFINE_integer("kills", 50, "SIGKILLs to see, of trainings and of streams each.")
SPECTRA = flags.DEFINE_integer("spectra", 320, "Of a stream.")
FLIPS = flags.DEFINE_integer("flips", 200, "Flipped bits, of a network and of a checkpoint each.")
SEED = flags.DEFINE_integer("seed", 0, "Of times and places.")

DATE, CATALOGUE = "2026-01-01T00:00:00+00:00", "catalogue.fits"
PIXELS, STARS, BINS = 64, 8, 5
STEPS = 20  # per epoch
META = {"arm": "A", "stage": "pretrain", "config": {"seed": 0}}
SETTINGS = FitSettings(
    cycles=3, epochs_per_cycle=4, rate_high=1e-2, rate_low=1e-4, checkpoint_epochs=1, keep=2, stats_batches=4
)


@source_tree
class Lines:
    """Lines whose depth is the class, in fresh noise; `scale` is 1."""

    scale: jax.Array

    def draw(self, key: jax.Array, step: jax.Array) -> Batch:
        """The batch of a step."""
        star_key, noise_key = jax.random.split(jax.random.fold_in(key, step))
        classes = jax.random.randint(star_key, (2, STARS), 0, BINS)
        flux = 1 - 0.1 * classes.mean(axis=0)[:, None] * (jnp.arange(PIXELS)[None] % 8 == 0)
        flux = self.scale * flux + 0.01 * jax.random.normal(noise_key, flux.shape)
        return Batch(flux, jnp.ones(flux.shape, bool), jax.nn.one_hot(classes, BINS), classes)


def train(folder: Path) -> None:
    """The training, begun or gone on with, and its finished network."""
    model = make_model(ModelSettings(stem_filters=4, filters=(4, 8), embedding=4), np.ones((2, BINS), bool))
    variables = init_variables(model, jax.random.key(1), PIXELS)
    loss = LossSettings(gamma=2.0, cost_weight=1.0, triplet_weight=0.001, margin=0.2, label_weights=())
    source = Lines(jnp.ones(()))
    task = Task(NetworkObjective(model, loss), variables["params"], variables["batch_stats"], source, None)
    run = Run(SETTINGS, STEPS, jax.random.key(0), folder, META, folder.name)
    found = fit(task, run.optimizer(), run)
    network = {"params": found.params, "batch_stats": found.model_state}
    checkpoint.save_final(folder / "final", network, META | {"step": run.total})


def write_spectra(folder: Path, count: int) -> None:
    """Small spectra in FITS files, one of them broken; and their catalogue, predicted at once."""
    own = bench_stream.predictor(small=True)
    wave, flux = bench_stream.template(own.preprocessing)
    (folder / "spectra").mkdir(parents=True)
    for i in range(count):
        name = f"made-{i:05d}.fits"
        one = bench_stream.spectrum(wave, flux, name)
        columns = [
            fits.Column("wavelength", "D", unit="Angstrom", array=wave),
            fits.Column("flux", "D", array=one.flux[0]),
            fits.Column("ivar", "D", array=one.ivar[0]),
        ]
        fits.BinTableHDU.from_columns(columns).writeto(folder / "spectra" / name)
    (folder / "spectra" / f"made-{count // 2:05d}.fits").write_text("no FITS")
    found = own.predict_files(_spectra(folder), settings=_at_rest(own), date=DATE)
    found.write(folder / CATALOGUE)


def _spectra(root: Path) -> list[Path]:
    return sorted((root / "spectra").iterdir())


def _at_rest(own: Predictor) -> ObserveSettings:
    return dataclasses.replace(own.observe_settings, velocity="rest", check=False)


def predict(folder: Path, workers: int) -> None:
    """The stream, begun or gone on with, and its merged catalogue."""
    own = bench_stream.predictor(small=True)
    make, stream.make_manifest = stream.make_manifest, lambda *args: make(*args) | {"created": DATE}
    settings = stream.StreamSettings(shard=16, workers=workers)
    files = _spectra(folder.parent)
    stream.predict_stream(own, files, folder / "parts", settings=_at_rest(own), stream=settings)
    merge(folder / "parts", folder / CATALOGUE, overwrite=True)


def start(job: Callable[[Path], None], folder: Path) -> int:
    """The process number of a child that does a job: a fork, so that only compiling is paid for again.

    Nothing has been computed here when the first child is made, and the children that follow are made before
    anything is.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        job(folder)
        status = 0
    except BaseException:
        logger.exception("%s: failed", folder)
    finally:
        os._exit(status)


def finish(pid: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_often(root: Path, rng: np.random.Generator, kills: int) -> dict[str, Any]:
    """Runs that are killed again and again, with the records of some lost in between."""
    assert_done(finish(start(train, root / "whole")))
    began = time.monotonic()
    assert_done(finish(start(train, root / "again")))  # with the programs that the first has compiled
    duration = time.monotonic() - began
    seen, lost, runs, failed = 0, 0, [], []
    while seen < kills:
        folder = root / f"run_{len(runs)}"
        runs.append(folder)
        while True:
            status = killed(start(train, folder), rng.uniform(0, duration))
            if status == 0:
                break
            if status != -signal.SIGKILL:
                failed.append(f"{folder.name}: exit status {status} after {seen} kills")
                break
            seen += 1
            if seen >= kills:
                assert_done(finish(start(train, folder)))
                break
            if rng.random() < 0.1:
                (folder / "metrics.jsonl").unlink(missing_ok=True)
                lost += 1
        logger.info("%d kills, %d runs", seen, len(runs))
    return {"kills": seen, "runs": len(runs), "records lost": lost, "failed": failed, "seconds": duration}


def killed(pid: int, seconds: float) -> int:
    """How a child ended that gets SIGKILL after so long, unless it is done before."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(left, 0.02))
    os.kill(pid, signal.SIGKILL)
    return finish(pid)


def kill_streams(root: Path, rng: np.random.Generator, kills: int) -> dict[str, Any]:
    """Streams that are killed again and again, with a part of some cut short in between, until each is done."""
    assert_done(finish(start(lambda folder: write_spectra(folder, SPECTRA.value), root)))
    durations = []
    for name in ("whole", "again"):
        began = time.monotonic()
        assert_done(finish(start(lambda folder: predict(folder, 0), root / name)))
        durations.append(time.monotonic() - began)
    seen, cut, failed, folders = 0, 0, [], [root / "whole", root / "again"]
    while seen < kills:
        folder = root / f"run_{len(folders)}"
        folders.append(folder)
        while True:
            workers = int(rng.random() < 0.2)
            seconds = rng.uniform(0, durations[1]) if seen < kills else 1e9
            pid = start(lambda folder, workers=workers: predict(folder, workers), folder)
            status = killed(pid, seconds) if seen < kills else finish(pid)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                failed.append(f"{folder.name}: exit status {status} after {seen} kills")
                break
            seen += 1
            parts = sorted(folder.glob("parts/part-*.fits"))
            if parts and rng.random() < 0.1:
                part = parts[rng.integers(len(parts))]
                part.write_bytes(part.read_bytes()[: -int(rng.integers(1, 5000))])
                cut += 1
        logger.info("%d kills, %d streams", seen, len(folders) - 2)
    expected = (root / CATALOGUE).read_bytes()
    different = [f.name for f in folders if (f / CATALOGUE).read_bytes() != expected]
    left = [str(p) for f in folders for p in f.rglob("*") if p.suffix == ".tmp" or p.name == "run.lock"]
    return {
        "kills": seen,
        "runs": len(folders) - 2,
        "parts cut": cut,
        "failed": failed,
        "differences": different + left,
        "seconds": durations[1],
    }


def assert_done(status: int) -> None:
    """Ends the benchmark where a run that must end does not."""
    if status:
        raise SystemExit(f"a run that nobody killed ended with {status}")


def differences(root: Path, count: int) -> list[str]:
    """Runs that ended otherwise than the one that was left alone."""
    expected = checkpoint.array_hash(checkpoint.load_final(root / "whole" / "final")[0])
    text = (root / "whole" / "metrics.jsonl").read_bytes()
    out = []
    for folder in [root / f"run_{i}" for i in range(count)]:
        if checkpoint.array_hash(checkpoint.load_final(folder / "final")[0]) != expected:
            out.append(f"{folder.name}: another network")
        if (folder / "metrics.jsonl").read_bytes() != text:
            out.append(f"{folder.name}: other records")
        if rest := [str(p) for p in folder.rglob("*") if "tmp" in p.name or p.name == "run.lock"]:
            out.append(f"{folder.name}: left {rest}")
    return out


def turn_bit(folder: Path, rng: np.random.Generator) -> None:
    """One bit of any file below a folder, each as likely as the next."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = np.array([p.stat().st_size for p in files])
    path = files[rng.choice(len(files), p=sizes / sizes.sum())]
    content = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


def flip_network(root: Path, rng: np.random.Generator, count: int) -> dict[str, int]:
    """What becomes of a finished network of which one bit is turned."""
    whole, spoilt = root / "whole" / "final", root / "spoilt"
    variables, meta = checkpoint.load_final(whole)
    expected = checkpoint.array_hash(variables)
    out = {"refused": 0, "unchanged": 0, "changed": 0, "unnamed": 0}
    for _ in range(count):
        shutil.copytree(whole, spoilt)
        turn_bit(spoilt, rng)
        try:
            found = checkpoint.load_final(spoilt)
        except DamagedError as error:
            out["refused" if str(spoilt) in str(error) else "unnamed"] += 1
        except Exception as error:
            logger.info("not refused as damaged: %s", error)
            out["unnamed"] += 1
        else:
            out[
                "unchanged" if (checkpoint.array_hash(found[0]), found[1]) == (expected, meta) else "changed"
            ] += 1
        shutil.rmtree(spoilt)
    return out


def flip_checkpoint(root: Path, rng: np.random.Generator, count: int) -> dict[str, int]:
    """What becomes of a run, of the newer of whose two checkpoints one bit is turned."""
    state = jax.tree.map(jnp.asarray, checkpoint.load_final(root / "whole" / "final")[0])
    folder, spoilt = root / "steps", root / "spoilt"
    states = {1: state, 2: jax.tree.map(lambda x: x + 1, state)}
    with checkpoint.open_manager(folder, keep=2) as manager:
        for step, each in states.items():
            checkpoint.save_state(manager, step, each, META, step)
    expected = {step: checkpoint.array_hash(each) for step, each in states.items()}
    out = {"fell back": 0, "unchanged": 0, "changed": 0, "ended": 0}
    for _ in range(count):
        shutil.copytree(folder, spoilt)
        turn_bit(spoilt / "2", rng)
        try:
            with checkpoint.open_manager(spoilt, keep=2) as manager:
                found, partial = checkpoint.restore_state(manager, state, META)
        except Exception as error:
            logger.info("the run ended: %s", error)
            out["ended"] += 1
        else:
            whole = partial in expected and checkpoint.array_hash(found) == expected[partial]
            out[("fell back" if partial == 1 else "unchanged") if whole else "changed"] += 1
        shutil.rmtree(spoilt)
    return out


def cost(parameters: int = 10_000_000) -> dict[str, float]:
    """Seconds for the hash and the look for NaN of a network, the best of five."""
    tree = {"params": np.random.default_rng(0).standard_normal(parameters).astype(np.float32)}
    out = {}
    for name, call in (("hash", checkpoint.array_hash), ("not finite", checkpoint.not_finite)):
        times = []
        for _ in range(5):
            began = time.process_time()
            call(tree)
            times.append(time.process_time() - began)
        out[name] = min(times)
    return out


def main(_: list[str]) -> None:
    """All of it, as a table."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logger.setLevel(logging.ERROR)
    root, rng = Path(OUTPUT.value).absolute(), np.random.default_rng(SEED.value)
    runs = root / "runs"
    for old in (runs, root / "streams"):
        shutil.rmtree(old, ignore_errors=True)
    runs.mkdir(parents=True)
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    found = kill_often(runs, rng, KILLS.value)
    # Before anything is computed here, since the children are forks.
    streams = kill_streams(root / "streams", np.random.default_rng([SEED.value, 1]), KILLS.value)
    results: dict[str, Any] = {"kills": found | {"differences": differences(runs, found["runs"])}}
    results["kills of streams"] = streams
    results["flipped bits, network"] = flip_network(runs, rng, FLIPS.value)
    results["flipped bits, checkpoint"] = flip_checkpoint(runs, rng, FLIPS.value)
    results["processor seconds, 10 million parameters"] = cost()
    lines = ["| what | outcome |", "|---|---|"]
    lines += [
        f"| {name} | {', '.join(f'{k} {v:.3g}' if isinstance(v, float) else f'{k} {v}' for k, v in one.items())} |"
        for name, one in results.items()
    ]
    print("\n".join(lines))
    write_text(root / "faults.md", "\n".join(lines) + "\n")
    write_json(root / "faults.json", json.loads(json.dumps(results)))
    shutil.rmtree(runs)
    shutil.rmtree(root / "streams")
    bad = [
        what
        for k in ("kills", "kills of streams")
        for n in ("failed", "differences")
        for what in results[k][n]
    ]
    wrong = ("changed", "unnamed", "ended")
    if bad or any(results[k].get(w) for k in results if k.startswith("flipped") for w in wrong):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
