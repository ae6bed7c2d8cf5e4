"""The whole road on spectra that the project makes itself: library and survey in, catalogue and report out.

python -m launch.quickstart [--config=configs/quickstart.py:short] [--workdir=quickstart]

First the network that comes with the package gives a first answer, on the spectra that come with it (`--first=`
leaves that out). Then a library, a mock survey and networks for it are made.
"""

import time
from pathlib import Path

from absl import flags

from launch import cli
from remap.config import ConfigError
from remap.io import list_files
from remap.predict.loading import load
from remap.report.html import check_templates
from remap.stages import report
from remap.stages.align import align
from remap.stages.calibrate import calibrate
from remap.stages.evaluate import brief, evaluate
from remap.stages.finetune import finetune
from remap.stages.first import first_answer
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.stages.references import references
from remap.synth.mock import make_mock_data

CONFIG = cli.define_config(default="configs/quickstart.py")
FIRST = flags.DEFINE_string("first", "fgk_r1800", "Network that gives the first answer; '' = none.")


def main() -> None:
    workdir = Path(cli.WORKDIR.value or "quickstart")
    config = CONFIG.value.copy_and_resolve_references()
    data = workdir / "mock"
    with config.unlocked():
        config.data_root = str(data.absolute())
    if FIRST.value:
        start = time.perf_counter()
        first = first_answer(FIRST.value, seed=config.seed)
        first.catalogue.write(workdir / "first_catalogue.fits", overwrite=True)
        print("\n".join(first.summary.pformat()))
        seconds, where = time.perf_counter() - start, workdir / "first_catalogue.fits"
        print(
            f"First answer, after {seconds:.0f} s: the network {FIRST.value}, which comes with the package,"
        )
        print(f"on {len(first.known)} synthetic spectra of S/N 50 that come with it ({where})")
    make_mock_data(data, config.synthetic)
    preprocess(config, workdir)
    pretrain(config, workdir)
    align(config, workdir)
    finetune(config, workdir)
    calibrate(config, workdir)
    references(config, workdir)
    table = evaluate(config, workdir)
    predictor = load(workdir)
    observed = predictor.observe_files(list_files(data / "survey" / "spectra", "*.fits"))
    found = predictor.predict_observed(observed)
    for name in ("catalogue.fits", "catalogue.ecsv"):
        found.write(workdir / name, overwrite=True)
    print(brief(table))
    print(f"Done: catalogue of {len(found.table)} stars, tables and plots are in {workdir.absolute()}")
    try:
        check_templates()
    except ConfigError as error:
        cli.logger.warning("no report: %s", error)
        return
    page = report.make_report(
        workdir / "report.html",
        found,
        title="Quickstart: stars of the mock survey",
        settings=report.report_settings(config),
        predictor=predictor,
        spectra=report.observed_spectra(found, observed, in_order=True),
        workdir=workdir,
        known=report.known_labels(workdir, found, tuple(predictor.networks)),
        overwrite=True,
    )
    print(f"Open in a browser: {page.absolute()}")


if __name__ == "__main__":
    cli.run(main, required=())
