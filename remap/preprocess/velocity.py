"""Radial velocities by comparison with templates of the library: a coarse search, then a fit.

All arms of a star give one velocity. Spectra and templates lose their continuum in the same way (`flatten`). The
coarse search is a cross-correlation on a logarithmic grid, weighted and masked: of the likelihood gain
(Σ w d t(v))² / Σ w t(v)² of every template t and velocity v (the χ² of a fitted amplitude, as in Zucker 2003, MNRAS
342, 1291). A linear combination of the best few is then fitted on the observed pixels themselves, shifted
relativistically in vacuum. Errors come from the residuals, so that noise which resampling has correlated counts, and
so do lines that no template has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import fft, interpolate, ndimage

from remap.config import ConfigError
from remap.spectra import MEDIA, SPEED_OF_LIGHT, to_medium

OVERSAMPLE = 4  # points of a template's table per step of the coarse grid, with straight lines between
BLOCKS = 8  # parts of an arm whose medians are the first estimate of its slope
CHUNK = 2**21  # elements of an array [stars, templates, lags] at a time
OVERLAP = 0.5  # share of the weight that a shifted template must cover
FAR = 3.0  # half widths of the autocorrelation from a peak, where it is forgotten
RIDGE = 0.01  # of the templates' usual power
CORRELATED = 5.0  # half widths, over which residuals are correlated by noise and by lines that do not fit
STRAY = 0.01  # share of stars whose velocity is not the expected one
ITERATIONS = 3  # of the fit; from the maximum of a parabola they reach 2 % of the error
Arm = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # flux, valid and inverse variance, all [S, N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocitySettings:
    """How velocities are measured.

    Attributes:
      templates: number of library spectra to compare with.
      best: how many of them are fitted, as a linear combination.
      limit: largest velocity, towards us or away, that is looked for, km/s.
      span: largest lag that `quality` looks at, km/s; at least `limit`.
      smooth: standard deviation of the smoothing that gives the continuum, km/s; several times the line spread.
      taper: share of an arm at each end over which the weights fall to zero.
      mismatch: error of the templates, a fraction of the continuum, added in quadrature to the noise of a pixel.
      calibration: error of the survey's wavelengths, km/s, added in quadrature to that of a velocity. Nothing in a
        spectrum tells it.
      clip: pixels this many times the scatter above the continuum are emission or cosmic rays, and left out.
      min_coverage: smallest share of valid pixels, of all arms together.
      min_pixels: smallest number of them.
      min_quality: `quality` below which a velocity is poor.
      min_parts: `parts` below which it is.

    Raises:
      ConfigError: a value that is out of its range; names the field.
    """

    templates: int = 24
    best: int = 3
    limit: float = 1000.0
    span: float = 3000.0
    smooth: float = 1000.0
    taper: float = 0.03
    mismatch: float = 0.02
    calibration: float = 0.0
    clip: float = 6.0
    min_coverage: float = 0.2
    min_pixels: int = 50
    min_quality: float = 4.5
    min_parts: float = 2.2

    def __post_init__(self) -> None:
        for name in ("templates", "best", "min_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("limit", "smooth", "mismatch", "clip", "min_quality", "min_parts"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)}")
        if not self.limit <= self.span < SPEED_OF_LIGHT / 2:
            raise ConfigError(
                f"span must be at least the limit of {self.limit} km/s and below half the speed of light, "
                f"found {self.span}"
            )
        if not 0 < self.taper < 0.5:
            raise ConfigError(f"taper must be in (0, 0.5), found {self.taper}")
        if not 0 <= self.calibration < np.inf:
            raise ConfigError(f"calibration must be at least 0, found {self.calibration}")
        if not 0 <= self.min_coverage <= 1:
            raise ConfigError(f"min_coverage must be in [0, 1], found {self.min_coverage}")


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
    def tables(self) -> Mapping[str, _Table]:
        """The templates of every arm, finely sampled in ln λ."""
        return {arm: self._table(arm) for arm in self.wave}

    @functools.cached_property
    def _log_wave(self) -> Mapping[str, np.ndarray]:
        return {a: np.log(to_medium(w, source=self.medium, target="vacuum")) for a, w in self.wave.items()}

    def _table(self, arm: str) -> _Table:
        u, good = self._log_wave[arm], self.valid[arm]
        fine = self.step / OVERSAMPLE
        at = u[0] + fine * np.arange(int((u[-1] - u[0]) / fine) + 1)
        curve = interpolate.CubicSpline(u, self.flux[arm], axis=1)
        cover = np.interp(at, u, good) >= 1
        weight = _taper(cover[None], self.taper)[0]
        value = np.where(cover, curve(at), 0).astype(np.float32, order="C")
        slope = np.where(cover, curve(at, 1) * fine, 0).astype(np.float32, order="C")
        return _Table((u - u[0]) / fine, value, slope, weight.astype(np.float32))


class _Table(NamedTuple):
    """An arm's templates on M points that are even in ln λ."""

    place: np.ndarray  # float64[N], where the pixels of the arm are, in points
    value: np.ndarray  # float32[T, M]
    slope: np.ndarray  # float32[T, M], change of `value` per point
    weight: np.ndarray  # float32[M], falls to 0 at the ends


