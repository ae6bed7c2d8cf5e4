"""A library and a mock survey on disk, as the stages expect any library and survey."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np

from remap.config import Section, record
from remap.synth.library import make_library
from remap.synth.survey import SurveySettings, make_survey

logger = logging.getLogger(__name__)


def make_mock_data(folder: str | Path, settings: Section) -> None:
    """Writes `library.npz` and `survey/` into a folder; what is there already with the same settings stays.

    Args:
      folder: made if absent.
      settings: the arguments of `make_library` under "library" and the fields of `SurveySettings` under
        "survey".

    Raises:
      ConfigError: a field of the survey that is unknown, missing or out of its range.
      FileExistsError: the folder holds data made with other settings.
    """
    folder = Path(folder)
    record(SurveySettings, settings["survey"], "synthetic.survey")  # before the minute that the library takes
    if not _is_made(folder, "library", settings):
        logger.info("mock data: synthesising the library")
        folder.mkdir(parents=True, exist_ok=True)
        library = make_library(**dict(settings["library"]))
        np.savez(folder / "library.npz", **library)
        logger.info("mock data: %d library spectra", len(library["labels"]))
        _is_made(folder, "library", settings, now=True)
    make_mock_survey(folder, settings)


def make_mock_survey(folder: str | Path, settings: Section) -> Path:
    """Writes `survey/` alone; see `make_mock_data`.

    Returns:
      The folder of its spectra.
    """
    folder = Path(folder)
    survey = record(SurveySettings, settings["survey"], "synthetic.survey")
    if not _is_made(folder, "survey", settings):
        # Without the mark, whatever lies here was left by a run that was interrupted.
        shutil.rmtree(folder / "survey", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("mock data: synthesising the survey")
        truth = make_survey(folder / "survey", survey)
        logger.info("mock data: %d survey spectra in %s", len(truth), folder)
        _is_made(folder, "survey", settings, now=True)
    return folder / "survey" / "spectra"


def _is_made(folder: Path, part: str, settings: Section, *, now: bool = False) -> bool:
    """Whether a part is there, made with these settings; `now` marks it as such."""
    mark, text = folder / f"{part}.json", json.dumps(dict(settings[part]), sort_keys=True)
    if now:
        mark.write_text(text)
    elif mark.exists():
        if mark.read_text() != text:
            raise FileExistsError(
                f"{folder}: holds mock data made with other settings; choose another folder"
            )
        logger.info("mock data: using the %s in %s", part, folder)
    return mark.exists()
