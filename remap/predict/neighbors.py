"""Exact nearest neighbours, in blocks on the device: "for any given query" spectrum (paper §1 iii, §4.3).

Distances are Euclidean, per label and over all labels together. References go past the queries one block at a time,
and the k best so far are kept, so that memory depends on the block and not on how many references there are. Blocks
are ranked by |q|² + |r|² - 2 q·r, which loses digits where two vectors nearly agree, so some more candidates than
asked for are kept, and their distances are computed once more from the differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 8192  # references at a time, or fewer, where there are fewer,
LEAST = 512  # but no fewer than these
QUERIES = 256  # queries at a time, and 16, so that few do not pay for many
SPARE = 8  # candidates beyond those asked for
NUMBERS = 1 << 23  # of candidates at a time, when their distances are computed once more


class Nearest(NamedTuple):
    """The k nearest references of T queries, per label and then over all labels together, nearest first."""

    index: np.ndarray  # int64[L + 1, T, k], -1 = there are no more
    distance: np.ndarray  # float32[L + 1, T, k], NaN = there are no more


def nearest(
    queries: np.ndarray,
    references: Sequence[np.ndarray],
    k: int,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    usable: np.ndarray | None = None,
    block: int = BLOCK,
) -> Nearest:
    """The k references that are nearest to each query, exactly; of equal ones the first.

    The squared distance over all labels is the mean of those per label.

    Args:
      queries: float[L, T, D].
      references: float[L, R, D] in parts along D (one for each arm, say), of any float type; blocks become float32.
      k: neighbours of each; more than there are references leave entries empty.
      groups: int[T] and int[R]; a query and a reference of one group (0 or above) are never neighbours, so that a
        star does not find itself.
      usable: bool[R], references that may be found; None = all.
      block: references at a time.

    Raises:
      ValueError: shapes that do not agree, or k below 1.
    """
    labels, count, size = queries.shape
    total = references[0].shape[1]
    shapes = {part.shape[:2] for part in references}
    if k < 1 or shapes != {(labels, total)} or sum(part.shape[2] for part in references) != size:
        found = [list(part.shape) for part in references]
        raise ValueError(f"expected k >= 1 and references [{labels}, R, {size}], found k {k} and {found}")
    of_query, of_reference = (np.full(n, -1, np.int32) for n in (count, total))
    if groups is not None:
        of_query, of_reference = (np.asarray(g, np.int32) for g in groups)
    allowed = np.ones(total, bool) if usable is None else np.asarray(usable, bool)
    # Few shapes: every one of them is compiled.
    block = min(block, max(LEAST, 1 << (max(total, 1) - 1).bit_length()))
    keep = k + SPARE
    ranks = labels + 1 if labels > 1 else 1  # of one label, all together are the same
    parts = []
    for some, rows in _batches(queries, count):
        best = (
            jnp.full((ranks, some.shape[1], keep), jnp.inf),
            jnp.full((ranks, some.shape[1], keep), -1, jnp.int32),
        )
        own = jnp.asarray(_padded(of_query[rows], some.shape[1], -1))
        for start in range(0, total, block):
            stop = min(start + block, total)
            these = jnp.concatenate(
                [jnp.asarray(part[:, start:stop], jnp.float32) for part in references], axis=2
            )
            best = _merge(
                best,
                some,
                jnp.pad(these, ((0, 0), (0, block - (stop - start)), (0, 0))),
                jnp.asarray(_padded(allowed[start:stop], block, False)),
                own,
                jnp.asarray(_padded(of_reference[start:stop], block, -1)),
                jnp.asarray(start, jnp.int32),
            )
        found = np.asarray(best[1])[:, : rows.stop - rows.start]
        parts.append(_exact(queries[:, rows], references, found, k))
    index, distance = (np.concatenate([p[i] for p in parts], axis=1) for i in (0, 1))
    return Nearest(*(np.broadcast_to(a, (labels + 1, *a.shape[1:])) for a in (index, distance)))


def _batches(queries: np.ndarray, count: int) -> Iterator[tuple[Array, slice]]:
    """Queries in batches of two shapes, padded with zeros, each with which of them it holds."""
    size = 16 if count <= 16 else QUERIES
    for i in range(0, max(count, 1), size):
        rows = slice(i, min(i + size, count))
        padding = ((0, 0), (0, size - (rows.stop - rows.start)), (0, 0))
        yield jnp.asarray(np.pad(np.asarray(queries[:, rows], np.float32), padding)), rows


def _padded(values: np.ndarray, size: int, fill: object) -> np.ndarray:
    return np.pad(values, (0, size - len(values)), constant_values=fill)


@jax.jit
def _merge(
    best: tuple[Float[Array, "ranks stars kept"], Int[Array, "ranks stars kept"]],
    queries: Float[Array, "labels stars size"],
    block: Float[Array, "labels block size"],
    usable: Array,
    own: Int[Array, " stars"],
    groups: Int[Array, " block"],
    start: Int[Array, ""],
) -> tuple[Float[Array, "ranks stars kept"], Int[Array, "ranks stars kept"]]:
    """The best squared distances and indices so far, with those of one more block."""
    product = jnp.einsum("lsd,lbd->lsb", queries, block, precision=jax.lax.Precision.HIGHEST)
    square = jnp.sum(queries**2, axis=-1)[:, :, None] + jnp.sum(block**2, axis=-1)[:, None, :] - 2.0 * product
    if best[0].shape[0] > 1:
        square = jnp.concatenate([square, jnp.mean(square, axis=0, keepdims=True)])
    same = (own[:, None] == groups[None, :]) & (own >= 0)[:, None]
    square = jnp.where((usable[None, :] & ~same)[None], square, jnp.inf)
    kept = best[0].shape[-1]
    here, place = jax.lax.top_k(-square, min(kept, square.shape[-1]))
    values = jnp.concatenate([best[0], -here], axis=-1)
    index = jnp.concatenate([best[1], place.astype(jnp.int32) + start], axis=-1)
    value, order = jax.lax.top_k(-values, kept)
    index = jnp.take_along_axis(index, order, axis=-1)
    return -value, jnp.where(jnp.isfinite(value), index, -1)


def _exact(
    queries: np.ndarray, references: Sequence[np.ndarray], found: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of candidates int[L + 1 or 1, T, K], by distances from the differences."""
    labels, count, size = queries.shape
    index = np.full((len(found), count, k), -1, np.int64)
    distance = np.full((len(found), count, k), np.nan, np.float32)
    rows = max(1, NUMBERS // max(1, labels * found.shape[-1] * size))
    for i in range(0, count, rows):
        some = slice(i, i + rows)
        for rank in range(len(found)):
            candidates = found[rank, some]
            mine = slice(rank, rank + 1) if rank < labels else slice(None)
            which = np.maximum(candidates, 0)
            near = np.concatenate([np.asarray(part[mine][:, which]) for part in references], axis=-1)
            apart = near.astype(np.float64) - np.asarray(queries[mine][:, some, None], np.float64)
            square = np.mean(np.sum(apart**2, axis=-1), axis=0)
            square[candidates < 0] = np.inf
            # By distance, then by index.
            order = np.lexsort((candidates, square), axis=-1)[:, :k]
            square = np.take_along_axis(square, order, axis=-1)
            chosen = np.where(np.isfinite(square), np.take_along_axis(candidates, order, axis=-1), -1)
            width = chosen.shape[1]
            index[rank, some, :width] = chosen
            distance[rank, some, :width] = np.sqrt(np.where(chosen >= 0, square, np.nan))
    return index, distance


def unit_mean(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of M networks side by side, such that squared distances are the mean of those of the networks.

    Args:
      embeddings: float[M, L, S, F].

    Returns:
      float32[L, S, M·F].

    Examples:
      >>> import numpy as np
      >>> unit_mean(np.ones((4, 1, 1, 2))).tolist()
      [[[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]]]
    """
    members, labels, stars, size = embeddings.shape
    side = np.transpose(embeddings, (1, 2, 0, 3)).reshape(labels, stars, members * size)
    return np.asarray(side / np.sqrt(members), np.float32)


def some_members(embeddings: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of what `unit_mean` gives for M networks, what it would give for some of them.

    Args:
      embeddings: float32[L, S, M·F].
      own: bool[M], at least one.

    Returns:
      float32[L, S, m·F] of the m that are meant; the same array where these are all.

    Examples:
      >>> import numpy as np
      >>> some_members(np.full((1, 1, 8), 0.5, np.float32), np.array([True, False, False, False])).tolist()
      [[[1.0, 1.0]]]
    """
    if own.all():
        return embeddings
    labels, stars, _ = embeddings.shape
    kept = embeddings.reshape(labels, stars, own.size, -1)[:, :, own]
    return np.asarray(kept.reshape(labels, stars, -1) * np.sqrt(own.size / own.sum()), np.float32)
