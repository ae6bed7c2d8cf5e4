"""How library and survey become inputs of a network: grids, line spreads, resampling, and their description."""

from remap.preprocess.description import Preprocessing, make_preprocessing
from remap.preprocess.grid import (
    crop,
    library_on_grid,
    model_inputs,
    needed_range,
    observed_on_grid,
    scale_to_unit,
    snr_estimate,
    usable,
)
from remap.preprocess.resample import LineSpread, degrade, degrade_and_resample, line_fwhm
from remap.preprocess.rotation import broaden, rotate

__all__ = [
    "LineSpread",
    "Preprocessing",
    "broaden",
    "crop",
    "degrade",
    "degrade_and_resample",
    "library_on_grid",
    "line_fwhm",
    "make_preprocessing",
    "model_inputs",
    "needed_range",
    "observed_on_grid",
    "rotate",
    "scale_to_unit",
    "snr_estimate",
    "usable",
]
