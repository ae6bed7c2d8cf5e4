"""Several libraries as one: shares of the draws, cells that stay within a library, pixels that all have."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from remap.config import ConfigError
from remap.sampling import mixture
from remap.sampling.augment import AugmentSettings, library_draw, paper_set_size
from remap.sampling.correction import fit_correction, fit_corrections
from remap.sampling.sources import (
    Library,
    Stars,
    cell_origin,
    draw_library,
    find_cells,
    library_shares,
    locate,
    locate_each,
    matched_cells,
    node_cells,
    random_labels,
    split_cells,
    with_cells,
)

PIXELS = 6
KEY = jax.random.key(3)
SETTINGS = AugmentSettings("online", noise_low=0.0, noise_high=0.0)


def grid(*axes):
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1).astype(float)


def library(level, *axes, interpolate=True, valid=None):
    """One line spread; the flux is exp(level) everywhere, which tells the libraries apart."""
    labels = grid(*axes)
    cells = find_cells(labels, "ab") if interpolate else node_cells(len(labels))
    valid = np.ones(PIXELS, bool) if valid is None else np.array(valid, bool)
    log_flux = np.full((1, len(labels), PIXELS), level, np.float32)
    return Library(log_flux, valid, labels.astype(np.float32), np.array([0.2, 0.1], np.float32), cells)


def pair(**kwargs):
    """Two libraries of 6 and 2 cells that overlap for a in 2-3."""
    first, second = library(0.0, [0, 1, 2, 3], [0, 1, 2], **kwargs), library(1.0, [2, 3, 4], [0, 2], **kwargs)
    return mixture.mix([first, second], [0.7, 0.3])


def test_one_library_is_left_as_it_is():
    one = library(0.0, [0, 1], [0, 1])
    assert mixture.mix([one], [1.0]) is one
    np.testing.assert_array_equal(library_shares(one), [1.0])


def test_cells_stay_within_a_library_and_the_shares_are_the_weights():
    both = pair()
    assert both.cells.shape == (8, 4)
    origin = both.origin[both.cells]
    assert (origin == origin[:, :1]).all()
    np.testing.assert_allclose(library_shares(both), [0.7, 0.3], atol=1e-6)  # float32
    np.testing.assert_allclose(both.chance, [0.7 / 6] * 6 + [0.3 / 2] * 2, atol=1e-6)


def test_a_pixel_that_one_library_lacks_is_used_of_none():
    lacking = [False, True, True, True, True, True]
    both = mixture.mix(
        [library(1.0, [0, 1], [0, 1]), library(2.0, [0, 1], [0, 1], valid=lacking)], [0.5, 0.5]
    )
    np.testing.assert_array_equal(both.valid, lacking)
    assert (both.log_flux[..., 0] == 0).all()
    assert (both.log_flux[..., 1:] > 0).all()


@pytest.mark.parametrize("kind", ["online", "paper"])
def test_draws_come_from_each_library_by_its_weight(kind):
    interpolate = kind == "online"
    both = jax.tree.map(jnp.asarray, pair(interpolate=interpolate))
    settings = AugmentSettings(kind, noise_low=0.0, noise_high=0.0)
    draw = jax.jit(library_draw, static_argnames=("batch", "settings"))
    wave = jnp.arange(float(PIXELS))
    out = draw(KEY, jnp.asarray(5), both, wave, batch=4000, settings=settings)
    second = np.asarray(out.flux[:, 0]) > 2  # exp(1)
    assert abs(second.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    assert set(np.asarray(out.flux[:, 0]).round(3).astype(str)) == {"1.0", "2.718"}  # nothing between them
    labels = np.asarray(out.labels)
    assert labels[second, 0].min() >= 2
    assert labels[~second, 0].max() <= 3
    again = draw(KEY, jnp.asarray(5), both, wave, batch=4000, settings=settings)
    np.testing.assert_array_equal(out.labels, again.labels)
    other = draw(KEY, jnp.asarray(6), both, wave, batch=4000, settings=settings)
    assert not np.array_equal(out.labels, other.labels)


def test_the_fixed_set_of_the_paper_repeats_in_a_mixture():
    both = jax.tree.map(jnp.asarray, pair(interpolate=False))
    settings = AugmentSettings("paper", noise_low=0.01, noise_high=0.02)
    size = paper_set_size(both, settings)
    draws = [
        library_draw(KEY, jnp.asarray(step), both, jnp.arange(float(PIXELS)), batch=2000, settings=settings)
        for step in (0, 1)
    ]
    spectra = {tuple(row) for d in draws for row in np.asarray(d.flux).tolist()}
    assert len(spectra) <= size == 18 * 15


def test_the_prior_of_the_labels_is_that_of_the_draws():
    labels = np.asarray(random_labels(KEY, jax.tree.map(jnp.asarray, pair()), 500))
    assert labels.shape == (4000, 2)
    # Beyond a = 3 there is half of the second library alone.
    assert abs((labels[:, 0] > 3).mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 4000)


def test_held_out_cells_are_a_fraction_of_every_library():
    both = pair()
    order = np.random.default_rng(0).permutation(8)
    aside, rest = split_cells(cell_origin(both), order, 0.5)
    assert sorted([*aside, *rest]) == list(range(8))
    assert np.bincount(cell_origin(both)[aside]).tolist() == [3, 1]
    for index in (aside, rest):
        np.testing.assert_allclose(library_shares(with_cells(both, both.cells[index])), [0.7, 0.3], atol=1e-6)
    one = library(0.0, [0, 1, 2, 3], [0, 1, 2])
    aside, rest = split_cells(cell_origin(one), order[order < 6], 0.5)
    np.testing.assert_array_equal([*aside, *rest], order[order < 6])


def test_stars_are_matched_in_every_library_that_holds_them():
    both = pair()
    stars = np.array([[0.5, 0.5], [2.5, 0.5], [3.5, 0.5], [9.0, 0.5]])
    cell = locate_each(both, stars)
    assert cell.shape == (2, 4)
    assert (cell >= 0).tolist() == [[True, True, False, False], [False, True, True, False]]
    for k in range(2):
        assert (cell_origin(both)[cell[k][cell[k] >= 0]] == k).all()
        np.testing.assert_array_equal(locate(both, stars, origin=k)[0], cell[k])
    matched = matched_cells(both, cell)
    # Stars alike; the one that both hold is shared 7 to 3.
    np.testing.assert_allclose(sorted(matched.chance), sorted([1 / 3, 0.7 / 3, 0.3 / 3, 1 / 3]), atol=1e-6)


def test_every_library_is_corrected_by_its_own_ratio():
    both = mixture.mix([library(0.0, [0, 3], [0, 3]), library(0.5, [0, 3], [0, 3])], [0.5, 0.5])
    rng = np.random.default_rng(0)
    labels = rng.uniform(0.1, 2.9, (12, 2)).astype(np.float32)
    flux = np.full((12, PIXELS), np.exp(0.2), np.float32)
    stars = Stars(flux, np.ones(flux.shape, bool), labels, np.full(labels.shape, 0.1, np.float32))
    how = {"spread": 0, "ridge": 0.0, "clip": 1.0}
    found = fit_corrections(both, stars, lambda f, v: f, **how)
    corrected = both.log_flux[0] + found.nodes
    np.testing.assert_allclose(corrected, 0.2, atol=1e-4)  # float32, through exp and log
    assert found.residuals.shape == (24, PIXELS)
    one = library(0.0, [0, 3], [0, 3])
    alone = fit_corrections(one, stars, lambda f, v: f, **how)
    np.testing.assert_array_equal(alone.nodes, fit_correction(one, stars, lambda f, v: f, **how).nodes)


def config(**libraries):
    c = ml_collections.ConfigDict({"library": {"path": "a"}})
    c.libraries = ml_collections.ConfigDict(libraries)
    return c


def test_weights_are_shares_and_the_library_has_the_rest():
    shares = mixture.library_weights(config(cool={"weight": 0.25}, hot={"weight": 0.5}))
    assert shares == {"": 0.25, "cool": 0.25, "hot": 0.5}
    assert mixture.library_weights(ml_collections.ConfigDict({"library": {}})) == {"": 1.0}


@pytest.mark.parametrize(
    ("libraries", "message"),
    [
        ({"cool": {"weight": 1.0}}, r"expected weights above 0 .* found \{'cool': 1.0\}"),
        ({"cool": {"weight": 0.0}}, "expected weights above 0"),
        ({"cool": {"weight": 0.6}, "hot": {"weight": 0.5}}, "expected weights above 0"),
        ({"cool": {"weight": float("nan")}}, "expected weights above 0"),
        ({"cool": {"path": "b"}}, r"libraries\.cool: expected a section like `library` with a weight"),
        ({"a/b": {"weight": 0.5}}, "expected names of letters"),
        (
            {"cool": {"weight": 0.5, "interpolate": True}},
            r"libraries\.cool\.interpolate: expected no such field",
        ),
    ],
)
def test_libraries_that_cannot_be_mixed_are_refused(libraries, message):
    with pytest.raises(ConfigError, match=message):
        mixture.further_libraries(config(**libraries))


def test_interpolation_in_a_mixture_is_that_of_the_library_alone():
    first, second = library(0.0, [0, 1], [0, 1]), library(1.0, [2, 4], [0, 2])
    both = mixture.mix([first, second], [0.5, 0.5])
    place = np.array([[0.25, 0.75]], np.float32)
    mixed, alone = (
        draw_library(jax.tree.map(jnp.asarray, lib), jnp.zeros(1, int), jnp.array([cell]), jnp.asarray(place))
        for lib, cell in ((both, 1), (second, 0))
    )
    np.testing.assert_array_equal(mixed.labels, alone.labels)
    np.testing.assert_array_equal(mixed.flux, alone.flux)
