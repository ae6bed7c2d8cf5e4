"""deep-REMAP: probabilistic stellar parameters from 1-D spectra."""

from remap._version import __version__
from remap.predict.predictor import Predictor, load
from remap.spectra import Spectra, SpectrumError, make_spectra

__all__ = ["Predictor", "Spectra", "SpectrumError", "__version__", "load", "make_spectra"]
