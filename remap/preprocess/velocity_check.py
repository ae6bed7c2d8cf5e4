"""Whether spectra that are said to be at rest surely are: a quick look, so that few velocities need be measured.

A few templates at rest and at velocities all over what is searched are matrices, so that the likelihood gain of
all of them (see `remap.preprocess.velocity`, here with equal weights) is two products. A spectrum is surely at
rest where the gain at rest stands high above all others and has a sharp maximum there. Of the rest nothing is said:
their velocities have to be measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from remap.preprocess.blocks import in_blocks
from remap.preprocess.flattening import taper
from remap.preprocess.templates import OVERSAMPLE, Templates
from remap.preprocess.velocity_search import FAR
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import SPEED_OF_LIGHT

TEMPLATES = 8  # of the library's
MARGIN = 2.0  # of the gain at rest over that of any template elsewhere
CERTAIN = 0.5  # of the tolerance: templates differ by a few km/s in what they find
SHARP = 0.5  # of the curvature that the templates' own peak has: where a wide one lies, few lines of a hot star tell
HIGHEST = 0.5  # above the continuum, of a pixel that counts
ROWS = 128  # at a time: arrays of more leave the cache
SINGLE = (
    2**17
)  # multiplications of a product that BLAS leaves to one thread: several wait for each other on a busy machine


def surely_at_rest(
    arms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    templates: Templates,
    settings: VelocitySettings,
    *,
    tolerance: float,
) -> np.ndarray:
    """bool[S]: spectra whose velocity, were it measured, would not be another by more than the tolerance.

    Args:
      arms: arm -> flux float32[S, N] and valid bool[S, N], on the arm's grid in `templates`.
      tolerance: km/s.
    """
    look = _Look.make(templates, tuple(arms), settings)
    count = len(next(iter(arms.values()))[0])
    out = np.zeros(count, bool)

    def fill(rows: slice) -> None:
        gain = look.gain({arm: (flux[rows], valid[rows]) for arm, (flux, valid) in arms.items()})
        out[rows] = look.decide(gain, tolerance)

    in_blocks(fill, count, 1, ROWS)
    return out


class _Continuum(NamedTuple):
    """Means over Gaussians a smoothing width apart, and straight lines between them."""

    mean: np.ndarray  # float32[N, P]
    between: np.ndarray  # float32[P, N]

    @classmethod
    def make(cls, wave: np.ndarray, smooth: float) -> _Continuum:
        at = np.log(wave) * SPEED_OF_LIGHT / smooth
        nodes = np.linspace(at[0], at[-1], max(2, round(at[-1] - at[0]) + 1))
        mean = np.exp(-0.5 * (at[:, None] - nodes) ** 2)
        between = np.stack([np.interp(at, nodes, one) for one in np.eye(nodes.size)])
        return cls(mean.astype(np.float32), between.astype(np.float32))

    def lines(self, flux: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Flux [S, N], 0 where it is not `good` float32[S, N], over its continuum, less one; 0 there, too."""
        level = _product(flux, self.mean) / np.maximum(_product(good, self.mean), np.float32(1e-3))
        level = _product(level, self.between)
        np.divide(flux, level, out=level, where=level > 0)
        level -= 1
        np.clip(level, -1, HIGHEST, out=level)
        level *= good
        return level


class _Look(NamedTuple):
    """Templates at all velocities."""

    lags: np.ndarray  # int[V], in steps of the templates' coarse grid: the velocities
    step: float  # km/s
    width: float  # of the peak, in steps
    arms: Mapping[str, tuple[_Continuum, np.ndarray, np.ndarray]]  # and their lines t and t², float32[N, V K]

    @classmethod
    @functools.lru_cache(maxsize=8)
    def make(cls, templates: Templates, arms: tuple[str, ...], settings: VelocitySettings) -> _Look:
        """What does not depend on the spectra."""
        apart = int(templates.width)
        reach = max(1, int(np.arctanh(settings.limit / SPEED_OF_LIGHT) / templates.step / apart))
        lags = apart * np.arange(-reach, reach + 1)
        pick = np.unique(np.linspace(0, len(templates.labels) - 1, TEMPLATES).astype(int))
        return cls(
            lags,
            templates.step * SPEED_OF_LIGHT,
            templates.width,
            {arm: _arm(templates, arm, lags, pick, settings) for arm in arms},
        )

    def gain(self, arms: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """float32[S, V, K]: Σ d t / √Σ t² over the good pixels."""
        cross, power = 0.0, 0.0
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            for arm, (flux, valid) in arms.items():
                continuum, lines, squares = self.arms[arm]
                good = valid.astype(np.float32)
                cross = cross + _product(continuum.lines(flux * good, good), lines)
                power = power + _product(good, squares)
            return (cross / np.sqrt(power)).reshape(len(cross), self.lags.size, -1)

    def decide(self, gain: np.ndarray, tolerance: float) -> np.ndarray:
        """bool[S], of gains [S, V, K]; what is not finite is not sure."""
        row, rest = np.arange(len(gain)), self.lags.size // 2
        best = gain[:, rest].argmax(axis=1)
        low, here, high = (gain[row, rest + i, best] for i in (-1, 0, 1))
        far = np.abs(self.lags) > FAR * self.width
        clear = (low > 0) & (high > 0) & (here >= MARGIN * gain[:, far].max(axis=(1, 2), initial=0.0))
        clear &= here >= gain[row, :, best].max(axis=1)
        # The peak is about a Gaussian, whose logarithm is a parabola.
        low, here, high = (np.log(np.where(clear, x, 1)) for x in (low, here, high))
        bend, apart = 2 * here - low - high, self.lags[rest + 1]
        clear &= bend >= SHARP * 2 * np.log(2) * (apart / self.width) ** 2
        return clear & (np.abs(high - low) / 2 * apart * self.step <= CERTAIN * tolerance * bend)


def _product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[S, N] times [N, M], some rows and pixels at a time."""
    count, (pixels, size) = len(rows), matrix.shape
    few = int(np.clip(SINGLE // matrix.size, 4, max(count, 4)))
    piece = max(1, SINGLE // (few * size))
    rows = np.pad(rows, ((0, -count % few), (0, 0))).reshape(-1, few, pixels)
    out = rows[:, :, :piece] @ matrix[:piece]
    for i in range(piece, pixels, piece):
        out += rows[:, :, i : i + piece] @ matrix[i : i + piece]
    return out.reshape(-1, size)[:count]


def _arm(
    templates: Templates, arm: str, lags: np.ndarray, pick: np.ndarray, settings: VelocitySettings
) -> tuple[_Continuum, np.ndarray, np.ndarray]:
    """The continuum of an arm, and the lines of templates in it at all velocities, with and without a square."""
    table, wave = templates.tables[arm], templates.wave[arm]
    points = np.arange(table.weight.size)
    at = table.place - OVERSAMPLE * lags[:, None]
    value = np.stack([np.interp(at, points, one, left=0, right=0) for one in table.value[pick]], axis=1)
    value = (1 + value.reshape(-1, wave.size)).astype(np.float32)
    continuum = _Continuum.make(wave, settings.smooth)
    lines = continuum.lines(value, np.ones_like(value))
    ends = taper(np.ones((1, wave.size), bool), templates.taper)
    return continuum, *(np.ascontiguousarray((ends * x).T, dtype=np.float32) for x in (lines, lines**2))