@dataclasses.dataclass(frozen=True, eq=False)
class Velocities:
    """Velocities of S spectra; NaN where nothing could be measured.

    Attributes:
      velocity: float64[S], km/s, positive when receding.
      error: float64[S], km/s, standard deviation.
      quality: float64[S], how far the peak stands out: its height over the rms of the correlation elsewhere within
        the span (as R of Tonry & Davis 1979, AJ 84, 1511, with all that is not the peak for the part that is not
        symmetric), or the amplitude over its error if that is less. Noise seldom has more than 4. 0 where the best
        velocity is at the limit or the fit left its peak.
      parts: float64[S], how many parts of the spectrum, each as wide as the settings' `smooth`, the velocity rests
        on: (Σ x)² / Σ x² of what they add to the likelihood. Lines all over give ten and more; 1 is a single line,
        such as Hβ of a hot star, of which a wing cut by the end of an arm may look like another velocity.
      poor: bool[S], `quality` or `parts` below the settings' least, or no velocity.
      template: int[S], the best template, -1 where there is none.
      correlation: float64[S], coefficient of correlation between the spectrum and it, 1 = the same.
      amplitude: float64[S], depth of the spectrum's lines over the template's.
      chi2: float64[S], mean over the pixels of the squared residuals over their expected variance.
    """

    velocity: np.ndarray
    error: np.ndarray
    quality: np.ndarray
    parts: np.ndarray
    poor: np.ndarray
    template: np.ndarray
    correlation: np.ndarray
    amplitude: np.ndarray
    chi2: np.ndarray

    def __len__(self) -> int:
        return self.velocity.size


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
        flat[arm] = _bridge(made.value, made.weight > 0).astype(np.float32)
    grids = {arm: np.asarray(w, np.float64) for arm, w in wave.items()}
    masks = {arm: np.asarray(v, bool) for arm, v in valid.items()}
    return Templates(grids, flat, masks, labels[pick], pick, medium, settings.taper)


class Flattened(NamedTuple):
    """Spectra without their continuum."""

    value: np.ndarray  # float64[S, N], flux over the continuum, less one; 0 where the weight is 0
    weight: np.ndarray  # float64[S, N], inverse variance of `value`, falling to 0 at the ends; 0 = left out


