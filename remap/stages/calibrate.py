"""The stage `calibrate`: fits on validation stars how the combined PMFs are widened (`remap.pmf.calibration`)."""

from __future__ import annotations

import logging
from pathlib import Path

import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import ConfigError, record
from remap.pmf.calibration import Calibration, CalibrationSettings, fit
from remap.pmf.distributions import combine_arms
from remap.predict.held_out import HeldOut, SurveyPrediction, predict_survey
from remap.store.atomic import check_writable
from remap.store.stars import readable_stars, within
from remap.store.workdir import network_description, write_calibration

logger = logging.getLogger(__name__)


def calibrate(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Fits the calibration of the fine-tuned networks and writes `calibration.json`.

    Every validation star is predicted by the network of the first fold in which it is one. Prediction uses
    the fit to all of them; the report on the test stars of a fold uses a fit without them.

    Returns:
      One row per label and set of arms: power, share of outliers, and the number of stars.

    Raises:
      FileNotFoundError: the fine-tuning has not been run.
      ConfigError: there are no validation stars (`split.validation` is 0, or `calibrate.select` leaves none), or
        the config contradicts the networks (see `predict_survey`).
    """
    workdir = Path(workdir)
    if not config.split.validation > 0:
        raise ConfigError(
            f"calibrate needs validation stars, found split.validation {config.split.validation}: "
            "set split.validation above 0 and fine-tune"
        )
    check_writable(workdir / "calibration.json")
    stars = readable_stars(workdir)
    settings = record(CalibrationSettings, config.calibrate, "calibrate", part=True)
    survey = predict_survey(config, workdir, stars, "finetune", calibrated=False)
    found = survey.held_out("val")
    if not found.tested.any():
        raise ConfigError(
            f"calibrate needs validation stars, found none in {workdir / 'finetune'} with split.validation "
            f"{config.split.validation}: fine-tune with more"
        )
    tested = found.tested & within(stars, config.calibrate.select)
    if not tested.any():
        raise ConfigError(
            f"calibrate.select {dict(config.calibrate.select)} leaves none of {found.tested.sum()} validation stars"
        )
    everyone, folds = _fit(survey, found, tested, settings)
    write_calibration(
        workdir,
        {
            "networks": network_description(survey.predictor.description),
            "weights": survey.predictor.weights,
            "combine": survey.predictor.config["predict"]["combine"],
            "all": everyone.to_json(),
            "folds": {str(fold): each.to_json() for fold, each in folds.items()},
        },
    )
    rows = [
        {"label": label, "arms": key, "power": w.power, "outliers": w.outliers, "stars": w.stars}
        for label, widenings in everyone.widenings.items()
        for key, w in widenings.items()
    ]
    for row in rows:
        logger.info("calibrate: %(label)s, arms %(arms)s: power %(power).2f, outliers %(outliers).2f", row)
    return Table(rows=rows)


def _fit(
    survey: SurveyPrediction, found: HeldOut, chosen: np.ndarray, settings: CalibrationSettings
) -> tuple[Calibration, dict[int, Calibration]]:
    """The fit to all chosen stars, and for each fold the one without its test stars.

    Args:
      found: predictions of the validation stars.
      chosen: bool[S], the stars to fit to.
    """
    arms, stars = tuple(found.arms), survey.stars
    used = np.stack([found.arms[arm].used for arm in arms])
    bins = found.predictor.preprocessing.labels
    pmfs = {
        b.name: np.stack([found.arms[arm].pmf[j][:, : b.bins] for arm in arms]) for j, b in enumerate(bins)
    }
    edges = {b.name: b.edges for b in bins}
    truth = {b.name: np.asarray(stars[b.name], float) for b in bins}
    method = found.predictor.config["predict"]["combine"]
    prior = {b.name: found.predictor.prior(j, b.bins) for j, b in enumerate(bins)}

    def combine(label: str, values: np.ndarray) -> np.ndarray:
        return combine_arms(values, np.ones(values.shape[:2], bool), method=method, prior=prior[label])

    def fit_on(rows: np.ndarray) -> Calibration:
        part = {label: values[:, rows] for label, values in pmfs.items()}
        return fit(
            part, edges, {k: v[rows] for k, v in truth.items()}, used[:, rows], arms, settings, combine
        )

    ids = np.asarray(stars["star_id"])
    folds = {
        fold: fit_on(chosen & ~np.isin(ids, ids[split == "test"])) for fold, split in survey.splits.items()
    }
    return fit_on(chosen), folds
