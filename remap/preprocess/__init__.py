"""How library and survey become inputs of a network: cleaning, grids, line spreads, resampling; its description."""

from remap.preprocess.cleaning import CleaningSettings, mask_bad
from remap.preprocess.cosmic_rays import mask_cosmic_rays
from remap.preprocess.cosmic_rays_in_stack import mask_cosmic_rays_in_stack
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
from remap.preprocess.line_width import measure_line_width
from remap.preprocess.media import MediaComparison, compare_media
from remap.preprocess.resample import LineSpread, degrade, degrade_and_resample, line_fwhm
from remap.preprocess.rotation import broaden, rotate
from remap.preprocess.stationary import StationaryMask, find_stationary, mask_stationary
from remap.preprocess.templates import Templates, make_templates
from remap.preprocess.velocity import Velocities, measure_velocities
from remap.preprocess.velocity_settings import VelocitySettings

__all__ = [
    "CleaningSettings",
    "LineSpread",
    "MediaComparison",
    "Preprocessing",
    "StationaryMask",
    "Templates",
    "Velocities",
    "VelocitySettings",
    "broaden",
    "compare_media",
    "crop",
    "degrade",
    "degrade_and_resample",
    "find_stationary",
    "library_on_grid",
    "line_fwhm",
    "make_preprocessing",
    "make_templates",
    "mask_bad",
    "mask_cosmic_rays",
    "mask_cosmic_rays_in_stack",
    "mask_stationary",
    "measure_line_width",
    "measure_velocities",
    "model_inputs",
    "needed_range",
    "observed_on_grid",
    "rotate",
    "scale_to_unit",
    "snr_estimate",
    "usable",
]
