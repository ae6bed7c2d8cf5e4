"""How sure is a network of itself? Averaged weights, the ends of cycles, and SWAG, on MILES's validation stars.

    python -m benchmarks.bench_epistemic --workdir=workdirs/bench_epistemic --pretrained=workdirs/bench_choices/miles
    python -m benchmarks.bench_epistemic --workdir=/tmp/short --short             a minute, for tests

Fine-tuning of `configs/miles.py:giants` with many short cycles, whose ends are kept (`finetune.average` "snapshots").
Of them: the mean of their weights (eq. 5 of the paper), the last one, the mean of their PMFs, and SWAG (Maddox et al.
2019, arXiv:1902.02476): the mean of the PMFs of networks drawn from a normal distribution with the mean of the
weights and half of their diagonal and half of their low-rank covariance, times `SCALES`. Negative log likelihood of
the labels under PMF ⊗ label error and CRPS, before and after a calibration (`fit_widening`, each star by a fit to the
others, in ten parts). `apart`: standard deviation of the members' medians over the half width of the 68 % interval,
median over stars. Writes epistemic.md into the working folder; resumable.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from astropy.table import Table

from benchmarks.bench_miles import share_pretrained
from launch import cli
from remap.pmf.calibration_fit import fit_widening
from remap.pmf.distributions import combine_arms, pmf_quantile
from remap.pmf.metrics import crps, nll
from remap.predict.held_out import SurveyPrediction, predict_survey
from remap.stages.calibrate import calibration_settings
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.stars import readable_stars, within
from remap.train.keys import root_key

FOLDS = flags.DEFINE_list("folds", ["0", "1", "2"], "Folds, of five.", allow_override=True)
FROM = flags.DEFINE_string("pretrained", "", "Working folder with pre-trained networks.", allow_override=True)
SHORT = flags.DEFINE_bool("short", False, "A training of seconds that proves nothing.", allow_override=True)
CYCLES = {"cycles": 12, "epochs_per_cycle": 6}
SAMPLES = 16
SCALES = (1.0, 4.0)  # of the covariance
PARTS = 10
FORMATS = {"teff": "{:.1f}", "logg": "{:.4f}", "feh": "{:.4f}"}


def main() -> None:
    root = Path(cli.WORKDIR.value)
    config = config_of(tuple(int(f) for f in FOLDS.value), short=SHORT.value)
    if not (root / "data" / "preprocessing.json").is_file():
        preprocess(config, root)
    if FROM.value:
        share_pretrained(Path(FROM.value), root, tuple(config.arm_names))
    else:
        pretrain(config, root)
    finetune(config, root)
    stars = readable_stars(root)
    survey = predict_survey(config, root, stars, "finetune", calibrated=False, expert=False)
    text = "\n".join(table(config, stars, ways(survey))) + "\n"
    (root / "epistemic.md").write_text(text)
    print(text)


def config_of(folds: tuple[int, ...], *, short: bool) -> ml_collections.ConfigDict:
    """That of MILES, dwarfs and giants, with the ends of many cycles kept."""
    c = importlib.import_module("configs.miles").get_config("giants,short" if short else "giants")
    with c.unlocked():
        c.embeddings.epochs = ()
        c.split.run = folds
        c.finetune.average = "snapshots"
        if not short:
            c.finetune.update(CYCLES)
    return c


def ways(survey: SurveyPrediction) -> dict[str, SurveyPrediction]:
    """Name -> the survey's prediction by other members made of the snapshots of each fold."""
    found = {
        "mean of the weights": _with_members(survey, lambda own, _: [swag_mean(own)]),
        "last cycle": _with_members(survey, lambda own, _: own[-1:]),
        "mean of the PMFs of all cycles": survey,
    }
    for scale in SCALES:
        found[f"SWAG, covariance times {scale:g}"] = _with_members(
            survey, lambda own, key, s=scale: swag_samples(key, own, count=SAMPLES, scale=s)
        )
    return found


def swag_mean(snapshots: list[Any]) -> Any:
    """The mean of the parameters; the other variables are those of the first."""
    params = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x), axis=0), *(s["params"] for s in snapshots))
    return {**snapshots[0], "params": params}


