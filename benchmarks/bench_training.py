"""How fast are training and prediction on CPU beside an equal PyTorch network, and beside what the machine can do?

    pip install torch
    python -m benchmarks.bench_training --output=workdirs/bench_training [--threads=1,2] [--configs=miles,marvels]

PyTorch is needed here alone. `benchmarks/equal_network.py` has the same architecture, losses and optimiser. It is
given our parameters and must agree in outputs, loss and gradients (without dropout, whose random numbers differ)
before anything is timed. Sizes are those of the first arm of a config: 472 pixels in batches of 32
(`configs/miles.py`) and 4,300 in batches of 128 (`configs/marvels.py`); prediction has the configs' 256. Spectra and
library are made up.

One process for every number of threads, held to as many processors. All pieces are run in turn, again and again, so
that what else the machine does meets all alike, with a large product of matrices and a pass through a large array
among them. Prints, as Markdown, medians; "times as fast" is the median of the ratios within a round. "Of the roof" is
the time that the least work (operations of the convolutions, numbers that every layer must read and write) would take
at the full speed of these two, over the time taken.
"""

import dataclasses
import importlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from remap.config import record
from remap.continuum.normalizers import get_normalizer
from remap.labels import bin_mask, padded_edges
from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings, init_variables, make_model, model_settings
from remap.predict.ensemble import member_pmf, normalize
from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.sampling.augment import AugmentSettings, Batch
from remap.sampling.batches import FinishedSource, LibrarySource
from remap.sampling.sources import Library, find_cells
from remap.train.loop import draw_batch, train_step
from remap.train.objectives import NetworkObjective
from remap.train.optim import cycle_optimizer
from remap.train.state import init_state

OUTPUT = flags.DEFINE_string("output", None, "Folder for training.md and training.json.")
THREADS = flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads.")
CONFIGS = flags.DEFINE_list("configs", ["miles", "marvels"], "Configs whose sizes and settings are taken.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Times that each piece is timed.")
SHORT = flags.DEFINE_boolean(  # other benchmarks have one, too, and tests import several
    "short", False, "Small batches and two rounds: proves nothing.", allow_override=True
)

NEEDS_TORCH = "bench_training compares with PyTorch and found none: pip install torch"
REST = 0.02  # s before a piece is timed, in which the threads of the one before go to sleep
MATRIX, COPIED = 2048, 2**25  # rows and columns of the matrices, numbers of the array


class Sizes(NamedTuple):
    """What the pieces are made for."""

    preprocessing: Preprocessing
    model: ModelSettings
    loss: LossSettings
    augment: AugmentSettings
    interpolate: bool
    trained: int  # spectra in a batch of training
    predicted: int  # of prediction

    @property
    def wave(self) -> np.ndarray:
        """The grid of the first arm [Å]."""
        return self.preprocessing.wave(next(iter(self.preprocessing.arms)))

    @property
    def mask(self) -> np.ndarray:
        """bool[L, K], the real bins."""
        return bin_mask(self.preprocessing.labels)


def sizes_of(name: str, *, short: bool = False) -> Sizes:
    """Those of a config; in short, batches of 8, and a normaliser that compiles quickly."""
    config = importlib.import_module(f"configs.{name}").get_config()
    if short:
        config.continuum.update({"bins": (2, 3), "degree": 1})
    trained, predicted = (8, 8) if short else (config.pretrain.batch_size, config.predict.batch_size)
    return Sizes(
        make_preprocessing(config),
        model_settings(config.model),
        record(LossSettings, config.loss, "loss"),
        record(AugmentSettings, config.augment, "augment"),
        config.library.interpolate,
        trained,
        predicted,
    )


