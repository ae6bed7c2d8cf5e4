"""Cosmic rays in one-dimensional spectra: along wavelength, and in exposures of one star.

ccdproc, astroscrappy and L.A.Cosmic (van Dokkum 2001, PASP 113, 1420) look at images, where a cosmic ray has sharp
edges in two dimensions. Extraction leaves one, so a spectrum needs its own rule, whose idea is the same: what reached
the detector through the spectrograph is no sharper than its line spread.

A spectrum is taken as a Gaussian process: a smooth continuum, plus lines of any strength seen through the line
spread (covariance A² exp(-d²/4σ²) at distance d, with A from the contrast around the pixel), plus noise. Then what
the pixels around say of a few pixels, with the uncertainty of that, is known exactly (Rasmussen & Williams 2006,
section 5.4.2), and a cosmic ray is a positive deviation that is significant. Lines, in absorption or emission, follow
from their wings and stay; where the line spread is not sampled, little follows from anything and little is found.
"""

from __future__ import annotations

import dataclasses
import functools
import logging

import numpy as np
from scipy import ndimage

from remap.preprocess.blocks import in_blocks
from remap.preprocess.bridging import bridge_gaps
from remap.preprocess.cleaning import CleaningSettings, segment_median
from remap.preprocess.deviations import (
    FLOOR,
    WINDOW,
    Window,
    confirm,
    excess_scatter,
    half_window,
    least_significance,
    make_windows,
    suspects,
)
from remap.preprocess.line_width import pixels_per_fwhm
from remap.preprocess.resample import FWHM_PER_SIGMA
from remap.spectra import Spectra

log = logging.getLogger(__name__)

SEGMENT = 256  # pixels over which noise and contrast are taken
PASSES = 4  # found pixels are left out and their neighbours looked at again
FIRST = 0.7  # of the threshold, for the quick look that finds candidates
MOST = 0.05  # of the pixels are candidates, the most significant ones
LARGEST = 1e15  # of a value in units of the noise: its square is in float32's range
BESIDE = 2  # pixels around a cosmic ray that are looked at again


def mask_cosmic_rays(spectra: Spectra, settings: CleaningSettings) -> Spectra:
    """Cosmic rays become bad pixels, from each spectrum alone; flux is as it was.

    A peak is a cosmic ray where it is significant and narrower than a line can be: than `sharpness` times the line
    spread. Noise is that of `ivar`, or of the highest frequencies of the flux, and is taken as larger where the
    deviations themselves scatter by more. A cosmic ray as wide as the line spread looks like a line and stays, so
    does a weak one in the core of a deep line; exposures of the same star tell more (`mask_cosmic_rays_in_stack`).

    Args:
      spectra: as observed or at rest, on their own pixels; not resampled to finer ones, which makes all of it smooth.
        The line spread is `Spectra.fwhm`; else that of the settings; else it is measured from the flux.
      settings: see `CleaningSettings`.

    Returns:
      The spectra with `valid` bool[S, N] changed. Nothing is masked where the line spread has fewer than
      `min_sampling` pixels or is not known; the log says so, at the level of debugging.
    """
    width = pixels_per_fwhm(spectra, settings)
    if width is None:
        return spectra
    able = width >= settings.min_sampling
    who = spectra.names[0] if spectra.names else "spectra"
    if not able.all():
        log.debug(
            "%s: no cosmic rays are looked for in %.0f %% of the pixels, where the line spread has fewer than %g "
            "pixels (%.2g to %.2g): a cosmic ray looks like a line there",
            who,
            100 * np.mean(~able),
            settings.min_sampling,
            width.min(),
            width.max(),
        )
    if not able.any():
        return spectra
    valid = spectra.valid.copy()
    narrowest = width * settings.sharpness

    def mask(rows: slice) -> None:
        ivar = None if spectra.ivar is None else spectra.ivar[rows]
        valid[rows] &= ~_find(spectra.flux[rows], valid[rows], ivar, narrowest, able, settings)

    in_blocks(mask, len(spectra), spectra.wave.size)
    return dataclasses.replace(spectra, valid=valid)


