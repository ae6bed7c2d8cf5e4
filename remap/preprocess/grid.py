"""Spectra of library and survey on the grid of an arm, and what is asked of them there."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from remap.config import ConfigError
from remap.preprocess.cleaning import nan_median
from remap.preprocess.description import Preprocessing
from remap.preprocess.resample import LineSpread, degrade_and_resample, resample
from remap.spectra import Spectra, SpectrumError, doppler_shift, to_medium

# Å beyond the outermost pixels that degrading may look at: 4σ of any line spread below 25 Å, the shift
# between air and vacuum (1.6 Å at 5750 Å), and a spline's reach.
CROP_MARGIN = 50.0
FEWEST_PIXELS = 4  # that a cubic spline takes
BLOCK = 1024  # rows that are looked at together


def needed_range(preprocessing: Preprocessing, *, velocity: float = 0.0) -> tuple[float, float]:
    """Å, of either medium: what the arms need of a spectrum, with a margin for degrading.

    Args:
      velocity: the spectra may move by as much to either side [km/s].
    """
    ends = np.concatenate([preprocessing.wave(arm)[[0, -1]] for arm in preprocessing.arms])
    low, high = doppler_shift(ends.min(), -velocity), doppler_shift(ends.max(), velocity)
    return float(low) - CROP_MARGIN, float(high) + CROP_MARGIN


def crop(spectra: Spectra, preprocessing: Preprocessing) -> Spectra:
    """The part of library spectra that the arms need, with a margin for degrading; labels and names stay."""
    low, high = needed_range(preprocessing)
    keep = (spectra.wave >= low) & (spectra.wave <= high)
    if not keep.any():
        raise SpectrumError(
            f"{spectra.names[0]}: expected wavelengths between {low:.0f} and {high:.0f} Å, found "
            f"{spectra.wave[0]:.0f} to {spectra.wave[-1]:.0f} Å"
        )
    return spectra.pixels(np.flatnonzero(keep))  # a copy: a view would keep the whole file in memory


def library_on_grid(
    spectra: Spectra, preprocessing: Preprocessing, arm: str, *, native: LineSpread | None
) -> tuple[np.ndarray, np.ndarray]:
    """Degraded and resampled library spectra, before noise and normalisation (§3.3 i-ii).

    Args:
      spectra: library spectra with positive flux.
      native: the library's own line spread; None = infinitely sharp.

    Returns:
      log_flux: float32[P, S, N], natural logarithm of the flux, each spectrum scaled to a maximum of 1.
      valid: bool[N], pixels that every line spread and every spectrum covers.

    Raises:
      ValueError: the library does not cover the arm, or has pixels without positive flux in it.
    """
    wave = preprocessing.wave(arm)
    fluxes, valid = [], np.ones(len(wave), bool)
    for spread in preprocessing.line_spreads():
        out = degrade_and_resample(spectra, wave, medium=preprocessing.medium, lsf=spread, native=native)
        valid &= out.valid.all(axis=0)
        fluxes.append(out.flux)
    if valid.mean() < 0.9:
        raise ConfigError(
            f"library: expected to cover arm {arm} ({wave[0]:.1f}-{wave[-1]:.1f} Å {preprocessing.medium}), "
            f"found {valid.mean():.0%} of its pixels usable; its own range is "
            f"{spectra.wave[0]:.1f}-{spectra.wave[-1]:.1f} Å {spectra.medium}"
        )
    flux = np.where(valid, np.stack(fluxes), 1.0)
    bad = ~np.all(flux > 0, axis=(0, 2))
    if bad.any():
        raise ConfigError(
            f"library: {spectra.names[int(np.argmax(bad))]} has flux at or below zero in arm {arm}"
        )
    peak = np.where(valid, flux, 0.0).max(axis=-1, keepdims=True)
    return np.where(valid, np.log(flux / peak), 0.0).astype(np.float32), valid


def observed_on_grid(
    spectra: Spectra, preprocessing: Preprocessing, arm: str, *, velocity: float = 0.0
) -> Spectra:
    """Observed spectra on an arm's grid, at rest and at the networks' line spread, in one interpolation.

    Where the spectra say how wide their lines are (`Spectra.fwhm`), those that are sharper than
    `Preprocessing.fwhm` are convolved down to it on their own pixels; coarser ones stay as they are, which
    `coarser_than` tells. Where they do not, they are taken to be as the networks know them. The variance of a
    convolved pixel is the kernel's square against the variances of the pixels under it; that of an interpolated one
    is interpolated linearly.

    Args:
      spectra: as read, in their own medium and sampling.
      velocity: radial velocity to remove [km/s], positive when receding. Wavelengths are shifted in vacuum.

    Returns:
      The resampled spectra; pixels that the input does not cover are invalid.
    """
    wave = preprocessing.wave(arm)
    # Only what is needed: far from the arms, in the ultraviolet, the formula for the index of air has poles.
    low, high = doppler_shift(wave[[0, -1]], velocity)
    near = slice(
        int(np.searchsorted(spectra.wave, low - CROP_MARGIN)),
        int(np.searchsorted(spectra.wave, high + CROP_MARGIN, side="right")),
    )
    if near.stop - near.start < FEWEST_PIXELS:
        return _nothing(spectra, wave, preprocessing.medium)
    spectra = spectra.pixels(near)
    if velocity:
        spectra = at_rest(spectra, velocity)
    if spectra.fwhm is None:
        return resample(spectra, wave, medium=preprocessing.medium)
    return degrade_and_resample(
        spectra,
        wave,
        medium=preprocessing.medium,
        lsf=LineSpread(fwhm=preprocessing.fwhm(arm)),
        native=LineSpread(fwhm=spectra.fwhm),
        keep_coarser=True,
    )


def at_rest(spectra: Spectra, velocity: float) -> Spectra:
    """Spectra with a radial velocity [km/s] taken out of their wavelengths, which are in vacuum afterwards."""
    vacuum = to_medium(spectra.wave, source=spectra.medium, target="vacuum")
    shifted = doppler_shift(vacuum, -velocity)
    fwhm = None if spectra.fwhm is None else spectra.fwhm * (shifted / vacuum)
    return dataclasses.replace(spectra, wave=shifted, fwhm=fwhm, medium="vacuum")


def coarser_than(spectra: Spectra, preprocessing: Preprocessing, arm: str, *, tolerance: float) -> bool:
    """True where spectra on an arm's grid have wider lines than the networks have seen, by more than a tolerance.

    Args:
      spectra: from `observed_on_grid`.
      tolerance: 0.1 allows a tenth more than the widest line spread of the training, in the median over the arm.
    """
    if spectra.fwhm is None:
        return False
    return bool(np.median(spectra.fwhm / preprocessing.coarsest(arm)) > 1 + tolerance)


def _nothing(spectra: Spectra, wave: np.ndarray, medium: str) -> Spectra:
    """The same spectra on a grid that they do not reach."""
    shape = (len(spectra), wave.size)
    return dataclasses.replace(
        spectra,
        wave=wave,
        flux=np.zeros(shape, spectra.flux.dtype),
        valid=np.zeros(shape, bool),
        ivar=None if spectra.ivar is None else np.zeros(shape, spectra.ivar.dtype),
        medium=medium,
        fwhm=None,
    )


def scale_to_unit(flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float32 flux divided by its largest valid absolute value, 0 at invalid pixels: safe in float32.

    The normaliser is scale-free, but fluxes of 1e-17 or 1e15 would leave float32's range.
    """
    flux = np.where(valid, flux, 0.0)
    peak = np.abs(flux).max(axis=-1, keepdims=True)
    return (flux / np.where(peak > 0, peak, 1.0)).astype(np.float32)


