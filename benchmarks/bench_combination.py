"""How the arms combine and how the result is calibrated: every form on the same networks of `bench_miles`.

    python -m benchmarks.bench_combination --workdir=workdirs/bench_miles --seeds=0,1,2

Combination: conflation (paper eq. 6), the same with the distribution of the labels in training counted once, and the
mean of the arms. Calibration: none, temperature (§4.5), power and outliers by likelihood, both by coverage, and
the power by the likelihood of PMF ⊗ label error; all are fitted to dwarfs. NLL and coverage are those of the
labels under PMF ⊗ label error, so that they are the star's own. They are to be compared on the validation stars
(each predicted with a calibration fitted to the others, in ten parts); the test stars (calibrated without their
fold's own) are for the record. Writes combination.md into the working folder.
"""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
from absl import flags

from launch import cli
from remap.pmf.calibration import KINDS
from remap.pmf.calibration_fit import fit_widening
from remap.pmf.distributions import COMBINATIONS, combine_arms
from remap.pmf.metrics import coverage, crps, nll
from remap.predict.held_out import HeldOut, predict_survey
from remap.stages.calibrate import calibration_settings
from remap.store.stars import readable_stars, within

SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of bench_miles to use.")
ARGUMENT = flags.DEFINE_string("argument", "", "Argument of configs/miles.py that bench_miles was given.")
PARTS = 10
COLUMNS = ("nll", "crps", "cover68", "cover95")


def main() -> None:
    root = Path(cli.WORKDIR.value)
    found: dict[tuple[str, str, str, str], list[np.ndarray]] = {}
    for seed in (int(s) for s in SEEDS.value):
        for key, numbers in one_seed(root / f"seed_{seed}", seed).items():
            found.setdefault(key, []).append(numbers)
    text = markdown({key: np.mean(numbers, axis=0) for key, numbers in found.items()})
    (root / "combination.md").write_text(text)
    print(text)


def one_seed(workdir: Path, seed: int) -> dict[tuple[str, str, str, str], np.ndarray]:
    """(part, label, combination, calibration) -> numbers of `COLUMNS` for the dwarfs."""
    config = importlib.import_module("configs.miles").get_config(ARGUMENT.value or None)
    with config.unlocked():
        config.seed = seed
    settings = calibration_settings(config.calibrate)
    stars = readable_stars(workdir)
    dwarfs = within(stars, config.evaluate.groups["dwarfs"])
    ids = np.asarray(stars["star_id"])
    survey = predict_survey(config, workdir, stars, "finetune", calibrated=False)
    val, test = survey.held_out("val"), survey.held_out("test")
    fitted_to = np.flatnonzero(val.tested & dwarfs & within(stars, config.calibrate.select))
    part = np.random.default_rng(seed).permutation(len(fitted_to)) % PARTS
    out = {}
    for j, bins in enumerate(val.predictor.preprocessing.labels):
        truth, errors = (np.asarray(stars[c], float) for c in (bins.name, f"{bins.name}_err"))
        for combination in COMBINATIONS:
            pmf = {p: _combined(h, j, bins.bins, combination) for p, h in (("val", val), ("test", test))}
            for kind in KINDS:
                rule = dataclasses.replace(settings, kind=kind)

                def fit(rows: np.ndarray, pmf=pmf["val"], rule=rule, truth=truth, errors=errors, bins=bins):
                    return fit_widening(pmf[rows], bins.edges, truth[rows], rule, errors=errors[rows])

                held = np.full(pmf["val"].shape, np.nan)
                for k in range(PARTS):
                    mine = fitted_to[part == k]
                    others = ~np.isin(ids[fitted_to], ids[mine])
                    held[mine] = fit(fitted_to[others])(pmf["val"][mine], bins.edges)
                tested = np.full(pmf["test"].shape, np.nan)
                for fold in np.unique(test.fold[test.fold >= 0]):
                    mine = test.fold == fold
                    own = fit(fitted_to[~np.isin(ids[fitted_to], ids[mine])])
                    tested[mine] = own(pmf["test"][mine], bins.edges)
                for name, wide, rows in (
                    ("validation", held, fitted_to[dwarfs[fitted_to]]),
                    ("test", tested, np.flatnonzero(dwarfs & (test.fold >= 0))),
                ):
                    given, error = (wide[rows], bins.edges, truth[rows]), errors[rows]
                    out[name, bins.name, combination, kind] = np.array(
                        [
                            np.mean(nll(*given, error)),
                            np.mean(crps(*given)),
                            *coverage(*given, [0.68, 0.95], error),
                        ]
                    )
    return out


def _combined(held: HeldOut, label: int, bins: int, combination: str) -> np.ndarray:
    """float[S, K]: the arms' PMFs of one label as one."""
    pmfs = np.stack([arm.pmf[label][:, :bins] for arm in held.arms.values()])
    used = np.stack([arm.used for arm in held.arms.values()])
    prior = held.predictor.prior(label, bins)
    return combine_arms(np.where(used[..., None], pmfs, np.nan), used, method=combination, prior=prior)


def markdown(found: dict[tuple[str, str, str, str], np.ndarray]) -> str:
    """One table per part, mean over the seeds."""
    lines = []
    for part in ("validation", "test"):
        labels = list(dict.fromkeys(label for p, label, *_ in found if p == part))
        lines += ["", f"**{part} dwarfs**: {', '.join(COLUMNS)}", ""]
        lines += [f"| combination | calibration | {' | '.join(labels)} |", "|" + "---|" * (2 + len(labels))]
        for combination in COMBINATIONS:
            for kind in KINDS:
                cells = []
                for label in labels:
                    likelihood, score, *held = found[part, label, combination, kind]
                    cells.append(f"{likelihood:.2f}, {score:.3g}, {held[0]:.2f}, {held[1]:.2f}")
                lines.append(f"| {combination} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