def _find(
    flux: np.ndarray,
    valid: np.ndarray,
    ivar: np.ndarray | None,
    width: np.ndarray,
    able: np.ndarray,
    settings: CleaningSettings,
) -> np.ndarray:
    """bool[S, N]: cosmic rays; `width` is that of the narrowest lines, pixels [N]."""
    found, apart = np.zeros_like(valid), ~valid  # apart: pixels that say nothing of others
    whole = valid.sum(axis=1) >= 4 * WINDOW[0]
    if not whole.any():
        return found
    y = np.where(valid, flux, 0).astype(np.float64)
    bridge_gaps(y, valid, np.arange(y.shape[1]))
    level = segment_median(np.where(valid, y, np.nan), SEGMENT)
    noise = _noise(y, level, valid, ivar, width)
    whole &= np.isfinite(noise).all(axis=1) & np.all(noise > 0, axis=1)
    able = able & whole[:, None]
    peaks, dips = _quick_look(
        np.where(whole[:, None], y - level, 0), noise, apart, able & valid, width, settings
    )

    windows = _windows(y, noise, apart, peaks & able, width, settings)
    some = suspects(windows, len(y), settings)
    if some.any():
        number = np.cumsum(some) - 1
        windows = [w._replace(rows=number[w.rows]) for w in (window.of(some) for window in windows)]
        parts = (values[some] for values in (y, noise, apart, able, peaks, dips))
        found[some] = _confirmed(windows, *parts, width, settings)
    return found


def _windows(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    look: np.ndarray,
    width: np.ndarray,
    settings: CleaningSettings,
) -> list[Window]:
    rows, columns = np.nonzero(look & ~apart)
    return make_windows(y, noise, apart, rows, columns, width, 2 * settings.cosmic_width)


def _confirmed(
    windows: list[Window],
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    able: np.ndarray,
    peaks: np.ndarray,
    dips: np.ndarray,
    width: np.ndarray,
    settings: CleaningSettings,
) -> np.ndarray:
    """bool[S, N]: cosmic rays among the candidates of suspect spectra, and beside those that are found."""
    found, limit = np.zeros_like(apart), np.full(len(y), settings.cosmic_sigma)
    half = half_window(float(np.median(width)))
    excess = excess_scatter(y, noise, apart, width, settings)
    for turn in range(PASSES):
        hit, dip = confirm(windows, apart, excess, limit, settings)
        if turn == 0:
            # a higher limit finds nothing where the lowest one does not, so most spectra need not know theirs
            some = (hit | dip).any(axis=1)
            limit = least_significance(y, noise, apart, dips & some[:, None], width, excess, settings)
            again = limit > settings.cosmic_sigma
            if again.any():
                new = confirm([window.of(again) for window in windows], apart, excess, limit, settings)
                hit[again], dip[again] = new[0][again], new[1][again]
        found |= hit
        apart |= hit | dip
        # what is left out now may have hidden its neighbours, or made lines look strong
        rows, new = np.flatnonzero((hit | dip).any(axis=1)), np.zeros_like(apart)
        beside = ndimage.binary_dilation(hit[rows], np.ones((1, 2 * BESIDE + 1), bool))
        near = ndimage.binary_dilation((hit | dip)[rows], np.ones((1, 2 * half + 1), bool))
        height = np.where(apart[rows], -np.inf, y[rows])
        new[rows] = beside | (near & (peaks[rows] | (height == ndimage.maximum_filter1d(height, 3, axis=1))))
        windows = _windows(y, noise, apart, new & able, width, settings)
        if not windows:
            break
    return found


