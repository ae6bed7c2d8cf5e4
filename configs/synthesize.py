"""The default synthetic library: FGK stars in 4850-5750 Å, unbroadened.

    python -m launch.synthesize --output=library.npz

594 spectra of 22,501 pixels, 60 MB; a minute or two on two cores. To read the file in an experiment, set
`library.path` to it and copy the rest of `library` from configs/quickstart.py.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """Arguments of `remap.synth.make_library`; the argument `short` makes eight spectra of a coarser grid."""
    options = common.parse_arg(arg, short=False)
    c = ml_collections.ConfigDict()
    c.name = "synthesize"
    c.library = {
        "teff": tuple(range(4000, 7001, 250)),  # K
        "logg": tuple(0.5 * i for i in range(2, 11)),
        "m_h": tuple(0.5 * i for i in range(-4, 2)),
        "vmic": (2.0, -0.2),  # km/s: 2.0 - 0.2 log g
        "alpha": ml_collections.config_dict.placeholder(tuple),  # such as (0.0, 0.4) for one more axis
        "logg_floor": ((5750.0, 2.0), (6500.0, 3.0)),  # from this Teff up no star has a lower log g
        "wave_range": (4850.0, 5750.0),  # Å in air
        "wave_step": 0.04,
        "oversample": 2,
        "chunk": 16,
    }
    if options["short"]:
        c.library.update({"teff": (4750, 5750), "logg": (3.0, 4.5), "m_h": (-0.5, 0.0), "wave_step": 0.1})
        c.library.oversample = 4
    c.lock()
    return c
