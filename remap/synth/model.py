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

import dataclasses
import functools
import importlib.resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from scipy import special

LABELS = ("teff", "logg", "m_h", "vmic")
LABEL_RANGES = {  # K, dex (cgs), dex, km/s: where the physics above is defensible
    "teff": (3900.0, 7500.0),
    "logg": (0.5, 5.5),
    "m_h": (-4.0, 1.0),
    "vmic": (0.1, 10.0),
}
OFFSET_RANGE = (-2.0, 2.0)  # dex
ALPHA_ELEMENTS = ("Mg", "Si", "Ca", "Ti")  # those of the α elements that the model has
WAVE_RANGE = (4000.0, 8000.0)  # Å: no bound-free edge of H inside, H⁻ fits valid

_LOG_TAU = np.linspace(
    -5.5, 1.8, 32
)  # optical depth at 5000 Å; against 96 layers: pixels to 0.013, continuum to 1.6 %
_REFERENCE_WAVE = 5000.0
_PRESSURE_SWEEPS = 16  # hydrostatic fixed point, halved in the logarithm each sweep
_BISECTIONS = 32  # electron density: 30 e-foldings / 2^32 is below float32 resolution
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
_VOIGT_TOP += (214.382388694706425, 122.607931777104326)
_VOIGT_LOW = (1.0, 10.479857114260399, 53.992906912940207, 170.354001821091472, 348.703917719495792)
_VOIGT_LOW += (457.334478783897737, 352.730625110963558, 122.607931773875350)

BOLTZMANN = 1.380649e-16  # erg/K
_BOLTZMANN_EV = 8.617333e-5  # eV/K
_HC_OVER_K = 1.438777e8  # Å K
_LIGHT = 2.99792458e10  # cm/s
_ATOMIC_MASS = 1.66053907e-24  # g
_MASS_PER_H = 1.4 * _ATOMIC_MASS  # g per hydrogen nucleus, with He


class _Element(NamedTuple):
    """One element, with its neutral and singly ionised stage where there are two numbers."""

    abundance: float  # log10(N/H) + 12
    mass: float  # u
    ionisation: tuple[float, float]  # eV
    partition: tuple[float, float]  # U at 5000 K
    slope: tuple[float, float]  # d ln U / d ln T


# Partition functions are power laws through values near those of Gray's table D.2, good to 10-20 %.
_ELEMENTS = {
    "H": _Element(12.00, 1.008, (13.598, 1e3), (2.0, 1.0), (0.0, 0.0)),
    "C": _Element(8.43, 12.01, (11.260, 24.38), (9.3, 6.0), (0.1, 0.0)),
    "Na": _Element(6.24, 22.99, (5.139, 47.29), (2.1, 1.0), (0.15, 0.0)),
    "Mg": _Element(7.60, 24.31, (7.646, 15.04), (1.02, 2.0), (0.1, 0.0)),
    "Al": _Element(6.45, 26.98, (5.986, 18.83), (5.9, 1.0), (0.05, 0.0)),
    "Si": _Element(7.51, 28.09, (8.152, 16.35), (9.5, 5.7), (0.15, 0.05)),
    "K": _Element(5.03, 39.10, (4.341, 31.63), (2.2, 1.0), (0.2, 0.0)),
    "Ca": _Element(6.34, 40.08, (6.113, 11.87), (1.2, 2.2), (0.7, 0.25)),
    "Sc": _Element(3.15, 44.96, (6.561, 12.80), (12.0, 23.0), (0.7, 0.35)),
    "Ti": _Element(4.95, 47.87, (6.828, 13.58), (30.0, 56.0), (1.1, 0.45)),
    "V": _Element(3.93, 50.94, (6.746, 14.66), (48.0, 43.0), (0.9, 0.65)),
    "Cr": _Element(5.64, 52.00, (6.767, 16.49), (10.5, 7.2), (0.9, 0.6)),
    "Mn": _Element(5.43, 54.94, (7.434, 15.64), (6.4, 7.7), (0.3, 0.35)),
    "Fe": _Element(7.50, 55.85, (7.902, 16.19), (27.0, 43.0), (0.8, 0.45)),
    "Co": _Element(4.99, 58.93, (7.881, 17.08), (33.0, 29.0), (0.75, 0.65)),
    "Ni": _Element(6.22, 58.69, (7.640, 18.17), (30.0, 10.8), (0.45, 0.75)),
    "Y": _Element(2.21, 88.91, (6.217, 12.22), (12.0, 15.0), (0.9, 0.5)),
    "Ba": _Element(2.18, 137.33, (5.212, 10.00), (2.6, 4.2), (1.3, 0.6)),
}
ELEMENTS = tuple(_ELEMENTS)  # the order of every array over elements
_ABUNDANCE = np.array([10.0 ** (e.abundance - 12) for e in _ELEMENTS.values()])
_IONISATION = np.array([e.ionisation for e in _ELEMENTS.values()])
_PARTITION = np.array([e.partition for e in _ELEMENTS.values()])
_SLOPE = np.array([e.slope for e in _ELEMENTS.values()])
_MASS = np.array([e.mass for e in _ELEMENTS.values()])
_HYDROGEN = ELEMENTS.index("H")
_IS_METAL = np.arange(len(ELEMENTS)) != _HYDROGEN
_HELIUM = 10.0 ** (10.93 - 12)  # by number; neutral everywhere here


