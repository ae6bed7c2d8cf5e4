"""Predictions of a survey's labelled stars by networks that never saw them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
from astropy.table import Table

from remap.pmf.calibration import Calibration, FoldCalibration
from remap.predict.catalogue import Catalogue
from remap.predict.predictor import ArmInputs, ArmPrediction, Predictor, load
from remap.store.stars import fold_split
from remap.store.workdir import load_survey, read_calibration


class HeldOut(NamedTuple):
    """What networks say of stars that they did not train on."""

    predictor: Predictor  # all folds together, calibrated by fold where there is a calibration
    arms: dict[str, ArmPrediction]  # of all stars; those of `tested` by their own fold alone
    tested: np.ndarray  # bool[S], True where no network used had trained on the star
    fold: np.ndarray  # int[S], the fold whose network predicts the star, -1 = the mean over all

    def catalogue(self, stars: Table) -> Catalogue:
        """The arms combined, and calibrated if the predictor is."""
        return self.predictor.combine(self.arms, list(stars["file"]), star_ids=list(stars["star_id"]))


def held_out(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stars: Table,
    stage: str,
    part: str = "test",
    *,
    calibrated: bool = True,
) -> HeldOut:
    """Predicts all survey stars, each by networks that did not train on it where there are any.

    With `part` "val" the tested stars are the validation stars (each by the first of the folds in which it is
    one) instead of the test stars and those that were not selected: for choosing settings.
    """
    of_star = np.full(len(stars), -1)
    folds = None if stage != "finetune" else config.split.run
    everyone = load(workdir, stage=stage, folds=folds, calibrated=calibrated)
    inputs = {arm: _inputs(workdir, arm) for arm in everyone.preprocessing.arms}
    arms = {arm: everyone.predict_arm(arm, x) for arm, x in inputs.items()}
    if stage != "finetune":
        return HeldOut(everyone, arms, np.ones(len(stars), bool), of_star)
    splits = {fold: fold_split(stars, config, fold) for fold in config.split.run}
    first = next(iter(splits.values()))
    # By star, not by spectrum: a spectrum that was not selected may be another one of a star that was.
    ids = np.asarray(stars["star_id"])
    tested = ~np.isin(ids, ids[first != "other"]) & (part == "test")
    for fold, split in splits.items():
        mine = np.isin(ids, ids[split == part]) & ~tested
        tested |= mine
        of_star[mine] = fold
        if not mine.any():
            continue
        one = load(workdir, stage=stage, folds=[fold], calibrated=False)
        for arm, x in inputs.items():
            held = one.predict_arm(arm, ArmInputs(x.flux[mine], x.valid[mine], x.snr[mine]))
            arms[arm].pmf[:, mine] = held.pmf
    if everyone.calibration is not None:
        found = read_calibration(workdir)
        by_fold = {int(k): Calibration.from_json(v) for k, v in found["folds"].items()}
        everyone = dataclasses.replace(
            everyone, calibration=FoldCalibration(by_fold, of_star, everyone.calibration)
        )
    return HeldOut(everyone, arms, tested, of_star)


def predict_held_out(
    config: ml_collections.ConfigDict,
    workdir: Path,
    stars: Table,
    stage: str,
    part: str = "test",
    *,
    calibrated: bool = True,
) -> tuple[Catalogue, np.ndarray]:
    """The catalogue of `held_out`, and its bool[S] `tested`."""
    found = held_out(config, workdir, stars, stage, part, calibrated=calibrated)
    return found.catalogue(stars), found.tested


def _inputs(workdir: Path, arm: str) -> ArmInputs:
    survey, snr = load_survey(workdir, arm)
    return ArmInputs(survey.flux, survey.valid, snr)
