"""How much faster is a CPU taken for several devices, and does anything come out otherwise?

    python -m benchmarks.bench_devices --output=workdirs/bench_devices [--counts=1,2] [--pixels=472,4300]

One process for every number of devices, all alive throughout; each piece is run by one after the other, again and
again, so that what else the machine does meets all alike. The others sleep meanwhile. Prints, as Markdown, medians of
the time on the clock, the median of the ratios within a round, and the seconds of the first call, which compiles.
Pieces have the sizes of `configs/miles.py` and its network; the spectra are made up.
"""

import functools
import importlib
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

from remap import sharding
from remap.continuum.normalizers import get_normalizer
from remap.labels import bin_mask, label_bins, padded_edges
from remap.network.losses import LossSettings
from remap.network.resnet import init_variables, make_model, model_settings
from remap.predict.ensemble import mean_pmf, member_pmf, normalize
from remap.preprocess.description import PREPROCESSING_VERSION, Preprocessing
from remap.sampling.augment import AugmentSettings
from remap.sampling.batches import FinishedSource, StarSource, padded_rows
from remap.sampling.sources import Stars
from remap.train.loop import draw_batch, train_step
from remap.train.objectives import NetworkObjective
from remap.train.optim import cycle_optimizer
from remap.train.state import init_state

OUTPUT = flags.DEFINE_string("output", None, "Folder for devices.md and devices.json.")
COUNTS = flags.DEFINE_list(
    "counts", ["1", str(os.cpu_count() or 2)], "Numbers of devices, the first is compared with."
)
PIXELS = flags.DEFINE_list("pixels", ["472", "4300"], "Pixels of the spectra.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Times that each piece is timed.")
SPECTRA, MEMBERS, TRAINED = 256, 5, 32  # in a batch of prediction, networks of an arm, in a batch of training
PIECES = ("normaliser", "network", "prediction", "training batch", "training step")


class Piece(NamedTuple):
    """Something to time."""

    run: Callable[[], Any]  # gives arrays that are waited for
    checked: Callable[[Any], np.ndarray]  # of these, what other numbers of devices must agree with


