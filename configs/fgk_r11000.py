"""FGK stars at the paper's resolution: two libraries, R = 10,000 to 12,000, no survey and no labelled star.

    python -m launch.preprocess --config=configs/fgk_r11000.py --workdir=workdirs/fgk_r11000
    python -m launch.pretrain   --config=configs/fgk_r11000.py --workdir=workdirs/fgk_r11000
    python -m launch.predict    --workdir=workdirs/fgk_r11000 --stage=pretrain --survey=harps FILE...

Spectra that are sharper are degraded to it. `launch.pretrain` is the last stage: fine-tuning needs a survey.
An arm takes some 21 minutes on one quiet core; two processes (`--arms=A`, `--arms=B`) train both at once.

Data: `lte_grid.npz` and `coolstars_grid.npz` under the data root.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Settings of the experiment.

    Args:
      arg: `fine` has pixels of 0.1 Å, as the paper, instead of 0.2 Å, which sample R = 11,000 at 2.4 pixels per FWHM;
        `lines` and `alpha` vary line strengths and [α/Fe] of library spectra; `short` makes a run of minutes
        that proves nothing.
    """
    options = common.parse_arg(arg, short=False, fine=False, lines=False, alpha=False)
    c = common.get_config()
    c.name = "fgk_r11000"

    common.fgk_libraries(c)
    # The first library ends at 4850 and 5750 Å; within 4σ = 0.9 Å of them flux from beyond is missing.
    step = 0.1 if options["fine"] else 0.2
    c.arms = {
        "A": {"start": 4851.2, "stop": 5280.0, "step": step},
        "B": {"start": 5280.0, "stop": 5748.8, "step": step},
    }
    c.lsf = ml_collections.ConfigDict({"kind": "resolution", "values": (10000.0, 11000.0, 12000.0)})
    # There is none: `survey.path` "" prepares no stars. How files are read is said where they are predicted.
    c.survey = common.known_survey("mike", "", c.label_names)
    c.survey.update({"path": "", "labels_path": ""})
    # Merged orders and cross-correlation leave a little velocity, real spectra a better or a worse S/N.
    # They have gaps between chips and orders, and masked lines of the sky or of cosmic rays.
    c.augment.update({"noise_low": 0.003, "noise_high": 0.03, "velocity": 2.0})
    c.augment.update({"gaps": 3, "gap_pixels": round(8.0 / step)})
    if options["lines"]:
        c.augment.update({"lines": 0.7, "lines_each": 0.35})
    if options["alpha"]:
        c.augment.update({"alpha": (0.0, 0.35), "alpha_scatter": 0.1})

    # The rates of configs/miles.py. A stem with one output per 0.4 Å, the line spread, whatever the pixels.
    c.model.stem_stride = 4 if options["fine"] else 2
    c.model.stem_kernel = 11 if options["fine"] else 7
    c.model.dropout = 0.0
    c.pretrain.update({"batch_size": 32, "epoch_size": 2048, "rate_high": 1e-2, "rate_low": 1e-4})
    if options["short"]:
        c.pretrain.update({"epoch_size": 256, "cycles": 2, "epochs_per_cycle": 2})
        c.model.filters = (8, 16)
    c.lock()
    return c
