"""The autoencoder route (Mas-Buitrago et al. 2024, A&A 687, A205): its sections, with the published values.

No experiment of its own: a config of one adds them with `add_route` and changes what differs.
"""

import ml_collections


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
        "stars": 20000,  # spectra at most, drawn at random, and half as many kept aside; published: all
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
