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
from collections.abc import Mapping

import numpy as np

from remap.config import ConfigError
from remap.preprocess.blocks import in_blocks
from remap.preprocess.flattening import Flattened, flatten
from remap.preprocess.templates import Templates
from remap.preprocess.velocity_fit import fit_shifts
from remap.preprocess.velocity_search import FAR, CoarseGrid, contrast_of, parabola
from remap.preprocess.velocity_settings import VelocitySettings
from remap.spectra import SPEED_OF_LIGHT

CHUNK = 2**21  # elements of an array [stars, templates, lags] at a time
Arm = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # flux, valid and inverse variance, all [S, N]


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
    grid = CoarseGrid.make(templates, list(arms), settings)

    def measure(rows: slice) -> Velocities:
        flat = {}
        for arm, (flux, valid, ivar) in arms.items():
            part = None if ivar is None else ivar[rows]
            flat[arm] = flatten(flux[rows], valid[rows], part, wave=templates.wave[arm], settings=settings)
        return _measure(flat, templates, grid, settings)

    parts = [no_velocities(0), *in_blocks(measure, count, grid.size * templates.labels.shape[0], CHUNK)]
    names = [f.name for f in dataclasses.fields(Velocities)]
    return Velocities(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def no_velocities(count: int) -> Velocities:
    """Of spectra that were not measured."""
    kinds = {"poor": True, "template": -1}
    return Velocities(
        **{f.name: np.full(count, kinds.get(f.name, np.nan)) for f in dataclasses.fields(Velocities)}
    )


def _measure(
    flat: Mapping[str, Flattened], templates: Templates, grid: CoarseGrid, settings: VelocitySettings
) -> Velocities:
    """`measure_velocities` of so many spectra as fit into memory."""
    pixels = sum(f.weight.shape[1] for f in flat.values())
    valid = sum(np.count_nonzero(f.weight, axis=1) for f in flat.values())
    usable = (valid >= settings.min_coverage * pixels) & (valid >= settings.min_pixels)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape, covered, power = grid.correlate(flat)
    usable &= np.isfinite(shape).all(axis=(1, 2)) & (power > 0)
    shape[~np.broadcast_to((usable[:, None] & covered)[:, None], shape.shape)] = 0
    star, (first, last) = np.arange(len(usable)), np.flatnonzero(grid.searched)[[0, -1]]
    searched = shape[:, :, first : last + 1].max(axis=1)
    peak = first + searched.argmax(axis=1)
    edge = (peak <= first) | (peak >= last)
    usable &= searched.max(axis=1) > 0  # a negative one is an emission spectrum

    # The best templates near the peak, from the maximum of the very best.
    reach = int(np.ceil(templates.width))
    near = np.clip(peak[:, None] + np.arange(-reach, reach + 1), 0, grid.lags.size - 1)
    around = np.take_along_axis(shape, near[:, None], axis=2)
    best = np.argsort(-around.max(axis=2), axis=1)[:, : settings.best]
    around = np.take_along_axis(around, best[:, :1, None], axis=1)[:, 0]
    start = near[star, around.argmax(axis=1)]
    fit = fit_shifts(flat, templates, best, grid.lags[start] + parabola(around), settings.smooth)

    contrast = contrast_of(shape[star, best[:, 0]], start, covered, FAR * templates.width)
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
