"""Tables and figures. Matplotlib and scikit-learn (extra `plots`) are imported by what draws."""

from remap.report.figure import axis_name, page
from remap.report.maps import embedding_maps, latent_maps
from remap.report.plots import (
    groups_one_to_one,
    learning_rates,
    one_to_one,
    pmf_panels,
    spectra_gallery,
    training_curves,
)
from remap.report.reliability import CalibrationFound, calibration_curves
from remap.report.tables import by_snr, table1
from remap.report.two_sample import (
    FeatureTests,
    Interval,
    auc,
    check_pairs,
    classifier_auc,
    feature_tests,
    mmd_test,
)

__all__ = [
    "CalibrationFound",
    "FeatureTests",
    "Interval",
    "auc",
    "axis_name",
    "by_snr",
    "calibration_curves",
    "check_pairs",
    "classifier_auc",
    "embedding_maps",
    "feature_tests",
    "groups_one_to_one",
    "latent_maps",
    "learning_rates",
    "mmd_test",
    "one_to_one",
    "page",
    "pmf_panels",
    "spectra_gallery",
    "table1",
    "training_curves",
]
