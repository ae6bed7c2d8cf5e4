"""LTE spectra of FGK stars from a scaled solar atmosphere: pure functions of four labels.

The model is small and physical, not accurate: plane-parallel layers with a solar T(τ) scaled by Teff,
hydrostatic equilibrium with electrons from H and the metals, H⁻ opacity, Saha-Boltzmann populations, Voigt
profiles, and a haze of weak lines. It has no molecules, no convection and no departures from LTE. Everything is
in cgs units with energies in eV and wavelengths in Å (air) unless a name says otherwise; arrays over the
atmosphere have the layers as their first axis, from the top down.

Sources: Gray 2008, "The Observation and Analysis of Stellar Photospheres", 3rd ed. (Gray below); Asplund et
al. 2009, ARA&A 47, 481 (abundances); NIST ASD (ionisation energies); others at the functions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from remap.config import ConfigError
from remap.synth.atmosphere import (
    LOG_TAU,
    REFERENCE_WAVE,
    Atmosphere,
    continuum_opacity,
    model_atmosphere,
)
from remap.synth.atoms import (
    ELEMENTS,
    check_labels,
    check_offsets,
    filled_offsets,
    mix_layers,
    planck,
    scaled_abundances,
)
from remap.synth.lines import Geometry, LineList, Window, line_geometry, line_opacity


def synthesize(
    labels: Float[Array | np.ndarray, " 4"],
    *,
    lines: LineList,
    wave: Float[np.ndarray, " N"],
    offsets: Float[Array | np.ndarray, " E"] | None = None,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Emergent LTE spectrum of one star; jitted, differentiable in labels, offsets and log gf; vmap-able.

    Values are monochromatic, at the wavelengths asked for: lines are 0.05 Å wide, so a coarser grid must be
    averaged over sub-pixels by the caller, as `make_library` does.

    Args:
      labels: Teff [K], log g [cm/s²], [M/H] in dex, microturbulence [km/s]. Unchecked, because
        they may be traced: see `check_labels`.
      lines: the line list; its arrays other than `log_gf` must be concrete.
      wave: air wavelengths in Å, strictly increasing, concrete.
      offsets: abundances [X/M] in dex in the order of `ELEMENTS`, in the lines and the electron
        donors; None = all 0. Unchecked too: see `check_offsets`.

    Returns:
      flux: divided by the true continuum, float32.
      continuum: true continuum at the surface, erg/s/cm²/Å.

    Raises:
      ValueError: `wave` is not 1-D, increasing and within `WAVE_RANGE`.
    """
    labels = jnp.asarray(labels, jnp.float32)
    return _synthesize(labels, filled_offsets(offsets), lines, line_geometry(lines, wave), 1)


def synthesize_batch(
    labels: Float[np.ndarray, "stars labels"],
    *,
    lines: LineList,
    wave: Float[np.ndarray, " N"],
    oversample: int,
    chunk: int,
    offsets: Float[np.ndarray, "stars_of_offsets E"] | None = None,
) -> tuple[Float[np.ndarray, "stars N"], Float[np.ndarray, "stars N"]]:
    """Spectra of many stars as means over pixels; memory is bounded by `chunk`.

    Args:
      labels: in the order of `LABELS`.
      lines: the line list.
      wave: pixel centres in Å (air), evenly spaced.
      oversample: monochromatic points per pixel; their spacing should not exceed about 0.03 Å.
      chunk: stars handed to the device before their results are fetched; at most about 1 kB per star and
        point of N·oversample.
      offsets: abundances [X/M] in dex in the order of `ELEMENTS`; None = all 0.

    Returns:
      flux: normalised by the true continuum, float32.
      continuum: float32, erg/s/cm²/Å.

    Raises:
      ValueError: labels or offsets out of range or unequal in number, `wave` not evenly spaced,
        `oversample` or `chunk` below 1.
    """
    labels = check_labels(np.atleast_2d(labels))
    offsets = np.zeros((len(labels), len(ELEMENTS))) if offsets is None else check_offsets(offsets)
    if offsets.shape != (len(labels), len(ELEMENTS)):
        raise ConfigError(f"expected offsets of {len(labels)} stars, found an array of shape {offsets.shape}")
    wave = np.asarray(wave, np.float64)
    if oversample < 1 or chunk < 1:
        raise ConfigError(f"oversample and chunk must be at least 1, found {oversample} and {chunk}")
    steps = np.diff(wave)
    if wave.ndim != 1 or wave.size < 2 or np.ptp(steps) > 1e-6 * abs(steps[0]) + 1e-9 or steps[0] <= 0:
        raise ConfigError("wave must be one increasing, evenly spaced axis of at least 2 pixels")
    fine = wave[:, None] + steps[0] * ((np.arange(oversample) + 0.5) / oversample - 0.5)
    geometry = jax.device_put(line_geometry(lines, fine.ravel()))
    flux = np.empty((len(labels), wave.size), np.float32)
    continuum = np.empty_like(flux)
    for first in range(0, len(labels), chunk):
        part = zip(labels[first : first + chunk], offsets[first : first + chunk], strict=True)
        running = [
            _synthesize(jnp.asarray(star, jnp.float32), filled_offsets(extra), lines, geometry, oversample)
            for star, extra in part
        ]
        flux[first : first + chunk], continuum[first : first + chunk] = (
            np.stack(arrays) for arrays in zip(*jax.device_get(running), strict=True)
        )
    return flux, continuum


