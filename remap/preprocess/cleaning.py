"""Bad pixels that a file does not mark: exact zeros, absurd values, dead runs; and the settings of all cleaning.

Cleaning works on spectra as they were observed, before any shift to rest: `mask_bad` here, cosmic rays in
`cosmic_rays`, what stands still on the detector in `stationary`. All of it only takes pixels out of `valid`; no flux
is changed and nothing is filled.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from remap.config import ConfigError
from remap.preprocess.blocks import in_blocks
from remap.spectra import Spectra

SEGMENT = 128  # pixels over which local statistics are taken
ROUNDING = 1e-6  # of a value: differences between neighbours that are no noise
NOISY = 1.3  # second over first differences: white noise has 1.7, lines that are sampled less than 1
NEAR_ZERO = 1e-12  # of the spectrum's level: zeros that arithmetic has touched
QUANTA = 3  # a zero beside values of so few quanta is a count like any other
CERTAIN = 100.0  # times `absurd`: beyond it no line is that strong, however wide
SUPPORT = 0.05  # share of a peak that the better of its neighbours has at least, where it is a line
BLOCK = 2**22  # elements of flux at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    """How observed spectra lose bad pixels, cosmic rays and features that stand still on the detector.

    The paper (§3.3) says that cosmic rays and bright features of up to six pixels, at the same place throughout the
    survey, were identified and removed; how is decided here.

    Attributes:
      zero_run: so many exact zeros in a row are bad even among values of a few quanta (photon counts).
      absurd: pixels that deviate by so many times the local level or scatter, whichever is larger, are bad, unless
        their neighbours rise with them as in a line; by a hundred times more, always.
      negative: pixels that are so many times the local scatter below zero are bad, where the level is above it: no
        light is negative, and noise is not so by as much.
      dead_run: so many equal values in a row are bad where the pixels around them have noise.
      resolution: λ/FWHM of the spectra, where they do not carry their line spread; None and `fwhm` None: measured.
      fwhm: their line spread in Å, instead.
      sharpness: real lines are taken to be no narrower than so many times the line spread, which may be in error.
      cosmic_sigma: significance from which a peak that is too narrow for a line is a cosmic ray.
      cosmic_width: widest cosmic ray looked for along wavelength, pixels.
      min_sampling: line spreads narrower than so many pixels cannot be told from cosmic rays: nothing is masked.
      stack_sigma: significance from which a pixel above the stack of the exposures is a cosmic ray.
      stack_slope: change of the stack from pixel to pixel that counts as uncertainty of it, as a share: velocities of
        exposures differ a little.
      stationary_sigma: significance from which a feature stands still, in units of the scatter over all pixels.
      stationary_width: widest such feature, pixels (paper: six).
      stationary_spread: velocities (5th to 95th percentile) must spread by so many line spreads.
      stationary_share: of the stars must show a feature at least, where the mean of all does not.
      components: number of spectra whose combinations model the stars at rest.
      min_stars: fewer cannot tell what stands still.

    Raises:
      ConfigError: a value that is out of its range; names the field.
    """

    zero_run: int = 8
    absurd: float = 100.0
    negative: float = 5.0
    dead_run: int = 8
    resolution: float | None = None
    fwhm: float | None = None
    sharpness: float = 0.85
    cosmic_sigma: float = 4.0
    cosmic_width: int = 3
    min_sampling: float = 2.0
    stack_sigma: float = 3.7
    stack_slope: float = 0.1
    stationary_sigma: float = 5.0
    stationary_width: int = 6
    stationary_spread: float = 1.5
    stationary_share: float = 0.1
    components: int = 8
    min_stars: int = 12

    def __post_init__(self) -> None:
        for name in ("zero_run", "dead_run", "cosmic_width", "stationary_width", "min_stars"):
            if not getattr(self, name) >= (2 if name.endswith("_run") else 1):
                raise ConfigError(f"{name} is too small, found {getattr(self, name)}")
        for name in (
            "absurd",
            "negative",
            "sharpness",
            "cosmic_sigma",
            "min_sampling",
            "stack_sigma",
            "stationary_sigma",
            "stationary_spread",
            "stationary_share",
        ):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("resolution", "fwhm"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be positive or None, found {value}")
        if self.resolution is not None and self.fwhm is not None:
            raise ConfigError(f"give either resolution or fwhm, found {self.resolution} and {self.fwhm}")
        if not (self.stack_slope >= 0 and self.components >= 0):
            raise ConfigError(
                f"stack_slope and components must not be negative, found {self.stack_slope} and {self.components}"
            )


def mask_bad(spectra: Spectra, settings: CleaningSettings) -> Spectra:
    """Exact zeros, absurd values and dead runs become bad pixels; flux is as it was.

    - Zeros: at the ends, between chips, or single ones among other values. A zero beside values of a few quanta (the
      smallest value that occurs) is a count like any other, as in the core of a black line. A spectrum of zeros, or
      of one value, has no good pixel.
    - Absurd values: local statistics are medians over some hundred pixels, so that no value spoils them.
      Emission is not absurd, even 50 times the continuum, nor is absorption, but flux far below zero is.
    - Dead runs: equal values in a row among noisy ones. Spectra with few distinct values (rounded, or models whose
      continuum is 1) have such runs by right and keep them.

    Args:
      spectra: in any unit, normalised or not; `ivar` is not looked at.
      settings: see `CleaningSettings`.

    Returns:
      The spectra with `valid` bool[S, N] changed.

    Examples:
      >>> import numpy as np
      >>> from remap import make_spectra
      >>> flux = 1 + 0.01 * np.sin(np.arange(300.0))
      >>> flux[:3], flux[100] = 0, 1.5e21
      >>> found = mask_bad(make_spectra(np.arange(5000.0, 5300.0), flux, medium="air"), CleaningSettings())
      >>> np.flatnonzero(~found.valid[0]).tolist()
      [0, 1, 2, 100]
    """
    valid = spectra.valid.copy()

    def mask(rows: slice) -> None:
        flux = np.where(valid[rows], spectra.flux[rows], np.nan).astype(np.float64)
        odd = ~_ordinary(flux, settings.absurd)
        if odd.any():
            some = flux[odd]
            some[_zeros(some, settings.zero_run)] = np.nan
            some[_absurd(some, settings.absurd, settings.negative)] = np.nan
            flux[odd] = some
        flux[_dead(flux, settings.dead_run)] = np.nan
        valid[rows] &= np.isfinite(flux)

    in_blocks(mask, len(spectra), spectra.wave.size)
    return dataclasses.replace(spectra, valid=valid)


def segment_median(values: np.ndarray, size: int, smooth: int = 1) -> np.ndarray:
    """Medians over stretches of pixels, interpolated linearly between the stretches' centres.

    Args:
      values: float[S, N], NaN where there is none.
      size: pixels per stretch.
      smooth: odd; the median over so many neighbouring stretches is taken.

    Returns:
      float64[S, N]; NaN for a spectrum without values.
    """
    count, pixels = values.shape
    cut = _stretches(pixels, size)
    medians = nan_median(values[:, cut.index])
    if smooth > 1:
        half = smooth // 2
        padded = np.pad(medians, ((0, 0), (half, half)), constant_values=np.nan)
        medians = nan_median(np.lib.stride_tricks.sliding_window_view(padded, smooth, axis=1))
    known = np.isfinite(medians)
    whole = known.all(axis=1)
    if whole.all():
        return cut.between(medians)
    out = np.full((count, pixels), np.nan, medians.dtype)
    out[whole] = cut.between(medians[whole])
    for i in np.flatnonzero(~whole & known.any(axis=1)):
        out[i] = np.interp(np.arange(pixels), cut.centres[known[i]], medians[i, known[i]])
    return out


class _Stretches(NamedTuple):
    """N pixels in K stretches, and where every pixel lies between their centres."""

    index: np.ndarray  # int[K, L], pixels of each
    centres: np.ndarray  # float64[K]
    left: np.ndarray  # int[N], of the two centres around
    right: np.ndarray  # int[N]
    share: np.ndarray  # float64[N], of the right one

    def between(self, values: np.ndarray) -> np.ndarray:
        """Values [S, K] at the centres, interpolated linearly to [S, N]; those at the ends are held."""
        if self.centres.size == 1:
            return np.repeat(values, self.left.size, axis=1)
        out = values.take(self.left, axis=1)
        out *= 1 - self.share
        other = values.take(self.right, axis=1)
        other *= self.share
        out += other
        return out


@functools.lru_cache(maxsize=64)
def _stretches(pixels: int, size: int) -> _Stretches:
    edges = np.linspace(0, pixels, max(round(pixels / size), 1) + 1).astype(int)
    # equal stretches, so that one sort does all of them: the last pixel of a longer one is left out
    length = int(np.diff(edges).min())
    centres, at = (edges[:-1] + edges[1:] - 1) / 2, np.arange(pixels)
    left = np.clip(np.searchsorted(centres, at) - 1, 0, max(centres.size - 2, 0))
    right = np.minimum(left + 1, centres.size - 1)
    share = np.clip((at - centres[left]) / np.maximum(centres[right] - centres[left], 1), 0, 1)
    return _Stretches(edges[:-1, None] + np.arange(length), centres, left, right, share)


def nan_median(values: np.ndarray) -> np.ndarray:
    """Median over the last axis without NaN, NaN where there is nothing else; no warning."""
    ordered = np.sort(values, axis=-1)  # NaN last
    size = values.shape[-1]
    if not np.isnan(ordered[..., -1]).any():
        return (ordered[..., (size - 1) // 2] + ordered[..., size // 2]) / 2
    count = size - np.isnan(ordered).sum(axis=-1)
    first = np.arange(count.size).reshape(count.shape) * size
    flat = ordered.reshape(-1)
    low, high = (
        flat.take(first + np.maximum((count - 1) // 2, 0)),
        flat.take(first + np.minimum(count // 2, size - 1)),
    )
    return np.where(count > 0, (low + high) / 2, np.nan)


def _ordinary(flux: np.ndarray, limit: float) -> np.ndarray:
    """bool[S]: spectra whose values are so much alike that none is a zero, far below zero or absurd."""
    low, high = np.fmin.reduce(flux, axis=1), np.fmax.reduce(flux, axis=1)
    # What is local, level and scale, is between the two.
    return (low > NEAR_ZERO * high) & (high <= limit * low)


def _zeros(flux: np.ndarray, longest: int) -> np.ndarray:
    """bool[S, N]: zeros that are no measurement."""
    size = np.abs(flux)
    level = nan_median(np.where(size > 0, size, np.nan))[:, None]
    zero = size <= np.where(np.isfinite(level), NEAR_ZERO * level, 0.0)
    if not zero.any():
        return zero
    out = np.zeros_like(zero)
    for i in np.flatnonzero(zero.any(axis=1)):
        rest = size[i][~zero[i] & np.isfinite(size[i])]
        if rest.size == 0:
            out[i] = zero[i]
            continue
        quantum = QUANTA * rest.min()
        # a gap of missing pixels beside zeros belongs to them
        for start, stop in _runs(zero[i]):
            sides = size[i][[max(start - 1, 0), min(stop, zero.shape[1] - 1)]]
            at_end = start == 0 or stop == zero.shape[1] or not np.all(np.isfinite(sides))
            out[i, start:stop] = at_end or stop - start >= longest or np.any(sides > quantum)
    return out


def _absurd(flux: np.ndarray, limit: float, negative: float) -> np.ndarray:
    """bool[S, N]: values that no spectrum has; limits in units of the local scale, see `CleaningSettings`."""
    middle = segment_median(flux, SEGMENT, smooth=5)
    with np.errstate(over="ignore", invalid="ignore"):
        away = np.abs(flux - middle)
        scatter = 1.4826 * segment_median(away, SEGMENT, smooth=5)
        scale = np.maximum(scatter, np.abs(middle))
        far = (away > limit * scale) & np.isfinite(scale)
        # of spectra whose level was taken away, every deep line is below zero
        below = (flux < -negative * scatter) & (middle > scatter)
        if not far.any():
            return below
        # Lines are as wide as the line spread, so the better neighbour of their peak rises with it.
        padded = np.pad(np.nan_to_num(away, nan=0.0, posinf=np.inf), ((0, 0), (1, 1)))
        alone = np.maximum(padded[:, :-2], padded[:, 2:]) < SUPPORT * away
        return below | (far & (alone | (away > CERTAIN * limit * scale)))


def _dead(flux: np.ndarray, longest: int) -> np.ndarray:
    """bool[S, N]: runs of one value where the pixels around them have noise."""
    same = flux[:, 1:] == flux[:, :-1]
    out = np.zeros(flux.shape, bool)
    for i in np.flatnonzero(same.sum(axis=1) >= longest - 1):
        runs = [(a, b + 1) for a, b in _runs(same[i]) if b + 1 - a >= longest]
        if not runs:
            continue
        if np.all(same[i] | ~np.isfinite(flux[i, 1:]) | ~np.isfinite(flux[i, :-1])):
            out[i] = True
            continue
        inside = np.zeros(flux.shape[1], bool)
        for start, stop in runs:
            inside[start:stop] = True
        apart = ~inside[1:] & ~inside[:-1]
        if np.mean(same[i][apart]) > 0.01 if apart.any() else True:
            continue  # few distinct values: equal neighbours are nothing special
        levels = [flux[i, start] for start, _ in runs]
        for start, stop in runs:
            if levels.count(flux[i, start]) > 2:
                continue  # the continuum of a model
            near = flux[i, max(start - 32, 0) : start], flux[i, stop : stop + 32]
            first = np.abs(np.concatenate([np.diff(side) for side in near]))
            second = np.abs(np.concatenate([np.diff(side, 2) for side in near]))
            first, second = first[np.isfinite(first)], second[np.isfinite(second)]
            typical = np.median(first) if first.size else 0.0
            noisy = second.size > 8 and np.median(second) > NOISY * typical
            out[i, start:stop] = noisy and typical > ROUNDING * abs(flux[i, start])
    return out


def _runs(flag: np.ndarray) -> list[tuple[int, int]]:
    """Start and end (exclusive) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flag, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
