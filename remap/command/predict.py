"""Writes the catalogue of new spectra, by a network that comes with the package or by those of a working folder.

    remap predict --network=NAME --spectra=PLACE --survey=NAME --output=catalogue.fits --report
    remap predict --workdir=DIR --spectra=PLACE --output=catalogue.fits

Without `--survey` the spectra are read as the survey of the networks' config was, and must be at rest unless
`--velocities` says otherwise. A file that cannot be used becomes a flagged row. The output is FITS (.fits), ECSV
(.ecsv), VOTable (.vot) or Parquet (.parquet); docs/catalogue.md says what is in it. `--report` writes a page to read
in a browser beside it (`catalogue.html`, docs/report.md).

More than 5,000 spectra are predicted shard by shard (`--stream`, `--nostream`), in flat memory, while other processes
read ahead; a run that was stopped goes on where it was. With a folder as `--output` the shards stay (docs/scale.md).
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from remap import sharding
from remap.command import flags as cli
from remap.command.streaming import StreamFlags, is_folder
from remap.config import ConfigError
from remap.predict.catalogue import Flag, check_output
from remap.report.html import check_report
from remap.stages import report
from remap.writing import check_writable

NETWORK = cli.define_network()
SPECTRA = cli.define_spectra()
STREAM = StreamFlags()
OUTPUT = flags.DEFINE_string(
    "output", None, "Catalogue to write: NAME.fits, .ecsv, .vot or .parquet; or a folder of shards."
)
STAGE = flags.DEFINE_enum("stage", "finetune", ["finetune", "align", "pretrain"], "Which networks to use.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing catalogue, and its report.")
REPORT = flags.DEFINE_bool("report", False, "Write a report beside the catalogue: NAME.html.")
CARDS = flags.DEFINE_integer(
    "cards", None, "Stars that have a card in the report at most; default: as the config says."
)
FOLDS = flags.DEFINE_list(
    "folds", None, "Fine-tuned networks to use, separated by commas; all, which must be there, if not given."
)
CALIBRATED = flags.DEFINE_bool("calibrated", True, "Use the calibration of the networks, if there is one.")
EMBEDDINGS = flags.DEFINE_bool(
    "embeddings", False, "Keep the pooled features of the first network of each arm."
)
REFERENCES = flags.DEFINE_bool(
    "references",
    True,
    "Compare with what launch.references has kept, if it has: neighbours, and the flag FAR.",
)


def main() -> None:
    """Writes the catalogue that the flags ask for, and the report."""
    page = Path(OUTPUT.value).with_suffix(".html")
    STREAM.set_level()
    if not is_folder(OUTPUT.value):
        sharding.from_first(lambda: check_output(OUTPUT.value, overwrite=OVERWRITE.value))
    if REPORT.value:
        sharding.from_first(lambda: check_report(page, overwrite=OVERWRITE.value))
    predictor = NETWORK.load(
        stage=STAGE.value,
        folds=_folds(),
        calibrated=CALIBRATED.value,
        references=REFERENCES.value,
    )
    settings = report.report_settings(predictor.config)
    if CARDS.value is not None:
        settings = dataclasses.replace(settings, cards=CARDS.value)
    files, how = SPECTRA.files(predictor)
    whole = "--report" if REPORT.value else "--embeddings" if EMBEDDINGS.value else ""
    if STREAM.wanted(predictor, files, how, OUTPUT.value, whole=whole):
        STREAM.run(predictor, files, how, OUTPUT.value, overwrite=OVERWRITE.value)
        return
    sharding.from_first(lambda: check_writable(Path(OUTPUT.value), size=predictor.row_bytes * len(files)))
    observed = predictor.observe_files(files, **how)
    found = predictor.predict_observed(observed, embeddings=EMBEDDINGS.value)
    found.write(OUTPUT.value, overwrite=OVERWRITE.value)
    bad = np.count_nonzero(found.table["flags"] & Flag.UNREADABLE)
    if bad == len(found.table) and not SPECTRA.survey.value:
        cli.logger.warning(
            "none of the files could be used as those of the networks' own survey: --survey=NAME says whose they "
            "are, `remap inspect FILE` which survey's they may be"
        )
    cli.logger.info(
        "%s: %d rows from %d files, %d of them could not be used",
        OUTPUT.value,
        len(found.table),
        len(files),
        bad,
    )
    if REPORT.value:
        known = None
        if not SPECTRA.survey.value and NETWORK.workdir:
            known = report.known_labels(NETWORK.workdir, found, tuple(predictor.networks), stage=STAGE.value)
        spectra = report.observed_spectra(found, observed, in_order=True)
        report.make_report(
            page,
            found,
            settings=settings,
            predictor=predictor,
            spectra=spectra,
            workdir=NETWORK.workdir,
            known=known,
            overwrite=OVERWRITE.value,
        )
        cli.logger.info("%s: open it in a browser", page)


def _folds() -> list[int] | None:
    """The folds that the flags ask for."""
    try:
        return None if FOLDS.value is None else sorted({int(fold) for fold in FOLDS.value})
    except ValueError as error:
        raise ConfigError(f"--folds: expected numbers, found {','.join(FOLDS.value)!r}") from error


def run() -> None:
    """Parses the command line and runs."""
    cli.run(main, required=("spectra", "output"), processes=True)
