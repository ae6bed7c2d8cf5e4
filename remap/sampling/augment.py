"""Training batches on the device: draw, vary, normalise, make targets (paper §3.3 iii-iv, §5).

Spectra are varied in the order in which nature does it: velocity → scattered light → tilt → noise → gaps, all
before normalisation. The star moves, the spectrograph adds its veil and its response, the detector its noise, and
bad pixels have none of these. What a library may have wrong (`sampling.nuisances`) is the star's own and comes first.

`augment="online"` draws afresh at every step; `augment="paper"` is the fixed set of the paper: every line
spread × `levels` values of the noise × `draws` draws of it per node. Both are pure functions of (key, step),
and the fixed set repeats because its keys depend on the index of the spectrum alone, so nothing is stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap.config import ConfigError
from remap.continuum.common import NormalizeFn
from remap.labels import bin_index, soft_labels
from remap.sampling.effects import add_scattered_light, cut_gaps, draw_gaps, shift_velocity, tilt_continuum
from remap.sampling.nuisances import Nuisances, enhance_alpha, perturb_lines, scale_depths
from remap.sampling.sources import (
    Library,
    Stars,
    draw_cells,
    draw_library,
    draw_survey,
    paired_indices,
    stream_indices,
)
from remap.spectra import SPEED_OF_LIGHT


class Batch(NamedTuple):
    """What the network trains on."""

    flux: Float[Array, "stars pixels"]  # normalised
    valid: Bool[Array, "stars pixels"]
    target: Float[Array, "labels stars bins"]  # soft labels, zeros where unknown
    classes: Int[Array, "labels stars"]  # bin of each label, -1 where unknown

    @property
    def spectra_axes(self) -> dict[str, int]:
        """Fields whose spectra do not lie along the first axis."""
        return {"target": 1, "classes": 1}


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """How training spectra are varied (config sections `augment`, for stars `finetune`). 0 switches a field off.

    Attributes:
      kind: "online" (fresh draws at every step) or "paper" (the fixed set of §3.3 iii).
      noise_low, noise_high: limits of σ, as a fraction of the flux, between which it is uniform,
      noise_law: or its logarithm is: "uniform" (paper) or "log", for surveys whose S/N differ by more than a few.
      levels: "paper" only: number of values of σ (paper: 5).
      draws: "paper" only: draws of the noise per value of σ (paper: 3).
      velocity: residual radial velocity, uniform in ±velocity [km/s]. On observed stars the interpolation makes
        the noise that they already have smoother.
      scattered: fraction of scattered light, uniform in 0..scattered (`effects.add_scattered_light`), below 1.
      tilt: slope of the continuum, uniform in ±tilt: the flux is multiplied by 1 ± tilt at the ends; below 1.
      gaps: up to so many runs of pixels are zeroed and marked invalid;
      gap_pixels: each up to so long [pixels].
      lines, lines_each: of library spectra alone, as are all that follow: factors on the differences between the
        libraries of a config, for lines that go together and for each line by itself (`nuisances.perturb_lines`).
      lines_components: how many principal components of these differences are drawn from.
      depths: standard deviation of a smooth random factor on the depths of lines (`nuisances.scale_depths`).
      alpha: (low, high), limits of [α/Fe], dex, for libraries without; () = off (`nuisances.enhance_alpha`).
      alpha_scatter: above 0, [α/Fe] follows the Galaxy's trend, `high` at [Fe/H] <= -1 and `low` at >= 0, with this
        standard deviation about it.
    """

    kind: str = "online"
    noise_low: float = 0.005
    noise_high: float = 0.02
    noise_law: str = "uniform"
    levels: int = 5
    draws: int = 3
    velocity: float = 0.0
    scattered: float = 0.0
    tilt: float = 0.0
    gaps: int = 0
    gap_pixels: int = 0
    lines: float = 0.0
    lines_each: float = 0.0
    lines_components: int = 24
    depths: float = 0.0
    alpha: tuple[float, ...] = ()
    alpha_scatter: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("online", "paper"):
            raise ConfigError(f"augment.kind must be 'online' or 'paper', found {self.kind!r}")
        if self.levels < 1 or self.draws < 1:
            raise ConfigError(f"augment: expected levels and draws >= 1, found {self.levels}, {self.draws}")
        if not 0 <= self.noise_low <= self.noise_high:
            raise ConfigError(
                f"augment: expected 0 <= noise_low <= noise_high, found {self.noise_low}, {self.noise_high}"
            )
        if self.noise_law not in ("uniform", "log"):
            raise ConfigError(f"augment.noise_law must be 'uniform' or 'log', found {self.noise_law!r}")
        if self.noise_law == "log" and self.noise_high > 0 and not self.noise_low:
            raise ConfigError("augment.noise_law 'log' needs noise_low > 0, found 0")
        if not 0 <= self.velocity < SPEED_OF_LIGHT:
            raise ConfigError(
                f"augment: expected 0 <= velocity < {SPEED_OF_LIGHT} km/s, found {self.velocity}"
            )
        for name in ("scattered", "tilt"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augment: expected 0 <= {name} < 1, found {getattr(self, name)}")
        if min(self.gaps, self.gap_pixels) < 0 or (self.gaps > 0) != (self.gap_pixels > 0):
            raise ConfigError(
                f"augment: expected gaps and gap_pixels both 0 or both above, found {self.gaps}, {self.gap_pixels}"
            )
        for name in ("lines", "lines_each", "depths", "alpha_scatter"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"augment: expected {name} >= 0, found {getattr(self, name)}")
        if self.lines_components < 1:
            raise ConfigError(f"augment: expected lines_components >= 1, found {self.lines_components}")
        if self.alpha and not (len(self.alpha) == 2 and -1 <= self.alpha[0] <= self.alpha[1] <= 1):
            raise ConfigError(
                f"augment: expected alpha as () or (low, high) with -1 <= low <= high <= 1, found {self.alpha}"
            )
        if self.alpha_scatter and not self.alpha:
            raise ConfigError("augment: alpha_scatter is about a trend that alpha gives, found alpha ()")
        found = self.effects | self.of_library
        if self.kind == "paper" and found:
            raise ConfigError(
                f"augment.kind 'paper' is a fixed set with noise alone: expected 0, found {found}"
            )

    @property
    def effects(self) -> dict[str, int | float]:
        """The fields that are on, noise aside."""
        names = ("velocity", "scattered", "tilt", "gaps")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def of_library(self) -> dict[str, float | tuple[float, ...]]:
        """The fields that are on and that act on library spectra alone."""
        names = ("lines", "lines_each", "depths", "alpha")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @property
    def changes_stars(self) -> bool:
        """Whether an observed star looks different at every step."""
        return self.kind == "online" and (self.noise_high > 0 or bool(self.effects))


def add_noise(
    keys: Array, flux: Float[Array, "stars pixels"], sigma: Float[Array, " stars"]
) -> Float[Array, "stars pixels"]:
    """Gaussian noise with a standard deviation of `sigma` times the flux, one key per spectrum (§3.3 iii)."""
    noise = jax.vmap(lambda key: jax.random.normal(key, flux.shape[1:], flux.dtype))(keys)
    return flux * (1.0 + sigma[:, None] * noise)


def vary(
    key: Array,
    draw: Stars,
    noise_keys: Array,
    sigma: Float[Array, " stars"],
    wave: Float[Array, " pixels"],
    settings: AugmentSettings,
) -> Stars:
    """Drawn spectra with all that `settings` ask for, in the order of the module's docstring.

    A field that is off costs nothing and leaves what the others draw as it is. Labels stay as they are.

    Args:
      key: of everything but the noise.
      noise_keys, sigma: of `add_noise`.
      wave: the arm's uniform grid [Å].
    """
    flux, valid = draw.flux, draw.valid
    stars, pixels = flux.shape
    names = ("velocity", "scattered", "tilt", "gaps")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True)) if settings.effects else {}

    def uniform(effect: str, low: float, high: float) -> Float[Array, " stars"]:
        return jax.random.uniform(keys[effect], (stars,), minval=low, maxval=high)

    if settings.velocity > 0:
        flux, valid = shift_velocity(
            flux, valid, wave, uniform("velocity", -settings.velocity, settings.velocity)
        )
    if settings.scattered > 0:
        flux = add_scattered_light(flux, valid, uniform("scattered", 0.0, settings.scattered))
    if settings.tilt > 0:
        flux = tilt_continuum(flux, uniform("tilt", -settings.tilt, settings.tilt))
    if settings.noise_high > 0:
        flux = add_noise(noise_keys, flux, sigma)
    if settings.gaps > 0:
        runs = draw_gaps(keys["gaps"], stars, pixels, gaps=settings.gaps, gap_pixels=settings.gap_pixels)
        flux, valid = cut_gaps(flux, valid, *runs)
    return draw._replace(flux=flux, valid=valid)


def vary_library(key: Array, draw: Stars, nuisances: Nuisances, settings: AugmentSettings) -> Stars:
    """Drawn library spectra with what the settings ask for of `sampling.nuisances`.

    A field that is off costs nothing.

    Raises:
      ConfigError: `nuisances` lack what the settings ask for.
    """
    alpha_key, lines_key, depths_key = jax.random.split(key, 3)
    if settings.alpha:
        low, high = settings.alpha
        response = _known(nuisances.alpha, "alpha")
        draw = enhance_alpha(alpha_key, draw, response, low=low, high=high, scatter=settings.alpha_scatter)
    if settings.lines > 0 or settings.lines_each > 0:
        errors = _known(nuisances.lines, "lines")
        draw = perturb_lines(lines_key, draw, errors, common=settings.lines, single=settings.lines_each)
    if settings.depths > 0:
        draw = scale_depths(depths_key, draw, amplitude=settings.depths)
    return draw


def _known(part: Any, name: str) -> Any:
    if part is None:
        raise ConfigError(f"augment.{name} is on, and what it draws from was not given with the library")
    return part


def draw_noise_levels(key: Array, count: int, settings: AugmentSettings) -> Float[Array, " count"]:
    """σ of `count` spectra, as a fraction of the flux, by the law of the settings."""
    low, high = settings.noise_low, settings.noise_high
    if settings.noise_law == "log" and high > 0:
        return jnp.exp(jax.random.uniform(key, (count,), minval=np.log(low), maxval=np.log(high)))
    return jax.random.uniform(key, (count,), minval=low, maxval=high)


def paper_set_size(library: Library, settings: AugmentSettings) -> int:
    """Spectra in the fixed set: nodes × line spreads × noise values × draws (45 per node in the paper)."""
    return library.cells.shape[0] * library.log_flux.shape[0] * settings.levels * settings.draws


def finish(draw: Stars, normalize: NormalizeFn, edges: Float[Array, "labels edges"]) -> Batch:
    """Normalises drawn spectra, after they were varied, and makes the targets of their labels."""
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
    key: Array,
    step: Int[Array, ""],
    library: Library,
    wave: Float[Array, " pixels"],
    *,
    batch: int,
    settings: AugmentSettings,
    nuisances: Nuisances | None = None,
) -> Stars:
    """The varied, not yet normalised spectra of batch `step` of a library on the grid `wave` [Å].

    Args:
      nuisances: what the fields of the settings that are for libraries alone draw from.
    """
    order_key, set_key, fresh_key = jax.random.split(key, 3)
    cells = library.cells.shape[0]
    labels = library.labels.shape[1]
    if settings.kind == "paper":
        if library.cells.shape[1] > 1:
            raise ConfigError("augment.kind 'paper' draws nodes: set library.interpolate to False")
        values_key, noise_key = jax.random.split(set_key)
        effects_key = fresh_key  # without effect: the fixed set has noise alone
        if library.chance is None:
            index = stream_indices(order_key, step, paper_set_size(library, settings), batch)
        else:
            cell_key, copy_key = jax.random.split(jax.random.fold_in(order_key, step))
            copies = paper_set_size(library, settings) // cells
            index = jax.random.randint(copy_key, (batch,), 0, copies) * cells
            index = index + draw_cells(cell_key, library.chance, batch)
        cell, rest = index % cells, index // cells
        level, rest = rest % settings.levels, rest // settings.levels
        spread = rest // settings.draws
        values = draw_noise_levels(values_key, settings.levels, settings)
        sigma = values[level]
        keys = jax.vmap(lambda i: jax.random.fold_in(noise_key, i))(index)
        places = jnp.zeros((batch, labels))
    else:
        if library.chance is None:
            cell = stream_indices(order_key, step, cells, batch)
        else:
            cell = draw_cells(jax.random.fold_in(order_key, step), library.chance, batch)
        fresh_key = jax.random.fold_in(fresh_key, step)
        # One more where it is needed: without, batches are those of before there was any.
        wanted = jax.random.split(fresh_key, 6 if settings.of_library else 5)
        spread_key, place_key, sigma_key, noise_key, effects_key = wanted[:5]
        spread = jax.random.randint(spread_key, (batch,), 0, library.log_flux.shape[0])
        sigma = draw_noise_levels(sigma_key, batch, settings)
        keys = jax.random.split(noise_key, batch)
        places = jax.random.uniform(place_key, (batch, labels))
    draw = draw_library(library, spread, cell, places)
    if settings.of_library:
        draw = vary_library(wanted[5], draw, nuisances or Nuisances(), settings)
    return vary(effects_key, draw, keys, sigma, wave, settings)


def survey_draw(
    key: Array,
    step: Int[Array, ""],
    survey: Stars,
    wave: Float[Array, " pixels"],
    *,
    batch: int,
    settings: AugmentSettings,
    edges: Float[Array, "labels edges"] | None = None,
    rows: Int[Array, " rows"] | None = None,
    count: int | Int[Array, ""] | None = None,
) -> Stars:
    """The stars of batch `step` on the grid `wave` [Å]; "online" varies them, "paper" leaves them as they are.

    With `edges` half of them share a bin of a label with one of the others (`sources.paired_indices`).

    Args:
      rows, count: only the first `count` of these rows of the survey are drawn; None = all.
    """
    order_key, fresh_key = jax.random.split(key)
    if count is None:
        count = survey.flux.shape[0] if rows is None else rows.shape[0]
    if edges is None:
        stars = stream_indices(order_key, step, count, batch)
    else:
        labels = survey.labels if rows is None else survey.labels[rows]
        stars = paired_indices(order_key, step, bin_index(labels, edges), batch, count=count)
    draw = draw_survey(survey, stars if rows is None else rows[stars])
    if not settings.changes_stars:
        return draw
    fresh_key = jax.random.fold_in(fresh_key, step)
    sigma_key, noise_key, effects_key = jax.random.split(fresh_key, 3)
    sigma = draw_noise_levels(sigma_key, batch, settings)
    return vary(effects_key, draw, jax.random.split(noise_key, batch), sigma, wave, settings)
