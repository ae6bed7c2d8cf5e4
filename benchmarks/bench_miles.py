"""MILES, five folds by star: zero-shot, fine-tuned, other ways to fine-tune, and four baselines.

    python -m benchmarks.bench_miles --workdir=workdirs/bench_miles --seeds=0,1,2

One pre-trained network per seed and arm serves all folds; giants are test stars throughout. Pre-training is most
of the cost: `--pretrained=FOLDER` takes the networks of a working folder in which it has finished for all seeds,
which then differ in folds and fine-tuning alone. The baselines see the same normalised pixels and the same folds
(benchmarks/baselines.py).

All are trained on the labels of the config (`--argument=cenarro`: Cenarro's) and reported against both sets,
Cenarro's and the consensus, each with its own errors: a scatter about labels holds their errors, "of the star"
does not (`stages.evaluate.summarize`). The stars of a group are those whose labels of the set lie in its limits.
Writes seed_K_VARIANT.json and results.md into the working folder; resumable.
"""

import importlib
import itertools
import json
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from astropy.table import Table

from benchmarks.baselines import METHODS as BASELINES
from benchmarks.baselines import held_out_predictions
from launch import cli
from remap import io
from remap.config import ConfigError
from remap.labels import in_range, label_bins
from remap.pmf.bootstrap import nan_robust, paired_interval, star_scatter
from remap.pmf.metrics import residual_table
from remap.predict.held_out import predict_held_out
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import BAND, RESAMPLES, STAR_SCATTER, summarize
from remap.stages.expert import expert
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.atomic import write_json
from remap.store.checkpoint import has_final
from remap.store.stars import STATUS_OK, STATUS_OUTSIDE, readable_stars, within
from remap.store.workdir import share, stage_folder

SEEDS = flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Seeds of folds, networks and batches.", allow_override=True
)
ARGUMENT = flags.DEFINE_string(
    "argument", "", "Argument of configs/miles.py, for example 'short' or 'cenarro'."
)
PRETRAINED = flags.DEFINE_string(
    "pretrained", "", "Working folder whose pre-trained networks serve all seeds.", allow_override=True
)
PAIRED_RESAMPLES = 2000
LABEL_SETS = {"consensus": None, "Cenarro": "cenarro"}  # arguments of the config that say where they are
# The stars alone, with the rates of pre-training and with batch statistics of their own.
ALONE = {"rehearsal": 0.0, "correction": "none", "unlabelled": 0.0, "epochs_per_cycle": 30}
# Changes of config.finetune. "both kinds": giants are labelled, too, and are test stars of their folds.
VARIANTS = {
    "fine-tuned": {},
    "from scratch": ALONE
    | {"init": "scratch", "layer_rates": "uniform", "rate_factor": 1.0, "freeze_stats": False},
    "paper's way": ALONE | {"layer_rates": "graded", "rate_factor": 0.1},
    # As the argument `giants` of the config has it.
    "both kinds": {
        "select": {"logg": (0.0, 5.5)},
        "unlabelled": 0.0,
        "rehearsal": 0.75,
        "epochs_per_cycle": 18,
    },
}
CHOSEN = flags.DEFINE_list(
    "variants", ["fine-tuned", "from scratch"], f"Any of {', '.join(VARIANTS)}.", allow_override=True
)
RIDGE = "kernel ridge"
ALONE_SUFFIX, KINDS_SUFFIX = ", networks alone", ", both kinds"
METHODS = (
    "zero-shot",
    "fine-tuned",
    "fine-tuned" + ALONE_SUFFIX,
    "from scratch",
    "paper's way",
    "both kinds",
)
METHODS += ("both kinds" + ALONE_SUFFIX, *BASELINES, RIDGE + KINDS_SUFFIX)
COLUMNS = ("bias", "std", "robust", "scatter_star", "slope")
COLUMNS += ("cover68", "cover95", "cover68_labels", "cover68_star", "cover95_star", "nll_star", "crps")
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
            for truth, groups in one["residuals"].items():
                of_truth = found["residuals"].setdefault(truth, {})
                for group, methods in groups.items():
                    of_truth.setdefault(group, {}).update(methods)
            found["seconds"] |= {f"{variant}: {k}": v for k, v in one["seconds"].items()}
        results.append(found)
    text = markdown(results)
    (root / "results.md").write_text(text)
    print(text)


