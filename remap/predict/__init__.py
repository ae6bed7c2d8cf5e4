"""Trained networks as one object, the catalogue with its flags, and predictions of stars kept aside."""

from remap.predict.catalogue import (
    Catalogue,
    Flag,
    build_catalogue,
    check_output,
    describe,
    provenance,
    read_catalogue,
    write_catalogue,
)
from remap.predict.held_out import HeldOut, predict_held_out
from remap.predict.predictor import ArmInputs, ArmPrediction, Network, Predictor, load

__all__ = [
    "ArmInputs",
    "ArmPrediction",
    "Catalogue",
    "Flag",
    "HeldOut",
    "Network",
    "Predictor",
    "build_catalogue",
    "check_output",
    "describe",
    "load",
    "predict_held_out",
    "provenance",
    "read_catalogue",
    "write_catalogue",
]