class LineList(NamedTuple):
    """Spectral lines, all arrays of shape [L]; made by `load_lines`. Change one with `_replace`.

    Attributes:
      wave: air wavelength, Å, float64.
      element: index of the element in the module's table; `stage` 1 = neutral, 2 = singly ionised.
      excitation: energy of the lower level, eV.
      log_gf: log10 of weight times oscillator strength. May be a traced array.
      log_vdw: log10 of the van der Waals width per H atom at 10⁴ K, rad/s cm³; NaN = Unsöld's formula.
      reach: distance from the centre at which the profile has been tapered to zero, Å.
      haze: bool, a line whose place means nothing (`remap.synth.blanketing`): its light is taken out evenly.
    """

    wave: np.ndarray
    element: np.ndarray
    stage: np.ndarray
    excitation: np.ndarray
    log_gf: np.ndarray
    log_vdw: np.ndarray
    reach: np.ndarray
    haze: np.ndarray


class Atmosphere(NamedTuple):
    """Model atmosphere; arrays of shape [D], top first: optical depth at 5000 Å, K, dyn/cm², cm⁻³, cm⁻³."""

    tau: jax.Array
    temperature: jax.Array
    pressure: jax.Array
    electron_density: jax.Array
    hydrogen_density: jax.Array  # all H nuclei


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["index", "start", "offset"],
    meta_fields=["reach", "hydrogen"],
)
@dataclasses.dataclass(frozen=True)
class _Window:
    """Lines of one reach on one wavelength grid: line numbers [n], first pixels [n], λ - λ0 in Å [n, W]."""

    index: np.ndarray
    start: np.ndarray
    offset: np.ndarray
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


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Checks labels [K, dex, dex, km/s] against `LABEL_RANGES`; call it outside jit.

    Args:
      labels: float[..., 4] in the order of `LABELS`.

    Returns:
      The same as float64.

    Raises:
      ValueError: wrong shape, or a label that is not finite or outside its range; names the label, the
        value and the range.
    """
    labels = np.asarray(labels, np.float64)
    if labels.ndim == 0 or labels.shape[-1] != len(LABELS):
        raise ValueError(
            f"labels must have shape [..., {len(LABELS)}] ({', '.join(LABELS)}), found {labels.shape}"
        )
    for i, name in enumerate(LABELS):
        low, high = LABEL_RANGES[name]
        bad = ~((labels[..., i] >= low) & (labels[..., i] <= high))
        if np.any(bad):
            value = labels[..., i][bad].flat[0]
            raise ValueError(f"{name} = {value:g} is outside the model's range [{low:g}, {high:g}]")
    return labels


def check_offsets(offsets: np.ndarray) -> np.ndarray:
    """Checks abundance offsets [X/M] [dex] against `OFFSET_RANGE`; call it outside jit.

    Args:
      offsets: float[..., E] in the order of `ELEMENTS`; that of H must be 0.

    Returns:
      The same as float64.

    Raises:
      ValueError: wrong shape, or an offset that is not finite or out of range; names element and value.
    """
    offsets = np.asarray(offsets, np.float64)
    if offsets.ndim == 0 or offsets.shape[-1] != len(ELEMENTS):
        raise ValueError(
            f"offsets must have shape [..., {len(ELEMENTS)}] ({', '.join(ELEMENTS)}), found {offsets.shape}"
        )
    for i, element in enumerate(ELEMENTS):
        low, high = OFFSET_RANGE if element != "H" else (0.0, 0.0)
        bad = ~((offsets[..., i] >= low) & (offsets[..., i] <= high))
        if np.any(bad):
            value = offsets[..., i][bad].flat[0]
            raise ValueError(f"[{element}/M] = {value:g} is outside the model's range [{low:g}, {high:g}]")
    return offsets


def element_offsets(**dex: float) -> np.ndarray:
    """Offsets float64[E] from single values, as in `element_offsets(Mg=0.3)`; the others are 0 dex.

    Raises:
      ValueError: an element that the model does not have.
    """
    unknown = sorted(set(dex) - set(ELEMENTS))
    if unknown:
        raise ValueError(f"expected elements among {', '.join(ELEMENTS)}, found {unknown[0]}")
    return np.array([dex.get(element, 0.0) for element in ELEMENTS], np.float64)


def synthesize(
    labels: jax.Array, *, lines: LineList, wave: np.ndarray, offsets: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Emergent LTE spectrum of one star; jitted, differentiable in labels, offsets and log gf; vmap-able.

    Values are monochromatic, at the wavelengths asked for: lines are 0.05 Å wide, so a coarser grid must be
    averaged over sub-pixels by the caller, as `make_library` does.

    Args:
      labels: float[4]: Teff [K], log g [cm/s²], [M/H] [dex], microturbulence [km/s]. Unchecked, because
        they may be traced: see `check_labels`.
      lines: the line list; its arrays other than `log_gf` must be concrete.
      wave: float[N], air wavelengths in Å, strictly increasing, concrete.
      offsets: float[E], abundances [X/M] in dex in the order of `ELEMENTS`, in the lines and the electron
        donors; None = all 0. Unchecked too: see `check_offsets`.

    Returns:
      flux: float32[N], divided by the true continuum.
      continuum: float32[N], true continuum at the surface, erg/s/cm²/Å.

    Raises:
      ValueError: `wave` is not 1-D, increasing and within `WAVE_RANGE`.
    """
    labels = jnp.asarray(labels, jnp.float32)
    return _synthesize(labels, _offsets(offsets), lines, _geometry(lines, wave), 1)


