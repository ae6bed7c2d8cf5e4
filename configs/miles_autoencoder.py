"""MILES by the autoencoder route: an LTE library and the observed spectra, without any of their labels.

    python -m launch.preprocess  --config=configs/miles_autoencoder.py --workdir=workdirs/miles_autoencoder
    python -m launch.pretrain    --config=configs/miles_autoencoder.py --workdir=workdirs/miles_autoencoder
    python -m launch.autoencoder --config=configs/miles_autoencoder.py --workdir=workdirs/miles_autoencoder

The second command may be left out; with it the report compares the route with zero-shot deep-REMAP. Data and grids
are those of `configs/miles.py`.
"""

import ml_collections

from configs import autoencoder, common, miles


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the experiment; the argument `short` makes a run of two minutes that proves nothing."""
    options = common.parse_arg(arg, short=False)
    c = miles.get_config("short" if options["short"] else None)
    with c.unlocked():
        c.name = "miles_autoencoder"
        autoencoder.add_route(c)
        c.autoencoder.update({"noise_low": 0.005, "noise_high": 0.02, "denoise": True, "examples": 16384})
        c.autoencoder.update({"centre": True, "gain": 10.0})
        c.autoencoder.members = tuple((256, 1e-8, 1e-3) for _ in range(4))
        c.autoencoder.update(
            {"contractive": 1e-6, "batch_size": 32, "epochs_per_cycle": 12, "rate_fall": 0.01}
        )
        # The whole encoder moves, the decoder keeps the meaning of the latent features, and stars are pulled to
        # library spectra of their kinds: reconstruction alone leaves the domains apart (benchmarks/results.md).
        c.adapt.update({"trains": "encoder", "rehearsal": 0.5, "batch_size": 256, "epochs_per_cycle": 375})
        c.adapt.align.update({"kind": "mmd", "weight": 0.01})
        c.adapt.rate_fall = 0.01
        c.regressor.encoder = "adapted"
        c.regressor.update({"networks": 3, "filters": (16, 16), "dense": (128, 64, 32)})
        c.regressor.update({"batch_size": 128, "epochs_per_cycle": 12, "rate_high": 3e-3, "rate_low": 3e-5})
        c.estimate.kernel = "residual"  # the spread of the ensemble alone is far too narrow
        c.search.update({"widths": (256, 384, 512), "l1": (3e-8, 1e-7, 3e-7), "rates": (3e-4, 1e-3)})
        c.search.update({"folds": 3, "epochs": 3, "best": 4})
        if options["short"]:
            c.autoencoder.members = ((128, 1e-7, 1e-3), (128, 1e-7, 1e-3))
            c.autoencoder.update({"examples": 4096, "epochs_per_cycle": 6, "validation_size": 512})
            c.adapt.epochs_per_cycle = 10
            c.regressor.update({"networks": 2, "epochs_per_cycle": 6})
            c.gap.update({"permutations": 200, "resamples": 200, "repeats": 1})
            c.search.update({"widths": (64, 128), "l1": (1e-7,), "rates": (1e-3,), "folds": 2, "epochs": 1})
    return c
