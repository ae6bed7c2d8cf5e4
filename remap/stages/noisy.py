"""The survey's stars once more with noise: how wrong the networks are for spectra poorer than the labelled ones.

Stars with trustworthy labels are bright and have good spectra; most of a survey has not. Their widths say how much
the networks are off without noise, and nothing of whether a wider PMF of a noisy spectrum is too wide by as much.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from remap.predict.arms import ArmInputs, ArmPrediction
from remap.predict.held_out import HeldOut, SurveyInputs, SurveyPrediction

_AXIS = {"pmf": 1, "distances": 1}  # of the stars, in fields of `ArmPrediction` that have more
LEAST = 1.5  # of a spectrum's own S/N over the wanted one, below which noise is not worth adding


def noisy_inputs(
    survey: SurveyPrediction, snr: float, key: jax.Array
) -> tuple[dict[str, SurveyInputs], np.ndarray]:
    """Spectra with so much Gaussian noise more, a fraction of the flux as in training, that they have a given S/N.

    Args:
      survey: the prediction whose inputs are taken.
      snr: per pixel of the arms' grids.
      key: of the noise.

    Returns:
      The inputs, normalised, and bool[S]: spectra that were good enough for it; of unknown S/N all are.
    """
    out, worse = {}, np.ones(len(survey.stars), bool)
    for number, (arm, each) in enumerate(survey.inputs.items()):
        own = np.where(np.isfinite(each.raw.snr) & (each.raw.snr > 0), each.raw.snr, np.inf)
        better = own >= LEAST * snr
        added = np.sqrt(np.where(better, 1 / snr**2 - 1 / own**2, 0.0))
        draws = np.asarray(jax.random.normal(jax.random.fold_in(key, number), each.raw.flux.shape))
        flux = (each.raw.flux * (1 + added[:, None] * draws)).astype(np.float32)
        raw = ArmInputs(flux, each.raw.valid, np.where(better, snr, each.raw.snr))
        out[arm] = SurveyInputs(raw, survey.predictor.normalize_arm(arm, raw))
        worse &= better
    return out, worse


def repredict(survey: SurveyPrediction, inputs: dict[str, SurveyInputs]) -> SurveyPrediction:
    """What the same networks say of other spectra of the same stars."""
    predictor = survey.predictor
    pmfs = {arm: predictor.member_pmfs(arm, x.normalized.flux, x.raw.valid) for arm, x in inputs.items()}
    distances = {
        arm: predictor.reference_distances(arm, x.normalized.flux, x.raw.valid)
        for arm, x in (inputs.items() if predictor.references is not None else ())
    }
    return survey._replace(inputs=inputs, pmfs=pmfs, distances=distances, looks={})


def stack(copies: Sequence[HeldOut]) -> HeldOut:
    """Predictions of copies of the same stars as those of so many more stars, copy after copy."""
    arms = {
        arm: ArmPrediction(
            *(
                None if parts[0] is None else np.concatenate(parts, axis=_AXIS.get(name, 0))
                for name, parts in (
                    (field, [getattr(copy.arms[arm], field) for copy in copies])
                    for field in ArmPrediction._fields
                )
            )
        )
        for arm in copies[0].arms
    }
    return copies[0]._replace(
        arms=arms,
        tested=np.concatenate([copy.tested for copy in copies]),
        fold=np.concatenate([copy.fold for copy in copies]),
    )