def _synthesize(
    labels: Float[Array, " 4"],
    offsets: Float[Array, " E"],
    lines: LineList,
    geometry: Geometry,
    oversample: int,
) -> tuple[Float[Array, " pixels"], Float[Array, " pixels"]]:
    """`synthesize` on a prepared geometry, with means over groups of `oversample` pixels.

    Two compiled parts, so that another wavelength grid does not compile the atmosphere again.
    """
    return _spectrum(model_atmosphere(labels, offsets), labels, offsets, lines, geometry, oversample)


@functools.partial(jax.jit, static_argnames="oversample")
def _spectrum(
    atmosphere: Atmosphere,
    labels: Float[Array, " 4"],
    offsets: Float[Array, " E"],
    lines: LineList,
    geometry: Geometry,
    oversample: int,
) -> tuple[Float[Array, " pixels"], Float[Array, " pixels"]]:
    """Transfer through an atmosphere: flux over continuum, and continuum, means over `oversample` points."""
    tau, temperature = atmosphere.tau, atmosphere.temperature
    density = (atmosphere.electron_density, atmosphere.hydrogen_density)
    coarse = jnp.asarray(geometry.coarse)
    opacity = continuum_opacity(coarse, temperature, *density)  # [D, C], cm^-1
    ratio = opacity / continuum_opacity(jnp.asarray([REFERENCE_WAVE], coarse.dtype), temperature, *density)
    source = planck(coarse[None, :], temperature[:, None])
    # the continuum by the same depths and angles as the lines, so that their errors cancel in the quotient
    continuum = jnp.pi * mix_layers(_emergent(source, _depths(ratio, tau))[None, :], geometry.to_pixels)[0]
    share = scaled_abundances(labels[2], offsets)

    def absorbed(to_pixels: Float[Array, "C N"], windows: Sequence[Window]) -> Float[Array, " N"]:
        added = line_opacity(lines, windows, to_pixels, geometry, atmosphere, opacity, share, labels[3])
        return _emergent(
            mix_layers(source, to_pixels), _depths(mix_layers(ratio, to_pixels) * (1.0 + added), tau)
        )

    flux = jnp.pi * absorbed(geometry.to_pixels, geometry.windows)
    if geometry.to_haze is not None:
        # lines at random places: their mean transmission multiplies that of the others
        clear = mix_layers(_emergent(source, _depths(ratio, tau))[None, :], geometry.to_haze)[0]
        haze = absorbed(geometry.to_haze, geometry.haze_windows) / clear
        middles = jnp.asarray(geometry.haze_middles)
        flux = flux * jnp.interp(
            jnp.asarray(geometry.distance), middles, haze.reshape(middles.size, -1).mean(axis=1)
        )
    pixels = (-1, oversample)
    return (flux / continuum).reshape(pixels).mean(axis=1), continuum.reshape(pixels).mean(axis=1)


def _depths(opacity: Float[Array, "D N"], tau: Float[Array, " D"]) -> Float[Array, "D N"]:
    """Monochromatic optical depths from opacities relative to 5000 Å, by trapezoids in ln τ."""
    return mix_layers(_TRAPEZOIDS, opacity * tau[:, None])


def _emergent(source: Float[Array, "D N"], depth: Float[Array, "D N"]) -> Float[Array, " N"]:
    """Emergent flux over π of sources at optical depths.

    F/π = S(0) + ∫ 2 E3(t) dS (Gray, eq. 7.9 integrated by parts), trapezoids in S; 2 E3(t) = ∫ 2µ e^(-t/µ) dµ
    by a three-point Gauss rule with weight 2µ.
    """
    nodes, weights = _MU
    escape = sum(w * jnp.exp(-depth / m) for m, w in zip(nodes, weights, strict=True))
    steps = source[1:] - source[:-1]
    return source[0] + 0.5 * jnp.sum(steps * (escape[1:] + escape[:-1]), axis=0)


def _angle_rule() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Three nodes and weights on (0, 1) for the weight 2µ."""
    nodes, weights = special.roots_sh_jacobi(3, 2.0, 2.0)
    return tuple(nodes.tolist()), tuple((weights / weights.sum()).tolist())


def _trapezoids() -> Float[np.ndarray, "D D"]:
    """A matrix that turns dt/d ln τ at the layers into t there, with t = dt/d ln τ at the top."""
    step = np.log(10.0) * (LOG_TAU[1] - LOG_TAU[0])
    matrix = step * (np.tri(len(LOG_TAU)) - 0.5 * np.eye(len(LOG_TAU)))
    matrix[:, 0] = 1.0 + 0.5 * step
    matrix[0, 0] = 1.0
    return matrix.astype(np.float32)


_MU = _angle_rule()
_TRAPEZOIDS = _trapezoids()
