"""Predictions of a survey's labelled stars by networks that never saw them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import ConfigError, config_to_json
from remap.pmf.calibration import Calibration, FoldCalibration
from remap.predict.arms import ArmInputs, ArmPrediction, NormalizedArm
from remap.predict.catalogue import Catalogue
from remap.predict.ensemble import check_common, check_config, mean_pmf
from remap.predict.expert import Expert, FoldExpert
from remap.predict.expert_store import read_expert
from remap.predict.fold_references import FoldReferences
from remap.predict.loading import load
from remap.predict.neighbors import unit_mean
from remap.predict.predictor import Predictor
from remap.predict.references import Look, bridged
from remap.store.stars import read_split, split_settings
from remap.store.workdir import check_prepared, load_survey, read_calibration

_PARTS = ("train", "val", "test")  # of a split, besides "other"
_SIZES = ("batch_size", "small_batch_size")  # of `predict`: they change the speed alone


class HeldOut(NamedTuple):
    """What networks say of stars that they did not train on."""

    predictor: Predictor  # all folds together, calibrated by fold where there is a calibration
    arms: dict[str, ArmPrediction]  # of the S stars; those of `tested` by their own fold alone
    tested: np.ndarray  # bool[S], True where no network used had trained on the star
    fold: np.ndarray  # int[S], the fold whose network predicts the star, -1 = the mean over all
    known: FoldReferences | None = None  # what the stars are compared with; None = nothing

    def catalogue(self, stars: Table) -> Catalogue:
        """The arms combined, calibrated if the predictor is, and compared with the references if there are any."""
        names, ids = list(stars["file"]), list(stars["star_id"])
        return self.predictor.combine(self.arms, names, star_ids=ids, known=self.known)


class SurveyInputs(NamedTuple):
    """The survey's spectra of one arm, before and after normalisation."""

    raw: ArmInputs
    normalized: NormalizedArm


