"""Cosmic rays in exposures of one star, which each has its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import interpolate, ndimage

from remap.preprocess.bridging import bridge_gaps
from remap.preprocess.cleaning import CleaningSettings, segment_median
from remap.preprocess.cosmic_rays import SEGMENT, mask_cosmic_rays
from remap.preprocess.deviations import WINDOW
from remap.spectra import Spectra, SpectrumError, to_medium

RATIO_SEGMENT = 128  # pixels over which the ratio of two exposures is taken
GROW = 0.55  # of the threshold, for the pixels beside a cosmic ray


def mask_cosmic_rays_in_stack(
    exposures: Sequence[Spectra], settings: CleaningSettings
) -> tuple[Spectra, ...]:
    """Cosmic rays in exposures of the same star, which each has its own.

    Every exposure is compared with the median of the others, after a smooth ratio between them is taken out. The
    stack counts as uncertain by `stack_slope` times its change to the next pixel, as the star may move a little.
    Where one of two has a dip, the other one loses the pixel. One exposure alone goes to `mask_cosmic_rays`.

    Args:
      exposures: of one spectrum each, in one frame (to a fraction of a pixel), on any grids.
      settings: see `CleaningSettings`.

    Returns:
      The exposures, in their order, with `valid` changed.

    Raises:
      SpectrumError: an exposure holds more than one spectrum.
    """
    for exposure in exposures:
        if len(exposure) != 1:
            raise SpectrumError(
                f"{exposure.names[0] if exposure.names else 'exposures'}: expected one spectrum per exposure, found "
                f"{len(exposure)}"
            )
    if len(exposures) == 1:
        return (mask_cosmic_rays(exposures[0], settings),)
    masks = [_above_stack(i, exposures, settings) for i in range(len(exposures))]
    return tuple(
        dataclasses.replace(e, valid=e.valid & ~found[None])
        for e, found in zip(exposures, masks, strict=True)
    )


def _above_stack(which: int, exposures: Sequence[Spectra], settings: CleaningSettings) -> np.ndarray:
    """bool[N]: pixels of one exposure that stand above the stack of all."""
    own = exposures[which]
    y, good = own.flux[0].astype(np.float64), own.valid[0]
    found = np.zeros(y.size, bool)
    fluxes, variances, known = [], [], []
    for i, other in enumerate(exposures):
        if i == which:
            continue
        flux, variance, valid = _on_grid(other, own)
        ratio = _smooth_ratio(y, flux, good & valid)
        flux, variance = flux * ratio, None if variance is None else variance * ratio**2
        fluxes.append(np.where(valid & np.isfinite(ratio), flux, np.nan))
        variances.append(variance)
        known.append(valid)
    others = np.array(fluxes)
    count = np.isfinite(others).sum(axis=0)
    both = good & (count > 0)
    if both.sum() < 4 * WINDOW[0]:
        return found
    stack = np.full(y.size, np.nan)
    # without the exposure itself: cosmic rays of the others only make the stack higher, and nothing more is found
    filled = count > 0
    stack[filled] = np.nanmedian(others[:, filled], axis=0)
    difference = np.where(both, y - stack, np.nan)
    bridged = np.nan_to_num(stack)
    bridge_gaps(bridged[None], filled[None], np.arange(stack.size))
    slope = np.maximum(
        np.abs(np.diff(bridged, prepend=bridged[0])), np.abs(np.diff(bridged, append=bridged[-1]))
    )
    if own.ivar is not None and all(v is not None for v in variances):
        spread = np.array(
            [np.where(np.isfinite(f), v, np.nan) for f, v in zip(others, variances, strict=True)]
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nansum(spread, axis=0) / np.maximum(count, 1)
            # 1.57 = π/2: variance of a median of many, over that of the mean
            stacked = mean / np.maximum(count, 1) * np.where(count > 2, np.pi / 2, 1.0)
            sigma = np.sqrt(1 / np.where(good, own.ivar[0].astype(np.float64), np.nan) + stacked)
    else:
        sigma = np.full(y.size, np.nan)
        quiet = np.where(both, np.abs(difference), np.nan)
        sigma = 1.4826 * segment_median(quiet[None], SEGMENT)[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            level = segment_median(np.where(filled, stack, np.nan)[None], SEGMENT)[0]
            sigma = sigma * np.sqrt(np.clip(np.nan_to_num(bridged / level, nan=1.0, posinf=1.0), 1.0, 1e4))
    t = difference / np.sqrt(sigma**2 + (settings.stack_slope * slope) ** 2)
    excess = 1.4826 * segment_median(np.abs(t)[None], SEGMENT)[0]
    t = np.where(both, t / np.maximum(np.nan_to_num(excess, nan=1.0), 1.0), 0.0)
    t = np.nan_to_num(t, nan=0.0, posinf=0.0, neginf=0.0)
    hit = t > settings.stack_sigma
    beside = ndimage.binary_dilation(hit, np.ones(3, bool)) & (t > GROW * settings.stack_sigma)
    return (hit | beside) & good


def _on_grid(other: Spectra, own: Spectra) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Flux, variance and mask float64[N] of an exposure at the pixels of another."""
    wave = to_medium(other.wave, source=other.medium, target=own.medium)
    flux, valid = other.flux[0].astype(np.float64), other.valid[0]
    variance = None
    if other.ivar is not None:
        ivar = np.where(valid, other.ivar[0], 1).astype(np.float64)
        variance = 1 / np.where(ivar > 0, ivar, np.inf)
    if wave.shape == own.wave.shape and np.allclose(wave, own.wave, rtol=1e-9, atol=0):
        return flux, variance, valid
    if valid.sum() < 4:
        return np.zeros(own.wave.size), variance and np.ones(own.wave.size), np.zeros(own.wave.size, bool)
    bridged = np.where(valid, flux, 0.0)
    bridge_gaps(bridged[None], valid[None], np.arange(flux.size))
    at = np.clip(own.wave, wave[0], wave[-1])
    right = np.clip(np.searchsorted(wave, own.wave), 1, wave.size - 1)
    inside = (own.wave >= wave[0]) & (own.wave <= wave[-1])
    flux = interpolate.CubicSpline(wave, bridged)(at)
    variance = None if variance is None else np.interp(at, wave, variance)
    return flux, variance, inside & valid[right] & valid[right - 1]


def _smooth_ratio(own: np.ndarray, other: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Ratio of two exposures, smooth over some hundred pixels; NaN where it is not known."""
    if not both.any():
        return np.full(own.shape, np.nan)
    # a ratio of medians, not a median of ratios: faint pixels have any ratio
    mine = segment_median(np.where(both, own, np.nan)[None], RATIO_SEGMENT, smooth=3)[0]
    theirs = segment_median(np.where(both, other, np.nan)[None], RATIO_SEGMENT, smooth=3)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = mine / theirs
    return np.where(np.isfinite(ratio) & (ratio > 0), ratio, np.nan)
