"""Algorithm 1 as a plain NumPy loop: slow, obvious, and what tests and benchmarks compare `continuum` with.

Nothing in the package's own path imports this file, and it shares no code with the fast routine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Reference(NamedTuple):
    """What the plain loop found for one spectrum.

    Attributes:
      flux: float64[N], normalised; 1 at invalid pixels.
      continuum: float64[N], in the unit of the flux.
      nodes: float64[bins[-1]], in the unit of the flux.
      steps: for every bin count v, int[v], how often each node was lowered.
      stuck: some node was lowered as often as is allowed.
      short: some bin had fewer usable pixels than `exceed`.
      sweeps: how many continua were computed and compared with the pixels.
    """

    flux: np.ndarray
    continuum: np.ndarray
    nodes: np.ndarray
    steps: list[np.ndarray]
    stuck: bool
    short: bool
    sweeps: int


def reference(
    flux: np.ndarray,
    valid: np.ndarray,
    *,
    exceed: int,
    sigma: float,
    ratio: float = 0.999,
    bins: tuple[int, ...] = tuple(range(2, 12)),
    relift: float = 1.05,
    max_steps: int = 9206,
    degree: int = 6,
) -> Reference:
    """Normalises one spectrum.

    Args:
      flux: float[N]; at least one valid pixel must be positive.
      valid: bool[N].
      exceed: a, the number of pixels in each bin that end at or above the continuum.
      sigma: of the final smoothing [pixels].
      ratio, bins, relift, max_steps, degree: as in `remap.continuum.ContinuumSettings`.
    """
    flux = np.asarray(flux, np.float64)
    valid = np.asarray(valid, bool) & np.isfinite(flux)
    count = len(flux)
    scale = flux[valid].max()
    z = np.where(valid, flux, 0.0) / scale
    stuck, short, sweeps, steps = False, False, 0, []
    nodes = np.full(bins[0], 11.0)
    previous = None
    for v in bins:
        edges = [i * count // v for i in range(v)]
        need = np.minimum(exceed, np.add.reduceat(((z > 0) & valid).astype(int), edges))
        short |= bool(np.any(need < exceed))
        if previous is not None:
            nodes = previous[node_pixels(count, v)] @ nodes * np.where(need > 0, relift, 1.0)
        matrix = node_matrix(count, v)
        k = np.zeros(v, int)
        while True:
            continuum = matrix @ (nodes * ratio**k)
            above = np.add.reduceat(((z >= continuum) & valid).astype(int), edges)
            lower = (above < need) & (k < max_steps)
            sweeps += 1
            if not lower.any():
                break
            k += lower
        nodes = nodes * ratio**k
        stuck |= bool(np.any(k >= max_steps))
        steps.append(k)
        previous = matrix
    continuum = scale * smooth(straight(polynomial(count, node_pixels(count, v), nodes, degree), v), sigma)
    normalised = np.where(valid & (continuum > 0), flux / np.where(continuum > 0, continuum, 1.0), 1.0)
    return Reference(normalised, continuum, scale * nodes, steps, stuck, short, sweeps)


def node_pixels(count: int, v: int) -> np.ndarray:
    """The centre pixel of each of `v` bins over `count` pixels (line 4)."""
    return np.array([(2 * i + 1) * count // (2 * v) for i in range(v)])


def node_matrix(count: int, v: int) -> np.ndarray:
    """float64[N, v]: node values -> continuum; column i is the continuum of a unit value in node i."""
    pixels = node_pixels(count, v)
    columns = []
    for unit in np.eye(v):
        if v < 5:
            columns.append(straight(polynomial(count, pixels, unit, v - 1), v))
        else:
            x = np.arange(count)
            column = np.interp(x, pixels, unit)
            left, right = x < pixels[0], x > pixels[-1]
            column[left] = unit[0] + (unit[1] - unit[0]) * (x[left] - pixels[0]) / (pixels[1] - pixels[0])
            slope = (unit[-1] - unit[-2]) / (pixels[-1] - pixels[-2])
            column[right] = unit[-1] + slope * (x[right] - pixels[-1])
            columns.append(column)
    return np.stack(columns, 1)


def polynomial(count: int, pixels: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """The least-squares polynomial through (pixels, values), at every pixel."""
    return np.polynomial.Polynomial.fit(pixels, values, degree, domain=[0, count - 1])(np.arange(count))


def straight(curve: np.ndarray, v: int) -> np.ndarray:
    """The curve with straight lines outside the first and the last of `v` nodes (lines 12 and 21)."""
    curve, count = curve.copy(), len(curve)
    pixels = node_pixels(count, v)
    first, last = pixels[0], pixels[-1]
    curve[:first] = curve[first] + (curve[first + 1] - curve[first]) * np.arange(-first, 0)
    curve[last + 1 :] = curve[last] + (curve[last] - curve[last - 1]) * np.arange(1, count - last)
    return curve


def smooth(curve: np.ndarray, sigma: float) -> np.ndarray:
    """The curve under a Gaussian of `sigma` pixels cut at 4 σ, its two ends continued as straight lines."""
    reach = int(np.ceil(4 * sigma))
    if reach == 0:
        return curve
    ahead = np.arange(1, reach + 1)
    left = curve[0] - (curve[1] - curve[0]) * ahead[::-1]
    right = curve[-1] + (curve[-1] - curve[-2]) * ahead
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.concatenate([left, curve, right]), kernel / kernel.sum(), mode="valid")
