"""MILES without any of its labels: answers to the gap between library and survey, in both routes, on the same stars.

    python -m benchmarks.bench_gap --workdir=workdirs/bench_gap

Zero-shot deep-REMAP, the same after the stage align of every kind, and the autoencoder route with every way to
fine-tune its encoders. For each: how well a classifier tells stars from library spectra of their labels by their
features (`remap.autoencoder.report.compare`), and the errors of the labels. Known labels serve for this comparison
alone. Writes VARIANT.json and results.md into the working folder; resumable.
"""

import importlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from astropy.table import Table

from launch import cli
from remap.autoencoder import adapt, regress
from remap.autoencoder.errors import bootstrap, gap_settings
from remap.autoencoder.estimate import estimate
from remap.autoencoder.members import encode, load_members
from remap.autoencoder.report import Matched, compare, match
from remap.autoencoder.sources import Sky, encode_stars, open_sky, open_source
from remap.autoencoder.train import train_autoencoders
from remap.network import resnet
from remap.pmf.metrics import coverage, crps, residual_table
from remap.predict.catalogue import Catalogue
from remap.predict.held_out import predict_held_out
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import Batch
from remap.stages import common
from remap.stages.align import align, network_outputs
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store import checkpoint
from remap.store.atomic import write_json
from remap.store.stars import readable_stars, within
from remap.store.workdir import read_preprocessing, share, stage_folder, write_config

ARGUMENT = flags.DEFINE_string(
    "argument", "", "Argument of configs/miles_autoencoder.py, for example 'short'."
)
SEED = flags.DEFINE_integer("seed", 0, "Of networks and batches.")
# Route, and changes of the config.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("main", {}),
    "align mmd": ("main", {"align.kind": "mmd", "align.weight": 30.0}),
    "align coral": ("main", {"align.kind": "coral", "align.weight": 100.0}),
    "align autoencoder": ("main", {"align.kind": "autoencoder", "align.weight": 3.0}),
    "autoencoder not fine-tuned": ("before", {"adapt.align.kind": "none", "regressor.encoder": "library"}),
    "autoencoder published": (
        "autoencoder",
        {
            "adapt.trains": "code",
            "adapt.align.kind": "none",
            "adapt.rehearsal": 0.0,
            "regressor.encoder": "library",
        },
    ),
    "autoencoder bottleneck": (
        "autoencoder",
        {
            "adapt.trains": "bottleneck",
            "adapt.align.kind": "none",
            "adapt.rehearsal": 0.0,
            "regressor.encoder": "library",
        },
    ),
    "autoencoder one encoder": ("autoencoder", {"adapt.align.kind": "none"}),
    "autoencoder mmd": ("autoencoder", {}),
    "autoencoder coral": ("autoencoder", {"adapt.align.kind": "coral", "adapt.align.weight": 0.1}),
}
CHOSEN = flags.DEFINE_list("variants", list(VARIANTS), "Any of those in this file.")
FORMATS = {"teff": "{:.0f}", "logg": "{:.3f}", "feh": "{:.3f}"}


def main() -> None:
    root = Path(cli.WORKDIR.value)
    found = {}
    for name in CHOSEN.value:
        path = root / f"{name.replace(' ', '_')}.json"
        made_by = {"seed": SEED.value, "argument": ARGUMENT.value}
        if not path.exists():
            write_json(path, run_variant(root, name) | {"made_by": made_by})
        found[name] = json.loads(path.read_text())
        checkpoint.check_equal(found[name]["made_by"], made_by, f"{path}: made with other flags")
    text = markdown(found)
    (root / "results.md").write_text(text)
    print(text)


def run_variant(root: Path, name: str) -> dict[str, Any]:
    """Domains, label errors and seconds of one variant."""
    route, changes = VARIANTS[name]
    config = importlib.import_module("configs.miles_autoencoder").get_config(ARGUMENT.value or None)
    config.update_from_flattened_dict({"seed": SEED.value} | changes)
    base = root / "base"
    own = (
        "autoencoder mmd" if route == "before" else name
    )  # whose encoders before the fine-tuning are the same
    workdir = root / own.replace(" ", "_")
    began = time.monotonic()
    if not (base / "data" / "preprocessing.json").exists():
        preprocess(config, base)
    if route == "main":
        pretrain(config, base)
    else:
        train_autoencoders(config, base)
    shared = time.monotonic() - began
    for folder in ("data", "pretrain", "autoencoder"):
        share(workdir, folder, base)
    # Regressors of the encoders before their fine-tuning are the same in every folder.
    share(workdir / "regressor", "library", root / "autoencoder_mmd" / "regressor")
    preprocessing = read_preprocessing(base)
    stars = readable_stars(base)
    sky = open_sky(config, base, preprocessing)
    matched = match(config, open_source(config, base, preprocessing), stars, sky, list(config.label_names))
    if matched is None:
        raise ValueError("no star has labels inside the library")
    began = time.monotonic()
    if route == "main":
        align(config, workdir)
        write_config(workdir, config)
        stage = common.start_stage(config)
        catalogue, _ = predict_held_out(config, workdir, stars, stage)
        features = main_features(config, workdir, preprocessing, stage, sky, matched)
    else:
        adapted = route == "autoencoder"
        if adapted:
            adapt.adapt(config, workdir)
        regress.regress(config, workdir)
        catalogue = estimate(config, workdir, adapted=adapted)
        features = latents(config, workdir, sky, matched, adapted)
    seconds = time.monotonic() - began
    held = sky.held[matched.stars]
    groups = {"all": np.ones(len(held), bool), "kept aside": held}
    for group, limits in config.evaluate.groups.items():
        groups[group] = within(stars, limits)[matched.stars]
    return {
        "domains": {
            g: compare(gap_settings(config), *(f[keep] for f in features)) for g, keep in groups.items()
        },
        "labels": label_errors(config, catalogue, stars, sky.usable),
        "seconds": {"shared": shared, "own": seconds},
    }


