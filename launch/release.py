"""Writes the fine-tuned networks of a working folder as a few small files to hand on, with a card.

    python -m launch.release --workdir=DIR --name=NAME --about=ABOUT.md --output=FOLDER [--average]

`--about` is the beginning of the card: a heading, a sentence that says what it is, its scale, what to cite. After
that `remap.load(FOLDER)` and `launch.predict --network=FOLDER` need nothing else.
"""

from pathlib import Path

from absl import flags

from launch import cli
from remap.config import ConfigError
from remap.stages.release import release

NAME = flags.DEFINE_string("name", None, "Of the network.")
ABOUT = flags.DEFINE_string("about", None, "Markdown file with which the card begins.")
AVERAGE = flags.DEFINE_bool(
    "average", False, "One network per arm: the mean of the weights over the folds, where it says the same."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the files; older ones in it are replaced.")


def main() -> None:
    about = Path(ABOUT.value)
    if not about.is_file():
        raise ConfigError(f"{about}: expected a text with which the card begins, found no file")
    sizes = release(
        cli.WORKDIR.value,
        OUTPUT.value,
        name=NAME.value,
        about=about.read_text(encoding="utf-8"),
        average=AVERAGE.value,
    )
    cli.logger.info("%s: %.2f MB in %d files", OUTPUT.value, sum(sizes.values()) / 1e6, len(sizes))


if __name__ == "__main__":
    cli.run(main, required=("workdir", "name", "about", "output"))
