"""The library's correction: recovered where it is known, constant beyond, blind to what must not count."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.sampling.correction import add_residuals, apply_correction, fit_correction
from remap.sampling.sources import Library, Stars, draw_library, find_cells, locate

PIXELS = 12
AXES = ([4000.0, 5000.0, 6000.0, 7000.0], [2.0, 3.0, 4.0, 5.0])
LABELS = np.array(list(itertools.product(*AXES)))
SETTINGS = {"spread": 1, "ridge": 1e-3, "clip": 0.3}


def keep(flux, valid):
    return flux


def make_library(rng):
    shape = rng.normal(size=(2, PIXELS)) * 0.02
    log_flux = np.stack([(LABELS / [1000, 1] - [5.5, 3.5]) @ shape - 0.1 * s for s in range(3)])
    return Library(
        log_flux.astype(np.float32),
        np.ones(PIXELS, bool),
        LABELS.astype(np.float32),
        np.array([50.0, 0.1], np.float32),
        find_cells(LABELS, ("teff", "logg")),
    )


def observe(library, rng, truth, labels):
    """Stars at `labels`: the library's spectra of line spread 1 times exp(truth(labels))."""
    cell, place = locate(library, labels)
    drawn = draw_library(
        jax.tree.map(jnp.asarray, library), jnp.ones(len(labels), int), jnp.asarray(cell), jnp.asarray(place)
    )
    flux = np.asarray(drawn.flux) * np.exp(truth(labels))
    valid = np.ones(flux.shape, bool)
    return Stars(flux.astype(np.float32), valid, labels.astype(np.float32), np.ones_like(labels, np.float32))


@pytest.fixture
def setting():
    rng = np.random.default_rng(0)
    library = make_library(rng)
    constant, slope = rng.normal(size=(2, PIXELS)) * 0.05
    labels = np.stack([rng.uniform(4500, 6500, 60), rng.uniform(3.2, 4.8, 60)], axis=1)

    def truth(y):
        return constant + (y[:, :1] - 5500) / 1000 * slope

    return library, observe(library, rng, truth, labels), truth, labels


def test_stars_are_found_in_their_cells(setting):
    library, *_ = setting
    labels = np.array([[5200.0, 4.25], [4000.0, 2.0], [7000.0, 5.0], [7000.1, 4.0], [np.nan, 4.0]])
    cell, place = locate(library, labels)
    np.testing.assert_array_equal(cell[3:], -1)
    corner = LABELS[library.cells[cell[:3], 0]]
    np.testing.assert_allclose(corner + place[:3] * [1000, 1], labels[:3], atol=1e-3)


def test_a_linear_ratio_is_recovered_at_the_nodes_between_the_stars(setting):
    library, stars, truth, _ = setting
    found = fit_correction(library, stars, keep, **SETTINGS)
    between = (LABELS[:, 0] > 4500) & (LABELS[:, 0] < 6500)
    np.testing.assert_allclose(found.nodes[between], truth(LABELS[between]), atol=2e-4)
    assert np.abs(found.residuals).max() < 2e-4
    corrected = apply_correction(library, found)
    np.testing.assert_array_equal(corrected.log_flux, library.log_flux + found.nodes)


def test_the_correction_stays_constant_beyond_the_stars(setting):
    library, stars, truth, labels = setting
    found = fit_correction(library, stars, keep, **SETTINGS)
    limit = np.percentile(labels[:, 0], 98)
    hot = LABELS[:, 0] == 7000
    expected = truth(np.array([[limit, 4.0]]))[0]
    np.testing.assert_allclose(found.nodes[hot], np.broadcast_to(expected, (hot.sum(), PIXELS)), atol=5e-4)


def test_unlabelled_and_outside_stars_and_invalid_pixels_have_no_influence(setting):
    library, stars, _, _ = setting
    clean = fit_correction(library, stars, keep, **SETTINGS)
    flux, valid, labels = stars.flux.copy(), stars.valid.copy(), stars.labels.copy()
    valid[5, 3] = False
    flux[5, 3] = np.nan
    masked = stars._replace(flux=flux, valid=valid)
    one_less = fit_correction(library, masked, keep, **SETTINGS)
    assert one_less.residuals[5, 3] == 0
    np.testing.assert_allclose(one_less.nodes, clean.nodes, atol=1e-4)
    more = Stars(
        np.concatenate([flux, np.full((2, PIXELS), 7.0, np.float32)]),
        np.concatenate([valid, np.ones((2, PIXELS), bool)]),
        np.concatenate([labels, np.array([[np.nan, 4.0], [9000.0, 4.0]], np.float32)]),
        np.ones((62, 2), np.float32),
    )
    again = fit_correction(library, more, keep, **SETTINGS)
    np.testing.assert_array_equal(again.nodes, one_less.nodes)
    assert len(again.residuals) == 60


def test_ridge_shrinks_the_slopes_and_not_the_mean(setting):
    library, stars, truth, labels = setting
    found = fit_correction(library, stars, keep, **SETTINGS | {"ridge": 1e9})
    np.testing.assert_allclose(found.nodes[0], truth(labels).mean(axis=0), atol=1e-3)
    assert np.ptp(found.nodes, axis=0).max() < 1e-5


def test_residuals_are_what_the_stars_differ_by_and_are_clipped(setting):
    library, stars, *_ = setting
    flux = stars.flux.copy()
    flux[7, 4] *= 1.1
    flux[8, 2] *= 5.0
    found = fit_correction(library, stars._replace(flux=flux), keep, **SETTINGS)
    assert found.residuals[7, 4] == pytest.approx(np.log(1.1), abs=0.01)
    assert found.residuals[8, 2] == np.float32(0.3)


def test_too_few_stars_or_no_cells_are_errors(setting):
    library, stars, *_ = setting
    few = Stars(*(a[:5] for a in stars))
    with pytest.raises(ValueError, match=r"at least 6 stars .* found 5 of 5"):
        fit_correction(library, few, keep, **SETTINGS)
    nodes = library._replace(cells=np.arange(len(LABELS), dtype=np.int32)[:, None])
    with pytest.raises(ValueError, match=r"library\.interpolate"):
        fit_correction(nodes, stars, keep, **SETTINGS)


def test_added_residuals_are_a_stars_own_scaled_below_the_weight():
    flux = jnp.full((200, PIXELS), 2.0)
    draw = Stars(flux, jnp.ones_like(flux, bool), jnp.zeros((200, 2)), jnp.ones((200, 2)))
    residuals = np.random.default_rng(1).normal(size=(3, PIXELS)) * 0.1
    out = np.log(
        np.asarray(add_residuals(jax.random.key(0), draw, jnp.asarray(residuals), low=0.0, high=0.5).flux)
        / 2.0
    )
    factor = out @ residuals.T / np.sum(residuals**2, axis=1)  # [200, 3]
    error = np.abs(out[:, None] - factor[..., None] * residuals[None]).max(axis=2)
    best = error.argmin(axis=1)
    assert error.min(axis=1).max() < 1e-5
    assert set(best) == {0, 1, 2}
    chosen = factor[np.arange(200), best]
    assert chosen.min() >= 0
    assert chosen.max() <= 0.5
    assert chosen.max() > 0.45
