"""What the pixels around say of a few pixels of a spectrum, as a Gaussian process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from remap.preprocess.blocks import ELEMENTS
from remap.preprocess.cleaning import CleaningSettings, segment_median
from remap.preprocess.resample import FWHM_PER_SIGMA

SAMPLES = 40  # places from which the scatter of deviations is taken,
SPACING = 100  # pixels apart at most
DIPS = (
    2,
    3e-4,
)  # so many dips, and per pixel, are bad pixels; where there are more, the noise is not understood
HIGH = 2.0  # σ above what is expected, of pixels of a cosmic ray
CORE = 0.65  # of the width of a line is not looked at for the strength of lines
MODEL_ERROR = 0.01  # of the range of values around a pixel: line spreads are not quite Gaussian
CONTRAST = 0.25  # A over the range of values around a pixel
FLOOR = 0.3  # A over the noise, at least
REACH = 2.0  # FWHM that are looked at on both sides of a pixel, within
WINDOW = (6, 24)  # pixels


def half_window(width: float) -> int:
    """How many pixels on either side of one are looked at, by the width of lines in pixels."""
    return int(np.clip(np.ceil(REACH * width), *WINDOW))


def suspects(windows: Sequence[Window], count: int, settings: CleaningSettings) -> np.ndarray:
    """bool[S]: spectra of which a window has a deviation beyond the threshold, of either sign.

    An excess of the scatter and a higher limit only take deviations away: of the other spectra neither need be known.
    """
    out = np.zeros(count, bool)
    for window in windows:
        best = _best_blocks(window, np.ones((len(window.rows), settings.cosmic_width)))
        out[window.rows[np.maximum(best.top, best.bottom) > settings.cosmic_sigma]] = True
    return out


def least_significance(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    dips: np.ndarray,
    width: np.ndarray,
    excess: Excess,
    settings: CleaningSettings,
) -> np.ndarray:
    """float64[S]: significance from which a peak counts.

    Cosmic rays are peaks; what noise and lines do that the model does not know has as many dips. Where there are more
    dips than a few, the limit rises until a few are beyond it.
    """
    limit, few = np.full(len(y), settings.cosmic_sigma), int(DIPS[0] + DIPS[1] * y.shape[1])
    many = dips.sum(axis=1) > few
    rows, columns = np.nonzero(dips & many[:, None] & ~apart)
    scores = [np.zeros(0)]
    for window in make_windows(y, noise, apart, rows, columns, width, 2 * settings.cosmic_width):
        window = window._replace(z=-window.z)
        best = _best_blocks(window, excess.at(window.rows, window.columns))
        which = np.flatnonzero((best.top > settings.cosmic_sigma) & (best.bottom > best.top / 2))
        best.top[which[~_peak_says_more(window, which, settings.cosmic_width)]] = 0.0
        scores.append(best.top)
    top = np.concatenate(scores)
    for row in np.flatnonzero(many):
        highest = np.sort(top[rows == row])
        if highest.size > few:
            limit[row] = max(limit[row], highest[-few - 1])
    return limit


class Excess(NamedTuple):
    """By how much the deviations of blocks scatter more than they should, at least 1."""

    values: np.ndarray  # float64[S, P, cosmic_width]
    place: np.ndarray  # int[N], which of the P places speaks for a pixel

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float64[C, cosmic_width] at C pixels."""
        return self.values[rows, self.place[columns]]


