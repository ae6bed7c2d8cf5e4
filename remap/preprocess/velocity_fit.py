"""The fit of velocities: a linear combination of templates, shifted on the observed pixels themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from remap.preprocess.flattening import Flattened
from remap.preprocess.templates import OVERSAMPLE, Table, Templates
from remap.spectra import SPEED_OF_LIGHT

RIDGE = 0.01  # of the templates' usual power
CORRELATED = 5.0  # half widths, over which residuals are correlated by noise and by lines that do not fit
ITERATIONS = 3  # of the fit; from the maximum of a parabola they reach 2 % of the error


class Fit(NamedTuple):
    """What the fit finds, of S spectra."""

    place: np.ndarray  # shift in steps of the coarse grid
    error: np.ndarray  # its standard deviation
    amplitude: np.ndarray
    chi2: np.ndarray
    significance: np.ndarray  # height of the model's lines over its standard deviation
    parts: np.ndarray  # effective number of those that the gain comes from


def fit_shifts(
    flat: Mapping[str, Flattened], templates: Templates, best: np.ndarray, start: np.ndarray, smooth: float
) -> Fit:
    """The shift of a linear combination of the best templates, by Gauss-Newton.

    The variance is that of an M-estimator, Σ_ij g_i g_j / H² with g the terms of the derivative of χ² and pairs up to
    a few line widths apart (Newey & West 1987, Econometrica 55, 703). The shares of the templates are fitted too.

    Args:
      best: int[S, K].
      start: float64[S], in steps.
      smooth: width of the parts, km/s.
    """
    weights = {}
    for arm, (_, weight) in flat.items():
        table = templates.tables[arm]
        at = table.place - OVERSAMPLE * start[:, None]
        # The same for all iterations: else the pixels that a shift brings in would count for it.
        ends = np.interp(at, np.arange(table.weight.size), table.weight, left=0, right=0)
        weights[arm] = (weight * ends).astype(np.float32)
    place, before = start.copy(), None
    reach = 2 * templates.width + 2
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(ITERATIONS):
            curves = {a: _curves(flat[a], templates.tables[a], best, place) for a in flat}
            model = _solve(sum(_moments(curves[a], weights[a]) for a in flat))
            move = model.gradient / model.curvature / OVERSAMPLE
            # Where residuals are large, Gauss-Newton converges slowly: a secant through its last two steps does not.
            factor = 1.0 if before is None else (place - before[0]) / (before[1] - move)
            before = place, move
            move = move * np.where((factor > 0.3) & (factor < 3), factor, 1)
            place = np.clip(place + np.clip(np.nan_to_num(move), -1, 1), start - reach, start + reach)
        # The last step is so small that the curves of before it serve for what follows.
        number, slope_sum, height_sum, parts = 0.0, 0.0, 0.0, []
        for arm, w in weights.items():
            total = np.maximum(w.sum(axis=1), np.finfo(np.float32).tiny)[:, None, None]
            mean, rows = curves[arm] @ w[:, :, None] / total, model.rows.astype(np.float32)
            # Rows: the model's lines, and its slope less what the shares of the templates can take up.
            fitted, across = np.moveaxis(rows @ curves[arm] - rows @ mean, 1, 0)
            light = curves[arm][:, 1] - mean[:, 1]
            residual = w * (light - fitted)
            parts.append(np.add.reduceat(w * light * fitted, _cuts(templates, arm, smooth), axis=1))
            number = number + np.count_nonzero(w, axis=1)
            pixel = np.median(np.diff(templates.tables[arm].place)) / OVERSAMPLE
            span = max(int(np.ceil(CORRELATED * templates.width / pixel)), 2)
            slope_sum = slope_sum + _correlated(residual * across, span)
            height_sum = height_sum + _correlated(residual * fitted, span)
        error = np.sqrt(slope_sum) / model.curvature / OVERSAMPLE
        significance = np.nan_to_num(model.power / np.sqrt(height_sum))
        gain = np.concatenate(parts, axis=1, dtype=np.float64)
        support = np.nan_to_num(gain.sum(axis=1) ** 2 / np.sum(gain**2, axis=1))
    return Fit(place, error, model.shares.sum(axis=1), model.squares / number, significance, support)


def _cuts(templates: Templates, arm: str, width: float) -> np.ndarray:
    """First pixels of the parts of an arm, each about `width` km/s wide."""
    place = templates.tables[arm].place
    parts = max(1, round(place[-1] * templates.step / OVERSAMPLE * SPEED_OF_LIGHT / width))
    return np.searchsorted(place, np.arange(parts) * place[-1] / parts)


class _Model(NamedTuple):
    """The best linear combination of K templates at a shift, of S spectra."""

    shares: np.ndarray  # [S, K]
    rows: np.ndarray  # [S, 2, 2 + 2 K], over the curves: the model, and its slope across the templates
    gradient: np.ndarray  # of half the χ², by the shift in points
    curvature: np.ndarray  # of the same
    squares: np.ndarray  # χ²
    power: np.ndarray  # weighted sum of the model's squares


def _solve(moments: np.ndarray) -> _Model:
    """The shares of the templates, by least squares with a small ridge (they are much alike), and what follows."""
    size = (moments.shape[1] - 2) // 2
    t, g = slice(2, 2 + size), slice(2 + size, None)
    tt, dt = moments[:, t, t], moments[:, t, 1]
    usual = np.trace(tt, axis1=1, axis2=2)[:, None, None] / size
    sound = np.isfinite(moments).all(axis=(1, 2), keepdims=True) & (usual > 0)
    inverse = np.linalg.inv(np.where(sound, tt / np.where(sound, usual, 1), 0) + RIDGE * np.eye(size))
    inverse = np.where(sound, inverse / usual, np.nan)
    shares = np.einsum("skl,sl->sk", inverse, dt)
    slope = np.einsum("skl,sl->sk", moments[:, t, g], shares)
    taken = np.einsum("skl,sl->sk", inverse, slope)
    power = np.einsum("sk,skl,sl->s", shares, tt, shares)
    rows = np.zeros((len(moments), 2, moments.shape[1]))
    rows[:, 0, t], rows[:, 1, t], rows[:, 1, g] = shares, -taken, shares
    return _Model(
        shares=shares,
        rows=rows,
        gradient=np.sum(shares * slope, axis=1) - np.sum(shares * moments[:, 1, g], axis=1),
        curvature=np.einsum("sk,skl,sl->s", shares, moments[:, g, g], shares) - np.sum(slope * taken, axis=1),
        squares=moments[:, 1, 1] - 2 * np.sum(shares * dt, axis=1) + power,
        power=power,
    )


def _correlated(terms: np.ndarray, span: int) -> np.ndarray:
    """Σ_ij K(i - j) x_i x_j of terms [S, N] with the triangle K that falls to 0 at `span`: [S].

    The same as the mean square of the sums over all windows of that many pixels.
    """
    total = np.pad(np.cumsum(terms, axis=1, dtype=np.float64), ((0, 0), (span, 0)))
    total = np.pad(total, ((0, 0), (0, span - 1)), mode="edge")
    return np.sum((total[:, span:] - total[:, :-span]) ** 2, axis=1) / span


def _curves(flat: Flattened, table: Table, best: np.ndarray, place: np.ndarray) -> np.ndarray:
    """On an arm's pixels [S, 2 + 2 K, N]: 1, the spectrum, its K templates shifted by `place` steps, their slopes."""
    at = table.place - OVERSAMPLE * place[:, None]
    size, points = best.shape[1], table.value.shape[1]
    first = at.astype(np.intp)
    np.clip(first, 0, points - 2, out=first)
    at -= first
    np.clip(at, 0, 1, out=at)
    share = at.astype(np.float32)
    out = np.empty((len(best), 2 + 2 * size, table.place.size), np.float32)
    out[:, 0] = 1
    out[:, 1] = flat.value
    for k in range(size):
        found = table.both.take(first + (best[:, k] * points)[:, None])
        found = found.view(np.float32).reshape(*share.shape, 4)
        for i, part in ((2 + k, 0), (2 + size + k, 2)):
            np.multiply(found[..., part + 1], share, out=out[:, i])
            out[:, i] += found[..., part]
    return out


def _moments(curves: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of products of the curves less their means: [S, C, C]."""
    product = ((curves * weight[:, None]) @ curves.swapaxes(1, 2)).astype(np.float64)
    first = product[:, 0]
    return product - first[:, :, None] * first[:, None] / np.maximum(first[:, :1, None], np.finfo(float).tiny)
