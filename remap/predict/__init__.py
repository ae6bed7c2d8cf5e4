"""Trained networks as one object, the catalogue with its flags and scores, and predictions of stars kept aside."""

from remap.predict.arms import ArmInputs, ArmPrediction, NormalizedArm
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
from remap.predict.ensemble import Network
from remap.predict.held_out import HeldOut, SurveyPrediction, predict_held_out, predict_survey
from remap.predict.predictor import Predictor
from remap.predict.references import Neighbors, ReferenceSet
from remap.predict.release import load, networks
from remap.predict.scores import evaluate

__all__ = [
    "ArmInputs",
    "ArmPrediction",
    "Catalogue",
    "Flag",
    "HeldOut",
    "Neighbors",
    "Network",
    "NormalizedArm",
    "Predictor",
    "ReferenceSet",
    "SurveyPrediction",
    "build_catalogue",
    "check_output",
    "describe",
    "evaluate",
    "load",
    "networks",
    "predict_held_out",
    "predict_survey",
    "provenance",
    "read_catalogue",
    "write_catalogue",
]
