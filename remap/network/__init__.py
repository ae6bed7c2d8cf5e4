"""The network, its losses, and distances between two sets of its features."""

from remap.network.discrepancy import AlignSettings, Scale, coral, find_scale, median_distance, mmd
from remap.network.layers import mish
from remap.network.losses import LossSettings, LossTerms, cost_loss, focal_loss, multitask_loss, triplet_loss
from remap.network.resnet import (
    ModelSettings,
    Outputs,
    ResNet1D,
    build_model,
    count_parameters,
    init_variables,
    make_model,
)

__all__ = [
    "AlignSettings",
    "LossSettings",
    "LossTerms",
    "ModelSettings",
    "Outputs",
    "ResNet1D",
    "Scale",
    "build_model",
    "coral",
    "cost_loss",
    "count_parameters",
    "find_scale",
    "focal_loss",
    "init_variables",
    "make_model",
    "median_distance",
    "mish",
    "mmd",
    "multitask_loss",
    "triplet_loss",
]