def snr_estimate(flux: np.ndarray, valid: np.ndarray, ivar: np.ndarray | None) -> np.ndarray:
    """Median signal-to-noise per pixel of each spectrum, NaN without valid pixels.

    From the inverse variance where it is known; otherwise from the flux alone (DER_SNR, Stoehr et al. 2008,
    ASPC 394, 505: noise = 1.482602/sqrt(6) · median |2 f_i - f_(i-2) - f_(i+2)|), which counts lines as noise
    and is a lower limit where lines are dense.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      ivar: float[S, N] or None.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a constant or zero spectrum
        if ivar is not None:
            ratio = np.where(valid, flux * np.sqrt(np.where(valid, ivar, 0)), np.nan)
            return nan_median(ratio).astype(np.float64)
        triple = valid[:, 4:] & valid[:, 2:-2] & valid[:, :-4]
        noise = np.abs(2 * flux[:, 2:-2] - flux[:, :-4] - flux[:, 4:])
        level = nan_median(np.where(valid, flux, np.nan))
        return level / (1.482602 / np.sqrt(6) * nan_median(np.where(triple, noise, np.nan)))


def usable(flux: np.ndarray, valid: np.ndarray, *, min_coverage: float) -> np.ndarray:
    """bool[S]: spectra with enough valid pixels in an arm and positive flux in one of them at least.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      min_coverage: smallest valid fraction.
    """
    out = np.zeros(len(flux), bool)
    for i in range(0, len(flux), BLOCK):
        some = slice(i, i + BLOCK)
        out[some] = (valid[some].mean(axis=1) >= min_coverage) & np.any(
            (flux[some] > 0) & valid[some], axis=1
        )
    return out


def longest_gap(valid: np.ndarray) -> np.ndarray:
    """int[S]: the longest run of pixels that are not valid, of bool[S, N]; runs at the ends count, too."""
    at = np.arange(1, valid.shape[1] + 1)
    out = np.zeros(len(valid), int)
    for i in range(0, len(valid), BLOCK):
        some = valid[i : i + BLOCK]
        rows = np.flatnonzero(~some.all(axis=1))
        last = np.maximum.accumulate(np.where(some[rows], at, 0), axis=1)
        out[i + rows] = np.max(at - last, axis=1)
    return out


def model_inputs(flux: np.ndarray, valid: np.ndarray) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Flux and mask as the device arrays that normaliser and network take."""
    return jnp.asarray(scale_to_unit(flux, valid)), jnp.asarray(valid)
