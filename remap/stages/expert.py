"""The stage `expert`: the labelled stars as an expert beside the fine-tuned networks (`remap.predict.expert`).

It stands between `finetune` and `calibrate`. For every fold processes are fitted to its training stars; what they
say of its validation stars decides how they and the networks are pooled. New stars are given the processes of all
labelled stars.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from remap.config import ConfigError, record
from remap.labels import padded_edges
from remap.pmf.distributions import combine_arms, pool
from remap.pmf.gaussian_process import Process, ProcessSettings, fit_process
from remap.pmf.observed import density_kernel
from remap.predict.ensemble import read_ensemble
from remap.predict.expert import (
    Expert,
    Opinion,
    References,
    arm_inputs,
    joint_distances,
    make_block,
    weighed,
)
from remap.predict.expert_store import save_expert
from remap.predict.held_out import HeldOut, SurveyPrediction, predict_survey
from remap.stages.common import start_stage
from remap.store.stars import labelled_rows, readable_stars
from remap.store.workdir import write_config
from remap.writing import check_writable

logger = logging.getLogger(__name__)

KINDS = ("none", "gaussian_process")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSettings(ProcessSettings):
    """Of this stage (config section `expert`).

    Attributes:
      kind: "gaussian_process", or "none" (the paper has no such thing).
      power_sigma: width of the priors on the natural logarithms of both powers, centred on ½ each.
      outliers, outliers_sigma: centre of the prior on the share of wrong labels, and its width on the logistic scale.
      outliers_breadth: errors of wrong labels over those that are quoted.
      min_stars: fewer training stars give no process, fewer validation stars leave the networks' PMFs alone.
    """

    kind: str = "none"
    power_sigma: float = 1.0
    outliers: float = 0.05
    outliers_sigma: float = 1.5
    outliers_breadth: float = 5.0
    min_stars: int = 20

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"expert.kind must be one of {KINDS}, found {self.kind!r}")
        positive = ("prior", "scatter", "iterations", "power_sigma", "outliers_sigma", "outliers_breadth")
        if wrong := {n: getattr(self, n) for n in positive if not getattr(self, n) > 0}:
            raise ConfigError(f"expert: expected positive numbers, found {wrong}")
        if not 0 < self.outliers < 1 or self.min_stars < 2 or self.clip < 0:
            raise ConfigError(
                "expert: expected 0 < outliers < 1, min_stars >= 2 and clip >= 0, found "
                f"{self.outliers}, {self.min_stars} and {self.clip}"
            )


def expert(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Fits the processes and how they are pooled with the fine-tuned networks, and writes `expert/`.

    Returns:
      One row per label and set of arms: both powers, the process's scatter, the numbers of stars.

    Raises:
      FileNotFoundError: the fine-tuning has not been run.
      ConfigError: `expert.kind` is "none", the networks were not pre-trained, or the config contradicts them.
    """
    workdir = Path(workdir)
    settings = record(ExpertSettings, config.expert, "expert")
    if settings.kind == "none":
        raise ConfigError("expert.kind is 'none': there is nothing to do; set it to 'gaussian_process'")
    if config.finetune.init != "pretrained":
        raise ConfigError(
            f"expert compares stars by the pre-trained networks, found finetune.init {config.finetune.init!r}"
        )
    check_writable(workdir / "expert" / "references.npz")
    stars = readable_stars(workdir)
    survey = predict_survey(
        config,
        workdir,
        stars,
        "finetune",
        calibrated=False,
        expert=False,
        rows=labelled_rows(workdir, stars),
    )
    stars = survey.stars
    mine = np.any([split != "other" for split in survey.splits.values()], axis=0)
    references = _references(config, workdir, survey, mine)
    distances = {
        arm: np.asarray(references.distances(arm, jnp.asarray(x.normalized.flux), jnp.asarray(x.raw.valid)))
        for arm, x in survey.inputs.items()
    }
    among = {arm: d[:, mine] for arm, d in distances.items()}  # of the references to each other
    names = list(survey.predictor.labels)
    labels = {n: np.asarray(stars[n], float)[mine] for n in names}
    errors = {n: np.asarray(stars[f"{n}_err"], float)[mine] for n in names}
    used = {arm: x.used[mine] for arm, x in survey.held_out("val").arms.items()}

    def fit_all(rows: np.ndarray) -> dict[str, dict[str, tuple[Process, np.ndarray]]]:
        """label -> set of arms -> the process of the references that are True in `rows`, and which these are."""
        found: dict[str, dict[str, tuple[Process, np.ndarray]]] = {name: {} for name in names}
        for name, key in itertools.product(names, _sets(tuple(used))):
            seen = np.all([used[arm] for arm in key.split("+")], axis=0)
            own = np.flatnonzero(
                rows & seen & np.isfinite(labels[name]) & np.isfinite(errors[name]) & (errors[name] > 0)
            )
            if len(own) >= max(settings.min_stars, 3):
                each = list(joint_distances(among, key, own)[:, :, own])
                found[name][key] = fit_process(each, labels[name][own], errors[name][own], settings), own
        return found

    processes = {fold: fit_all((split == "train")[mine]) for fold, split in survey.splits.items()}
    everyone = fit_all(np.ones(np.count_nonzero(mine), bool))
    found = survey.held_out("val")
    ids = np.asarray(stars["star_id"])
    known_of_fold = {fold: _known(labels, (split == "train")[mine]) for fold, split in survey.splits.items()}
    powers = _Powers(found, distances, processes, known_of_fold, stars, settings)
    common = powers.fit(found.tested)
    known = _known(labels, np.ones(np.count_nonzero(mine), bool))
    whole = _expert(everyone, common, known)
    folds = {
        fold: _expert(
            processes[fold],
            powers.fit(found.tested & ~np.isin(ids, ids[split == "test"])),
            known_of_fold[fold],
        )
        for fold, split in survey.splits.items()
    }
    save_expert(
        workdir,
        references,
        whole,
        folds,
        labels,
        ids[mine],
        survey.predictor.description,
        start_stage(config),
    )
    write_config(workdir, config)
    rows = [
        {
            "label": name,
            "arms": key,
            "network": o.powers[0],
            "stars": o.powers[1],
            "scatter": o.process.scatter * o.process.scale,
            "fitted": len(o.rows),
            "validation": o.stars,
        }
        for name, each in whole.opinions.items()
        for key, o in each.items()
    ]
    for row in rows:
        logger.info(
            "expert: %(label)s, arms %(arms)s: power %(network).2f of the networks, %(stars).2f of the stars, "
            "scatter %(scatter).3g, %(fitted)d stars",
            row,
        )
    return Table(rows=rows)


