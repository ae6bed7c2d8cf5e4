"""Exposures on the arms' grids: one convolution and one interpolation, with the velocity taken out, then stacked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from remap.preprocess.description import Preprocessing
from remap.preprocess.exposures import Exposures
from remap.preprocess.grid import coarser_than, observed_on_grid
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import ArmOnGrid, empty_arm, put
from remap.preprocess.stacking import stack
from remap.spectra import Spectra, make_spectra

# Arm -> its spectra, and bool[E]: their lines are wider than the networks know them, or of unknown width.
Placed = dict[str, tuple[ArmOnGrid, np.ndarray]]


def place(
    split: Exposures, velocity: np.ndarray, preprocessing: Preprocessing, settings: ObserveSettings
) -> Placed:
    """Every exposure on every arm's grid, and whether its lines are too wide there.

    Args:
      velocity: float[E], km/s to take out; rows with NaN are left out.
    """
    out: Placed = {}
    for arm in preprocessing.arms:
        pixels = len(preprocessing.wave(arm))
        found: list[tuple[Spectra, np.ndarray, np.ndarray]] = []
        coarse = np.zeros(len(velocity), bool)
        for segment, owner in zip(split.segments, split.owner, strict=True):
            unknown = segment.fwhm is None and (
                not settings.trust_width or _finely_sampled(segment, preprocessing, arm, settings.sharper)
            )
            for speed, rows in _by_velocity(owner, velocity):
                own = segment if rows.size == len(segment) else segment.rows(rows)
                on = observed_on_grid(own, preprocessing, arm, velocity=speed)
                wide = unknown or coarser_than(on, preprocessing, arm, tolerance=settings.coarser)
                seen = np.flatnonzero(on.valid.any(axis=1))
                coarse[owner[rows[seen]]] |= wide
                found.append((on, seen, owner[rows[seen]]))
        out[arm] = _one_each(found, len(velocity), pixels, settings), coarse
    return out


def _one_each(
    found: Sequence[tuple[Spectra, np.ndarray, np.ndarray]],
    count: int,
    pixels: int,
    settings: ObserveSettings,
) -> ArmOnGrid:
    """Segments as one spectrum per exposure: containers, int[R] rows of each, and int[R] whose they are."""
    out, several = empty_arm(count, pixels), {}
    number = np.bincount(np.concatenate([np.zeros(0, int), *(whose for *_, whose in found)]), minlength=count)
    for on, rows, whose in found:
        single = number[whose] == 1
        take = rows[single]
        if take.size:
            put(out, whose[single], on if take.size == len(on) else on.rows(take))
        for row, exposure in zip(rows[~single].tolist(), whose[~single].tolist(), strict=True):
            several.setdefault(exposure, []).append(on.rows(slice(row, row + 1)))
    for exposure, parts in several.items():
        put(out, exposure, stack(_together(parts), settings=settings.stacking))
    return out


def _by_velocity(owner: np.ndarray, velocity: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Rows of a segment that move together, each with the velocity; rows that are not used are left out."""
    rows = np.flatnonzero(owner >= 0)
    speed = velocity[owner[rows]]
    rows, speed = rows[np.isfinite(speed)], speed[np.isfinite(speed)]
    return [(float(v), rows[speed == v]) for v in np.unique(speed)]


def _finely_sampled(segment: Spectra, preprocessing: Preprocessing, arm: str, limit: float) -> bool:
    wave = preprocessing.wave(arm)
    near = (segment.wave >= wave[0]) & (segment.wave <= wave[-1])
    if np.count_nonzero(near) < 2:
        return False
    return bool(np.median(np.diff(segment.wave[near])) * limit < np.median(preprocessing.fwhm(arm)))


def _together(parts: Sequence[Spectra]) -> Spectra:
    """Rows on one grid as one container; inverse variances are dropped where one has none."""
    ivar = None
    if all(p.ivar is not None for p in parts):
        ivar = np.concatenate([np.asarray(p.ivar) for p in parts])
    return make_spectra(
        parts[0].wave,
        np.concatenate([p.flux for p in parts]),
        medium=parts[0].medium,
        valid=np.concatenate([p.valid for p in parts]),
        ivar=ivar,
        names=[n for p in parts for n in p.names],
    )
