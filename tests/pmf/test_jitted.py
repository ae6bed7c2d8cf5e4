"""Combination and calibration in JAX against those in NumPy, which the catalogue is made by."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.pmf import jitted
from remap.pmf.calibration import Calibration, Widening, rescale
from remap.pmf.distributions import COMBINATIONS, combine_arms, temper

STARS, BINS = 40, 50
EDGES = {"teff": np.linspace(4000.0, 8000.0, BINS + 1), "logg": np.linspace(1.0, 5.5, BINS + 1) ** 1.1}


def pmfs(seed: int, *, bins: int = BINS) -> np.ndarray:
    """Narrow, wide and double ones, some of them at an end, the last one missing."""
    rng = np.random.default_rng(seed)
    at = np.arange(bins)[None]
    centre, width = rng.uniform(-2, bins + 2, (STARS, 2, 1)), rng.uniform(0.3, 8, (STARS, 2, 1))
    logs = -0.5 * ((at[:, None] - centre) / width) ** 2
    both = np.exp(logs - logs.max(axis=2, keepdims=True)).sum(axis=1)
    out = (both / both.sum(axis=1, keepdims=True)).astype(np.float32)
    out[-1] = np.nan
    return out


@pytest.mark.parametrize("method", COMBINATIONS)
def test_combinations_are_those_of_numpy(method):
    arms = np.stack([pmfs(1), pmfs(2), pmfs(3)])
    present = np.random.default_rng(4).random((3, STARS)) < 0.6
    prior = np.linspace(1, 3, BINS) / np.linspace(1, 3, BINS).sum()
    found = jitted.combine(jnp.asarray(arms), jnp.asarray(present), method=method, prior=prior)
    np.testing.assert_allclose(
        found, combine_arms(arms, present, method=method, prior=prior), atol=2e-6, equal_nan=True
    )
    assert len({tuple(row) for row in present.T}) > 6  # with no arm, one, two and all of them


def test_impossible_combinations_are_refused():
    arms, present = jnp.ones((1, 2, 3)) / 3, jnp.ones((1, 2), bool)
    with pytest.raises(ValueError, match="found 'product'"):
        jitted.combine(arms, present, method="product")
    with pytest.raises(ValueError, match="needs the prior"):
        jitted.combine(arms, present, method="prior_corrected")


@pytest.mark.parametrize("label", EDGES)
def test_rescale_and_temper_are_those_of_numpy(label):
    pmf, power = pmfs(5), np.geomspace(0.05, 20, STARS).astype(np.float32)
    found = jax.jit(lambda p, w: jitted.rescale(p, EDGES[label], w))(pmf, power)
    np.testing.assert_allclose(found, rescale(pmf, EDGES[label], power), atol=1e-5)
    found = jitted.temper(jnp.asarray(pmf), jnp.asarray(power))
    np.testing.assert_allclose(found, temper(pmf, power), atol=1e-5)


def test_a_calibration_is_that_of_numpy():
    """Sets of arms with and without a fit, kinds of stars, noise beyond the limits and not known."""
    joint = {"teff": pmfs(6), "logg": pmfs(7)}
    scaled = Widening(0.4, 0.0, 9.0, 50, snr_slope=0.8, snr_low=20.0, snr_high=200.0, scaled=True)
    mixed = Widening(0.6, 0.1, 9.0, 50, snr_slope=-0.3, snr_low=10.0, snr_high=100.0)
    tails = dataclasses.replace(scaled, outliers=0.2)
    unfitted = dataclasses.replace(scaled, fitted=False, power=0.3)
    calibration = Calibration(
        {"teff": {"A+B": scaled, "A": mixed}, "logg": {"A+B": mixed, "A": tails, "B": unfitted}},
        {"dwarfs": {"logg": (3.5, 5.5)}, "giants": {"logg": (1.0, 3.5)}},
        {"teff": {"A+B": {"dwarfs": dataclasses.replace(scaled, power=1.5), "giants": unfitted}}},
    )
    rng = np.random.default_rng(8)
    used = rng.random((2, STARS)) < 0.7
    snr = np.geomspace(3, 500, STARS).astype(np.float32)
    snr[::7] = np.nan
    found = jax.jit(lambda joint, used, snr: jitted.calibrate(calibration, joint, EDGES, used, snr))(
        joint, dict(zip("AB", used, strict=True)), snr
    )
    known = calibration.apply(joint, EDGES, used, ("A", "B"), snr)
    covered = [calibration.covers(label, joint, EDGES, used, ("A", "B")) for label in joint]
    for label, pmf in known.items():
        np.testing.assert_allclose(found.pmf[label], pmf, atol=1e-5)
    np.testing.assert_array_equal(found.covered, np.all(covered, axis=0))
    assert 3 < np.count_nonzero(found.covered) < STARS - 3
