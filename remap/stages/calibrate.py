"""The stage `calibrate`: fits on validation stars how wide the combined PMFs are to be (`remap.pmf.calibration`)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import ConfigError, Section, record
from remap.pmf.calibration import Calibration, CalibrationSettings
from remap.pmf.calibration_fit import fit
from remap.pmf.distributions import combine_arms
from remap.predict.arms import mean_over_arms
from remap.predict.expert_store import expert_digest
from remap.predict.held_out import HeldOut, SurveyPrediction, predict_survey
from remap.stages.noisy import noisy_inputs, repredict, stack
from remap.store.atomic import check_writable
from remap.store.stars import labelled_rows, readable_stars, within
from remap.store.workdir import network_description, write_calibration
from remap.train.keys import root_key

logger = logging.getLogger(__name__)


def calibrate(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Fits the calibration of the fine-tuned networks and writes `calibration.json`.

    Every validation star is predicted by the network of the first fold in which it is one. Prediction uses
    the fit to all of them; the report on the test stars of a fold uses a fit without them.

    Returns:
      One row per label, set of arms and group ("" = all stars): power, share of outliers that the PMFs get, share
      of wrong labels, number of stars, and `fitted`, False where these were too few for a fit of their own.

    Raises:
      FileNotFoundError: the fine-tuning has not been run.
      ConfigError: there are no validation stars (`split.validation` is 0, or `calibrate.select` leaves none), groups
        have limits of labels that the networks do not have, or the config contradicts the networks (see
        `predict_survey`).
    """
    workdir = Path(workdir)
    if not config.split.validation > 0:
        raise ConfigError(
            f"calibrate needs validation stars, found split.validation {config.split.validation}: "
            "set split.validation above 0 and fine-tune"
        )
    check_writable(workdir / "calibration.json")
    stars = readable_stars(workdir)
    settings = calibration_settings(config.calibrate)
    survey = predict_survey(
        config, workdir, stars, "finetune", calibrated=False, rows=labelled_rows(workdir, stars)
    )
    for name, limits in settings.groups.items() if settings.kind == "deconvolved" else ():
        if unknown := sorted(set(limits) - set(survey.predictor.labels)):
            raise ConfigError(
                f"calibrate.groups.{name} has limits of {unknown}, expected labels of the networks, "
                f"{survey.predictor.labels}"
            )
    copies, found = noise_levels(config.calibrate), survey.held_out("val")
    if not found.tested.any():
        raise ConfigError(
            f"calibrate needs validation stars, found none in {workdir / 'finetune'} with split.validation "
            f"{config.split.validation}: fine-tune with more"
        )
    tested = found.tested & within(survey.stars, config.calibrate.select)
    if not tested.any():
        raise ConfigError(
            f"calibrate.select {dict(config.calibrate.select)} leaves none of {found.tested.sum()} validation stars"
        )
    found, tested = _with_noise(survey, found, tested, copies, config.seed)
    everyone, folds = _fit(survey, found, tested, settings)
    alone = None
    if survey.predictor.expert is not None:  # for spectra of other surveys, of which it knows nothing
        without = found._replace(predictor=dataclasses.replace(found.predictor, expert=None))
        alone = _as_json(*_fit(survey, without, tested, settings))
    write_calibration(
        workdir,
        {
            "networks": network_description(survey.predictor.description),
            "weights": survey.predictor.weights,
            "combine": survey.predictor.config["predict"]["combine"],
            "expert": expert_digest(workdir) if survey.predictor.expert is not None else None,
            "alone": alone,
            **_as_json(everyone, folds),
        },
    )
    rows = []
    columns = ("power", "outliers", "label_outliers", "snr_slope", "stars", "fitted")
    for label, widenings in everyone.widenings.items():
        for key, common in widenings.items():
            groups = everyone.by_group.get(label, {}).get(key, {})
            for group, widening in {"": common, **groups}.items():
                row = {"label": label, "arms": key, "group": group}
                rows.append(row | {name: getattr(widening, name) for name in columns})
    for row in rows:
        logger.info(
            "calibrate: %(label)s, arms %(arms)s %(group)s: power %(power).2f, outliers %(outliers).2f, wrong labels "
            "%(label_outliers).2f, %(stars)d stars",
            row,
        )
    _tell_few(everyone)
    return Table(rows=rows)


def calibration_settings(section: Section) -> CalibrationSettings:
    """The settings of a config's section `calibrate`, whose fields `select` and `noise` are the stage's own.

    Raises:
      ConfigError: a field that is missing, or a value that cannot be.
    """
    groups = {name: dict(limits) for name, limits in section["groups"].items()}
    return record(CalibrationSettings, {**section, "groups": groups}, "calibrate", part=True)


