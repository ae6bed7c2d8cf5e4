"""Response to [α/Fe]: the lines of Mg, Ca, Si and Ti answer and others do not, and not far from linearly."""

import numpy as np
import pytest

from remap.config import ConfigError
from remap.synth.alpha import REACH, alpha_response, response_axes
from remap.synth.atoms import ALPHA_ELEMENTS, ELEMENTS
from remap.synth.lines import load_lines

WAVE = np.arange(5150.0, 5290.0, 0.5)
LABELS = np.array([[5800.0, 4.4, 0.0], [6100.0, 4.3, -1.2]])
FWHM = np.full(WAVE.size, 1.0)
LINES = load_lines()
ALPHA = np.isin(LINES.element, [ELEMENTS.index(e) for e in ALPHA_ELEMENTS])


def response(reach=REACH, lines=LINES):
    return alpha_response(LABELS, WAVE, medium="air", fwhm=FWHM, reach=reach, lines=lines, chunk=4)


@pytest.fixture(scope="module")
def found():
    return response()


def near(*centres, width):
    return np.min(np.abs(WAVE[:, None] - np.array(centres)), axis=1) < width


def without_alpha_lines():
    return type(LINES)(*(np.asarray(a)[~ALPHA] for a in LINES))


def test_mg_b_answers_and_iron_lines_do_not(found):
    mg_b = near(5167.32, 5172.68, 5183.60, width=1.0)
    assert np.all(found[:, mg_b].mean(axis=1) < -0.15)
    away = ~near(*LINES.wave[ALPHA], width=4.0)
    assert (near(5232.94, width=0.6) & away).any()  # strong Fe I
    # In a hot metal-poor star electrons come from hydrogen, and nothing else happens.
    assert np.all(np.abs(found[1, away]) < 0.01)


def test_other_lines_only_weaken_where_the_metals_give_the_electrons():
    others = response(lines=without_alpha_lines())
    assert others.min() > -1e-3
    assert others[1].max() < 0.015
    # In the Sun more H⁻ makes the wings of strong lines shallower: a sixth per dex in Fe I 5269.5, the strongest.
    assert 0.05 < others[0].max() < 0.2
    assert abs(WAVE[others[0].argmax()] - 5269.54) < 1.0


def test_response_is_nearly_linear(found):
    """The chord over half the reach differs by what saturation makes of it."""
    half = response(reach=REACH / 2)
    assert np.sqrt(np.mean((half - found) ** 2)) < 0.12 * np.sqrt(np.mean(found**2))


def test_axes_stay_within_labels_and_model():
    axes = response_axes({"teff": (3000.0, 7000.0), "feh": (-2.5, 0.5)}, {"teff": 3, "feh": 4})
    np.testing.assert_allclose(axes["teff"], [3900, 5450, 7000])
    np.testing.assert_allclose(axes["feh"], [-2.5, -1.5, -0.5, 0.5])
    with pytest.raises(ConfigError, match="teff from 3900 to 7500"):
        response_axes({"teff": (2300.0, 3900.0)}, {"teff": 3})


def test_arms_without_lines_are_refused():
    wave = np.arange(8800.0, 8835.0, 0.5)
    with pytest.raises(ConfigError, match=r"found one of 8800\.0"):
        alpha_response(LABELS, wave, medium="air", fwhm=np.ones(wave.size))