def spectra(pixels: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[S, N] and bool[S, N]: forty lines of random depths, 1 % noise; no pixel is masked."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, pixels, 40)
    lines = np.exp(-0.5 * ((np.arange(pixels) - centres[:, None]) / (0.003 * pixels)) ** 2)
    flux = np.exp(-rng.uniform(0, 0.8, (count, 40)) @ lines)
    return (flux + 0.01 * rng.standard_normal(flux.shape)).astype(np.float32), np.ones(flux.shape, bool)


def library(sizes: Sizes) -> Library:
    """Made-up spectra at 27 nodes around the middle of the bins, one for each line spread."""
    edges = padded_edges(sizes.preprocessing.labels)
    middle, step = edges.mean(axis=1), 0.1 * (edges[:, -1] - edges[:, 0])
    grid = itertools.product(*[(m - s, m, m + s) for m, s in zip(middle, step, strict=True)])
    labels = np.array(list(grid), np.float32)
    spreads = len(sizes.preprocessing.spreads[1])
    flux, _ = spectra(len(sizes.wave), len(labels) * spreads)
    cells = (
        find_cells(labels, [b.name for b in sizes.preprocessing.labels])
        if sizes.interpolate
        else np.arange(len(labels))[:, None]
    )
    return Library(
        jnp.asarray(np.log(np.maximum(flux, 0.05)).reshape(spreads, len(labels), -1)),
        jnp.ones(len(sizes.wave), bool),
        jnp.asarray(labels),
        jnp.asarray(step, jnp.float32),
        jnp.asarray(cells, jnp.int32),
    )


def work(settings: ModelSettings, pixels: int) -> tuple[float, float]:
    """What a pass forward of one spectrum takes at least: operations of the convolutions, and bytes.

    Every convolution reads its input and writes its output once, and so does every activation.
    """
    length = -(-pixels // settings.stem_stride)
    flops = 2.0 * length * settings.stem_kernel * 2 * settings.stem_filters
    before, channels = length * settings.stem_filters, settings.stem_filters
    numbers = 2 * pixels + before + 2 * before
    for filters in settings.filters:
        project = filters != channels
        length = -(-length // 2) if project else length
        one = length * filters
        flops += 2.0 * one * (settings.kernel * (channels + filters) + project * channels)
        numbers += (
            (before + one) + 2 * one + 2 * one + 2 * one
        )  # convolution, activation, again, with the input:
        numbers += before + 2 * one if project else one  # through a convolution, or as it is
        before, channels = one, filters
    return flops, 4.0 * numbers


class Piece(NamedTuple):
    """Something to time."""

    run: Callable[[], Any]  # waits for what it gives
    flops: float = 0.0  # that it takes at least,
    bytes: float = 0.0  # and numbers that it reads and writes, at least
    beside: str = ""  # the piece whose time is divided by its own


def ours(sizes: Sizes, variables: Any, batch: Batch) -> dict[str, Piece]:
    """The pieces of this package."""
    preprocessing = sizes.preprocessing
    arm = next(iter(preprocessing.arms))
    pixels = len(sizes.wave)
    model = make_model(sizes.model, sizes.mask)
    source = _source(sizes)
    key, zero = jax.random.key(0), jnp.zeros((), jnp.int32)
    flux, valid = map(jnp.asarray, spectra(pixels, sizes.predicted))
    own = {
        "method": get_normalizer(preprocessing.continuum["name"]),
        "settings": preprocessing.continuum_settings(arm),
    }
    optimizer = cycle_optimizer(
        ((".*", 1.0),), peak=1e-3, end=1e-5, cycles=1, steps_per_cycle=10000, clip_norm=1.0
    )
    objective = NetworkObjective(model, sizes.loss)
    first = jax.tree.map(jnp.array, variables)
    state = [init_state(first["params"], first["batch_stats"], optimizer)]

    def train() -> Any:
        state[0], terms = train_step(state[0], batch, key, objective=objective, optimizer=optimizer)
        return jax.block_until_ready(terms)

    flops, moved = work(sizes.model, pixels)
    through = 9.0 * pixels  # bytes of a spectrum and its mask, and of what comes out
    return {
        # Backwards there are two convolutions for one, and an activation reads twice what it reads forward.
        "training step": Piece(
            train, 3 * flops * sizes.trained, 3 * moved * sizes.trained, "training step, PyTorch"
        ),
        "training batch": Piece(
            lambda: jax.block_until_ready(draw_batch(source, key, zero)), 0.0, through * sizes.trained
        ),
        "prediction": Piece(
            lambda: jax.block_until_ready(member_pmf(variables, flux, valid, model=model)),
            flops * sizes.predicted,
            moved * sizes.predicted,
            "prediction, PyTorch",
        ),
        "normaliser": Piece(
            lambda: jax.block_until_ready(normalize(flux, valid, **own)[0]), 0.0, through * sizes.predicted
        ),
    }


def _source(sizes: Sizes) -> FinishedSource:
    preprocessing = sizes.preprocessing
    wave = jnp.asarray(sizes.wave, jnp.float32)
    drawn = LibrarySource(library(sizes), wave, sizes.trained, sizes.augment)
    edges = jnp.asarray(padded_edges(preprocessing.labels), jnp.float32)
    return FinishedSource(drawn, edges, preprocessing.normalizer(next(iter(preprocessing.arms))))


def theirs(sizes: Sizes, variables: Any, batch: Batch, threads: int) -> dict[str, Piece]:
    """The pieces of the network of PyTorch, which is given the variables."""
    from benchmarks import equal_network as equal

    equal.set_threads(threads)
    trained = equal.Training(sizes.model, sizes.loss, sizes.mask, variables, batch)
    flux, valid = spectra(len(sizes.wave), sizes.predicted)
    flops, moved = work(sizes.model, len(sizes.wave))
    return {
        "training step, PyTorch": Piece(trained.step, 3 * flops * sizes.trained, 3 * moved * sizes.trained),
        "prediction, PyTorch": Piece(
            equal.prediction(sizes.model, sizes.mask, variables, flux, valid),
            flops * sizes.predicted,
            moved * sizes.predicted,
        ),
    }


def machine(short: bool) -> dict[str, Piece]:
    """What the machine can do."""
    n, copied = (256, 2**20) if short else (MATRIX, COPIED)
    a, kept = jnp.ones((n, n)), [jnp.zeros(copied)]
    product = jax.jit(lambda a: a @ a)
    # In place: the kernel's work for memory that was never used before is not the memory's speed.
    add = jax.jit(lambda b: b + 1.0, donate_argnums=0)

    def through() -> None:
        kept[0] = jax.block_until_ready(add(kept[0]))

    return {
        "product of matrices": Piece(lambda: jax.block_until_ready(product(a)), 2.0 * n**3),
        "read and write": Piece(through, 0.0, 8.0 * copied),
    }


def start(sizes: Sizes) -> tuple[Any, Batch]:
    """Variables as at the start of a training, and a batch."""
    model = make_model(sizes.model, sizes.mask)
    variables = init_variables(model, jax.random.key(1), len(sizes.wave))
    return variables, draw_batch(_source(sizes), jax.random.key(0), jnp.zeros((), jnp.int32))


def differences(sizes: Sizes, variables: Any, batch: Batch) -> dict[str, float]:
    """How far PyTorch's network, given the same parameters and batch, is from ours, in training without dropout.

    Returns:
      The largest difference of logits over their largest value, that of the losses likewise, and of all gradients the
      norm of the difference over the norm.
    """
    from benchmarks import equal_network as equal

    settings = dataclasses.replace(sizes.model, dropout=0.0)
    model = make_model(settings, sizes.mask)
    objective = NetworkObjective(model, sizes.loss)

    @jax.jit
    def ours(params: Any) -> Any:
        def loss(params: Any) -> tuple[Any, Any]:
            terms, _ = objective.train(params, variables["batch_stats"], batch, jax.random.key(0))
            return terms.total, terms

        outputs, _ = model.apply(
            {**variables, "params": params},
            batch.flux,
            batch.valid,
            train=True,
            running=False,
            mutable=["batch_stats"],
        )
        return jax.grad(loss, has_aux=True)(params), outputs.logits

    (gradients, terms), logits = jax.tree.map(np.asarray, ours(variables["params"]))
    other = equal.Training(settings, sizes.loss, sizes.mask, variables, batch)
    theirs = other.look()
    real = np.isfinite(logits)
    apart = [
        (a - b).ravel() for a, b in zip(*map(jax.tree.leaves, (gradients, theirs.gradients)), strict=True)
    ]
    whole = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
    return {
        "logits": float(np.abs(logits - theirs.logits)[real].max() / np.abs(logits[real]).max()),
        "loss": float(abs(terms.total - theirs.loss) / abs(terms.total)),
        "gradients": float(np.linalg.norm(np.concatenate(apart)) / np.linalg.norm(whole)),
    }


# Of float32, summed in another order: sums of half a million numbers each, seven of them one after the other.
LIMITS = {"logits": 1e-3, "loss": 1e-4, "gradients": 5e-3}


def check_equal(found: dict[str, float]) -> None:
    """Raises ValueError if the networks do not agree to rounding: what was timed would not be the same."""
    if any(not found[name] < limit for name, limit in LIMITS.items()):
        raise ValueError(
            f"PyTorch's network is not ours: relative differences {found}, expected below {LIMITS}"
        )


def measure(sizes: Sizes, *, threads: int, rounds: int, short: bool) -> dict[str, Any]:
    """Times of all pieces [s], by the clock and of the processors, and how far the two networks differ."""
    variables, batch = start(sizes)
    apart = differences(sizes, variables, batch)
    check_equal(apart)
    pieces = ours(sizes, variables, batch) | theirs(sizes, variables, batch, threads) | machine(short)
    for piece in pieces.values():
        piece.run()
    wall: dict[str, list[float]] = {name: [] for name in pieces}
    processor: dict[str, list[float]] = {name: [] for name in pieces}
    for _ in range(rounds):
        for name, piece in pieces.items():
            time.sleep(REST)
            before, used = time.perf_counter(), time.process_time()
            piece.run()
            wall[name].append(time.perf_counter() - before)
            processor[name].append(time.process_time() - used)
    return {
        "pixels": len(sizes.wave),
        "batch": sizes.trained,
        "predicted": sizes.predicted,
        "threads": threads,
        "apart": apart,
        "pieces": {
            name: {
                "wall": wall[name],
                "processor": processor[name],
                "flops": piece.flops,
                "bytes": piece.bytes,
                "beside": piece.beside,
            }
            for name, piece in pieces.items()
        },
    }


def report(found: list[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    lines = [
        "| pixels | threads | piece | spectra | time, ms | processor time, ms | times as fast as PyTorch | GFLOP/s "
        "| GB/s | of the roof |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in found:
        pieces = r["pieces"]
        flops, moved = (
            r["pieces"][n][unit] / np.median(r["pieces"][n]["wall"])
            for n, unit in (("product of matrices", "flops"), ("read and write", "bytes"))
        )
        for name, p in pieces.items():
            wall, processor = np.median(p["wall"]), np.median(p["processor"])
            ratio = ""
            if p["beside"]:
                other = pieces[p["beside"]]
                by_clock, used = (
                    np.median(np.array(other[kind]) / np.array(p[kind])) for kind in ("wall", "processor")
                )
                ratio = f"{by_clock:.2f} (processor time {used:.2f})"
            spectra = "" if name in ("product of matrices", "read and write") else r["predicted"]
            spectra = r["batch"] if "training" in name else spectra
            # The time that the least work would take at full speed, over that taken.
            roof = (p["flops"] / flops + p["bytes"] / moved) / wall
            rate = [f"{p[unit] / wall / 1e9:.1f}" if p[unit] else "" for unit in ("flops", "bytes")]
            lines.append(
                f"| {r['pixels']} | {r['threads']} | {name} | {spectra} | {1e3 * wall:.1f} | {1e3 * processor:.1f} | "
                f"{ratio} | {rate[0]} | {rate[1]} | {roof:.2f} |"
            )
    lines += ["", "Differences of the two networks before training, relative:", ""]
    for r in {(r["pixels"]): r for r in found}.values():
        told = ", ".join(f"{name} {value:.1e}" for name, value in r["apart"].items())
        lines.append(f"- {r['pixels']} pixels: {told}")
    return "\n".join(lines) + "\n"


def answer(name: str, threads: int, rounds: int, short: bool) -> None:
    """A child: one config with one number of threads; writes what it found as a line of JSON."""
    # Before JAX starts its threads, one for each processor that it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    found = measure(sizes_of(name, short=short), threads=threads, rounds=rounds, short=short)
    print(json.dumps(found), flush=True)


def main(_: list[str]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(NEEDS_TORCH)
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for name, threads in itertools.product(CONFIGS.value, map(int, THREADS.value)):
        rounds = 2 if SHORT.value else ROUNDS.value
        code = f"from benchmarks.bench_training import answer; answer({name!r}, {threads}, {rounds}, {SHORT.value})"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    text = report(found)
    (output / "training.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / "training.md").write_text(text)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n\n{text}")


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    app.run(main)
