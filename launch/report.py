"""`remap report` from a clone: a page to read in a browser about a catalogue.

    python -m launch.report --catalogue=catalogue.fits --output=report.html --workdir=DIR --spectra=FILE_OR_FOLDER

`remap.command.report` has the rest.
"""

from remap.command import report

if __name__ == "__main__":
    report.run()
