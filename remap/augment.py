"""Training batches on the device: draw, add noise, normalise, make targets (paper §3.3 iii-iv, §5).

`augment="online"` draws afresh at every step; `augment="paper"` is the fixed set of the paper: every line
spread × `levels` values of the noise × `draws` draws of it per node. Both are pure functions of (key, step),
and the fixed set repeats because its keys depend on the index of the spectrum alone, so nothing is stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from remap.data import Draw, Library, Survey, draw_library, draw_survey, paired_indices, stream_indices
from remap.labels import bin_index, soft_labels

NormalizeFn = Callable[[Array, Array], Array]  # (flux[S, N], valid[S, N]) -> normalised flux[S, N]


class Batch(NamedTuple):
    """What the network trains on."""

    flux: Float[Array, "stars pixels"]  # normalised
    valid: Bool[Array, "stars pixels"]
    target: Float[Array, "labels stars bins"]  # soft labels, zeros where unknown
    classes: Int[Array, "labels stars"]  # bin of each label, -1 where unknown


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How training spectra are varied (config section `augment`).

    Attributes:
      kind: "online" (fresh draws at every step) or "paper" (the fixed set of §3.3 iii).
      noise_low, noise_high: limits of σ, uniform, as a fraction of the flux.
      levels: "paper" only: number of values of σ (paper: 5).
      draws: "paper" only: draws of the noise per value of σ (paper: 3).
    """

    kind: str
    noise_low: float
    noise_high: float
    levels: int
    draws: int

    def __post_init__(self) -> None:
        if self.kind not in ("online", "paper"):
            raise ValueError(f"augment.kind must be 'online' or 'paper', found {self.kind!r}")
        if self.levels < 1 or self.draws < 1:
            raise ValueError(f"augment: expected levels and draws >= 1, found {self.levels}, {self.draws}")
        if not 0 <= self.noise_low <= self.noise_high:
            raise ValueError(
                f"augment: expected 0 <= noise_low <= noise_high, found {self.noise_low}, {self.noise_high}"
            )


def add_noise(
    keys: Array, flux: Float[Array, "stars pixels"], sigma: Float[Array, " stars"]
) -> Float[Array, "stars pixels"]:
    """Gaussian noise with a standard deviation of `sigma` times the flux, one key per spectrum (§3.3 iii)."""
    noise = jax.vmap(lambda key: jax.random.normal(key, flux.shape[1:], flux.dtype))(keys)
    return flux * (1.0 + sigma[:, None] * noise)


def paper_set_size(library: Library, settings: AugmentSettings) -> int:
    """Spectra in the fixed set: nodes × line spreads × noise values × draws (45 per node in the paper)."""
    return library.cells.shape[0] * library.log_flux.shape[0] * settings.levels * settings.draws


def finish(draw: Draw, normalize: NormalizeFn, edges: Float[Array, "labels bins+1"]) -> Batch:
    """Normalises drawn spectra, after their noise was added, and makes the targets of their labels."""
    return Batch(
        normalize(draw.flux, draw.valid),
        draw.valid,
        soft_labels(draw.labels, draw.errors, edges),
        bin_index(draw.labels, edges),
    )


def join(first: Batch, second: Batch) -> Batch:
    """Two batches as one."""
    return Batch(
        jnp.concatenate([first.flux, second.flux]),
        jnp.concatenate([first.valid, second.valid]),
        jnp.concatenate([first.target, second.target], axis=1),
        jnp.concatenate([first.classes, second.classes], axis=1),
    )


def take(batch: Batch, index: Int[Array, " stars"]) -> Batch:
    """The spectra `index` of a batch."""
    return Batch(batch.flux[index], batch.valid[index], batch.target[:, index], batch.classes[:, index])


def library_draw(
    key: Array, step: Int[Array, ""], library: Library, *, batch: int, settings: AugmentSettings
) -> Draw:
    """The noisy, not yet normalised spectra of batch `step` of a library."""
    order_key, set_key, fresh_key = jax.random.split(key, 3)
    cells = library.cells.shape[0]
    labels = library.labels.shape[1]
    if settings.kind == "paper":
        if library.cells.shape[1] > 1:
            raise ValueError("augment.kind 'paper' draws nodes: set library.interpolate to False")
        values_key, noise_key = jax.random.split(set_key)
        index = stream_indices(order_key, step, paper_set_size(library, settings), batch)
        cell, rest = index % cells, index // cells
        level, rest = rest % settings.levels, rest // settings.levels
        spread = rest // settings.draws
        values = jax.random.uniform(
            values_key, (settings.levels,), minval=settings.noise_low, maxval=settings.noise_high
        )
        sigma = values[level]
        keys = jax.vmap(lambda i: jax.random.fold_in(noise_key, i))(index)
        places = jnp.zeros((batch, labels))
    else:
        cell = stream_indices(order_key, step, cells, batch)
        fresh_key = jax.random.fold_in(fresh_key, step)
        spread_key, place_key, sigma_key, noise_key = jax.random.split(fresh_key, 4)
        spread = jax.random.randint(spread_key, (batch,), 0, library.log_flux.shape[0])
        sigma = jax.random.uniform(sigma_key, (batch,), minval=settings.noise_low, maxval=settings.noise_high)
        keys = jax.random.split(noise_key, batch)
        places = jax.random.uniform(place_key, (batch, labels))
    draw = draw_library(library, spread, cell, places)
    return draw._replace(flux=add_noise(keys, draw.flux, sigma))


def survey_draw(
    key: Array,
    step: Int[Array, ""],
    survey: Survey,
    *,
    batch: int,
    settings: AugmentSettings,
    edges: Float[Array, "labels bins+1"] | None = None,
) -> Draw:
    """The stars of batch `step`; "online" adds noise to them, "paper" leaves observed spectra as they are.

    With `edges` half of them share a bin of a label with one of the others (`data.paired_indices`).
    """
    order_key, fresh_key = jax.random.split(key)
    if edges is None:
        stars = stream_indices(order_key, step, survey.flux.shape[0], batch)
    else:
        stars = paired_indices(order_key, step, bin_index(survey.labels, edges), batch)
    draw = draw_survey(survey, stars)
    if settings.kind == "paper" or settings.noise_high == 0:
        return draw
    sigma_key, noise_key = jax.random.split(jax.random.fold_in(fresh_key, step))
    sigma = jax.random.uniform(sigma_key, (batch,), minval=settings.noise_low, maxval=settings.noise_high)
    return draw._replace(flux=add_noise(jax.random.split(noise_key, batch), draw.flux, sigma))
