"""MILES, five folds by star: zero-shot, fine-tuned, trained from scratch, and four baselines.

    python -m benchmarks.bench_miles --workdir=workdirs/bench_miles --seeds=0,1,2

One pre-trained network per seed and arm serves all folds; giants are test stars throughout. The baselines see the
same normalised pixels and the same folds (benchmarks/baselines.py). Writes seed_K.json and results.md into the
working folder; resumable.
"""

import importlib
import json
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags

from benchmarks.baselines import METHODS as BASELINES
from benchmarks.baselines import held_out_predictions
from remap import cli, prepare, stages
from remap import workdir as layout
from remap.calibrate import calibrate
from remap.evaluate import in_group, predict_held_out, summarize
from remap.metrics import nan_robust, paired_interval, residual_table

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of folds, networks and batches.")
ARGUMENT = flags.DEFINE_string("argument", "", "Argument of configs/miles.py, for example 'short'.")
METHODS = ("zero-shot", "fine-tuned", "fine-tuned, uncalibrated", "from scratch", *BASELINES)
RESAMPLES = 2000
# The stars alone, with the rates of pre-training and with batch statistics of their own.
SCRATCH = {
    "init": "scratch",
    "layer_rates": "uniform",
    "rate_factor": 1.0,
    "rehearsal": 0.0,
    "correction": "none",
    "freeze_stats": False,
    "batch_size": 32,
    "epochs_per_cycle": 30,
}
COLUMNS = ("bias", "std", "robust", "slope", "cover68", "cover95", "crps")
FORMATS = {"teff": "{:.0f}", "logg": "{:.3f}", "feh": "{:.3f}"}


def main() -> None:
    root = Path(cli.WORKDIR.value)
    results = []
    for seed in (int(s) for s in SEEDS.value):
        path = root / f"seed_{seed}.json"
        if not path.exists():
            layout.write_json(path, run_seed(root, seed))
        results.append(json.loads(path.read_text()))
    text = markdown(results)
    (root / "results.md").write_text(text)
    print(text)


def run_seed(root: Path, seed: int) -> dict:
    """All methods for one seed: rows of the report, and seconds per phase."""
    config = importlib.import_module("configs.miles").get_config(ARGUMENT.value or None)
    with config.unlocked():
        config.seed = seed
    pretrained, scratch = root / f"seed_{seed}", root / f"seed_{seed}_scratch"
    # Kept apart, so that a run that finds its networks already trained does not forget what they cost.
    record = root / f"seconds_{seed}.json"
    seconds = json.loads(record.read_text()) if record.exists() else {}

    def timed(name: str, stage, *args):
        began = time.monotonic()
        result = stage(*args)
        seconds[name] = max(seconds.get(name, 0.0), time.monotonic() - began)
        layout.write_json(record, seconds)
        return result

    timed("preprocess", prepare.preprocess, config, pretrained)
    timed("pretrain", stages.pretrain, config, pretrained)
    timed("finetune", stages.finetune, config, pretrained)
    other = ml_collections.ConfigDict(config)
    with other.unlocked():
        other.finetune.update(SCRATCH)
    layout.share(scratch, "data", pretrained)
    timed("scratch", stages.finetune, other, scratch)

    timed("calibrate", calibrate, config, pretrained)

    stars = prepare.readable_stars(pretrained)
    rows, medians = [], {}
    for method, folder, stage, c, calibrated in (
        ("zero-shot", pretrained, "pretrain", config, False),
        ("fine-tuned", pretrained, "finetune", config, True),
        ("fine-tuned, uncalibrated", pretrained, "finetune", config, False),
        ("from scratch", scratch, "finetune", other, False),
    ):
        found, tested = predict_held_out(c, folder, stars, stage, calibrated=calibrated)
        rows += summarize(found, stars, tested, c.evaluate.groups, method)
        medians[method] = {name: np.asarray(found.table[name], float) for name in c.label_names}
    for method, fit in BASELINES.items():
        medians[method] = timed(method, held_out_predictions, config, pretrained, stars, fit)
        for group, limits in config.evaluate.groups.items():
            member = in_group(stars, limits)
            for name, found in medians[method].items():
                truth = np.asarray(stars[name], float)[member]
                row = {"stage": method, "group": group, "label": name}
                rows.append(row | residual_table(found[member], truth))
    dwarfs = in_group(stars, config.evaluate.groups["dwarfs"])
    residuals = {
        method: {n: (v[dwarfs] - np.asarray(stars[n], float)[dwarfs]).tolist() for n, v in found.items()}
        for method, found in medians.items()
    }
    return {"seed": seed, "rows": rows, "dwarfs": residuals, "seconds": seconds, "jax": jax.__version__}


def markdown(results: list[dict]) -> str:
    """A table per group: mean over the seeds ± their standard deviation."""
    lines = []
    groups = list(dict.fromkeys(r["group"] for r in results[0]["rows"]))
    labels = list(dict.fromkeys(r["label"] for r in results[0]["rows"]))
    for group in groups:
        lines += ["", f"**{group}**", "", f"| method | label | n | {' | '.join(COLUMNS)} |"]
        lines.append("|" + "---|" * (3 + len(COLUMNS)))
        for method in METHODS:
            for label in labels:
                key = {"stage": method, "group": group, "label": label}
                rows = [r for s in results for r in s["rows"] if key.items() <= r.items()]
                cells = [_cell([r.get(c) for r in rows], label, c) for c in COLUMNS]
                lines.append(f"| {method} | {label} | {rows[0]['n']} | {' | '.join(cells)} |")
    lines += [
        "",
        "Robust scatter of the fine-tuned network over that of the others on dwarfs, the same stars resampled for "
        "both; 95 % intervals:",
        "",
        f"| over | {' | '.join(labels)} |",
        "|" + "---|" * (1 + len(labels)),
    ]
    for method in (*BASELINES, "from scratch", "zero-shot"):
        lines.append(f"| {method} | {' | '.join(_ratio(results, method, label) for label in labels)} |")
    lines += ["", "Seconds per phase, median over seeds: "]
    names = results[0]["seconds"]
    lines[-1] += ", ".join(f"{n} {np.median([s['seconds'][n] for s in results]):.0f}" for n in names) + "."
    return "\n".join(lines) + "\n"


def _ratio(results: list[dict], method: str, label: str) -> str:
    """Ratio of the robust scatters, each the mean over seeds, with a bootstrap interval over stars."""
    ours, theirs = (np.array([r["dwarfs"][m][label] for r in results]) for m in ("fine-tuned", method))
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