class SurveyPrediction(NamedTuple):
    """What every network of a stage says of survey spectra; which of them may speak is `held_out`'s choice."""

    predictor: Predictor
    stars: Table  # S rows, of the spectra that were asked for
    inputs: dict[str, SurveyInputs]
    pmfs: dict[str, np.ndarray]  # arm -> float32[M, L, S, K], of each network
    splits: dict[int, np.ndarray]  # fold -> str[S], who trained its networks; {} where no star trained any
    parts: dict[int, dict[str, np.ndarray]]  # fold -> part -> identifiers of its stars, of the whole survey
    calibrations: dict[int, Calibration]  # fold -> fit without its test stars, {} without a calibration
    experts: dict[int, Expert]  # fold -> the expert of its training stars, {} without one
    distances: dict[str, np.ndarray]  # arm -> float32[B, S, R] to the expert's references, {} without one
    looks: Mapping[str, Look] = MappingProxyType(
        {}
    )  # arm -> what is compared with the references, {} = nothing

    def held_out(self, part: str = "test", *, calibrated: bool = True) -> HeldOut:
        """Each star by networks that did not train on it, where there are any.

        Args:
          part: "test" for the test stars, each by its own fold, and the stars that no fold trains or tests on, by
            the mean over all; "val" for the validation stars, each by the first of the folds in which it is one:
            for choosing settings.
          calibrated: use the calibration, if the predictor has one.
        """
        chosen = {arm: np.array(mean_pmf(each)) for arm, each in self.pmfs.items()}
        tested, of_star = self._sides(part)
        for fold in self.splits:
            mine = of_star == fold
            for arm, each in self.pmfs.items():
                own = np.array(self.predictor.networks[arm].folds) == fold
                chosen[arm][:, mine] = np.asarray(mean_pmf(each[own]))[:, mine]
        arms = {
            arm: self.predictor.arm_prediction(arm, x.raw, chosen[arm], x.normalized.trouble)._replace(
                distances=self.distances.get(arm), look=self.looks.get(arm)
            )
            for arm, x in self.inputs.items()
        }
        expert = self.predictor.expert
        if expert is not None:
            expert = FoldExpert(self.experts, of_star, expert)
        calibration = self.predictor.calibration if calibrated else None
        if calibration is not None:
            calibration = FoldCalibration(self.calibrations, of_star, calibration)
        known = None
        if self.looks:
            members = {arm: network.folds for arm, network in self.predictor.networks.items()}
            ids = [str(name) for name in self.stars["star_id"]]
            known = FoldReferences(self.predictor.known, members, of_star, ids)
        predictor = dataclasses.replace(self.predictor, calibration=calibration, expert=expert)
        return HeldOut(predictor, arms, tested, of_star, known)

    def _sides(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """`tested` and `fold` of `HeldOut`."""
        of_star = np.full(len(self.stars), -1)
        if not self.splits:
            return np.ones(len(self.stars), bool), of_star
        # By star, not by spectrum: a spectrum that was not selected may be another one of a star that was, whose own
        # is perhaps not among these rows.
        ids = np.asarray(self.stars["star_id"])
        first = next(iter(self.parts.values()))
        tested = ~np.isin(ids, np.concatenate(list(first.values()))) & (part == "test")
        for fold, parts in self.parts.items():
            mine = np.isin(ids, parts[part]) & ~tested
            tested |= mine
            of_star[mine] = fold
        return tested, of_star


def predict_survey(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stars: Table,
    stage: str,
    *,
    calibrated: bool = True,
    expert: bool = True,
    references: bool = False,
    inputs: Mapping[str, SurveyInputs] | None = None,
    rows: np.ndarray | None = None,
) -> SurveyPrediction:
    """Runs every network of a stage once on survey spectra, which are normalised once.

    Args:
      config: must be that of the folder's data and, for the stage "finetune", of its networks; `split.run` says which
        folds are used.
      stars: all rows of `store.stars.readable_stars`.
      calibrated: read the calibration of the fine-tuned networks, where there is one.
      expert: read the expert beside them, where there is one.
      references: compare with what `launch.references` has kept of the fine-tuned networks, where it has.
      inputs: those of another stage's prediction of the same rows in the same folder, not to normalise the spectra
        again.
      rows: int[S], the spectra that are predicted, at least one; None = all. Nothing of the others comes into memory,
        and who trained which networks is read of all.

    Raises:
      FileNotFoundError: the stage has not been run, or not for all folds.
      ConfigError: the config contradicts the networks or the folder, the networks do not belong together, or the
        calibration lacks a fold; names the folder and both values.
      ValueError: the survey is not that of the split, and what `predictor.load` raises.
    """
    workdir = Path(workdir)
    folds = list(config.split.run) if stage == "finetune" else None
    predictor = load(
        workdir, stage=stage, folds=folds, calibrated=calibrated, expert=expert, references=references
    )
    check_prepared(config, workdir)
    own, recorded = config_to_json(config), {"predict": predictor.config["predict"]}
    check_common(recorded, own, f"{workdir / 'config.json'}: other settings than the config's", free=_SIZES)
    rows = np.arange(len(stars)) if rows is None else rows
    splits, parts, calibrations, experts = {}, {}, {}, {}
    if stage == "finetune":
        check_config(predictor.description, own, f"{workdir / stage}")
        how, arms = split_settings(config), tuple(predictor.networks)
        whole = {fold: read_split(workdir, stars, how, arms, fold) for fold in folds}
        splits = {fold: split[rows] for fold, split in whole.items()}
        ids = np.asarray(stars["star_id"])
        parts = {fold: {part: ids[split == part] for part in _PARTS} for fold, split in whole.items()}
        if predictor.calibration is not None:
            calibrations = _fold_calibrations(workdir, folds, alone=not expert)
        if predictor.expert is not None:
            experts = _fold_experts(workdir, predictor, folds)
    if inputs is None:
        raw = {arm: _inputs(workdir, arm, stars, rows) for arm in predictor.networks}
        inputs = {arm: SurveyInputs(x, predictor.normalize_arm(arm, x)) for arm, x in raw.items()}
    pmfs, looks = _outputs(predictor, inputs)
    distances = {
        arm: predictor.reference_distances(arm, x.normalized.flux, x.raw.valid)
        for arm, x in (inputs.items() if predictor.references is not None else ())
    }
    return SurveyPrediction(
        predictor, stars[rows], dict(inputs), pmfs, splits, parts, calibrations, experts, distances, looks
    )


def held_out(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stars: Table,
    stage: str,
    part: str = "test",
    *,
    calibrated: bool = True,
    expert: bool = True,
    rows: np.ndarray | None = None,
) -> HeldOut:
    """Predicts survey stars, all or some, each by networks that did not train on it where there are any.

    For one part of the stars; who wants more keeps the result of `predict_survey`, which says what is refused.
    """
    found = predict_survey(config, workdir, stars, stage, calibrated=calibrated, expert=expert, rows=rows)
    return found.held_out(part)


def predict_held_out(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stars: Table,
    stage: str,
    part: str = "test",
    *,
    calibrated: bool = True,
    expert: bool = True,
) -> tuple[Catalogue, np.ndarray]:
    """The catalogue of `held_out`, and its bool[S] `tested`."""
    found = held_out(config, workdir, stars, stage, part, calibrated=calibrated, expert=expert)
    return found.catalogue(stars), found.tested


def _inputs(workdir: Path, arm: str, stars: Table, rows: np.ndarray) -> ArmInputs:
    survey, snr = load_survey(workdir, arm)
    if len(survey.flux) != len(stars):
        raise ConfigError(
            f"{workdir / 'data'}: expected {len(stars)} spectra of arm {arm}, as many as readable stars in "
            f"stars.ecsv, found {len(survey.flux)}"
        )
    if np.array_equal(rows, np.arange(len(stars))):  # they stay where they are
        return ArmInputs(survey.flux, survey.valid, snr)
    return ArmInputs(survey.flux[rows], survey.valid[rows], snr[rows])


def _outputs(
    predictor: Predictor, inputs: Mapping[str, SurveyInputs]
) -> tuple[dict[str, np.ndarray], dict[str, Look]]:
    """PMFs of every network, by arm, and what is compared with the references, {} where there are none."""
    pmfs, looks = {}, {}
    for arm, x in inputs.items():
        flux, valid = x.normalized.flux, x.raw.valid
        if predictor.known is None:
            pmfs[arm] = predictor.member_pmfs(arm, flux, valid)
        else:
            pmfs[arm], embeddings = predictor.runner.member_outputs(arm, flux, valid)
            looks[arm] = Look(unit_mean(embeddings), bridged(flux, valid), valid)
    return pmfs, looks


def _fold_experts(workdir: Path, predictor: Predictor, folds: list[int]) -> dict[int, Expert]:
    """The experts of the training stars of each fold."""
    stored = read_expert(workdir, predictor.preprocessing, predictor.description, folds=True)
    found = {} if stored is None else stored.folds
    if missing := sorted(set(folds) - set(found)):
        raise ConfigError(
            f"{workdir / 'expert'}: expected an expert for the folds {folds}, found {sorted(found)}: without "
            f"those of {missing}, stars would be judged by themselves; run launch.expert again"
        )
    return {fold: found[fold] for fold in folds}


def _fold_calibrations(workdir: Path, folds: list[int], *, alone: bool) -> dict[int, Calibration]:
    """The fits for the stars that each fold tests, none of which took part in them.

    Args:
      alone: those of the networks without the expert beside them.
    """
    value = read_calibration(workdir)
    value = (value.get("alone") or value) if alone else value
    found = {int(key): Calibration.from_json(each) for key, each in value["folds"].items()}
    if missing := sorted(set(folds) - set(found)):
        raise ConfigError(
            f"{workdir / 'calibration.json'}: expected fits for the folds {folds}, found {sorted(found)}: without "
            f"those of {missing}, stars would be calibrated by themselves; run launch.calibrate again"
        )
    return {fold: found[fold] for fold in folds}
