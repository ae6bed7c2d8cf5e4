"""What all continuum normalisers share: the result and its flags, checks, scaling, and the mapping over spectra."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

NormalizeFn = Callable[[Array, Array], Array]  # (flux[S, N], valid[S, N]) -> normalised flux[S, N]
MIN_PIXELS = 44  # eleven bins of four pixels
CHUNK = 1024  # spectra that go in lock-step where that is faster than one after the other
MAPPINGS = ("one by one", "lock-step", "at once")


class ContinuumFlag(enum.IntFlag):
    """Bits of `Continuum.flags`; 0 is a spectrum without trouble.

    STUCK: a node was lowered as often as is allowed, because its bin has fewer than `exceed` pixels anywhere
      near the continuum. For the other normalisers: the fit was still changing when it ended.
    SHORT_BIN: a bin has fewer than `exceed` valid pixels of positive flux; a bin with none takes its continuum
      from its neighbours. For the other normalisers: too few valid pixels in the whole or in a window.
    NOT_POSITIVE: the continuum is zero or negative somewhere; the normalised flux is 1 there.
    NO_SIGNAL: no valid pixel has positive flux, or a number left the range of the type. Flux and continuum
      are 1 everywhere, the nodes 0, and no other bit is set.
    """

    STUCK = 1
    SHORT_BIN = 2
    NOT_POSITIVE = 4
    NO_SIGNAL = 8


def check_range(name: str, value: float, *, above: float) -> None:
    """Raises ValueError unless the setting is finite and larger than `above`."""
    if not above < value < math.inf:
        raise ValueError(f"{name} must be finite and above {above}, found {value}")


class Continuum(NamedTuple):
    """Normalised spectra; a batch has a leading axis [S] on every field.

    Attributes:
      flux: float[N], flux over continuum; exactly 1 at invalid pixels and where the continuum is not positive.
      continuum: float[N], in the unit of the flux.
      nodes: float[M], what the continuum was made from, in the unit of the flux: for Algorithm 1 the nodes of
        the last stage, M = bins[-1].
      flags: int32[], bits of `ContinuumFlag`.
    """

    flux: Float[Array, "*S N"]
    continuum: Float[Array, "*S N"]
    nodes: Float[Array, "*S M"]
    flags: Int[Array, "*S"]


def check_spectra(flux: jax.Array, valid: jax.Array, ndim: int) -> None:
    """Raises ValueError unless both are [N] (or [S, N]) of at least 44 pixels, and flux is float32 or 64."""
    if jnp.ndim(flux) != ndim or jnp.shape(flux) != jnp.shape(valid):
        shape = "[N]" if ndim == 1 else "[S, N]"
        raise ValueError(
            f"flux and valid must both be {shape}, found {jnp.shape(flux)} and {jnp.shape(valid)}"
        )
    if jnp.shape(flux)[-1] < MIN_PIXELS:
        raise ValueError(f"at least {MIN_PIXELS} pixels are needed, found {jnp.shape(flux)[-1]}")
    if jnp.result_type(flux) not in (jnp.float32, jnp.float64):
        raise ValueError(f"flux must be float32 or float64, found {jnp.result_type(flux)}")


def pick_mapping(mapping: str | None) -> str:
    """The mapping itself, or the one for JAX's default backend."""
    if mapping is None:
        return "one by one" if jax.default_backend() == "cpu" else "lock-step"
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping must be one of {MAPPINGS}, found {mapping!r}")
    return mapping


def map_spectra(
    one: Callable[[jax.Array, jax.Array], Continuum], flux: jax.Array, valid: jax.Array, mapping: str
) -> Continuum:
    """`one` for every row of flux float[S, N] and valid bool[S, N]; see `normalize_batch`."""
    check_spectra(flux, valid, 2)
    if mapping == "at once":
        return jax.vmap(one)(flux, valid)
    chunk = None if mapping == "one by one" else min(CHUNK, max(1, flux.shape[0]))
    return lax.map(lambda pair: one(*pair), (flux, valid), batch_size=chunk)


def scale_flux(flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Flux float[N] over its largest valid value; that value, 0 if it is of no use; and what is still valid."""
    valid = valid & jnp.isfinite(flux)
    largest = jnp.max(jnp.where(valid, flux, 0.0))
    scale = jnp.where(largest >= jnp.finfo(flux.dtype).tiny, largest, 0.0)
    z = jnp.where(valid, flux, 0.0) / jnp.where(scale > 0, scale, 1.0)
    valid = valid & jnp.isfinite(z) & (scale > 0)
    return jnp.where(valid, z, 0.0), scale, valid


def assemble(
    z: jax.Array, scale: jax.Array, valid: jax.Array, curve: jax.Array, nodes: jax.Array, flags: jax.Array
) -> Continuum:
    """The result in the unit of the flux, from scaled flux, continuum and nodes; only finite values pass."""
    continuum, nodes = curve * scale, nodes * scale
    usable = (scale > 0) & jnp.all(jnp.isfinite(continuum)) & jnp.all(jnp.isfinite(nodes))
    positive = curve > 0
    flags = flags + int(ContinuumFlag.NOT_POSITIVE) * ~jnp.all(positive)
    x = z / jnp.where(positive, curve, 1.0)
    return Continuum(
        flux=jnp.where(usable & valid & positive & jnp.isfinite(x), x, 1.0),
        continuum=jnp.where(usable, continuum, 1.0),
        nodes=jnp.where(usable, nodes, 0.0),
        flags=jnp.where(usable, flags, int(ContinuumFlag.NO_SIGNAL)).astype(jnp.int32),
    )
