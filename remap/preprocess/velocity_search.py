"""The coarse search for velocities: cross-correlation of spectra with templates on a logarithmic grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import fft

from remap.preprocess.flattening import Flattened
from remap.preprocess.templates import OVERSAMPLE, Templates
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import SPEED_OF_LIGHT

OVERLAP = 0.5  # share of the weight that a shifted template must cover
CACHED = 2**17  # complex numbers of a product of transforms that are in a processor's cache
FAR = 3.0  # half widths of the autocorrelation from a peak, where it is forgotten


class Correlation(NamedTuple):
    """What the coarse search finds, of S spectra, T templates and L lags."""

    shape: np.ndarray  # float32[S, T, L], Σ w d t / √(Σ w t²)
    covered: np.ndarray  # bool[S, L], where spectrum and shifted template have enough in common
    power: np.ndarray  # float64[S], Σ w d²


class CoarseGrid(NamedTuple):
    """What the coarse search needs of the templates."""

    size: int  # n, of the Fourier transforms
    lags: np.ndarray  # int[L], in steps, increasing
    searched: np.ndarray  # bool[L], within the limit
    pixels: Mapping[
        str, tuple[np.ndarray, np.ndarray]
    ]  # arm -> int[M] and float[M]: where its points lie in pixels
    transforms: Mapping[
        str, tuple[np.ndarray, np.ndarray, np.ndarray]
    ]  # of w t [T, F], w t² [T, F] and w [F]

    @classmethod
    def make(cls, templates: Templates, arms: list[str], settings: VelocitySettings) -> CoarseGrid:
        """The grid of these templates in some arms, as far as the settings want lags."""
        lag = int(np.ceil(np.arctanh(settings.span / SPEED_OF_LIGHT) / templates.step))
        limit = np.arctanh(settings.limit / SPEED_OF_LIGHT) / templates.step
        points = {arm: templates.tables[arm].weight[::OVERSAMPLE].size for arm in arms}
        size = fft.next_fast_len(max(points.values()) + lag, real=True)
        lags = np.arange(-lag, lag + 1)
        pixels, transforms = {}, {}
        for arm in arms:
            table = templates.tables[arm]
            at = np.interp(
                OVERSAMPLE * np.arange(points[arm]), table.place, np.arange(table.place.size, dtype=float)
            )
            left = np.minimum(at.astype(int), table.place.size - 2)
            pixels[arm] = (left, (at - left).astype(np.float32))
            value, weight = table.value[:, ::OVERSAMPLE], table.weight[::OVERSAMPLE]
            transforms[arm] = tuple(
                np.conj(fft.rfft(x.astype(np.float32), size))
                for x in (weight * value, weight * value**2, weight)
            )
        return cls(size, lags, np.abs(lags) <= limit, pixels, transforms)

    def correlate(self, flat: Mapping[str, Flattened]) -> Correlation:
        """How well the templates go with spectra at every lag."""
        power, transforms, covers = 0.0, [], 0
        for arm, (value, weight) in flat.items():
            light = weight * value
            power = power + np.sum(light * value, axis=1)
            first, second = self._transform(arm, light), self._transform(arm, weight)
            cross, square, cover = self.transforms[arm]
            transforms.append((first, second, cross, square))
            covers = covers + second * cover
        cover = self._lags(covers)
        covered = cover >= OVERLAP * cover.max(axis=1, keepdims=True)
        templates, frequencies = transforms[0][2].shape
        shape = np.empty((len(power), templates, self.lags.size), np.float32)
        step = max(1, CACHED // (templates * frequencies))
        size = np.empty((2, min(step, len(power)), templates, frequencies), np.complex64)
        for i in range(0, len(power), step):
            some = slice(i, i + step)
            total, more = size[:, : len(power[some])]
            sums = []
            for kind in (0, 1):
                for arm, parts in enumerate(transforms):
                    np.multiply(parts[kind][some, None], parts[2 + kind], out=more if arm else total)
                    if arm:
                        total += more
                sums.append(self._lags(total))
            square = np.maximum(sums[1], 1e-6 * sums[1].max(axis=2, keepdims=True))
            np.divide(sums[0], np.sqrt(square, out=square), out=shape[some])
        return Correlation(shape, covered, power)

    def _lags(self, transforms: np.ndarray) -> np.ndarray:
        """The values [..., L] at the lags of Fourier transforms [..., F]."""
        lag, every = self.lags[-1], fft.irfft(transforms, self.size)
        return np.concatenate([every[..., -lag:], every[..., : lag + 1]], axis=-1)

    def _transform(self, arm: str, x: np.ndarray) -> np.ndarray:
        """Fourier transforms of pixels [S, N], brought onto the coarse grid by straight lines."""
        left, share = self.pixels[arm]
        x = x.astype(np.float32)
        return fft.rfft(x[:, left] * (1 - share) + x[:, left + 1] * share, self.size)


def parabola(curve: np.ndarray) -> np.ndarray:
    """Where the maximum of curves [S, L] is between the points, from the highest on: -0.5 to 0.5."""
    at = np.clip(curve.argmax(axis=1), 1, curve.shape[1] - 2)[:, None]
    low, mid, high = (np.take_along_axis(curve, at + i, axis=1)[:, 0] for i in (-1, 0, 1))
    bend = 2 * mid - low - high
    return np.where(bend > 0, np.clip(0.5 * (high - low) / np.where(bend > 0, bend, 1), -0.5, 0.5), 0)


def contrast_of(curve: np.ndarray, peak: np.ndarray, covered: np.ndarray, far: float) -> np.ndarray:
    """Height of the peak of correlations [S, L] over their rms further than `far` from it; 0 without any."""
    away = covered & (np.abs(np.arange(curve.shape[1]) - peak[:, None]) > far)
    square = np.sum(np.where(away, curve, 0) ** 2, axis=1)
    height = np.take_along_axis(curve, peak[:, None], axis=1)[:, 0]
    return np.where(square > 0, height * np.sqrt(away.sum(axis=1) / np.where(square > 0, square, 1)), 0)
