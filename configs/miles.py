"""MILES: pre-train on two libraries, fine-tune on observed dwarfs, at R = 2,100 and 0.9 Å per pixel.

    python -m launch.preprocess --config=configs/miles.py --workdir=workdirs/miles
    python -m launch.pretrain   --config=configs/miles.py --workdir=workdirs/miles
    python -m launch.finetune   --config=configs/miles.py --workdir=workdirs/miles
    python -m launch.expert     --config=configs/miles.py --workdir=workdirs/miles
    python -m launch.calibrate  --config=configs/miles.py --workdir=workdirs/miles
    python -m launch.evaluate   --config=configs/miles.py --workdir=workdirs/miles

Data: `lte_grid.npz`, `coolstars_grid.npz` and `miles/` under the data root. Cite Sánchez-Blázquez et al.
2006, Falcón-Barroso et al. 2011 (spectra) and Cenarro et al. 2007 (labels). The labels are a consensus of up
to twelve sources on Cenarro's scale, each with its own error (`miles/labels_consensus.ecsv`);
`--config=configs/miles.py:cenarro` takes Cenarro's alone, which have one error for all (`miles/labels.ecsv`).
Cost and results: benchmarks/results.md.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the MILES experiment.

    Args:
      arg: `giants` trains on labelled giants, too; `cenarro` takes Cenarro's labels; `short` makes a run of a minute
        that proves nothing.
    """
    options = common.parse_arg(arg, short=False, cenarro=False, giants=False)
    c = common.get_config()
    c.name = "miles"

    c.library = common.bundle_library("lte_grid.npz")
    cool = common.bundle_library("coolstars_grid.npz", columns=("teff", "logg", "m_h"), absolute=False)
    c.libraries.coolstars = common.further_library(cool, weight=0.5)
    image = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom", "hdu": 0}
    c.survey = common.survey("miles", image, c.label_names)
    c.survey.labels_path = "miles/labels.ecsv" if options["cenarro"] else "miles/labels_consensus.ecsv"
    # The library ends at 4850 and 5750 Å, and pixels within 4σ of its ends lack flux from beyond: the outer
    # limits keep clear of them. All limits lie on MILES's own pixels, so that nothing is interpolated.
    c.arms = {
        "A": {"start": 4855.4, "stop": 5280.2 - 0.45, "step": 0.9},
        "B": {"start": 5280.2, "stop": 5745.05, "step": 0.9},
    }
    # MILES has one FWHM for all; ±0.2 Å covers its own uncertainty.
    c.lsf = ml_collections.ConfigDict({"kind": "fwhm", "values": (2.3, 2.5, 2.7)})
    # The library's steps are 250 K, 0.5 and 0.5 dex; σ = step / 5 (§5 iii).
    c.labels.teff.library_sigma = 50.0
    c.labels.teff.error = 60.0
    c.labels.logg.error = 0.13
    c.labels.feh.error = 0.07

    # The line spread is 2.8 pixels wide: a stem of stride 2 with 16 filters loses nothing and halves the cost.
    c.model.stem_stride = 2
    # Library draws never repeat, so dropout only slows learning; and with 120,000 instead of 13 million spectra
    # the rate must be higher than the paper's. Validation loss of arm B after one cycle of 30 × 1,024 spectra:
    # 9.08 (1e-3, dropout 0.1, batch 64), 8.01 (3e-3), 7.81 (1e-2), 7.68 (without dropout), 7.49 (and batch 32).
    c.model.dropout = 0.0
    # Pools do not tell where a line is: heads see a narrow map of the arm, too, as in configs/fgk_r1800.py, where
    # validation stars chose it.
    c.model.place_filters = 16
    c.pretrain.update({"batch_size": 32, "epoch_size": 2048, "rate_high": 1e-2, "rate_low": 1e-4})
    # Of a batch of 32, 8 are labelled stars. 20 are spectra of the library, of all kinds, corrected to look like the
    # stars and with a star's residuals (remap.sampling.correction): the few labelled stars are not learned by heart.
    # 4 are spectra of other stars, giants mostly, whose log g is to stay what the pre-trained network says, or all
    # that looks observed is taken for a dwarf. docs/design.md has the evidence.
    c.finetune.update({"rehearsal": 0.625, "correction": "linear", "residual_weight": (1.0, 1.0)})
    c.finetune.rehearsal_augment = {
        "noise_low": 0.0,
        "noise_high": 0.01,
    }  # residuals bring a star's own noise
    c.finetune.update({"unlabelled": 0.125, "anchor": ("logg",)})
    c.finetune.update({"batch_size": 32, "epochs_per_cycle": 15, "rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"layer_rates": "uniform", "rate_factor": 0.3})
    if options["giants"]:
        # Three times as many steps as for the dwarfs alone, from which their Teff gains.
        c.finetune.update({"select": {"logg": (0.0, 5.5)}, "unlabelled": 0.0, "rehearsal": 0.75})
        c.finetune.epochs_per_cycle = 18
    c.expert.kind = "gaussian_process"
    # Hotter and metal-poorer dwarfs have larger errors, so that with one power for all dwarfs the others'
    # intervals are too wide. Giants have no labels here: as long as `finetune.select` leaves them out, they are
    # uncalibrated.
    c.calibrate.groups = {
        "dwarfs": {"teff": (4500.0, 6500.0), "logg": (3.5, 5.5), "feh": (-1.0, 1.0)},
        "giants": {"logg": (1.0, 3.5)},
    }
    # A third of the training for all models, the full one too: what matters shows before the last percent.
    c.ablate.overrides = {"pretrain": {"epochs_per_cycle": 10}, "finetune": {"epochs_per_cycle": 5}}
    c.embeddings.epochs = (0, 25, 50)
    if options["short"]:
        c.ablate.overrides = {}
        c.embeddings.epochs = (0, 2, 4)
        c.pretrain.update({"epoch_size": 256, "cycles": 2, "epochs_per_cycle": 2})
        c.finetune.update({"cycles": 2, "epochs_per_cycle": 2})
        c.split.run = (0,)
        c.model.filters = (8, 16)
    c.lock()
    return c