def _sets(arms: tuple[str, ...]) -> list[str]:
    """All sets of arms, each written as names joined by +."""
    return ["+".join(c) for n in range(1, len(arms) + 1) for c in itertools.combinations(arms, n)]


def _references(
    config: ml_collections.ConfigDict, workdir: Path, survey: SurveyPrediction, mine: np.ndarray
) -> References:
    """The stars `mine` bool[T] of the survey as references."""
    preprocessing = survey.predictor.preprocessing
    networks = read_ensemble(workdir, preprocessing, start_stage(config), None).networks
    edges = padded_edges(preprocessing.labels).astype(np.float32)
    blocks = {}
    for arm, x in survey.inputs.items():
        flux, valid = x.normalized.flux[mine], x.raw.valid[mine]
        network = networks[arm]
        if len(network.members) != 1:
            raise ConfigError(
                f"expert: expected one pre-trained network of arm {arm}, found {len(network.members)}"
            )
        inputs = arm_inputs(
            network.members[0], jnp.asarray(flux), jnp.asarray(valid), jnp.asarray(edges), model=network.model
        )
        seen = valid.mean(axis=1) >= config.predict.min_coverage
        blocks[arm] = tuple(make_block(np.asarray(v), seen) for v in jax.device_get(inputs))
    return References(networks, blocks, edges)


def _known(labels: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, tuple[float, float]]:
    """Least and greatest value of every label among references."""
    own = {name: values[rows & np.isfinite(values)] for name, values in labels.items()}
    return {name: (float(v.min()), float(v.max())) for name, v in own.items() if len(v)}


def _expert(
    processes: Mapping[str, Mapping[str, tuple[Process, np.ndarray]]],
    powers: Mapping[str, Mapping[str, tuple[tuple[float, float], int]]],
    known: Mapping[str, tuple[float, float]],
) -> Expert:
    opinions = {
        name: {key: Opinion(process, rows, *powers[name][key]) for key, (process, rows) in each.items()}
        for name, each in processes.items()
    }
    return Expert(opinions, known)


class _Pair(NamedTuple):
    """What there is of the validation stars for one label and set of arms."""

    rows: np.ndarray  # int[V]
    first: np.ndarray  # float[V, K], the networks' PMFs
    second: np.ndarray  # float[V, K], the opinions of their folds' processes
    competence: np.ndarray  # float[V]
    right: np.ndarray  # float[V, K], log density of the label, if its error is as quoted,
    wrong: np.ndarray  # and if it is wrong


