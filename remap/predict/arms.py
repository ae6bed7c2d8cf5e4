"""What the networks of one arm are given, and what they say."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from remap.predict.references import Look


class ArmInputs(NamedTuple):
    """Spectra on one arm's grid, before normalisation."""

    flux: np.ndarray  # float32[S, N]
    valid: np.ndarray  # bool[S, N]
    snr: np.ndarray  # float[S], NaN = unknown


class NormalizedArm(NamedTuple):
    """The same after normalisation."""

    flux: np.ndarray  # float32[S, N]
    trouble: np.ndarray  # bool[S], the normaliser raised a flag


class ArmPrediction(NamedTuple):
    """What the networks of one arm say."""

    pmf: np.ndarray  # float32[L, S, K], mean over the networks; padded bins are 0
    used: np.ndarray  # bool[S], False where the arm has too few valid pixels
    coverage: np.ndarray  # float[S], valid fraction of the arm
    snr: np.ndarray  # float[S]
    trouble: np.ndarray  # bool[S], the normaliser raised a flag
    distances: np.ndarray | None = (
        None  # float32[B, S, R], to the expert's references; None = there is no expert
    )
    features: np.ndarray | None = None  # float32[S, F], NaN where not used; None = not asked for
    gap: np.ndarray | None = None  # float[S], the longest masked stretch over what is borne; None = not known
    look: Look | None = None  # what is compared with the references of neighbours; None = there are none


def mean_over_arms(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    """float[S]: mean over the used arms of float[A, S], NaN without any."""
    keep = used & np.isfinite(values)
    count = keep.sum(axis=0)
    return np.where(count > 0, np.where(keep, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
