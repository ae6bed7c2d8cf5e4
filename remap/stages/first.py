"""The first answer: what a network that comes with the package says of a mock survey, before anything is trained."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from astropy.table import Table

from remap.config import Section
from remap.io import list_files, match_rows
from remap.pmf.metrics import residual_table
from remap.predict.catalogue import Catalogue
from remap.predict.release import load
from remap.synth.mock import make_mock_survey

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FirstAnswer:
    """What came of it.

    Attributes:
      catalogue: of the mock stars.
      summary: one row per label: n, bias and robust scatter against the true labels.
    """

    catalogue: Catalogue
    summary: Table


def first_answer(data: str | Path, synthetic: Section, source: Section, *, network: str) -> FirstAnswer:
    """Predicts a mock survey, made where it is not there yet, with a network that was trained on real stars.

    Args:
      data: folder of the mock survey.
      synthetic: as `remap.synth.mock.make_mock_data` takes it; the survey alone is used.
      source: how the files of the mock survey are read.
      network: a name of `remap.networks()`, or a folder.

    Raises:
      FileNotFoundError: there is no such network.
    """
    predictor = load(network)
    spectra = make_mock_survey(data, synthetic)
    source = {key: source[key] for key in source} | {
        "line_spread": {"fwhm": float(synthetic["survey"]["lsf_fwhm"])}
    }
    found = predictor.predict_files(list_files(spectra, "*.fits"), source=source, velocities="rest")
    truth = Table.read(spectra.parent / "truth.ecsv", format="ascii.ecsv")
    rows = match_rows(
        list(truth["file"]), [spectra / name for name in found.table["file"]], where="truth.ecsv"
    )
    keep = ("n", "bias", "robust")
    summary = Table(
        rows=[
            {"label": label}
            | {
                k: v
                for k, v in residual_table(found.table[label], np.asarray(truth[label])[rows]).items()
                if k in keep
            }
            for label in found.edges
        ]
    )
    for name in keep[1:]:
        summary[name].info.format = ".2f"
    logger.info("first answer: %d mock stars by the network %s", len(found.table), network)
    return FirstAnswer(found, summary)
