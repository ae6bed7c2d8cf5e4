"""CARMENES M dwarfs by the autoencoder route, with the published values (Mas-Buitrago et al. 2024, A&A 687, A205).

    python -m launch.preprocess         --config=configs/carmenes.py --workdir=workdirs/carmenes
    python -m launch.autoencoder_search --config=configs/carmenes.py --workdir=workdirs/carmenes
    python -m launch.autoencoder        --config=configs/carmenes.py --workdir=workdirs/carmenes

Expected under the data root: `phoenix/hires/` with the PHOENIX-ACES HiRes files of M dwarfs (2300-4500 K, log g
4.5-5.5, [M/H] -1 to +1, no alpha enhancement) and their WAVE file (`launch.fetch_library` gets them),
`carmenes/spectra/` with one FITS table per star (columns wavelength in Å, vacuum, at rest; flux; ivar),
`carmenes/labels.ecsv` with the files' stars; labels in it are
used for the diagnostics alone. Published ranges, widths, penalties, rates and lengths; what is not published is
said at the field. The paper's continuum normaliser (GISIC) is not at hand: a Chebyshev series stands in. Never run
here: the data are not at hand. `configs/miles_autoencoder.py` has been.
"""

import ml_collections

from configs import autoencoder, common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published experiment."""
    common.parse_arg(arg)
    c = common.get_config()
    c.name = "carmenes"
    c.label_names = ("teff", "logg", "feh", "vsini")
    # Bins are for the catalogue's probabilities. Their ranges hold all nodes that draws are interpolated between;
    # `autoencoder.limits` has the published ranges. No rotation is in PHOENIX: the library is broadened to the
    # values below, linear limb darkening as in the mock survey.
    c.labels = {
        "teff": {
            "low": 2300.0,
            "high": 4500.0,
            "bins": 44,
            "unit": "K",
            "library_sigma": 20.0,
            "error": 50.0,
        },
        "logg": {"low": 4.5, "high": 5.5, "bins": 20, "unit": "dex", "library_sigma": 0.1, "error": 0.1},
        "feh": {"low": -1.0, "high": 1.0, "bins": 40, "unit": "dex", "library_sigma": 0.1, "error": 0.1},
        "vsini": {
            "low": 0.0,
            "high": 32.0,
            "bins": 64,
            "unit": "km/s",
            "library_sigma": 0.5,
            "error": 1.0,
            "library_values": (1.5, 3.0, 5.0, 8.0, 12.0, 17.0, 23.0, 30.0),
        },
    }
    c.grid_medium = "vacuum"
    c.arm_names = ("A",)
    c.arms = {"A": {"start": 8800.0, "stop": 8835.005, "step": 0.01}}  # 3501 pixels
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (94600.0,)})
    c.continuum = {"name": "chebyshev", "degree": 2, "low": 1.2, "high": 3.0, "iterations": 20}
    c.library = common.phoenix_library(interpolate=True)
    c.survey = common.fits_table_survey("carmenes", c.label_names, medium="vacuum")
    # The stages of the main route (launch.pretrain) work here, too; every star of the label table counts.
    c.finetune.select = {}
    c.evaluate.groups = {"all": {}}
    autoencoder.add_route(c)
    c.autoencoder.limits = {
        "teff": (2325.0, 4475.0),
        "logg": (4.7, 5.3),
        "feh": (-1.0, 0.6),
        "vsini": (1.5, 30.0),
    }
    c.lock()
    return c
