"""`remap NAME ...`: finds the command of this name and hands it the rest of the line."""

import importlib
import sys

from remap._version import __version__

COMMANDS = {
    "predict": "the catalogue of new spectra, and a report",
    "inspect": "what is in a file, and which survey's it may be",
    "report": "a page to read in a browser about a catalogue",
    "networks": "the networks that come with the package, and their cards",
}
USAGE = (
    "usage: remap COMMAND ...\n\n"
    + "".join(f"  {name:10}{about}\n" for name, about in COMMANDS.items())
    + "\nremap COMMAND --help says more; remap --version. Training runs from a clone: python -m launch.NAME"
)


def main() -> None:
    """Entry point of the console script."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "--version":
        print(f"deep-REMAP {__version__}")
    elif name in ("--help", "-h", "help"):
        print(USAGE)
    elif name not in COMMANDS:
        sys.exit(f"error: expected one of {', '.join(COMMANDS)}, found {name!r}; remap --help")
    else:
        command = importlib.import_module(f"remap.command.{name}")
        sys.argv = [f"remap {name}", *arguments]
        sys.modules["__main__"].__doc__ = command.__doc__  # what --help shows
        command.run()
