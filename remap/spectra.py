"""The container for spectra, wavelength media and Doppler shifts.

Wavelengths are in Å and velocities in km/s throughout the package; `True` in a mask means a good pixel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import constants

SPEED_OF_LIGHT = constants.c / 1e3  # km/s, exact by definition
MEDIA = ("air", "vacuum")

# What a file may say of a spectrum besides its pixels. Texts are "" and numbers NaN where it does not.
TEXT_FACTS = ("star_id", "exposure", "segment")  # exposure: "" = a sum of all; segment: arm, chip or order
NUMBER_FACTS = ("ra", "dec", "snr", "rv", "rv_err")  # degrees, degrees, per pixel, km/s, km/s


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
    wave: ArrayLike,
    flux: ArrayLike,
    *,
    medium: str,
    valid: ArrayLike | None = None,
    ivar: ArrayLike | None = None,
    names: Iterable[str] | None = None,
    labels: Mapping[str, ArrayLike] | None = None,
    fwhm: ArrayLike | None = None,
    facts: Mapping[str, ArrayLike] | None = None,
) -> Spectra:
    """Checks arrays and puts them into a `Spectra`.

    Pixels that are not finite, or whose inverse variance is not finite and positive, become invalid.
    Flux at or below zero is kept: whether it is usable is the normaliser's decision.

    Args:
      wave: float[N], Å, strictly increasing.
      flux: float[N] or float[S, N].
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
        unknown medium or fact, a line spread that is not positive. The message starts with the first name.

    Examples:
      >>> import numpy as np
      >>> from remap import make_spectra
      >>> wave = np.arange(5000.0, 5004.0)
      >>> spectra = make_spectra(wave, [1.0, 0.9, np.nan, 1.0], medium="air", names=["HD 1"])
      >>> spectra.flux.shape, spectra.valid.tolist()
      ((1, 4), [[True, True, False, True]])
    """
    flux = np.atleast_2d(np.asarray(flux))
    count, pixels = flux.shape if flux.ndim == 2 else (0, 0)
    names = tuple(str(n) for n in names) if names is not None else tuple(str(i) for i in range(count))
    who = names[0] if names else "spectra"
    if flux.ndim != 2 or pixels == 0:
        raise SpectrumError(f"{who}: flux must have shape [N] or [S, N] with N > 0, found {flux.shape}")
    if not np.issubdtype(flux.dtype, np.floating):
        flux = flux.astype(np.float64)
    if medium not in MEDIA:
        raise SpectrumError(f"{who}: medium must be one of {MEDIA}, found {medium!r}")
    if len(names) != count:
        raise SpectrumError(f"{who}: expected {count} names, found {len(names)}")
    wave = np.asarray(wave, dtype=np.float64)
    if wave.shape != (pixels,):
        raise SpectrumError(f"{who}: expected {pixels} wavelengths, found shape {wave.shape}")
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
    valid = np.ones(flux.shape, bool) if valid is None else np.atleast_2d(np.asarray(valid, bool))
    if valid.shape != flux.shape:
        raise SpectrumError(f"{who}: expected a mask of shape {flux.shape}, found {valid.shape}")
    valid = valid & np.isfinite(flux)
    if ivar is not None:
        ivar = np.atleast_2d(np.asarray(ivar))
        if not np.issubdtype(ivar.dtype, np.floating):
            ivar = ivar.astype(np.float64)  # not flux's dtype: 1e40 is common and overflows float32
        if ivar.shape != flux.shape:
            raise SpectrumError(
                f"{who}: expected inverse variances of shape {flux.shape}, found {ivar.shape}"
            )
        valid = valid & np.isfinite(ivar) & (ivar > 0)
    labels = {} if labels is None else {k: np.atleast_1d(np.asarray(v, float)) for k, v in labels.items()}
    for name, value in labels.items():
        if value.shape != (count,):
            raise SpectrumError(f"{who}: expected {count} values of {name}, found shape {value.shape}")
    if fwhm is not None:
        width = np.asarray(fwhm, np.float64)
        if width.shape not in ((), wave.shape) or not np.all(np.isfinite(width) & (width > 0)):
            raise SpectrumError(
                f"{who}: expected a positive FWHM of the line spread, one or {pixels}, found shape {width.shape}, "
                f"{width.min() if width.size else np.nan:.6g} to {width.max() if width.size else np.nan:.6g} Å"
            )
        fwhm = np.broadcast_to(width, wave.shape)
    told = {name: _fact(name, value, count, who) for name, value in (facts or {}).items()}
    return Spectra(wave, flux, valid, ivar, medium, names, labels, fwhm, told)


def _fact(name: str, value: ArrayLike, count: int, who: str) -> np.ndarray:
    if name not in (*TEXT_FACTS, *NUMBER_FACTS):
        raise SpectrumError(f"{who}: expected facts among {(*TEXT_FACTS, *NUMBER_FACTS)}, found {name!r}")
    if name in TEXT_FACTS:
        # object, because a fixed width would cut a longer text that is put in later
        texts = np.array([value] * count if isinstance(value, str) else [str(v) for v in value], dtype=object)
    else:
        texts = np.asarray(value, np.float64)
        texts = np.full(count, texts) if texts.ndim == 0 else texts
    if texts.shape != (count,):
        raise SpectrumError(f"{who}: expected {count} values of {name}, found shape {texts.shape}")
    return texts


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
