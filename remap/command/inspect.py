"""What is this file? Its parts, the survey that fits, range, pixels, noise, line width, velocity, and arms it covers.

    remap inspect FILE ... [--network=NAME | --workdir=DIR] [--survey=NAME] [--plot=PICTURE.png]

`--network` or `--workdir` name the networks that are to be used: their arms, and a library to measure velocities
with. What is found is a proposal; the declaration (`--survey`, docs/surveys.md) stays the authority.
"""

from pathlib import Path

from absl import flags

from remap.command import flags as cli
from remap.spectra import SpectrumError
from remap.stages.inspect import inspect, plot

NETWORK = cli.define_network()
FILES = flags.DEFINE_list("files", [], "Files, separated by commas; or simply name them.")
SURVEY = flags.DEFINE_string("survey", "", "Whose files they are; '' = the survey that fits best.")
PLOT = flags.DEFINE_string(
    "plot", "", "Picture to write; with several files their number is added to the name."
)


def main(names: list[str]) -> None:
    """Prints what is in files."""
    files = [*FILES.value, *names]
    if not files:
        raise SpectrumError("expected at least one file, found none: remap inspect FILE ...")
    predictor = NETWORK.load() if NETWORK.given and NETWORK.workdir is None else None
    failed = 0
    for number, file in enumerate(files):
        try:
            found = inspect(file, survey=SURVEY.value or None, workdir=NETWORK.workdir, predictor=predictor)
        except SpectrumError as error:
            if len(files) == 1:
                raise
            failed += 1
            print(f"{file}\n  not read  {error}")
            continue
        print("\n".join(found.lines()))
        if PLOT.value and found.segments:
            target = Path(PLOT.value)
            several = target.with_name(f"{target.stem}_{number}{target.suffix}")
            plot(found, several if len(files) > 1 else target)
    if failed:
        raise SpectrumError(f"{failed} of {len(files)} files could not be read")


def run() -> None:
    """Parses the command line and runs."""
    cli.run_with_arguments(main)
