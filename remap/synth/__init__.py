"""The embedded synthetic library and the mock survey: simple LTE spectra made by the project itself."""

from remap.synth.library import make_library, write_library
from remap.synth.model import check_labels, load_lines, synthesize, synthesize_batch
from remap.synth.survey import make_survey

__all__ = [
    "check_labels",
    "load_lines",
    "make_library",
    "make_survey",
    "synthesize",
    "synthesize_batch",
    "write_library",
]
