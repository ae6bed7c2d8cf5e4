"""Features that stand still on the detector while the stars' lines move with their velocities (paper §3.3).

Residuals of the sky, hot and bad columns, interference and telluric lines are at the same pixels in many stars. Every
star is divided by a smooth continuum and by a model that moves with it: a combination of a few spectra found from all
stars at rest (principal components). What is left is averaged over the stars pixel by pixel; a line that the model
misses is smeared over the range of the velocities, what stands still is not.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from remap.preprocess.cleaning import BLOCK, CleaningSettings, nan_median, segment_median
from remap.spectra import MEDIA, SPEED_OF_LIGHT, Spectra, SpectrumError, to_medium

log = logging.getLogger(__name__)

SEGMENT = 128  # pixels over which continuum and scatter are taken
MODELLED = 400  # stars from which the components are found
ROUNDS = 2  # the second looks for components without what was found by the first
CLIP = 4.0  # σ: a star says no more than this against or for a feature
TALL = 3.0  # σ at which a star shows a feature
RANGE = (5, 95)  # percentiles between which the velocities must spread by a line spread
BASELINE = 5  # widths of the widest feature over which the mean of the stars is levelled
GROW = 0.5  # of the threshold, for the pixels beside those found
SAME = 0.5  # pixels: grids that differ by less are one detector


@dataclasses.dataclass(frozen=True)
class StationaryMask:
    """Wavelengths, as observed, at which nothing is to be believed. Keep it with what was learnt from masked spectra.

    Attributes:
      intervals: pairs (low, high) in Å, increasing, not overlapping.
      medium: "air" or "vacuum".
      stars: number of stars that it was found from.

    Raises:
      SpectrumError: intervals that are not finite, increasing pairs, or an unknown medium.
    """

    intervals: tuple[tuple[float, float], ...]
    medium: str
    stars: int = 0

    def __post_init__(self) -> None:
        ends = np.array(self.intervals, np.float64).reshape(-1)
        if self.medium not in MEDIA:
            raise SpectrumError(f"stationary mask: medium must be one of {MEDIA}, found {self.medium!r}")
        if any(len(pair) != 2 for pair in self.intervals) or not (
            np.all(np.isfinite(ends)) and np.all(np.diff(ends) >= 0) and np.all(ends[1::2] > ends[::2])
        ):
            raise SpectrumError(
                f"stationary mask: expected increasing pairs of wavelengths, found {self.intervals!r:.200}"
            )

    def pixels(self, wave: np.ndarray, medium: str) -> np.ndarray:
        """bool[N]: which wavelengths (float64[N], Å, in `medium`, as observed) lie in the intervals."""
        wave = to_medium(wave, source=medium, target=self.medium)
        ends = np.array(self.intervals, np.float64).reshape(-1)
        return np.searchsorted(ends, wave, side="right") % 2 == 1

    def to_json(self) -> str:
        """The mask as text."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> StationaryMask:
        """The mask that `to_json` wrote.

        Raises:
          SpectrumError: the text is no such mask.
        """
        try:
            found = json.loads(text)
            pairs = tuple((float(low), float(high)) for low, high in found["intervals"])
            return cls(pairs, str(found["medium"]), int(found["stars"]))
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, SpectrumError):
                raise
            raise SpectrumError(
                f"stationary mask: expected intervals, medium and stars as JSON: {error}"
            ) from error


