"""Which library, or which mixture, tells most about real stars that no network has seen? Zero-shot on MILES.

    python -m benchmarks.bench_libraries --workdir=workdirs/bench_libraries --seeds=0,1,2
    python -m benchmarks.bench_libraries --workdir=/tmp/short --short             a few minutes, for tests

Networks of configs/miles.py, pre-trained on each library alone, on both mixed, and on both with line strengths or
[α/Fe] varied (`remap.sampling.nuisances`), or without Hβ, whose core is not formed in LTE. The survey's labels are
the consensus ones and serve the comparison alone.
Bins are those of `common.fgk_libraries` for all, so that no variant is helped by its range; the stars of a group are
the same in all variants. Writes VARIANT_seed_K.json and libraries.md into the working folder; resumable, and what has
finished is not trained again.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags

from launch import cli
from remap.config import ConfigError
from remap.pmf.metrics import residual_table
from remap.predict.held_out import predict_held_out
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.atomic import write_json
from remap.store.stars import readable_stars, within
from remap.store.workdir import share

SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of networks and batches.", allow_override=True)
SHORT = flags.DEFINE_bool(
    "short", False, "A training of seconds that proves nothing, and one seed.", allow_override=True
)
LTE, COOL = "lte", "coolstars"
MIXED = (LTE, COOL)
BEYOND_HBETA = 4855.4 + 33 * 0.9  # Å, on MILES's own pixels
LINES = {"lines": 0.7, "lines_each": 0.35}
ALPHA = {"alpha": (0.0, 0.35), "alpha_scatter": 0.1}


class Variant(NamedTuple):
    """What a network is trained on."""

    libraries: tuple[str, ...] = MIXED
    augment: Mapping[str, Any] = MappingProxyType({})  # changes of config.augment
    hbeta: bool = True  # False: the first arm begins beyond it


VARIANTS = {
    "lte": Variant((LTE,)),
    "coolstars": Variant((COOL,)),
    "mixed": Variant(),
    "lines": Variant(augment={"lines": 0.7}),
    "lines each": Variant(augment=LINES),
    "depths": Variant(augment={"depths": 0.1}),
    "alpha": Variant(augment=ALPHA),
    "all": Variant(augment=LINES | ALPHA),
    "no Hβ": Variant(hbeta=False),
    "all but Hβ": Variant(augment=LINES | ALPHA, hbeta=False),
}
CHOSEN = flags.DEFINE_list("variants", list(VARIANTS), f"Any of {'; '.join(VARIANTS)}.", allow_override=True)
GROUPS = {
    "dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-1.0, 0.5)},
    "metal-poor dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-2.5, -1.0)},
    "giants": {"teff": (4000.0, 5500.0), "logg": (0.5, 3.4999), "feh": (-2.5, 0.5)},
}
FORMATS = {"teff": "{:.0f}", "logg": "{:.3f}", "feh": "{:.3f}"}
COLUMNS = ("n", "bias", "median", "robust", "std", "width")


def main() -> None:
    root = Path(cli.WORKDIR.value)
    if unknown := sorted(set(CHOSEN.value) - set(VARIANTS)):
        raise ConfigError(f"variants: expected any of {list(VARIANTS)}, found {unknown}")
    results: dict[str, list[dict]] = {}
    for seed in (0,) if SHORT.value else (int(s) for s in SEEDS.value):
        for variant in CHOSEN.value:
            path = root / f"{_file_name(variant)}_seed_{seed}.json"
            if not path.exists():
                write_json(path, run(root, variant, seed, short=SHORT.value))
            results.setdefault(variant, []).append(json.loads(path.read_text()))
            (root / "libraries.md").write_text(markdown(results))
    print(markdown(results))


def config_of(variant: str, seed: int, *, short: bool) -> ml_collections.ConfigDict:
    """The config of a variant: that of MILES with other libraries, bins, labels and augmentation."""
    libraries, augment, hbeta = VARIANTS[variant]
    c = importlib.import_module("configs.miles").get_config("short" if short else None)
    with c.unlocked():
        c.seed = seed
        c.survey.labels_path = "miles/labels_consensus.ecsv"
        importlib.import_module("configs.common").fgk_libraries(c)
        cool = c.libraries.coolstars
        if libraries == (COOL,):
            c.library = {k: v for k, v in cool.items() if k != "weight"} | {"interpolate": True}
        if len(libraries) == 1:
            c.libraries = ml_collections.ConfigDict()
        c.augment.update(augment)
        c.embeddings.epochs = ()
        if not hbeta:
            c.arms.A.start = BEYOND_HBETA
    return c


def run(root: Path, variant: str, seed: int, *, short: bool) -> dict:
    """Trains a variant, unless it has been, and compares what its networks say with the labels."""
    config = config_of(variant, seed, short=short)
    libraries, _, hbeta = VARIANTS[variant]
    data = root / "prepared" / "_".join((*libraries, *(() if hbeta else ("no_hbeta",))))
    if not (data / "data" / "preprocessing.json").is_file():
        preprocess(config, data)
    workdir = root / f"{_file_name(variant)}_seed_{seed}"
    share(workdir, "data", data)
    pretrain(config, workdir)
    stars = readable_stars(workdir)
    found, _ = predict_held_out(config, workdir, stars, "pretrain", calibrated=False)
    rows = []
    for group, limits in GROUPS.items():
        member = within(stars, limits)
        for label in config.label_names:
            value, truth = (np.asarray(t[label], float)[member] for t in (found.table, stars))
            wide = np.asarray(found.table[f"{label}_p84"] - found.table[f"{label}_p16"], float)[member] / 2
            width = {"width": float(np.median(wide)) if wide.size else float("nan")}
            rows.append({"group": group, "label": label} | residual_table(value, truth) | width)
    return {"variant": variant, "seed": seed, "rows": rows}


def _file_name(variant: str) -> str:
    return variant.replace(" ", "_").replace("β", "beta")


def markdown(results: Mapping[str, Sequence[dict]]) -> str:
    """A table per group: mean over the seeds, and their standard deviation where there are several."""
    lines = []
    for group in GROUPS:
        lines += ["", f"**{group}**", "", f"| trained on | label | {' | '.join(COLUMNS)} |"]
        lines.append("|---" * (2 + len(COLUMNS)) + "|")
        for variant, seeds in results.items():
            for label in FORMATS:
                rows = [r for s in seeds for r in s["rows"] if (r["group"], r["label"]) == (group, label)]
                cells = [
                    _cell([r[c] for r in rows], "{:.0f}" if c == "n" else FORMATS[label]) for c in COLUMNS
                ]
                lines.append(f"| {variant} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines).lstrip() + "\n"


def _cell(values: Sequence[float], form: str) -> str:
    """Mean, and standard deviation where values differ."""
    mean = form.format(np.mean(values))
    return mean if np.ptp(values) == 0 else f"{mean} ± {form.format(np.std(values))}"


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