def noise_levels(section: Section) -> tuple[float, ...]:
    """The field `noise` of a config's section `calibrate`, which is the stage's own.

    Raises:
      ConfigError: what is no S/N.
    """
    levels = tuple(float(level) for level in section["noise"])
    if wrong := [level for level in levels if not 0 < level < np.inf]:
        raise ConfigError(f"calibrate.noise: expected S/N per pixel above 0, found {wrong}")
    return levels


def _with_noise(
    survey: SurveyPrediction, found: HeldOut, tested: np.ndarray, levels: tuple[float, ...], seed: int
) -> tuple[HeldOut, np.ndarray]:
    """The validation stars, and after them copies with noise of each level; which of them to fit to.

    Rows of a copy whose spectrum is poorer than that by itself are not fitted to.
    """
    copies, rows = [found], [tested]
    for level in levels:
        inputs, worse = noisy_inputs(survey, level, root_key(seed, "calibrate", str(level)))
        copies.append(repredict(survey, inputs).held_out("val"))
        rows.append(tested & worse)
        logger.info("calibrate: %d validation stars once more at S/N %g", rows[-1].sum(), level)
    return stack(copies), np.concatenate(rows)


def _as_json(everyone: Calibration, folds: Mapping[int, Calibration]) -> dict[str, Any]:
    return {"all": everyone.to_json(), "folds": {str(fold): each.to_json() for fold, each in folds.items()}}


def _tell_few(calibration: Calibration) -> None:
    """Warns of groups without a calibration of their own, all labels and sets of arms of a group at once."""
    for group in calibration.groups:
        for without, message in (
            (True, "there are none, so they are uncalibrated: they have the powers of the other stars"),
            (False, "there are too few, so they have the powers of all stars"),
        ):
            found = [
                f"{label} ({key})"
                for label, arms in calibration.by_group.items()
                for key, each in arms.items()
                if not each[group].fitted and (each[group].stars == 0) == without
            ]
            if found:
                logger.warning("calibrate: validation stars of %s: %s: %s", group, message, ", ".join(found))


def _fit(
    survey: SurveyPrediction, found: HeldOut, chosen: np.ndarray, settings: CalibrationSettings
) -> tuple[Calibration, dict[int, Calibration]]:
    """The fit to all chosen stars, and for each fold the one without its test stars.

    Args:
      found: predictions of the validation stars, of all copies of them one after the other.
      chosen: bool[C S], the rows to fit to.
    """
    arms, copies = tuple(found.arms), len(chosen) // len(survey.stars)
    stars = survey.stars[np.tile(np.arange(len(survey.stars)), copies)]
    # Copies of a star are as wrong together as its label and its network are.
    weight = np.count_nonzero(chosen[: len(survey.stars)]) / np.count_nonzero(chosen)
    used = np.stack([found.arms[arm].used for arm in arms])
    bins = found.predictor.preprocessing.labels
    pmfs = {
        b.name: np.stack([found.arms[arm].pmf[j][:, : b.bins] for arm in arms]) for j, b in enumerate(bins)
    }
    edges = {b.name: b.edges for b in bins}
    truth = {b.name: np.asarray(stars[b.name], float) for b in bins}
    errors = {b.name: np.asarray(stars[f"{b.name}_err"], float) for b in bins}
    snr = mean_over_arms(np.stack([found.arms[arm].snr for arm in arms]), used)
    method = found.predictor.config["predict"]["combine"]
    prior = {b.name: found.predictor.prior(j, b.bins) for j, b in enumerate(bins)}

    def combine(label: str, values: np.ndarray) -> np.ndarray:
        return combine_arms(values, np.ones(values.shape[:2], bool), method=method, prior=prior[label])

    def pooled(joint: Mapping[str, np.ndarray], key: str, at: np.ndarray) -> dict[str, np.ndarray]:
        expert = dataclasses.replace(found.predictor.expert, fold_of_star=found.fold[at])
        member = np.array([arm in key.split("+") for arm in arms])
        near = {arm: found.arms[arm].distances[:, at] for arm in arms}
        return expert.apply(joint, edges, np.broadcast_to(member[:, None], (len(arms), len(at))), near)

    def fit_on(rows: np.ndarray) -> Calibration:
        chosen_rows = np.flatnonzero(rows)

        def opinion(joint: Mapping[str, np.ndarray], key: str, at: np.ndarray) -> dict[str, np.ndarray]:
            return pooled(joint, key, chosen_rows[at])

        part = {label: values[:, rows] for label, values in pmfs.items()}
        own, error = ({k: v[rows] for k, v in each.items()} for each in (truth, errors))
        return fit(
            part,
            edges,
            own,
            used[:, rows],
            arms,
            settings,
            combine,
            errors=error,
            snr=snr[rows],
            pooled=None if found.predictor.expert is None else opinion,
            weight=weight,
        )

    ids = np.asarray(stars["star_id"])
    folds = {
        fold: fit_on(chosen & ~np.isin(ids, ids[np.tile(split, copies) == "test"]))
        for fold, split in survey.splits.items()
    }
    return fit_on(chosen), folds
