"""Continuum normalisation: Algorithm 1 of deep-REMAP, jitted, for one spectrum or many.

The continuum starts far above the spectrum, as a curve through a few nodes, and every node is lowered in steps
of a tenth of a per cent until a few pixels of its bin reach the curve; then again with more nodes, from 2 to 11.
A polynomial through the last nodes, smoothed, is the continuum.

Read literally, the paper's lines 5 and 8 contradict its line 1 and the loop does not end. What is computed here
keeps its intent and always ends: a node is lowered while fewer than `exceed` valid pixels of its bin lie at or
above the continuum, all such nodes at once.

    from remap.continuum import ContinuumSettings, normalize
    result = normalize(flux, valid, settings=ContinuumSettings(pixel=0.1))

Flux may have any unit and scale; pixels that are masked or not finite have no influence.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from remap import _continuum_kernel as kernel

MIN_PIXELS = 44  # eleven bins of four pixels


class ContinuumFlag(enum.IntFlag):
    """Bits of `Continuum.flags`; 0 is a spectrum without trouble.

    STUCK: a node was lowered as often as is allowed: its bin has fewer than `exceed` pixels near the continuum.
    SHORT_BIN: a bin has fewer than `exceed` valid pixels with positive flux; bins with none are interpolated.
    NOT_POSITIVE: the continuum is zero or negative somewhere; the normalised flux is 1 there.
    NO_SIGNAL: no valid pixel has positive flux, or a number left the range of the type. Flux and continuum are
      1 everywhere, the nodes 0; no other bit is set.
    """

    STUCK = 1
    SHORT_BIN = 2
    NOT_POSITIVE = 4
    NO_SIGNAL = 8


@dataclasses.dataclass(frozen=True)
class ContinuumSettings:
    """Everything that Algorithm 1 leaves to its user. Hashable, so a static argument of jit.

    Attributes:
      exceed: a, how many pixels of each bin end at or above the continuum (line 1; the paper gives no number).
        None: 5 % of the pixels of a bin of the last stage, round(0.05 · N / 11), at least 2 (20 at N = 4300).
      snr: an assumed signal-to-noise ratio per pixel, in place of `exceed`: a = round(5 · (N / 11) / snr), at
        least 2, which leaves no bias on F and G stars of that ratio. Both None is the same as 100.
      ratio: r, what a node is multiplied by in one step (line 9).
      bins: bin counts v of the stages, increasing (line 3).
      relift: what nodes are multiplied by when a stage begins, so that they can come to rest higher than the
        coarser stage left them. 1.0 is what the paper's text says: nodes can only fall, and the continuum ends
        lower. Decided: 1.05.
      max_steps: K, steps that a node may fall in one stage. Decided: 9206, a factor of 1e-4; the paper has no
        limit.
      degree: of the final polynomial (line 20).
      sigma: of the final Gaussian [Å]. The paper's 150 (line 22) is in pixels of 0.1 Å.
      pixel: width of a pixel [Å]; on a grid that is not linear, `pixel_width(wave)` of it.
    """

    exceed: int | None = None
    snr: float | None = None
    ratio: float = 0.999
    bins: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    relift: float = 1.05
    max_steps: int = 9206
    degree: int = 6
    sigma: float = 15.0
    pixel: float = 0.1

    def __post_init__(self) -> None:
        if self.exceed is not None and self.snr is not None:
            raise ValueError("give exceed or snr, not both")
        if self.exceed is not None and self.exceed < 1:
            raise ValueError(f"exceed must be at least 1, found {self.exceed}")
        if self.snr is not None and not 0 < self.snr < math.inf:
            raise ValueError(f"snr must be positive and finite, found {self.snr}")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, found {self.ratio}")
        if (
            not isinstance(self.bins, tuple)
            or list(self.bins) != sorted(set(self.bins))
            or min(self.bins) < 2
        ):
            raise ValueError(f"bins must be a tuple of increasing counts of at least 2, found {self.bins}")
        if not 1 <= self.relift < math.inf:
            raise ValueError(f"relift must be at least 1, found {self.relift}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {self.max_steps}")
        if not 0 <= self.degree < self.bins[-1]:
            raise ValueError(
                f"degree must lie in 0..{self.bins[-1] - 1} for {self.bins[-1]} nodes, found {self.degree}"
            )
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be finite and not negative, found {self.sigma} Å")
        if not 0 < self.pixel < math.inf:
            raise ValueError(f"pixel must be positive and finite, found {self.pixel} Å")

    def exceed_for(self, count: int) -> int:
        """a for spectra of `count` pixels."""
        if self.exceed is not None:
            return self.exceed
        share = 0.05 if self.snr is None else 5.0 / self.snr
        return max(2, round(share * count / self.bins[-1]))


class Continuum(NamedTuple):
    """Normalised spectra; a batch has a leading axis [S] on every field.

    Attributes:
      flux: float[N], flux over continuum; exactly 1 at invalid pixels and where the continuum is not positive.
      continuum: float[N], in the unit of the flux.
      nodes: float[M], the numbers that the continuum was made from, in the unit of the flux: for Algorithm 1 the
        nodes of the last stage, M = bins[-1].
      flags: int32[], bits of `ContinuumFlag`.
    """

    flux: jax.Array
    continuum: jax.Array
    nodes: jax.Array
    flags: jax.Array


def pixel_width(wave: np.ndarray) -> float:
    """The median width of a pixel [Å] of the grid `wave` float[N] [Å], which may be logarithmic."""
    return float(np.median(np.diff(np.asarray(wave, np.float64))))


@functools.partial(jax.jit, static_argnames="settings")
def normalize(
    flux: jax.Array, valid: jax.Array, *, settings: ContinuumSettings = ContinuumSettings()
) -> Continuum:
    """Divides one spectrum by its continuum (Algorithm 1). Pure; may be jitted and vmapped.

    Args:
      flux: float[N], any unit, float32 or float64. Pixels that are not finite are invalid; zero and negative ones
        are valid but hold nothing up.
      valid: bool[N], True = good.
      settings: static.

    Returns:
      Finite values only, whatever goes in; look at `flags`.

    Raises:
      ValueError: N < 44, or shapes that do not agree.
    """
    check_shapes(flux, valid, 1)
    flux, valid = jnp.asarray(flux), jnp.asarray(valid, bool)
    count = flux.shape[0]
    z, scale, valid = scale_flux(flux, valid)
    found = kernel.descend(
        jnp.where(valid, z, -jnp.inf),
        exceed=settings.exceed_for(count),
        ratio=settings.ratio,
        bins=settings.bins,
        relift=settings.relift,
        max_steps=settings.max_steps,
    )
    final = kernel.final_matrix(count, settings.bins[-1], settings.degree, settings.sigma / settings.pixel)
    curve = jnp.dot(jnp.asarray(final, flux.dtype), found.nodes, precision=lax.Precision.HIGHEST)
    flags = ContinuumFlag.STUCK * found.stuck + ContinuumFlag.SHORT_BIN * found.short
    return assemble(z, scale, valid, curve, found.nodes, flags)


@functools.partial(jax.jit, static_argnames=("settings",))
def normalize_batch(
    flux: jax.Array, valid: jax.Array, *, settings: ContinuumSettings = ContinuumSettings()
) -> Continuum:
    """`normalize` for float[S, N] flux and bool[S, N] valid; memory beyond input and output does not grow with S."""
    check_shapes(flux, valid, 2)
    return lax.map(lambda pair: normalize(*pair, settings=settings), (flux, valid))


def check_shapes(flux: jax.Array, valid: jax.Array, ndim: int) -> None:
    """Raises ValueError unless both are [N] or [S, N] with at least 44 pixels and the flux is floating."""
    if jnp.ndim(flux) != ndim or jnp.shape(flux) != jnp.shape(valid):
        shape = "[N]" if ndim == 1 else "[S, N]"
        raise ValueError(
            f"flux and valid must both be {shape}, found {jnp.shape(flux)} and {jnp.shape(valid)}"
        )
    if jnp.shape(flux)[-1] < MIN_PIXELS:
        raise ValueError(f"at least {MIN_PIXELS} pixels are needed, found {jnp.shape(flux)[-1]}")
    if not jnp.issubdtype(jnp.result_type(flux), jnp.floating):
        raise ValueError(f"flux must be floating, found {jnp.result_type(flux)}")


def scale_flux(flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Flux float[N] over its largest valid value (0 at invalid pixels), that value (0 if not usable), new valid."""
    valid = valid & jnp.isfinite(flux)
    largest = jnp.max(jnp.where(valid, flux, 0.0))
    scale = jnp.where(largest >= jnp.finfo(flux.dtype).tiny, largest, 0.0)
    z = jnp.where(valid, flux, 0.0) / jnp.where(scale > 0, scale, 1.0)
    valid = valid & jnp.isfinite(z) & (scale > 0)
    return jnp.where(valid, z, 0.0), scale, valid


def assemble(
    z: jax.Array, scale: jax.Array, valid: jax.Array, curve: jax.Array, nodes: jax.Array, flags: jax.Array
) -> Continuum:
    """The result, in the unit of the flux, from scaled flux, continuum and nodes; no NaN or infinity passes."""
    continuum, nodes = curve * scale, nodes * scale
    usable = (scale > 0) & jnp.all(jnp.isfinite(continuum)) & jnp.all(jnp.isfinite(nodes))
    positive = curve > 0
    flags = flags + ContinuumFlag.NOT_POSITIVE * ~jnp.all(positive)
    x = z / jnp.where(positive, curve, 1.0)
    return Continuum(
        flux=jnp.where(usable & valid & positive & jnp.isfinite(x), x, 1.0),
        continuum=jnp.where(usable, continuum, 1.0),
        nodes=jnp.where(usable, nodes, 0.0),
        flags=jnp.where(usable, flags, ContinuumFlag.NO_SIGNAL).astype(jnp.int32),
    )
