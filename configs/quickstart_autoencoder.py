"""The autoencoder route on the embedded library and a mock survey with a known gap; no download, no data.

    python -m launch.autoencoder --config=configs/quickstart_autoencoder.py --workdir=workdirs/quickstart_autoencoder

Library and survey are those of `configs/quickstart.py`, its first arm.
"""

import ml_collections

from configs import autoencoder, common, quickstart


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the demonstration; the argument `short` shows the same steps with less, and proves nothing."""
    options = common.parse_arg(arg, short=False)
    c = quickstart.get_config("short" if options["short"] else None)
    with c.unlocked():
        c.name = "quickstart_autoencoder"
        c.arm_names = ("A",)
        autoencoder.add_route(c)
        c.autoencoder.update({"noise_low": 0.002, "noise_high": 0.02, "denoise": True, "examples": 8192})
        c.autoencoder.update({"centre": True, "gain": 10.0})
        c.autoencoder.members = ((256, 1e-8, 1e-3), (256, 1e-8, 1e-3))
        c.autoencoder.update(
            {"batch_size": 32, "epochs_per_cycle": 20, "rate_fall": 0.01, "validation_size": 512}
        )
        c.adapt.update({"trains": "encoder", "rehearsal": 0.5, "batch_size": 128, "epochs_per_cycle": 200})
        c.adapt.update({"rate_fall": 0.01, "matched": 4096})
        c.adapt.align.update({"kind": "mmd", "weight": 0.01})
        c.regressor.encoder = "adapted"
        c.regressor.update({"networks": 2, "filters": (16, 16), "dense": (64, 32, 16)})
        c.regressor.update({"batch_size": 128, "epochs_per_cycle": 20, "rate_high": 3e-3, "rate_low": 3e-5})
        if options["short"]:
            c.autoencoder.members = ((64, 1e-8, 1e-3), (64, 1e-8, 1e-3))
            c.autoencoder.update({"examples": 1024, "epochs_per_cycle": 4, "validation_size": 128})
            c.autoencoder.validation = 0.25  # the short library has four cells
            c.adapt.epochs_per_cycle = 10
            c.regressor.update({"networks": 2, "epochs_per_cycle": 4})
            c.gap.update(
                {"folds": 3, "permutations": 100, "resamples": 100, "repeats": 1, "perplexity": 10.0}
            )
    return c
