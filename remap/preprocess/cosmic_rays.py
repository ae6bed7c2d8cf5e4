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
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import interpolate, ndimage

from remap.preprocess.cleaning import BLOCK, CleaningSettings, segment_median
from remap.preprocess.resample import FWHM_PER_SIGMA
from remap.spectra import Spectra, SpectrumError, to_medium

log = logging.getLogger(__name__)

SEGMENT = 256  # pixels over which noise and contrast are taken
PASSES = 4  # found pixels are left out and their neighbours looked at again
FIRST = 0.7  # of the threshold, for the quick look that finds candidates
MOST = 0.05  # of the pixels are candidates, the most significant ones
SAMPLES = 40  # places from which the scatter of deviations is taken,
SPACING = 100  # pixels apart at most
DIPS = (
    2,
    3e-4,
)  # so many dips, and per pixel, are bad pixels; where there are more, the noise is not understood
HIGH = 2.0  # σ above what is expected, of pixels of a cosmic ray
BESIDE = 2  # pixels around a cosmic ray that are looked at again
CORE = 0.65  # of the width of a line is not looked at for the strength of lines
MODEL_ERROR = 0.01  # of the range of values around a pixel: line spreads are not quite Gaussian
CONTRAST = 0.25  # A over the range of values around a pixel
FLOOR = 0.3  # A over the noise, at least
REACH = 2.0  # FWHM that are looked at on both sides of a pixel, within
WINDOW = (6, 24)  # pixels
MEASURED = 0.6  # stars' lines are wider than the line spread, so a width measured from them is an upper limit
RATIO_SEGMENT = 128  # pixels over which the ratio of two exposures is taken
GROW = 0.55  # of the threshold, for the pixels beside a cosmic ray


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
    width = _pixels_per_fwhm(spectra, settings)
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
    step = max(1, BLOCK // (16 * spectra.wave.size))
    for i in range(0, len(spectra), step):
        rows = slice(i, i + step)
        ivar = None if spectra.ivar is None else spectra.ivar[rows]
        valid[rows] &= ~_find(
            spectra.flux[rows], valid[rows], ivar, width * settings.sharpness, able, settings
        )
    return dataclasses.replace(spectra, valid=valid)


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


def measure_line_width(flux: np.ndarray, valid: np.ndarray) -> float:
    """Typical FWHM of the narrowest structure of spectra, in pixels, from their power spectra.

    A Gaussian of standard deviation σ pixels leaves the power exp(-4π²σ²f²) at frequency f, and the slope of its
    logarithm in f² is fitted where the power is well above the noise's. Rotation and the star's own line widths are
    in it, so it is an upper limit to the line spread.

    Args:
      flux: float[S, N].
      valid: bool[S, N].

    Returns:
      The median over the spectra; NaN where no structure stands out of the noise.
    """
    found = []
    for row, good in zip(flux, valid, strict=True):
        ends = np.flatnonzero(good)
        if ends.size < 64:
            continue
        part = slice(ends[0], ends[-1] + 1)
        y = np.interp(np.arange(part.start, part.stop), ends, row[ends].astype(np.float64))
        level = segment_median(y[None], SEGMENT)[0]
        scale = np.median(np.abs(level))
        if not scale > 0:
            continue
        y = np.clip((y - level) / scale, -3, 3) * np.hanning(y.size)
        power = np.abs(np.fft.rfft(y)) ** 2
        bins = np.array_split(power, 40)
        mean = np.array([np.median(b) for b in bins])
        f2 = ((np.arange(40) + 0.5) / 80) ** 2
        use = mean > 5 * np.median(mean[-6:])
        last = int(np.argmin(use)) if not use.all() else use.size
        if last < 5:
            continue
        slope = np.polyfit(f2[1:last], np.log(mean[1:last]), 1)[0]
        if slope < 0:
            found.append(np.sqrt(-slope / (4 * np.pi**2)) * FWHM_PER_SIGMA)
    return float(np.median(found)) if found else float("nan")


def _pixels_per_fwhm(spectra: Spectra, settings: CleaningSettings) -> np.ndarray | None:
    """float64[N]: the line spread in pixels, None where it is not known."""
    if spectra.wave.size < 2:
        return None
    step = np.gradient(spectra.wave)
    if spectra.fwhm is not None:
        return spectra.fwhm / step
    if settings.fwhm is not None:
        return settings.fwhm / step
    if settings.resolution is not None:
        return spectra.wave / settings.resolution / step
    who = spectra.names[0] if spectra.names else "spectra"
    width = measure_line_width(spectra.flux, spectra.valid)
    if not np.isfinite(width):
        log.debug("%s: no cosmic rays are looked for: the line spread is not known and nothing shows it", who)
        return None
    log.debug(
        "%s: the line spread is not known; the narrowest structure has a FWHM of %.2g pixels, and %.2g are taken",
        who,
        width,
        MEASURED * width,
    )
    return np.full(spectra.wave.size, MEASURED * width)


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
    y = _bridge(np.where(valid, flux, 0).astype(np.float64), valid)
    level = segment_median(np.where(valid, y, np.nan), SEGMENT)
    noise = _noise(y, level, valid, ivar, width)
    whole &= np.isfinite(noise).all(axis=1) & np.all(noise > 0, axis=1)
    able = able & whole[:, None]
    peaks, dips = _quick_look(
        np.where(whole[:, None], y - level, 0), noise, apart, able & valid, width, settings
    )
    excess = _excess(y, noise, apart, whole, width, settings)
    limit = np.full(len(y), settings.cosmic_sigma)
    look, half = peaks, _half(float(np.median(width)))
    for turn in range(PASSES):
        rows, columns = np.nonzero(look & able & ~apart)
        if rows.size == 0:
            break
        hit, dip = _confirm(y, noise, apart, rows, columns, width, excess, limit, settings)
        if turn == 0:
            # a higher limit finds nothing where the lowest one does not, so most spectra need not know theirs
            some = (hit | dip).any(axis=1)
            limit = _limit(y, noise, apart, dips & some[:, None], width, excess, settings)
            again = limit > settings.cosmic_sigma
            if again.any():
                mine = again[rows]
                new = _confirm(y, noise, apart, rows[mine], columns[mine], width, excess, limit, settings)
                hit[again], dip[again] = new[0][again], new[1][again]
        found |= hit
        apart |= hit | dip
        # what is left out now may have hidden its neighbours, or made lines look strong
        rows, new = np.flatnonzero((hit | dip).any(axis=1)), np.zeros_like(apart)
        beside = ndimage.binary_dilation(hit[rows], np.ones((1, 2 * BESIDE + 1), bool))
        near = ndimage.binary_dilation((hit | dip)[rows], np.ones((1, 2 * half + 1), bool))
        height = np.where(apart[rows], -np.inf, y[rows])
        new[rows] = beside | (near & (peaks[rows] | (height == ndimage.maximum_filter1d(height, 3, axis=1))))
        look = new
    return found


def _bridge(y: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Linear interpolation over pixels that are not valid, in place."""
    at = np.arange(y.shape[1])
    for i in np.flatnonzero(~valid.all(axis=1) & valid.any(axis=1)):
        good = valid[i]
        y[i, ~good] = np.interp(at[~good], at[good], y[i, good])
    return y


def _whitening(width: float, ratio: float, half: int) -> np.ndarray:
    """Row of the inverse covariance of lines through a Gaussian plus unit noise, 2 half + 1 taps, sum 0."""
    sigma, size = width / FWHM_PER_SIGMA, 512
    f = np.fft.fftfreq(size)
    power = sum(np.exp(-4 * np.pi**2 * sigma**2 * (f + k) ** 2) for k in (-1, 0, 1))
    inverse = 1 / (1 + ratio**2 * np.sqrt(4 * np.pi) * sigma * power)
    inverse[np.abs(f) < 1 / (4 * half)] = 0
    taps = np.fft.fftshift(np.fft.ifft(inverse).real)[size // 2 - half : size // 2 + half + 1]
    return taps - taps.mean()


def _half(width: float) -> int:
    return int(np.clip(np.ceil(REACH * width), *WINDOW))


def _noise(
    y: np.ndarray, level: np.ndarray, valid: np.ndarray, ivar: np.ndarray | None, width: np.ndarray
) -> np.ndarray:
    """float64[S, N]: standard deviation of the noise of every pixel."""
    if ivar is not None:
        good = valid & (ivar > 0)
        sigma = 1 / np.sqrt(np.where(good, ivar, 1).astype(np.float64))
        return np.where(good, sigma, segment_median(np.where(good, sigma, np.nan), SEGMENT))
    typical = float(np.median(width))
    taps = _whitening(typical, 1000.0, _half(typical))
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
    """Pixels worth a closer look bool[S, N], by one filter per spectrum: peaks of the significance, and dips."""
    typical = float(np.median(width))
    half = _half(typical)
    u = y / segment_median(np.where(apart, np.nan, noise), SEGMENT)
    u = np.nan_to_num(u, nan=0.0, posinf=0.0, neginf=0.0)
    contrast = 1.4826 * segment_median(np.abs(np.where(apart, np.nan, u)), SEGMENT)
    ratio = np.sqrt(np.maximum(np.nan_to_num(np.median(contrast, axis=1)) ** 2 - 1, FLOOR**2))
    bucket = np.clip(np.rint(np.log2(ratio)), -2, 10)
    best = np.full((2, *y.shape), -np.inf)
    for b in np.unique(bucket):
        rows = np.flatnonzero(bucket == b)
        taps = _whitening(typical, 2.0**b, half)
        z = ndimage.convolve1d(u[rows], taps, axis=1, mode="nearest")
        s = np.empty((settings.cosmic_width, *z.shape))
        for k in range(1, settings.cosmic_width + 1):
            lags = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
            ndimage.uniform_filter1d(z, k, axis=1, output=s[k - 1])
            s[k - 1] *= k / np.sqrt(taps[half + lags].sum())
        spread = np.where(apart[rows], np.nan, np.abs(s)).reshape(-1, y.shape[1])
        spread = 1.4826 * segment_median(spread, 2 * SEGMENT).reshape(s.shape)
        s /= np.maximum(np.nan_to_num(spread, nan=1.0), 1.0)
        for k in range(1, settings.cosmic_width + 1):
            for sign in (0, 1):
                score = -s[k - 1] if sign else s[k - 1]
                score = ndimage.maximum_filter1d(score, k, axis=1) if k > 1 else score
                best[sign, rows] = np.maximum(best[sign, rows], score)
    best = np.where(able, best, -np.inf)
    peaks = (best > FIRST * settings.cosmic_sigma) & (best == ndimage.maximum_filter1d(best, 3, axis=2))
    most = max(int(MOST * y.shape[1]), 16)
    for sign, i in np.argwhere(peaks.sum(axis=2) > most):
        peaks[sign, i] &= best[sign, i] >= np.partition(best[sign, i][peaks[sign, i]], -most)[-most]
    return peaks[0], peaks[1]


def _limit(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    dips: np.ndarray,
    width: np.ndarray,
    excess: _Excess,
    settings: CleaningSettings,
) -> np.ndarray:
    """float64[S]: significance from which a peak counts.

    Cosmic rays are peaks; what noise and lines do that the model does not know has as many dips. Where there are more
    dips than a few, the limit rises until a few are beyond it.
    """
    limit, few = np.full(len(y), settings.cosmic_sigma), int(DIPS[0] + DIPS[1] * y.shape[1])
    many = dips.sum(axis=1) > few
    rows, columns = np.nonzero(dips & many[:, None] & ~apart)
    chunk, scores = _chunk(width), [np.zeros(0)]
    for i in range(0, rows.size, chunk):
        r, c = rows[i : i + chunk], columns[i : i + chunk]
        window = _window(y, noise, apart, r, c, width, 4 * settings.cosmic_width + 1)
        window = window._replace(z=-window.z)
        best = _best_blocks(window, excess.at(r, c), settings.cosmic_width)
        which = np.flatnonzero((best.top > settings.cosmic_sigma) & (best.bottom > best.top / 2))
        best.top[which[~_peak_says_more(window, which, settings.cosmic_width)]] = 0.0
        scores.append(best.top)
    top = np.concatenate(scores)
    for row in np.flatnonzero(many):
        highest = np.sort(top[rows == row])
        if highest.size > few:
            limit[row] = max(limit[row], highest[-few - 1])
    return limit


class _Excess(NamedTuple):
    """By how much the deviations of blocks scatter more than they should, at least 1."""

    values: np.ndarray  # float64[S, P, cosmic_width]
    place: np.ndarray  # int[N], which of the P places speaks for a pixel

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float64[C, cosmic_width] at C pixels."""
        return self.values[rows, self.place[columns]]


def _excess(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    whole: np.ndarray,
    width: np.ndarray,
    settings: CleaningSettings,
) -> _Excess:
    """The excess scatter of deviations, from pixels at random places.

    Errors that a file underestimates and noise that is correlated from pixel to pixel show in it.
    """
    count, pixels = y.shape
    places = max(round(pixels / min(max(pixels / SAMPLES, 4), SPACING)), 1)
    at = np.linspace(2, pixels - 3, places).astype(int)
    at = np.clip(at + (np.arange(places) * 7919) % 4 - 1, 0, pixels - 1)
    rows, columns = np.repeat(np.flatnonzero(whole), places), np.tile(at, np.count_nonzero(whole))
    sizes = range(1, 1 + settings.cosmic_width)
    scores = np.full((len(sizes), count, places), np.nan)
    chunk = _chunk(width)
    found = []
    for i in range(0, rows.size, chunk):
        part = slice(i, i + chunk)
        window = _window(y, noise, apart, rows[part], columns[part], width, 2 * settings.cosmic_width + 1)
        centre = window.out.shape[1] // 2
        found.append([_score(window, slice(centre - (k - 1) // 2, centre + k // 2 + 1)) for k in sizes])
    if found:
        scores[:, whole] = np.concatenate(found, axis=1).reshape(len(sizes), -1, places)
    spread = 1.4826 * segment_median(np.abs(scores).reshape(-1, places), SAMPLES).reshape(scores.shape)
    spread = np.maximum(np.nan_to_num(spread, nan=1.0), 1.0)
    place = np.minimum(np.searchsorted(at, np.arange(pixels)), places - 1)
    return _Excess(np.moveaxis(spread, 0, 2), place)


class _Window(NamedTuple):
    """What is around each of C pixels, in units of the noise at it: the middle m of n pixels."""

    at: np.ndarray  # int[C, m], columns
    out: np.ndarray  # bool[C, m], pixels that say nothing
    inverse: np.ndarray  # float64[C, m, m], inverse covariance of the n pixels
    z: np.ndarray  # float64[C, m], inverse covariance times flux


def _chunk(width: np.ndarray) -> int:
    return max(1, BLOCK // (4 * (2 * _half(float(np.median(width))) + 1) ** 2))


def _window(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    width: np.ndarray,
    middle_pixels: int,
) -> _Window:
    """The Gaussian process around pixels."""
    half = _half(float(np.median(width)))
    offset = np.arange(-half, half + 1)
    at = columns[:, None] + offset
    inside = (at >= 0) & (at < y.shape[1])
    at = np.clip(at, 0, y.shape[1] - 1)
    values, sd = y[rows[:, None], at], noise[rows[:, None], at]
    out = apart[rows[:, None], at] | ~inside
    # the pixel, and what is as narrow as a cosmic ray may be, must not say how strong lines are here
    core = np.abs(offset) <= np.maximum((CORE * width[columns] - 1) // 2, 0)[:, None]
    low = np.min(np.where(out | core, np.inf, values), axis=1)
    high = np.max(np.where(out | core, -np.inf, values), axis=1)
    known = np.isfinite(low)
    low, reach = np.where(known, low, 0.0), np.where(known, high - low, 0.0)
    middle = sd[:, half]
    values = np.where(out, 0.0, (values - low[:, None]) / middle[:, None])
    sd, reach = sd / middle[:, None], reach / middle
    strength = np.maximum(CONTRAST * reach, FLOOR)
    loose = 10 * (reach + 1)
    sigma = width[columns] / FWHM_PER_SIGMA
    distance = np.arange(offset.size)
    lines = strength[:, None] ** 2 * np.exp(distance**2 * (-0.25 / sigma[:, None] ** 2))
    kernel = lines.take(np.abs(np.subtract.outer(offset, offset)), axis=1)
    kernel += loose[:, None, None] ** 2 * (1 + np.multiply.outer(offset, offset) / half**2)
    noise2 = sd**2 + (MODEL_ERROR * reach[:, None]) ** 2
    kernel[:, np.arange(offset.size), np.arange(offset.size)] += np.where(
        out, 1e6 * loose[:, None] ** 2, noise2
    )
    inner = slice(half - min(middle_pixels // 2, half), half + min(middle_pixels // 2, half) + 1)
    columns_of = np.linalg.solve(
        kernel, np.broadcast_to(np.eye(offset.size)[:, inner], (*at.shape, inner.stop - inner.start))
    )
    z = np.einsum("cij,ci->cj", columns_of, values)
    return _Window(at[:, inner], out[:, inner], columns_of[:, inner], z)


def _score(window: _Window, block: slice) -> np.ndarray:
    """float64[C]: significance of a common deviation of the pixels of a block from what all others say."""
    information = window.inverse[:, block, block].sum(axis=(1, 2))
    score = window.z[:, block].sum(axis=1) / np.sqrt(np.maximum(information, 1e-300))
    return np.where(window.out[:, block].any(axis=1), np.nan, score)


class _Best(NamedTuple):
    """The most significant block around each of C pixels."""

    top: np.ndarray  # float64[C], significance of the best block that holds the pixel
    start: np.ndarray  # int[C], its first pixel in the window
    length: np.ndarray  # int[C]
    bottom: np.ndarray  # float64[C], significance of the best dip among the blocks around
    lowest: np.ndarray  # int[C], its pixel in the window


def _best_blocks(window: _Window, excess: np.ndarray, widest: int) -> _Best:
    """The best of all blocks up to the widest; `excess` float64[C, widest] divides their significances."""
    half = window.out.shape[1] // 2
    first = [np.arange(max(half - 2 * k + 1, 0), half + k) for k in range(1, widest + 1)]
    length = np.repeat(np.arange(1, widest + 1), [f.size for f in first])
    scores = np.concatenate(
        [_scores(window, f, k) / excess[:, k - 1, None] for k, f in enumerate(first, 1)], axis=1
    )
    scores, start = np.nan_to_num(scores, nan=0.0), np.concatenate(first)
    holding = np.flatnonzero((start <= half) & (half < start + length))
    best, worst = holding[scores[:, holding].argmax(axis=1)], scores.argmin(axis=1)
    row = np.arange(len(scores))
    return _Best(
        scores[row, best], start[best], length[best], -scores[row, worst], (start + length // 2)[worst]
    )


def _scores(window: _Window, first: np.ndarray, length: int) -> np.ndarray:
    """float64[C, F]: as `_score`, of F blocks of one length that begin at some pixels."""
    information, total, out = 0.0, 0.0, False
    for i in range(length):
        total = total + window.z[:, first + i]
        out = out | window.out[:, first + i]
        for j in range(length):
            information = information + window.inverse[:, first + i, first + j]
    return np.where(out, np.nan, total / np.sqrt(np.maximum(information, 1e-300)))


def _peak_says_more(window: _Window, which: np.ndarray, widest: int) -> np.ndarray:
    """bool[K]: a peak at the pixel explains the flux better than a dip beside it, which raises it, too.

    Compares χ² of blocks of free values, by the sign of their sum.
    """
    half = window.out.shape[1] // 2
    first = np.arange(max(half - 2 * widest + 1, 0), half + widest)
    block = first[:, None] + np.arange(widest)
    information = window.inverse[which[:, None, None, None], block[:, :, None], block[:, None, :]]
    information[..., np.arange(widest), np.arange(widest)] *= 1 + 1e-9
    at = which[:, None, None], block
    z = np.where(window.out[at], 0.0, window.z[at])
    deviation = np.linalg.solve(information, z[..., None])[..., 0]
    says, up = (deviation * z).sum(axis=2), deviation.sum(axis=2) > 0
    holds = (first <= half) & (half < first + widest)
    peak = np.where(up & holds, says, 0.0).max(axis=1)
    return peak >= np.where(up, 0.0, says).max(axis=1)


def _high_pixels(window: _Window, which: np.ndarray, block: np.ndarray) -> np.ndarray:
    """bool[K, k]: pixels of a block that are above what those outside it say, the highest one at least."""
    information = window.inverse[which[:, None, None], block[:, :, None], block[:, None, :]]
    covariance = np.linalg.inv(information * (1 + 1e-9 * np.eye(block.shape[1])))
    deviation = (covariance @ window.z[which[:, None], block][:, :, None])[:, :, 0]
    score = deviation / np.sqrt(np.maximum(np.einsum("ijj->ij", covariance), 1e-300))
    return (score > HIGH) | (score == score.max(axis=1, keepdims=True))


def _confirm(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    width: np.ndarray,
    excess: _Excess,
    limit: np.ndarray,
    settings: CleaningSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosmic rays bool[S, N] among candidates, and pixels that are too low instead, which nothing is said of."""
    hit, dip = np.zeros_like(apart), np.zeros_like(apart)
    chunk = _chunk(width)
    for i in range(0, rows.size, chunk):
        r, c = rows[i : i + chunk], columns[i : i + chunk]
        window = _window(y, noise, apart, r, c, width, 4 * settings.cosmic_width + 1)
        top, start, length, bottom, lowest = _best_blocks(window, excess.at(r, c), settings.cosmic_width)
        sure = top > limit[r]
        which = np.flatnonzero(sure & (bottom > top / 2))
        sure[which] &= _peak_says_more(window, which, settings.cosmic_width)
        for k in range(1, settings.cosmic_width + 1):
            which = np.flatnonzero(sure & (length == k))
            if which.size:
                columns_of = start[which, None] + np.arange(k)
                high = _high_pixels(window, which, columns_of)
                hit[np.repeat(r[which], k), window.at[which[:, None], columns_of].ravel()] |= high.ravel()
        which = np.flatnonzero(~sure & (bottom > limit[r]))
        dip[r[which], window.at[which, lowest[which]]] = True
    return hit & ~apart, dip & ~apart & ~hit


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
    bridged = _bridge(np.nan_to_num(stack)[None].copy(), filled[None])[0]
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
    bridged = _bridge(np.where(valid, flux, 0.0)[None], valid[None])[0]
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
