"""Neighbours are those that sorting all distances gives, whatever the block and the shape."""

import numpy as np
import pytest

from remap.predict import neighbors
from remap.predict.neighbors import nearest, unit_mean


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def by_sorting(queries, references, k, *, forbidden=None):
    """index, distance [L + 1, T, k] by a plain loop in float64."""
    q, r = queries.astype(np.float64), references.astype(np.float64)
    square = np.sum((q[:, :, None] - r[:, None]) ** 2, axis=-1)
    square = np.concatenate([square, square.mean(axis=0, keepdims=True)])
    if forbidden is not None:
        square[:, forbidden] = np.inf
    order = np.argsort(square, axis=-1, kind="stable")[..., :k]
    return order, np.sqrt(np.take_along_axis(square, order, axis=-1))


@pytest.mark.parametrize("count", [5, 300])
@pytest.mark.parametrize("block", [512, 700])
def test_as_sorting_all_distances(count, block):
    rng = np.random.default_rng(0)
    queries, references = unit(rng, 2, count, 6), unit(rng, 2, 1500, 6)
    references[:, 700] = references[:, 3]  # the first of equal ones
    queries[:, 0] = references[:, 3]
    found = nearest(queries, [references[..., :2], references[..., 2:]], 4, block=block)
    index, distance = by_sorting(queries, references, 4)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-5, atol=1e-6)
    assert list(found.index[:, 0, 0]) == [3, 3, 3]
    assert list(found.index[:, 0, 1]) == [700, 700, 700]
    np.testing.assert_array_equal(found.distance[:, 0, :2], 0.0)


def test_nearly_equal_distances_are_ranked_from_the_differences():
    """1e-5 apart at a distance of a thousandth: |q|² + |r|² - 2 q·r knows d² to 1e-7 only."""
    rng = np.random.default_rng(1)
    queries = unit(rng, 1, 3, 8)
    step = unit(rng, 6, 8)
    near = queries[:, :1] + np.linspace(1e-3, 1.05e-3, 6)[None, :, None] * step[None]
    references = np.concatenate([unit(rng, 1, 900, 8), near[:, ::-1].astype(np.float32)], axis=1)
    found = nearest(queries, [references], 6)
    np.testing.assert_array_equal(found.index[:, 0], by_sorting(queries, references, 6)[0][:, 0])


def test_a_star_is_not_its_own_neighbour_and_what_cannot_be_used_is_not_found():
    rng = np.random.default_rng(2)
    references = unit(rng, 1, 40, 4)
    queries = references[:, :3]
    usable = np.arange(40) != 7
    groups = np.array([0, 1, -1]), np.r_[0, 1, 2, np.full(37, -1)]
    found = nearest(queries, [references], 39, groups=groups, usable=usable)
    forbidden = np.zeros((3, 40), bool)
    forbidden[:, 7] = forbidden[0, 0] = forbidden[1, 1] = True
    index, distance = by_sorting(queries, references, 39, forbidden=forbidden)
    np.testing.assert_array_equal(found.index, np.where(np.isfinite(distance), index, -1))
    assert list(found.index[0, :2, 38]) == [-1, -1]
    assert np.isnan(found.distance[0, :2, 38]).all()
    assert found.index[0, 2, 0] == 2  # of no group: it finds itself


def test_more_neighbours_than_references_are_empty_entries():
    rng = np.random.default_rng(3)
    found = nearest(unit(rng, 2, 2, 3), [unit(rng, 2, 3, 3)], 5)
    assert np.all(np.sort(found.index[..., :3], axis=-1) == np.arange(3))
    assert np.all(found.index[..., 3:] == -1)
    assert np.isnan(found.distance[..., 3:]).all()
    nobody = nearest(np.zeros((2, 0, 3), np.float32), [unit(rng, 2, 3, 3)], 1)
    assert nobody.index.shape == (3, 0, 1)


def test_memory_of_the_last_step_is_bounded(monkeypatch):
    rng = np.random.default_rng(4)
    queries, references = unit(rng, 1, 20, 5), unit(rng, 1, 60, 5)
    whole = nearest(queries, [references], 3)
    monkeypatch.setattr(neighbors, "NUMBERS", 100)
    parts = nearest(queries, [references], 3)
    np.testing.assert_array_equal(whole.index, parts.index)
    np.testing.assert_array_equal(whole.distance, parts.distance)


def test_shapes_that_do_not_agree_are_refused(unchecked):
    rng = np.random.default_rng(5)
    with pytest.raises(ValueError, match=r"references \[2, R, 4\], found k 1 and \[\[2, 6, 3\]\]"):
        nearest(unit(rng, 2, 3, 4), [unit(rng, 2, 6, 3)], 1)
    with pytest.raises(ValueError, match="expected k >= 1"):
        nearest(unit(rng, 2, 3, 4), [unit(rng, 2, 6, 4)], 0)


def test_distances_of_an_ensemble_are_the_mean_of_its_networks():
    rng = np.random.default_rng(6)
    a, b = unit(rng, 3, 2, 4, 5), unit(rng, 3, 2, 4, 5)
    single = np.sum((a - b) ** 2, axis=-1).mean(axis=0)
    np.testing.assert_allclose(np.sum((unit_mean(a) - unit_mean(b)) ** 2, axis=-1), single, rtol=1e-5)
