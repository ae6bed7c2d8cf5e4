"""Folds and splits by star, cells of a grid, interpolation, and the endless stream of epochs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from remap.sampling import sources
from remap.sampling.folds import assign_folds, split_stars
from remap.sampling.sources import (
    Library,
    Stars,
    draw_library,
    draw_survey,
    find_cells,
    interpolation_weights,
    paired_indices,
    stream_indices,
)

NAMES = ("teff", "logg", "feh")
STARS = [f"star{i:02d}" for i in range(23)]
SPECTRA = STARS + STARS[:9] + STARS[3:5]  # some stars have two or three spectra

jit_stream = jax.jit(stream_indices, static_argnums=(2, 3))
jit_draw = jax.jit(draw_library)


def grid(*axes):
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1).astype(float)


def by_star(ids, values):
    """The value of every star; fails if the spectra of a star disagree."""
    out = {}
    for star, value in zip(ids, values, strict=True):
        assert out.setdefault(star, value) == value, f"{star} has {out[star]} and {value}"
    return out


def test_folds_keep_stars_whole_are_balanced_and_depend_on_the_seed_alone():
    folds = assign_folds(SPECTRA, 5, seed=3)
    stars = by_star(SPECTRA, folds)
    assert np.sort(np.bincount(list(stars.values()))).tolist() == [4, 4, 5, 5, 5]
    np.testing.assert_array_equal(assign_folds(SPECTRA, 5, seed=3), folds)
    shuffled = np.random.default_rng(0).permutation(SPECTRA)
    assert by_star(shuffled, assign_folds(shuffled, 5, seed=3)) == stars
    assert by_star(STARS, assign_folds(STARS, 5, seed=3)) == stars  # repeats do not matter
    assert by_star(SPECTRA, assign_folds(SPECTRA, 5, seed=4)) != stars


@pytest.mark.parametrize("folds", [0, 1, 24])
def test_more_folds_than_stars_or_fewer_than_two_are_refused(folds):
    with pytest.raises(ValueError, match=f"expected between 2 and 23 folds .*, found {folds}"):
        assign_folds(SPECTRA, folds, seed=0)


def test_every_star_is_tested_once_over_the_folds_and_never_trained_on_there():
    tested = []
    for fold in range(5):
        split = split_stars(SPECTRA, folds=5, fold=fold, validation=0.25, seed=1)
        stars = by_star(SPECTRA, split)
        test = sorted(s for s, v in stars.items() if v == "test")
        np.testing.assert_array_equal(split == "test", assign_folds(SPECTRA, 5, 1) == fold)
        count = sum(v == "val" for v in stars.values())
        assert count == round(0.25 * (23 - len(test)))
        assert set(stars.values()) == {"train", "val", "test"}
        tested += test
    assert sorted(tested) == STARS


def test_split_depends_on_the_stars_and_not_on_the_order_of_spectra():
    settings = {"folds": 5, "fold": 2, "validation": 0.25, "seed": 1}
    stars = by_star(SPECTRA, split_stars(SPECTRA, **settings))
    shuffled = np.random.default_rng(0).permutation(SPECTRA)
    assert by_star(shuffled, split_stars(shuffled, **settings)) == stars
    assert by_star(SPECTRA, split_stars(SPECTRA, **settings | {"seed": 2})) != stars


def test_fold_minus_one_tests_no_star_and_no_validation_leaves_all_for_training():
    split = split_stars(SPECTRA, folds=5, fold=-1, validation=0.25, seed=1)
    assert set(split) == {"train", "val"}
    assert set(split_stars(SPECTRA, folds=5, fold=-1, validation=0.0, seed=1)) == {"train"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 5}, r"split.fold must be -1 \(none\) or 0 to 4, found 5"),
        ({"fold": -2}, "split.fold must be .* found -2"),
        ({"validation": 1.0}, r"split.validation must be in \[0, 1\), found 1.0"),
        ({"validation": -0.1}, "found -0.1"),
    ],
)
def test_impossible_splits_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        split_stars(SPECTRA, **{"folds": 5, "fold": 0, "validation": 0.1, "seed": 0} | change)


def test_cells_of_a_full_grid_have_their_corners_in_order_whatever_the_order_of_nodes():
    labels = np.random.default_rng(0).permutation(grid([5000, 5250, 5600], [3, 4], [-1, 0, 0.5, 0.75]))
    cells = find_cells(labels, NAMES)
    assert cells.shape == (2 * 1 * 3, 8)
    assert cells.dtype == np.int32
    lows = set()
    for cell in cells:
        corner = labels[cell].reshape(2, 2, 2, 3)
        low, high = corner[0, 0, 0], corner[1, 1, 1]
        assert (high > low).all()
        for index in np.ndindex(2, 2, 2):  # the last label runs fastest
            np.testing.assert_array_equal(corner[index], np.where(index, high, low))
        lows.add(tuple(low))
    assert lows == {(t, 3.0, m) for t in (5000.0, 5250.0) for m in (-1.0, 0.0, 0.5)}


def test_a_gap_removes_the_cells_around_it_only():
    labels = grid([1, 2, 3, 4], [1, 2, 3])
    gap = np.flatnonzero((labels == [2, 3]).all(axis=1))
    kept = np.delete(labels, gap, axis=0)
    cells = find_cells(kept, ("a", "b"))
    lows = {tuple(kept[c[0]]) for c in cells}
    assert lows == {(a, b) for a in (1.0, 2.0, 3.0) for b in (1.0, 2.0)} - {(1.0, 2.0), (2.0, 2.0)}


def test_duplicate_nodes_and_sets_without_a_cell_are_errors():
    labels = grid([1, 2], [1, 2])
    with pytest.raises(ValueError, match=r"library nodes 1 and 4 share the labels \{'a': 1.0, 'b': 2.0\}"):
        find_cells(np.concatenate([labels, labels[1:2]]), ("a", "b"))
    with pytest.raises(ValueError, match=r"no complete cell in \('a', 'b'\) \(3 nodes on axes of \[2, 2\]"):
        find_cells(labels[:3], ("a", "b"))


def test_interpolation_weights_are_the_products_of_the_sides():
    u = np.array([0.25, 0.5, 0.9])
    weights = np.asarray(jax.jit(interpolation_weights)(jnp.asarray(u, jnp.float32))).reshape(2, 2, 2)
    for index in np.ndindex(2, 2, 2):
        expected = np.prod(np.where(index, u, 1 - u))
        np.testing.assert_allclose(weights[index], expected, rtol=1e-6)  # float32 products of three


def make_library(cells=None):
    """A library whose log flux is linear in each label, with a slope per pixel; two line spreads."""
    labels = grid([5000, 5250, 5500], [3.0, 4.0], [-1.0, 0.0])
    scaled = (labels - [5000, 3, -1]) / [500, 1, 1]
    slopes = np.random.default_rng(0).normal(size=(2, 3, 5))
    log_flux = np.einsum("nl,slp->snp", scaled, slopes) + 0.3
    library = Library(
        jnp.asarray(log_flux, jnp.float32),
        jnp.array([True, True, False, True, True]),
        jnp.asarray(labels, jnp.float32),
        jnp.array([20.0, 0.1, 0.1]),
        jnp.asarray(find_cells(labels, NAMES) if cells is None else cells),
    )
    return library, labels, slopes


def test_interpolation_is_exact_for_labels_and_for_log_linear_flux():
    library, labels, slopes = make_library()
    rng = np.random.default_rng(1)
    spreads, cells, places = rng.integers(2, size=6), rng.integers(2, size=6), rng.uniform(size=(6, 3))
    places[0], places[1] = 0.0, 1.0  # corners
    draw = jit_draw(library, jnp.asarray(spreads), jnp.asarray(cells), jnp.asarray(places, jnp.float32))
    corners = np.asarray(library.cells)[cells]
    low, high = labels[corners[:, 0]], labels[corners[:, -1]]
    expected = low + places * (high - low)
    np.testing.assert_allclose(draw.labels, expected, rtol=1e-6, atol=1e-6)  # float32
    scaled = (expected - [5000, 3, -1]) / [500, 1, 1]
    flux = np.exp(np.einsum("bl,blp->bp", scaled, slopes[spreads]) + 0.3)
    np.testing.assert_allclose(draw.flux, flux, rtol=2e-6)  # exponential of a float32 sum
    np.testing.assert_array_equal(draw.valid, np.tile(np.asarray(library.valid), (6, 1)))
    np.testing.assert_array_equal(draw.errors, np.tile(np.asarray(library.sigma), (6, 1)))


def test_without_interpolation_the_nodes_come_as_they_are():
    nodes = np.arange(12, dtype=np.int32)[:, None]
    library, _, _ = make_library(nodes)
    spreads, cells = jnp.array([0, 1, 1]), jnp.array([11, 0, 4])
    draw = jit_draw(library, spreads, cells, jnp.full((3, 3), 0.7))
    np.testing.assert_array_equal(draw.labels, np.asarray(library.labels)[cells])
    expected = np.exp(np.asarray(library.log_flux)[spreads, cells])
    np.testing.assert_allclose(draw.flux, expected, rtol=1e-6)  # two implementations of exp


def test_draw_survey_takes_whole_stars():
    rng = np.random.default_rng(0)
    survey = Stars(*(jnp.asarray(rng.normal(size=(4, n)), jnp.float32) for n in (6, 6, 3, 3)))
    draw = draw_survey(survey, jnp.array([2, 0, 2]))
    for found, whole in zip(draw, survey, strict=True):
        np.testing.assert_array_equal(found, np.asarray(whole)[[2, 0, 2]])


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (5, 5), (3, 8), (1, 3)])
def test_every_epoch_of_the_stream_is_a_permutation(count, batch):
    key, epochs = jax.random.key(0), 4
    steps = -(-count * epochs // batch)
    stream = np.concatenate([jit_stream(key, jnp.asarray(i), count, batch) for i in range(steps)])
    orders = stream[: count * epochs].reshape(epochs, count)
    for order in orders:
        assert sorted(order.tolist()) == list(range(count))
    if count > 6:
        assert len({tuple(o) for o in orders.tolist()}) == epochs  # a fresh order each time


def test_all_orders_of_an_epoch_are_equally_likely():
    """Against chance: the 24 orders of four items, and the places of 50 items."""
    orders = jax.jit(
        lambda keys, count: jax.vmap(lambda key: stream_indices(key, jnp.int32(0), count, count))(keys),
        static_argnums=1,
    )
    four, counts = np.unique(
        orders(jax.random.split(jax.random.key(1), 24000), 4), axis=0, return_counts=True
    )
    assert len(four) == 24
    assert stats.chisquare(counts).pvalue > 1e-3
    many = np.asarray(orders(jax.random.split(jax.random.key(5), 20000), 50))
    places = np.stack([np.bincount(column, minlength=50) for column in many.T])
    assert stats.chi2.sf(((places - 400) ** 2 / 400).sum(), 49**2) > 1e-3
    follows = np.bincount((many[:, 1] - many[:, 0]) % 50, minlength=50)[
        1:
    ]  # neighbours do not stay neighbours
    assert stats.chisquare(follows).pvalue > 1e-3


def test_a_batch_costs_the_same_from_a_million_spectra_and_the_count_may_be_traced():
    """No array of the size of the set is made, and one program serves every size."""
    program = jax.make_jaxpr(lambda count: stream_indices(jax.random.key(0), jnp.int32(7), count, 16))(3)
    sizes = [np.prod(v.aval.shape, dtype=int) for eqn in program.jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) <= 16 * sources.ROUNDS * 4
    traced = jax.jit(lambda step, count: stream_indices(jax.random.key(0), step, count, 16))
    for count in (5, 2444, 1_000_000):
        expected = jit_stream(jax.random.key(0), jnp.asarray(7), count, 16)
        np.testing.assert_array_equal(traced(jnp.asarray(7), jnp.asarray(count)), expected)
    assert traced._cache_size() == 1


def test_a_batch_of_the_stream_depends_on_key_and_step_alone():
    key = jax.random.key(0)
    first = [np.asarray(jit_stream(key, jnp.asarray(i), 10, 4)) for i in (0, 1, 2, 1000)]
    again = [np.asarray(jit_stream(key, jnp.asarray(i), 10, 4)) for i in (1000, 2, 1, 0)]
    assert [a.tolist() for a in first] == [a.tolist() for a in reversed(again)]
    other = np.asarray(jit_stream(jax.random.key(1), jnp.asarray(1000), 10, 4))
    assert other.tolist() != first[3].tolist()


def test_pairs_share_a_class_and_anchors_pass_through_all_stars():
    classes = jnp.array([[0, 0, 1, 1, 2, 2, 3, -1], [5, 6, 7, 8, 5, 6, -1, 7]])
    seen = []
    draw = jax.jit(functools.partial(paired_indices, classes=classes, batch=6))
    for step in range(40):
        index = np.asarray(draw(jax.random.key(3), jnp.int32(step)))
        anchors, partners = index[:3], index[3:]
        seen += anchors.tolist()
        for a, b in zip(anchors, partners, strict=True):
            assert a != b
            mates = {
                j
                for row in np.asarray(classes)
                for j in range(8)
                if j != a and row[j] == row[a] and row[a] >= 0
            }
            # A label in which the star is alone (or unknown) gives any partner.
            alone = any(row[a] < 0 or np.sum(row == row[a]) == 1 for row in np.asarray(classes))
            assert b in mates or alone
    # 15 epochs of 8 anchors each: every star equally often.
    assert np.bincount(seen, minlength=8).tolist() == [15] * 8


def test_pairs_need_two_stars():
    with pytest.raises(ValueError, match="at least two stars, found 1"):
        paired_indices(jax.random.key(0), jnp.int32(0), jnp.zeros((1, 1), int), 4)