def swag_samples(key: jax.Array, snapshots: list[Any], *, count: int, scale: float) -> list[Any]:
    """Networks from N(mean, scale (diagonal + low rank) / 2) of the snapshots' parameters (Maddox et al., eq. 1)."""
    mean = swag_mean(snapshots)
    apart = jax.tree.map(
        lambda m, *x: jnp.stack(x) - m[None], mean["params"], *(s["params"] for s in snapshots)
    )
    leaves, tree = jax.tree.flatten(apart)
    out = []
    for one in jax.random.split(key, count):
        low_key, *keys = jax.random.split(one, len(leaves) + 1)
        weight = jax.random.normal(low_key, (len(snapshots),)) / np.sqrt(len(snapshots) - 1)
        moved = [
            np.sqrt(scale / 2)
            * (jnp.tensordot(weight, d, axes=1) + d.std(axis=0) * jax.random.normal(k, d.shape[1:]))
            for k, d in zip(keys, leaves, strict=True)
        ]
        params = jax.tree.map(jnp.add, mean["params"], jax.tree.unflatten(tree, moved))
        out.append({**mean, "params": params})
    return out


def _with_members(survey: SurveyPrediction, make: Any) -> SurveyPrediction:
    """The same with other members: `make` gets the snapshots of a fold, and a key."""
    networks = {}
    for arm, network in survey.predictor.networks.items():
        members, folds = [], []
        for fold in dict.fromkeys(network.folds):
            own = [m for m, f in zip(network.members, network.folds, strict=True) if f == fold]
            made = make(own, root_key(0, "swag", arm, "fold", fold))
            members, folds = members + made, folds + [fold] * len(made)
        networks[arm] = network._replace(members=tuple(members), folds=tuple(folds))
    predictor = dataclasses.replace(survey.predictor, networks=networks)
    pmfs = {
        arm: predictor.member_pmfs(arm, x.normalized.flux, x.raw.valid) for arm, x in survey.inputs.items()
    }
    return survey._replace(predictor=predictor, pmfs=pmfs)


def table(
    config: ml_collections.ConfigDict, stars: Table, found: dict[str, SurveyPrediction]
) -> Iterator[str]:
    """Lines, one per group, label and way."""
    settings = dataclasses.replace(calibration_settings(config.calibrate), groups={})
    yield "| group | label | networks | members | apart | NLL | CRPS | NLL, calibrated | CRPS, calibrated |"
    yield "|---" * 9 + "|"
    rows = {}
    for way, survey in found.items():
        held = survey.held_out("val", calibrated=False)
        used = np.stack([arm.used for arm in held.arms.values()])
        at = np.flatnonzero(held.tested & (held.fold >= 0) & used.all(axis=0))
        part = np.random.default_rng(0).permutation(len(at)) % PARTS
        for j, bins in enumerate(held.predictor.preprocessing.labels):
            arms = np.stack([arm.pmf[j][at, : bins.bins] for arm in held.arms.values()])
            pmf = combine_arms(arms, np.ones(arms.shape[:2], bool), method=config.predict.combine)
            truth, errors = (np.asarray(stars[c], float)[at] for c in (bins.name, f"{bins.name}_err"))
            wide = np.empty(pmf.shape)
            for k in range(PARTS):
                fit = fit_widening(
                    *(pmf[part != k], bins.edges, truth[part != k], settings), errors=errors[part != k]
                )
                wide[part == k] = fit(pmf[part == k], bins.edges)
            low, high = pmf_quantile(pmf, bins.edges, (0.16, 0.84)).T
            apart = _apart(survey, held.fold[at], at, j, bins) / ((high - low) / 2)
            numbers = [
                measure(p, bins.edges, truth, *more)
                for p in (pmf, wide)
                for measure, more in ((nll, (errors,)), (crps, ()))
            ]
            for group, limits in config.evaluate.groups.items():
                mine = within(stars, limits)[at]
                own = [float(np.nanmean(v[mine])) for v in numbers]
                rows[group, bins.name, way] = (
                    len(next(iter(survey.pmfs.values()))),
                    np.nanmedian(apart[mine]),
                    *own,
                )
    for (group, label, way), (members, apart, *own) in sorted(rows.items(), key=lambda r: r[0][:2]):
        form = FORMATS[label]
        cells = [f"{own[0]:.3f}", form.format(own[1]), f"{own[2]:.3f}", form.format(own[3])]
        yield f"| {group} | {label} | {way} | {members // len(FOLDS.value)} | {apart:.2f} | {' | '.join(cells)} |"


def _apart(survey: SurveyPrediction, fold: np.ndarray, at: np.ndarray, label: int, bins: Any) -> np.ndarray:
    """float[S]: standard deviation of the medians of the members of a star's fold, mean of the arms."""
    out = []
    for arm, network in survey.predictor.networks.items():
        pmf = survey.pmfs[arm][:, label][:, at, : bins.bins]
        medians = pmf_quantile(pmf, bins.edges, 0.5)
        own = np.asarray(network.folds)[:, None] == fold[None]
        out.append(np.std(medians, axis=0, where=own))
    return np.sqrt(np.mean(np.square(out), axis=0) / len(out))


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