def find_stationary(
    spectra: Spectra | Sequence[Spectra],
    *,
    velocities: ArrayLike | None = None,
    settings: CleaningSettings,
) -> StationaryMask:
    """Features that many stars have at one place of the detector, up to `stationary_width` pixels wide, either sign.

    A feature is found where the mean over the stars stands out, or where `stationary_share` of the stars show it at
    3σ (a bright feature need not be in every spectrum: the paper has them in a fifth).

    Args:
      spectra: single stars, with bad pixels and cosmic rays masked, as observed: on the pixels of the detector, not
        shifted to rest. Spectra on pixels other than the first one's are used where they coincide with them.
      velocities: float[S], km/s, of each star in the frame of the wavelengths; None takes the fact `rv`, and
        where that is missing a cross-correlation with the mean star. NaN: the star is not used.
      settings: see `CleaningSettings`.

    Returns:
      The mask; without intervals where it cannot be told: fewer than `min_stars` stars, or velocities that spread by
      less than the line spread, so that the stars' own lines stand still, too. The log says so.

    Raises:
      SpectrumError: velocities whose number is not that of the stars, stars in different media.
    """
    stars = _Stars([spectra] if isinstance(spectra, Spectra) else list(spectra))
    empty = StationaryMask((), stars.medium, 0)
    if stars.count < settings.min_stars:
        log.warning(
            "stationary features: expected at least %d stars, found %d: nothing is masked",
            settings.min_stars,
            stars.count,
        )
        return empty
    shifts = _log_shifts(stars, velocities)
    used = np.flatnonzero(np.isfinite(shifts))
    if used.size < settings.min_stars:
        log.warning(
            "stationary features: expected velocities of at least %d stars, found %d: nothing is masked",
            settings.min_stars,
            used.size,
        )
        return empty
    spread = float(np.subtract(*np.percentile(shifts[used], RANGE[::-1])))
    needed = stars.line_width(settings)
    if not spread >= needed:
        log.warning(
            "stationary features: the velocities of %d stars spread by %.0f km/s (5th to 95th percentile), less "
            "than the line spread of %.0f km/s: what stands still cannot be told from lines, and nothing is masked",
            used.size,
            spread * SPEED_OF_LIGHT,
            needed * SPEED_OF_LIGHT,
        )
        return empty
    found = np.zeros(stars.wave.size, bool)
    for _ in range(ROUNDS):
        found = _standing(stars, shifts, used, found, settings)
    edges = np.concatenate(
        [[1.5 * stars.wave[0] - 0.5 * stars.wave[1]], (stars.wave[1:] + stars.wave[:-1]) / 2]
    )
    edges = np.append(edges, 1.5 * stars.wave[-1] - 0.5 * stars.wave[-2])
    changes = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8)))
    pairs = tuple((float(edges[a]), float(edges[b])) for a, b in changes.reshape(-1, 2))
    return StationaryMask(pairs, stars.medium, int(used.size))


def mask_stationary(spectra: Spectra, mask: StationaryMask) -> Spectra:
    """The pixels in the mask's intervals become bad ones; flux is as it was.

    Args:
      spectra: as observed, before any shift to rest, in either medium.
      mask: of the same instrument.

    Returns:
      The spectra with `valid` bool[S, N] changed.
    """
    return dataclasses.replace(spectra, valid=spectra.valid & ~mask.pixels(spectra.wave, spectra.medium))