def flatten(
    flux: np.ndarray,
    valid: np.ndarray,
    ivar: np.ndarray | None,
    *,
    wave: np.ndarray,
    settings: VelocitySettings,
    clip: bool = True,
) -> Flattened:
    """Divides spectra by their own smoothed flux, which needs no idea of where the continuum is.

    Medians of a few parts of the arm take away slopes, so that the ends are not fooled by them; then a running mean
    (three boxes, nearly a Gaussian) of the valid pixels only. Without inverse variances the noise is estimated from
    the differences of neighbouring pixels.

    Args:
      flux: float[S, N].
      valid: bool[S, N].
      ivar: float[S, N], or None where it is not known.
      wave: float64[N], Å.
      clip: leave out what stands high above the continuum.
    """
    good = valid & np.isfinite(flux)
    if ivar is not None:
        good = good & np.isfinite(ivar) & (ivar > 0)
    flux = np.where(good, flux, 0).astype(np.float64)
    level = _level(flux, good)
    good &= level > 0
    level[~good] = 1
    with np.errstate(over="ignore"):
        value = np.where(good, flux / level, 0)
    good &= (value > -1) & (value < 3)  # outside there is nothing that a template could have
    value[~good] = 0
    step = np.median(np.diff(np.log(wave))) * SPEED_OF_LIGHT
    # The variance of a box of m pixels is (m² - 1) / 12.
    box = int(min(np.sqrt(4 * (settings.smooth / step) ** 2 + 1), wave.size))
    smooth = value
    cover = good.astype(np.float64)
    for _ in range(3):
        smooth = ndimage.uniform_filter1d(smooth, box, axis=1, mode="constant")
        cover = ndimage.uniform_filter1d(cover, box, axis=1, mode="constant")
    good &= (smooth > 0.2 * cover) & (cover > 0)
    mean = np.where(good, smooth / np.where(good, cover, 1), 1)
    value = np.where(good, value / mean - 1, 0)
    with np.errstate(
        over="ignore", divide="ignore"
    ):  # 1e±300 are 0 or infinite, and the weight is right all the same
        if ivar is None:
            variance = np.broadcast_to(_noise(value, good)[:, None] ** 2, value.shape)
        else:
            scale = np.where(good, level * mean, 1)
            variance = 1 / (np.where(good, ivar, 1).astype(np.float64) * scale**2)
    if clip:
        scatter = 1.4826 * _median(np.abs(value), good)
        high = np.maximum(settings.clip * scatter[:, None], settings.clip * np.sqrt(variance))
        good &= (value < high) & (value > -1 - high)
    weight = np.where(good, _taper(good, settings.taper) / (variance + settings.mismatch**2), 0)
    return Flattened(np.where(good, value, 0), weight)


