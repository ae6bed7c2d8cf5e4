"""MARVELS: the paper's values throughout. Needs the PHOENIX-ACES HiRes library and MARVELS spectra.

    python -m launch.fetch_library --config=configs/marvels.py  # 2870 models, 18 GB; see docs/libraries.md
    python -m launch.preprocess --config=configs/marvels.py --workdir=workdirs/marvels
    python -m launch.pretrain   --config=configs/marvels.py --workdir=workdirs/marvels
    python -m launch.finetune   --config=configs/marvels.py --workdir=workdirs/marvels

Expected under the data root: `phoenix/hires/` with the HiRes files and their WAVE file, `marvels/spectra/` with
one FITS table per star (columns wavelength, flux, ivar; both beams in one file, at rest or with a velocity in the
label table), `marvels/labels.ecsv`. The paper quotes 45 + 5 minutes on one Titan RTX.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The paper's experiment."""
    common.parse_arg(arg)
    c = common.get_config()
    c.name = "marvels"
    c.library = common.phoenix_library(interpolate=False)
    c.survey = common.fits_table_survey("marvels", c.label_names)
    # A star's two beams are files of their own; a fifth of the detector has features that stand still (§3.3).
    c.survey.labels.repeat_stars = True
    c.observe.update({"join": True, "stationary": True})
    # The fixed set of §3.3, 3 resolutions × 5 noise levels × 3 draws per node, once per epoch.
    c.augment.kind = "paper"
    c.pretrain.epoch_size = 0
    # Here the full model has the fixed set, and the variants leave it.
    c.ablate.variants.online_noise = {"augment": {"kind": "online"}}
    c.ablate.variants.online_cells = {"augment": {"kind": "online"}, "library": {"interpolate": True}}
    c.embeddings.epochs = (0, 25, 50)  # figs. 2 and 3
    # §5: fine-tune on all labelled dwarfs; the 30 calibration stars are kept apart as one fold would be.
    c.split.update({"folds": 78, "run": (0,)})
    c.lock()
    return c
