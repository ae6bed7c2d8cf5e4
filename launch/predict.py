"""Writes the catalogue of new spectra from a trained working folder; nothing else is needed.

    python -m launch.predict --workdir=DIR --spectra=FILE_OR_FOLDER --output=catalogue.fits

The spectra are read as the survey of the working folder's config was, and must be at rest. A file that cannot
be used becomes a flagged row. The output is FITS (.fits) or ECSV (.ecsv).
"""

import json

from absl import flags

from launch import cli
from remap import io
from remap.predict.catalogue import check_output
from remap.predict.predictor import load

SPECTRA = flags.DEFINE_list("spectra", None, "Files or folders, separated by commas.")
OUTPUT = flags.DEFINE_string("output", None, "Catalogue to write: NAME.fits or NAME.ecsv.")
STAGE = flags.DEFINE_enum("stage", "finetune", ["finetune", "align", "pretrain"], "Which networks to use.")
SOURCE = flags.DEFINE_string("source", "", "JSON that overrides how spectra are read, e.g. '{\"hdu\": 1}'.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing catalogue.")


def main() -> None:
    check_output(OUTPUT.value, overwrite=OVERWRITE.value)
    predictor = load(cli.WORKDIR.value, stage=STAGE.value)
    survey = predictor.config["survey"]
    files = [f for path in SPECTRA.value for f in io.list_files(path, survey["patterns"])]
    source = {**survey["source"], **json.loads(SOURCE.value or "{}")}
    found = predictor.predict_files(files, source=source)
    found.write(OUTPUT.value, overwrite=OVERWRITE.value)
    bad = sum(m != "" for m in found.table["message"])
    cli.logger.info("%s: %d spectra, %d of them could not be used", OUTPUT.value, len(found.table), bad)


if __name__ == "__main__":
    cli.run(main, required=("workdir", "spectra", "output"))
