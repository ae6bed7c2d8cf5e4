"""Continuum normalisation: Algorithm 1 of deep-REMAP, and simpler normalisers by name."""

from remap.continuum.algorithm1 import ContinuumSettings, normalize, normalize_batch, pixel_width
from remap.continuum.common import Continuum, ContinuumFlag, NormalizeFn
from remap.continuum.normalizers import (
    NORMALIZERS,
    ChebyshevSettings,
    Normalizer,
    QuantileSettings,
    get_normalizer,
    normalize_batch_chebyshev,
    normalize_batch_quantile,
    normalize_chebyshev,
    normalize_quantile,
)

__all__ = [
    "NORMALIZERS",
    "ChebyshevSettings",
    "Continuum",
    "ContinuumFlag",
    "ContinuumSettings",
    "NormalizeFn",
    "Normalizer",
    "QuantileSettings",
    "get_normalizer",
    "normalize",
    "normalize_batch",
    "normalize_batch_chebyshev",
    "normalize_batch_quantile",
    "normalize_chebyshev",
    "normalize_quantile",
    "pixel_width",
]
