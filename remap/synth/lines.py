"""Line lists, and the opacity of lines on a wavelength grid."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from remap.config import ConfigError
from remap.synth.atmosphere import LOG_TAU, Atmosphere
from remap.synth.atoms import (
    ATOMIC_MASS,
    BOLTZMANN,
    BOLTZMANN_EV,
    ELEMENTS,
    HC_OVER_K,
    HYDROGEN,
    IONISATION,
    LIGHT,
    MASS,
    absorbers,
    mix_layers,
)

WAVE_RANGE = (4000.0, 8000.0)  # Å: no bound-free edge of H inside, H⁻ fits valid
_COARSE_NODES = 8  # Chebyshev nodes for continuum opacity and Planck function, which are smooth in wavelength
_HAZE_STEP = 0.08  # Å; lines are 0.1 Å wide, and only the mean over a bin is used
_HAZE_BIN = 30.0  # Å; wide enough for a dozen lines or more
_VDW_ENHANCEMENT = 2.0  # over Unsöld's formula; Barklem et al. 2000 (A&AS 142, 467) find 1.3 to 3

_VOIGT_TOP = (
    0.564189583562615,
    5.912626209773153,
    30.180142196210589,
    93.155580458138441,
    181.928533092181549,
)

_VOIGT_LOW = (1.0, 10.479857114260399, 53.992906912940207, 170.354001821091472, 348.703917719495792)
_VOIGT_TOP += (214.382388694706425, 122.607931777104326)
_VOIGT_LOW += (457.334478783897737, 352.730625110963558, 122.607931773875350)


class LineList(NamedTuple):
    """L spectral lines; made by `load_lines`. Change one with `_replace`.

    Attributes:
      wave: air wavelength, Å.
      element: index of the element in the module's table; `stage` 1 = neutral, 2 = singly ionised.
      excitation: energy of the lower level, eV.
      log_gf: log10 of weight times oscillator strength. May be a traced array.
      log_vdw: log10 of the van der Waals width per H atom at 10⁴ K, rad/s cm³; NaN = Unsöld's formula.
      reach: distance from the centre at which the profile has been tapered to zero, Å.
      haze: bool, a line whose place means nothing (`remap.synth.blanketing`): its light is taken out evenly.
    """

    wave: Float[np.ndarray, " L"]
    element: Int[np.ndarray, " L"]
    stage: Int[np.ndarray, " L"]
    excitation: Float[np.ndarray, " L"]
    log_gf: Float[np.ndarray | Array, " L"]
    log_vdw: Float[np.ndarray, " L"]
    reach: Float[np.ndarray, " L"]
    haze: Bool[np.ndarray, " L"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["index", "start", "offset"],
    meta_fields=["reach", "hydrogen"],
)
@dataclasses.dataclass(frozen=True)
class Window:
    """Lines of one reach on one wavelength grid, n of them on W pixels each."""

    index: Int[np.ndarray | Array, " n"]  # in the line list
    start: Int[np.ndarray | Array, " n"]  # first pixel
    offset: Float[np.ndarray | Array, "n W"]  # λ - λ0, Å
    reach: float  # Å
    hydrogen: bool  # Stark profile in place of Voigt's


def load_lines() -> LineList:
    """The line table of the package (`lines.ecsv`, whose header has its sources and their limits)."""
    path = importlib.resources.files("remap.synth") / "lines.ecsv"
    with importlib.resources.as_file(path) as file:
        table = Table.read(file, format="ascii.ecsv")
    return LineList(
        wave=np.array(table["wave_air"], np.float64),
        element=np.array([ELEMENTS.index(str(s)) for s in table["element"]], np.int32),
        stage=np.array(table["stage"], np.int32),
        excitation=np.array(table["excitation"], np.float64),
        log_gf=np.array(table["log_gf"], np.float64),
        log_vdw=np.array(table["log_vdw"], np.float64),
        reach=np.array(table["reach"], np.float64),
        haze=np.zeros(len(table), bool),
    )


def voigt(a: Float[Array, "*#S"], u: Float[Array, "*#S"]) -> Float[Array, "*S"]:
    """Voigt function H(a, u), with H(0, 0) = 1, for a > 0.

    Rational approximation of Hui, Armstrong & Wray 1978 (JQSRT 19, 509; p = 6), good to 1e-5 of the
    centre; its own asymptotic series beyond |u| = 20, where the polynomials would overflow float32.
    """
    a, u = jnp.broadcast_arrays(a, jnp.abs(u))
    near = jnp.minimum(u, 20.0)
    top, top_i = _real_polynomial(a, near, _VOIGT_TOP)
    low, low_i = _real_polynomial(a, near, _VOIGT_LOW)
    centre = (top * low + top_i * low_i) / (low**2 + low_i**2)
    far = jnp.maximum(u, 20.0) ** 2
    wing = a / (np.sqrt(np.pi) * (a**2 + far)) * (1 + 1.5 / far)
    return jnp.where(u < 20.0, centre, wing)


class Geometry(NamedTuple):
    """What the wavelengths fix: C coarse nodes, and weights of them for N pixels and L lines.

    The haze has H pixels of its own, in B bins; None without haze.
    """

    coarse: Float[np.ndarray | Array, " C"]  # Å
    to_pixels: Float[np.ndarray | Array, "C N"]
    to_lines: Float[np.ndarray | Array, "C L"]
    windows: tuple[Window, ...]
    distance: Float[np.ndarray | Array, " N"]  # of the pixels from the first wavelength, Å
    to_haze: Float[np.ndarray | Array, "C H"] | None
    haze_windows: tuple[Window, ...]
    haze_middles: Float[np.ndarray | Array, " B"] | None  # of the bins, from the first wavelength, Å


def line_geometry(lines: LineList, wave: Float[np.ndarray, " N"]) -> Geometry:
    """Checks the wavelengths and places the lines on them, in float64 on the host."""
    wave = np.asarray(wave, np.float64)
    low, high = WAVE_RANGE
    if wave.ndim != 1 or wave.size < 2 or not np.all(np.diff(wave) > 0):
        raise ConfigError("wave must be one strictly increasing axis of at least 2 pixels")
    if wave[0] < low or wave[-1] > high:
        raise ConfigError(f"wave covers {wave[0]:g}-{wave[-1]:g} Å, outside the model's {low:g}-{high:g} Å")
    middle, half = 0.5 * (wave[0] + wave[-1]), 0.5 * (wave[-1] - wave[0])
    nodes = np.polynomial.chebyshev.chebpts1(_COARSE_NODES)

    # Lagrange polynomials of the nodes: nothing is extrapolated, lines outside use the edge.
    def basis(at: Float[np.ndarray, " M"]) -> Float[np.ndarray, "C M"]:
        x = np.clip((at - middle) / half, -1, 1)
        transform = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, _COARSE_NODES - 1))
        return (np.polynomial.chebyshev.chebvander(x, _COARSE_NODES - 1) @ transform).T.astype(np.float32)

    haze_wave, haze_middles = _haze_bins(lines, wave)
    coarse = (middle + half * nodes).astype(np.float32)
    return Geometry(
        coarse=coarse,
        to_pixels=basis(wave),
        to_lines=basis(lines.wave),
        windows=_windows(lines, ~lines.haze, wave),
        distance=(wave - wave[0]).astype(np.float32),
        to_haze=None if haze_wave is None else basis(haze_wave),
        haze_windows=() if haze_wave is None else _windows(lines, lines.haze, haze_wave),
        haze_middles=haze_middles,
    )


def _haze_bins(
    lines: LineList, wave: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " B"]] | tuple[None, None]:
    """Wavelengths at which the haze is computed, and its bins' middles from wave[0], both in Å, or None.

    Bins lie where the made-up lines do; beyond them the last one stands for what would follow.
    """
    if not np.any(lines.haze):
        return None, None
    low = max(wave[0] - 0.5 * _HAZE_BIN, lines.wave[lines.haze].min())
    high = min(wave[-1] + 0.5 * _HAZE_BIN, lines.wave[lines.haze].max())
    if high - low < 0.5 * _HAZE_BIN:
        return None, None
    bins = max(round((high - low) / _HAZE_BIN), 1)
    points = bins * int((high - low) / bins / _HAZE_STEP)
    at = low + (np.arange(points) + 0.5) * (high - low) / points
    return at, (at.reshape(bins, -1).mean(axis=1) - wave[0]).astype(np.float32)


def _windows(
    lines: LineList, chosen: Bool[np.ndarray, " L"], wave: Float[np.ndarray, " N"]
) -> tuple[Window, ...]:
    """The pixels that each of the chosen lines touches, grouped by reach."""
    windows = []
    inside = chosen & (lines.wave + lines.reach > wave[0]) & (lines.wave - lines.reach < wave[-1])
    is_hydrogen = lines.element == HYDROGEN
    for reach, hydrogen in sorted(set(zip(lines.reach.tolist(), is_hydrogen.tolist(), strict=True))):
        index = np.flatnonzero(inside & (lines.reach == reach) & (is_hydrogen == hydrogen))
        if index.size == 0:
            continue
        first = np.searchsorted(wave, lines.wave[index] - reach)
        last = np.searchsorted(wave, lines.wave[index] + reach)
        width = max(int(np.max(last - first)), 1)
        start = np.minimum(first, wave.size - width)
        pixels = start[:, None] + np.arange(width)
        offset = (wave[pixels] - lines.wave[index, None]).astype(np.float32)
        windows.append(Window(index.astype(np.int32), start.astype(np.int32), offset, reach, hydrogen))
    return tuple(windows)


def line_opacity(
    lines: LineList,
    windows: Sequence[Window],
    to_pixels: Float[Array, "C N"],
    geometry: Geometry,
    atmosphere: Atmosphere,
    continuum: Float[Array, "D C"],
    share: Float[Array, " E"],
    vmic: Float[Array, ""],
) -> Float[Array, "D N"]:
    """Sum over lines of line absorption divided by continuous absorption.

    l = (π e²/m c) (λ²/c) gf (n/U) e^(-χ/kT) (1 - e^(-hc/λkT)) H(a, u) / (√π Δλ_D) (Gray, eqs. 11.13, 11.45).
    """
    total = jnp.zeros((len(LOG_TAU), to_pixels.shape[1]), jnp.float32)
    at_lines = mix_layers(continuum, geometry.to_lines)
    temperature, electrons = atmosphere.temperature[:, None], atmosphere.electron_density[:, None]
    fraction = absorbers(atmosphere.temperature, atmosphere.electron_density, share)
    fraction = fraction * atmosphere.hydrogen_density[:, None, None]
    for window in windows:
        i = window.index
        centre = jnp.asarray(lines.wave, jnp.float32)[i][None, :]
        element, stage = jnp.asarray(lines.element)[i], jnp.asarray(lines.stage)[i] - 1
        excitation = jnp.asarray(lines.excitation, jnp.float32)[i][None, :]
        log_gf = jnp.asarray(lines.log_gf, jnp.float32)[i][None, :]
        mass = jnp.asarray(MASS, jnp.float32)[element][None, :] * ATOMIC_MASS
        thermal = 2 * BOLTZMANN * temperature / mass + (1e5 * vmic) ** 2
        doppler = centre * jnp.sqrt(thermal) / LIGHT  # Å
        stimulated = -jnp.expm1(-HC_OVER_K / (centre * temperature))
        # π e²/(m c) = 0.02654 cm² Hz; λ² φ_λ / c with λ in Å and φ per Å leaves 1e-8 cm/Å
        strength = 0.02654 / LIGHT * 1e-8 * centre**2 * (fraction[:, element, stage] / at_lines[:, i])
        strength = strength * 10.0 ** (log_gf - excitation / (BOLTZMANN_EV * np.log(10.0) * temperature))
        strength = strength * stimulated  # [D, n], times a profile per Å
        damping = _damping(lines, i, centre, element, stage, excitation, atmosphere, doppler)
        field = (1.25e-9 * electrons ** (2.0 / 3.0)) * jnp.ones_like(centre)
        own = _self_broadening(temperature, atmosphere.hydrogen_density[:, None], centre)

        def add(
            total: Float[Array, "D N"],
            line: tuple[Array, ...],
            reach: float = window.reach,
            hydrogen: bool = window.hydrogen,
        ) -> tuple[Float[Array, "D N"], None]:
            start, offset, strength, doppler, damping, field, own = line
            width = offset.shape[0]
            offset = offset[None, :]
            taper = jnp.maximum(1.0 - (offset / reach) ** 4, 0.0)
            width_d = doppler[:, None]
            if hydrogen:
                shape = _stark_profile(offset, width_d, field[:, None], own[:, None])
            else:
                shape = voigt(damping[:, None], offset / width_d) / np.sqrt(np.pi)
            profile = strength[:, None] / width_d * taper * shape
            old = jax.lax.dynamic_slice_in_dim(total, start, width, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(total, old + profile, start, axis=1), None

        per_line = (window.start, window.offset, strength.T, doppler.T, damping.T, field.T, own.T)
        total, _ = jax.lax.scan(add, total, per_line)
    return total


def _damping(
    lines: LineList,
    index: Int[Array, " n"],
    centre: Float[Array, "1 n"],
    element: Int[Array, " n"],
    stage: Int[Array, " n"],
    excitation: Float[Array, "1 n"],
    atmosphere: Atmosphere,
    doppler: Float[Array, "D n"],
) -> Float[Array, "D n"]:
    """Voigt parameter a: classical natural width plus van der Waals broadening by H.

    Natural: γ = 0.2223/λ² with λ in cm (Gray, eq. 11.13). Van der Waals: the line's own width, growing as
    T^0.3, or Unsöld's formula, γ = 17 C6^0.4 v^0.6 N (Gray, eq. 11.29-11.30, whose constant of 20 holds an
    enhancement of 2.5 already), times `_VDW_ENHANCEMENT`.
    """
    temperature = atmosphere.temperature[:, None]
    hydrogen = atmosphere.hydrogen_density[:, None]
    natural = 0.2223e16 / centre**2
    log_vdw = jnp.asarray(lines.log_vdw, jnp.float32)[index][None, :]
    own = hydrogen * 10.0 ** jnp.nan_to_num(log_vdw) * (temperature / 1e4) ** 0.3
    limit = jnp.asarray(IONISATION, jnp.float32)[element, stage][None, :]
    upper = jnp.maximum(limit - excitation - 12398.42 / centre, 0.5)
    log_c6 = -30.5229 + jnp.log10(1.0 / upper**2 - 1.0 / (limit - excitation) ** 2)
    pressure = hydrogen * BOLTZMANN * temperature
    unsold = _VDW_ENHANCEMENT * 10.0 ** (19.59 + 0.4 * log_c6 - 0.7 * jnp.log10(temperature)) * pressure
    gamma = natural + jnp.where(jnp.isnan(log_vdw), unsold, own)
    return gamma * centre**2 * 1e-8 / (4 * np.pi * LIGHT * doppler)


def _self_broadening(
    temperature: Float[Array, "D 1"], hydrogen: Float[Array, "D 1"], wave: Float[Array, "1 n"]
) -> Float[Array, "D n"]:
    """Half width of Hβ by collisions with neutral H, Å.

    w = (4/π)^(α/2) Γ(2 - α/2) v0 σ (v/v0)^(1-α) N with σ = 2320 a0², α = 0.455, v0 = 10⁶ cm/s and v the mean
    relative velocity (Barklem, Piskunov & O'Mara 2000, A&A 363, 1091). All H counts as neutral.
    """
    cross, alpha, reference = 2320 * 2.800285e-17, 0.455, 1e6
    velocity = jnp.sqrt(8 * BOLTZMANN * temperature / (np.pi * 0.504 * ATOMIC_MASS))
    factor = (4 / np.pi) ** (0.5 * alpha) * special.gamma(2 - 0.5 * alpha) * reference * cross
    half = factor * (velocity / reference) ** (1 - alpha) * hydrogen  # rad/s
    return half * wave**2 * 1e-8 / (2 * np.pi * LIGHT)


def _stark_profile(
    offset: Float[Array, "1 W"],
    doppler: Float[Array, "D 1"],
    field: Float[Array, "D 1"],
    own: Float[Array, "D 1"],
) -> Float[Array, "D W"]:
    """Hβ profile times its Doppler width: quasi-static wings and a Gaussian core of unit area.

    Holtsmark's S(α) = C α^(-5/2), α = |Δλ|/F0 [Å per cgs], F0 = 1.25e-9 n_e^(2/3), C = 3.57e-3 for Hβ
    (Underhill & Waddell 1959), twice that for ions and electrons together (Griem 1960); flat inside the α
    that makes its area 1. Δλ² + Δλ_D² stands for Δλ² in it, and the Gaussian carries the missing area.
    Wings of collisions with H, of half width `own`, are added, and their area taken from the rest.
    """
    constant = 2 * 3.57e-3
    flat = (2.6427 * constant) ** (2.0 / 3.0)  # ∫ dx / (1 + |x|^2.5) = 2.6427
    scale = flat * field
    x2 = (offset**2 + doppler**2) / scale**2
    wings = 1.0 / (2.6427 * scale * (1.0 + x2**1.25))
    area = 1.0 / (1.0 + 1.103 * (doppler / scale) ** 1.5)  # of `wings`, exact in both limits
    core = (1.0 - area) * jnp.exp(-((offset / doppler) ** 2)) / (np.sqrt(np.pi) * doppler)
    inside2 = own**2 + doppler**2 + scale**2
    lorentz = own / (np.pi * (offset**2 + inside2))
    return ((1.0 - own / jnp.sqrt(inside2)) * (wings + core) + lorentz) * doppler


def _real_polynomial(
    a: Float[Array, "*S"], u: Float[Array, "*S"], coefficients: Sequence[float]
) -> tuple[Float[Array, "*S"], Float[Array, "*S"]]:
    """Real and imaginary part (the latter with its sign turned) of a polynomial at z = a - iu.

    Falling powers, real coefficients: Knuth's recurrence (TAOCP 2, sec. 4.6.4), half the products of complex
    arithmetic.
    """
    double, square = 2 * a, a**2 + u**2
    first, second = jnp.full_like(u, coefficients[0]), jnp.full_like(u, coefficients[1])
    for c in coefficients[2:]:
        first, second = second + double * first, c - square * first
    return a * first + second, u * first
