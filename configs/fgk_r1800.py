"""FGK stars at R = 1,800: two libraries, fine-tuned on the dwarfs and giants of MILES, for spectra of other surveys.

    for stage in preprocess pretrain finetune expert calibrate evaluate; do
      python -m launch.$stage --config=configs/fgk_r1800.py --workdir=workdirs/fgk_r1800
    done

R = 1,800 is LAMOST's, and every sharper spectrum can be brought to it. What other spectrographs do otherwise than
MILES's is varied in training: line spread ±15 %, velocity ±20 km/s, noise, masks.

Data: `lte_grid.npz`, `coolstars_grid.npz` and `miles/` under the data root. Cite Sánchez-Blázquez et al. 2006 and
Falcón-Barroso et al. 2011 (spectra). Cost and results: benchmarks/results.md.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the network; the argument `short` makes a run of minutes that proves nothing."""
    options = common.parse_arg(arg, short=False)
    c = common.get_config()
    c.name = "fgk_r1800"

    c.library = common.bundle_library("lte_grid.npz")
    cool = common.bundle_library("coolstars_grid.npz", columns=("teff", "logg", "m_h"), absolute=False)
    c.libraries.coolstars = common.further_library(cool, weight=0.5)
    c.survey = common.known_survey("miles", "miles", c.label_names)
    c.survey.labels_path = "miles/labels_consensus.ecsv"
    # The consensus is on Cenarro's scale. The Gaia benchmark stars (interferometry, Heiter et al. 2015) are hotter by
    # 67 K (dwarfs) and 4 K (giants); the network is on their scale.
    kinds = {"by": "logg", "at": (3.2, 3.8)}
    c.survey.labels.offsets = {
        "teff": {**kinds, "add": (4.0, 67.0)},
        "logg": {**kinds, "add": (-0.09, 0.01)},
        "feh": {**kinds, "add": (-0.02, 0.01)},
    }
    # As configs/miles.py; LAMOST's pixels are 1.1 to 1.3 Å here, and nothing is lost by finer ones.
    c.arms = {
        "A": {"start": 4855.4, "stop": 5280.2 - 0.45, "step": 0.9},
        "B": {"start": 5280.2, "stop": 5745.05, "step": 0.9},
    }
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (1530.0, 1800.0, 2070.0)})
    # Bins reach beyond the libraries' nodes, so that an answer at their edge is not an answer in an outermost bin.
    c.labels.teff.update({"low": 3600.0, "high": 7600.0, "bins": 60})
    c.labels.logg.update({"low": -0.2, "high": 5.5, "bins": 38})
    c.labels.feh.update({"low": -2.7, "high": 0.7, "bins": 68})
    # The libraries' steps are 250 K, 0.5 and 0.5 dex; σ = step / 5 (§5 iii).
    c.labels.teff.library_sigma = 50.0
    c.augment.update({"noise_low": 0.003, "noise_high": 0.04, "velocity": 20.0, "gaps": 3, "gap_pixels": 8})

    # As configs/miles.py, which has the reasons.
    c.model.stem_stride = 2
    c.model.dropout = 0.0
    c.pretrain.update({"batch_size": 32, "epoch_size": 2048, "rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"rehearsal": 0.75, "correction": "linear", "residual_weight": (1.0, 1.0)})
    c.finetune.rehearsal_augment = {"noise_low": 0.0, "noise_high": 0.04}
    c.finetune.update({"noise_low": 0.0, "noise_high": 0.04})
    c.finetune.augment.update({"velocity": 20.0, "gaps": 3, "gap_pixels": 8})
    c.finetune.update({"batch_size": 32, "epochs_per_cycle": 6, "rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"layer_rates": "uniform", "rate_factor": 0.3})
    c.finetune.select = {"teff": (3900.0, 7000.0), "logg": (0.0, 5.5), "feh": (-2.5, 0.6)}
    c.expert.kind = "gaussian_process"
    if options["short"]:
        c.pretrain.update({"epoch_size": 256, "cycles": 2, "epochs_per_cycle": 2})
        c.finetune.update({"cycles": 2, "epochs_per_cycle": 2})
        c.split.run = (0,)
        c.model.filters = (8, 16)
    c.lock()
    return c
