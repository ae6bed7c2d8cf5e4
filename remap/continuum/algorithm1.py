"""Continuum normalisation: Algorithm 1 of deep-REMAP, jitted, for one spectrum or many.

The continuum starts far above the spectrum, as a curve through a few nodes, and every node is lowered in
steps of a tenth of a per cent until a few pixels of its bin reach the curve; then again with more nodes, from
2 to 11. A polynomial through the last nodes, smoothed, is the continuum.

Read literally, the paper's lines 5 and 8 contradict its line 1 and the loop does not end. What is computed
here keeps its intent and always ends: a node is lowered while fewer than `exceed` valid pixels of its bin lie
at or above the continuum, all such nodes at once.

    from remap.continuum import ContinuumSettings, normalize
    result = normalize(flux, valid, settings=ContinuumSettings(pixel=0.1))

Flux may have any unit and scale; pixels that are masked or not finite have no influence. Every stage makes at
most v · K plain comparisons, so that no input takes more than 65 · 9206 of them with the default settings.

Other ways to find a continuum, with the same signature, and a look-up by name are in `normalizers`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap.continuum import _kernel as kernel
from remap.continuum.common import (
    MIN_PIXELS,
    Continuum,
    ContinuumFlag,
    assemble,
    check_range,
    check_spectra,
    map_spectra,
    pick_mapping,
    scale_flux,
)

PATIENCE = 4  # of one spectrum on its own; 2 to 8 are equally fast on CPU


@dataclasses.dataclass(frozen=True)
class ContinuumSettings:
    """Everything that Algorithm 1 leaves to its user. Hashable, so a static argument of jit.

    Attributes:
      exceed: a, how many pixels of each bin end at or above the continuum (line 1; the paper has no number).
        None: 5 % of the pixels of a bin of the last stage, round(0.05 · N / 11), at least 2; 20 at N = 4300.
      snr: an assumed signal-to-noise ratio per pixel, in place of `exceed`: a = round(5 · (N / 11) / snr), at
        least 2. Both None is the same as 100. The paper assumes one SNR for all its spectra, too.
      ratio: r, what a node is multiplied by in one step (line 9).
      bins: bin counts v of the stages, increasing (line 3).
      relift: what nodes are multiplied by when a stage begins, so that they can come to rest higher than the
        coarser stage left them. 1.0 is what the paper's text says: nodes can only fall. Decided: 1.05, which
        halves the bias (`benchmarks/bench_continuum.py`).
      max_steps: K, steps that a node may fall in one stage. Decided: 9206, a factor of 1e-4; the paper has no
        limit.
      degree: of the final polynomial (line 20).
      sigma: of the final Gaussian [Å]. The paper's 150 (line 22) are pixels of 0.1 Å.
      pixel: width of a pixel [Å]; for a grid that is not linear, `pixel_width(wave)` of it.

    Examples:
      >>> ContinuumSettings().exceed_for(4300)
      20
      >>> ContinuumSettings(snr=50.0, pixel=0.5).exceed_for(4300)
      39
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
        if self.snr is not None:
            check_range("snr", self.snr, above=0)
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, found {self.ratio}")
        if not isinstance(self.bins, tuple) or not self.bins or list(self.bins) != sorted(set(self.bins)):
            raise ValueError(f"bins must be a tuple of increasing counts, found {self.bins!r}")
        if self.bins[0] < 2 or self.bins[-1] > MIN_PIXELS // 4:
            raise ValueError(f"bins must lie in 2..{MIN_PIXELS // 4}, found {self.bins}")
        if not 1 <= self.relift < math.inf:
            raise ValueError(f"relift must be at least 1, found {self.relift}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {self.max_steps}")
        if not 1 <= self.degree < self.bins[-1]:
            raise ValueError(f"degree must lie in 1..{self.bins[-1] - 1}, found {self.degree}")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma must be finite and not negative, found {self.sigma} Å")
        check_range("pixel", self.pixel, above=0)

    def exceed_for(self, count: int) -> int:
        """a for spectra of `count` pixels."""
        if self.exceed is not None:
            return self.exceed
        share = 0.05 if self.snr is None else 5.0 / self.snr
        return max(2, round(share * count / self.bins[-1]))


