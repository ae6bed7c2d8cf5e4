"""Writes the catalogue of new spectra from a trained working folder; nothing else is needed.

    python -m launch.predict --workdir=DIR --spectra=FILE_OR_FOLDER --output=catalogue.fits --survey=NAME

Without `--survey` the spectra are read as the survey of the working folder's config was, and must be at rest unless
`--velocities` says otherwise. A file that cannot be used becomes a flagged row. The output is FITS (.fits) or ECSV
(.ecsv).
"""

import json
from typing import Any

import numpy as np
from absl import flags

from launch import cli
from remap import io, surveys
from remap.config import ConfigError
from remap.predict.catalogue import check_output
from remap.predict.predictor import load

SPECTRA = flags.DEFINE_list("spectra", None, "Files or folders, separated by commas.")
OUTPUT = flags.DEFINE_string("output", None, "Catalogue to write: NAME.fits or NAME.ecsv.")
STAGE = flags.DEFINE_enum("stage", "finetune", ["finetune", "align", "pretrain"], "Which networks to use.")
SURVEY = flags.DEFINE_string("survey", "", "Whose files they are; docs/surveys.md lists the names.")
SOURCE = flags.DEFINE_string("source", "", "JSON that overrides how spectra are read, e.g. '{\"hdu\": 1}'.")
RESOLUTION = flags.DEFINE_float(
    "resolution", 0.0, "λ/FWHM of the spectra, where it is known better; 0 = not given."
)
VELOCITIES = flags.DEFINE_string(
    "velocities",
    "",
    "rest, file (what the file says, else measured), measure, or a table with a column of velocities.",
)
VELOCITY_COLUMN = flags.DEFINE_string("velocity_column", "rv", "Column of that table, km/s.")
flags.DEFINE_alias("velocity-column", "velocity_column")
FOLDS = flags.DEFINE_list(
    "folds", None, "Fine-tuned networks to use, separated by commas; all, which must be there, if not given."
)
CALIBRATED = flags.DEFINE_bool("calibrated", True, "Use the calibration of the networks, if there is one.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing catalogue.")


def main() -> None:
    check_output(OUTPUT.value, overwrite=OVERWRITE.value)
    predictor = load(cli.WORKDIR.value, stage=STAGE.value, folds=_folds(), calibrated=CALIBRATED.value)
    survey = surveys.get(SURVEY.value) if SURVEY.value else None
    patterns = survey.patterns if survey else predictor.config["survey"]["patterns"]
    files = [f for path in SPECTRA.value for f in io.list_files(path, patterns)]
    source = {} if survey else dict(predictor.config["survey"]["source"])
    source |= _source()
    velocities = VELOCITIES.value or None
    if velocities not in (None, "rest", "file", "measure"):
        table = io.read_velocities(velocities, column=VELOCITY_COLUMN.value)
        known = np.array([*table.values(), np.nan])  # -1, the last, is a file that the table does not know
        velocities = known[io.match_rows(list(table), files, where=VELOCITIES.value)]
    found = predictor.predict_files(files, survey=survey, source=source, velocities=velocities)
    found.write(OUTPUT.value, overwrite=OVERWRITE.value)
    bad = sum(m != "" for m in found.table["message"])
    cli.logger.info(
        "%s: %d rows from %d files, %d of them could not be used",
        OUTPUT.value,
        len(found.table),
        len(files),
        bad,
    )


def _folds() -> list[int] | None:
    """The folds that the flags ask for."""
    try:
        return None if FOLDS.value is None else sorted({int(fold) for fold in FOLDS.value})
    except ValueError as error:
        raise ConfigError(f"--folds: expected numbers, found {','.join(FOLDS.value)!r}") from error


def _source() -> dict[str, Any]:
    """What the flags say about how spectra are read."""
    try:
        source = json.loads(SOURCE.value or "{}")
    except ValueError as error:
        raise ConfigError(f"--source: expected JSON, found {SOURCE.value!r} ({error})") from error
    if not isinstance(source, dict):
        raise ConfigError(f"--source: expected a JSON object, found {SOURCE.value!r}")
    if RESOLUTION.value < 0:
        raise ConfigError(f"--resolution: expected a positive number, found {RESOLUTION.value}")
    if RESOLUTION.value:
        source["line_spread"] = {"resolution": RESOLUTION.value}
    return source


if __name__ == "__main__":
    cli.run(main, required=("workdir", "spectra", "output"))
