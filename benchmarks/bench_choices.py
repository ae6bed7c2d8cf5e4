"""Choices of the method, the paper's and those it leaves open, each on real stars at the full length of training.

    python -m benchmarks.bench_choices --workdir=workdirs/bench_choices
    python -m benchmarks.bench_choices --workdir=/tmp/short --short               seconds, for tests

Networks of `configs/miles.py:giants` (both libraries, then MILES's dwarfs and giants, consensus labels), trained as
the config says and once more with each choice made otherwise (`VARIANTS`): other normalisers than Algorithm 1, one
network for both arms instead of conflation, a loss that is the cross entropy alone. The same seed, folds and number
of steps. Zero-shot and fine-tuned, calibrated on validation stars, without the expert. Validation stars decide; test
stars are for the record. Intervals: 95 % bootstrap over stars of the ratio to the config's networks, paired. "their
mean" has the mean of the PMFs of all variants: an ensemble. Resumable; arms and folds can be trained as runs of their
own (`--train_arms`, `--train_folds`), in processes side by side. Writes choices.md into the working folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags
from astropy.table import Table

from launch import cli
from remap.config import ConfigError
from remap.continuum import get_normalizer
from remap.pmf.bootstrap import nan_mean, paired_interval
from remap.pmf.distributions import pmf_quantile
from remap.pmf.metrics import crps
from remap.predict.catalogue import Catalogue
from remap.predict.held_out import predict_survey
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import summarize
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.stars import readable_stars, within

BASE = "miles"


def _normalizer(name: str) -> dict[str, Any]:
    """The section `continuum` of a normaliser with its default settings."""
    settings = dataclasses.asdict(get_normalizer(name).settings())
    settings.pop("pixel", None)  # of the grid
    return {"name": name, **settings}


# Name -> sections of the config, or fields of them, that differ.
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "chebyshev": {"continuum": _normalizer("chebyshev")},
    "quantile": {"continuum": _normalizer("quantile")},
    "one network": {"arm_names": ("AB",), "arms": {"AB": {"start": 4855.4, "stop": 5745.05, "step": 0.9}}},
    "cross entropy": {"loss": {"gamma": 0.0, "cost_weight": 0.0}},
}
WHOLE = ("continuum", "arms")  # sections that a variant replaces
CHOSEN = flags.DEFINE_list("variants", list(VARIANTS), f"Any of {'; '.join(VARIANTS)}.", allow_override=True)
FOLDS = flags.DEFINE_list("folds", ["0", "1", "2"], "Folds, of five, that are fine-tuned and tested.")
TRAIN_ARMS = flags.DEFINE_list("train_arms", [], "Train these arms and stop; nothing = all, and compare.")
TRAIN_FOLDS = flags.DEFINE_list("train_folds", [], "With --train_arms: these folds alone.")
SEED = flags.DEFINE_integer("network_seed", 0, "Seed of folds, networks and batches.")
SHORT = flags.DEFINE_bool("short", False, "A training of seconds that proves nothing.", allow_override=True)
RESAMPLES = 2000
PARTS = ("zero-shot", "validation", "test")
IN_UNIT = ("bias", "robust", "crps")
COVERAGE = ("cover68_labels", "cover68_star", "cover95_labels", "cover95_star")
FORMATS = {"teff": "{:.0f}", "logg": "{:.3f}", "feh": "{:.3f}"}


def main() -> None:
    if unknown := sorted(set(CHOSEN.value) - set(VARIANTS)):
        raise ConfigError(f"variants: expected any of {list(VARIANTS)}, found {unknown}")
    root = Path(cli.WORKDIR.value)
    folds = tuple(int(f) for f in FOLDS.value)
    results, groups = {}, {}
    for name in CHOSEN.value:
        config, workdir = (
            config_of(name, folds, seed=SEED.value, short=SHORT.value),
            root / name.replace(" ", "_"),
        )
        train(config, workdir)
        if not TRAIN_ARMS.value:
            results[name], groups = predict(config, workdir), config.evaluate.groups.to_dict()
    if results:
        if len(results) > 1:
            results["their mean"] = {p: together([r[p] for r in results.values()]) for p in PARTS}
        text = markdown(results, groups)
        (root / "choices.md").write_text(text)
        print(text)


def config_of(name: str, folds: tuple[int, ...], *, seed: int, short: bool) -> ml_collections.ConfigDict:
    """That of MILES, dwarfs and giants, with a choice made otherwise."""
    c = importlib.import_module("configs.miles").get_config("giants,short" if short else "giants")
    with c.unlocked():
        c.seed = seed
        c.embeddings.epochs = ()
        c.split.run = folds
        c.expert.kind = "none"  # a fit to the pixels, which would hide what the networks make of them
        for section, change in VARIANTS[name].items():
            if section in WHOLE or not isinstance(change, dict):
                c[section] = change
            else:
                c[section].update(change)
    return c


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """All stages, or those of the arms and folds that the flags name."""
    if not (workdir / "data" / "preprocessing.json").is_file():
        preprocess(config, workdir)
    arms = tuple(TRAIN_ARMS.value) or None
    pretrain(config, workdir, arms=arms)
    finetune(config, workdir, arms=arms, folds=tuple(int(f) for f in TRAIN_FOLDS.value) or None)
    if arms is None:
        calibrate(config, workdir)


class Predicted(NamedTuple):
    """What the networks of one variant say of the stars of one part."""

    catalogue: Catalogue
    stars: Table
    tested: np.ndarray  # bool[S]


def predict(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Predicted]:
    """Part -> predictions: zero-shot of all stars, fine-tuned of validation stars, and of test stars, calibrated."""
    stars = readable_stars(workdir)
    zero_shot = predict_survey(config, workdir, stars, "pretrain", calibrated=False)
    tuned = predict_survey(config, workdir, stars, "finetune", inputs=zero_shot.inputs)
    held = {
        "zero-shot": zero_shot.held_out(),
        "validation": tuned.held_out("val", calibrated=False),
        "test": tuned.held_out(),
    }
    # A star that no fold tests is predicted by the mean over all folds: not here, where folds are left out.
    tested = {part: h.tested & ((h.fold >= 0) | (part == "zero-shot")) for part, h in held.items()}
    return {part: Predicted(h.catalogue(stars), stars, tested[part]) for part, h in held.items()}


def together(those: Sequence[Predicted]) -> Predicted:
    """The mean of the PMFs of several, as one prediction."""
    first = those[0]
    pmfs = {k: np.mean([p.catalogue.pmfs[k] for p in those], axis=0) for k in first.catalogue.edges}
    table = first.catalogue.table.copy()
    for label, edges in first.catalogue.edges.items():
        table[label] = pmf_quantile(pmfs[label], edges, [0.5])[:, 0]
    return Predicted(first.catalogue._replace(table=table, pmfs=pmfs), first.stars, first.tested)


def markdown(results: Mapping[str, Mapping[str, Predicted]], groups: Mapping[str, Any]) -> str:
    """A table for each part and group, and what the intervals of the config's own networks hold."""
    lines = []
    for part, (group, limits) in itertools.product(PARTS, groups.items()):
        base = results.get(BASE, next(iter(results.values())))[part]
        member = base.tested & within(base.stars, limits)
        lines += ["", f"**{part}, {group}** ({np.count_nonzero(member)})", ""]
        columns = [f"{label}: bias, robust, CRPS | over `{BASE}`" for label in FORMATS]
        lines += [f"| networks | {' | '.join(columns)} |", "|---" * (1 + 2 * len(FORMATS)) + "|"]
        for name, parts in results.items():
            cells = []
            for row in summarize(*parts[part], {group: limits}, name):
                cells.append(", ".join(FORMATS[row["label"]].format(row[c]) for c in IN_UNIT))
                same = name == BASE or BASE not in results
                cells.append("" if same else _ratio(parts[part], base, member, row["label"]))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if BASE in results:
        lines += ["", f"What intervals hold on test stars, `{BASE}`:", ""]
        lines += [f"| group | label | {' | '.join(COVERAGE)} |", "|---" * (2 + len(COVERAGE)) + "|"]
        for group, limits in groups.items():
            for row in summarize(*results[BASE]["test"], {group: limits}, BASE):
                cells = " | ".join(f"{row[c]:.2f}" for c in COVERAGE)
                lines.append(f"| {group} | {row['label']} | {cells} |")
    return "\n".join(lines).lstrip() + "\n"


def _ratio(own: Predicted, base: Predicted, member: np.ndarray, label: str) -> str:
    """The ratio of the mean CRPS with its interval, bold where that excludes 1."""
    truth = np.asarray(base.stars[label], float)[member]
    first, second = (
        crps(p.catalogue.pmfs[label][member], p.catalogue.edges[label], truth)[None] for p in (own, base)
    )
    found = paired_interval(
        first,
        second,
        nan_mean,
        stars=np.asarray(base.stars["star_id"])[member],
        compare="ratio",
        resamples=RESAMPLES,
        level=0.95,
        resample_runs=False,
        seed=0,
    )
    bold = "**" if found.excludes(1.0) else ""
    return f"{bold}{found.value:.2f} ({found.low:.2f} to {found.high:.2f}){bold}"


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
