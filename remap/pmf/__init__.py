"""Probability mass functions over the bins of a label: arithmetic, scores against known labels, honest widths."""

from remap.pmf.bootstrap import paired_interval
from remap.pmf.calibration import Calibrates, Calibration, CalibrationSettings, FoldCalibration, Widening
from remap.pmf.distributions import (
    arm_disagreement,
    combine_arms,
    conflate,
    count_modes,
    dwarf_giant,
    is_edge,
    pmf_quantile,
    pmf_summary,
    temper,
)
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
    "is_edge",
    "nll",
    "paired_interval",
    "pit",
    "pmf_quantile",
    "pmf_summary",
    "residual_table",
    "temper",
    "uniform_distance",
]
