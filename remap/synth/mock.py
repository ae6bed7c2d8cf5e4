"""A library and a mock survey on disk, as the stages expect any library and survey."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from remap.synth.library import make_library
from remap.synth.survey import make_survey

logger = logging.getLogger(__name__)


def make_mock_data(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Writes `library.npz` and `survey/` into a folder; what is there already with the same settings stays.

    Args:
      folder: made if absent.
      settings: the arguments of `make_library` under "library" and of `make_survey` under "survey".

    Raises:
      FileExistsError: the folder holds data made with other settings.
    """
    folder = Path(folder)
    record = folder / "settings.json"
    arguments = {part: dict(settings[part]) for part in ("library", "survey")}
    text = json.dumps(arguments, sort_keys=True)
    if record.exists():
        if record.read_text() != text:
            raise FileExistsError(
                f"{folder}: holds mock data made with other settings; choose another folder"
            )
        logger.info("mock data: using what is in %s", folder)
        return
    # Without the record, whatever lies here was left by a run that was interrupted.
    shutil.rmtree(folder / "survey", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("mock data: synthesising the library")
    library = make_library(**arguments["library"])
    np.savez(folder / "library.npz", **library)
    logger.info("mock data: %d library spectra; synthesising the survey", len(library["labels"]))
    truth = make_survey(folder / "survey", **arguments["survey"])
    logger.info("mock data: %d survey spectra in %s", len(truth), folder)
    record.write_text(text)
