"""Quickstart: an embedded library and a mock survey, made on the spot; no download, no data.

    python -m launch.quickstart

The mock survey differs from the library in line strengths, abundances, microturbulence, rotation, line spread,
instrument response, bright features and noise, so that there is a gap for fine-tuning to close. Under 5 minutes
and 4 GiB on two cores.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the quickstart; the argument `short` shows the same steps in about a minute, with less."""
    options = common.parse_arg(arg, short=False)
    c = common.get_config()
    c.name = "quickstart"

    # What `launch.quickstart` makes before the stages run. Sampling and range are those of the arms below.
    c.synthetic = {
        "library": {
            "teff": tuple(range(4500, 6751, 250)),
            "logg": (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
            "m_h": (-1.0, -0.5, 0.0, 0.5),
            "vmic": (2.0, -0.2),
            "logg_floor": ((6000.0, 2.5), (6500.0, 3.0)),
            "wave_range": (4850.0, 5750.0),
            "wave_step": 0.1,
            "oversample": 4,
            "chunk": 16,
        },
        "survey": {
            "seed": 0,
            "dwarfs": 150,
            "giants": 50,
            "labelled_dwarfs": 120,
            "labelled_giants": 30,
            "calibration_dwarfs": 8,
            "calibration_giants": 4,
            "dwarf_teff": (4700.0, 6400.0),
            "dwarf_logg": ((4700.0, 4.6), (5600.0, 4.45), (6400.0, 4.1)),
            "giant_teff": (4600.0, 5100.0),
            "giant_logg": ((4600.0, 2.3), (5100.0, 3.1)),
            "logg_scatter": 0.12,
            "feh": (-0.1, 0.25),
            "feh_range": (-0.9, 0.45),
            "label_errors": (50.0, 0.08, 0.05),
            "calibration_errors": (20.0, 0.03, 0.02),
            "missing_labels": 0.05,
            "abundance_scatter": 0.05,
            "loggf_scatter": 0.1,
            "vmic": (0.8, 1.6),
            "vsini": (0.0, 8.0),
            "macroturbulence": (1.0, 4.0),
            "rv_scatter": 0.5,
            "lsf_fwhm": 1.0,
            "lsf_tilt": 0.05,
            "lsf_drift": 0.03,
            "response": 0.2,
            "blaze": 0.3,
            "snr": (50.0, 200.0),
            "calibration_snr": (200.0, 400.0),
            "bright_features": 2,
            "bright_height": (0.05, 0.3),
            "bright_fwhm": 1.0,
            "bright_jitter": 0.3,
            "cosmic_rays": 1.0,
            "dead_pixels": 3,
            "wave_range": (4855.0, 5745.0),
            "wave_step": 0.5,
            "oversample": 20,
            "chunk": 16,
        },
    }
    c.library = common.bundle_library("library.npz")
    c.survey = common.fits_table_survey("survey", c.label_names)
    c.arms = {
        "A": {"start": 4860.0, "stop": 5280.0, "step": 0.5},
        "B": {"start": 5280.0, "stop": 5740.0, "step": 0.5},
    }
    c.lsf = ml_collections.ConfigDict({"kind": "fwhm", "values": (0.95, 1.0, 1.05)})
    c.labels.teff.library_sigma = 50.0

    c.model.stem_stride = 2
    c.model.filters = (16, 32, 64)
    # Few spectra, none of them twice: a high rate and no dropout, as in configs/miles.py.
    c.model.dropout = 0.0
    c.pretrain.update({"batch_size": 32, "epoch_size": 1024, "epochs_per_cycle": 6})
    c.pretrain.update({"rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"batch_size": 32, "epochs_per_cycle": 10, "checkpoint_epochs": 10})
    c.split.update({"folds": 3, "run": (0, 1, 2)})
    c.embeddings.update({"epochs": (0, 6, 24), "size": 250})
    c.evaluate.snr_edges = (80.0, 120.0, 160.0)
    c.evaluate.groups = {"dwarfs": {"logg": (3.5, 5.5)}, "giants": {"logg": (1.0, 3.4999)}}
    c.references.update({"library": 1024, "spectra": 1024})
    if options["short"]:
        c.references.update({"library": 256, "spectra": 256})
        c.synthetic.library.update(
            {"teff": (4750, 5500, 6250), "logg": (2.5, 3.75, 5.0), "m_h": (-0.75, 0.25)}
        )
        c.synthetic.survey.update({"dwarfs": 40, "giants": 10, "labelled_dwarfs": 30, "labelled_giants": 5})
        c.synthetic.survey.update({"calibration_dwarfs": 3, "calibration_giants": 1})
        c.model.filters = (16, 32)
        c.pretrain.update({"epoch_size": 512, "cycles": 2, "epochs_per_cycle": 2})
        c.embeddings.epochs = (0, 2, 4)
        c.finetune.update({"cycles": 2, "epochs_per_cycle": 3})
        c.split.update({"run": (0,)})
    c.lock()
    return c