def spectra(pixels: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[S, N] and bool[S, N]: lines at random depths on a slope, 1 % noise, some pixels masked."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, pixels)
    centres = np.linspace(-0.97, 0.97, 40)
    lines = np.exp(-0.5 * ((x - centres[:, None]) / 0.006) ** 2)
    flux = (1 + 0.3 * x) * (1 - rng.uniform(0, 0.6, (count, len(centres))) @ lines)
    flux *= 1 + 0.01 * rng.standard_normal(flux.shape)
    return flux.astype(np.float32), rng.uniform(size=flux.shape) > 0.002


def pieces(pixels: int) -> dict[str, Piece]:
    """All of them, on the devices that there are."""
    config = importlib.import_module("configs.miles").get_config()
    step = 0.9 * 472 / pixels  # Å, of one range
    preprocessing = Preprocessing(
        {"A": (4850.0, 4850.0 + step * pixels, step)},
        "air",
        ("fwhm", (2.5,)),
        config.continuum.to_dict(),
        label_bins(config.label_names, config.labels),
        PREPROCESSING_VERSION,
    )
    flux, valid = spectra(pixels, SPECTRA)
    on = sharding.divide(flux), sharding.divide(valid)
    model = make_model(model_settings(config.model), bin_mask(preprocessing.labels))
    variables = [init_variables(model, jax.random.key(i), pixels) for i in range(MEMBERS)]
    members = sharding.replicate(variables)
    own = {
        "method": get_normalizer(config.continuum["name"]),
        "settings": preprocessing.continuum_settings("A"),
    }

    def predict() -> Any:
        found, _ = normalize(*on, **own)
        return mean_pmf(jnp.stack([member_pmf(v, found, on[1], model=model) for v in members]))

    edges = jnp.asarray(padded_edges(preprocessing.labels), jnp.float32)
    middle = np.asarray(edges).mean(axis=1)
    labels = (middle * np.random.default_rng(1).uniform(0.95, 1.05, (SPECTRA, len(middle)))).astype(
        np.float32
    )
    rows, count = padded_rows(np.ones(SPECTRA, bool))
    stars = Stars(*map(jnp.asarray, (flux, valid, labels, np.full_like(labels, 0.1))))
    wave = jnp.asarray(preprocessing.wave("A")[:pixels], jnp.float32)
    drawn = StarSource(stars, rows, count, wave, None, TRAINED, AugmentSettings())
    source = sharding.replicate(FinishedSource(drawn, edges, preprocessing.normalizer("A")))
    key, zero = jax.random.key(0), jnp.zeros((), jnp.int32)
    batch = draw_batch(source, key, zero)
    optimizer = cycle_optimizer(
        ((".*", 1.0),), peak=1e-3, end=1e-5, cycles=1, steps_per_cycle=1000, clip_norm=1.0
    )
    objective = NetworkObjective(model, LossSettings())
    first = sharding.replicate(init_state(variables[0]["params"], variables[0]["batch_stats"], optimizer))
    state = [first]

    def train() -> Any:
        state[0], terms = train_step(state[0], batch, key, objective=objective, optimizer=optimizer)
        return terms

    return {
        "normaliser": Piece(lambda: normalize(*on, **own), lambda out: sharding.to_host(out[0])),
        "network": Piece(lambda: member_pmf(members[0], *on, model=model), sharding.to_host),
        "prediction": Piece(predict, sharding.to_host),
        "training batch": Piece(
            lambda: draw_batch(source, key, zero), lambda out: sharding.to_host(out.flux)
        ),
        "training step": Piece(train, lambda terms: np.asarray(terms.total)),
    }


def answer(devices: int) -> None:
    """A child: reads "PIXELS PIECE" line by line, and writes what a run took and what came out."""
    sharding.start(devices=devices)
    made = functools.cache(pieces)
    for line in sys.stdin:
        pixels, name = line.rstrip("\n").split(" ", 1)
        piece = made(int(pixels))[name]
        wall, processor = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(piece.run())
        told = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        told["values"] = np.ravel(piece.checked(out))[:: max(1, pixels_of(out) // 50)][:2000].tolist()
        print(json.dumps(told), flush=True)


def pixels_of(out: Any) -> int:
    """Size of the largest array of a tree, thinned to some hundred values for the comparison."""
    return max(x.size for x in jax.tree.leaves(out)) // 40


def ask(child: subprocess.Popen, pixels: str, name: str) -> dict[str, Any]:
    """One run in a child."""
    child.stdin.write(f"{pixels} {name}\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a process ended while it ran {name!r} at {pixels} pixels")
    return json.loads(line)


def measure(children: dict[int, subprocess.Popen]) -> list[dict[str, Any]]:
    """One record for each piece and number of pixels."""
    found = []
    for pixels in PIXELS.value:
        for name in PIECES:
            first = {count: ask(child, pixels, name) for count, child in children.items()}
            rounds = [
                {count: ask(child, pixels, name) for count, child in children.items()}
                for _ in range(ROUNDS.value)
            ]
            one = next(iter(children))
            for count in children:
                wall = np.array([r[count]["wall"] for r in rounds])
                base = np.array([r[one]["wall"] for r in rounds])
                apart = np.abs(np.array(first[count]["values"]) - np.array(first[one]["values"])).max()
                found.append(
                    {
                        "pixels": int(pixels),
                        "piece": name,
                        "devices": count,
                        "wall": float(np.median(wall)),
                        "processor": float(np.median([r[count]["processor"] for r in rounds])),
                        "faster": float(np.median(base / wall)),
                        "first": first[count]["wall"],
                        "apart": float(apart),
                    }
                )
    return found


def report(found: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    columns = (
        "pixels",
        "piece",
        "devices",
        "time, ms",
        "processor time, ms",
        "times as fast",
        "first call, s",
    )
    lines = [f"| {' | '.join((*columns, 'largest difference'))} |", "|---|---|---|---|---|---|---|---|"]
    for r in found:
        lines.append(
            f"| {r['pixels']} | {r['piece']} | {r['devices']} | {1e3 * r['wall']:.1f} | {1e3 * r['processor']:.1f} | "
            f"{r['faster']:.2f} | {r['first']:.1f} | {r['apart']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main(_: list[str]) -> None:
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    children = {}
    for count in map(int, COUNTS.value):
        code = f"from benchmarks.bench_devices import answer; answer({count})"
        children[count] = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    try:
        found = measure(children)
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    text = report(found)
    (output / "devices.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / "devices.md").write_text(text)
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n\n{text}")


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    app.run(main)