class _Powers:
    """What validation stars say of the powers: by the networks' PMFs of them and their folds' processes."""

    def __init__(
        self,
        found: HeldOut,
        distances: Mapping[str, np.ndarray],
        processes: Mapping[int, Mapping[str, Mapping[str, tuple[Process, np.ndarray]]]],
        known: Mapping[int, Mapping[str, tuple[float, float]]],
        stars: Table,
        settings: ExpertSettings,
    ) -> None:
        self.settings = settings
        bins = found.predictor.preprocessing.labels
        edges = {b.name: b.edges for b in bins}
        self.pairs: dict[str, dict[str, _Pair]] = {b.name: {} for b in bins}
        for key in _sets(tuple(found.arms)):
            arms = [found.arms[arm] for arm in key.split("+")]
            rows = np.flatnonzero(found.tested & np.all([a.used for a in arms], axis=0))
            folds = found.fold[rows]
            joint = {
                b.name: combine_arms(
                    np.stack([a.pmf[j][rows, : b.bins] for a in arms]),
                    np.ones((len(arms), len(rows)), bool),
                    method=found.predictor.config["predict"]["combine"],
                    prior=found.predictor.prior(j, b.bins),
                )
                for j, b in enumerate(bins)
            }
            competence, near = np.zeros(len(rows)), joint_distances(distances, key, rows)
            for fold in np.unique(folds):
                here = folds == fold
                own = {name: pmf[here] for name, pmf in joint.items()}
                competence[here] = Expert({}, known[int(fold)]).competence(own, edges)
            for b in bins:
                second = np.full(joint[b.name].shape, np.nan)
                for fold in np.unique(folds):
                    if key in processes[int(fold)][b.name]:
                        opinion = Opinion(*processes[int(fold)][b.name][key], (1.0, 1.0), 0)
                        second[folds == fold] = opinion.pmf(near[:, folds == fold], b.edges)
                label, error = (np.asarray(stars[name], float)[rows] for name in (b.name, f"{b.name}_err"))
                fits = (error > 0) & (label >= b.low) & (label <= b.high) & np.isfinite(second).all(axis=1)
                right, wrong = (
                    density_kernel(b.edges, label[fits], error[fits] * breadth)
                    for breadth in (1.0, settings.outliers_breadth)
                )
                pmfs = joint[b.name][fits], second[fits]
                self.pairs[b.name][key] = _Pair(rows[fits], *pmfs, competence[fits], right, wrong)

    def fit(self, chosen: np.ndarray) -> dict[str, dict[str, tuple[tuple[float, float], int]]]:
        """Both powers, and the number of stars, for every label and set of arms, by the stars `chosen` bool[T]."""
        return {
            name: {key: self._fit(chosen, pair) for key, pair in each.items()}
            for name, each in self.pairs.items()
        }

    def _fit(self, chosen: np.ndarray, pair: _Pair) -> tuple[tuple[float, float], int]:
        """Those that the labels, errors and all, are likeliest under; wrong labels are a share of the labels."""
        s = self.settings
        keep = chosen[pair.rows] & np.isfinite(pair.first).all(axis=1)
        count = int(np.count_nonzero(keep))
        if count < s.min_stars:
            return (1.0, 0.0), count
        _, first, second, competence, right, wrong = (x[keep] for x in pair)
        middle = np.log(s.outliers / (1 - s.outliers))

        def objective(x: np.ndarray) -> float:
            v, w = np.exp(np.clip(x[:2], -6, 6))
            share = expit(x[2])
            with np.errstate(divide="ignore"):
                logs = np.log(pool(first, second, powers=weighed((v, w), competence)))
            one, other = (logsumexp(logs + kernel, axis=1) for kernel in (right, wrong))
            found = np.sum(np.logaddexp(np.log1p(-share) + one, np.log(share) + other))
            prior = np.sum(((x[:2] - np.log(0.5)) / s.power_sigma) ** 2)
            prior += ((x[2] - middle) / s.outliers_sigma) ** 2
            return float(0.5 * prior - found)

        start = np.array([np.log(0.5), np.log(0.5), middle])
        simplex = np.concatenate([start[None], start + np.diag([0.4, 0.4, 0.5])])
        best = minimize(objective, start, method="Nelder-Mead", options={"initial_simplex": simplex}).x
        v, w = np.exp(np.clip(best[:2], -6, 6))
        return (float(v), float(w)), count