def pixel_width(wave: np.ndarray) -> float:
    """The median width of a pixel of the grid `wave` float[N], both in Å; the grid may be logarithmic."""
    return float(np.median(np.diff(np.asarray(wave, np.float64))))


@functools.partial(jax.jit, static_argnames="settings")
def normalize(
    flux: Float[Array, " N"], valid: Bool[Array, " N"], *, settings: ContinuumSettings = ContinuumSettings()
) -> Continuum:
    """Divides one spectrum by its continuum (Algorithm 1). Pure; may be jitted and vmapped.

    Args:
      flux: float[N], any unit, float32 or float64. Pixels that are not finite are invalid; zero and negative
        ones are valid, but no continuum rests on them.
      valid: bool[N], True = good.
      settings: static.

    Returns:
      Finite values only, whatever goes in; look at `flags`.

    Raises:
      ValueError: N < 44, shapes that do not agree, another type.

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from remap.continuum import ContinuumFlag, ContinuumSettings, normalize, pixel_width
      >>> wave = np.linspace(5000, 5100, 200)
      >>> slope = 100 + 0.3 * (wave - 5050)
      >>> flux = slope * (1 - 0.5 * np.exp(-0.5 * ((wave - 5040) / 0.8) ** 2))
      >>> settings = ContinuumSettings(pixel=pixel_width(wave))
      >>> result = normalize(jnp.asarray(flux, jnp.float32), jnp.isfinite(flux), settings=settings)
      >>> bool(jnp.allclose(result.continuum, slope, rtol=3e-3)), f"{result.flux.min():.2f}"
      (True, '0.52')
      >>> ContinuumFlag(int(result.flags)) == 0
      True
    """
    return _normalize(flux, valid, settings, PATIENCE)


@functools.partial(jax.jit, static_argnames=("settings", "mapping"))
def normalize_batch(
    flux: Float[Array, "S N"],
    valid: Bool[Array, "S N"],
    *,
    settings: ContinuumSettings = ContinuumSettings(),
    mapping: str | None = None,
) -> Continuum:
    """`normalize` for many spectra, in memory that beyond input and output does not grow with their number.

    On CPU the spectra go one by one through one core: in lock-step all would wait for the slowest at every
    step. To use several cores call it from several threads, each with a part of the spectra.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      settings: static.
      mapping: "one by one", "lock-step" (1024 at a time, meant for GPU), "at once" (all of them in lock-step, also
        where their number is not known when it is traced), or None: by JAX's default backend. The integers k do
        not depend on it.

    Raises:
      ValueError: N < 44, shapes that do not agree, another type, an unknown mapping.
    """
    mapping = pick_mapping(mapping)
    patience = PATIENCE if mapping == "one by one" else 0
    return map_spectra(lambda f, v: _normalize(f, v, settings, patience), flux, valid, mapping)


def _normalize(flux: jax.Array, valid: jax.Array, settings: ContinuumSettings, patience: int) -> Continuum:
    check_spectra(flux, valid, 1)
    flux, valid = jnp.asarray(flux), jnp.asarray(valid, bool)
    z, scale, valid = scale_flux(flux, valid)
    found = kernel.descend(
        jnp.where(valid, z, -jnp.inf),
        exceed=settings.exceed_for(flux.shape[0]),
        ratio=settings.ratio,
        bins=settings.bins,
        relift=settings.relift,
        max_steps=settings.max_steps,
        patience=patience,
    )
    sigma = settings.sigma / settings.pixel
    final = kernel.final_matrix(flux.shape[0], settings.bins[-1], settings.degree, sigma)
    flags = int(ContinuumFlag.STUCK) * found.stuck + int(ContinuumFlag.SHORT_BIN) * found.short
    return assemble(z, scale, valid, kernel.dot(final, found.nodes), found.nodes, flags)
