"""The elements of the model: abundances, ionisation, populations of their levels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remap.config import ConfigError

LABELS = ("teff", "logg", "m_h", "vmic")

LABEL_RANGES = {  # K, dex (cgs), dex, km/s: where the physics above is defensible
    "teff": (3900.0, 7500.0),
    "logg": (0.5, 5.5),
    "m_h": (-4.0, 1.0),
    "vmic": (0.1, 10.0),
}

OFFSET_RANGE = (-2.0, 2.0)  # dex
ALPHA_ELEMENTS = ("Mg", "Si", "Ca", "Ti")  # those of the α elements that the model has
BOLTZMANN = 1.380649e-16  # erg/K
BOLTZMANN_EV = 8.617333e-5  # eV/K
HC_OVER_K = 1.438777e8  # Å K
LIGHT = 2.99792458e10  # cm/s
ATOMIC_MASS = 1.66053907e-24  # g
MASS_PER_H = 1.4 * ATOMIC_MASS  # g per hydrogen nucleus, with He


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
IONISATION = np.array([e.ionisation for e in _ELEMENTS.values()])
_PARTITION = np.array([e.partition for e in _ELEMENTS.values()])
_SLOPE = np.array([e.slope for e in _ELEMENTS.values()])
MASS = np.array([e.mass for e in _ELEMENTS.values()])
HYDROGEN = ELEMENTS.index("H")
_IS_METAL = np.arange(len(ELEMENTS)) != HYDROGEN
HELIUM = 10.0 ** (10.93 - 12)  # by number; neutral everywhere here


def check_labels(labels: Float[np.ndarray, "*stars labels"]) -> Float[np.ndarray, "*stars labels"]:
    """Checks labels [K, dex, dex, km/s] against `LABEL_RANGES`; call it outside jit.

    Args:
      labels: in the order of `LABELS`, of which there are 4.

    Returns:
      The same as float64.

    Raises:
      ValueError: wrong shape, or a label that is not finite or outside its range; names the label, the
        value and the range.
    """
    labels = np.asarray(labels, np.float64)
    if labels.ndim == 0 or labels.shape[-1] != len(LABELS):
        raise ConfigError(
            f"labels must have shape [..., {len(LABELS)}] ({', '.join(LABELS)}), found {labels.shape}"
        )
    for i, name in enumerate(LABELS):
        low, high = LABEL_RANGES[name]
        bad = ~((labels[..., i] >= low) & (labels[..., i] <= high))
        if np.any(bad):
            value = labels[..., i][bad].flat[0]
            raise ConfigError(f"{name} = {value:g} is outside the model's range [{low:g}, {high:g}]")
    return labels


def check_offsets(offsets: Float[np.ndarray, "*stars E"]) -> Float[np.ndarray, "*stars E"]:
    """Checks abundance offsets [X/M] in dex against `OFFSET_RANGE`; call it outside jit.

    Args:
      offsets: in the order of `ELEMENTS`; that of H must be 0.

    Returns:
      The same as float64.

    Raises:
      ValueError: wrong shape, or an offset that is not finite or out of range; names element and value.
    """
    offsets = np.asarray(offsets, np.float64)
    if offsets.ndim == 0 or offsets.shape[-1] != len(ELEMENTS):
        raise ConfigError(
            f"offsets must have shape [..., {len(ELEMENTS)}] ({', '.join(ELEMENTS)}), found {offsets.shape}"
        )
    for i, element in enumerate(ELEMENTS):
        low, high = OFFSET_RANGE if element != "H" else (0.0, 0.0)
        bad = ~((offsets[..., i] >= low) & (offsets[..., i] <= high))
        if np.any(bad):
            value = offsets[..., i][bad].flat[0]
            raise ConfigError(f"[{element}/M] = {value:g} is outside the model's range [{low:g}, {high:g}]")
    return offsets


def element_offsets(**dex: float) -> Float[np.ndarray, " E"]:
    """Offsets from single values, as in `element_offsets(Mg=0.3)`; the others are 0 dex.

    Raises:
      ValueError: an element that the model does not have.
    """
    unknown = sorted(set(dex) - set(ELEMENTS))
    if unknown:
        raise ConfigError(f"expected elements among {', '.join(ELEMENTS)}, found {unknown[0]}")
    return np.array([dex.get(element, 0.0) for element in ELEMENTS], np.float64)


def log_saha(temperature: Float[Array, " D"]) -> Float[Array, "D E"]:
    """ln(n_e n_II / n_I), n_e in cm⁻³, of all elements, from T in K (Gray, eq. 1.20).

    A logarithm, because in the deep layers the squares that derivatives need overflow float32.
    """
    t = temperature[:, None]
    partition = jnp.log(_partition_functions(temperature))
    thermal = np.log(4.829e15) + 1.5 * jnp.log(t)  # 2 (2π m k T / h²)^1.5
    energy = jnp.asarray(IONISATION[None, :, 0], jnp.float32) / (BOLTZMANN_EV * t)
    return thermal + partition[..., 1] - partition[..., 0] - energy


def absorbers(
    temperature: Float[Array, " D"], electrons: Float[Array, " D"], share: Float[Array, " E"]
) -> Float[Array, "D E 2"]:
    """Atoms and ions per H nucleus over their partition function.

    Args:
      temperature: K.
      electrons: cm⁻³.
      share: abundances N(element)/N(H).
    """
    balance = log_saha(temperature) - jnp.log(electrons)[:, None]
    fraction = jnp.stack([jax.nn.sigmoid(-balance), jax.nn.sigmoid(balance)], axis=-1)
    return fraction / _partition_functions(temperature) * share[None, :, None]


def solar_abundances() -> Float[np.ndarray, " E"]:
    """N(element)/N(H) of the Sun (Asplund et al. 2009)."""
    return _ABUNDANCE.copy()


def planck(wave: Float[Array, "*#S"], temperature: Float[Array, "*#S"]) -> Float[Array, "*S"]:
    """B_λ in erg/s/cm²/Å/sr; wave [Å] and temperature [K] must broadcast."""
    return 1.191043e27 / wave**5 / jnp.expm1(HC_OVER_K / (wave * temperature))


def mix_layers(
    left: Float[Array | np.ndarray, "rows inner"], right: Float[Array | np.ndarray, "inner columns"]
) -> Float[Array, "rows columns"]:
    """Matrix product in full float32, on accelerators too."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def _partition_functions(temperature: Float[Array, " D"]) -> Float[Array, "D E 2"]:
    """U of both stages, from T in K."""
    scaled = (temperature / 5000.0)[:, None, None]
    return jnp.asarray(_PARTITION, jnp.float32)[None] * scaled ** jnp.asarray(_SLOPE, jnp.float32)[None]


def filled_offsets(offsets: Float[Array | np.ndarray, " E"] | None) -> Float[Array, " E"]:
    """[X/M] in dex as float32; None is 0 for all."""
    return jnp.zeros(len(ELEMENTS), jnp.float32) if offsets is None else jnp.asarray(offsets, jnp.float32)


def scaled_abundances(m_h: float | Float[Array, ""], offsets: Float[Array, " E"]) -> Float[Array, " E"]:
    """N(element)/N(H): solar, metals scaled by 10^([M/H] + [X/M])."""
    scale = jnp.where(_IS_METAL, 10.0 ** (m_h + offsets), 1.0)
    return jnp.asarray(_ABUNDANCE, jnp.float32) * scale
