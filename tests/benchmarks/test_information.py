"""The Cramér-Rao bound: what least squares of the same unknowns reach, and never less with more of them."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.bench_information import STEPS, bound, derivatives
from remap.sampling.sources import Library, find_cells
from remap.spectra import make_spectra

WAVE = 5000.0 + np.arange(160)
LABELS = (5500.0, 4.5, -0.5)


@pytest.fixture(scope="module")
def library():
    """Eight nodes, between which lines grow with the labels, at three line spreads."""
    rng = np.random.default_rng(0)
    nodes = np.array(list(itertools.product((5000.0, 6000.0), (4.0, 5.0), (-1.0, 0.0))))
    lines = rng.uniform(0.0, 0.1, (4, len(WAVE)))
    unit = (nodes - nodes.mean(axis=0)) / (nodes[-1] - nodes[0])
    log_flux = -(lines[0] + unit @ lines[1:])[None] * np.array([1.05, 1.0, 0.95])[:, None, None]
    cells = find_cells(nodes, ("teff", "logg", "feh"))
    valid, sigma = np.ones(len(WAVE), bool), np.ones(3, np.float32)
    found = Library(log_flux.astype(np.float32), valid, nodes.astype(np.float32), sigma, cells)
    return jax.tree.map(jnp.asarray, found)


def spectra(library, snr):
    flux = 7.0 * np.asarray(derivatives(library, WAVE, LABELS)[0])
    sigma = np.full(flux.shape, 7.0 / snr)
    return make_spectra(WAVE, flux, ivar=1.0 / sigma**2, medium="air"), sigma


def run(library, snr, degree):
    how = SimpleNamespace(wave=lambda arm: WAVE, medium="air")
    return bound(spectra(library, snr)[0], LABELS, {"A": library}, how, degree=degree)


def test_least_squares_scatter_by_the_bound(library):
    rows = derivatives(library, WAVE, LABELS)
    given, sigma = spectra(library, 50.0)
    shapes = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, len(WAVE)), 2).T
    unknown = np.concatenate([7.0 * rows[1:], shapes * given.flux[0]])
    scale = np.linalg.norm(unknown, axis=1, keepdims=True)
    noise = np.random.default_rng(1).normal(size=(2000, len(WAVE))) * sigma
    fits = np.linalg.lstsq((unknown / scale).T, noise.T, rcond=None)[0].T / scale[:, 0]
    np.testing.assert_allclose(run(library, 50.0, 2), fits[:, :3].std(axis=0), rtol=0.06)


def test_the_bound_falls_with_noise_and_grows_with_what_is_unknown(library):
    np.testing.assert_allclose(run(library, 100.0, 2), run(library, 50.0, 2) / 2, rtol=1e-6)
    assert np.all(run(library, 50.0, 6) >= run(library, 50.0, 1))


def test_labels_at_the_end_of_the_library_have_no_bound(library):
    how = SimpleNamespace(wave=lambda arm: WAVE, medium="air")
    outside = (6000.0 - STEPS["teff"] / 2, 4.5, -0.5)
    assert np.isnan(bound(spectra(library, 50.0)[0], outside, {"A": library}, how, degree=2)).all()
