"""What is this file? Its parts, the survey that fits, range, pixels, noise, line width, velocity, and arms it covers.

    python -m launch.inspect --files=FILE[,FILE] [--workdir=DIR] [--survey=NAME] [--plot=PICTURE.png]
    python -m launch.inspect FILE ...

`--workdir` is a working folder whose networks are to be used: its arms, and its library to measure velocities with.
What is found is a proposal; the declaration (`--survey`, docs/surveys.md) stays the authority.
"""

from pathlib import Path

from absl import flags

from launch import cli
from remap.spectra import SpectrumError
from remap.stages.inspect import inspect, plot

FILES = flags.DEFINE_list("files", [], "Files, separated by commas; or simply name them.")
SURVEY = flags.DEFINE_string("survey", "", "Whose files they are; '' = the survey that fits best.")
PLOT = flags.DEFINE_string(
    "plot", "", "Picture to write; with several files their number is added to the name."
)


def main(names: list[str]) -> None:
    files = [*FILES.value, *names]
    if not files:
        raise SpectrumError("expected at least one file, found none: python -m launch.inspect FILE ...")
    failed = 0
    for number, file in enumerate(files):
        try:
            found = inspect(file, survey=SURVEY.value or None, workdir=cli.WORKDIR.value)
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


if __name__ == "__main__":
    cli.run_with_arguments(main)