def excess_scatter(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    width: np.ndarray,
    settings: CleaningSettings,
) -> Excess:
    """The excess scatter of deviations, from pixels at random places.

    Errors that a file underestimates and noise that is correlated from pixel to pixel show in it.
    """
    count, pixels = y.shape
    places = max(round(pixels / min(max(pixels / SAMPLES, 4), SPACING)), 1)
    at = np.linspace(2, pixels - 3, places).astype(int)
    at = np.clip(at + (np.arange(places) * 7919) % 4 - 1, 0, pixels - 1)
    rows, columns = np.repeat(np.arange(count), places), np.tile(at, count)
    sizes, scores = range(1, 1 + settings.cosmic_width), []
    for window in make_windows(y, noise, apart, rows, columns, width, settings.cosmic_width // 2):
        centre = window.out.shape[1] // 2
        scores.append([_score(window, slice(centre - (k - 1) // 2, centre + k // 2 + 1)) for k in sizes])
    scores = np.concatenate(scores, axis=1).reshape(len(sizes), count, places)
    spread = 1.4826 * segment_median(np.abs(scores).reshape(-1, places), SAMPLES).reshape(scores.shape)
    spread = np.maximum(np.nan_to_num(spread, nan=1.0), 1.0)
    place = np.minimum(np.searchsorted(at, np.arange(pixels)), places - 1)
    return Excess(np.moveaxis(spread, 0, 2), place)


class Window(NamedTuple):
    """What is around each of C pixels, in units of the noise at it: the middle m of n pixels."""

    rows: np.ndarray  # int[C]
    columns: np.ndarray  # int[C]
    at: np.ndarray  # int[C, m], columns of the pixels
    out: np.ndarray  # bool[C, m], pixels that say nothing
    inverse: np.ndarray  # float64[C, m, m], inverse covariance of the n pixels
    z: np.ndarray  # float64[C, m], inverse covariance times flux

    def of(self, spectra: np.ndarray) -> Window:
        """Those of some spectra, bool[S]."""
        keep = spectra[self.rows]
        return Window(*(values[keep] for values in self))


def make_windows(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    width: np.ndarray,
    beside: int,
) -> list[Window]:
    """The Gaussian process around pixels, in so many at a time as fit into memory.

    Args:
      y: float64[S, N], flux.
      noise: float64[S, N], its standard deviation.
      apart: bool[S, N], pixels that say nothing of others.
      rows: int[C], of the pixels.
      columns: int[C], of the same.
      width: float64[N], FWHM of the narrowest lines, pixels.
      beside: pixels on either side of which something is to be said, too.
    """
    half = half_window(float(np.median(width)))
    step = max(1, ELEMENTS // (2 * half + 1) ** 2)
    parts = [slice(i, i + step) for i in range(0, rows.size, step)]
    return [_window(y, noise, apart, rows[p], columns[p], width, half, min(beside, half)) for p in parts]


def _window(
    y: np.ndarray,
    noise: np.ndarray,
    apart: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    width: np.ndarray,
    half: int,
    beside: int,
) -> Window:
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
    inner = slice(half - beside, half + beside + 1)
    columns_of = np.linalg.solve(
        kernel, np.broadcast_to(np.eye(offset.size)[:, inner], (*at.shape, inner.stop - inner.start))
    )
    z = np.einsum("cij,ci->cj", columns_of, values)
    return Window(rows, columns, at[:, inner], out[:, inner], columns_of[:, inner], z)


def _score(window: Window, block: slice) -> np.ndarray:
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


def _best_blocks(window: Window, excess: np.ndarray) -> _Best:
    """The best of all blocks up to the widest; `excess` float64[C, widest] divides their significances."""
    half, widest = window.out.shape[1] // 2, excess.shape[1]
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


def _scores(window: Window, first: np.ndarray, length: int) -> np.ndarray:
    """float64[C, F]: as `_score`, of F blocks of one length that begin at some pixels."""
    information, total, out = 0.0, 0.0, False
    for i in range(length):
        total = total + window.z[:, first + i]
        out = out | window.out[:, first + i]
        for j in range(length):
            information = information + window.inverse[:, first + i, first + j]
    return np.where(out, np.nan, total / np.sqrt(np.maximum(information, 1e-300)))


def _peak_says_more(window: Window, which: np.ndarray, widest: int) -> np.ndarray:
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


def _high_pixels(window: Window, which: np.ndarray, block: np.ndarray) -> np.ndarray:
    """bool[K, k]: pixels of a block that are above what those outside it say, the highest one at least."""
    information = window.inverse[which[:, None, None], block[:, :, None], block[:, None, :]]
    covariance = np.linalg.inv(information * (1 + 1e-9 * np.eye(block.shape[1])))
    deviation = (covariance @ window.z[which[:, None], block][:, :, None])[:, :, 0]
    score = deviation / np.sqrt(np.maximum(np.einsum("ijj->ij", covariance), 1e-300))
    return (score > HIGH) | (score == score.max(axis=1, keepdims=True))


def confirm(
    windows: Sequence[Window],
    apart: np.ndarray,
    excess: Excess,
    limit: np.ndarray,
    settings: CleaningSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosmic rays bool[S, N] among candidates, and pixels that are too low instead, which nothing is said of."""
    hit, dip = np.zeros_like(apart), np.zeros_like(apart)
    for window in windows:
        r = window.rows
        top, start, length, bottom, lowest = _best_blocks(window, excess.at(r, window.columns))
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
