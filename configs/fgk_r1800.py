"""FGK stars at R = 1,800: two libraries, fine-tuned on the dwarfs and giants of MILES, for spectra of other surveys.

    for stage in preprocess pretrain finetune calibrate references evaluate; do
      python -m launch.$stage --config=configs/fgk_r1800.py --workdir=workdirs/fgk_r1800
    done

R = 1,800 is LAMOST's, and every sharper spectrum, MILES's too, is degraded to it. What other spectrographs do
otherwise than MILES's is varied in training: line spread ±15 %, velocity ±20 km/s, noise, masks.

**Scale.** The labels are a consensus of up to twelve sources on Cenarro's scale (`miles/labels_consensus.ecsv`). A
network for others should be on that of the Gaia benchmark stars, whose temperatures are interferometric (version 3 of
their list): `BENCHMARK_SCALE` adds the difference of the benchmark stars in common, found for dwarfs and for giants.
The argument `cenarro` leaves the labels on Cenarro's scale.

Data: `lte_grid.npz`, `coolstars_grid.npz` and `miles/` under the data root. Cite Sánchez-Blázquez et al. 2006,
Falcón-Barroso et al. 2011 (spectra) and Cenarro et al. 2007 (labels).
"""

import ml_collections

from configs import common

# Benchmark stars minus consensus, giants and dwarfs: 4 and 67 K, -0.09 and 0.01, -0.02 and 0.01 dex (README of the
# shared data). Between them a straight line in the consensus's log g: a step would be one in the labels of subgiants.
BENCHMARK_SCALE = {
    "teff": {"by": "logg", "at": (3.2, 3.8), "add": (4.0, 67.0)},
    "logg": {"by": "logg", "at": (3.2, 3.8), "add": (-0.09, 0.01)},
    "feh": {"by": "logg", "at": (3.2, 3.8), "add": (-0.02, 0.01)},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the network.

    Args:
      arg: `cenarro` trains on Cenarro's scale; `lines` and `alpha` vary line strengths and [α/Fe] of library spectra;
        `short` makes a run of minutes that proves nothing.
    """
    options = common.parse_arg(arg, short=False, cenarro=False, lines=False, alpha=False)
    c = common.get_config()
    c.name = "fgk_r1800"

    common.fgk_libraries(c)
    c.survey = common.known_survey("miles", "miles", c.label_names)
    c.survey.labels_path = "miles/labels_consensus.ecsv"
    c.survey.labels.offsets = {} if options["cenarro"] else BENCHMARK_SCALE
    # MILES's own pixels, 0.9 Å, so that nothing is interpolated, clear of the ends of the libraries as in
    # configs/miles.py. LAMOST's are 1.1 to 1.3 Å here: nothing of it is lost.
    c.arms = {
        "A": {"start": 4855.4, "stop": 5280.2 - 0.45, "step": 0.9},
        "B": {"start": 5280.2, "stop": 5745.05, "step": 0.9},
    }
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (1530.0, 1800.0, 2070.0)})
    # S/N 10 to 330, as many spectra from 10 to 20 as from 100 to 200.
    noise = {"noise_low": 0.003, "noise_high": 0.1}
    c.augment.update({**noise, "noise_law": "log", "velocity": 20.0, "gaps": 3, "gap_pixels": 8})
    if options["lines"]:
        c.augment.update({"lines": 0.7, "lines_each": 0.35})
    if options["alpha"]:
        c.augment.update({"alpha": (0.0, 0.35), "alpha_scatter": 0.1})

    # As configs/miles.py, which has the reasons.
    c.model.stem_stride = 2
    c.model.dropout = 0.0
    # Pools alone waste signal: noise in the spectra of library dwarfs came back in Teff and [Fe/H] at 1.7 times the
    # Cramér-Rao bound (benchmarks.bench_information). Places and a training three times as long are for that.
    c.model.place_filters = 16
    c.pretrain.update({"batch_size": 32, "epoch_size": 6144, "rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"rehearsal": 0.75, "correction": "linear", "residual_weight": (1.0, 1.0)})
    c.finetune.update(noise)
    c.finetune.augment.update({"velocity": 20.0, "gaps": 3, "gap_pixels": 8})
    c.finetune.update({"batch_size": 32, "epochs_per_cycle": 18, "rate_high": 1e-2, "rate_low": 1e-4})
    c.finetune.update({"layer_rates": "uniform", "rate_factor": 0.3})
    c.finetune.select = {"teff": (3900.0, 7000.0), "logg": (0.0, 5.5), "feh": (-2.5, 0.6)}
    # MILES has a handful of stars beyond: A stars of 7,500 to 9,000 K come out between 6,850 and 7,400.
    c.predict.range = {"teff": (3900.0, 7000.0), "feh": (-2.5, 0.6)}
    # Few of the libraries', so that the files that ship stay small: stars alone explain other stars well.
    c.references.update({"library": 128, "spectra": 128})
    # MILES's spectra have S/N above 100. Between 10 and 100 the widths of the networks and the stars' differ by up to
    # a factor that has to be found, not presumed.
    c.calibrate.update({"noise": (10.0, 20.0, 40.0), "snr_sigma": 2.0})
    # For spectra of other surveys, of which an expert (remap.stages.expert) knows nothing.
    c.expert.kind = "none"
    if options["short"]:
        c.pretrain.update({"epoch_size": 256, "cycles": 2, "epochs_per_cycle": 2})
        c.finetune.update({"cycles": 2, "epochs_per_cycle": 2})
        c.split.run = (0,)
        c.model.filters = (8, 16)
    c.lock()
    return c
