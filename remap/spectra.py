"""The container for spectra, wavelength media and Doppler shifts.

Wavelengths are in Å and velocities in km/s throughout the package; `True` in a mask means a good pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from astropy import units
from numpy.typing import ArrayLike
from scipy import constants

SPEED_OF_LIGHT = constants.c / 1e3  # km/s, exact by definition
MEDIA = ("air", "vacuum")

# What a file may say of a spectrum besides its pixels. Texts are "" and numbers NaN where it does not.
TEXT_FACTS = ("star_id", "exposure", "segment")  # exposure: "" = a sum of all; segment: arm, chip or order
# Degrees, degrees, arcsec, per pixel, km/s, km/s. star_within: star_id differs between visits of a star, whose
# positions agree to this; NaN: star_id is a name.
NUMBER_FACTS = ("ra", "dec", "star_within", "snr", "rv", "rv_err")

_VELOCITY = units.km / units.s
_FACT_UNITS = {
    **dict.fromkeys(("ra", "dec"), units.deg),
    "star_within": units.arcsec,
    "snr": units.one,
    **dict.fromkeys(("rv", "rv_err"), _VELOCITY),
}
_LABEL_UNITS = (units.one, units.K, units.dex, _VELOCITY)  # those in which labels are plain numbers
_POWER = {"std": 1, "var": 2, "ivar": -2}  # of the flux's unit, by the kind of an uncertainty


class SpectrumError(ValueError):
    """A spectrum, label table or bundle that cannot be used; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Spectra:
    """One or more spectra on one wavelength grid. Build it with `make_spectra`, which checks everything.

    Attributes:
      wave: float64[N], Å, strictly increasing, in `medium`.
      flux: float[S, N], in any unit. Values where `valid` is False carry no meaning.
      valid: bool[S, N], True = good pixel.
      ivar: float[S, N], inverse variance in flux units to the power -2, or None where it is not known.
      medium: "air" or "vacuum", as the source declares.
      names: S names (usually file names), for messages and catalogues.
      labels: label name -> float64[S], where the source carries labels (libraries); NaN = unknown.
      fwhm: float64[N], Å, full width at half maximum of the line spread at every pixel; None = not known.
      facts: what the source says of each spectrum: some of `TEXT_FACTS` -> str[S] and `NUMBER_FACTS` -> float64[S].
        `rv` is the velocity by which the spectrum is shifted as it stands here, in the frame of `wave`.
    """

    wave: np.ndarray
    flux: np.ndarray
    valid: np.ndarray
    ivar: np.ndarray | None
    medium: str
    names: tuple[str, ...]
    labels: Mapping[str, np.ndarray]
    fwhm: np.ndarray | None = None
    facts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.flux.shape[0]

    def fact(self, name: str) -> np.ndarray:
        """One of `facts`, as str[S] or float64[S]; "" or NaN for all where the source does not say."""
        if name in self.facts:
            return self.facts[name]
        if name in TEXT_FACTS:
            return np.full(len(self), "", dtype=object)
        if name in NUMBER_FACTS:
            return np.full(len(self), np.nan)
        raise KeyError(f"expected one of {(*TEXT_FACTS, *NUMBER_FACTS)}, found {name!r}")

    def rows(self, index: slice | np.ndarray) -> Spectra:
        """Some of the spectra: a slice, int[K] or bool[S]."""
        return dataclasses.replace(
            self,
            flux=self.flux[index],
            valid=self.valid[index],
            ivar=None if self.ivar is None else self.ivar[index],
            names=tuple(np.array(self.names, dtype=object)[index]),
            labels={k: v[index] for k, v in self.labels.items()},
            facts={k: v[index] for k, v in self.facts.items()},
        )

    def pixels(self, index: slice | np.ndarray) -> Spectra:
        """Some of the pixels: a slice, int[K] or bool[N]. A slice gives views, the others copies."""
        return dataclasses.replace(
            self,
            wave=self.wave[index],
            flux=self.flux[:, index],
            valid=self.valid[:, index],
            ivar=None if self.ivar is None else self.ivar[:, index],
            fwhm=None if self.fwhm is None else self.fwhm[index],
        )


