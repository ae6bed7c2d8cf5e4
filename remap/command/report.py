"""Writes a page to read in a browser about a catalogue: tables, figures and a card for each of some stars.

    remap report --catalogue=catalogue.fits --output=report.html --workdir=DIR --spectra=FILE_OR_FOLDER

With `--workdir`, the working folder of the networks that made the catalogue, cards have spectra with continuum,
saliency and a library spectrum: those that `--spectra` names, read as `launch.predict` reads them, or else those of
the folder's own survey. Without it there are no spectra. `--labels` names a table of known labels to compare with.
"""

import dataclasses

from absl import flags

from remap.command import flags as cli
from remap.config import ConfigError
from remap.predict.catalogue import read_catalogue
from remap.report.html import check_report
from remap.stages import report

NETWORK = cli.define_network()
SPECTRA = cli.define_spectra()
CATALOGUE = flags.DEFINE_string("catalogue", None, "Catalogue, as launch.predict writes it.")
OUTPUT = flags.DEFINE_string("output", None, "Page to write: NAME.html.")
STAGE = flags.DEFINE_enum("stage", "finetune", ["finetune", "align", "pretrain"], "Which networks made it.")
LABELS = flags.DEFINE_string("labels", "", "Table of known labels, with a column `file`.")
COLUMNS = flags.DEFINE_string(
    "label_columns", "", "JSON, label -> column of that table; '' = columns are named as the labels."
)
TITLE = flags.DEFINE_string("title", "", "Of the page.")
CARDS = flags.DEFINE_integer("cards", None, "Stars that have a card at most; default: as the config says.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing page.")


def main() -> None:
    """Writes the page that the flags ask for."""
    check_report(OUTPUT.value, overwrite=OVERWRITE.value)
    found = read_catalogue(CATALOGUE.value)
    workdir = NETWORK.workdir
    predictor = spectra = known = None
    if SPECTRA.paths.value and not NETWORK.given:
        raise ConfigError(
            "--spectra: expected --network or --workdir, too: its networks say how spectra are prepared"
        )
    if NETWORK.given:
        predictor = NETWORK.load(stage=STAGE.value)
        arms = tuple(predictor.networks)
        if SPECTRA.paths.value:
            spectra = report.observed_spectra(found, SPECTRA.observe(predictor)[0])
        elif workdir and not SPECTRA.survey.value:
            spectra = report.survey_spectra(workdir, found, arms)
        if workdir and not SPECTRA.survey.value:
            known = report.known_labels(workdir, found, arms, stage=STAGE.value)
    if LABELS.value:
        columns = cli.json_object(COLUMNS.value, "--label_columns") or {k: k for k in found.edges}
        known = report.known_from_table(LABELS.value, found, columns)
    settings = report.report_settings(predictor.config if predictor else {})
    if CARDS.value is not None:
        settings = dataclasses.replace(settings, cards=CARDS.value)
    page = report.make_report(
        OUTPUT.value,
        found,
        title=TITLE.value,
        settings=settings,
        predictor=predictor,
        spectra=spectra,
        workdir=workdir,
        known=known,
        overwrite=OVERWRITE.value,
    )
    cli.logger.info("%s: open it in a browser", page)


def run() -> None:
    """Parses the command line and runs."""
    cli.run(main, required=("catalogue", "output"))
