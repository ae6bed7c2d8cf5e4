"""Wavelength axes as files have them, made into what the package uses: Å, strictly increasing, without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from astropy import units

from remap.config import ConfigError
from remap.spectra import SpectrumError

# Half a step of float32 relative to the value: two neighbours that differ by less are one number, rounded.
TIE = 2.0**-24
LONGEST_TIE = 16  # pixels; more that are equal are no rounding
# Many ties are rounding only where the steps are as small as that; a few may be seams between parts of a spectrum.
FEW_TIES, ROUNDED = 0.02, 8 * 2.0**-23
# Stellar spectra lie well inside. Those with an axis declared linear that is logarithmic, ln that is log10,
# or Å that is µm do not.
PLAUSIBLE = (500.0, 1e7)  # Å
CONVERT: dict[str, Callable] = {"linear": lambda x: x, "ln": np.exp, "log10": lambda x: 10.0**x}


class OutsideError(SpectrumError):
    """No pixel lies in the range that is needed."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """How the pixels of a file become those of a spectrum.

    Attributes:
      wave: float64[N], Å, strictly increasing.
      index: int[M], the pixels of the file that are used, in the order of increasing wavelength; M >= N.
      starts: int[N], where in `index` the pixels of each wavelength begin; several where wavelengths were equal.
      step: float64[N], Å per pixel of the file.
    """

    wave: np.ndarray
    index: np.ndarray
    starts: np.ndarray
    step: np.ndarray

    @property
    def merged(self) -> bool:
        """Whether pixels of equal wavelength were merged."""
        return self.starts.size < self.index.size

    def mean(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Values `[..., pixels of the file]` on the axis: float `[..., N]`.

        Where pixels are merged it is the weighted mean, or the plain one where all weights are zero.
        """
        values = values[..., self.index]
        if not self.merged:
            return values
        count = np.diff(np.append(self.starts, self.index.size))
        plain = np.add.reduceat(values, self.starts, axis=-1) / count
        if weights is None:
            return plain.astype(values.dtype)
        weights = weights[..., self.index]
        total = np.add.reduceat(weights, self.starts, axis=-1)
        safe = np.where(weights > 0, values, 0)  # 0 × NaN is NaN
        weighted = np.add.reduceat(safe * weights, self.starts, axis=-1) / np.where(total > 0, total, 1)
        return np.where(total > 0, weighted, plain).astype(values.dtype)

    def total(self, values: np.ndarray) -> np.ndarray:
        """As `mean`, of the sums."""
        values = values[..., self.index]
        return np.add.reduceat(values, self.starts, axis=-1) if self.merged else values


def check_within(within: tuple[float, float] | None) -> tuple[float, float] | None:
    """A range [Å] as two floats, or a ConfigError."""
    if within is None:
        return None
    low, high = (float(v) for v in within)
    if not 0 <= low < high:
        raise ConfigError(f"within must be a range low < high in Å, found {low:g} to {high:g}")
    return low, high


