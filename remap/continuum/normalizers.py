"""Simpler continuum normalisers with the signature of `algorithm1.normalize`, and the look-up by name.

    from remap.continuum.normalizers import get_normalizer
    method = get_normalizer("chebyshev")
    result = method.normalize_batch(flux, valid, settings=method.settings(degree=4))

Names: "algorithm1" is Algorithm 1, "chebyshev" a polynomial with asymmetric clipping, "quantile" a running quantile.
How they compare is measured by `benchmarks/bench_continuum.py`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from remap.continuum._kernel import dot
from remap.continuum.algorithm1 import ContinuumSettings, normalize, normalize_batch
from remap.continuum.common import (
    Continuum,
    ContinuumFlag,
    assemble,
    check_range,
    check_spectra,
    map_spectra,
    pick_mapping,
    scale_flux,
)

WINDOWS_PER_WIDTH = 2  # windows of the running quantile overlap by half
KERNEL_SIGMA = 0.5  # of the Gaussian that joins them, in windows
MIN_IN_WINDOW = 4  # pixels


class Normalizer(NamedTuple):
    """One way to find a continuum.

    Attributes:
      settings: the class of its settings; all have defaults.
      normalize: (flux[N], valid[N], *, settings) -> Continuum.
      normalize_batch: (flux[S, N], valid[S, N], *, settings) -> Continuum with a leading axis.
    """

    settings: type
    normalize: Callable[..., Continuum]
    normalize_batch: Callable[..., Continuum]


@dataclasses.dataclass(frozen=True)
class ChebyshevSettings:
    """Of the clipped Chebyshev series.

    Attributes:
      degree: of the series.
      low: pixels more than `low` standard deviations below the fit are left out of the next one.
      high: the same above the fit; larger than `low`, since lines only point down.
      iterations: fits.
    """

    degree: int = 4
    low: float = 1.2
    high: float = 3.0
    iterations: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.degree <= 15:
            raise ValueError(f"degree must lie in 0..15, found {self.degree}")
        check_range("low", self.low, above=0)
        check_range("high", self.high, above=0)
        check_range("iterations", self.iterations, above=0)


@dataclasses.dataclass(frozen=True)
class QuantileSettings:
    """Of the running quantile.

    Attributes:
      quantile: of the valid pixels of a window, 0..1.
      width: of a window [Å]; windows overlap by half, and lines fitted to their quantiles under a Gaussian with a σ
        of half a window join them.
      pixel: width of a pixel [Å], as in `ContinuumSettings`.
    """

    quantile: float = 0.95
    width: float = 40.0
    pixel: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must lie in 0..1, found {self.quantile}")
        check_range("width", self.width, above=0)
        check_range("pixel", self.pixel, above=0)


def get_normalizer(name: str) -> Normalizer:
    """The normaliser of that name.

    Raises:
      ValueError: no such name; the message lists them.

    Examples:
      >>> import jax.numpy as jnp
      >>> method = get_normalizer("quantile")
      >>> flux = jnp.full(100, 3.0)
      >>> result = method.normalize(flux, flux > 0, settings=method.settings(width=20.0, pixel=0.5))
      >>> f"{result.flux.mean():.3f}"
      '1.000'
    """
    if name not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {sorted(NORMALIZERS)}, found {name!r}")
    return NORMALIZERS[name]


@functools.partial(jax.jit, static_argnames="settings")
def normalize_chebyshev(
    flux: Float[Array, " N"], valid: Bool[Array, " N"], *, settings: ChebyshevSettings = ChebyshevSettings()
) -> Continuum:
    """Divides one spectrum by a Chebyshev series fitted to the pixels that are not in lines.

    Fit, leave out pixels far below and (less readily) above the fit, fit again. All valid pixels are looked at
    each time, so a pixel can come back.

    Args:
      flux: float[N], any unit, float32 or float64.
      valid: bool[N], True = good.
      settings: static.

    Returns:
      As `algorithm1.normalize`; `nodes` are the continuum at degree + 1 Chebyshev points, STUCK says that the last
      fit still changed by more than 5e-3 of the largest flux, SHORT_BIN that fewer than 2 (degree + 1) pixels
      were valid or left.

    Raises:
      ValueError: as `algorithm1.normalize`.
    """
    check_spectra(flux, valid, 1)
    flux, valid = jnp.asarray(flux), jnp.asarray(valid, bool)
    z, scale, valid = scale_flux(flux, valid)
    terms = settings.degree + 1
    series = _chebyshev_series(flux.shape[0], 2 * settings.degree)
    curve_of = series[:terms].T
    total = np.add.outer(np.arange(terms), np.arange(terms))
    apart = np.abs(np.subtract.outer(np.arange(terms), np.arange(terms)))

    def fit(kept: jax.Array) -> jax.Array:
        # T_i T_j = (T_{i+j} + T_{|i-j|}) / 2: the normal equations need 2 d + 1 sums, not d² of them.
        moments = dot(series, kept.astype(z.dtype))
        normal = (moments[total] + moments[apart]) / 2
        # A trace of ridge, far below the noise, keeps the solution finite where pixels are too few.
        ridge = 10 * jnp.finfo(z.dtype).eps * (moments[0] + 1)
        return jnp.linalg.solve(
            normal + ridge * jnp.eye(terms, dtype=z.dtype), dot(series[:terms], jnp.where(kept, z, 0))
        )

    def again(_: Int[Array, ""], state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        kept, coefficients, _, short = state
        residual = z - dot(curve_of, coefficients)
        spread = jnp.sqrt(jnp.sum(jnp.where(kept, residual**2, 0)) / jnp.maximum(jnp.sum(kept), 1))
        kept_now = valid & (residual >= -settings.low * spread) & (residual <= settings.high * spread)
        few = jnp.sum(kept_now) < 2 * terms
        kept = jnp.where(few, kept, kept_now)
        new = fit(kept)
        return kept, new, jnp.max(jnp.abs(dot(curve_of, new - coefficients))), short | few

    first = fit(valid)
    state = (valid, first, jnp.zeros((), z.dtype), jnp.sum(valid) < 2 * terms)
    _, coefficients, change, short = lax.fori_loop(0, settings.iterations - 1, again, state)
    flags = int(ContinuumFlag.STUCK) * (change > 5e-3) + int(ContinuumFlag.SHORT_BIN) * short
    points = np.polynomial.chebyshev.chebpts1(terms)
    at_points = dot(np.polynomial.chebyshev.chebvander(points, settings.degree), coefficients)
    return assemble(z, scale, valid, dot(curve_of, coefficients), at_points, flags)


@functools.partial(jax.jit, static_argnames="settings")
def normalize_quantile(
    flux: Float[Array, " N"], valid: Bool[Array, " N"], *, settings: QuantileSettings = QuantileSettings()
) -> Continuum:
    """Divides one spectrum by a high quantile of its pixels in overlapping windows, joined smoothly.

    Args:
      flux: float[N], any unit, float32 or float64.
      valid: bool[N], True = good.
      settings: static.

    Returns:
      As `algorithm1.normalize`; `nodes` are the quantiles of the windows, 0 where a window has fewer than 4 valid
      pixels. Such windows set SHORT_BIN and have no weight. STUCK is never set.

    Raises:
      ValueError: as `algorithm1.normalize`.
    """
    check_spectra(flux, valid, 1)
    flux, valid = jnp.asarray(flux), jnp.asarray(valid, bool)
    z, scale, valid = scale_flux(flux, valid)
    windows = _windows(flux.shape[0], settings.width / settings.pixel)
    size = windows.pixels.shape[1]
    good = valid[windows.pixels]
    count = jnp.sum(good, axis=1, dtype=jnp.int32)
    # The quantile from above, so that only the top of each window needs to be in order.
    top = min(size, int(np.ceil((1 - settings.quantile) * (size - 1))) + 2)
    ordered = lax.top_k(jnp.where(good, z[windows.pixels], -jnp.inf), top)[0]
    place = (1 - settings.quantile) * jnp.maximum(count - 1, 0).astype(z.dtype)
    index = jnp.floor(place).astype(jnp.int32)
    upper = jnp.take_along_axis(ordered, index[:, None], axis=1)[:, 0]
    lower = jnp.take_along_axis(ordered, jnp.minimum(index + 1, top - 1)[:, None], axis=1)[:, 0]
    lower = jnp.where(jnp.isfinite(lower), lower, upper)
    enough = count >= MIN_IN_WINDOW
    nodes = jnp.where(enough, upper + (place - index) * (lower - upper), 0.0)
    # A line through the windows near each point, weighted; a mean would be biased where the flux has a slope.
    ones = enough.astype(z.dtype)
    first, second = windows.kernel * windows.away, windows.kernel * windows.away**2
    s0, s1, s2 = dot(windows.kernel, ones), dot(first, ones), dot(second, ones)
    v0, v1 = dot(windows.kernel, nodes), dot(first, nodes)
    det = s0 * s2 - s1 * s1
    line = det > 1e-4 * s0 * s0  # else too few windows near: their mean
    mean = jnp.where(s0 > 0, v0 / jnp.where(s0 > 0, s0, 1.0), jnp.max(nodes))
    at_points = jnp.where(line, (s2 * v0 - s1 * v1) / jnp.where(line, det, 1.0), mean)
    flags = int(ContinuumFlag.SHORT_BIN) * ~jnp.all(enough)
    return assemble(z, scale, valid, dot(windows.spread, at_points), nodes, flags)


def _batched(one: Callable[..., Continuum], default: Any) -> Callable[..., Continuum]:
    """The batch form of a normaliser, mapped as `algorithm1.normalize_batch` is."""

    def batch(
        flux: Float[Array, "S N"],
        valid: Bool[Array, "S N"],
        *,
        settings: Any = default,
        mapping: str | None = None,
    ) -> Continuum:
        """The normaliser for flux float[S, N] and valid bool[S, N]; see `algorithm1.normalize_batch`."""
        return map_spectra(lambda f, v: one(f, v, settings=settings), flux, valid, pick_mapping(mapping))

    return jax.jit(batch, static_argnames=("settings", "mapping"))


@functools.lru_cache(maxsize=8)
def _chebyshev_series(count: int, degree: int) -> np.ndarray:
    """float64[degree + 1, N], the polynomials at every pixel."""
    return np.ascontiguousarray(np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, count), degree).T)


class _Windows(NamedTuple):
    """Fixed arrays of the running quantile.

    Attributes:
      pixels: int[M, W], the pixels of each window.
      kernel: float64[M + 2, M], how much each window counts at the first pixel, the windows' centres and the last.
      away: float64[M + 2, M], their distance from there, in windows.
      spread: float64[N, M + 2], linear interpolation from there to every pixel.
    """

    pixels: np.ndarray
    kernel: np.ndarray
    away: np.ndarray
    spread: np.ndarray


@functools.lru_cache(maxsize=8)
def _windows(count: int, width: float) -> _Windows:
    """The windows of `width` pixels on a grid of `count`."""
    size = min(count, max(4, round(width)))
    windows = 2 + round(WINDOWS_PER_WIDTH * (count - size) / size)
    starts = np.round(np.linspace(0, count - size, windows)).astype(int)
    centres = starts + (size - 1) / 2
    points = np.concatenate([[0.0], centres, [count - 1.0]])
    away = (centres - points[:, None]) / size
    logs = -0.5 * (away / KERNEL_SIGMA) ** 2
    kernel = np.exp(logs - logs.max(axis=1, keepdims=True))
    spread = np.stack([np.interp(np.arange(count), points, unit) for unit in np.eye(len(points))], 1)
    return _Windows(starts[:, None] + np.arange(size), kernel, away, spread)


normalize_batch_chebyshev = _batched(normalize_chebyshev, ChebyshevSettings())
normalize_batch_quantile = _batched(normalize_quantile, QuantileSettings())

NORMALIZERS = {
    "algorithm1": Normalizer(ContinuumSettings, normalize, normalize_batch),
    "chebyshev": Normalizer(ChebyshevSettings, normalize_chebyshev, normalize_batch_chebyshev),
    "quantile": Normalizer(QuantileSettings, normalize_quantile, normalize_batch_quantile),
}