class _Stars:
    """Many spectra as one table on the pixels of the first, a few rows at a time."""

    def __init__(self, parts: list[Spectra]) -> None:
        if not parts:
            raise SpectrumError("stationary features: expected spectra, found none")
        self.parts, self.wave, self.medium = parts, parts[0].wave, parts[0].medium
        for part in parts:
            if part.medium != self.medium:
                raise SpectrumError(
                    f"{part.names[0] if part.names else 'spectra'}: expected wavelengths in {self.medium} as in the "
                    f"first spectrum, found {part.medium}"
                )
        if self.wave.size < 2:
            raise SpectrumError(f"{parts[0].names[0]}: expected at least two pixels, found {self.wave.size}")
        self.owner = np.concatenate([np.full(len(p), i) for i, p in enumerate(parts)])
        self.row = np.concatenate([np.arange(len(p)) for p in parts])
        self.count = self.owner.size

    def fact(self, name: str) -> np.ndarray:
        return np.concatenate([part.fact(name) for part in self.parts])

    def line_width(self, settings: CleaningSettings) -> float:
        """FWHM of the line spread over the wavelength; two pixels where it is not known."""
        if self.parts[0].fwhm is not None:
            return float(np.median(self.parts[0].fwhm / self.wave))
        if settings.fwhm is not None:
            return float(settings.fwhm / np.median(self.wave))
        if settings.resolution is not None:
            return 1 / settings.resolution
        return float(np.median(2 * np.gradient(self.wave) / self.wave))

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux over a smooth continuum, and validity, [K, N] of some of the stars."""
        flux = np.full((index.size, self.wave.size), np.nan)
        for i, (owner, row) in enumerate(zip(self.owner[index], self.row[index], strict=True)):
            part = self.parts[owner]
            values = np.where(part.valid[row], part.flux[row], np.nan)
            if part.wave is self.wave or np.array_equal(part.wave, self.wave):
                flux[i] = values
                continue
            place = np.interp(part.wave, self.wave, np.arange(self.wave.size), left=np.nan, right=np.nan)
            near = np.rint(np.nan_to_num(place, nan=-1)).astype(int)
            same = np.isfinite(place)
            flux[i, near[same]] = values[same]
        level = segment_median(flux, SEGMENT, smooth=3)
        with np.errstate(divide="ignore", invalid="ignore"):
            flux = flux / level
        good = np.isfinite(flux) & (level > 0)
        return np.clip(np.where(good, flux, 1.0), -3.0, 5.0), good


def _log_shifts(stars: _Stars, velocities: ArrayLike | None) -> np.ndarray:
    """float64[S]: ln(observed / rest wavelength) of each star; up to a constant where it had to be measured."""
    if velocities is None:
        given = stars.fact("rv")
    else:
        given = np.asarray(velocities, np.float64)
        if given.shape != (stars.count,):
            raise SpectrumError(
                f"stationary features: expected {stars.count} velocities, one per star, found shape {given.shape}"
            )
    beta = np.where(np.abs(given) < SPEED_OF_LIGHT, given, np.nan) / SPEED_OF_LIGHT
    if velocities is not None or np.isfinite(beta).any():
        return np.arctanh(beta)  # half of ln((1 + β) / (1 - β))
    log.info("stationary features: no velocities are given; stars are compared with their mean")
    return _measured_shifts(stars)


def _measured_shifts(stars: _Stars) -> np.ndarray:
    """Shifts against the mean star by cross-correlation, in two rounds; the mean of the second is at rest."""
    logw = np.log(stars.wave)
    grid = np.linspace(logw[0], logw[-1], logw.size)
    size, step = 2 * grid.size, grid[1] - grid[0]
    reach = int(np.ceil(0.002 / step))  # 600 km/s
    shifts = np.zeros(stars.count)
    for _ in range(3):
        mean = np.zeros(size // 2 + 1, complex)
        frequency = 2j * np.pi * np.fft.rfftfreq(size, d=step)
        for index in _chunks(np.arange(stars.count), grid.size):
            moved = np.fft.rfft(_lines(stars, index, logw, grid), size, axis=1)
            mean += np.sum(moved * np.exp(frequency * shifts[index, None]), axis=0)
        new = np.full(stars.count, np.nan)
        for index in _chunks(np.arange(stars.count), grid.size):
            lines = np.fft.rfft(_lines(stars, index, logw, grid), size, axis=1)
            own = np.exp(-frequency * shifts[index, None]) * np.abs(lines) ** 2
            curve = np.fft.irfft(lines * np.conj(mean) - own * np.exp(0 * frequency), axis=1)
            curve = np.concatenate([curve[:, -reach:], curve[:, : reach + 1]], axis=1)
            peak = np.clip(np.argmax(curve, axis=1), 1, 2 * reach - 1)
            a, b, c = (np.take_along_axis(curve, peak[:, None] + k, axis=1)[:, 0] for k in (-1, 0, 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                fine = np.clip((a - c) / (2 * (a - 2 * b + c)), -1, 1)
            new[index] = np.where(b > 0, (peak - reach + np.nan_to_num(fine)) * step, np.nan)
        shifts = np.nan_to_num(new - np.nanmedian(new))
    return np.where(np.isfinite(new), shifts, np.nan)


def _lines(stars: _Stars, index: np.ndarray, logw: np.ndarray, grid: np.ndarray) -> np.ndarray:
    flux, good = stars.take(index)
    flat = np.where(good, np.clip(1 - flux, -0.3, 1), 0.0) * np.hanning(logw.size) ** 0.25
    return np.array([np.interp(grid, logw, row) for row in flat - flat.mean(axis=1, keepdims=True)])


def _chunks(index: np.ndarray, pixels: int) -> list[np.ndarray]:
    return np.array_split(index, max(1, -(-index.size * pixels // BLOCK)))


def _standing(
    stars: _Stars, shifts: np.ndarray, used: np.ndarray, known: np.ndarray, settings: CleaningSettings
) -> np.ndarray:
    """bool[N]: pixels that stand out of the mean of the residuals, or in a share of the stars."""
    logw = np.log(stars.wave)
    shifts = shifts - np.median(shifts[used])
    margin = np.abs(shifts[used]).max()
    step = np.median(np.diff(logw))
    grid = np.arange(logw[0] - margin, logw[-1] + margin + step, step)
    mean, basis = _components(stars, shifts, used, known, logw, grid, settings)
    total, number, high, low = (np.zeros(stars.wave.size) for _ in range(4))
    for index in _chunks(used, 4 * grid.size):
        flux, good = stars.take(index)
        good = good & ~known
        residual = np.zeros_like(flux)
        for i, star in enumerate(index):
            place = (logw - shifts[star] - grid[0]) / step
            rows = np.array(
                [
                    ndimage.map_coordinates(c, [place], order=3, prefilter=False, mode="nearest")
                    for c in (mean, *basis)
                ]
            )
            use = good[i]
            if use.sum() < 8 * len(rows):
                good[i] = False
                continue
            # a smooth curve as well: the continuum of a star with strong lines is not that of the mean
            smooth = np.polynomial.legendre.legvander(np.linspace(-1, 1, logw.size), 4).T
            design = np.concatenate([rows, smooth * rows[0]])
            model = _robust_fit(design, flux[i], use)
            residual[i] = flux[i] - model
        flux, good = stars.take(index) if known.any() else (flux, good)
        scatter = 1.4826 * segment_median(np.where(good, np.abs(residual), np.nan), SEGMENT, smooth=3)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(good & (scatter > 0), residual / scatter, np.nan)
        fine = np.isfinite(t)
        t = np.where(fine, t, 0.0)
        total += np.clip(t, -CLIP, CLIP).sum(axis=0)
        number += fine.sum(axis=0)
        high += (t > TALL).sum(axis=0)
        low += (t < -TALL).sum(axis=0)
    some = number >= settings.min_stars
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(some, total / np.sqrt(number), np.nan)
    z = _levelled(z, settings.stationary_width)
    scale = 1.4826 * segment_median(np.abs(z)[None], 2 * SEGMENT, smooth=3)[0]
    z = np.nan_to_num(z / np.maximum(np.nan_to_num(scale, nan=1.0), 1.0))
    found = np.zeros(z.size, bool)
    for sign, tall in ((1, high), (-1, low)):
        share = np.where(some, tall / np.maximum(number, 1), 0.0)
        usual = segment_median(np.where(some, share, np.nan)[None], 2 * SEGMENT, smooth=3)[0]
        usual = np.clip(np.nan_to_num(usual, nan=1.0), 0.002, 1.0)
        error = np.sqrt(usual * (1 - np.minimum(usual, 0.999)) / np.maximum(number, 1))
        often = (share - usual > settings.stationary_share) & (
            share - usual > settings.stationary_sigma * error
        )
        seeds = (sign * z > settings.stationary_sigma) | often
        beside = (sign * z > GROW * settings.stationary_sigma) | (
            share - usual > GROW * settings.stationary_share
        ) & (share - usual > GROW * settings.stationary_sigma * error)
        found |= _grown(seeds, beside, settings.stationary_width)
    return found


def _levelled(z: np.ndarray, widest: int) -> np.ndarray:
    """z less its running median over several widths of the widest feature: what is wider stays out of it."""
    size = 2 * (BASELINE * widest // 2) + 1
    known = np.isfinite(z)
    if not known.any():
        return z
    filled = np.interp(np.arange(z.size), np.flatnonzero(known), z[known])
    return np.where(known, z - ndimage.median_filter(filled, size, mode="nearest"), np.nan)


def _grown(seeds: np.ndarray, beside: np.ndarray, widest: int) -> np.ndarray:
    """Seeds and what hangs together with them, no further than a feature is wide."""
    reach = ndimage.binary_dilation(seeds, np.ones(2 * (widest - 1) + 1, bool)) if widest > 1 else seeds
    return ndimage.binary_propagation(seeds, mask=(beside & reach) | seeds)


def _components(
    stars: _Stars,
    shifts: np.ndarray,
    used: np.ndarray,
    known: np.ndarray,
    logw: np.ndarray,
    grid: np.ndarray,
    settings: CleaningSettings,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Spline coefficients of the mean star and of the main differences from it, on `grid` (ln λ at rest)."""
    some = used[np.linspace(0, used.size - 1, min(MODELLED, used.size)).astype(int)]
    table = np.full((some.size, grid.size), np.nan, np.float32)
    for i, index in enumerate(np.array_split(some, max(1, some.size // 64))):
        flux, good = stars.take(index)
        good = good & ~known
        start = sum(len(a) for a in np.array_split(some, max(1, some.size // 64))[:i])
        for j, star in enumerate(index):
            if not good[j].any():
                continue
            at = grid + shifts[star]
            place = np.interp(at, logw, np.arange(logw.size), left=np.nan, right=np.nan)
            bridged = np.interp(np.arange(logw.size), np.flatnonzero(good[j]), flux[j, good[j]])
            inside = np.isfinite(place)
            near = np.rint(place[inside]).astype(int)
            values = ndimage.map_coordinates(bridged, [place[inside]], order=3, mode="nearest")
            table[start + j, inside] = np.where(good[j, near], values, np.nan)
    mean = np.nan_to_num(nan_median(table.T), nan=1.0)
    rest = np.nan_to_num(table - mean.astype(np.float32))
    limit = 5 * 1.4826 * np.median(np.abs(rest), axis=1, keepdims=True) + 0.02
    rest = np.clip(rest, -limit, limit)
    number = min(settings.components, some.size // 8)
    vectors = []
    if number > 0:
        # of the stars' products, since there are fewer stars than pixels
        gram = rest @ rest.T
        _, weights = np.linalg.eigh(gram.astype(np.float64))
        vectors = list((weights[:, -number:].T @ rest).astype(np.float64))
        vectors = [v / max(np.linalg.norm(v), 1e-300) for v in vectors]
    return ndimage.spline_filter1d(mean, 3), [ndimage.spline_filter1d(v, 3) for v in vectors]


def _robust_fit(design: np.ndarray, y: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Least squares of y [N] on the rows of a design [K, N], once more without what is far off."""
    for _ in range(2):
        x = design[:, use]
        normal = x @ x.T
        normal[np.diag_indices_from(normal)] *= 1 + 1e-9
        normal[np.diag_indices_from(normal)] += 1e-12
        model = np.linalg.solve(normal, x @ y[use]) @ design
        away = np.abs(y - model)
        limit = 4 * 1.4826 * np.median(away[use])
        use = use & (away <= max(limit, 1e-12))
        if use.sum() < 8 * len(design):
            break
    return model
