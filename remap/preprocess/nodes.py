"""Checks of a library's nodes before anything is trained on them: what is broken, double, or unlike its neighbours.

A label that stands beside the wrong spectrum, or a spectrum that its code did not finish, is not seen in the losses:
the network learns it. Nothing here changes or drops a node; the stage reports what is found, and a config says what
is to be left out.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import spatial

MAD_TO_SIGMA = 1.4826  # standard deviation of a Gaussian over its median absolute deviation
SIDE = 2  # nodes on either side that a node is interpolated from
AROUND = 2  # steps of the grid within which residuals are compared
SAME = 1e-5  # largest difference in log flux of spectra that are called the same; float32 keeps 1e-7
SAME_LABEL = 1e-6  # of the range of a label: nodes so close have the same value of it
FLOOR = 1e-6  # rms in log flux below which differences are rounding


class Finding(NamedTuple):
    """One thing that is odd about one node."""

    node: int
    kind: str  # "not_finite", "not_positive", "same_labels", "same_flux", "unlike_neighbours", "unchecked"
    value: float  # share of the pixels, index of the other node, or rms in log flux
    expected: float  # the same of the nodes around it; NaN where there is none
    z: float  # robust z of "unlike_neighbours", infinite for what is wrong in itself, NaN for "unchecked"
    detail: str


class Residuals(NamedTuple):
    """How far each node is from what its neighbours say of it, see `neighbour_residuals`."""

    rms: np.ndarray  # float64[S], log flux; NaN = no neighbours to interpolate from
    expected: np.ndarray  # float64[S], that of the nodes around it
    z: np.ndarray  # float64[S], robust


def broken_pixels(flux: np.ndarray, valid: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Nodes with pixels that are not finite or marked bad, or whose flux is not positive.

    Args:
      flux: float[S, N], as read.
      valid: bool[S, N].
      names: S names.
    """
    bad = ~valid | ~np.isfinite(flux)
    with np.errstate(invalid="ignore"):
        dark = ~bad & ~(flux > 0)
    found = []
    for kind, mask in (("not_finite", bad), ("not_positive", dark)):
        share = mask.mean(axis=1)
        for i in np.flatnonzero(share > 0):
            detail = f"{names[i]}: {np.count_nonzero(mask[i])} of {mask.shape[1]} pixels"
            found.append(Finding(int(i), kind, float(share[i]), 0.0, np.inf, detail))
    return found