def run_seed(root: Path, seed: int, variant: str) -> dict:
    """One variant and one seed: rows of the report, residuals of the dwarfs, seconds per phase.

    "fine-tuned" brings along zero-shot and the baselines, "both kinds" kernel ridge on both kinds. Both have the
    stars as an expert and calibrated PMFs; "networks alone" have neither.
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
    if PRETRAINED.value:
        share_pretrained(Path(PRETRAINED.value), base, tuple(config.arm_names))
    else:
        timed("pretrain", pretrain, config, base)
    if workdir != base:
        share(workdir, "data", base)
        share(workdir, "pretrain", base)
    timed("finetune", finetune, config, workdir)
    whole = variant in ("fine-tuned", "both kinds")
    if whole:
        timed("expert", expert, config, workdir)
        timed("calibrate", calibrate, config, workdir)
    predictions = {variant: ("finetune", whole)}
    if whole:
        predictions[variant + ALONE_SUFFIX] = ("finetune", False)
    if variant == "fine-tuned":
        predictions["zero-shot"] = ("pretrain", False)
        baselines = dict(BASELINES)
    else:
        baselines = {RIDGE + KINDS_SUFFIX: BASELINES[RIDGE]} if variant == "both kinds" else {}
    stars = readable_stars(base)
    truths = {name: with_labels(stars, config, argument) for name, argument in LABEL_SETS.items()}
    groups = config.evaluate.groups
    rows, medians = [], {}
    for method, (stage, all_of_it) in predictions.items():
        found, tested = predict_held_out(
            config, workdir, stars, stage, calibrated=all_of_it, expert=all_of_it
        )
        for truth, labelled in truths.items():
            rows += [r | {"truth": truth} for r in summarize(found, labelled, tested, groups, method)]
        medians[method] = {
            name: np.where(tested, np.asarray(found.table[name], float), np.nan)
            for name in config.label_names
        }
    for method, fit in baselines.items():
        medians[method] = timed(method, held_out_predictions, config, base, stars, fit)
        for truth, labelled in truths.items():
            rows += [
                {"truth": truth, "stage": method, "group": group, "label": name}
                | residual_table(found, np.asarray(labelled[name], float)[member])
                | _star_scatter(found, labelled[member], name)
                for group, member in ((g, within(labelled, limits)) for g, limits in groups.items())
                for name, found in ((n, values[member]) for n, values in medians[method].items())
            ]
    residuals = {}
    for truth, labelled in truths.items():
        for group, limits in groups.items():
            member = within(labelled, limits)
            residuals.setdefault(truth, {})[group] = {
                method: {
                    n: (v[member] - np.asarray(labelled[n], float)[member]).tolist() for n, v in found.items()
                }
                for method, found in medians.items()
            }
    return {"seed": seed, "rows": rows, "residuals": residuals, "seconds": seconds, "jax": jax.__version__}


def share_pretrained(source: Path, workdir: Path, arms: tuple[str, ...]) -> None:
    """Gives a working folder the pre-trained networks of another; a missing one is an error, not a long training."""
    for arm in arms:
        if not has_final(stage_folder(source, "pretrain", arm) / "final"):
            raise ConfigError(
                f"--pretrained={source}: expected a finished pre-training of arm {arm}, found none"
            )
    share(workdir, "pretrain", source)
    found = (workdir / "pretrain").resolve()
    if found != (source / "pretrain").resolve():
        raise ConfigError(f"{workdir / 'pretrain'}: expected that of --pretrained={source}, found {found}")


def with_labels(stars: Table, config: ml_collections.ConfigDict, argument: str | None) -> Table:
    """The survey's stars with the labels of a set, NaN for a star that it does not have.

    Args:
      stars: S rows of `readable_stars`.
      config: whose bins decide which stars are reported.
      argument: of configs/miles.py.
    """
    survey = importlib.import_module("configs.miles").get_config(argument).survey
    path = io.find_data(survey.labels_path, root=config.data_root or None)
    table = io.read_labels(path, source=survey.labels)
    row = {star: i for i, star in enumerate(table.star_ids)}
    at = np.array([row.get(str(star), -1) for star in stars["star_id"]])
    out = stars.copy()
    for name in config.label_names:
        for column, values in ((name, table.values[name]), (f"{name}_err", table.errors[name])):
            out[column] = np.where(at >= 0, values[at], np.nan)
    values = np.stack([np.asarray(out[name], float) for name in config.label_names], axis=1)
    inside = in_range(values, label_bins(config.label_names, config.labels))
    out["status"] = np.where(inside, STATUS_OK, STATUS_OUTSIDE)
    return out


def _star_scatter(predicted: np.ndarray, stars: Table, label: str) -> dict[str, float]:
    """As in the rows of `summarize`, for methods without PMFs."""
    known, errors = (np.asarray(stars[name], float) for name in (label, f"{label}_err"))
    of_star = {"stars": np.asarray(stars["star_id"]).astype(str)}
    found = star_scatter(predicted - known, errors, resamples=RESAMPLES, level=BAND, seed=0, **of_star)
    return dict(zip(STAR_SCATTER, found, strict=True))


def markdown(results: list[dict]) -> str:
    """A table per set of labels and group: mean over the seeds ± their standard deviation."""
    lines = []
    if PRETRAINED.value:
        lines += ["One pre-trained network per arm serves all seeds."]
    lines += [
        "",
        "`scatter_star` with its 95 % bootstrap interval over stars, the mean of the seeds' intervals.",
    ]
    groups = list(dict.fromkeys(r["group"] for r in results[0]["rows"]))
    labels = list(dict.fromkeys(r["label"] for r in results[0]["rows"]))
    for truth, group in itertools.product(results[0]["residuals"], groups):
        lines += [
            "",
            f"**{group}, against the labels of {truth}**",
            "",
            f"| method | label | n | {' | '.join(COLUMNS)} |",
        ]
        lines.append("|" + "---|" * (3 + len(COLUMNS)))
        methods = [m for m in METHODS if m in results[0]["residuals"][truth][group]]
        for method in methods:
            for label in labels:
                key = {"truth": truth, "stage": method, "group": group, "label": label}
                rows = [r for s in results for r in s["rows"] if key.items() <= r.items()]
                cells = [_cell(rows, label, c) for c in COLUMNS]
                lines.append(f"| {method} | {label} | {rows[0]['n']} | {' | '.join(cells)} |")
        for ours in ("fine-tuned", "both kinds"):
            others = [m for m in methods if not m.startswith(ours)]
            if ours not in methods or not others:
                continue
            lines += [
                "",
                f'Robust scatter of "{ours}" over that of the others on {group}, the same stars resampled for both; '
                "95 % intervals:",
                "",
                f"| over | {' | '.join(labels)} |",
                "|" + "---|" * (1 + len(labels)),
            ]
            for method in others:
                ratios = (_ratio(results, truth, group, ours, method, label) for label in labels)
                lines.append(f"| {method} | {' | '.join(ratios)} |")
    lines += ["", "Seconds per phase, median over seeds: "]
    names = results[0]["seconds"]
    lines[-1] += ", ".join(f"{n} {np.median([s['seconds'][n] for s in results]):.0f}" for n in names) + "."
    return "\n".join(lines) + "\n"


def _ratio(results: list[dict], truth: str, group: str, mine: str, method: str, label: str) -> str:
    """Ratio of the robust scatters, each the mean over seeds, with a bootstrap interval over stars."""
    ours, theirs = (
        np.array([r["residuals"][truth][group][m][label] for r in results]) for m in (mine, method)
    )
    found = paired_interval(
        ours,
        theirs,
        nan_robust,
        stars=np.arange(ours.shape[1]),  # MILES has one spectrum per star
        compare="ratio",
        resamples=PAIRED_RESAMPLES,
        level=0.95,
        resample_runs=False,
        seed=0,
    )
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _cell(rows: list[dict], label: str, column: str) -> str:
    values = [row.get(column) for row in rows]
    if any(v is None for v in values):
        return ""
    in_unit = ("bias", "std", "robust", "scatter_star", "crps")
    form = FORMATS[label] if column in in_unit else "{:.2f}"
    text = form.format(np.mean(values)) + " ± " + form.format(np.std(values))
    if column == "scatter_star":
        low, high = (form.format(np.mean([row[end] for row in rows])) for end in STAR_SCATTER[1:])
        text += f" ({low} to {high})"
    return text


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
