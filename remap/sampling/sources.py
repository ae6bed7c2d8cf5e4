"""Stars and library nodes as device arrays, and batches as pure functions of (key, step).

Two kinds of source give spectra before normalisation: a library (nodes, optionally interpolated between) and
a survey (stars). Both end in `augment.vary` and `augment.finish`, which vary them, normalise and make the targets,
so that library and survey pass through the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap import sharding
from remap.config import ConfigError

ROUNDS = 8  # of the Feistel network: positions of small sets are uniform to what 100,000 draws can show
MIN_HALF = 3  # bits: with fewer the network reaches only some of the permutations


class Library(NamedTuple):
    """One arm of a synthetic library on the survey's grid.

    Flux is kept as a logarithm: interpolating it weighs hot and cool neighbours alike and stays positive.
    """

    log_flux: Float[Array, "spreads nodes pixels"]  # natural logarithm, one entry per line spread
    valid: Bool[Array, " pixels"]
    labels: Float[Array, "nodes labels"]
    sigma: Float[Array, " labels"]  # standard deviation given to each label (paper §5 iii)
    cells: Int[Array, "cells corners"]  # nodes at the corners of each cell; one corner = no interpolation
    chance: Float[Array, " cells"] | None = None  # of a draw to come from each cell; None = all alike
    origin: Int[Array, " nodes"] | None = None  # which library each node is of, see `mixture.mix`; None = one


class Stars(NamedTuple):
    """One arm of spectra on the survey's grid before normalisation, with labels: a survey, or a draw from either."""

    flux: Float[Array, "stars pixels"]
    valid: Bool[Array, "stars pixels"]
    labels: Float[Array, "stars labels"]  # NaN = unknown
    errors: Float[Array, "stars labels"]  # standard deviations


