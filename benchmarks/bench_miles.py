"""MILES, five folds by star: zero-shot, fine-tuned, other ways to fine-tune, and four baselines.

    python -m benchmarks.bench_miles --workdir=workdirs/bench_miles --seeds=0,1,2

One pre-trained network per seed and arm serves all folds; giants are test stars throughout. The baselines see the
same normalised pixels and the same folds (benchmarks/baselines.py). Writes seed_K_VARIANT.json and results.md into
the working folder; resumable.
"""

import importlib
import json
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.baselines import METHODS as BASELINES
from benchmarks.baselines import held_out_predictions
from launch import cli
from remap.pmf.bootstrap import nan_robust, paired_interval
from remap.pmf.metrics import residual_table
from remap.predict.held_out import predict_held_out
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import summarize
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.atomic import write_json
from remap.store.stars import readable_stars, within
from remap.store.workdir import share

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of folds, networks and batches.")
ARGUMENT = flags.DEFINE_string("argument", "", "Argument of configs/miles.py, for example 'short'.")
RESAMPLES = 2000
# The stars alone, with the rates of pre-training and with batch statistics of their own.
ALONE = {"rehearsal": 0.0, "correction": "none", "unlabelled": 0.0, "epochs_per_cycle": 30}
# Changes of config.finetune. "both kinds": giants are labelled, too, and are test stars of their folds.
VARIANTS = {
    "fine-tuned": {},
    "from scratch": ALONE
    | {"init": "scratch", "layer_rates": "uniform", "rate_factor": 1.0, "freeze_stats": False},
    "paper's way": ALONE | {"layer_rates": "graded", "rate_factor": 0.1},
    # As many steps as with the dwarfs alone, though there are two and a half times as many stars.
    "both kinds": {
        "select": {"logg": (1.0, 5.5)},
        "unlabelled": 0.0,
        "rehearsal": 0.75,
        "epochs_per_cycle": 6,
    },
}
CHOSEN = flags.DEFINE_list("variants", ["fine-tuned", "from scratch"], f"Any of {', '.join(VARIANTS)}.")
METHODS = ("zero-shot", "fine-tuned", "fine-tuned, uncalibrated", *list(VARIANTS)[1:], *BASELINES)
COLUMNS = ("bias", "std", "robust", "slope", "cover68", "cover95", "crps")
FORMATS = {"teff": "{:.0f}", "logg": "{:.3f}", "feh": "{:.3f}"}


def main() -> None:
    root = Path(cli.WORKDIR.value)
    results = []
    for seed in (int(s) for s in SEEDS.value):
        found = {"rows": [], "residuals": {}, "seconds": {}}
        for variant in CHOSEN.value:
            path = root / f"seed_{seed}_{variant.split()[-1]}.json"
            if not path.exists():
                write_json(path, run_seed(root, seed, variant))
            one = json.loads(path.read_text())
            found["rows"] += one["rows"]
            for group, methods in one["residuals"].items():
                found["residuals"].setdefault(group, {}).update(methods)
            found["seconds"] |= {f"{variant}: {k}": v for k, v in one["seconds"].items()}
        results.append(found)
    text = markdown(results)
    (root / "results.md").write_text(text)
    print(text)


