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
    survey = record(SurveySettings, settings["survey"], "synthetic.survey")
    made = folder / "settings.json"
    arguments = {part: dict(settings[part]) for part in ("library", "survey")}
    text = json.dumps(arguments, sort_keys=True)
    if made.exists():
        if made.read_text() != text:
            raise FileExistsError(
                f"{folder}: holds mock data made with other settings; choose another folder"
            )
        logger.info("mock data: using what is in %s", folder)
        return
    # Without that file, whatever lies here was left by a run that was interrupted.
    shutil.rmtree(folder / "survey", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("mock data: synthesising the library")
    library = make_library(**arguments["library"])
    np.savez(folder / "library.npz", **library)
    logger.info("mock data: %d library spectra; synthesising the survey", len(library["labels"]))
    truth = make_survey(folder / "survey", survey)
    logger.info("mock data: %d survey spectra in %s", len(truth), folder)
    made.write_text(text)
