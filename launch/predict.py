"""`remap predict` from a clone: the catalogue of new spectra.

    python -m launch.predict --network=NAME --spectra=FILE_OR_FOLDER --survey=NAME --output=catalogue.fits --report
    python -m launch.predict --workdir=DIR --spectra=FILE_OR_FOLDER --output=catalogue.fits

`remap.command.predict` has the rest.
"""

from remap.command import predict

if __name__ == "__main__":
    predict.run()
