"""The layers of a star: temperature, pressure and electrons from a scaled solar T(τ); continuous opacity."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from remap.synth.atoms import (
    BOLTZMANN,
    HC_OVER_K,
    HELIUM,
    HYDROGEN,
    MASS_PER_H,
    filled_offsets,
    log_saha,
    scaled_abundances,
)

LOG_TAU = np.linspace(
    -5.5, 1.8, 32
)  # optical depth at 5000 Å; against 96 layers: pixels to 0.013, continuum to 1.6 %

REFERENCE_WAVE = 5000.0
_PRESSURE_SWEEPS = 16  # hydrostatic fixed point, halved in the logarithm each sweep
_BISECTIONS = 32  # electron density: 30 e-foldings / 2^32 is below float32 resolution


class Atmosphere(NamedTuple):
    """Model atmosphere of D layers, top first."""

    tau: Float[Array, " D"]  # optical depth at 5000 Å
    temperature: Float[Array, " D"]  # K
    pressure: Float[Array, " D"]  # dyn/cm²
    electron_density: Float[Array, " D"]  # cm⁻³
    hydrogen_density: Float[Array, " D"]  # all H nuclei, cm⁻³


@jax.jit
def model_atmosphere(labels: Float[Array, " 4"], offsets: Float[Array, " E"] | None = None) -> Atmosphere:
    """Layers of a star with the given labels, float[4] (`LABELS`; vmic is not used), and [X/M], float[E].

    T⁴ = ¾ Teff⁴ (τ + q(τ)) with q fitted to the solar atmosphere (Vernazza et al. 1981, in the form of MESA's
    "solar_Hopf": Paxton et al. 2013, ApJS 208, 4), taking τ at 5000 Å for the Rosseland depth.
    Pressure: dP/dτ = g / κ5000 (Gray, eq. 9.8), by a damped fixed point in ln P.
    """
    teff, logg = labels[0], labels[1]
    share = scaled_abundances(labels[2], filled_offsets(offsets))
    tau = jnp.asarray(10.0**LOG_TAU, jnp.float32)
    hopf = 1.0361 - 0.3134 * jnp.exp(-2.448 * tau) - 0.2959 * jnp.exp(-30.0 * tau)
    temperature = teff * (0.75 * (tau + hopf)) ** 0.25
    gravity = 10.0**logg
    width = np.log(10.0) * (LOG_TAU[1] - LOG_TAU[0])

    def sweep(_: Int[Array, ""], log_pressure: Float[Array, " D"]) -> Float[Array, " D"]:
        pressure = jnp.exp(log_pressure)
        electrons, hydrogen = _electron_density(temperature, pressure, share)
        opacity = continuum_opacity(
            jnp.asarray([REFERENCE_WAVE], jnp.float32), temperature, electrons, hydrogen
        )[:, 0]
        slope = gravity * tau * (MASS_PER_H * hydrogen / opacity)  # dP/d ln τ; κ = opacity / density
        steps = 0.5 * width * (slope[1:] + slope[:-1])
        # above the first layer P grows about as τ^(2/3), so P_1 is 1.5 times its slope
        new = 1.5 * slope[0] + jnp.concatenate([jnp.zeros(1, slope.dtype), jnp.cumsum(steps)])
        return 0.5 * (log_pressure + jnp.log(new))

    start = jnp.log(gravity * 3.0 * tau ** (2.0 / 3.0))
    pressure = jnp.exp(jax.lax.fori_loop(0, _PRESSURE_SWEEPS, sweep, start))
    electrons, hydrogen = _electron_density(temperature, pressure, share)
    return Atmosphere(tau, temperature, pressure, electrons, hydrogen)


def _electron_density(
    temperature: Float[Array, " D"], pressure: Float[Array, " D"], share: Float[Array, " E"]
) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """Electrons and hydrogen nuclei, cm⁻³, from charge and particle conservation.

    Bisection in ln n_e for n_e = n_tot q / (1 + q), q = electrons per nucleus (Gray, eq. 9.16, solved for
    n_e); a last Newton step from there makes the result differentiable (implicit function theorem).
    """
    share = share[None, :]
    nuclei = jnp.sum(share) + HELIUM
    total = pressure / (BOLTZMANN * temperature)
    saha = log_saha(temperature)

    def residual(
        x: Float[Array, " D"],
        total: Float[Array, " D"],
        saha: Float[Array, "D E"],
        share: Float[Array, "1 E"],
        nuclei: Float[Array, ""],
    ) -> Float[Array, " D"]:
        q = jnp.sum(share * jax.nn.sigmoid(saha - x[:, None]), axis=1) / nuclei
        return x - jnp.log(total * q / (1.0 + q))

    frozen = jax.lax.stop_gradient((total, saha, share, nuclei))

    def halve(
        _: Int[Array, ""], bounds: tuple[Float[Array, " D"], Float[Array, " D"]]
    ) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
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


def continuum_opacity(
    wave: Float[Array, " C"],
    temperature: Float[Array, " D"],
    electrons: Float[Array, " D"],
    hydrogen: Float[Array, " D"],
) -> Float[Array, "D C"]:
    """Continuous absorption in cm⁻¹ at `wave`, Å, from temperature, K, and particles, cm⁻³.

    H⁻ bound-free and free-free (Gray, eqs. 8.11-8.13), H bound-free from n >= 3 and free-free (8.8, Gaunt
    factors 1), Rayleigh scattering on H (Dalgarno 1962) and electron scattering, both as if they absorbed.
    Metals act through their electrons alone: their bound-free edges lie in the ultraviolet.
    """
    w, t = wave[None, :], temperature[:, None]
    theta = 5040.0 / t
    log_theta = jnp.log10(theta)
    log_w = jnp.log10(w)
    electron_pressure = (electrons * BOLTZMANN * temperature)[:, None]
    stimulated = -jnp.expm1(-HC_OVER_K / (w * t))

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

    neutral = (hydrogen * jax.nn.sigmoid(jnp.log(electrons) - log_saha(temperature)[:, HYDROGEN]))[:, None]
    return (
        neutral * ((bound + free) * electron_pressure + neutral_h + rayleigh) + 6.652e-25 * electrons[:, None]
    )


def _polynomial(x: Float[Array, "*S"], coefficients: Sequence[float]) -> Float[Array, "*S"]:
    """Polynomial with rising powers."""
    return functools.reduce(lambda s, c: s * x + c, reversed(coefficients[:-1]), coefficients[-1])
