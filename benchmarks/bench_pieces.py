"""What each piece costs: a batch of MILES with and without it, and the training step beside it.

    python -m benchmarks.bench_pieces --workdir=workdirs/bench_miles/seed_0

The folder needs the stages preprocess and pretrain. `--mixed=workdirs/bench_libraries/prepared/lte_coolstars`
adds what two libraries can be varied by. Every piece is timed in turn, again and again, in one process:
medians of processor time, and their ratio to the first of the same table. Prints Markdown.
"""

import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

from launch import cli
from remap.stages import common, finetune, pretrain
from remap.store.stars import fold_split, readable_stars, split_settings
from remap.store.workdir import check_prepared
from remap.train.loop import FitSettings, Run, draw_batch, train_step
from remap.train.objectives import Source
from remap.train.state import init_state

ROUNDS = flags.DEFINE_integer("rounds", 60, "Times that each piece is timed.")
MIXED = flags.DEFINE_string(
    "mixed",
    "",
    "Prepared folder of bench_libraries (prepared/lte_coolstars), for what two libraries can be varied by.",
)
# Values as one would choose them; the cost does not depend on them.
AUGMENT = {
    "noise": {},
    "+ velocity": {"velocity": 10.0},
    "+ scattered light": {"scattered": 0.05},
    "+ tilt": {"tilt": 0.1},
    "+ gaps": {"gaps": 3, "gap_pixels": 20},
    "+ all four": {"velocity": 10.0, "scattered": 0.05, "tilt": 0.1, "gaps": 3, "gap_pixels": 20},
}
# Of the library alone; line strengths need two.
NUISANCES = {
    "noise": {},
    "+ line strengths, 24 components": {"lines": 0.7},
    "+ and each by itself": {"lines": 0.7, "lines_each": 0.35},
    "+ depths": {"depths": 0.1},
    "+ [α/Fe]": {"alpha": (0.0, 0.35), "alpha_scatter": 0.1},
    "+ all of these": {"lines": 0.7, "lines_each": 0.35, "depths": 0.1, "alpha": (0.0, 0.35)},
}
ALONE = {"rehearsal": 0.0, "unlabelled": 0.0, "correction": "none", "residual_weight": (0.0, 0.0)}
FINETUNE = {
    "stars alone": ALONE,
    "stars in pairs": ALONE | {"batches": "paired"},
    "+ library spectra": ALONE | {"rehearsal": 0.625},
    "+ corrected, with residuals": {"unlabelled": 0.0},
    "+ anchored spectra (configs/miles.py)": {},
}


def main() -> None:
    workdir = Path(cli.WORKDIR.value)
    config = importlib.import_module("configs.miles").get_config()
    preprocessing = check_prepared(config, workdir)
    arm = next(iter(preprocessing.arms))
    stars = readable_stars(workdir)

    pretraining = {}
    for name, change in AUGMENT.items():
        start = pretrain.pretraining(_changed(config, "augment", change), workdir, preprocessing, arm)
        pretraining[name] = _batches(start.source)
    report("pre-training, a batch of 32", pretraining)

    if MIXED.value:
        mixed, varied = Path(MIXED.value), {}
        two = importlib.import_module("benchmarks.bench_libraries").config_of("mixed", 0, short=False)
        prepared = check_prepared(two, mixed)
        for name, change in NUISANCES.items():
            start = pretrain.pretraining(_changed(two, "augment", change), mixed, prepared, arm)
            varied[name] = _batches(start.source)
        varied["a training step, for comparison"] = _steps(start.training(None), False)
        report("pre-training on two libraries, a batch of 32", varied)

    finetuning, steps = {}, {}
    for name, change in FINETUNE.items():
        changed = _changed(config, "finetune", change)
        split = fold_split(stars, split_settings(changed), 0)
        start = finetune.finetuning(changed, workdir, preprocessing, arm, 0, split)
        finetuning[name] = _batches(start.source)
    report("fine-tuning, a batch of 32", finetuning)
    for name, freeze in (("batch statistics of its own", False), ("frozen statistics", True)):
        steps[name] = _steps(start, freeze)
    report("a training step on a batch of 32", steps)


def _changed(
    config: ml_collections.ConfigDict, section: str, change: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    out = config.copy_and_resolve_references()
    out[section].update(change)
    return out


def _batches(source: Source) -> Callable[[int], Any]:
    return lambda step: draw_batch(source, jax.random.key(0), jnp.asarray(step, jnp.int32))


def _steps(start: common.Training, freeze_stats: bool) -> Callable[[int], Any]:
    objective = dataclasses.replace(start.objective, freeze_stats=freeze_stats)
    run = Run(FitSettings(cycles=1, epochs_per_cycle=1), 1000, start.key, Path(), {}, "bench")
    optimizer = run.optimizer(start.rules)
    batch = _batches(start.source)(0)
    first = jax.tree.map(jnp.array, start.variables)
    state = init_state(first["params"], first["batch_stats"], optimizer)

    def call(_: int) -> Any:
        nonlocal state
        state, terms = train_step(state, batch, jax.random.key(1), objective=objective, optimizer=optimizer)
        return terms

    return call


def report(title: str, calls: Mapping[str, Callable[[int], Any]]) -> None:
    """Times the calls in turn and prints a table."""
    for call in calls.values():
        jax.block_until_ready(call(0))
    seconds = {name: [] for name in calls}
    for i in range(ROUNDS.value):
        for name, call in calls.items():
            began = time.process_time()
            jax.block_until_ready(call(i + 1))
            seconds[name].append(time.process_time() - began)
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    first = next(iter(median.values()))
    print(f"\n| {title} | ms | ratio |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {1e3 * value:.1f} | {value / first:.2f} |")


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