def main_features(
    config: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    stage: str,
    sky: Sky,
    matched: Matched,
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of all arms side by side: of matched stars, of library spectra of their labels."""
    low, high = config.autoencoder.scale_low, config.autoencoder.scale_high
    ends = np.cumsum([0] + [len(preprocessing.wave(arm)) for arm in preprocessing.arms])
    parts: list[list[np.ndarray]] = [[], []]
    observed = sky.pixels(matched.stars)
    for arm, start, stop in zip(preprocessing.arms, ends[:-1], ends[1:], strict=True):
        variables, meta = checkpoint.load_final(stage_folder(workdir, stage, arm) / "final")
        variables.pop("prior", None)
        model = resnet.build_model(meta["config"]["model"], preprocessing.labels)
        for i, pixels in enumerate((observed, matched.first.pixels)):
            flux = low + (high - low) * pixels.flux[:, start:stop]
            batch = Batch(flux, pixels.valid[:, start:stop], jnp.zeros(0), jnp.zeros(0))
            parts[i].append(np.asarray(network_outputs(model, variables, batch)[1]))
    return tuple(np.concatenate(p, axis=1) for p in parts)


def latents(
    config: ml_collections.ConfigDict, workdir: Path, sky: Sky, matched: Matched, adapted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Latent features of all autoencoders side by side: of matched stars, of library spectra of their labels.

    Each from the encoder that its estimates rest on.
    """
    chunk = config.autoencoder.chunk
    for_stars = load_members(config, workdir, "adapted" if adapted else "library")
    for_library = load_members(config, workdir, config.regressor.encoder if adapted else "library")
    (stars,) = encode_stars([for_stars], sky, matched.stars)
    library = encode(for_library, matched.first.pixels.flux, chunk=chunk)
    return np.concatenate(list(stars), axis=1), np.concatenate(list(library), axis=1)


def label_errors(
    config: ml_collections.ConfigDict, catalogue: Catalogue, stars: Table, usable: np.ndarray
) -> dict[str, Any]:
    """group -> label -> errors of every star, coverage of the 68 % intervals, CRPS of every star."""
    out: dict[str, Any] = {}
    for group, limits in config.evaluate.groups.items():
        member = within(stars, limits) & usable
        for label, edges in catalogue.edges.items():
            truth = np.asarray(stars[label], float)[member]
            pmf = catalogue.pmfs[label][member]
            out.setdefault(group, {})[label] = {
                "error": (np.asarray(catalogue.table[label], float)[member] - truth).tolist(),
                "cover68": float(coverage(pmf, edges, truth, (0.68,))[0]),
                "crps": crps(pmf, edges, truth).tolist(),
            }
    return out


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables: domains, labels; intervals hold 95 %."""
    config = importlib.import_module("configs.miles_autoencoder").get_config(ARGUMENT.value or None)
    first = next(iter(found.values()))
    lines = [f"| variant | {' | '.join(f'AUC, {g}' for g in first['domains'])} | MMD², p |"]
    lines.append("|" + "---|" * (2 + len(first["domains"])))
    for name, one in found.items():
        cells = [
            f"{d['auc']:.2f} ({d['auc_low']:.2f} to {d['auc_high']:.2f})" for d in one["domains"].values()
        ]
        everyone = one["domains"]["all"]
        lines.append(f"| {name} | {' | '.join(cells)} | {everyone['mmd2']:.3f}, {everyone['mmd_p']:.3f} |")
    for group, labels in first["labels"].items():
        lines += ["", f"**{group}**", ""]
        lines.append(
            "| variant | label | n | bias | robust | cover68 | crps | absolute error / zero-shot's |"
        )
        lines.append("|" + "---|" * 8)
        for name, one in found.items():
            for label in labels:
                lines.append(f"| {name} | {label} | {_cells(config, found, one, group, label)} |")
    seconds = ", ".join(f"{n} {one['seconds']['own']:.0f}" for n, one in found.items())
    lines += ["", f"Seconds of each beyond the networks that it shares with others: {seconds}."]
    return "\n".join(lines) + "\n"


def _cells(
    config: ml_collections.ConfigDict,
    found: Mapping[str, Any],
    one: Mapping[str, Any],
    group: str,
    label: str,
) -> str:
    own = one["labels"][group][label]
    error = np.array(own["error"])
    form = FORMATS[label].format
    columns = [str(np.count_nonzero(np.isfinite(error)))]
    for name in ("bias", "robust"):
        statistic = lambda e, name=name: residual_table(e, np.zeros(len(e)))[name]  # noqa: E731
        low, high = bootstrap(gap_settings(config), error, statistic)
        columns.append(f"{form(statistic(error))} ({form(low)} to {form(high)})")
    columns += [f"{own['cover68']:.2f}", form(np.nanmean(own["crps"]))]
    if "zero-shot" in found and one is not found["zero-shot"]:
        pair = np.abs(np.stack([error, found["zero-shot"]["labels"][group][label]["error"]], axis=1))
        ratio = lambda p: float(np.nanmean(p[:, 0]) / np.nanmean(p[:, 1]))  # noqa: E731
        low, high = bootstrap(gap_settings(config), pair, ratio)
        columns.append(f"{ratio(pair):.2f} ({low:.2f} to {high:.2f})")
    else:
        columns.append("")
    return " | ".join(columns)


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