def run_seed(root: Path, seed: int, variant: str) -> dict:
    """One variant and one seed: rows of the report, residuals of the dwarfs, seconds per phase.

    "fine-tuned" brings along what belongs to no variant: zero-shot, the uncalibrated PMFs and the baselines.
    """
    config = importlib.import_module("configs.miles").get_config(ARGUMENT.value or None)
    with config.unlocked():
        config.seed = seed
        config.finetune.update(VARIANTS[variant])
    base = root / f"seed_{seed}"
    workdir = base if variant == "fine-tuned" else root / f"seed_{seed}_{variant.split()[-1]}"
    # Kept apart, so that a run that finds its networks already trained does not forget what they cost.
    record = workdir / "seconds.json"
    seconds = json.loads(record.read_text()) if record.exists() else {}

    def timed(name: str, stage, *args):
        began = time.monotonic()
        result = stage(*args)
        seconds[name] = max(seconds.get(name, 0.0), time.monotonic() - began)
        write_json(record, seconds)
        return result

    timed("preprocess", preprocess, config, base)
    timed("pretrain", pretrain, config, base)
    if workdir != base:
        share(workdir, "data", base)
        share(workdir, "pretrain", base)
    timed("finetune", finetune, config, workdir)
    # Uncalibrated where the labelled stars are others than those that the calibration is for.
    calibrated = variant in ("fine-tuned", "both kinds")
    if calibrated:
        timed("calibrate", calibrate, config, workdir)
    predictions = {variant: (workdir, "finetune", calibrated)}
    if variant == "fine-tuned":
        predictions |= {
            "zero-shot": (base, "pretrain", False),
            "fine-tuned, uncalibrated": (base, "finetune", False),
        }
    stars = readable_stars(base)
    rows, medians = [], {}
    for method, (folder, stage, calibrated) in predictions.items():
        found, tested = predict_held_out(config, folder, stars, stage, calibrated=calibrated)
        rows += summarize(found, stars, tested, config.evaluate.groups, method)
        medians[method] = {name: np.asarray(found.table[name], float) for name in config.label_names}
    for method, fit in BASELINES.items() if variant == "fine-tuned" else ():
        medians[method] = timed(method, held_out_predictions, config, base, stars, fit)
        for group, limits in config.evaluate.groups.items():
            member = within(stars, limits)
            for name, found in medians[method].items():
                truth = np.asarray(stars[name], float)[member]
                row = {"stage": method, "group": group, "label": name}
                rows.append(row | residual_table(found[member], truth))
    residuals = {}
    for group, limits in config.evaluate.groups.items():
        member = within(stars, limits)
        residuals[group] = {
            method: {n: (v[member] - np.asarray(stars[n], float)[member]).tolist() for n, v in found.items()}
            for method, found in medians.items()
        }
    return {"seed": seed, "rows": rows, "residuals": residuals, "seconds": seconds, "jax": jax.__version__}


def markdown(results: list[dict]) -> str:
    """A table per group: mean over the seeds ± their standard deviation."""
    lines = []
    groups = list(dict.fromkeys(r["group"] for r in results[0]["rows"]))
    labels = list(dict.fromkeys(r["label"] for r in results[0]["rows"]))
    for group in groups:
        lines += ["", f"**{group}**", "", f"| method | label | n | {' | '.join(COLUMNS)} |"]
        lines.append("|" + "---|" * (3 + len(COLUMNS)))
        methods = [m for m in METHODS if m in results[0]["residuals"][group]]
        for method in methods:
            for label in labels:
                key = {"stage": method, "group": group, "label": label}
                rows = [r for s in results for r in s["rows"] if key.items() <= r.items()]
                cells = [_cell([r.get(c) for r in rows], label, c) for c in COLUMNS]
                lines.append(f"| {method} | {label} | {rows[0]['n']} | {' | '.join(cells)} |")
        if "fine-tuned" not in methods:
            continue
        lines += [
            "",
            f"Robust scatter of the fine-tuned network over that of the others on {group}, the same stars resampled "
            "for both; 95 % intervals:",
            "",
            f"| over | {' | '.join(labels)} |",
            "|" + "---|" * (1 + len(labels)),
        ]
        for method in methods:
            if not method.startswith("fine-tuned"):
                ratios = (_ratio(results, group, method, label) for label in labels)
                lines.append(f"| {method} | {' | '.join(ratios)} |")
    lines += ["", "Seconds per phase, median over seeds: "]
    names = results[0]["seconds"]
    lines[-1] += ", ".join(f"{n} {np.median([s['seconds'][n] for s in results]):.0f}" for n in names) + "."
    return "\n".join(lines) + "\n"


def _ratio(results: list[dict], group: str, method: str, label: str) -> str:
    """Ratio of the robust scatters, each the mean over seeds, with a bootstrap interval over stars."""
    ours, theirs = (
        np.array([r["residuals"][group][m][label] for r in results]) for m in ("fine-tuned", method)
    )
    found = paired_interval(
        ours,
        theirs,
        nan_robust,
        stars=np.arange(ours.shape[1]),  # MILES has one spectrum per star
        compare="ratio",
        resamples=RESAMPLES,
        level=0.95,
        resample_runs=False,
        seed=0,
    )
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _cell(values: list, label: str, column: str) -> str:
    if any(v is None for v in values):
        return ""
    form = FORMATS[label] if column in ("bias", "std", "robust", "crps") else "{:.2f}"
    return form.format(np.mean(values)) + " ± " + form.format(np.std(values))


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