def measure_velocities(
    arms: Mapping[str, Arm], templates: Templates, settings: VelocitySettings | None = None
) -> Velocities:
    """Velocities of stars from all their arms together.

    Args:
      arms: arm -> flux[S, N], valid[S, N] and ivar[S, N] or None, on the arm's grid in `templates`, as observed (not
        at rest), at about the templates' line spread. Any arms that the templates have.

    Raises:
      ConfigError: an arm that the templates lack, or shapes that do not agree. A spectrum that cannot be measured is
        no error: its velocity is NaN.
    """
    settings = settings or VelocitySettings()
    count = _check(arms, templates)
    grid = _CoarseGrid.make(templates, list(arms), settings)
    step = max(1, CHUNK // (grid.size * templates.labels.shape[0]))
    parts = []
    for i in range(0, count, step):
        flat = {}
        for arm, (flux, valid, ivar) in arms.items():
            rows = slice(i, i + step)
            part = None if ivar is None else ivar[rows]
            flat[arm] = flatten(flux[rows], valid[rows], part, wave=templates.wave[arm], settings=settings)
        parts.append(_measure(flat, templates, grid, settings))
    names = [f.name for f in dataclasses.fields(Velocities)]
    if not parts:
        return Velocities(
            *(np.zeros(0, bool if n == "poor" else int if n == "template" else float) for n in names)
        )
    return Velocities(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


@dataclasses.dataclass(frozen=True, eq=False)
class MediaComparison:
    """Which medium the velocities of S spectra speak for.

    Attributes:
      declared: velocities with the wavelengths as declared.
      other: the same if they were in the other medium.
      log_odds: float64[S], ln of the likelihood of `other` over that of `declared`; 0 where nothing can be told.
      verdict: str[S], "declared", "other" or "undecided".
    """

    declared: Velocities
    other: Velocities
    log_odds: np.ndarray
    verdict: np.ndarray


def compare_media(
    declared: Mapping[str, Arm],
    other: Mapping[str, Arm],
    templates: Templates,
    settings: VelocitySettings | None = None,
    *,
    expected: float | np.ndarray | None = None,
    expected_error: float | np.ndarray = 10.0,
    odds: float = 100.0,
) -> MediaComparison:
    """Whether spectra are in the medium that was declared for them, from their velocities.

    Air and vacuum differ by 83 km/s, and by nearly the same at all wavelengths: the difference changes by 0.5 km/s
    from 4850 to 5750 Å and by 2 km/s from 4000 to 9000 Å, less than what templates of a library are good to. So a
    spectrum alone does not tell its medium: only the velocity that it should have does. Without it, or where it is
    not known to some 25 km/s, all is undecided. A star in a hundred may have any velocity (a binary, a wrong match).

    Args:
      declared: as for `measure_velocities`, on the grid by the medium as declared.
      other: the same spectra, on the grid as if their wavelengths were in the other medium.
      expected: km/s, in the frame of the wavelengths: 0 of spectra at rest, or the pipeline's; NaN = unknown.
      expected_error: km/s, its standard deviation.
      odds: how many times likelier one must be for a verdict.

    Raises:
      ConfigError: as `measure_velocities`; an error or odds out of range.
    """
    settings = settings or VelocitySettings()
    first = measure_velocities(declared, templates, settings)
    second = measure_velocities(other, templates, settings)
    if len(first) != len(second):
        raise ConfigError(f"media: expected the same spectra twice, found {len(first)} and {len(second)}")
    if not odds > 1 or not np.all(np.asarray(expected_error) > 0):
        raise ConfigError(
            f"media: expected odds above 1 and positive errors, found {odds} and {expected_error}"
        )
    wanted = np.broadcast_to(
        np.nan if expected is None else np.asarray(expected, np.float64), first.velocity.shape
    )

    def log_likelihood(found: Velocities) -> np.ndarray:
        sigma = np.hypot(found.error, expected_error)
        bell = np.exp(-0.5 * ((found.velocity - wanted) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
        return np.log((1 - STRAY) * bell + STRAY / (2 * settings.limit))

    log_odds = log_likelihood(second) - log_likelihood(first)
    log_odds = np.where(first.poor | second.poor | ~np.isfinite(log_odds), 0.0, log_odds)
    verdict = np.where(
        log_odds > np.log(odds), "other", np.where(log_odds < -np.log(odds), "declared", "undecided")
    )
    return MediaComparison(first, second, log_odds, verdict)


class _CoarseGrid(NamedTuple):
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
    def make(cls, templates: Templates, arms: list[str], settings: VelocitySettings) -> _CoarseGrid:
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

    def correlate(self, flat: Mapping[str, Flattened]) -> tuple[np.ndarray, ...]:
        """Sums over the pixels at every lag: w d t [S, T, L], w t² [S, T, L] and w [S, L]; and w d² [S]."""
        sums: list = [0, 0, 0]
        power = 0.0
        for arm, (value, weight) in flat.items():
            power = power + np.sum(weight * value**2, axis=1)
            first, second = self._transform(arm, weight * value), self._transform(arm, weight)
            cross, square, cover = self.transforms[arm]
            sums[0] = sums[0] + first[:, None] * cross
            sums[1] = sums[1] + second[:, None] * square
            sums[2] = sums[2] + second * cover
        lag = self.lags[-1]
        every = (fft.irfft(x, self.size) for x in sums)
        return (*(np.concatenate([x[..., -lag:], x[..., : lag + 1]], axis=-1) for x in every), power)

    def _transform(self, arm: str, x: np.ndarray) -> np.ndarray:
        """Fourier transforms of pixels [S, N], brought onto the coarse grid by straight lines."""
        left, share = self.pixels[arm]
        x = x.astype(np.float32)
        return fft.rfft(x[:, left] * (1 - share) + x[:, left + 1] * share, self.size)


def _measure(
    flat: Mapping[str, Flattened], templates: Templates, grid: _CoarseGrid, settings: VelocitySettings
) -> Velocities:
    """`measure_velocities` of so many spectra as fit into memory."""
    pixels = sum(f.weight.shape[1] for f in flat.values())
    valid = sum(np.count_nonzero(f.weight, axis=1) for f in flat.values())
    usable = (valid >= settings.min_coverage * pixels) & (valid >= settings.min_pixels)
    with np.errstate(divide="ignore", invalid="ignore"):
        cross, square, cover, power = grid.correlate(flat)
        covered = cover >= OVERLAP * cover.max(axis=1, keepdims=True)
        shape = cross / np.sqrt(np.maximum(square, 1e-6 * square.max(axis=2, keepdims=True)))
    usable &= np.isfinite(shape).all(axis=(1, 2)) & (power > 0)
    shape = np.where(usable[:, None, None] & covered[:, None], shape, 0)
    searched = np.where(grid.searched, shape, 0)  # a negative one is an emission spectrum: no candidate
    star = np.arange(len(usable))
    peak = searched.max(axis=1).argmax(axis=1)
    first = np.flatnonzero(grid.searched)[[0, -1]]
    edge = (peak <= first[0]) | (peak >= first[1])
    usable &= searched[star, :, peak].max(axis=1) > 0

    # The best templates near the peak, from the maximum of the very best.
    reach = int(np.ceil(templates.width))
    near = np.clip(peak[:, None] + np.arange(-reach, reach + 1), 0, grid.lags.size - 1)
    around = np.take_along_axis(shape, near[:, None], axis=2)
    best = np.argsort(-around.max(axis=2), axis=1)[:, : settings.best]
    around = np.take_along_axis(around, best[:, :1, None], axis=1)[:, 0]
    start = near[star, around.argmax(axis=1)]
    fit = _fit(flat, templates, best, grid.lags[start] + _parabola(around), settings.smooth)

    contrast = _contrast(shape[star, best[:, 0]], start, covered, FAR * templates.width)
    with np.errstate(divide="ignore", invalid="ignore"):
        height = shape[star, best[:, 0], start] / np.sqrt(power)
    moved = np.abs(fit.place - grid.lags[start]) > 2 * reach + 1
    usable &= np.isfinite(fit.place) & np.isfinite(fit.error)
    speed = SPEED_OF_LIGHT * np.tanh(np.clip(fit.place * templates.step, -1, 1))
    quality = np.where(edge | moved, 0.0, np.fmin(contrast, fit.significance))

    def or_nan(x: np.ndarray) -> np.ndarray:
        return np.where(usable, x, np.nan)

    return Velocities(
        velocity=or_nan(speed),
        error=or_nan(np.hypot(fit.error * templates.step * SPEED_OF_LIGHT, settings.calibration)),
        quality=or_nan(quality),
        parts=or_nan(fit.parts),
        poor=~usable | ~((quality >= settings.min_quality) & (fit.parts >= settings.min_parts)),
        template=np.where(usable, best[:, 0], -1),
        correlation=or_nan(height),
        amplitude=or_nan(fit.amplitude),
        chi2=or_nan(fit.chi2),
    )


class _Fit(NamedTuple):
    """What the fit finds, of S spectra."""

    place: np.ndarray  # shift in steps of the coarse grid
    error: np.ndarray  # its standard deviation
    amplitude: np.ndarray
    chi2: np.ndarray
    significance: np.ndarray  # height of the model's lines over its standard deviation
    parts: np.ndarray  # effective number of those that the gain comes from


def _fit(
    flat: Mapping[str, Flattened], templates: Templates, best: np.ndarray, start: np.ndarray, smooth: float
) -> _Fit:
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
            model = _solve(
                sum(_moments(_curves(flat[a], templates.tables[a], best, place), weights[a]) for a in flat)
            )
            move = model.gradient / model.curvature / OVERSAMPLE
            # Where residuals are large, Gauss-Newton converges slowly: a secant through its last two steps does not.
            factor = 1.0 if before is None else (place - before[0]) / (before[1] - move)
            before = place, move
            move = move * np.where((factor > 0.3) & (factor < 3), factor, 1)
            place = np.clip(place + np.clip(np.nan_to_num(move), -1, 1), start - reach, start + reach)
        curves = {a: _curves(flat[a], templates.tables[a], best, place) for a in flat}
        model = _solve(sum(_moments(curves[a], weights[a]) for a in flat))
        number, slope_sum, height_sum, parts = 0.0, 0.0, 0.0, []
        for arm, w in weights.items():
            total = np.maximum(w.sum(axis=1), np.finfo(np.float32).tiny)[:, None, None]
            c = curves[arm] - np.sum(w[:, None] * curves[arm], axis=2, keepdims=True) / total
            # Rows: the model's lines, and its slope less what the shares of the templates can take up.
            fitted, across = np.moveaxis(model.rows.astype(np.float32) @ c, 1, 0)
            residual = w * (c[:, 1] - fitted)
            parts.append(np.add.reduceat(w * c[:, 1] * fitted, _cuts(templates, arm, smooth), axis=1))
            number = number + np.count_nonzero(w, axis=1)
            pixel = np.median(np.diff(templates.tables[arm].place)) / OVERSAMPLE
            span = max(int(np.ceil(CORRELATED * templates.width / pixel)), 2)
            slope_sum = slope_sum + _correlated(residual * across, span)
            height_sum = height_sum + _correlated(residual * fitted, span)
        error = np.sqrt(slope_sum) / model.curvature / OVERSAMPLE
        significance = np.nan_to_num(model.power / np.sqrt(height_sum))
        gain = np.concatenate(parts, axis=1, dtype=np.float64)
        support = np.nan_to_num(gain.sum(axis=1) ** 2 / np.sum(gain**2, axis=1))
    return _Fit(place, error, model.shares.sum(axis=1), model.squares / number, significance, support)


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


def _curves(flat: Flattened, table: _Table, best: np.ndarray, place: np.ndarray) -> np.ndarray:
    """On an arm's pixels [S, 2 + 2 K, N]: 1, the spectrum, its K templates shifted by `place` steps, their slopes."""
    at = table.place - OVERSAMPLE * place[:, None]
    size, points = best.shape[1], table.value.shape[1]
    first = np.clip(at.astype(np.intp), 0, points - 2)
    share = np.clip(at - first, 0, 1).astype(np.float32)
    out = np.empty((len(best), 2 + 2 * size, table.place.size), np.float32)
    out[:, 0] = 1
    out[:, 1] = flat.value
    for k in range(size):
        left = first + (best[:, k] * points)[:, None]
        right = left + 1
        for i, values in ((2 + k, table.value.ravel()), (2 + size + k, table.slope.ravel())):
            low, high = values.take(left), values.take(right)
            high -= low
            high *= share
            np.add(low, high, out=out[:, i])
    return out


def _moments(curves: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted sums of products of the curves less their means: [S, C, C]."""
    product = ((curves * weight[:, None]) @ curves.swapaxes(1, 2)).astype(np.float64)
    first = product[:, 0]
    return product - first[:, :, None] * first[:, None] / np.maximum(first[:, :1, None], np.finfo(float).tiny)


def _parabola(curve: np.ndarray) -> np.ndarray:
    """Where the maximum of curves [S, L] is between the points, from the highest on: -0.5 to 0.5."""
    at = np.clip(curve.argmax(axis=1), 1, curve.shape[1] - 2)[:, None]
    low, mid, high = (np.take_along_axis(curve, at + i, axis=1)[:, 0] for i in (-1, 0, 1))
    bend = 2 * mid - low - high
    return np.where(bend > 0, np.clip(0.5 * (high - low) / np.where(bend > 0, bend, 1), -0.5, 0.5), 0)


def _contrast(curve: np.ndarray, peak: np.ndarray, covered: np.ndarray, far: float) -> np.ndarray:
    """Height of the peak of correlations [S, L] over their rms further than `far` from it; 0 without any."""
    away = covered & (np.abs(np.arange(curve.shape[1]) - peak[:, None]) > far)
    square = np.sum(np.where(away, curve, 0) ** 2, axis=1)
    height = np.take_along_axis(curve, peak[:, None], axis=1)[:, 0]
    return np.where(square > 0, height * np.sqrt(away.sum(axis=1) / np.where(square > 0, square, 1)), 0)


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


def _check(arms: Mapping[str, Arm], templates: Templates) -> int:
    """The number of stars, if arms and templates agree."""
    counts = set()
    for arm, (flux, valid, ivar) in arms.items():
        if arm not in templates.wave:
            raise ConfigError(f"velocities: no templates for arm {arm!r}, only for {sorted(templates.wave)}")
        pixels = templates.wave[arm].size
        for name, array in (("flux", flux), ("mask", valid), ("inverse variances", ivar)):
            if array is not None and (array.ndim != 2 or array.shape != (len(flux), pixels)):
                raise ConfigError(
                    f"velocities, arm {arm}: expected {name} of shape ({len(flux)}, {pixels}), found {array.shape}"
                )
        counts.add(len(flux))
    if len(counts) != 1:
        raise ConfigError(f"velocities: expected arms of as many stars each, found {sorted(counts)}")
    return counts.pop()


def _taper(good: np.ndarray, share: float) -> np.ndarray:
    """Weights [S, N] that rise as a cosine over a share of the pixels at each end of the good ones."""
    pixels = good.shape[1]
    width = max(share * pixels, 1.0)
    first = good.argmax(axis=1)[:, None]
    last = pixels - 1 - good[:, ::-1].argmax(axis=1)[:, None]
    at = np.arange(pixels)
    inside = np.clip(np.minimum(at - first + 0.5, last - at + 0.5) / width, 0, 1)
    return np.where(good.any(axis=1, keepdims=True), 0.5 - 0.5 * np.cos(np.pi * inside), 0)


def _median(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Median of the good values along the last axis, 0 without any."""
    ordered = np.sort(np.where(good, values, np.inf), axis=-1)
    count = np.count_nonzero(good, axis=-1)
    middle = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(count > 0, middle, 0)


def _level(flux: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Medians of the parts of an arm, with straight lines between them: [S, N]."""
    count, pixels = flux.shape
    parts = max(1, min(BLOCKS, pixels // 16))
    length = pixels // parts
    cut = slice(0, parts * length)
    blocks, mask = (x[:, cut].reshape(count, parts, length) for x in (flux, good))
    level = _median(blocks, mask)
    level[np.count_nonzero(mask, axis=2) < length / 4] = 0
    # A part that is mostly noise about zero says nothing of the level.
    usual = _median(level, level > 0)[:, None]
    at = (np.arange(parts) + 0.5) * length - 0.5
    out = np.zeros(flux.shape)
    for row, values, known in zip(out, level, level > 0.01 * usual, strict=True):
        if known.any():
            row[:] = np.interp(np.arange(pixels), at[known], values[known])
    return out


def _noise(value: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Noise [S] of flat spectra from their second differences (Stoehr et al. 2008, ASPC 394, 505)."""
    triple = good[:, 4:] & good[:, 2:-2] & good[:, :-4]
    return 1.4826 / np.sqrt(6) * _median(np.abs(2 * value[:, 2:-2] - value[:, :-4] - value[:, 4:]), triple)


def _bridge(value: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Rows with their bad pixels on straight lines between the good ones, 0 beyond them."""
    out = np.array(value, np.float64)
    at = np.arange(out.shape[1])
    for row, ok in zip(out, good, strict=True):
        if ok.any() and not ok.all():
            row[~ok] = np.interp(at[~ok], at[ok], row[ok], left=0, right=0)
    return out
