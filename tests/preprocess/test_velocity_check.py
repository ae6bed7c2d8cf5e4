"""The quick look at velocities: it is sure of spectra at rest, and never of what a measurement contradicts."""

import numpy as np
import pytest

from remap.preprocess.velocity import measure_velocities
from remap.preprocess.velocity_check import _Look, _product, surely_at_rest
from remap.preprocess.velocity_settings import VelocitySettings
from tests.preprocess.test_velocity import WAVE, featureless, observe, templates

TOLERANCE = 20.0
SETTINGS = VelocitySettings()


def light(arms):
    return {arm: (flux.astype(np.float32), valid) for arm, (flux, valid, _) in scaled(arms).items()}


def scaled(arms):
    """Fluxes as they are on the grids: about 1, and 0 where there is none."""
    out = {}
    for arm, (flux, valid, ivar) in arms.items():
        peak = np.abs(np.where(valid, flux, 0)).max(axis=1, keepdims=True)
        out[arm] = (np.where(valid, flux, 0) / np.where(peak > 0, peak, 1), valid, ivar)
    return out


def sure(arms):
    return surely_at_rest(light(arms), templates(), SETTINGS, tolerance=TOLERANCE)


def test_spectra_at_rest_need_no_measurement():
    assert sure(observe(np.zeros(40), strength=1.1, snr=30)).all()
    assert sure(observe(np.zeros(40), slope=4.0)).all()
    assert sure(observe(np.zeros(40), ivar=False, snr=15)).mean() > 0.9


@pytest.mark.parametrize("snr", [5, 50])
def test_what_the_measurement_contradicts_is_never_sure(snr):
    velocities = np.repeat([0, 5, 12, 22, 25, 30, 45, 60, 83, -25, -83, 150, -300, 500, 950.0], 8)
    arms = observe(velocities, snr=snr)
    found = measure_velocities(arms, templates())
    apart = ~found.poor & (np.abs(found.velocity) - 2 * found.error > TOLERANCE)
    assert apart.sum() > 60
    assert not (sure(arms) & apart).any()
    assert not sure(arms)[np.abs(velocities) > TOLERANCE].any()


def test_a_shift_is_seen_without_one_arm_and_with_gaps_and_spikes():
    for velocity in (0.0, 83.0):
        arms = observe(np.full(20, velocity))
        for flux, valid, _ in arms.values():
            valid[:, 300:360] = False
            flux[:, 700] *= 30
        arms["A"][1][10:] = False
        assert (sure(arms) == (velocity == 0)).all()


@pytest.mark.parametrize(
    "kind", ["noise about zero", "continuum", "correlated noise", "other lines", "one broad line"]
)
def test_of_what_has_no_velocity_nothing_is_sure(kind):
    assert sure(featureless(kind)).mean() <= 0.05


def test_nothing_is_said_of_spectra_without_pixels_or_with_wild_ones():
    arms = observe(np.zeros(4))
    for flux, valid, _ in arms.values():
        valid[0], flux[1], flux[2] = False, 0, -flux[2]
    assert sure(arms).tolist() == [False, False, False, True]
    garbage = {
        arm: (np.full((2, w.size), np.nan, np.float32), np.ones((2, w.size), bool)) for arm, w in WAVE.items()
    }
    assert not surely_at_rest(garbage, templates(), SETTINGS, tolerance=TOLERANCE).any()


def test_a_peak_must_be_at_rest_sharp_and_alone():
    look = _Look(lags=2 * np.arange(-10, 11), step=50.0, width=3.0, arms={})

    def decided(*, shift=0.0, width=3.0, other=0.0, sign=1.0):
        curve = 2.0 ** -(((look.lags - shift / look.step) / width) ** 2)
        curve += other * (look.lags == 14)
        return look.decide(sign * curve[None, :, None].astype(np.float32), TOLERANCE)[0]

    assert decided()
    assert decided(shift=9.0)
    assert not decided(shift=11.0)
    assert not decided(shift=-11.0)
    assert not decided(shift=400.0)
    assert decided(width=4.0)
    assert not decided(width=4.5)
    assert decided(other=0.45)
    assert not decided(other=0.55)
    assert not decided(sign=-1.0)


@pytest.mark.parametrize("shape", [(1, 7, 3), (130, 480, 168), (9, 5000, 90)])
def test_products_in_pieces_are_those_at_once(shape):
    count, pixels, size = shape
    rng = np.random.default_rng(0)
    rows = rng.random((count, pixels), np.float32)
    matrix = rng.random((pixels, size), np.float32)
    np.testing.assert_allclose(_product(rows, matrix), rows.astype(float) @ matrix, rtol=1e-5)  # float32 sums
