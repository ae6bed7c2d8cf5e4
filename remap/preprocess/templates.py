"""Templates that velocities are measured with: spectra of the library, spread over its labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import fft, interpolate

from remap.config import ConfigError
from remap.preprocess.flattening import bridge, flatten, taper
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import MEDIA, to_medium

OVERSAMPLE = 4  # points of a template's table per step of the coarse grid, with straight lines between


@dataclasses.dataclass(frozen=True, eq=False)
class Templates:
    """Spectra of the library to compare with, at rest. `make_templates` makes them.

    Attributes:
      wave: arm -> float64[N], Å, increasing, in `medium`.
      flux: arm -> float32[T, N], flux over its continuum, less one; 0 where `valid` is False.
      valid: arm -> bool[N].
      labels: float64[T, L].
      index: int[T], which spectra of the library they are.
      medium: "air" or "vacuum".
      taper: as in `VelocitySettings`.
    """

    wave: Mapping[str, np.ndarray]
    flux: Mapping[str, np.ndarray]
    valid: Mapping[str, np.ndarray]
    labels: np.ndarray
    index: np.ndarray
    medium: str
    taper: float

    @functools.cached_property
    def step(self) -> float:
        """Step of the coarse grid in ln λ: the finest usual pixel of an arm."""
        return min(float(np.median(np.diff(u))) for u in self._log_wave.values())

    @functools.cached_property
    def width(self) -> float:
        """Half width at half maximum of the templates' autocorrelation, in steps: how far apart lines are told."""
        size = 2 * max(table.weight.size for table in self.tables.values())
        power = sum((np.abs(fft.rfft(t.value, size)) ** 2).sum(axis=0) for t in self.tables.values())
        correlation = fft.irfft(power)
        return max(float(np.argmax(correlation < correlation[0] / 2)) / OVERSAMPLE, 1.0)

    @functools.cached_property
    def tables(self) -> Mapping[str, Table]:
        """The templates of every arm, finely sampled in ln λ."""
        return {arm: self._table(arm) for arm in self.wave}

    @functools.cached_property
    def _log_wave(self) -> Mapping[str, np.ndarray]:
        return {a: np.log(to_medium(w, source=self.medium, target="vacuum")) for a, w in self.wave.items()}

    def _table(self, arm: str) -> Table:
        u, good = self._log_wave[arm], self.valid[arm]
        fine = self.step / OVERSAMPLE
        at = u[0] + fine * np.arange(int((u[-1] - u[0]) / fine) + 1)
        curve = interpolate.CubicSpline(u, self.flux[arm], axis=1)
        cover = np.interp(at, u, good) >= 1
        weight = taper(cover[None], self.taper)[0]
        value = np.where(cover, curve(at), 0).astype(np.float32, order="C")
        slope = np.where(cover, curve(at, 1) * fine, 0).astype(np.float32, order="C")
        return Table((u - u[0]) / fine, value, slope, weight.astype(np.float32), _with_changes(value, slope))


class Table(NamedTuple):
    """An arm's templates on M points that are even in ln λ."""

    place: np.ndarray  # float64[N], where the pixels of the arm are, in points
    value: np.ndarray  # float32[T, M]
    slope: np.ndarray  # float32[T, M], change of `value` per point
    weight: np.ndarray  # float32[M], falls to 0 at the ends
    both: np.ndarray  # complex128[T M]: the bytes of value and slope, each with its change to the next point


def _with_changes(value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """What straight lines between the points need, side by side: one look-up of 16 bytes for four of 4."""
    out = np.zeros((*value.shape, 4), np.float32)
    out[..., 0], out[..., 2] = value, slope
    out[:, :-1, 1], out[:, :-1, 3] = np.diff(value, axis=1), np.diff(slope, axis=1)
    return out.reshape(-1).view(np.complex128)


def make_templates(
    flux: Mapping[str, np.ndarray],
    valid: Mapping[str, np.ndarray],
    wave: Mapping[str, np.ndarray],
    labels: np.ndarray,
    medium: str,
    settings: VelocitySettings | None = None,
) -> Templates:
    """Picks spectra of a library that are spread over its labels, and takes their continuum away.

    Args:
      flux: arm -> float[P, N], at the line spread of the spectra to be measured; any unit.
      valid: arm -> bool[N].
      wave: arm -> float64[N], Å, increasing.
      labels: float[P, L].
      medium: "air" or "vacuum".

    Raises:
      ConfigError: shapes that do not agree, an unknown medium, no usable spectrum.
    """
    settings = settings or VelocitySettings()
    labels = np.atleast_2d(np.asarray(labels, np.float64))
    if medium not in MEDIA:
        raise ConfigError(f"templates: medium must be one of {MEDIA}, found {medium!r}")
    if not flux or set(flux) != set(wave) or set(flux) != set(valid):
        raise ConfigError(
            f"templates: expected the same arms, found {sorted(flux)}, {sorted(valid)}, {sorted(wave)}"
        )
    for arm in flux:
        shape = (len(labels), len(wave[arm]))
        if flux[arm].shape != shape or valid[arm].shape != shape[1:] or shape[1] < 4:
            raise ConfigError(
                f"templates, arm {arm}: expected flux {shape} and a mask {shape[1:]} of at least 4 pixels, found "
                f"{flux[arm].shape} and {valid[arm].shape}"
            )
    finite = np.isfinite(labels).all(axis=1)
    for arm in flux:
        finite &= np.isfinite(flux[arm][:, valid[arm]]).all(axis=1)
    if not finite.any():
        raise ConfigError("templates: none of the library's spectra is finite and has finite labels")
    pick = np.flatnonzero(finite)[_spread(labels[finite], settings.templates)]
    flat = {}
    for arm in flux:
        every = np.broadcast_to(valid[arm], (pick.size, valid[arm].size))
        made = flatten(flux[arm][pick], every, None, wave=wave[arm], settings=settings, clip=False)
        flat[arm] = bridge(made.value, made.weight > 0).astype(np.float32)
    grids = {arm: np.asarray(w, np.float64) for arm, w in wave.items()}
    masks = {arm: np.asarray(v, bool) for arm, v in valid.items()}
    return Templates(grids, flat, masks, labels[pick], pick, medium, settings.taper)


def _spread(labels: np.ndarray, number: int) -> np.ndarray:
    """Indices of about even points of label space: farthest points first, then moved to the middle of their cells."""
    span = np.ptp(labels, axis=0)
    scaled = (labels - labels.min(axis=0)) / np.where(span > 0, span, 1)
    chosen = [int(np.argmin(np.sum((scaled - scaled.mean(axis=0)) ** 2, axis=1)))]
    distance = np.full(len(labels), np.inf)
    for _ in range(min(number, len(labels)) - 1):
        distance = np.minimum(distance, np.sum((scaled - scaled[chosen[-1]]) ** 2, axis=1))
        if distance.max() == 0:
            break
        chosen.append(int(np.argmax(distance)))
    centres = scaled[chosen]
    for _ in range(10):
        cell = np.argmin(np.sum((scaled[:, None] - centres) ** 2, axis=2), axis=1)
        middle = [scaled[cell == i].mean(axis=0) if np.any(cell == i) else c for i, c in enumerate(centres)]
        centres = np.stack(middle)
    return np.unique(np.argmin(np.sum((scaled[:, None] - centres) ** 2, axis=2), axis=0))
