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
FIRST_COMPONENTS = 2
STARS_EACH = 6  # stars per component
MOST = 1000  # stars that are used; more would not tell more
ROUNDS = 2.0  # where the stars move by as many pixels as the widest feature has; fewer, by the square, where by more
MOST_ROUNDS = 6
MOST_WIDE = 2  # times the widest feature: two of them side by side
RINGING = 0.2  # of the strongest feature around; weaker ones may be its echo
BESIDE = 3  # pixels within which the model's errors have both signs
CLIP = 4.0  # σ: a star says no more than this against or for a feature
TALL = 3.0  # σ at which a star shows a feature
RANGE = (5, 95)  # percentiles between which the velocities must spread by a line spread
BASELINE = 5  # widths of the widest feature over which the mean of the stars is levelled
OFTEN = 3.5  # σ of the number of stars that show a feature over those that show the opposite
SMOOTH = 4  # degree of the factor between a star's continuum and that of the mean star
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
      less than `stationary_spread` line spreads, so that the stars' own lines stand still, too. The log says so.

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
    needed = settings.stationary_spread * stars.line_width(settings)
    if not spread >= needed:
        log.warning(
            "stationary features: the velocities of %d stars spread by %.0f km/s (5th to 95th percentile), less "
            "than %.0f km/s, that of %g line spreads: what stands still cannot be told from lines; nothing is masked",
            used.size,
            spread * SPEED_OF_LIGHT,
            needed * SPEED_OF_LIGHT,
            settings.stationary_spread,
        )
        return empty
    moved = spread / float(np.median(np.diff(np.log(stars.wave))))
    widest = int(min(settings.stationary_width, max(moved, 1)))
    if widest < settings.stationary_width:
        log.warning(
            "stationary features: the stars move by %.1f pixels (5th to 95th percentile), so only features "
            "of up to %d are told from their lines",
            moved,
            widest,
        )
        settings = dataclasses.replace(settings, stationary_width=widest)
    used = used[np.unique(np.linspace(0, used.size - 1, min(MOST, used.size)).astype(int))]
    found = _standing(stars, shifts - np.median(shifts[used]), used, settings)
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
        self.every = max(1, SEGMENT // 2)  # scatter is kept at every such pixel
        self.standing = np.zeros(self.wave.size)  # in units of each star's scatter
        self.scatter = np.zeros((self.count, self.wave[:: self.every].size), np.float32)

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

    def take(self, index: np.ndarray, *, corrected: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Flux over a smooth continuum, and validity, [K, N] of some of the stars; less what stands still."""
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
        flux = np.clip(np.where(good, flux, 1.0), -3.0, 5.0)
        if corrected and self.standing.any():
            at = np.arange(self.wave.size)
            scatter = np.array([np.interp(at, at[:: self.every], row) for row in self.scatter[index]])
            flux -= scatter * self.standing
        return flux, good


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


class _Sums:
    """Sums over stars, pixel by pixel, of residuals in units of their scatter."""

    def __init__(self, pixels: int) -> None:
        self.total, self.square, self.number, self.high, self.low = np.zeros((5, pixels))

    def add(self, t: np.ndarray) -> None:
        fine = np.isfinite(t)
        t = np.clip(np.where(fine, t, 0.0), -CLIP, CLIP)
        self.total += t.sum(axis=0)
        self.square += (t**2).sum(axis=0)
        self.number += fine.sum(axis=0)
        self.high += (t > TALL).sum(axis=0)
        self.low += (t < -TALL).sum(axis=0)


def _standing(stars: _Stars, shifts: np.ndarray, used: np.ndarray, settings: CleaningSettings) -> np.ndarray:
    """bool[N]: pixels that stand out of the mean of the residuals, or in a share of the stars.

    What stands still is in the model, too, smeared by the velocities. So what has been found is taken out of the
    stars, and the model and the residuals are made again: often, where the velocities are small.
    """
    logw = np.log(stars.wave)
    step = float(np.median(np.diff(logw)))
    moved = float(np.subtract(*np.percentile(shifts[used], RANGE[::-1]))) / step
    rounds = int(np.clip(np.ceil(ROUNDS * (settings.stationary_width / moved) ** 2), 2, MOST_ROUNDS))
    margin = np.abs(shifts[used]).max() + 2 * step
    grid = np.arange(logw[0] - margin, logw[-1] + margin + step, step)
    smooth = np.polynomial.legendre.legvander(np.linspace(-1, 1, logw.size), SMOOTH)[:, 1:]
    some = used[np.unique(np.linspace(0, used.size - 1, min(MODELLED, used.size)).astype(int))]
    for turn in range(rounds):
        # few components at first: many would model what stands still as well
        number = min(settings.components if turn else FIRST_COMPONENTS, some.size // STARS_EACH)
        spline = _components(stars, shifts, some, logw, grid, number)
        sums = _Sums(logw.size)
        # the last round is the one that counts
        for index in _chunks(used if turn == rounds - 1 else some, 4 * grid.size):
            flux, good = stars.take(index, corrected=True)
            model = np.ones_like(flux)
            for i, star in enumerate(index):
                rows = _spline_at(spline, (logw - shifts[star] - grid[0]) / step)
                # a smooth factor as well: the continuum of a star with strong lines is not that of the mean
                design = np.concatenate([rows, smooth * rows[:, :1]], axis=1)
                if good[i].sum() < 8 * design.shape[1]:
                    good[i] = False
                    continue
                model[i] = _robust_fit(design, flux[i], good[i])
            scatter = 1.4826 * segment_median(np.where(good, np.abs(flux - model), np.nan), SEGMENT)
            flux, _ = stars.take(index)
            with np.errstate(divide="ignore", invalid="ignore"):
                sums.add(np.where(good & (scatter > 0), (flux - model) / scatter, np.nan))
            stars.scatter[index] = scatter[:, :: stars.every]
        found = _decide(sums, settings)
        standing = _levelled(_mean(sums, settings), settings.stationary_width)
        # of what was found alone: the mean of the lines, smeared, would stand still as well
        stars.standing = np.where(found, np.nan_to_num(standing), 0.0)
    return found


def _mean(sums: _Sums, settings: CleaningSettings) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums.number >= settings.min_stars, sums.total / sums.number, np.nan)


def _decide(sums: _Sums, settings: CleaningSettings) -> np.ndarray:
    """bool[N]: features of either sign."""
    widest, threshold = settings.stationary_width, settings.stationary_sigma
    mean, number = _mean(sums, settings), np.maximum(sums.number, 1)
    some = np.isfinite(mean)
    # no less than the noise's: few stars may agree by chance
    spread = np.sqrt(np.maximum(sums.square / number - np.nan_to_num(mean) ** 2, 1.0))
    z = _levelled(mean, widest) / spread * np.sqrt(number)
    scale = 1.4826 * segment_median(np.abs(z)[None], 2 * SEGMENT)[0]
    z = np.nan_to_num(z / np.maximum(np.nan_to_num(scale, nan=1.0), 1.0))
    # the model rings beside a strong feature
    ringing = RINGING * ndimage.maximum_filter1d(np.abs(z), 4 * widest + 1)
    usual = ndimage.uniform_filter1d(sums.high + sums.low, SEGMENT) / 2
    found = np.zeros(z.size, bool)
    for sign, mine, others in ((1, sums.high, sums.low), (-1, sums.low, sums.high)):
        # what the model lacks goes up in some stars and down in others, or down beside it
        others = ndimage.maximum_filter1d(others, 2 * BESIDE + 1)
        excess = np.where(some, mine - np.maximum(others, usual), 0.0)
        often = (excess > settings.stationary_share * number) & (excess > OFTEN * np.sqrt(others + usual + 1))
        often &= sign * z > ringing
        beside = (sign * z > np.maximum(GROW * threshold, ringing)) | (sign * z > ringing) & (
            excess > GROW * settings.stationary_share * number
        ) & (excess > GROW * OFTEN * np.sqrt(others + usual + 1))
        found |= _grown((sign * z > np.maximum(threshold, ringing)) | often, beside, widest)
    return found


def _spline_at(coefficients: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Cubic splines [N, K] at places [N], from B-spline coefficients [M, K] at 0, 1, …; ends are held."""
    first = np.floor(place).astype(int)
    x = (place - first)[:, None]
    weights = ((1 - x) ** 3, 4 - 6 * x**2 + 3 * x**3, 1 + 3 * x + 3 * x**2 - 3 * x**3, x**3)
    out = np.zeros((place.size, coefficients.shape[1]))
    for k, weight in enumerate(weights):
        taken = coefficients.take(np.clip(first + k - 1, 0, len(coefficients) - 1), axis=0)
        taken *= weight / 6
        out += taken
    return out


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
    grown = ndimage.binary_propagation(seeds, mask=(beside & reach) | seeds)
    runs, count = ndimage.label(grown)
    size = np.bincount(runs, minlength=count + 1)
    return grown & (size <= MOST_WIDE * widest)[runs]  # what is wider is a line that the model lacks


def _components(
    stars: _Stars,
    shifts: np.ndarray,
    some: np.ndarray,
    logw: np.ndarray,
    grid: np.ndarray,
    number: int,
) -> np.ndarray:
    """Spline coefficients [M, K] of the mean star and of the main differences from it, on `grid` (ln λ at rest)."""
    table = np.full((some.size, grid.size), np.nan, np.float32)
    row = 0
    pixel = np.arange(logw.size)
    for index in _chunks(some, 4 * grid.size):
        flux, good = stars.take(index, corrected=True)
        for i, star in enumerate(index):
            if good[i].sum() >= 4:
                place = np.interp(grid + shifts[star], logw, pixel, left=np.nan, right=np.nan)
                inside = np.isfinite(place)
                bridged = np.interp(pixel, pixel[good[i]], flux[i, good[i]])
                coefficients = ndimage.spline_filter1d(bridged, 3, mode="mirror")[:, None]
                values = _spline_at(coefficients, place[inside])[:, 0]
                table[row, inside] = np.where(good[i, np.rint(place[inside]).astype(int)], values, np.nan)
            row += 1
    mean = nan_median(table.T)
    known = np.isfinite(mean)
    mean = np.interp(grid, grid[known], mean[known]) if known.any() else np.ones(grid.size)
    rest = np.nan_to_num(table - mean.astype(np.float32))
    limit = 5 * 1.4826 * np.median(np.abs(rest), axis=1, keepdims=True) + 0.02
    rest = np.clip(rest, -limit, limit)
    vectors = [mean]
    if number > 0:
        # of the stars' products, since there are fewer stars than pixels
        _, weights = np.linalg.eigh((rest @ rest.T).astype(np.float64))
        found = (weights[:, -number:].T @ rest).astype(np.float64)
        vectors += list(
            found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300) * np.sqrt(grid.size)
        )
    return ndimage.spline_filter1d(np.column_stack(vectors), 3, axis=0, mode="mirror")


def _robust_fit(design: np.ndarray, y: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Least squares of y [N] on the columns of a design [N, K], once more without what is far off."""
    for _ in range(2):
        x = design * use[:, None]
        normal = x.T @ design
        normal[np.diag_indices_from(normal)] *= 1 + 1e-9
        normal[np.diag_indices_from(normal)] += 1e-12
        model = design @ np.linalg.solve(normal, x.T @ y)
        away = np.abs(y - model)
        limit = 4 * 1.4826 * np.median(away[use])
        use = use & (away <= max(limit, 1e-12))
        if use.sum() < 8 * design.shape[1]:
            break
    return model
