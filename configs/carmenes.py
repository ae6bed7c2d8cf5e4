"""CARMENES M dwarfs by the autoencoder route, with the published values (Mas-Buitrago et al. 2024, A&A 687, A205).

    python -m launch.preprocess         --config=configs/carmenes.py --workdir=workdirs/carmenes
    python -m launch.autoencoder_search --config=configs/carmenes.py --workdir=workdirs/carmenes
    python -m launch.autoencoder        --config=configs/carmenes.py --workdir=workdirs/carmenes

Expected under the data root: `phoenix/hires/` with the PHOENIX-ACES HiRes files of M dwarfs (2300-4500 K, log g
4.5-5.5, [M/H] -1 to +1, no alpha enhancement) and their WAVE file, `carmenes/spectra/` with one FITS table per star
(columns wavelength in Å, vacuum, at rest; flux; ivar), `carmenes/labels.ecsv` with the files' stars; labels in it are
used for the diagnostics alone. Published ranges, widths, penalties, rates and lengths; what is not published is
said at the field. The paper's continuum normaliser (GISIC) is not at hand: a Chebyshev series stands in. Never run
here: the data are not at hand. `configs/miles_autoencoder.py` has been.
"""

import ml_collections

from configs import common


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
    c.library = {
        "path": "phoenix/hires",
        "patterns": ("lte*HiRes.fits",),
        "source": {
            "format": "phoenix_hires",
            "medium": "vacuum",
            "wave_unit": "Angstrom",
            "wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits",
        },
        "native": {"kind": "resolution", "value": 500000.0},
        "interpolate": True,
        "select": {"alpha": (-0.01, 0.01)},
    }
    c.survey = {
        "path": "carmenes/spectra",
        "patterns": ("*.fits",),
        "source": {
            "format": "table",
            "medium": "vacuum",
            "axis": "linear",
            "wave_unit": "Angstrom",
            "wave_column": "wavelength",
            "flux_column": "flux",
            "ivar_column": "ivar",
        },
        "labels_path": "carmenes/labels.ecsv",
        "labels": {
            "format": "ecsv",
            "columns": {"teff": "teff", "logg": "logg", "feh": "feh", "vsini": "vsini"},
            "error_columns": {"teff": "teff_err", "logg": "logg_err", "feh": "feh_err", "vsini": "vsini_err"},
            "file_column": "file",
            "id_column": "star_id",
        },
    }
    # The stages of the main route (launch.pretrain) work here, too; every star of the label table counts.
    c.finetune.select = {}
    c.evaluate.groups = {"all": {}}
    add_route(c)
    c.autoencoder.limits = {
        "teff": (2325.0, 4475.0),
        "logg": (4.7, 5.3),
        "feh": (-1.0, 0.6),
        "vsini": (1.5, 30.0),
    }
    c.lock()
    return c


def add_route(c: ml_collections.ConfigDict) -> None:
    """Adds the sections of the autoencoder route with their published values; other configs change what differs."""
    c.autoencoder = {
        # Normalised flux that becomes 0 and 1. Published inputs lie in 0..1; how is not said.
        "scale_low": 0.0,
        "scale_high": 1.2,
        # True subtracts the continuum from what the first layer sees, which is multiplied by `gain`.
        "centre": False,
        "gain": 1.0,
        "limits": ml_collections.ConfigDict(),  # limits of the labels of library draws; none = the whole library
        "latent": 32,
        "bottleneck": "relu",
        "contractive": 1e-4,
        "penalty": "exact",  # published code: "published" (remap.autoencoder.network.contractive_penalty)
        # Width, L1 weight and peak rate of each member. Published: the best of the grid of `search`, not listed.
        "members": (
            (1024, 1e-7, 1e-4),
            (1280, 1e-7, 1e-4),
            (1536, 1e-7, 1e-4),
            (1792, 1e-7, 1e-4),
            (2048, 1e-7, 1e-4),
        ),
        "noise_low": 0.0,
        "noise_high": 0.0,  # published: none
        "denoise": False,
        "examples": 22933,  # library spectra drawn once, for autoencoders and regressors
        "chunk": 256,  # spectra that are drawn or encoded at a time
        "batch_size": 128,
        "cycles": 1,
        "epochs_per_cycle": 120,
        "rate_fall": 1.0,  # last over first rate of a cycle; published: constant
        "clip_norm": 1.0,
        "checkpoint_epochs": 20,
        "keep": 1,
        "validation": 0.1,  # fraction of the library's cells kept aside (published: 0.3 of the spectra)
        "validation_size": 2048,
    }
    c.adapt = {
        "trains": "decoder",  # published: the last layer of the encoder and the decoder
        "rate_factor": 1.0,
        "rate_fall": 1.0,
        "rehearsal": 0.0,  # fraction of every batch that is drawn from the library
        # Latent features of stars pulled to those of as many library spectra (remap.alignment); published: not done.
        "align": {"kind": "none", "weight": 1.0, "match": True},
        "neighbours": 8,  # library spectra that tell which cell a star is in
        "matched": 8192,  # library spectra drawn from the stars' cells
        "align_floor": 1e-3,  # as `align.floor`
        "align_size": 1024,  # of them that give the features' units
        "batch_size": 128,
        "cycles": 1,
        "epochs_per_cycle": 60,
        "clip_norm": 1.0,
        "checkpoint_epochs": 60,
        "keep": 1,
        "validation": 0.2,  # fraction of the stars kept aside
    }
    c.regressor = {
        "encoder": "library",  # whose features of library spectra to learn from: or "adapted"
        "networks": 5,  # per autoencoder and label
        "filters": (64, 32),  # published for Teff; one shape for all labels, so that they train under vmap
        "dense": (256, 128, 64),
        "batch_size": 32,
        "cycles": 1,
        "epochs_per_cycle": 200,
        "rate_high": 1e-2,
        "rate_low": 1e-4,  # published: constant
        "checkpoint_epochs": 20,
        "keep": 1,
    }
    # `kernel` "spread": the spread of the ensemble is the uncertainty; every bin of a label is divided by `refine`.
    c.estimate = {"kernel": "spread", "refine": 10}
    # Diagnostics of the gap (remap.autoencoder.report); the labels of the stars serve here alone.
    c.gap = {
        "folds": 5,
        "repeats": 4,
        "ridge": 1.0,
        "permutations": 1000,
        "resamples": 1000,
        "level": 0.95,
        "perplexity": 30.0,
    }
    # Grid search: mean squared error on library cells kept aside (published: 15 epochs, 4 folds).
    c.search = {
        "widths": (1024, 1280, 1536, 1792, 2048),
        "l1": (8e-8, 9e-8, 1e-7, 1.1e-7, 1.2e-7),
        "rates": (1e-4,),
        "folds": 4,
        "epochs": 15,
        "best": 5,
    }
