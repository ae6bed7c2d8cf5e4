"""The embedded synthetic library and the mock survey: simple LTE spectra made by the project itself."""

from remap.synth.alpha import alpha_response, response_axes
from remap.synth.atoms import ELEMENTS, check_labels, check_offsets, element_offsets
from remap.synth.blanketing import add_weak_lines, default_lines
from remap.synth.library import make_library, write_library
from remap.synth.lines import load_lines
from remap.synth.model import synthesize, synthesize_batch
from remap.synth.survey import SurveySettings, make_survey

__all__ = [
    "ELEMENTS",
    "SurveySettings",
    "add_weak_lines",
    "alpha_response",
    "check_labels",
    "check_offsets",
    "default_lines",
    "element_offsets",
    "load_lines",
    "make_library",
    "make_survey",
    "response_axes",
    "synthesize",
    "synthesize_batch",
    "write_library",
]
