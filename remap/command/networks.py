"""Which networks come with the package, or the whole card of one.

remap networks [NAME]
"""

from remap.command import flags as cli
from remap.predict.release import card_of, networks


def main(names: list[str]) -> None:
    """Prints cards, or what there is."""
    for name in names:
        print(card_of(name))
    if not names:
        for name, about in networks().items():
            print(f"{name}: {about}")


def run() -> None:
    """Parses the command line and runs."""
    cli.run_with_arguments(main)
