"""Sources: the parts of a training batch, each with `draw(key, step)`, and what is put together from them.

A source is a tree of arrays with a few static fields, so that it can be given to a compiled program: what was
compiled for one serves every source of equal shapes and settings, whatever the stars are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap.continuum.common import NormalizeFn
from remap.sampling.augment import AugmentSettings, Batch, finish, join, library_draw, survey_draw
from remap.sampling.correction import CHUNK, add_residuals
from remap.sampling.nuisances import Nuisances
from remap.sampling.sources import Library, Stars, in_chunks, stream_indices


def static() -> Any:
    """A field of a source that is no array: part of what a program is compiled for."""
    return dataclasses.field(metadata={"static": True})


def source_tree(cls: type) -> type:
    """Makes a class a frozen dataclass and a tree of its fields that are not `static`."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@source_tree
class LibrarySource:
    """Varied spectra of a library, before normalisation (`augment.library_draw`).

    Attributes:
      wave: the arm's grid [Å].
      batch: spectra in a batch.
      settings: how they are varied.
      nuisances: what those settings draw from that are for libraries alone.
    """

    library: Library
    wave: Float[Array, " pixels"]
    batch: int = static()
    settings: AugmentSettings = static()
    nuisances: Nuisances | None = None

    def draw(self, key: Array, step: Array) -> Stars:
        """The spectra of a step."""
        return library_draw(
            key,
            step,
            self.library,
            self.wave,
            batch=self.batch,
            settings=self.settings,
            nuisances=self.nuisances,
        )


@source_tree
class RehearsalSource:
    """Library spectra with the residuals of random stars as noise (`correction.add_residuals`).

    Attributes:
      spectra: the library.
      residuals: of the stars, natural logarithms of the flux; of `count` of them, and then any others. None = none.
      weight: limits of the random factor on them.
    """

    spectra: LibrarySource
    residuals: Float[Array, "stars pixels"] | None
    count: Int[Array, ""]
    weight: tuple[float, float] = static()

    @property
    def library(self) -> Library:
        """The library."""
        return self.spectra.library

    def draw(self, key: Array, step: Array) -> Stars:
        """The spectra of a step."""
        library_key, residual_key = jax.random.split(key)
        draw = self.spectra.draw(library_key, step)
        if self.residuals is None:
            return draw
        # Last: residuals belong to their star's pixels, and gaps stay zero under any factor.
        low, high = self.weight
        residual_key = jax.random.fold_in(residual_key, step)
        return add_residuals(residual_key, draw, self.residuals, low=low, high=high, count=self.count)


@source_tree
class StarSource:
    """Varied spectra of some stars of a survey, before normalisation (`augment.survey_draw`).

    All folds of a survey share `stars` and have as many `rows`, so that they share their programs, too.

    Attributes:
      stars: all that any fold trains on.
      rows: those that are drawn, `count` of them and then any others.
      wave: the arm's grid [Å].
      edges: of the bins, for pairs; None = stars at random.
      batch: spectra in a batch.
      settings: how they are varied.
    """

    stars: Stars
    rows: Int[Array, " stars"]
    count: Int[Array, ""]
    wave: Float[Array, " pixels"]
    edges: Float[Array, "labels edges"] | None
    batch: int = static()
    settings: AugmentSettings = static()

    def draw(self, key: Array, step: Array) -> Stars:
        """The spectra of a step."""
        return survey_draw(
            key,
            step,
            self.stars,
            self.wave,
            batch=self.batch,
            settings=self.settings,
            edges=self.edges,
            rows=self.rows,
            count=self.count,
        )


@source_tree
class FixedSource:
    """Spectra that are ready as they are, in random order.

    Attributes:
      spectra: a tree of arrays.
      count: how many spectra they hold.
      batch: spectra in a batch.
      pick: (spectra, index) -> those of the index.
    """

    spectra: Any
    count: int = static()
    batch: int = static()
    pick: Callable[[Any, Array], Any] = static()

    def draw(self, key: Array, step: Array) -> Any:
        """The spectra of a step."""
        return self.pick(self.spectra, stream_indices(key, step, self.count, self.batch))


def rows(spectra: Any, index: Array) -> Any:
    """The rows of every array of a tree, the `pick` of `fixed_rows`."""
    return jax.tree.map(lambda a: a[index], spectra)


def fixed_rows(spectra: Any, batch: int) -> FixedSource:
    """A source of the rows of a tree of arrays."""
    return FixedSource(spectra, len(jax.tree.leaves(spectra)[0]), batch, rows)


@source_tree
class FinishedSource:
    """Spectra of another source, normalised and with their targets (`augment.finish`).

    Attributes:
      spectra: the other source.
      edges: of the bins.
      normalize: the normaliser.
    """

    spectra: Any
    edges: Float[Array, "labels edges"]
    normalize: NormalizeFn = static()

    def draw(self, key: Array, step: Array) -> Batch:
        """The batch of a step."""
        return finish(self.spectra.draw(key, step), self.normalize, self.edges)


@source_tree
class MixedSource:
    """Batches of fine-tuning: stars, and beside them spectra of other stars and of the library, or None.

    Attributes:
      stars: of a known label; finished.
      anchors: spectra of other stars with targets that a network gave them.
      rehearsal: spectra of a `RehearsalSource`; finished.
    """

    stars: FinishedSource
    anchors: FixedSource | None
    rehearsal: FinishedSource | None

    def draw(self, key: Array, step: Array) -> Batch:
        """The batch of a step."""
        star_key, rehearsal_key, anchor_key = jax.random.split(key, 3)
        batch = self.stars.draw(star_key, step)
        if self.anchors is not None:
            batch = join(batch, self.anchors.draw(anchor_key, step))
        if self.rehearsal is not None:
            batch = join(batch, self.rehearsal.draw(rehearsal_key, step))
        return batch


def as_given(
    flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
) -> Float[Array, "stars pixels"]:
    """The normaliser of spectra that are normalised already."""
    return flux


def padded_rows(chosen: Bool[np.ndarray, " stars"]) -> tuple[Int[Array, " stars"], Int[Array, ""]]:
    """`rows` and `count` of a `StarSource` for the chosen of its stars."""
    found = np.flatnonzero(chosen)
    out = np.zeros(len(chosen), np.int32)
    out[: len(found)] = found
    return jnp.asarray(out), jnp.asarray(len(found), jnp.int32)


@functools.partial(jax.jit, static_argnames="normalize")
def _normalized(
    flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"], *, normalize: NormalizeFn
) -> Float[Array, "stars pixels"]:
    return normalize(flux, valid)


def normalize_in_chunks(
    normalize: NormalizeFn,
    flux: Float[np.ndarray, "stars pixels"],
    valid: Bool[np.ndarray, "stars pixels"],
    *,
    chunk: int = CHUNK,
) -> Float[Array, "stars pixels"]:
    """Normalised flux, found `chunk` spectra at a time, so that one program serves any number of them."""

    def run(rows: tuple) -> Array:
        return _normalized(jnp.asarray(rows[0]), jnp.asarray(rows[1]), normalize=normalize)

    return in_chunks(run, (flux, valid), chunk)
