"""Settings shared by all experiments: the paper's values, with every decision beyond its text named here.

Other configs start from `get_config()` and change what differs. Numbers in brackets are paper sections.
"""

import ml_collections


def parse_arg(arg: str | None, **spec: bool) -> dict[str, bool]:
    """Reads a config argument such as `short` in `--config=configs/quickstart.py:short`.

    Args:
      arg: comma-separated names, or None.
      **spec: the names that the config knows, with their defaults.

    Raises:
      ValueError: an unknown name.
    """
    values = dict(spec)
    for name in filter(None, (arg or "").split(",")):
        if name not in spec:
            raise ValueError(f"unknown config argument {name!r}; this config knows {sorted(spec) or 'none'}")
        values[name] = True
    return values


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The shared settings; on its own it names no data."""
    parse_arg(arg)
    c = ml_collections.ConfigDict()
    c.name = "common"
    c.seed = 0
    c.data_root = ""  # folder of the data; "" = $REMAP_DATA, then ../shared/data

    # Labels (§5 i-iii): bins as wide as the median uncertainty of the calibration stars. `library_sigma` is
    # the library's grid step / 5; `error` is used for observed labels that come without one.
    c.label_names = ("teff", "logg", "feh")
    c.labels = {
        "teff": {
            "low": 3000.0,
            "high": 7000.0,
            "bins": 50,
            "unit": "K",
            "library_sigma": 20.0,
            "error": 80.0,
        },
        "logg": {"low": 1.0, "high": 5.5, "bins": 30, "unit": "dex", "library_sigma": 0.1, "error": 0.15},
        "feh": {"low": -2.0, "high": 1.0, "bins": 60, "unit": "dex", "library_sigma": 0.1, "error": 0.05},
    }

    # Arms: one wavelength grid and one network each [Å, in `grid_medium`].
    c.grid_medium = "air"
    c.arm_names = ("A", "B")
    c.arms = {
        "A": {"start": 4850.0, "stop": 5280.0, "step": 0.1},
        "B": {"start": 5280.0, "stop": 5750.0, "step": 0.1},
    }

    # Line spread given to the library (§3.3 i): "resolution" (λ/FWHM) or "fwhm" [Å]; one copy per value.
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (10000.0, 11000.0, 12000.0)})

    # The normaliser by name (remap.normalizers) and all of its settings; for Algorithm 1 see
    # remap.continuum.ContinuumSettings. `exceed` and `snr` 0 = the rule max(2, round(0.05 N / 11)).
    c.continuum = {
        "name": "algorithm1",
        "exceed": 0,
        "snr": 0.0,
        "ratio": 0.999,
        "bins": (2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
        "relift": 1.05,
        "max_steps": 9206,
        "degree": 6,
        "sigma": 15.0,  # Å: the paper's 150 pixels of 0.1 Å
    }

    # Noise of training spectra (§3.3 iii), as a fraction of the flux.
    c.augment = {"kind": "online", "noise_low": 0.005, "noise_high": 0.02, "levels": 5, "draws": 3}

    # Network (fig. 1). The paper leaves widths and depth to cross-validation.
    c.model = {
        "stem_filters": 16,
        "stem_kernel": 7,
        "stem_stride": 1,
        "filters": (16, 32, 64, 128),
        "kernel": 5,
        "dropout": 0.1,
        "embedding": 32,
        "activation": "mish",
        "pooling": "avg_max",
        "validity_channel": True,
        "batch_norm_momentum": 0.9,
    }

    # Loss (§4.3-4.4, eq. 7). The cost weight κ is not in the paper; 1 weighs the cost vector like the rest.
    c.loss = {"gamma": 2.0, "cost_weight": 1.0, "triplet_weight": 0.001, "margin": 0.2}

    # Pre-training (§5): 4 cycles of 30 epochs, 1e-3 to 1e-5. `epoch_size` = spectra drawn per epoch
    # ("paper" augmentation goes once through its fixed set instead).
    c.pretrain = {
        "batch_size": 128,
        "epoch_size": 110000,
        "cycles": 4,
        "epochs_per_cycle": 30,
        "rate_high": 1e-3,
        "rate_low": 1e-5,
        "clip_norm": 1.0,
        "checkpoint_epochs": 5,
        "keep": 2,
        "stats_batches": 50,
        "validation": 0.05,  # fraction of the library's cells (or nodes) held out for the validation loss
        "validation_size": 512,  # spectra in the fixed validation batch
    }

    # The range test of §4.6: the rate rises from `low` to `high`; limits are margin × the rate of least loss, and
    # that over `span` (paper: two orders of magnitude).
    c.find_lr = {
        "low": 1e-6,
        "high": 1.0,
        "steps": 400,
        "smoothing": 0.95,
        "diverged": 2.0,
        "margin": 0.5,
        "span": 100.0,
    }

    # Cross-validation of settings (remap.cross_validate); what follows compares widths and depths of the network in
    # 5 candidates × 10 folds × 10 epochs for each arm, against the 120 epochs of pre-training.
    c.cross_validate = {
        "stage": "pretrain",  # folds of the library's cells; or "finetune": folds of the labelled stars
        "folds": 10,
        "fold": 0,  # in "finetune": the test stars of this fold of `split` have no part; -1 = all stars have
        "cycles": 2,  # the length of every training
        "epochs_per_cycle": 5,
        "choose": "best",  # or "smallest": fewest parameters within one standard error of the best
        "search": "candidates",  # or "optuna"
        "candidates": (
            {"name": "8x3", "model.stem_filters": 8, "model.filters": (8, 16, 32)},
            {"name": "16x3", "model.stem_filters": 16, "model.filters": (16, 32, 64)},
            {"name": "16x4", "model.stem_filters": 16, "model.filters": (16, 32, 64, 128)},
            {"name": "16x8", "model.stem_filters": 16, "model.filters": (16, 16, 32, 32, 64, 64, 128, 128)},
            {"name": "32x4", "model.stem_filters": 32, "model.filters": (32, 64, 128, 256)},
        ),
        "optuna": {
            "trials": 30,
            "startup": 10,  # drawn at random
            # A trial is stopped after `stop_folds` or more folds if it is worse than the best one by more than
            # `stop_errors` standard errors of their difference, paired by fold.
            "stop_folds": 3,
            "stop_errors": 3.0,
            "space": (
                {
                    "field": "model.filters",
                    "kind": "choice",
                    "values": ((8, 16, 32), (16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256)),
                },
                {"field": "model.stem_filters", "kind": "int", "low": 8, "high": 32, "log": True},
                {"field": "model.kernel", "kind": "choice", "values": (3, 5, 7)},
                {"field": "model.dropout", "kind": "float", "low": 0.0, "high": 0.3, "log": False},
                {"field": "pretrain.rate_high", "kind": "float", "low": 3e-4, "high": 3e-2, "log": True},
            ),
        },
    }

    # Fine-tuning (§5 i-ii): both limits of the rate × 1/10 for the heads, graded below them.
    c.finetune = {
        "init": "pretrained",  # or "scratch"
        "layer_rates": "graded",  # or "uniform", "heads"
        "rate_factor": 0.1,
        "rehearsal": 0.0,  # fraction of every batch that is drawn from the library (paper: none)
        # "linear": the library of the rehearsal is multiplied by the stars' observed / synthetic flux, per pixel
        # linear in the labels (remap.correction); `correction_ridge` in units of one star's weight. The stars'
        # residuals, up to `residual_clip` in log flux, times U(0, residual_weight) are noise on its spectra.
        "correction": "none",
        "correction_ridge": 10.0,
        "residual_weight": 0.0,
        "residual_clip": 0.3,
        # Normalise with the pre-trained running statistics instead of those of each batch: few stars of one
        # kind have other statistics than the library, and heads at a tenth of the rate cannot follow.
        "freeze_stats": True,
        "batch_size": 64,
        "cycles": 4,
        "epochs_per_cycle": 30,
        "rate_high": 1e-3,
        "rate_low": 1e-5,
        "clip_norm": 1.0,
        "checkpoint_epochs": 30,
        "keep": 1,
        "stats_batches": 20,
        "noise_low": 0.0,  # extra noise on observed spectra, as a fraction of the flux
        "noise_high": 0.0,
        # Limits of the labels of stars that may be trained on; others with labels are kept for the report.
        "select": {"logg": (3.5, 5.5)},
    }

    # Splits are by star. Every fold in `run` gets a network; new spectra are given the mean of their PMFs.
    c.split = {"folds": 5, "run": (0, 1, 2, 3, 4), "validation": 0.1}

    # After fine-tuning: how the combined PMFs are widened (remap.calibration), fitted on the validation stars.
    c.calibrate = {
        "kind": "outliers",  # or "temperature" (paper §4.5), "none"
        "breadth": 9.0,  # outliers' PMFs are three times as wide
        "power_sigma": 1.0,
        "outliers": 0.05,
        "outliers_sigma": 1.5,
        "min_stars": 10,
    }

    c.predict = {
        "batch_size": 256,
        "small_batch_size": 16,  # for so few spectra or fewer
        "min_coverage": 0.5,  # valid fraction of an arm below which it is not used
        "full_coverage": 0.95,  # below it the arm is used and flagged
        "min_snr": 20.0,  # per pixel; below it a row is flagged
        "edge_mass": 0.5,  # probability in the outermost two bins of a range beyond which a row is flagged
        "mode_prominence": 0.3,  # height of a second mode, of the highest bin, that flags a row
        "disagreement": 3.0,  # difference of the arms' medians in units of their joint 1-sigma width
    }
    # Groups of the report: limits of the known labels, both ends included.
    c.evaluate = {
        "groups": {
            "dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-1.0, 1.0)},
            "giants": {"logg": (1.0, 3.4999)},
        }
    }
    return c
