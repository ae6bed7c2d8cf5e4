"""Velocities: known shifts are found with honest errors, and what has no velocity is called poor."""

import numpy as np
import pytest
from scipy import constants

from remap.config import ConfigError
from remap.preprocess.velocity import VelocitySettings, make_templates, measure_velocities

WAVE = {"A": 4860 + 0.5 * np.arange(800), "B": 5270 + 0.5 * np.arange(900)}
SNR = 50
C = constants.c / 1e3


def in_vacuum(air):
    """Piskunov's inverse of Morton 2000 (ApJS 130, 403), which VALD uses: not the formula of the library."""
    s = (1e4 / air) ** 2
    return air * (
        1
        + 8.336624212083e-5
        + 0.02408926869968 / (130.1065924522 - s)
        + 1.599740894897e-4 / (38.92568793293 - s)
    )


def line_list(seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(4800, 5800, 300), rng.exponential(0.12, 300)  # Å in vacuum, depth


def spectrum(wave, *, velocity=0.0, strength=1.0, medium="air", seed=0, sigma=0.8):
    """Gaussian lines of width 0.8 Å that recede, made at the pixels: nothing is interpolated."""
    centres, depths = line_list(seed)
    beta = velocity / C
    rest = (in_vacuum(wave) if medium == "air" else wave) / np.sqrt((1 + beta) / (1 - beta))
    lines = depths[:, None] * np.exp(-0.5 * ((rest - centres[:, None]) / sigma) ** 2)
    return np.exp(-strength * lines.sum(axis=0))


def observe(velocities, *, snr=SNR, medium="air", seed=1, slope=0.0, ivar=True, **lines):
    rng = np.random.default_rng(seed)
    arms = {}
    for arm, wave in WAVE.items():
        level = 1e-17 * (wave / 5000) ** slope
        clean = level * np.stack([spectrum(wave, velocity=v, medium=medium, **lines) for v in velocities])
        noise = np.broadcast_to(level / snr, clean.shape)
        seen = clean + noise * rng.standard_normal(clean.shape)
        arms[arm] = (seen, np.ones(clean.shape, bool), 1 / noise**2 if ivar else None)
    return arms


def templates(medium="air", settings=None):
    strengths = np.linspace(0.4, 2, 9)
    flux = {a: np.stack([spectrum(w, strength=s, medium=medium) for s in strengths]) for a, w in WAVE.items()}
    valid = {a: np.ones(w.size, bool) for a, w in WAVE.items()}
    return make_templates(flux, valid, WAVE, strengths[:, None], medium, settings)


VELOCITIES = np.tile([-500.0, -83.0, -10.3, 0.0, 3.1, 60.0, 250.0, 500.0], 5)


@pytest.mark.parametrize("medium", ["air", "vacuum"])
def test_a_known_shift_is_found(medium):
    found = measure_velocities(observe(VELOCITIES, strength=1.1, medium=medium), templates(medium))
    off = found.velocity - VELOCITIES
    assert not found.poor.any()
    assert np.abs(off).max() < 2.5  # five times the error of 0.5 km/s that this S/N and these lines allow
    assert abs(off[VELOCITIES == 500].mean()) < 0.7
    assert abs(off[VELOCITIES == -500].mean()) < 0.7
    assert 0.5 < np.std(off / found.error) < 1.5


def test_one_arm_is_enough_and_two_are_better():
    arms = observe(VELOCITIES)
    both = measure_velocities(arms, templates())
    one = measure_velocities({"A": arms["A"]}, templates())
    assert not one.poor.any()
    assert np.median(both.error) < 0.85 * np.median(one.error)


def test_unusable_rows_are_nan_and_leave_the_others_alone():
    arms = observe(np.zeros(6))
    alone = measure_velocities(arms, templates())
    for flux, valid, ivar in arms.values():
        flux[0], valid[1], ivar[2], flux[3], flux[4] = np.nan, False, 0, 0, -1
    found = measure_velocities(arms, templates())
    assert np.isnan(found.velocity[:5]).all()
    assert np.isnan(found.error[:5]).all()
    assert found.poor[:5].all()
    assert (found.template[:5] == -1).all()
    np.testing.assert_allclose(found.velocity[5], alone.velocity[5], atol=1e-3)  # the order of float32 sums


def test_wrong_arms_are_refused():
    arms = observe(np.zeros(2))
    with pytest.raises(ConfigError, match="'C'"):
        measure_velocities({"C": arms["A"]}, templates())
    with pytest.raises(ConfigError, match="arm A"):
        measure_velocities({"A": arms["B"]}, templates())
    with pytest.raises(ConfigError, match="as many stars"):
        measure_velocities({"A": arms["A"], "B": tuple(x[:1] for x in arms["B"])}, templates())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("templates", 0),
        ("limit", -1.0),
        ("span", 10.0),
        ("taper", 0.6),
        ("min_coverage", 2.0),
        ("mismatch", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        VelocitySettings(**{field: value})
