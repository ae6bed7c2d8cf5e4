"""deep-REMAP: probabilistic stellar parameters from 1-D spectra.

    predictor = remap.load("fgk_r1800")  # or a working folder of one's own
    found = predictor.predict(remap.make_spectra(wave, flux, medium="air"))

The packages hold the parts, in layers: `spectra`, `labels`, `config`, `continuum`, `pmf`; `io`, `preprocess`,
`sampling`, `network`; `store`, `synth`, `report`; `train`, `predict`; `stages`, `autoencoder`; `studies`.

Names are imported when they are first used, so that `from remap.continuum import normalize` costs little more than
importing JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from remap._version import __version__

if TYPE_CHECKING:
    from remap.continuum.algorithm1 import ContinuumSettings, normalize
    from remap.predict.catalogue import Catalogue, read_catalogue
    from remap.predict.predictor import Predictor
    from remap.predict.release import load, networks
    from remap.predict.scores import evaluate
    from remap.spectra import Spectra, SpectrumError, make_spectra

__all__ = [
    "Catalogue",
    "ContinuumSettings",
    "Predictor",
    "Spectra",
    "SpectrumError",
    "__version__",
    "evaluate",
    "load",
    "make_spectra",
    "networks",
    "normalize",
    "read_catalogue",
]

_HOMES = {
    "Catalogue": "remap.predict.catalogue",
    "ContinuumSettings": "remap.continuum.algorithm1",
    "Predictor": "remap.predict.predictor",
    "Spectra": "remap.spectra",
    "SpectrumError": "remap.spectra",
    "evaluate": "remap.predict.scores",
    "load": "remap.predict.release",
    "networks": "remap.predict.release",
    "make_spectra": "remap.spectra",
    "normalize": "remap.continuum.algorithm1",
    "read_catalogue": "remap.predict.catalogue",
}


def __getattr__(name: str) -> Any:
    """PEP 562: imports a public name's module at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