@functools.lru_cache(maxsize=256)
def _whitening(width: float, ratio: float, half: int) -> np.ndarray:
    """Row of the inverse covariance of lines through a Gaussian plus unit noise, 2 half + 1 taps, sum 0."""
    sigma, size = width / FWHM_PER_SIGMA, 512
    f = np.fft.fftfreq(size)
    power = sum(np.exp(-4 * np.pi**2 * sigma**2 * (f + k) ** 2) for k in (-1, 0, 1))
    inverse = 1 / (1 + ratio**2 * np.sqrt(4 * np.pi) * sigma * power)
    inverse[np.abs(f) < 1 / (4 * half)] = 0
    taps = np.fft.fftshift(np.fft.ifft(inverse).real)[size // 2 - half : size // 2 + half + 1]
    taps -= taps.mean()
    taps.flags.writeable = False  # whoever asks again gets the same array
    return taps


def _noise(
    y: np.ndarray, level: np.ndarray, valid: np.ndarray, ivar: np.ndarray | None, width: np.ndarray
) -> np.ndarray:
    """float64[S, N]: standard deviation of the noise of every pixel."""
    if ivar is not None:
        good = valid & (ivar > 0)
        sigma = 1 / np.sqrt(np.where(good, ivar, 1).astype(np.float64))
        rows = ~good.all(axis=1)
        if rows.any():
            known = np.where(good[rows], sigma[rows], np.nan)
            sigma[rows] = np.where(good[rows], known, segment_median(known, SEGMENT))
        return sigma
    typical = float(np.median(width))
    taps = _whitening(typical, 1000.0, half_window(typical))
    sharp = np.abs(ndimage.convolve1d(y, taps, axis=1, mode="mirror")) / np.sqrt(np.sum(taps**2))
    clean = ndimage.binary_erosion(valid, np.ones((1, taps.size), bool), border_value=1)
    sigma = 1.4826 * segment_median(np.where(clean, sharp, np.nan), SEGMENT, smooth=3)
    # photons: what stands above the level of the continuum is noisier by the root of the ratio
    with np.errstate(divide="ignore", invalid="ignore"):
        above = ndimage.minimum_filter1d(y, 3, axis=1) / level
    return sigma * np.sqrt(np.clip(np.nan_to_num(above, nan=1.0, posinf=1.0), 1.0, 1e4))


def _quick_look(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    able: np.ndarray,
    width: np.ndarray,
    settings: CleaningSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels worth a closer look bool[S, N], by one filter per spectrum: peaks of the significance, and dips.

    In float32: what is found here is looked at again, more exactly.
    """
    typical, widest = float(np.median(width)), settings.cosmic_width
    half = half_window(typical)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        u = y / segment_median(np.where(apart, np.nan, noise), SEGMENT)
    u = np.clip(np.where(np.isfinite(u), u, 0.0), -LARGEST, LARGEST).astype(np.float32)
    lost = apart.any()
    contrast = 1.4826 * segment_median(np.abs(np.where(apart, np.float32(np.nan), u)), SEGMENT)
    ratio = np.sqrt(np.maximum(np.nan_to_num(np.median(contrast, axis=1)) ** 2 - 1, FLOOR**2))
    found, bucket = np.unique(np.clip(np.rint(np.log2(ratio)), -2, 10), return_inverse=True)
    taps = np.stack([_whitening(typical, 2.0**b, half) for b in found.tolist()])
    z = _symmetric_filter(u, taps[bucket, half:].astype(np.float32))
    high, low = np.full_like(z, -np.inf), np.full_like(z, np.inf)
    padded = np.pad(z, ((0, 0), (widest, widest)), mode="symmetric")
    total = np.zeros_like(z)
    for k in range(1, widest + 1):
        total += _moved(padded, k // 2 if k % 2 else -(k // 2), widest)  # sums over k pixels
        lags = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
        variance = taps[:, half + lags].sum(axis=(1, 2))
        # Of narrow lines far above the noise the taps cut short leave none, or less: such sums say nothing.
        unit = np.where(variance > 0, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
        s = total * unit[bucket, None].astype(np.float32)
        size = np.abs(s)
        if lost:
            size[apart] = np.nan
        spread = 1.4826 * segment_median(size, 2 * SEGMENT)
        s /= np.fmax(spread, np.float32(1))
        around = np.pad(s, ((0, 0), (k, k)), mode="symmetric") if k > 1 else s
        for i in range(k):
            moved = _moved(around, i - k // 2, k) if k > 1 else s
            np.maximum(high, moved, out=high)
            np.minimum(low, moved, out=low)
    return _candidates(high, able, settings), _candidates(-low, able, settings)


def _symmetric_filter(values: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Rows [S, N] filtered by one of their own each, of which the right half [S, H + 1] is given; ends are held."""
    half = taps.shape[1] - 1
    padded = np.pad(values, ((0, 0), (half, half)), mode="edge")
    out = values * taps[:, :1]
    pair = np.empty_like(out)
    for i in range(1, half + 1):
        np.add(_moved(padded, -i, half), _moved(padded, i, half), out=pair)
        pair *= taps[:, i : i + 1]
        out += pair
    return out


def _moved(padded: np.ndarray, by: int, margin: int) -> np.ndarray:
    """The values `by` pixels to the right of every pixel, of rows with a margin at both ends."""
    return padded[:, margin + by : padded.shape[1] - margin + by]


def _candidates(score: np.ndarray, able: np.ndarray, settings: CleaningSettings) -> np.ndarray:
    """bool[S, N]: the highest peaks of a score."""
    score = np.where(able, score, -np.inf)
    peaks = score > FIRST * settings.cosmic_sigma
    peaks[:, 1:] &= score[:, 1:] >= score[:, :-1]
    peaks[:, :-1] &= score[:, :-1] >= score[:, 1:]
    most = max(int(MOST * score.shape[1]), 16)
    for i in np.flatnonzero(np.count_nonzero(peaks, axis=1) > most):
        peaks[i] &= score[i] >= np.partition(score[i][peaks[i]], -most)[-most]
    return peaks