def find_cells(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """int[C, 2^L]: the nodes at the corners of every complete cell of a regular (gaps allowed) grid.

    Corners are ordered with the last label fastest, low before high, as `interpolation_weights` expects.

    Raises:
      ValueError: two nodes with equal labels, or no complete cell (the library is no grid in these labels).
    """
    axes, positions = zip(*(np.unique(column, return_inverse=True) for column in labels.T), strict=True)
    node = {}
    for i, position in enumerate(zip(*positions, strict=True)):
        if position in node:
            raise ConfigError(
                f"library nodes {node[position]} and {i} share the labels "
                f"{dict(zip(names, labels[i].tolist(), strict=True))}: interpolation needs one node per point"
            )
        node[position] = i
    corners = list(itertools.product((0, 1), repeat=len(axes)))
    cells = []
    for low in node:
        found = [node.get(tuple(p + c for p, c in zip(low, corner, strict=True))) for corner in corners]
        if None not in found:
            cells.append(found)
    if not cells:
        raise ConfigError(
            f"the library has no complete cell in {tuple(names)} ({len(labels)} nodes on axes of "
            f"{[len(a) for a in axes]} values): set library.interpolate to False and finetune.correction to 'none'"
        )
    return np.array(sorted(cells), dtype=np.int32)


def node_cells(count: int) -> np.ndarray:
    """int[count, 1]: every node as a cell of its own, for a library that is not interpolated."""
    return np.arange(count, dtype=np.int32)[:, None]


def interpolation_weights(u: Float[Array, " labels"]) -> Float[Array, " corners"]:
    """Multilinear weights of the 2^L corners at position u in [0, 1]^L, last label fastest."""
    weights = jnp.ones(1)
    for i in range(u.shape[0]):
        weights = (weights[:, None] * jnp.stack([1.0 - u[i], u[i]])[None, :]).reshape(-1)
    return weights


def draw_library(
    library: Library,
    spreads: Int[Array, " batch"],
    cells: Int[Array, " batch"],
    places: Float[Array, "batch labels"],
) -> Stars:
    """Spectra from the given cells.

    Args:
      spreads: index of the line spread of each spectrum.
      cells: index into `library.cells`.
      places: position in the cell, in [0, 1]^L; without meaning where cells have one corner.
    """

    def one(spread: Array, cell: Array, place: Array) -> tuple[Array, Array]:
        nodes = library.cells[cell]
        if nodes.shape[0] == 1:
            return jnp.exp(library.log_flux[spread, nodes[0]]), library.labels[nodes[0]]
        weights = interpolation_weights(place)

        def mean(values: Array) -> Array:
            # Accelerators would multiply in reduced precision, which moves Teff by kelvins.
            return jnp.matmul(weights, values, precision="highest")

        return jnp.exp(mean(library.log_flux[spread, nodes])), mean(library.labels[nodes])

    flux, labels = jax.vmap(one)(spreads, cells, places)
    valid = jnp.broadcast_to(library.valid[None, :], flux.shape)
    return Stars(flux, valid, labels, jnp.broadcast_to(library.sigma[None, :], labels.shape))


def draw_cells(key: Array, chance: Float[Array, " cells"], count: int) -> Int[Array, " count"]:
    """`count` cells at random, each with its chance (in any unit)."""
    reach = jnp.cumsum(chance)
    at = jax.random.uniform(key, (count,)) * reach[-1]
    return jnp.minimum(jnp.searchsorted(reach, at, side="right"), chance.shape[0] - 1).astype(jnp.int32)


def cell_origin(library: Library, cells: np.ndarray | None = None) -> np.ndarray:
    """int[C]: which library each cell is of (or each of other `cells` of the same nodes)."""
    cells = np.asarray(library.cells if cells is None else cells)
    if library.origin is None:
        return np.zeros(len(cells), np.int32)
    return np.asarray(library.origin)[cells[:, 0]]


def library_shares(library: Library) -> np.ndarray:
    """float64[K]: chance of a draw to come from each of the libraries that are mixed in this one."""
    if library.chance is None:
        return np.ones(1)
    count = int(np.asarray(library.origin).max()) + 1
    shares = np.bincount(cell_origin(library), np.asarray(library.chance, float), minlength=count)
    return shares / shares.sum()


def with_cells(library: Library, cells: np.ndarray) -> Library:
    """The library with other cells of the same nodes, alike in chance but for the shares of the libraries in it.

    A library that none of them is of has no share.
    """
    if library.chance is None:
        return library._replace(cells=cells)
    shares, origin = library_shares(library), cell_origin(library, cells)
    counts = np.bincount(origin, minlength=len(shares))
    chance = (shares / np.maximum(counts, 1))[origin]
    return library._replace(cells=cells, chance=(chance / chance.sum()).astype(np.float32))


def split_cells(origin: np.ndarray, order: np.ndarray, held: float) -> tuple[np.ndarray, np.ndarray]:
    """Cells kept aside and the others, as indices in a given order: of every library the first of its cells.

    Args:
      origin: int[C], which library each cell is of (`cell_origin`).
      order: int[C], a permutation of the cells.
      held: fraction kept aside, of each library's.
    """
    aside = np.zeros(len(order), bool)
    for one in np.unique(origin):
        mine = np.flatnonzero(origin[order] == one)
        aside[mine[: round(held * len(mine))]] = True
    return order[aside], order[~aside]


def random_labels(key: Array, library: Library, draws: int) -> Float[Array, "spectra labels"]:
    """Labels of `draws` random places in every cell, as training draws them (nodes have one place).

    Of cells that differ in chance there are as many places in all.
    """
    nodes = library.labels[library.cells]
    low, high = nodes[:, 0], nodes[:, -1]
    if library.chance is not None:
        cell_key, key = jax.random.split(key)
        cell = draw_cells(cell_key, library.chance, draws * low.shape[0])
        low, high, draws = low[cell], high[cell], 1
    place = jax.random.uniform(key, (draws, *low.shape))
    return (low[None] + place * (high - low)[None]).reshape(-1, low.shape[1])


def draw_survey(survey: Stars, stars: Int[Array, " batch"]) -> Stars:
    """The given stars."""
    return Stars(*(a[stars] for a in survey))


def stream_indices(
    key: Array, step: Int[Array, ""], count: int | Int[Array, ""], batch: int
) -> Int[Array, " batch"]:
    """Entries of batch `step` in an endless stream of epochs, each a fresh permutation of `count` items.

    A batch may reach over the end of an epoch; within an epoch nothing repeats or is left out. The cost does not
    depend on `count`, which may be traced: no permutation is ever written out.

    Raises:
      ValueError: a `count` that is known and below 1.
    """
    if isinstance(count, int) and count < 1:
        raise ConfigError("expected at least one spectrum to train on, found none")
    position = step * batch + jnp.arange(batch, dtype=jnp.int32)
    epoch = position // count
    return permuted(
        jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, epoch), position - epoch * count, count
    )


