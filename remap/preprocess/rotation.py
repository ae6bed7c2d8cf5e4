"""Rotation and macroturbulence: of one spectrum, and of a library, where v sin i becomes one more label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from remap.spectra import SPEED_OF_LIGHT, Spectra, make_spectra

_LIMB_DARKENING = 0.6  # of the rotation profile; typical of the visible
_END = 20  # pixels whose median says where a spectrum ends


def rotate(spectra: Spectra, vsini: Sequence[float]) -> Spectra:
    """Every spectrum at every projected rotational velocity.

    Linear limb darkening of 0.6, as in `broaden` (Gray, eq. 18.14). A straight line
    between the ends, which rotation does not change, is taken out before, since the transform is periodic.

    Args:
      spectra: S spectra without rotation.
      vsini: V velocities, km/s; 0 leaves a spectrum as it is.

    Returns:
      S·V spectra, velocity fastest, with the label `vsini` [km/s]; pixels within v sin i of either end, and
      within it of an invalid pixel, are invalid. Inverse variances are not kept.

    Raises:
      ValueError: no velocity, or one that is negative or not finite.
    """
    speeds = np.asarray(vsini, float)
    if speeds.size == 0 or not np.all(np.isfinite(speeds) & (speeds >= 0)):
        raise ValueError(f"vsini: expected velocities >= 0 km/s, found {tuple(vsini)}")
    wave = spectra.wave
    log_wave = np.log(wave)
    fluxes, valids = [], []
    for flux, valid in zip(spectra.flux, spectra.valid, strict=True):
        flux = flux.astype(np.float64)
        if valid.any() and not valid.all():
            flux = np.interp(wave, wave[valid], flux[valid])
        ends = np.median(flux[:_END]), np.median(flux[-_END:])
        line = np.interp(log_wave, log_wave[[0, -1]], ends)
        holes = np.flatnonzero(~valid)
        for speed in speeds:
            reach = speed / SPEED_OF_LIGHT
            turned = broaden(wave, flux - line, vsini=speed, macroturbulence=0.0, velocity=0.0) + line
            fluxes.append((turned if speed > 0 else flux).astype(spectra.flux.dtype))
            good = valid & (log_wave - log_wave[0] >= reach) & (log_wave[-1] - log_wave >= reach)
            for hole in holes:
                good &= np.abs(log_wave - log_wave[hole]) > reach
            valids.append(good)
    count = len(speeds)
    return make_spectra(
        wave,
        np.stack(fluxes),
        medium=spectra.medium,
        valid=np.stack(valids),
        names=[f"{n}, vsini {v:g}" for n in spectra.names for v in speeds],
        labels={k: np.repeat(v, count) for k, v in spectra.labels.items()}
        | {"vsini": np.tile(speeds, len(spectra))},
    )


def broaden(
    wave: np.ndarray, flux: np.ndarray, *, vsini: float, macroturbulence: float, velocity: float
) -> np.ndarray:
    """Rotation, Gaussian macroturbulence and a radial velocity, in velocity space.

    The rotation profile of Gray (eq. 18.14) has the transforms 2 J1(x)/x and 3 (sin x - x cos x)/x³, mixed by
    the limb darkening, with x = 2π f v sin i; the product with a Gaussian's transform is applied by FFT.

    Args:
      wave: float[N], Å, increasing.
      flux: float[N], normalised; the FFT is periodic, so the ends should be alike or of no interest.
      vsini, macroturbulence, velocity: km/s; macroturbulence is a Gaussian σ.

    Returns:
      float64[N] on the same wavelengths; where the shift leaves the range, the edge value.
    """
    log_wave = np.linspace(np.log(wave[0]), np.log(wave[-1]), wave.size)
    pixel = (log_wave[1] - log_wave[0]) * SPEED_OF_LIGHT  # km/s
    even = np.interp(log_wave, np.log(wave), flux)
    angular = 2 * np.pi * np.fft.rfftfreq(wave.size, pixel)
    x = np.maximum(angular * vsini, 1e-3)  # both transforms are 1 to 1e-7 below
    e = _LIMB_DARKENING
    disc = 2 * special.j1(x) / x
    dark = 3 * (np.sin(x) - x * np.cos(x)) / x**3
    kernel = ((1 - e) * disc + 2 * e / 3 * dark) / (1 - e / 3)
    kernel = kernel * np.exp(-0.5 * (angular * macroturbulence) ** 2)
    kernel[0] = 1.0
    smooth = np.fft.irfft(np.fft.rfft(even) * kernel, wave.size)
    return np.interp(np.log(wave) - velocity / SPEED_OF_LIGHT, log_wave, smooth)