def make_spectra(
    wave: Any,
    flux: Any = None,
    *,
    medium: str,
    valid: ArrayLike | None = None,
    ivar: Any = None,
    names: Iterable[str] | None = None,
    labels: Mapping[str, Any] | None = None,
    fwhm: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> Spectra:
    """Checks arrays and puts them into a `Spectra`.

    Pixels that are not finite, or whose inverse variance is not finite and positive, become invalid.
    Flux at or below zero is kept: whether it is usable is the normaliser's decision.

    Arrays may be of any kind that holds real numbers, in any byte order. Nothing that comes with them is dropped:
    lengths with a unit (astropy) are converted to Å, masks (NumPy's, astropy's, NDData's; True = bad) make pixels
    invalid, the unit of `ivar` must be that of `flux` to the power -2, and what cannot be honoured is refused. Where
    the wavelength itself is masked, pixels at the ends are cut, and others are invalid and lie evenly between
    their neighbours.

    Args:
      wave: float[N], Å, strictly increasing; or a spectrum as specutils has it, without `flux`: an object with
        `spectral_axis`, `flux`, `mask` and `uncertainty` (of any of the three kinds), whose `radial_velocity`, if
        not zero, becomes the fact `rv`.
      flux: float[N] or float[S, N]; or an NDData with `mask` and `uncertainty`.
      medium: "air" or "vacuum".
      valid: bool, shape of `flux`, True = good; None means that all pixels are good.
      ivar: float, shape of `flux`, or None.
      names: one name per spectrum; None numbers them.
      labels: label name -> float[S].
      fwhm: float[N], or one number for all pixels, Å: the line spread; None = not known.
      facts: some of `TEXT_FACTS` and `NUMBER_FACTS` -> S values, or one value for all.

    Returns:
      The checked container; `flux` is 2-D.

    Raises:
      SpectrumError: shapes that do not agree, wavelengths that are not finite and strictly increasing, an
        unknown medium or fact, a line spread that is not positive, numbers that are complex or texts, units that
        cannot be converted. The message starts with the first name.

    Examples:
      >>> import numpy as np
      >>> from astropy import units
      >>> from remap import make_spectra
      >>> wave = np.arange(500.0, 504.0) * units.nm
      >>> spectra = make_spectra(wave, [1.0, 0.9, np.nan, 1.0], medium="air", names=["HD 1"])
      >>> spectra.flux.shape, spectra.valid.tolist(), spectra.wave.round(9).tolist()
      ((1, 4), [[True, True, False, True]], [5000.0, 5010.0, 5020.0, 5030.0])
    """
    names = None if names is None else tuple(str(n) for n in names)
    who = names[0] if names else "spectra"
    if hasattr(wave, "spectral_axis") and hasattr(wave, "flux"):
        if flux is not None:
            raise SpectrumError(
                f"{who}: expected a spectrum or wavelengths and flux, found a spectrum and flux"
            )
        wave, flux, facts = _take_apart(wave, facts or {})
    if flux is None:
        raise SpectrumError(f"{who}: expected wavelengths and flux, found no flux")
    light = _plain(flux, "flux", who)
    if light.unit is not None and (
        light.unit in (units.mag, units.dex, units.dB) or isinstance(light.unit, units.FunctionUnitBase)
    ):
        raise SpectrumError(f"{who}: expected a flux, found its logarithm ({light.unit})")
    flux = np.atleast_2d(light.values)
    count, pixels = flux.shape if flux.ndim == 2 else (0, 0)
    if flux.ndim != 2 or pixels == 0:
        raise SpectrumError(f"{who}: flux must have shape [N] or [S, N] with N > 0, found {flux.shape}")
    if medium not in MEDIA:
        raise SpectrumError(f"{who}: medium must be one of {MEDIA}, found {medium!r}")
    names = tuple(str(i) for i in range(count)) if names is None else names
    if len(names) != count:
        raise SpectrumError(f"{who}: expected {count} names, found {len(names)}")

    axis = _plain(wave, "wavelengths", who)
    wave = _in_angstrom(axis, "wavelengths", who).astype(np.float64)
    if wave.shape != (pixels,):
        raise SpectrumError(f"{who}: expected {pixels} wavelengths, found shape {wave.shape}")
    keep, placed = slice(None), None
    if axis.bad is not None and np.any(axis.bad):
        placed = ~axis.bad
        if not placed.any():
            raise SpectrumError(f"{who}: expected wavelengths, found {pixels} that are masked")
        at = np.flatnonzero(placed)
        wave = np.interp(np.arange(pixels), at, wave[at])
        keep = slice(at[0], at[-1] + 1)
    wave = wave[keep]
    if not np.all(np.isfinite(wave)):
        raise SpectrumError(f"{who}: {np.count_nonzero(~np.isfinite(wave))} wavelengths are not finite")
    steps = np.diff(wave)
    if np.any(steps <= 0):
        at = int(np.argmax(steps <= 0))
        raise SpectrumError(
            f"{who}: wavelengths must increase strictly, found {wave[at]:.6g} then {wave[at + 1]:.6g} Å "
            f"at pixel {at}"
        )
    if wave[0] <= 0:
        raise SpectrumError(f"{who}: wavelengths must be positive, found {wave[0]:.6g} Å")

    valid = np.ones(flux.shape, bool) if valid is None else _good(valid, flux.shape, who)
    valid = valid & np.isfinite(flux)
    if placed is not None:
        valid &= placed[None]
    if light.bad is not None:
        valid &= ~_fitted(light.bad, flux.shape, "mask", who)
    if light.ivar is not None:
        if ivar is not None:
            raise SpectrumError(
                f"{who}: expected one uncertainty, found that of the flux and inverse variances"
            )
        ivar = light.ivar
    if ivar is not None:
        weight = _plain(ivar, "inverse variances", who)
        scale = _scale(weight.unit, light.unit, -2, "inverse variances", who)
        # not in flux's precision: 1e40 is common and overflows float32
        ivar = np.atleast_2d(weight.values if scale == 1 else weight.values.astype(np.float64) * scale)
        if ivar.shape != flux.shape:
            raise SpectrumError(
                f"{who}: expected inverse variances of shape {flux.shape}, found {ivar.shape}"
            )
        valid &= np.isfinite(ivar) & (ivar > 0)
        if weight.bad is not None:
            valid &= ~_fitted(weight.bad, flux.shape, "mask", who)
    labels = {name: _label(name, value, count, who) for name, value in (labels or {}).items()}
    if fwhm is not None:
        spread = _plain(fwhm, "the line spread", who)
        width = _in_angstrom(spread, "the line spread", who).astype(np.float64)
        width = width if spread.bad is None else np.where(spread.bad, np.nan, width)
        if width.shape not in ((), (pixels,)) or not np.all(np.isfinite(width) & (width > 0)):
            raise SpectrumError(
                f"{who}: expected a positive FWHM of the line spread, one or {pixels}, found shape {width.shape}, "
                f"{width.min() if width.size else np.nan:.6g} to {width.max() if width.size else np.nan:.6g} Å"
            )
        fwhm = np.broadcast_to(width, (pixels,))[keep]
    told = {name: _fact(name, value, count, who) for name, value in (facts or {}).items()}
    ivar = None if ivar is None else ivar[:, keep]
    return Spectra(wave, flux[:, keep], valid[:, keep], ivar, medium, names, labels, fwhm, told)


@dataclasses.dataclass(frozen=True)
class _Plain:
    """What an array-like holds: numbers in the machine's byte order, a mask (True = bad), unit, inverse variance."""

    values: np.ndarray
    bad: np.ndarray | None = None
    unit: Any = None
    ivar: Any = None


def _plain(value: Any, what: str, who: str) -> _Plain:
    """Takes numbers apart from what comes with them; single precision stays, the rest becomes double."""
    if hasattr(value, "magnitude") and hasattr(value, "units"):
        raise SpectrumError(f"{who}: expected {what} as an array or an astropy Quantity, found {type(value)}")
    if hasattr(value, "uncertainty") and hasattr(value, "data"):  # NDData
        inner = _plain(value.data, what, who)
        unit = inner.unit if value.unit is None else value.unit
        bad = _fitted(
            False if value.mask is None else _mask(value.mask, who), inner.values.shape, "mask", who
        )
        bad = bad if inner.bad is None else bad | inner.bad
        told = value.uncertainty
        return _Plain(inner.values, bad, unit, None if told is None else _inverse_variance(told, unit, who))
    if isinstance(value, list | tuple):
        if any(getattr(part, "unit", None) is not None for part in value):
            value = _attempt(lambda: units.Quantity(value), what, who)
        elif any(part is np.ma.masked for part in value):
            gone = [part is np.ma.masked for part in value]
            value = np.ma.array([np.nan if g else v for g, v in zip(gone, value, strict=True)], mask=gone)
        elif any(isinstance(part, np.ma.MaskedArray) for part in value):
            value = _attempt(lambda: np.ma.array(value), what, who)
    unit = getattr(value, "unit", None)
    if isinstance(value, np.ma.MaskedArray):
        bad, value = np.ma.getmaskarray(value), np.ma.getdata(value)
    else:  # astropy's Masked has both
        bad = getattr(value, "mask", None) if hasattr(value, "unmasked") else None
        value = getattr(value, "unmasked", value)
    values = np.asarray(_attempt(lambda: np.asarray(value), what, who))
    if values.dtype.kind not in "fiu":
        raise SpectrumError(f"{who}: expected real numbers as {what}, found {values.dtype}")
    kind = np.float32 if values.dtype.kind == "f" and values.dtype.itemsize <= 4 else np.float64
    with np.errstate(over="ignore"):
        values = values.astype(kind, copy=False)
    return _Plain(values, None if bad is None else _mask(bad, who), unit)


def _attempt(make: Any, what: str, who: str) -> Any:
    """What `make` gives; ragged lists, units that differ and their like are faults of the input."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpectrumError(f"{who}: expected real numbers as {what}, found {reason}") from error


def _mask(bad: ArrayLike, who: str) -> np.ndarray:
    """bool, True = bad, of a mask or of bits."""
    bad = np.asarray(bad)
    if bad.dtype.kind not in "biu":
        raise SpectrumError(f"{who}: expected a mask of True and False, found {bad.dtype}")
    return bad != 0


def _good(valid: ArrayLike, shape: tuple[int, ...], who: str) -> np.ndarray:
    """bool[S, N], True = good; what is masked is not."""
    bad = np.ma.getmaskarray(valid) if isinstance(valid, np.ma.MaskedArray) else False
    values = np.atleast_2d(np.asarray(np.ma.getdata(valid)))
    if values.shape != shape:
        raise SpectrumError(f"{who}: expected a mask of shape {shape}, found {values.shape}")
    if values.dtype.kind not in "biu" or (values.dtype != bool and np.any((values != 0) & (values != 1))):
        raise SpectrumError(
            f"{who}: expected a mask of True (good) and False, found {values.dtype}; bits go as `mask == 0`"
        )
    return values.astype(bool, copy=False) & ~np.atleast_2d(bad)


def _fitted(array: ArrayLike, shape: tuple[int, ...], what: str, who: str) -> np.ndarray:
    array = np.asarray(array)
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise SpectrumError(f"{who}: expected a {what} of shape {shape}, found {array.shape}") from error


def _in_angstrom(plain: _Plain, what: str, who: str) -> np.ndarray:
    """Numbers in Å; those without a unit are."""
    if plain.unit is None:
        return plain.values
    try:
        factor = units.Unit(plain.unit).to(units.AA)
    except (ValueError, TypeError, AttributeError) as error:
        raise SpectrumError(
            f"{who}: expected {what} in a unit of length, found {str(plain.unit)!r}; frequencies, energies and wave "
            "numbers become vacuum wavelengths by .to(units.AA, units.spectral())"
        ) from error
    return np.asarray(plain.values * np.float64(factor))


def _scale(unit: Any, flux_unit: Any, power: int, what: str, who: str) -> float:
    """By what numbers in `unit` are multiplied to be in the flux's unit to a power."""
    if unit is None:  # then they are
        return 1.0
    wanted = units.dimensionless_unscaled if flux_unit is None else flux_unit
    try:
        return float(units.Unit(unit).to(units.Unit(wanted) ** power))
    except (ValueError, TypeError, AttributeError) as error:
        raise SpectrumError(
            f"{who}: expected {what} in the flux's unit to the power {power}, found {str(unit)!r} with flux in "
            f"{str(flux_unit)!r}"
        ) from error


def _inverse_variance(uncertainty: Any, flux_unit: Any, who: str) -> np.ma.MaskedArray:
    """The inverse variance, in flux units to the power -2, of an uncertainty as NDData has it; 0 = not known."""
    kind = getattr(uncertainty, "uncertainty_type", None)
    if kind not in _POWER:
        raise SpectrumError(f"{who}: expected an uncertainty of a kind in {tuple(_POWER)}, found {kind!r}")
    given = _plain(uncertainty.array, "uncertainties", who)
    scale = _scale(getattr(uncertainty, "unit", None), flux_unit, _POWER[kind], "uncertainties", who)
    values = given.values.astype(np.float64) * scale
    if kind != "ivar":
        known = np.isfinite(values) & (values > 0)
        with np.errstate(over="ignore"):
            values = np.where(known, np.where(known, values, 1.0) ** (-2.0 / _POWER[kind]), 0.0)
    return np.ma.array(values, mask=False if given.bad is None else given.bad)


def _take_apart(spectrum: Any, facts: Mapping[str, Any]) -> tuple[Any, Any, Mapping[str, Any]]:
    """Wavelengths, flux with mask and uncertainty, and facts of a spectrum as specutils has it."""
    if (unit := getattr(spectrum.flux, "unit", None)) is None:
        unit = getattr(spectrum, "unit", None)
    flux = _NDFlux(
        spectrum.flux, getattr(spectrum, "mask", None), getattr(spectrum, "uncertainty", None), unit
    )
    axis = getattr(spectrum, "spectral_axis_index", None)
    if axis is not None and np.ndim(spectrum.flux) > 1 and axis not in (-1, np.ndim(spectrum.flux) - 1):
        raise SpectrumError(
            f"spectra: expected wavelengths along the last axis of the flux, found axis {axis}"
        )
    velocity = getattr(spectrum, "radial_velocity", None)
    if velocity is not None and "rv" not in facts and np.any(np.asarray(velocity) != 0):
        facts = {**facts, "rv": velocity}
    return spectrum.spectral_axis, flux, facts


@dataclasses.dataclass(frozen=True)
class _NDFlux:
    """The part of a spectrum that is like NDData."""

    data: Any
    mask: Any
    uncertainty: Any
    unit: Any


def _label(name: str, value: Any, count: int, who: str) -> np.ndarray:
    """float64[S], NaN where masked."""
    plain = _plain(value, f"values of {name}", who)
    if plain.unit is not None and plain.unit not in _LABEL_UNITS:
        raise SpectrumError(f"{who}: expected {name} in K, dex or km/s, found the unit {str(plain.unit)!r}")
    values = np.atleast_1d(plain.values.astype(np.float64))
    if values.shape != (count,):
        raise SpectrumError(f"{who}: expected {count} values of {name}, found shape {values.shape}")
    return values if plain.bad is None else np.where(plain.bad, np.nan, values)


def _fact(name: str, value: Any, count: int, who: str) -> np.ndarray:
    if name not in (*TEXT_FACTS, *NUMBER_FACTS):
        raise SpectrumError(f"{who}: expected facts among {(*TEXT_FACTS, *NUMBER_FACTS)}, found {name!r}")
    if name in TEXT_FACTS:
        value = [value] * count if isinstance(value, str | bytes) or np.ndim(value) == 0 else value
        # object, because a fixed width would cut a longer text that is put in later
        told = np.array([_text_fact(name, v, who) for v in value], dtype=object)
    else:
        told = _numbers_in(value, _FACT_UNITS[name], name, who)
        told = np.full(count, told) if told.ndim == 0 else told
    if told.shape != (count,):
        raise SpectrumError(f"{who}: expected {count} values of {name}, found shape {told.shape}")
    return told


def velocities_in_km_s(value: Any) -> np.ndarray:
    """float64[...]: velocities [km/s] of numbers or quantities; NaN where masked.

    Raises:
      SpectrumError: no real numbers, or a unit that is not of a velocity.

    Examples:
      >>> velocities_in_km_s([12000.0, -500.0] * units.m / units.s)
      array([12. , -0.5])
    """
    return _numbers_in(value, _VELOCITY, "radial velocities", "velocities")


def _numbers_in(value: Any, unit: units.UnitBase, what: str, who: str) -> np.ndarray:
    """float64[...] in a unit, in which numbers without one are; NaN where masked."""
    plain = _plain(value, what, who)
    try:
        factor = 1.0 if plain.unit is None else units.Unit(plain.unit).to(unit)
    except (ValueError, TypeError, AttributeError) as error:
        raise SpectrumError(
            f"{who}: expected {what} in {unit}, found the unit {str(plain.unit)!r}"
        ) from error
    told = np.asarray(plain.values.astype(np.float64) * factor)
    return told if plain.bad is None else np.where(plain.bad, np.nan, told)


def _text_fact(name: str, value: Any, who: str) -> str:
    """A text, to the digit; "" for what is masked or not a number."""
    if value is np.ma.masked or value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")  # never fails, and keeps apart what is different
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return ""
        if abs(value) >= 2 / np.finfo(type(value)).eps or value != int(value):
            raise SpectrumError(f"{who}: expected {name} as text, found the floating-point number {value!r}")
        return str(int(value))
    return str(value)


def vacuum_to_air(wave: ArrayLike) -> np.ndarray | np.floating:
    """Vacuum to air wavelengths [Å], above 2000 Å.

    Ciddor 1996 (Applied Optics 35, 1566) for standard air (15 °C, 101325 Pa, 450 ppm CO2).

    Examples:
      >>> print(vacuum_to_air(6564.61).round(2))  # Hα
      6562.8
    """
    wave = np.asarray(wave, dtype=np.float64)
    return wave / _refractive_index(wave)


def air_to_vacuum(wave: ArrayLike) -> np.ndarray | np.floating:
    """Air to vacuum wavelengths [Å], the inverse of `vacuum_to_air` to rounding.

    The index depends on the vacuum wavelength, so this iterates; it varies so slowly that three rounds
    reach float64 precision.

    Examples:
      >>> print(air_to_vacuum(6562.8).round(2))
      6564.61
    """
    wave = np.asarray(wave, dtype=np.float64)
    vacuum = wave
    for _ in range(4):
        vacuum = wave * _refractive_index(vacuum)
    return vacuum


def to_medium(wave: ArrayLike, *, source: str, target: str) -> np.ndarray | np.floating:
    """Wavelengths [Å] given in medium `source`, expressed in medium `target`."""
    for medium in (source, target):
        if medium not in MEDIA:
            raise ValueError(f"medium must be one of {MEDIA}, found {medium!r}")
    if source == target:
        return np.asarray(wave, dtype=np.float64)
    return vacuum_to_air(wave) if target == "air" else air_to_vacuum(wave)


def doppler_shift(wave: ArrayLike, velocity: ArrayLike) -> np.ndarray | np.floating:
    """Observed wavelengths [Å] of light emitted at `wave` by a star receding at `velocity` [km/s].

    Relativistic, for purely radial motion: λ' = λ sqrt((1 + β) / (1 - β)). With the opposite sign it
    brings an observed spectrum to the rest frame; apply it to vacuum wavelengths, or to air wavelengths
    where the index of air may be taken as constant over the shift.

    Examples:
      >>> print(doppler_shift(5000.0, 30.0).round(3))
      5000.5
    """
    beta = np.asarray(velocity, dtype=np.float64) / SPEED_OF_LIGHT
    if np.any(np.abs(beta) >= 1) or not np.all(np.isfinite(beta)):
        raise ValueError(f"velocity must be finite and below the speed of light, found {velocity!r} km/s")
    return np.asarray(wave, dtype=np.float64) * np.sqrt((1 + beta) / (1 - beta))


def _refractive_index(vacuum: np.ndarray | np.floating) -> np.ndarray | np.floating:
    """Index of standard air at vacuum wavelengths [Å] (Ciddor 1996, eq. 1)."""
    s2 = (1e4 / vacuum) ** 2  # square of the wave number, µm^-2
    return 1 + 1e-8 * (5792105 / (238.0185 - s2) + 167917 / (57.362 - s2))
