"""The machinery behind `algorithm1.normalize`: fixed matrices, made once per grid, and the descent itself.

Names follow Algorithm 1: E are the nodes, H their pixels, k how often each node was lowered, v the number of
bins of a stage; r^k falls as k grows.

The plain loop compares every pixel with the continuum at every step. Four things make it fast, and none changes
the integers k:

- Between two nodes the continuum is a polynomial of degree 1 (2 and 3 for three and four bins). Pixels are laid
  out one row per half bin, from a bin's edge to its node or from the node to the next edge, so a pixel costs one
  multiply-add from one number that depends on the pixel and two that depend on the row, and nothing is gathered.
- While the same nodes move, C(j) = r^j α + β at every pixel, j steps from now. A pixel lies above the continuum
  once r^j falls below (z - β) / α, so how many do is a comparison with one number per pixel, and the step at
  which the set of moving nodes changes is found by bisection. Pixels that would go the wrong way (α <= 0 in bins
  that wait for more pixels, α >= 0 in those that have enough) count as they are now, in favour of a change:
  this keeps the count monotone and can only make the jump too short. It ends two steps short, and plain steps
  follow, so that what decides is always the plain comparison.
- A jump costs about as much as ten steps, so it is tried when the set has stayed the same for a few steps.
- Counts are sums of slices, 32 pixels wide: XLA for CPU turns a longer sum of comparisons into passes through
  memory, at five times the cost.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

FIRST = 11.0  # line 2: 10 + max(z), for spectra scaled to a maximum of 1
POLYNOMIAL_BELOW = 5  # line 10: fewer bins than this share one polynomial
LANES = 32  # the longest sum that XLA for CPU does not split
LONGEST_ROW = 512  # pixels; longer half bins are cut, to bound the number of slices
MARGIN = 2  # steps that a jump stays short of the change that it expects
FIRST_LOOK = 32  # steps ahead at which bisection starts; most jumps are shorter


class Stage(NamedTuple):
    """One bin count's fixed arrays. R = 2 v rows, the left and right half of each bin in turn.

    Attributes:
      pixels: int32[R, G, T], the pixel at each place; a row is cut into G pieces of T places, T a multiple of the
        number of lanes. N where a row has no pixel.
      u: float64[R, G, T], the coordinate of each pixel.
      lanes: places that are summed last.
      forms: float64[D + 1, R, v], nodes -> coefficients: in row i, C = Σ_d (forms[d, i] @ E) · u^d.
      carry: float64[v, v'], the continuum of the previous stage at this stage's nodes; None for the first stage.
    """

    pixels: np.ndarray
    u: np.ndarray
    lanes: int
    forms: np.ndarray
    carry: np.ndarray | None


class Descent(NamedTuple):
    """What the stages found, for a spectrum scaled to a maximum of 1.

    Attributes:
      nodes: float[bins[-1]].
      steps: int32[sum(bins)], the k of every stage, one stage after the other.
      stuck: bool[], some k reached the limit.
      short: bool[], some bin had fewer usable pixels than were asked for.
      sweeps: int32[], plain comparisons that were made.
    """

    nodes: jax.Array
    steps: jax.Array
    stuck: jax.Array
    short: jax.Array
    sweeps: jax.Array


def node_pixels(count: int, v: int) -> np.ndarray:
    """int[v], the centre pixel H of each of `v` bins over `count` pixels (line 4)."""
    return np.array([(2 * i + 1) * count // (2 * v) for i in range(v)])


@functools.lru_cache(maxsize=8)
def final_matrix(count: int, v: int, degree: int, sigma: float) -> np.ndarray:
    """float64[N, v], F: the last polynomial, straight at the edges, under a Gaussian of `sigma` pixels.

    Before it is smoothed the curve goes on beyond both ends along its own straight edges for 4 σ, where the
    Gaussian is cut; any other padding biases the edges by 1 to 26 %.
    """
    pixels = node_pixels(count, v)
    matrix = _straighten(_polynomial(count, pixels, degree), int(pixels[0]), int(pixels[-1]))
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


@functools.lru_cache(maxsize=8)
def stages(count: int, bins: tuple[int, ...]) -> tuple[Stage, ...]:
    """The fixed arrays of every stage on a grid of `count` pixels."""
    built = []
    previous = None
    for v in bins:
        pixels = node_pixels(count, v)
        edges = np.array([i * count // v for i in range(v + 1)])
        starts = np.stack([edges[:-1], pixels], 1).ravel()
        ends = np.stack([pixels, edges[1:]], 1).ravel()
        length = int((ends - starts).max())  # of the longest row
        pieces = -(-length // LONGEST_ROW)
        lanes = min(LANES, -(-length // 8) * 8)
        width = -(-length // (pieces * lanes)) * pieces * lanes
        x = starts[:, None] + np.arange(width)
        # Two nodes make a line, so what holds from five bins up holds for two as well.
        u, forms = _curved_rows(count, v, x) if 2 < v < POLYNOMIAL_BELOW else _linear_rows(count, v, x)
        inside = x < ends[:, None]
        shape = (2 * v, pieces, width // pieces)
        places = np.where(inside, x, count).astype(np.int32).reshape(shape)
        carry = None if previous is None else previous[pixels]
        built.append(Stage(places, np.where(inside, u, 0.0).reshape(shape), lanes, forms, carry))
        previous = _stage_matrix(count, v)
    return tuple(built)


def descend(
    z: jax.Array,
    *,
    exceed: int | Int[Array, ""],
    ratio: float,
    bins: tuple[int, ...],
    relift: float | Float[Array, ""],
    max_steps: int,
    patience: int,
) -> Descent:
    """Lines 2 to 19: lowers the nodes from far above the spectrum until enough pixels reach the continuum.

    Args:
      z: float[N], flux over its maximum; -inf at invalid pixels.
      exceed, ratio, bins, relift, max_steps: as in `algorithm1.ContinuumSettings`, none of them None.
      patience: steps with the same set of moving nodes before a jump is tried; 0 tries at every step, which is
        best where many spectra go in lock-step. No influence on the result.
    """
    # A table in place of a power makes E · r^k the same number as in the reference.
    powers = jnp.asarray(np.power(ratio, np.arange(max_steps + 1)), z.dtype)
    padded = jnp.concatenate([z, jnp.full(1, -jnp.inf, z.dtype)])
    nodes = jnp.full(bins[0], FIRST, z.dtype)
    steps, stuck, short, sweeps = [], jnp.zeros((), bool), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    for stage in stages(z.shape[0], bins):
        rows = padded.at[stage.pixels].get(mode="promise_in_bounds")
        need = jnp.minimum(exceed, _count(rows > 0, stage))
        short |= jnp.any(need < exceed)
        if stage.carry is not None:
            nodes = dot(stage.carry, nodes) * jnp.where(need > 0, jnp.asarray(relift, z.dtype), 1)
        # The first descent is thousands of steps long: no reason to wait.
        k, made = _settle(rows, need, nodes, powers, stage, patience if stage.carry is not None else 0)
        nodes = nodes * powers[k]
        stuck |= jnp.any(k >= max_steps)
        steps.append(k)
        sweeps += made
    return Descent(nodes, jnp.concatenate(steps), stuck, short, sweeps)


def _settle(
    rows: jax.Array, need: jax.Array, nodes: jax.Array, powers: jax.Array, stage: Stage, patience: int
) -> tuple[jax.Array, jax.Array]:
    """One stage: how often each node is lowered, int32[v], and how many plain comparisons that took.

    Args:
      rows: float[R, G, T], the pixels, -inf where there is none.
      need: int32[v], pixels of each bin that must reach the continuum.
      nodes: float[v], E at the start.
      powers: float[K + 1], r^k.
    """
    limit = powers.shape[0] - 1
    v = len(need)

    def moving(k: jax.Array) -> jax.Array:
        above = _count(rows >= _curve(stage, nodes * powers[k]), stage)
        return (above < need) & (k < limit)

    def jump(k: jax.Array, moves: jax.Array) -> jax.Array:
        lowered = nodes * powers[k]
        slope = _curve(stage, jnp.where(moves, lowered, 0))  # α
        rest = rows - _curve(stage, jnp.where(moves, 0, lowered))  # z - β
        # In bins that move, count pixels that have come above; in the others, those that have gone below.
        waits = jnp.broadcast_to(moves[:, None], (v, 2)).reshape(2 * v, 1, 1)
        right_way = jnp.where(waits, slope > 0, slope < 0)
        stays = jnp.where((rest >= slope) == waits, jnp.inf, -jnp.inf).astype(rows.dtype)
        turns = jnp.where(right_way, rest / slope, stays)  # the r^j at which the pixel changes sides
        pixels = 2 * rows.shape[1] * rows.shape[2]  # of a bin, with padding, which is always below
        enough = jnp.where(moves, need, pixels - need + 1)
        enough = jnp.where(~moves & (k >= limit), pixels + 1, enough)  # at the limit: nothing can change
        last = jnp.min(jnp.where(moves, limit - k, limit))  # there a node reaches the limit

        def bisect(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = jnp.minimum((low + high) // 2, jnp.maximum(FIRST_LOOK, 2 * low))
            changed = jnp.any(_count(powers[middle] <= turns, stage) >= enough)
            return jnp.where(changed, low, middle), jnp.where(changed, middle, high)

        bounds = lax.while_loop(lambda b: b[1] - b[0] > 1, bisect, (jnp.zeros_like(last), last))
        return jnp.maximum(bounds[1] - MARGIN, 0)

    def body(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        k, moves, same, made = state
        if patience == 0:
            ahead = jump(k, moves)
        else:
            ahead = lax.cond(same == patience, jump, lambda k, moves: jnp.zeros((), jnp.int32), k, moves)
        k = k + jnp.where(moves, ahead + 1, 0)
        now = moving(k)
        return k, now, jnp.where(jnp.any(now != moves), 0, same + 1), made + 1

    zero = jnp.zeros((), jnp.int32)
    start = (
        jnp.zeros(v, jnp.int32),
        jnp.zeros(v, bool),
        zero,
        zero,
    )  # nothing moves yet: the first round looks
    k, _, _, made = lax.while_loop(lambda s: jnp.any(s[1]) | (s[3] == 0), body, start)
    return k, made


def _curve(stage: Stage, nodes: jax.Array) -> jax.Array:
    """float[R, G, T], the continuum through nodes float[v]."""
    u = jnp.asarray(stage.u, nodes.dtype)
    degree, rows = stage.forms.shape[0] - 1, stage.forms.shape[1]
    coefficients = dot(stage.forms.reshape(-1, nodes.shape[0]), nodes).reshape(degree + 1, rows, 1, 1)
    curve = coefficients[degree]
    for d in reversed(range(degree)):
        curve = curve * u + coefficients[d]
    return curve


def _count(mask: jax.Array, stage: Stage) -> jax.Array:
    """int32[v], how many are True in each bin, of bool[R, G, T]."""
    ones = mask.astype(jnp.int32)
    parts = [
        lax.slice_in_dim(ones, first, first + stage.lanes, axis=2)
        for first in range(0, ones.shape[2], stage.lanes)
    ]
    while len(parts) > 1:
        parts = [sum(parts[i : i + 2]) for i in range(0, len(parts), 2)]
    per_piece = jnp.sum(parts[0], axis=2, dtype=jnp.int32)
    return jnp.sum(per_piece.reshape(stage.u.shape[0] // 2, -1), axis=1, dtype=jnp.int32)


def dot(matrix: np.ndarray, vector: jax.Array) -> jax.Array:
    """matrix @ vector in the type of the vector, in full precision on every device."""
    return jnp.dot(jnp.asarray(matrix, vector.dtype), vector, precision=lax.Precision.HIGHEST)


def _linear_rows(count: int, v: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u and forms for straight lines: u is the distance from the bin's node over that to the node beyond.

    The outer halves of the first and last bin continue the line of the bin's other half.
    """
    pixels = node_pixels(count, v)
    own = np.repeat(np.arange(v), 2)
    other = own + np.tile([-1, 1], v)
    other[0], other[-1] = 1, v - 2
    sign = np.ones(2 * v)
    sign[0] = sign[-1] = -1.0
    row = np.arange(2 * v)
    forms = np.zeros((2, 2 * v, v))
    forms[0, row, own] = 1.0
    forms[1, row, other] += sign
    forms[1, row, own] -= sign
    return np.abs(x - pixels[own][:, None]) / np.abs(pixels[other] - pixels[own])[:, None], forms


def _curved_rows(count: int, v: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u and forms for one polynomial of degree v - 1, straight beyond the outer nodes; u runs from -1 to 1."""
    pixels = node_pixels(count, v)
    half = (count - 1) / 2
    through_nodes = np.linalg.inv(np.vander(pixels / half - 1.0, increasing=True))
    forms = np.repeat(through_nodes[:, None, :], 2 * v, axis=1)
    matrix = _stage_matrix(count, v)
    first, last = pixels[0], pixels[-1]
    for row, node, slope in (
        (0, first, matrix[first + 1] - matrix[first]),
        (2 * v - 1, last, matrix[last] - matrix[last - 1]),
    ):
        forms[:, row] = 0.0
        forms[0, row] = matrix[node] + slope * (half - node)
        forms[1, row] = slope * half
    return x / half - 1.0, forms


def _stage_matrix(count: int, v: int) -> np.ndarray:
    """float64[N, v], B: a polynomial of degree v - 1 below 5 bins, else straight lines from node to node."""
    pixels = node_pixels(count, v)
    if v < POLYNOMIAL_BELOW:
        return _straighten(_polynomial(count, pixels, v - 1), int(pixels[0]), int(pixels[-1]))
    x = np.arange(count)
    left = np.clip(np.searchsorted(pixels, x, side="right") - 1, 0, v - 2)
    right_share = (x - pixels[left]) / (pixels[left + 1] - pixels[left])
    matrix = np.zeros((count, v))
    matrix[x, left] = 1.0 - right_share
    matrix[x, left + 1] = right_share
    return matrix


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
    matrix[:first] = matrix[first] + np.arange(-first, 0)[:, None] * (matrix[first + 1] - matrix[first])
    ahead = np.arange(1, len(matrix) - last)[:, None]
    matrix[last + 1 :] = matrix[last] + ahead * (matrix[last] - matrix[last - 1])
    return matrix
