"""Cubic splines of many spectra at the same places."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg


class Spline(NamedTuple):
    """Cubic splines (not-a-knot) through rows of values on one grid, at places that are the same for all.

    The numbers are those of `scipy.interpolate.CubicSpline(wave, values, axis=1)(at)`, to the last bit. That makes
    four coefficients for every interval, most of which nobody asks for; here they are made for the places alone.

    Examples:
      >>> import numpy as np
      >>> wave = np.arange(6.0)
      >>> Spline.make(wave, np.array([0.5, 4.5])).values(wave[None] ** 2).tolist()
      [[0.25, 20.25]]
    """

    step: np.ndarray  # float64[N - 1], of the grid
    bands: np.ndarray  # float64[3, N], of the equations for the slopes at its pixels
    left: np.ndarray  # int[M], the pixel to the left of every place
    away: np.ndarray  # float64[M], how far it is

    @classmethod
    def make(cls, wave: np.ndarray, at: np.ndarray) -> Spline:
        """What does not depend on the values.

        Args:
          wave: float64[N], N > 3, strictly increasing.
          at: float64[M], between the ends of `wave`.
        """
        step, bands = np.diff(wave), np.zeros((3, wave.size))
        bands[1, 1:-1] = 2 * (step[:-1] + step[1:])
        bands[0, 2:], bands[2, :-2] = step[:-1], step[1:]
        bands[1, 0], bands[0, 1] = step[1], wave[2] - wave[0]
        bands[1, -1], bands[2, -2] = step[-2], wave[-1] - wave[-3]
        left = np.clip(np.searchsorted(wave, at, side="right") - 1, 0, wave.size - 2)
        return cls(step, bands, left, at - wave[left])

    def values(self, values: np.ndarray) -> np.ndarray:
        """float64[S, M] at the places, of finite float[S, N] on the grid."""
        y, step = values.astype(np.float64, copy=False), self.step
        slope = np.diff(y, axis=1)
        slope /= step
        right = np.empty(y.shape)
        np.multiply(slope[:, :-1], step[1:], out=right[:, 1:-1])
        right[:, 1:-1] += step[:-1] * slope[:, 1:]
        right[:, 1:-1] *= 3
        first, last = self.bands[0, 1], self.bands[2, -2]
        right[:, 0] = (step[0] + 2 * first) * step[1] * slope[:, 0] + step[0] ** 2 * slope[:, 1]
        right[:, 0] /= first
        right[:, -1] = step[-1] ** 2 * slope[:, -2] + (2 * last + step[-1]) * step[-2] * slope[:, -1]
        right[:, -1] /= last
        tangent = linalg.solve_banded((1, 1), self.bands, right.T, overwrite_b=True, check_finite=False).T
        here, quadratic = tangent.take(self.left, axis=1), slope.take(self.left, axis=1)
        cubic = tangent.take(self.left + 1, axis=1)
        size = step[self.left]
        cubic += here
        cubic -= 2 * quadratic
        cubic /= size
        quadratic -= here
        quadratic /= size
        quadratic -= cubic
        cubic /= size
        z = self.away
        out = y.take(self.left, axis=1)
        out += here * z
        out += quadratic * (z * z)
        out += cubic * (z * z * z)
        return out
