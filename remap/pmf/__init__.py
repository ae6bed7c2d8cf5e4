"""Probability mass functions over the bins of a label: arithmetic, scores against known labels, honest widths."""

from remap.pmf.bootstrap import paired_interval, star_interval
from remap.pmf.calibration import Calibrates, Calibration, CalibrationSettings, FoldCalibration, Widening
from remap.pmf.distributions import (
    arm_disagreement,
    combine_arms,
    conflate,
    count_modes,
    is_edge,
    is_near,
    mass_within,
    normal_pmf,
    pmf_quantile,
    pmf_summary,
    pool,
    temper,
)
from remap.pmf.luminosity import dwarf_giant, dwarf_probability
from remap.pmf.metrics import (
    attainable_slope,
    binomial_band,
    coverage,
    crps,
    nll,
    pit,
    residual_table,
    uniform_distance,
)

__all__ = [
    "Calibrates",
    "Calibration",
    "CalibrationSettings",
    "FoldCalibration",
    "Widening",
    "arm_disagreement",
    "attainable_slope",
    "binomial_band",
    "combine_arms",
    "conflate",
    "count_modes",
    "coverage",
    "crps",
    "dwarf_giant",
    "dwarf_probability",
    "is_edge",
    "is_near",
    "mass_within",
    "nll",
    "normal_pmf",
    "paired_interval",
    "pit",
    "pmf_quantile",
    "pmf_summary",
    "pool",
    "residual_table",
    "star_interval",
    "temper",
    "uniform_distance",
]