def permuted(keys: Array, index: Int[Array, " batch"], count: int | Int[Array, ""]) -> Int[Array, " batch"]:
    """Where keyed pseudo-random permutations of 0..count-1 put single indices, without the rest of them.

    A Feistel network permutes 0..4^h-1, the smallest such range that holds `count`; what falls outside is permuted
    again until it falls inside ("cycle walking"), which makes a permutation of 0..count-1.

    Args:
      keys: one for each index; equal keys belong to the same permutation.
      index: in 0..count-1.
      count: up to 2^30; may be traced.

    References:
      Black & Rogaway 2002, CT-RSA, "Ciphers with arbitrary finite domains".
    """
    last = jnp.asarray(count, jnp.uint32) - 1
    half = jnp.maximum((33 - jax.lax.clz(last)) // 2, MIN_HALF)  # bits of half an index
    low = (jnp.uint32(1) << half) - 1
    round_keys = jax.vmap(lambda key: jax.random.bits(key, (ROUNDS,), jnp.uint32))(keys)

    def once(x: Array) -> Array:
        left, right = x >> half, x & low
        for i in range(ROUNDS):
            left, right = right, left ^ (_mixed(right + round_keys[:, i]) & low)
        return (left << half) | right

    walked = jax.lax.while_loop(
        lambda x: jnp.any(x > last), lambda x: jnp.where(x > last, once(x), x), once(index.astype(jnp.uint32))
    )
    return walked.astype(jnp.int32)


def _mixed(x: Array) -> Array:
    """uint32 whose every bit depends on all bits of `x` (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def paired_indices(
    key: Array,
    step: Int[Array, ""],
    classes: Int[Array, "labels stars"],
    batch: int,
    *,
    count: int | Int[Array, ""] | None = None,
) -> Int[Array, " batch"]:
    """Batch `step` for triplets: half are stars of `stream_indices`, half share a class with one of them each.

    In a random batch of a few dozen stars hardly two share a bin, and the batch-hard loss leaves out anchors
    without a positive. The partner of a star is a random other star of the same class in a random label; any
    other star where there is none.

    Args:
      classes: bin of every star in every label, -1 = unknown.
      count: only the first so many stars are drawn, at least two; may be traced. None = all.

    Raises:
      ValueError: fewer than two stars.
    """
    labels, stars = classes.shape
    count = stars if count is None else count
    if isinstance(count, int) and count < 2:
        raise ConfigError(f"pairs need at least two stars, found {count}")
    order_key, fresh_key = jax.random.split(key)
    label_key, partner_key = jax.random.split(jax.random.fold_in(fresh_key, step))
    pairs = batch // 2
    anchors = stream_indices(order_key, step, count, batch - pairs)
    first = anchors[:pairs]
    label = jax.random.randint(label_key, (pairs,), 0, labels)
    own = classes[label, first]
    index = jnp.arange(stars)[None, :]
    other = (index != first[:, None]) & (index < count)
    same = other & (classes[label] == own[:, None]) & (own >= 0)[:, None]
    allowed = jnp.where(same.any(axis=1, keepdims=True), same, other)
    partners = jax.random.categorical(partner_key, jnp.where(allowed, 0.0, -jnp.inf))
    return jnp.concatenate([anchors, partners])


def matched_cells(library: Library, cell: np.ndarray) -> Library:
    """The library with one cell for each star that is in one, so that draws have the stars' distribution.

    Args:
      cell: int[S], index into `library.cells`, -1 = none (`sources.locate`); or int[K, S], those of each of K
        libraries that are mixed (`sources.locate_each`). A star that several hold has a cell in each, and their
        shares divide its chance.

    Raises:
      ValueError: no star is in a cell, or cells are single nodes, which no star is in.
    """
    if np.asarray(library.cells).shape[1] == 1:
        raise ConfigError("align.match needs library.interpolate, found nodes without cells")
    inside = cell[cell >= 0]
    if not len(inside):
        raise ConfigError(
            f"align.match: none of {cell.shape[-1]} stars is inside the library, as far as the networks can tell"
        )
    matched = library._replace(cells=np.asarray(library.cells)[inside])
    return matched if library.chance is None else matched._replace(chance=matched_chance(library, cell))


def matched_chance(library: Library, cell: np.ndarray) -> np.ndarray:
    """float32[M]: chance of each of the M cells among the entries of int[K, S], see `matched_cells`."""
    share = np.where(cell >= 0, library_shares(library)[:, None], 0.0)
    share = share / np.maximum(share.sum(axis=0), 1e-300)
    share = share[cell >= 0]
    return (share / share.sum()).astype(np.float32)


def locate_each(library: Library, labels: Float[np.ndarray, "stars labels"]) -> np.ndarray:
    """The cell that holds each star in each of the libraries that are mixed: int[K, S], -1 = none.

    int[S] where there is one library.
    """
    if library.chance is None:
        return locate(library, labels)[0]
    return np.stack([locate(library, labels, origin=k)[0] for k in range(len(library_shares(library)))])


def locate(
    library: Library, labels: Float[np.ndarray, "stars labels"], *, origin: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The library cell that holds each star, and the place in it.

    Args:
      labels: float[S, L], NaN = unknown.
      origin: of libraries that are mixed, the one whose cells count; None = all, and the first cell is taken.

    Returns:
      int[S], the index into `library.cells`, -1 for labels that are missing or in no cell; float32[S, L] in
      [0, 1], 0 where there is no cell.
    """
    nodes, cells = np.asarray(library.labels, float), np.asarray(library.cells)
    low, high = nodes[cells[:, 0]], nodes[cells[:, -1]]
    inside = ((labels[:, None] >= low) & (labels[:, None] <= high)).all(axis=-1)
    if origin is not None:
        inside &= (cell_origin(library) == origin)[None, :]
    cell = np.where(inside.any(axis=1), inside.argmax(axis=1), -1)
    with np.errstate(invalid="ignore"):
        place = np.where((cell >= 0)[:, None], (labels - low[cell]) / (high - low)[cell], 0.0)
    return cell, place.astype(np.float32)


def in_chunks(run: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
    """`run` over arrays with a common leading axis, `chunk` rows at a time and all in one shape."""
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for i in range(0, count, chunk):
        index = np.minimum(np.arange(i, i + chunk), count - 1)
        parts.append(sharding.local(run(jax.tree.map(lambda a, index=index: a[index], rows))))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)
