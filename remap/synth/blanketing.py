"""Weak lines that no table of a few hundred has: a haze with the physics, not the places, of real lines.

Learner 1982 (J. Phys. B 15, L891) found that in complex spectra the number of lines doubles each time that their
strength falls by four: N(> S) ∝ S^(-1/2). The line table follows that law down to about the strength of a solar
line of 0.09 Å, and below it lacks lines. They are made up here: each takes species, excitation and neighbourhood
from a line of the table, and its strength from the law. Their wavelengths are arbitrary. Therefore only the mean
of their transmission over some tens of Å is used: it blocks light as weak lines do, and depends on the labels
like them.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from remap.synth import atoms
from remap.synth.atoms import BOLTZMANN, ELEMENTS, solar_abundances
from remap.synth.lines import LineList, load_lines

_TEMPERATURE = 5500.0  # K, and
_ELECTRON_PRESSURE = 10.0  # dyn/cm²: where weak lines of the Sun form (Gray 2008, table D.1, near τ = 0.3)
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)  # steps of a sequence that fills an interval evenly, whatever its length
_STRIDE = 89  # through the table, so that neighbours in strength are not neighbours in wavelength


def line_strength(lines: LineList) -> Float[np.ndarray, " L"]:
    """log10 of gf times absorbers per H nucleus and weight in the Sun's photosphere, dimensionless."""
    electrons = _ELECTRON_PRESSURE / (BOLTZMANN * _TEMPERATURE)
    absorbers = np.asarray(
        atoms.absorbers(
            jnp.full(1, _TEMPERATURE, jnp.float32),
            jnp.full(1, electrons, jnp.float32),
            jnp.asarray(solar_abundances(), jnp.float32),
        )
    )[0]
    excitation = 5040.0 / _TEMPERATURE * lines.excitation
    return np.log10(absorbers[lines.element, lines.stage - 1]) + lines.log_gf - excitation


def add_weak_lines(
    lines: LineList, *, complete: float, decades: float, slope: float, spread: float, reach: float
) -> LineList:
    """The line list with made-up weak lines added, the same ones at every call.

    Args:
      lines: a list of real lines.
      complete: strength (see `line_strength`) above which it has all lines; those of H do not count.
      decades: how many powers of ten the made-up lines reach below that. The law's total opacity converges: a
        share 1 - 10^(-decades (1 - slope)) of it is there.
      slope: N(> S) ∝ S^(-slope); Learner's law has 1/2.
      spread: greatest distance of a line from the one that it was made from, Å.
      reach: as in `LineList`, Å.

    Returns:
      The list in order of wavelength. In each step of 0.1 in strength as many lines are added as the law has more
      than the table.

    Raises:
      ValueError: no line is stronger than `complete`.
    """
    metal = np.flatnonzero(lines.element != ELEMENTS.index("H"))
    strength = line_strength(lines)[metal]
    count = int(np.sum(strength > complete))
    if count == 0:
        raise ValueError(f"expected lines of a strength above {complete:g}, found at most {strength.max():g}")
    edges = np.linspace(0.0, decades, round(decades / 0.1) + 1)
    wanted = count * 10.0 ** (slope * edges) - count
    there = np.array([np.sum((strength <= complete) & (strength > complete - e)) for e in edges])
    missing = np.rint(np.maximum.accumulate(np.maximum(wanted - there, 0.0))).astype(int)
    number = np.arange(missing[-1])
    below = np.interp(number + 0.5, missing, edges)
    parent = metal[number * _STRIDE % metal.size]
    low, high = lines.wave[metal].min(), lines.wave[metal].max()
    wave = lines.wave[parent] + spread * (2.0 * (number * _GOLDEN % 1.0) - 1.0)
    wave = np.where(wave < low, 2 * low - wave, np.where(wave > high, 2 * high - wave, wave))
    parents = LineList(*(np.asarray(a)[parent] for a in lines))
    weak = parents._replace(
        wave=wave,
        log_gf=parents.log_gf + (complete - below) - line_strength(parents),
        log_vdw=np.full(number.size, np.nan),
        reach=np.full(number.size, reach),
        haze=np.ones(number.size, bool),
    )
    together = LineList(*(np.concatenate(pair) for pair in zip(lines, weak, strict=True)))
    order = np.argsort(together.wave, kind="stable")
    return LineList(*(a[order] for a in together))


@functools.lru_cache(maxsize=1)
def default_lines() -> LineList:
    """The line table and the weak lines below it: what libraries and mock surveys are made of.

    The table follows the law (2.2 and 1.8 times as many lines per half decade) down to 10^-11.5 and not below.
    """
    return add_weak_lines(load_lines(), complete=-11.5, decades=2.0, slope=0.5, spread=25.0, reach=0.6)
