"""The network and its losses."""

from remap.network.losses import LossSettings, LossTerms, cost_loss, focal_loss, multitask_loss, triplet_loss
from remap.network.resnet import (
    ModelSettings,
    Outputs,
    ResNet1D,
    build_model,
    count_parameters,
    init_variables,
    make_model,
    mish,
)

__all__ = [
    "LossSettings",
    "LossTerms",
    "ModelSettings",
    "Outputs",
    "ResNet1D",
    "build_model",
    "cost_loss",
    "count_parameters",
    "focal_loss",
    "init_variables",
    "make_model",
    "mish",
    "multitask_loss",
    "triplet_loss",
]