def same_labels(labels: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Nodes whose labels another node before them has, too.

    Args:
      labels: float[S, L].
      names: S names.
    """
    first: dict[tuple[int, ...], int] = {}
    found = []
    for i, place in enumerate(map(tuple, _grid_places(labels))):
        j = first.setdefault(place, i)
        if j != i:
            found.append(
                Finding(i, "same_labels", float(j), np.nan, np.inf, f"{names[i]} has those of {names[j]}")
            )
    return found


def same_flux(log_flux: np.ndarray, names: Sequence[str]) -> list[Finding]:
    """Nodes whose spectrum, up to a factor, is that of another node: a file that was written twice.

    Args:
      log_flux: float[S, N], natural logarithms, finite.
      names: S names.
    """
    count, pixels = log_flux.shape
    # Equal spectra are equal in any projection; only spectra that are close in one are compared.
    direction = np.random.default_rng(0).standard_normal(pixels) / np.sqrt(pixels)
    centred = log_flux - log_flux.mean(axis=1, keepdims=True)
    projected = centred @ direction
    order = np.argsort(projected, kind="stable")
    reach = SAME * np.abs(direction).sum()
    found = []
    for a in range(count):
        i = int(order[a])
        for b in range(a + 1, count):
            j = int(order[b])
            if projected[j] - projected[i] > reach:
                break
            if np.abs(centred[i] - centred[j]).max() <= SAME:
                first, second = sorted((i, j))
                detail = f"{names[second]} has that of {names[first]}"
                found.append(Finding(second, "same_flux", float(first), np.nan, np.inf, detail))
                break
    return sorted(found)


def neighbour_residuals(log_flux: np.ndarray, labels: np.ndarray) -> Residuals:
    """Every node against what its neighbours in the grid of labels say of it.

    Along each label a node is interpolated by the polynomial through its nearest two nodes on either side (at an end
    of the grid, extrapolated from its nearest three) with equal other labels. What is left depends on how curved the
    grid is there, so it is divided by the median of the same along this label for the nodes up to two steps around,
    those of a kind alike (ends of the grid are extrapolated). A wrong node is wrong along every label, and its
    neighbours along one, so the least of these ratios counts; z is that of its logarithm against those of all
    nodes, by median and median absolute deviation.

    Args:
      log_flux: float[S, N], natural logarithms, finite; a factor on a spectrum is without effect.
      labels: float[S, L].

    Returns:
      NaN for nodes that have no two others on a line of the grid.
    """
    count, axes = labels.shape
    places = _grid_places(labels)
    centred = np.asarray(log_flux, np.float64)
    centred = centred - centred.mean(axis=1, keepdims=True)
    rms, excess = np.full((axes, count), np.nan), np.full((axes, count), np.nan)
    tree = spatial.cKDTree(places)
    around = [np.array(a) for a in tree.query_ball_point(places, AROUND, p=np.inf)]
    for axis in range(axes):
        rms[axis], kinds = _along(centred, labels, places, axis)
        excess[axis] = _excess(np.log(np.maximum(rms[axis], FLOOR)), kinds, around)
    checked = np.isfinite(excess).any(axis=0)
    out = Residuals(*(np.full(count, np.nan) for _ in range(3)))
    if not checked.any():
        return out
    least = np.argmin(np.where(np.isfinite(excess), excess, np.inf), axis=0)
    score = excess[least, np.arange(count)]
    out.rms[checked] = rms[least, np.arange(count)][checked]
    out.expected[checked] = out.rms[checked] / np.exp(score[checked])
    middle = np.median(score[checked])
    spread = MAD_TO_SIGMA * np.median(np.abs(score[checked] - middle))
    out.z[checked] = (score[checked] - middle) / max(spread, 1e-3)
    return out


def check_nodes(
    log_flux: np.ndarray, labels: np.ndarray, names: Sequence[str], *, worst: int, limit: float
) -> list[Finding]:
    """Double nodes, and the nodes that are least like their neighbours.

    Args:
      log_flux: float[S, N], natural logarithms on the grid that is trained on, finite.
      labels: float[S, L].
      names: S names.
      worst: so many of the nodes unlike their neighbours are told even where they are within `limit`.
      limit: robust z beyond which all are.

    Returns:
      Double nodes first, then by falling z.
    """
    found = same_labels(labels, names) + same_flux(log_flux, names)
    residuals = neighbour_residuals(log_flux, labels)
    unchecked = np.flatnonzero(~np.isfinite(residuals.z))
    order = np.argsort(-np.where(np.isfinite(residuals.z), residuals.z, -np.inf), kind="stable")
    for rank, i in enumerate(order[: len(order) - len(unchecked)]):
        if rank >= worst and residuals.z[i] <= limit:
            break
        rms, expected, z = (float(x[i]) for x in residuals)
        detail = f"{names[i]}: {rms:.2g} rms from what its neighbours say, those around it {expected:.2g}"
        found.append(Finding(int(i), "unlike_neighbours", rms, expected, z, detail))
    for i in unchecked:
        detail = f"{names[i]}: no nodes to interpolate it from"
        found.append(Finding(int(i), "unchecked", np.nan, np.nan, np.nan, detail))
    return found


def _grid_places(labels: np.ndarray) -> np.ndarray:
    """int[S, L]: the position of every label among the values that it has; equal to rounding is equal."""
    out = np.empty(labels.shape, int)
    for axis, column in enumerate(np.asarray(labels, np.float64).T):
        order = np.argsort(column, kind="stable")
        steps = np.diff(column[order])
        new = steps > SAME_LABEL * max(np.ptp(column), 1e-300)
        out[order, axis] = np.concatenate([[0], np.cumsum(new)])
    return out


def _along(
    centred: np.ndarray, labels: np.ndarray, places: np.ndarray, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """rms [S] of each node against its neighbours along one label, and what kind of stencil it has (int[S])."""
    rms, kinds = np.full(len(labels), np.nan), np.full(len(labels), -1)
    lines = collections.defaultdict(list)
    for i, place in enumerate(places):
        lines[tuple(np.delete(place, axis))].append(i)
    for line in lines.values():
        nodes = np.array(sorted(line, key=lambda i: places[i, axis]))
        nodes = nodes[np.concatenate([[True], np.diff(places[nodes, axis]) > 0])]  # one of each place
        for at, node in enumerate(nodes):
            left, right = nodes[max(at - SIDE, 0) : at], nodes[at + 1 : at + 1 + SIDE]
            if not len(left) or not len(right):
                left, right = nodes[max(at - SIDE - 1, 0) : at], nodes[at + 1 : at + 2 + SIDE]
            others = np.concatenate([left, right])
            if len(others) < 2:
                continue
            weights = _lagrange(labels[others, axis], labels[node, axis])
            rest = centred[node] - weights @ centred[others]
            rms[node] = np.sqrt(np.mean(rest**2))
            # Mirrored stencils are alike.
            kinds[node] = 10 * min(len(left), len(right)) + max(len(left), len(right))
    return rms, kinds


def _lagrange(x: np.ndarray, at: float) -> np.ndarray:
    """Weights of values at x[M] in the polynomial through them, at one place."""
    other = ~np.eye(len(x), dtype=bool)
    top = np.where(other, at - x[None, :], 1.0)
    bottom = np.where(other, x[:, None] - x[None, :], 1.0)
    return np.prod(top / bottom, axis=1)


def _excess(log_rms: np.ndarray, kinds: np.ndarray, around: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of rms over the median of the nodes around, after each kind of stencil has been put on one scale."""
    level = log_rms.copy()
    for kind in np.unique(kinds[kinds >= 0]):
        level[kinds == kind] -= np.median(level[kinds == kind])
    out = np.full(len(level), np.nan)
    for i in np.flatnonzero(kinds >= 0):
        near = around[i][(around[i] != i) & (kinds[around[i]] >= 0)]
        out[i] = level[i] - (np.median(level[near]) if len(near) else 0.0)
    return out