def synthesize_batch(
    labels: np.ndarray,
    *,
    lines: LineList,
    wave: np.ndarray,
    oversample: int,
    chunk: int,
    offsets: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Spectra of many stars as means over pixels; memory is bounded by `chunk`.

    Args:
      labels: float[S, 4] in the order of `LABELS`.
      lines: the line list.
      wave: float[N], pixel centres in Å (air), evenly spaced.
      oversample: monochromatic points per pixel; their spacing should not exceed about 0.03 Å.
      chunk: stars handed to the device before their results are fetched; at most about 1 kB per star and
        point of N·oversample.
      offsets: float[S, E], abundances [X/M] in dex in the order of `ELEMENTS`; None = all 0.

    Returns:
      flux: float32[S, N], normalised by the true continuum.
      continuum: float32[S, N], erg/s/cm²/Å.

    Raises:
      ValueError: labels or offsets out of range or unequal in number, `wave` not evenly spaced,
        `oversample` or `chunk` below 1.
    """
    labels = check_labels(np.atleast_2d(labels))
    offsets = np.zeros((len(labels), len(ELEMENTS))) if offsets is None else check_offsets(offsets)
    if offsets.shape != (len(labels), len(ELEMENTS)):
        raise ValueError(f"expected offsets of {len(labels)} stars, found an array of shape {offsets.shape}")
    wave = np.asarray(wave, np.float64)
    if oversample < 1 or chunk < 1:
        raise ValueError(f"oversample and chunk must be at least 1, found {oversample} and {chunk}")
    steps = np.diff(wave)
    if wave.ndim != 1 or wave.size < 2 or np.ptp(steps) > 1e-6 * abs(steps[0]) + 1e-9 or steps[0] <= 0:
        raise ValueError("wave must be one increasing, evenly spaced axis of at least 2 pixels")
    fine = wave[:, None] + steps[0] * ((np.arange(oversample) + 0.5) / oversample - 0.5)
    geometry = jax.device_put(_geometry(lines, fine.ravel()))
    flux = np.empty((len(labels), wave.size), np.float32)
    continuum = np.empty_like(flux)
    for first in range(0, len(labels), chunk):
        part = zip(labels[first : first + chunk], offsets[first : first + chunk], strict=True)
        running = [
            _synthesize(jnp.asarray(star, jnp.float32), _offsets(extra), lines, geometry, oversample)
            for star, extra in part
        ]
        flux[first : first + chunk], continuum[first : first + chunk] = (
            np.stack(arrays) for arrays in zip(*jax.device_get(running), strict=True)
        )
    return flux, continuum


@jax.jit
def model_atmosphere(labels: jax.Array, offsets: jax.Array | None = None) -> Atmosphere:
    """Layers of a star with the given labels, float[4] (`LABELS`; vmic is not used), and [X/M], float[E].

    T⁴ = ¾ Teff⁴ (τ + q(τ)) with q fitted to the solar atmosphere (Vernazza et al. 1981, in the form of MESA's
    "solar_Hopf": Paxton et al. 2013, ApJS 208, 4), taking τ at 5000 Å for the Rosseland depth.
    Pressure: dP/dτ = g / κ5000 (Gray, eq. 9.8), by a damped fixed point in ln P.
    """
    teff, logg = labels[0], labels[1]
    share = _abundances(labels[2], _offsets(offsets))
    tau = jnp.asarray(10.0**_LOG_TAU, jnp.float32)
    hopf = 1.0361 - 0.3134 * jnp.exp(-2.448 * tau) - 0.2959 * jnp.exp(-30.0 * tau)
    temperature = teff * (0.75 * (tau + hopf)) ** 0.25
    gravity = 10.0**logg
    width = np.log(10.0) * (_LOG_TAU[1] - _LOG_TAU[0])

    def sweep(_, log_pressure):
        pressure = jnp.exp(log_pressure)
        electrons, hydrogen = _electron_density(temperature, pressure, share)
        opacity = _continuum_opacity(
            jnp.asarray([_REFERENCE_WAVE], jnp.float32), temperature, electrons, hydrogen
        )[:, 0]
        slope = gravity * tau * (_MASS_PER_H * hydrogen / opacity)  # dP/d ln τ; κ = opacity / density
        steps = 0.5 * width * (slope[1:] + slope[:-1])
        # above the first layer P grows about as τ^(2/3), so P_1 is 1.5 times its slope
        new = 1.5 * slope[0] + jnp.concatenate([jnp.zeros(1, slope.dtype), jnp.cumsum(steps)])
        return 0.5 * (log_pressure + jnp.log(new))

    start = jnp.log(gravity * 3.0 * tau ** (2.0 / 3.0))
    pressure = jnp.exp(jax.lax.fori_loop(0, _PRESSURE_SWEEPS, sweep, start))
    electrons, hydrogen = _electron_density(temperature, pressure, share)
    return Atmosphere(tau, temperature, pressure, electrons, hydrogen)


def voigt(a: jax.Array, u: jax.Array) -> jax.Array:
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


def log_saha(temperature: jax.Array) -> jax.Array:
    """ln(n_e n_II / n_I), n_e in cm⁻³, of all elements, float[D, E], from T in K, float[D] (Gray, eq. 1.20).

    A logarithm, because in the deep layers the squares that derivatives need overflow float32.
    """
    t = temperature[:, None]
    partition = jnp.log(_partition_functions(temperature))
    thermal = np.log(4.829e15) + 1.5 * jnp.log(t)  # 2 (2π m k T / h²)^1.5
    energy = jnp.asarray(_IONISATION[None, :, 0], jnp.float32) / (_BOLTZMANN_EV * t)
    return thermal + partition[..., 1] - partition[..., 0] - energy


def absorbers(temperature: jax.Array, electrons: jax.Array, share: jax.Array) -> jax.Array:
    """Atoms and ions per H nucleus over their partition function, float[D, E, 2].

    Args:
      temperature: float[D], K.
      electrons: float[D], cm⁻³.
      share: float[E], abundances N(element)/N(H).
    """
    balance = log_saha(temperature) - jnp.log(electrons)[:, None]
    fraction = jnp.stack([jax.nn.sigmoid(-balance), jax.nn.sigmoid(balance)], axis=-1)
    return fraction / _partition_functions(temperature) * share[None, :, None]


def solar_abundances() -> np.ndarray:
    """N(element)/N(H) of the Sun, float64[E] (Asplund et al. 2009)."""
    return _ABUNDANCE.copy()


def planck(wave: jax.Array, temperature: jax.Array) -> jax.Array:
    """B_λ in erg/s/cm²/Å/sr; wave [Å] and temperature [K] must broadcast."""
    return 1.191043e27 / wave**5 / jnp.expm1(_HC_OVER_K / (wave * temperature))


class _Geometry(NamedTuple):
    """What the wavelengths fix: coarse nodes [C] in Å, weights to pixels [C, N] and lines [C, L].

    The haze has pixels of its own, [C, B·P] in B bins with their middles [B] in Å from the first wavelength;
    None without haze.
    """

    coarse: np.ndarray
    to_pixels: np.ndarray
    to_lines: np.ndarray
    windows: tuple[_Window, ...]
    distance: np.ndarray
    to_haze: np.ndarray | None
    haze_windows: tuple[_Window, ...]
    haze_middles: np.ndarray | None


def _geometry(lines: LineList, wave: np.ndarray) -> _Geometry:
    """Checks the wavelengths and places the lines on them, in float64 on the host."""
    wave = np.asarray(wave, np.float64)
    low, high = WAVE_RANGE
    if wave.ndim != 1 or wave.size < 2 or not np.all(np.diff(wave) > 0):
        raise ValueError("wave must be one strictly increasing axis of at least 2 pixels")
    if wave[0] < low or wave[-1] > high:
        raise ValueError(f"wave covers {wave[0]:g}-{wave[-1]:g} Å, outside the model's {low:g}-{high:g} Å")
    middle, half = 0.5 * (wave[0] + wave[-1]), 0.5 * (wave[-1] - wave[0])
    nodes = np.polynomial.chebyshev.chebpts1(_COARSE_NODES)

    def basis(at):  # Lagrange polynomials of the nodes: nothing is extrapolated, lines outside use the edge
        x = np.clip((at - middle) / half, -1, 1)
        transform = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, _COARSE_NODES - 1))
        return (np.polynomial.chebyshev.chebvander(x, _COARSE_NODES - 1) @ transform).T.astype(np.float32)

    haze_wave, haze_middles = _haze_bins(lines, wave)
    coarse = (middle + half * nodes).astype(np.float32)
    return _Geometry(
        coarse=coarse,
        to_pixels=basis(wave),
        to_lines=basis(lines.wave),
        windows=_windows(lines, ~lines.haze, wave),
        distance=(wave - wave[0]).astype(np.float32),
        to_haze=None if haze_wave is None else basis(haze_wave),
        haze_windows=() if haze_wave is None else _windows(lines, lines.haze, haze_wave),
        haze_middles=haze_middles,
    )


def _haze_bins(lines, wave):
    """Wavelengths [B·P] at which the haze is computed, and its bins' middles [B] from wave[0], both in Å, or None.

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


def _windows(lines, chosen, wave):
    """The pixels that each of the chosen lines touches, grouped by reach."""
    windows = []
    inside = chosen & (lines.wave + lines.reach > wave[0]) & (lines.wave - lines.reach < wave[-1])
    is_hydrogen = lines.element == _HYDROGEN
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
        windows.append(_Window(index.astype(np.int32), start.astype(np.int32), offset, reach, hydrogen))
    return tuple(windows)


def _synthesize(labels, offsets, lines, geometry, oversample):
    """`synthesize` on a prepared geometry, with means over groups of `oversample` pixels.

    Two compiled parts, so that another wavelength grid does not compile the atmosphere again.
    """
    return _spectrum(model_atmosphere(labels, offsets), labels, offsets, lines, geometry, oversample)


@functools.partial(jax.jit, static_argnames="oversample")
def _spectrum(atmosphere, labels, offsets, lines, geometry, oversample):
    """Transfer through an atmosphere: flux over continuum, and continuum, float[N / oversample] each."""
    tau, temperature = atmosphere.tau, atmosphere.temperature
    density = (atmosphere.electron_density, atmosphere.hydrogen_density)
    coarse = jnp.asarray(geometry.coarse)
    opacity = _continuum_opacity(coarse, temperature, *density)  # [D, C], cm^-1
    ratio = opacity / _continuum_opacity(jnp.asarray([_REFERENCE_WAVE], coarse.dtype), temperature, *density)
    source = planck(coarse[None, :], temperature[:, None])
    # the continuum by the same depths and angles as the lines, so that their errors cancel in the quotient
    continuum = jnp.pi * _mix(_emergent(source, _depths(ratio, tau))[None, :], geometry.to_pixels)[0]
    share = _abundances(labels[2], offsets)

    def absorbed(to_pixels, windows):
        added = _line_opacity(lines, windows, to_pixels, geometry, atmosphere, opacity, share, labels[3])
        return _emergent(_mix(source, to_pixels), _depths(_mix(ratio, to_pixels) * (1.0 + added), tau))

    flux = jnp.pi * absorbed(geometry.to_pixels, geometry.windows)
    if geometry.to_haze is not None:
        # lines at random places: their mean transmission multiplies that of the others
        clear = _mix(_emergent(source, _depths(ratio, tau))[None, :], geometry.to_haze)[0]
        haze = absorbed(geometry.to_haze, geometry.haze_windows) / clear
        middles = jnp.asarray(geometry.haze_middles)
        flux = flux * jnp.interp(
            jnp.asarray(geometry.distance), middles, haze.reshape(middles.size, -1).mean(axis=1)
        )
    pixels = (-1, oversample)
    return (flux / continuum).reshape(pixels).mean(axis=1), continuum.reshape(pixels).mean(axis=1)


def _mix(left, right):
    """Matrix product in full float32, on accelerators too."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _partition_functions(temperature):
    """U of both stages: [D, E, 2]."""
    scaled = (temperature / 5000.0)[:, None, None]
    return jnp.asarray(_PARTITION, jnp.float32)[None] * scaled ** jnp.asarray(_SLOPE, jnp.float32)[None]


def _offsets(offsets):
    """[X/M] as float32[E]."""
    return jnp.zeros(len(ELEMENTS), jnp.float32) if offsets is None else jnp.asarray(offsets, jnp.float32)


def _abundances(m_h, offsets):
    """N(element)/N(H), float[E]: solar, metals scaled by 10^([M/H] + [X/M])."""
    scale = jnp.where(_IS_METAL, 10.0 ** (m_h + offsets), 1.0)
    return jnp.asarray(_ABUNDANCE, jnp.float32) * scale


def _electron_density(temperature, pressure, share):
    """Electrons and hydrogen nuclei [cm⁻³], float[D] each, from charge and particle conservation.

    Bisection in ln n_e for n_e = n_tot q / (1 + q), q = electrons per nucleus (Gray, eq. 9.16, solved for
    n_e); a last Newton step from there makes the result differentiable (implicit function theorem).
    """
    share = share[None, :]
    nuclei = jnp.sum(share) + _HELIUM
    total = pressure / (BOLTZMANN * temperature)
    saha = log_saha(temperature)

    def residual(x, total, saha, share, nuclei):
        q = jnp.sum(share * jax.nn.sigmoid(saha - x[:, None]), axis=1) / nuclei
        return x - jnp.log(total * q / (1.0 + q))

    frozen = jax.lax.stop_gradient((total, saha, share, nuclei))

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        above = residual(middle, *frozen) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    top = jnp.log(frozen[0])
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (top - 30.0, top))
    x = jax.lax.stop_gradient(0.5 * (low + high))
    _, slope = jax.jvp(lambda y: residual(y, *frozen), (x,), (jnp.ones_like(x),))
    electrons = jnp.exp(x - residual(x, total, saha, share, nuclei) / jax.lax.stop_gradient(slope))
    return electrons, (total - electrons) / nuclei


def _continuum_opacity(wave, temperature, electrons, hydrogen):
    """Continuous absorption in cm⁻¹, float[D, C], at `wave` [Å], float[C].

    H⁻ bound-free and free-free (Gray, eqs. 8.11-8.13), H bound-free from n >= 3 and free-free (8.8, Gaunt
    factors 1), Rayleigh scattering on H (Dalgarno 1962) and electron scattering, both as if they absorbed.
    Metals act through their electrons alone: their bound-free edges lie in the ultraviolet.
    """
    w, t = wave[None, :], temperature[:, None]
    theta = 5040.0 / t
    log_theta = jnp.log10(theta)
    log_w = jnp.log10(w)
    electron_pressure = (electrons * BOLTZMANN * temperature)[:, None]
    stimulated = -jnp.expm1(-_HC_OVER_K / (w * t))

    micron = w * 1e-4
    bound_cross = 1e-1 * (  # units of 1e-17 cm²; Gray gives 1e-18 cm² in powers of Å, here of µm
        1.99654 + micron * (-1.18267e-1 + micron * (2.64243e2 + micron * (-4.40524e2 + micron * (3.23992e2
        + micron * (-1.39568e2 + micron * 2.78701e1)))))
    )  # fmt: skip
    bound = 4.158e-27 * bound_cross * theta**2.5 * 10.0 ** (0.754 * theta) * stimulated
    f0 = _polynomial(log_w, (-2.2763, -1.6850, 0.76661, -0.053346))
    f1 = _polynomial(log_w, (15.2827, -9.2846, 1.99381, -0.142631))
    f2 = _polynomial(log_w, (-197.789, 190.266, -67.9775, 10.6913, -0.625151))
    free = 10.0 ** (-26.0 + f0 + f1 * log_theta + f2 * log_theta**2)

    rydberg, log_e = 13.598, 0.434294
    levels = np.arange(3, 7)
    excitation = rydberg * (1 - 1.0 / levels**2)
    sums = sum(10.0 ** (-theta * x) / n**3 for x, n in zip(excitation, levels, strict=True))
    tail = 10.0 ** (-theta * rydberg * (1 - 1.0 / 7**2))  # n >= 7 as an integral, and free-free
    neutral_h = 1.0449e-26 * w**3 * (sums + log_e / (2 * theta * rydberg) * tail) * stimulated
    rayleigh = 5.799e-13 / w**4 * (1 + 2.452e6 / w**2 + 4.801e12 / w**4)

    neutral = (hydrogen * jax.nn.sigmoid(jnp.log(electrons) - log_saha(temperature)[:, _HYDROGEN]))[:, None]
    return (
        neutral * ((bound + free) * electron_pressure + neutral_h + rayleigh) + 6.652e-25 * electrons[:, None]
    )


def _line_opacity(lines, windows, to_pixels, geometry, atmosphere, continuum, share, vmic):
    """Sum over lines of line absorption divided by continuous absorption, float[D, N].

    l = (π e²/m c) (λ²/c) gf (n/U) e^(-χ/kT) (1 - e^(-hc/λkT)) H(a, u) / (√π Δλ_D) (Gray, eqs. 11.13, 11.45).
    """
    total = jnp.zeros((len(_LOG_TAU), to_pixels.shape[1]), jnp.float32)
    at_lines = _mix(continuum, geometry.to_lines)
    temperature, electrons = atmosphere.temperature[:, None], atmosphere.electron_density[:, None]
    fraction = absorbers(atmosphere.temperature, atmosphere.electron_density, share)
    fraction = fraction * atmosphere.hydrogen_density[:, None, None]
    for window in windows:
        i = window.index
        centre = jnp.asarray(lines.wave, jnp.float32)[i][None, :]
        element, stage = jnp.asarray(lines.element)[i], jnp.asarray(lines.stage)[i] - 1
        excitation = jnp.asarray(lines.excitation, jnp.float32)[i][None, :]
        log_gf = jnp.asarray(lines.log_gf, jnp.float32)[i][None, :]
        mass = jnp.asarray(_MASS, jnp.float32)[element][None, :] * _ATOMIC_MASS
        thermal = 2 * BOLTZMANN * temperature / mass + (1e5 * vmic) ** 2
        doppler = centre * jnp.sqrt(thermal) / _LIGHT  # Å
        stimulated = -jnp.expm1(-_HC_OVER_K / (centre * temperature))
        # π e²/(m c) = 0.02654 cm² Hz; λ² φ_λ / c with λ in Å and φ per Å leaves 1e-8 cm/Å
        strength = 0.02654 / _LIGHT * 1e-8 * centre**2 * (fraction[:, element, stage] / at_lines[:, i])
        strength = strength * 10.0 ** (log_gf - excitation / (_BOLTZMANN_EV * np.log(10.0) * temperature))
        strength = strength * stimulated  # [D, n], times a profile per Å
        damping = _damping(lines, i, centre, element, stage, excitation, atmosphere, doppler)
        field = (1.25e-9 * electrons ** (2.0 / 3.0)) * jnp.ones_like(centre)
        own = _self_broadening(temperature, atmosphere.hydrogen_density[:, None], centre)

        def add(total, line, reach=window.reach, hydrogen=window.hydrogen):
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


def _damping(lines, index, centre, element, stage, excitation, atmosphere, doppler):
    """Voigt parameter a, float[D, n]: classical natural width plus van der Waals broadening by H.

    Natural: γ = 0.2223/λ² with λ in cm (Gray, eq. 11.13). Van der Waals: the line's own width, growing as
    T^0.3, or Unsöld's formula, γ = 17 C6^0.4 v^0.6 N (Gray, eq. 11.29-11.30, whose constant of 20 holds an
    enhancement of 2.5 already), times `_VDW_ENHANCEMENT`.
    """
    temperature = atmosphere.temperature[:, None]
    hydrogen = atmosphere.hydrogen_density[:, None]
    natural = 0.2223e16 / centre**2
    log_vdw = jnp.asarray(lines.log_vdw, jnp.float32)[index][None, :]
    own = hydrogen * 10.0 ** jnp.nan_to_num(log_vdw) * (temperature / 1e4) ** 0.3
    limit = jnp.asarray(_IONISATION, jnp.float32)[element, stage][None, :]
    upper = jnp.maximum(limit - excitation - 12398.42 / centre, 0.5)
    log_c6 = -30.5229 + jnp.log10(1.0 / upper**2 - 1.0 / (limit - excitation) ** 2)
    pressure = hydrogen * BOLTZMANN * temperature
    unsold = _VDW_ENHANCEMENT * 10.0 ** (19.59 + 0.4 * log_c6 - 0.7 * jnp.log10(temperature)) * pressure
    gamma = natural + jnp.where(jnp.isnan(log_vdw), unsold, own)
    return gamma * centre**2 * 1e-8 / (4 * np.pi * _LIGHT * doppler)


def _self_broadening(temperature, hydrogen, wave):
    """Half width of Hβ by collisions with neutral H in Å, float[D, n].

    w = (4/π)^(α/2) Γ(2 - α/2) v0 σ (v/v0)^(1-α) N with σ = 2320 a0², α = 0.455, v0 = 10⁶ cm/s and v the mean
    relative velocity (Barklem, Piskunov & O'Mara 2000, A&A 363, 1091). All H counts as neutral.
    """
    cross, alpha, reference = 2320 * 2.800285e-17, 0.455, 1e6
    velocity = jnp.sqrt(8 * BOLTZMANN * temperature / (np.pi * 0.504 * _ATOMIC_MASS))
    factor = (4 / np.pi) ** (0.5 * alpha) * special.gamma(2 - 0.5 * alpha) * reference * cross
    half = factor * (velocity / reference) ** (1 - alpha) * hydrogen  # rad/s
    return half * wave**2 * 1e-8 / (2 * np.pi * _LIGHT)


def _stark_profile(offset, doppler, field, own):
    """Hβ profile times its Doppler width, float[D, W]: quasi-static wings and a Gaussian core of unit area.

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


def _depths(opacity, tau):
    """Monochromatic optical depths [D, N] from opacities relative to 5000 Å, by trapezoids in ln τ."""
    return _mix(_TRAPEZOIDS, opacity * tau[:, None])


def _emergent(source, depth):
    """Emergent flux over π, float[N], of sources [D, N] at optical depths [D, N].

    F/π = S(0) + ∫ 2 E3(t) dS (Gray, eq. 7.9 integrated by parts), trapezoids in S; 2 E3(t) = ∫ 2µ e^(-t/µ) dµ
    by a three-point Gauss rule with weight 2µ.
    """
    nodes, weights = _MU
    escape = sum(w * jnp.exp(-depth / m) for m, w in zip(nodes, weights, strict=True))
    steps = source[1:] - source[:-1]
    return source[0] + 0.5 * jnp.sum(steps * (escape[1:] + escape[:-1]), axis=0)


def _polynomial(x, coefficients):
    """Polynomial with rising powers."""
    return functools.reduce(lambda s, c: s * x + c, reversed(coefficients[:-1]), coefficients[-1])


def _real_polynomial(a, u, coefficients):
    """Real and imaginary part (the latter with its sign turned) of a polynomial at z = a - iu.

    Falling powers, real coefficients: Knuth's recurrence (TAOCP 2, sec. 4.6.4), half the products of complex
    arithmetic.
    """
    double, square = 2 * a, a**2 + u**2
    first, second = jnp.full_like(u, coefficients[0]), jnp.full_like(u, coefficients[1])
    for c in coefficients[2:]:
        first, second = second + double * first, c - square * first
    return a * first + second, u * first


def _angle_rule():
    """Three nodes and weights on (0, 1) for the weight 2µ."""
    nodes, weights = special.roots_sh_jacobi(3, 2.0, 2.0)
    return tuple(nodes.tolist()), tuple((weights / weights.sum()).tolist())


def _trapezoids():
    """[D, D] that turns dt/d ln τ at the layers into t there, with t = dt/d ln τ at the top."""
    step = np.log(10.0) * (_LOG_TAU[1] - _LOG_TAU[0])
    matrix = step * (np.tri(len(_LOG_TAU)) - 0.5 * np.eye(len(_LOG_TAU)))
    matrix[:, 0] = 1.0 + 0.5 * step
    matrix[0, 0] = 1.0
    return matrix.astype(np.float32)


_MU = _angle_rule()
_TRAPEZOIDS = _trapezoids()