def mend(
    values: np.ndarray,
    path: Path,
    *,
    axis: str,
    wave_unit: str,
    within: tuple[float, float] | None = None,
) -> Axis:
    """Makes sense of the coordinates along a declared axis.

    Padding at the ends (zeros, not finite, or the last value again and again) is cut, an axis that decreases is
    turned round, and pixels whose wavelengths are equal within the rounding of float32 become one.

    Args:
      values: float[N], wavelengths in `wave_unit` or their logarithms.
      path: the file, for messages.
      axis: "linear", "ln" or "log10".
      wave_unit: an astropy unit string.
      within: Å; pixels outside are dropped first, so that nothing there can be wrong.

    Raises:
      OutsideError: no pixel is within the range.
      SpectrumError: padding between good wavelengths, wavelengths that go up and down, or none of a stellar spectrum,
        so that the declaration and the file contradict each other.
    """
    values = np.asarray(values, np.float64)
    within = check_within(within)
    known = np.isfinite(values) & (values != 0)
    if axis == "linear":
        known &= values > 0
    if not known.any():
        raise SpectrumError(f"{path}: expected wavelengths, found none among {values.size} pixels")
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # exp(3540) is one of the contradictions told apart below
        wave = CONVERT[axis](np.where(known, values, np.nan)) * units.Unit(wave_unit).to(units.AA)
    declared = f"axis={axis!r} and wave_unit={wave_unit!r}"
    wanted = known if within is None else known & (wave >= within[0]) & (wave <= within[1])
    if not wanted.any():
        there = wave[known]
        hint = ""
        for unit in ("nm", "um") if axis == "linear" else ():
            scale = units.Unit(unit).to(wave_unit)
            if np.any((there * scale >= within[0]) & (there * scale <= within[1])):
                hint = f"; with wave_unit={unit!r} they would lie there"
        raise OutsideError(
            f"{path}: expected pixels within {within[0]:g} to {within[1]:g} Å, found {there.min():.6g} to "
            f"{there.max():.6g} Å with the declared {declared}{hint}"
        )
    first, last = np.flatnonzero(wanted)[[0, -1]]
    gaps = np.flatnonzero(~known[first:last]) + first
    if gaps.size:
        raise SpectrumError(
            f"{path}: expected a wavelength in every pixel from the first to the last, found "
            f"{values[gaps[0]]:g} at pixel {gaps[0]}"
        )
    index = np.flatnonzero(wanted)
    if index.size < last - first + 1:
        raise SpectrumError(
            f"{path}: expected wavelengths that rise or fall throughout, found some that leave "
            f"{within[0]:g} to {within[1]:g} Å and come back between the pixels {first} and {last}"
        )
    there = wave[index]
    if not np.all((there >= PLAUSIBLE[0]) & (there <= PLAUSIBLE[1])):
        raise SpectrumError(
            f"{path}: with the declared {declared}, expected wavelengths within {PLAUSIBLE[0]:g} to "
            f"{PLAUSIBLE[1]:g} Å, found {there[0]:.6g} to {there[-1]:.6g} Å"
        )
    index = _cut_repeats(wave, index)
    if wave[index[-1]] < wave[index[0]]:
        index = index[::-1]
    wave = wave[index]
    steps = np.diff(wave)
    tied = np.abs(steps) <= TIE * wave[:-1]
    starts = np.flatnonzero(np.append(True, ~tied))
    wrong = (steps <= 0) & ~tied
    if starts.size < index.size and np.diff(np.append(starts, index.size)).max() > LONGEST_TIE:
        wrong = steps <= 0
    few = max(3, FEW_TIES * tied.size)
    if few < np.count_nonzero(tied) < tied.size and np.median(steps[~tied] / wave[:-1][~tied]) > ROUNDED:
        wrong |= tied
    if wrong.any():
        at = int(np.argmax(wrong))
        raise SpectrumError(
            f"{path}: expected wavelengths that increase strictly, found {wave[at]:.6g} then {wave[at + 1]:.6g} Å "
            f"at pixel {index[at]}"
        )
    step = _step(wave)
    out = Axis(wave, index, starts, step)
    if out.merged:
        out = Axis(out.mean(_at(wave, index)), index, starts, out.mean(_at(step, index)))
    return out


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values `[M]` put where the pixels of the file are, so that `Axis.mean` finds them."""
    out = np.zeros(index.max() + 1, values.dtype)
    out[index] = values
    return out


def _step(wave: np.ndarray) -> np.ndarray:
    """Å per pixel, over a few pixels so that rounding and ties do not show."""
    reach = min(8, wave.size - 1)
    if reach == 0:
        return np.ones(1)
    low = np.maximum(np.arange(wave.size) - reach, 0)
    high = np.minimum(np.arange(wave.size) + reach, wave.size - 1)
    return (wave[high] - wave[low]) / (high - low)


def _cut_repeats(wave: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Without the pixels at an end that repeat its last value more often than any value repeats elsewhere."""
    there = wave[index]
    bounds = np.flatnonzero(np.append(True, there[1:] != there[:-1]))
    lengths = np.diff(np.append(bounds, there.size))
    if lengths.size < 3:
        return index
    inner = lengths[1:-1].max()
    first = lengths[0] - 1 if lengths[0] > inner else 0
    last = lengths[-1] - 1 if lengths[-1] > inner else 0
    return index[first : index.size - last]


def wavelengths(values: np.ndarray, path: Path, *, axis: str, wave_unit: str) -> np.ndarray:
    """Coordinates along a declared axis, in Å.

    Args:
      values: float64[N], wavelengths in `wave_unit` or their logarithms.
      path: the file, for messages.
      axis: "linear", "ln" or "log10".
      wave_unit: an astropy unit string.

    Raises:
      SpectrumError: the result does not increase strictly, or no stellar spectrum lies there, so the
        declaration and the file contradict each other.
    """
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):  # exp(3540) is one of the contradictions that are told apart below
        wave = CONVERT[axis](values)
        wave = wave * units.Unit(wave_unit).to(units.AA)
    declared = f"axis={axis!r} and wave_unit={wave_unit!r}"
    if not np.all((wave >= PLAUSIBLE[0]) & (wave <= PLAUSIBLE[1])):
        raise SpectrumError(
            f"{path}: with the declared {declared}, expected wavelengths within {PLAUSIBLE[0]:g} to "
            f"{PLAUSIBLE[1]:g} Å, found {wave[0]:.6g} to {wave[-1]:.6g} Å"
        )
    if np.any(np.diff(wave) <= 0):
        at = int(np.argmax(np.diff(wave) <= 0))
        raise SpectrumError(
            f"{path}: expected wavelengths that increase strictly, found {wave[at]:.6g} then "
            f"{wave[at + 1]:.6g} Å at pixel {at}"
        )
    return wave
