"""The machinery behind `continuum.normalize`: fixed matrices, made once per grid, and the descent itself.

Names follow Algorithm 1: E are the nodes, H their pixels, B the matrix from nodes to continuum, k the
number of times each node was lowered, v the number of bins of a stage.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FIRST = 11.0  # line 2: 10 + max(z), for spectra scaled to a maximum of 1
POLYNOMIAL_BELOW = 5  # line 10: fewer bins than this share one polynomial


class Stage(NamedTuple):
    """One bin count's fixed arrays; the pixels of a spectrum are laid out one row per bin.

    Attributes:
      starts: the first pixel of each bin, v ints.
      length: L, pixels in the longest bin; shorter rows are padded at the end.
      inside: bool[v, L], False at the padding.
      weights: float64[P, v, L], the continuum at a pixel is the sum over P of weights · nodes[sources].
      sources: int[P, v], the nodes that matter in each bin: all of them, or (v >= 5) the neighbours.
      carry: float64[v, v'], the previous stage's continuum at this stage's nodes; None for the first.
    """

    starts: tuple[int, ...]
    length: int
    inside: np.ndarray
    weights: np.ndarray
    sources: np.ndarray
    carry: np.ndarray | None


class Descent(NamedTuple):
    """What the ten stages found, for a spectrum scaled to a maximum of 1.

    Attributes:
      nodes: float[bins[-1]].
      steps: int32[sum(bins)], the k of every stage, one stage after the other.
      stuck: bool[], some k reached the limit.
      short: bool[], some bin had fewer usable pixels than were asked for.
    """

    nodes: jax.Array
    steps: jax.Array
    stuck: jax.Array
    short: jax.Array


def node_pixels(count: int, v: int) -> np.ndarray:
    """int[v], the centre pixel H of each of `v` bins over `count` pixels (line 4)."""
    return np.array([(2 * i + 1) * count // (2 * v) for i in range(v)])


def _polynomial(count: int, pixels: np.ndarray, degree: int) -> np.ndarray:
    """float64[N, v], the matrix from node values to their least-squares polynomial at every pixel."""

    def basis(x: np.ndarray) -> np.ndarray:
        return np.polynomial.chebyshev.chebvander(2.0 * x / (count - 1) - 1.0, degree)

    return basis(np.arange(count)) @ np.linalg.pinv(basis(pixels))


def _straighten(matrix: np.ndarray, first: int, last: int) -> np.ndarray:
    """The curves (columns) with straight lines before pixel `first` and after `last` (lines 12 and 21).

    The slope is that between the node's pixel and its inner neighbour, on the right mirrored from the left.
    """
    matrix = matrix.copy()
    count = len(matrix)
    matrix[:first] = matrix[first] + np.arange(-first, 0)[:, None] * (matrix[first + 1] - matrix[first])
    ahead = np.arange(1, count - last)[:, None]
    matrix[last + 1 :] = matrix[last] + ahead * (matrix[last] - matrix[last - 1])
    return matrix


def stage_matrix(count: int, v: int) -> np.ndarray:
    """float64[N, v], B: a polynomial of degree v - 1 below 5 bins, else straight lines from node to node."""
    pixels = node_pixels(count, v)
    if v < POLYNOMIAL_BELOW:
        return _straighten(_polynomial(count, pixels, v - 1), pixels[0], pixels[-1])
    x = np.arange(count)
    left = np.clip(np.searchsorted(pixels, x, side="right") - 1, 0, v - 2)
    right_share = (x - pixels[left]) / (pixels[left + 1] - pixels[left])
    matrix = np.zeros((count, v))
    matrix[x, left] = 1.0 - right_share
    matrix[x, left + 1] = right_share
    return matrix


@functools.lru_cache(maxsize=8)
def stages(count: int, bins: tuple[int, ...]) -> tuple[Stage, ...]:
    """The fixed arrays of every stage on a grid of `count` pixels."""
    built = []
    previous = None
    for v in bins:
        matrix = stage_matrix(count, v)
        starts = [i * count // v for i in range(v)]
        length = -(-count // v)
        pixel = np.array(starts)[:, None] + np.arange(length)
        inside = pixel < np.array([*starts[1:], count])[:, None]
        near = np.arange(v)[None, :] + (
            np.arange(v)[:, None] if v < POLYNOMIAL_BELOW else np.array([[-1], [0], [1]])
        )
        if v < POLYNOMIAL_BELOW:
            sources = np.broadcast_to(np.arange(v)[:, None], (v, v))
            exists = np.ones((v, v), bool)
        else:
            exists = (near >= 0) & (near < v)
            sources = np.clip(near, 0, v - 1)
        weights = matrix[np.minimum(pixel, count - 1)[None], sources[:, :, None]]
        weights = np.where(exists[:, :, None] & inside[None], weights, 0.0)
        carry = None if previous is None else previous[node_pixels(count, v)]
        built.append(Stage(tuple(starts), length, inside, weights, np.array(sources), carry))
        previous = matrix
    return tuple(built)


@functools.lru_cache(maxsize=8)
def final_matrix(count: int, v: int, degree: int, sigma: float) -> np.ndarray:
    """float64[N, v], F: the last polynomial, straight at the edges, under a Gaussian of `sigma` pixels.

    Before it is smoothed the curve goes on beyond both ends along its own straight edges for 4 σ, where the
    Gaussian is cut; any other padding biases the edges by 1 to 26 %.
    """
    pixels = node_pixels(count, v)
    first, last = pixels[0], pixels[-1]
    matrix = _straighten(_polynomial(count, pixels, degree), first, last)
    reach = int(np.ceil(4.0 * sigma))
    if reach == 0:
        return matrix
    ahead = np.arange(1, reach + 1)[:, None]
    left = matrix[0] + ahead[::-1] * (matrix[0] - matrix[1])
    right = matrix[-1] + ahead * (matrix[-1] - matrix[-2])
    gauss = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    gauss /= gauss.sum()
    padded = np.concatenate([left, matrix, right])
    return np.stack([np.convolve(column, gauss, mode="valid") for column in padded.T], 1)


def descend(
    z: jax.Array,
    *,
    exceed: int,
    ratio: float,
    bins: tuple[int, ...],
    relift: float,
    max_steps: int,
) -> Descent:
    """Lines 2 to 19: lowers the nodes from far above the spectrum until enough pixels reach the continuum.

    Args:
      z: float[N], flux over its maximum; -inf at invalid pixels.
      exceed, ratio, bins, relift, max_steps: as in `continuum.ContinuumSettings`, none of them None.
    """
    # A table in place of a power makes E · r^k the same number as in the reference.
    powers = jnp.asarray(np.power(ratio, np.arange(max_steps + 1)), z.dtype)
    nodes = jnp.full(bins[0], FIRST, z.dtype)
    padded = jnp.concatenate([z, jnp.full(1, -jnp.inf, z.dtype)])  # a row's padding is one pixel at most
    steps, stuck, short = [], jnp.zeros((), bool), jnp.zeros((), bool)
    for stage in stages(z.shape[0], bins):
        rows = jnp.stack([lax.slice(padded, (start,), (start + stage.length,)) for start in stage.starts])
        rows = jnp.where(stage.inside, rows, -jnp.inf)
        need = jnp.minimum(exceed, jnp.sum(rows > 0, axis=1, dtype=jnp.int32))
        short |= jnp.any(need < exceed)
        if stage.carry is not None:
            carried = jnp.sum(jnp.asarray(stage.carry, z.dtype) * nodes[None, :], axis=1)
            nodes = carried * jnp.where(need > 0, jnp.asarray(relift, z.dtype), 1)
        k = _settle(rows, need, nodes, powers, stage, max_steps)
        nodes = nodes * powers[k]
        stuck |= jnp.any(k >= max_steps)
        steps.append(k)
    return Descent(nodes, jnp.concatenate(steps), stuck, short)


def _settle(rows, need, nodes, powers, stage, max_steps):
    weights = jnp.asarray(stage.weights, rows.dtype)

    def lower(k):
        values = (nodes * powers[k])[stage.sources]
        continuum = sum(weights[p] * values[p][:, None] for p in range(len(stage.sources)))
        above = jnp.sum(rows >= continuum, axis=1, dtype=jnp.int32)
        return (above < need) & (k < max_steps)

    def body(state):
        k, moving = state
        k = k + moving.astype(jnp.int32)
        return k, lower(k)

    k = jnp.zeros(len(stage.starts), jnp.int32)
    return lax.while_loop(lambda state: jnp.any(state[1]), body, (k, lower(k)))[0]
