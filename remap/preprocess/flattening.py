"""Spectra without their continuum, for the comparison of their lines: stars and templates alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import SPEED_OF_LIGHT

BLOCKS = 8  # parts of an arm whose medians are the first estimate of its slope


class Flattened(NamedTuple):
    """Spectra without their continuum."""

    value: np.ndarray  # float64[S, N], flux over the continuum, less one; 0 where the weight is 0
    weight: np.ndarray  # float64[S, N], inverse variance of `value`, falling to 0 at the ends; 0 = left out


def flatten(
    flux: np.ndarray,
    valid: np.ndarray,
    ivar: np.ndarray | None,
    *,
    wave: np.ndarray,
    settings: VelocitySettings,
    clip: bool = True,
) -> Flattened:
    """Divides spectra by their own smoothed flux, which needs no idea of where the continuum is.

    Medians of a few parts of the arm take away slopes, so that the ends are not fooled by them; then a running mean
    (three boxes, nearly a Gaussian) of the valid pixels only. Without inverse variances the noise is estimated from
    the differences of neighbouring pixels.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      ivar: float[S, N], or None where it is not known.
      wave: float64[N], Å.
      clip: leave out what stands high above the continuum.
    """
    good = valid & np.isfinite(flux)
    if ivar is not None:
        good = good & np.isfinite(ivar) & (ivar > 0)
    flux = np.where(good, flux, 0).astype(np.float64)
    level = _level(flux, good)
    good &= level > 0
    level[~good] = 1
    with np.errstate(over="ignore"):
        value = np.where(good, flux / level, 0)
    good &= (value > -1) & (value < 3)  # outside there is nothing that a template could have
    value[~good] = 0
    step = np.median(np.diff(np.log(wave))) * SPEED_OF_LIGHT
    # The variance of a box of m pixels is (m² - 1) / 12.
    box = int(min(np.sqrt(4 * (settings.smooth / step) ** 2 + 1), wave.size))
    smooth = value
    cover = good.astype(np.float64)
    for _ in range(3):
        smooth = ndimage.uniform_filter1d(smooth, box, axis=1, mode="constant")
        cover = ndimage.uniform_filter1d(cover, box, axis=1, mode="constant")
    good &= (smooth > 0.2 * cover) & (cover > 0)
    mean = np.where(good, smooth / np.where(good, cover, 1), 1)
    value = np.where(good, value / mean - 1, 0)
    with np.errstate(
        over="ignore", divide="ignore"
    ):  # 1e±300 are 0 or infinite, and the weight is right all the same
        if ivar is None:
            variance = np.broadcast_to(_noise(value, good)[:, None] ** 2, value.shape)
        else:
            scale = np.where(good, level * mean, 1)
            variance = 1 / (np.where(good, ivar, 1).astype(np.float64) * scale**2)
    if clip:
        scatter = 1.4826 * _median(np.abs(value), good)
        high = np.maximum(settings.clip * scatter[:, None], settings.clip * np.sqrt(variance))
        good &= (value < high) & (value > -1 - high)
    weight = np.where(good, taper(good, settings.taper) / (variance + settings.mismatch**2), 0)
    return Flattened(np.where(good, value, 0), weight)


def taper(good: np.ndarray, share: float) -> np.ndarray:
    """Weights [S, N] that rise as a cosine over a share of the pixels at each end of the good ones."""
    pixels = good.shape[1]
    width = max(share * pixels, 1.0)
    ends, kind = np.unique(
        np.stack([good.argmax(axis=1), pixels - 1 - good[:, ::-1].argmax(axis=1)]),
        axis=1,
        return_inverse=True,
    )
    first, last = ends[:, :, None]
    at = np.arange(pixels)
    inside = np.clip(np.minimum(at - first + 0.5, last - at + 0.5) / width, 0, 1)
    curves = 0.5 - 0.5 * np.cos(np.pi * inside)
    return np.where(good.any(axis=1, keepdims=True), curves[kind.ravel()], 0)


def _median(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Median of the good values along the last axis, 0 without any."""
    ordered = np.sort(np.where(good, values, np.inf), axis=-1)
    count = np.count_nonzero(good, axis=-1)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(count > 0, middle, 0)


def _level(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Medians of the parts of an arm, with straight lines between them: [S, N]."""
    count, pixels = flux.shape
    parts = max(1, min(BLOCKS, pixels // 16))
    length = pixels // parts
    cut = slice(0, parts * length)
    blocks, mask = (x[:, cut].reshape(count, parts, length) for x in (flux, good))
    level = _median(blocks, mask)
    level[np.count_nonzero(mask, axis=2) < length / 4] = 0
    # A part that is mostly noise about zero says nothing of the level.
    usual = _median(level, level > 0)[:, None]
    at = (np.arange(parts) + 0.5) * length - 0.5
    known = level > 0.01 * usual
    left = np.clip(np.searchsorted(at, np.arange(pixels), side="right") - 1, 0, max(parts - 2, 0))
    # As `np.interp` for every row, to the last bit, where all parts are known.
    out = (np.diff(level, append=level[:, -1:], axis=1) / length).take(left, axis=1)
    out *= np.clip(np.arange(pixels), at[0], at[-1]) - at[left]
    out += level.take(left, axis=1)
    last = np.arange(pixels) >= at[-1]
    out[:, last] = level[:, -1:]
    for i in np.flatnonzero(~known.all(axis=1)):
        out[i] = 0
        if known[i].any():
            out[i] = np.interp(np.arange(pixels), at[known[i]], level[i, known[i]])
    return out


def _noise(value: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Noise [S] of flat spectra from their second differences (Stoehr et al. 2008, ASPC 394, 505)."""
    triple = good[:, 4:] & good[:, 2:-2] & good[:, :-4]
    return 1.4826 / np.sqrt(6) * _median(np.abs(2 * value[:, 2:-2] - value[:, :-4] - value[:, 4:]), triple)


def bridge(value: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Rows with their bad pixels on straight lines between the good ones, 0 beyond them."""
    out = np.array(value, np.float64)
    at = np.arange(out.shape[1])
    for row, ok in zip(out, good, strict=True):
        if ok.any() and not ok.all():
            row[~ok] = np.interp(at[~ok], at[ok], row[ok], left=0, right=0)
    return out
