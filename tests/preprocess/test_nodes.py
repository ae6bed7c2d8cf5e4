"""Library nodes that are broken, double, or unlike their neighbours are found and told first."""

import numpy as np
import pytest

from remap.preprocess.nodes import (
    broken_pixels,
    check_nodes,
    neighbour_residuals,
    same_flux,
    same_labels,
)

PIXELS = 60


def make_nodes(axes=((4000, 4250, 4500, 4750, 5000), (1, 2, 3, 4), (-1, -0.5, 0, 0.5))):
    """Spectra that are smooth, and curved, in three labels; the first label changes them most."""
    labels = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1).astype(float)
    teff, logg, feh = ((labels - [4500, 2.5, 0]) / [500, 1.5, 1]).T[:, :, None]
    x = np.linspace(0, 6, PIXELS)[None]
    depth = 0.3 - 0.2 * teff + 0.05 * logg * np.sin(3 * x) + 0.1 * feh * np.cos(2 * x) + 0.04 * teff * feh
    log_flux = -np.exp(depth) * np.exp(-0.5 * np.sin(5 * x) ** 2 / 0.1)
    return log_flux, labels, [f"node {i}" for i in range(len(labels))]


def first(log_flux, labels, names, count=1):
    found = check_nodes(log_flux, labels, names, worst=3, limit=5.0)
    return {f.node for f in found[:count]}, found


def test_a_sound_library_has_nothing_beyond_the_limit():
    _, found = first(*make_nodes())
    assert [f.kind for f in found] == ["unlike_neighbours"] * 3
    assert all(f.z < 5 for f in found)


@pytest.mark.parametrize("node", [0, 37, 42, 79])  # corners and the inside
def test_a_shifted_spectrum_ranks_first(node):
    log_flux, labels, names = make_nodes()
    log_flux[node] = np.roll(log_flux[node], 1)
    worst, found = first(log_flux, labels, names)
    assert worst == {node}
    assert found[0].kind == "unlike_neighbours"
    assert found[0].z > 5
    assert found[0].value > 2 * found[0].expected
    assert names[node] in found[0].detail


@pytest.mark.parametrize("pair", [(21, 37), (0, 79), (40, 41)])
def test_two_swapped_labels_rank_first(pair):
    log_flux, labels, names = make_nodes()
    labels[list(pair)] = labels[list(pair)[::-1]]
    worst, found = first(log_flux, labels, names, count=2)
    assert worst == set(pair)
    assert min(f.z for f in found[:2]) > 5


def test_a_factor_on_a_spectrum_is_without_effect():
    log_flux, labels, _ = make_nodes()
    before = neighbour_residuals(log_flux, labels)
    log_flux[7] += 3.0
    np.testing.assert_allclose(neighbour_residuals(log_flux, labels).z, before.z, atol=1e-6)


def test_holes_and_lines_of_one_node_leave_nodes_unchecked_and_say_so():
    log_flux, labels, names = make_nodes()
    alone = np.array([[9000.0, 9.0, 9.0]])
    _, found = first(
        np.concatenate([log_flux[5:], log_flux[:1]]),
        np.concatenate([labels[5:], alone]),
        [*names[5:], "alone"],
    )
    assert [(f.node, f.kind) for f in found if f.kind == "unchecked"] == [(75, "unchecked")]
    assert np.isnan(neighbour_residuals(log_flux[:2], labels[:2]).z).all()


def test_equal_labels_and_equal_spectra_are_told_with_their_twin():
    log_flux, labels, names = make_nodes()
    labels[9] = labels[4]
    log_flux[50] = log_flux[12] + 0.7  # another flux unit
    assert [(f.node, f.value, f.detail) for f in same_labels(labels, names)] == [
        (9, 4.0, "node 9 has those of node 4")
    ]
    assert [(f.node, f.value) for f in same_flux(log_flux, names)] == [(50, 12.0)]
    kinds = [f.kind for f in check_nodes(log_flux, labels, names, worst=0, limit=50.0)]
    assert kinds[:2] == ["same_labels", "same_flux"]


def test_close_spectra_are_not_the_same():
    log_flux, _, names = make_nodes()
    log_flux[50] = log_flux[12]
    log_flux[50, 3] += 1e-4
    assert same_flux(log_flux, names) == []


def test_broken_pixels_are_counted_by_kind():
    flux = np.ones((4, 10))
    valid = np.ones(flux.shape, bool)
    flux[1, 2:4] = np.nan
    valid[1, 2:4] = False
    flux[2, 5] = 0.0
    flux[3, 6] = -1.0
    found = broken_pixels(flux, valid, ["a", "b", "c", "d"])
    assert [(f.node, f.kind, f.value) for f in found] == [
        (1, "not_finite", 0.2),
        (2, "not_positive", 0.1),
        (3, "not_positive", 0.1),
    ]
    assert found[0].detail == "b: 2 of 10 pixels"
