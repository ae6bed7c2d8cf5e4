"""The mock survey's spectrograph: line spread, blaze, response, noise, and what is wrong with its detector."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize

from remap.config import ConfigError
from remap.synth.library import pixel_grid

_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstrumentSettings:
    """How the mock survey sees its stars.

    Attributes:
      lsf_fwhm: full width at half maximum of the Gaussian line-spread function at mid-detector, Å.
      lsf_tilt: fraction by which the width grows to the red end and falls to the blue end.
      lsf_drift: standard deviation of a fractional change of the width from star to star.
      response: amplitude (fraction) of a smooth instrument response that varies from star to star.
      blaze: fraction of the light lost at both ends of the detector to a sinc² blaze, the same for all stars.
      snr: uniform range, per pixel at the median flux; the noise is Gaussian with photon scaling.
      calibration_snr: the same for calibration stars.
      bright_features: number of bright features at fixed places of the detector, such as sky residuals.
      bright_height: uniform range of their peaks over the median flux, drawn for each star.
      bright_fwhm: their width, Å.
      bright_jitter: standard deviation of their place from star to star, pixels.
      cosmic_rays: mean number per spectrum (Poisson).
      dead_pixels: number of dead pixels, the same in all spectra.
      wave_range, wave_step: pixel centres of the survey, Å in air.
      oversample: model points per pixel; wave_step / oversample <= 0.03 Å resolves the lines.

    Raises:
      ValueError: a value that is out of its range; names the field.
    """

    lsf_fwhm: float
    lsf_tilt: float
    lsf_drift: float
    response: float
    blaze: float
    snr: tuple[float, float]
    calibration_snr: tuple[float, float]
    bright_features: int
    bright_height: tuple[float, float]
    bright_fwhm: float
    bright_jitter: float
    cosmic_rays: float
    dead_pixels: int
    wave_range: tuple[float, float]
    wave_step: float
    oversample: int

    def __post_init__(self) -> None:
        if not 0 <= self.blaze < 1:
            raise ConfigError(f"blaze must be in [0, 1), found {self.blaze}")
        if self.oversample < 1:
            raise ConfigError(f"oversample must be at least 1, found {self.oversample}")
        for name in ("lsf_fwhm", "bright_fwhm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("lsf_drift", "bright_jitter", "cosmic_rays"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("snr", "calibration_snr"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name} must be a positive range, found {low} to {high}")
        pixels = pixel_grid(self.wave_range, self.wave_step).size
        for name in ("bright_features", "dead_pixels"):
            if not 0 <= getattr(self, name) <= pixels:
                raise ConfigError(f"{name} must be 0 to {pixels}, found {getattr(self, name)}")


class Detector(NamedTuple):
    """What is the same in all spectra of a survey: N pixels, and M points of the model between and beyond them."""

    wave: Float[np.ndarray, " N"]  # pixel centres, Å in air
    fine: Float[np.ndarray, " M"]  # wavelengths of the model, Å in air
    place: Float[np.ndarray, " N"]  # -1 to 1
    throughput: Float[np.ndarray, " N"]  # fraction
    bright: Int[np.ndarray, " B"]  # pixels of the bright features
    dead: Int[np.ndarray, " D"]  # dead pixels


def make_detector(settings: InstrumentSettings, rng: np.random.Generator) -> Detector:
    """Draws the detector's faults and lays out its pixels.

    The model's points are the sub-pixels of the detector, continued as far as the line spread reaches.
    """
    wave, step = pixel_grid(settings.wave_range, settings.wave_step), settings.wave_step
    dead = rng.choice(wave.size, settings.dead_pixels, replace=False)
    bright = rng.choice(wave.size, settings.bright_features, replace=False)
    margin = int(np.ceil((4 * settings.lsf_fwhm * (1 + abs(settings.lsf_tilt)) + 3.0) / step))
    padded = wave[0] + step * np.arange(-margin, wave.size + margin)
    inside = (np.arange(settings.oversample) + 0.5) / settings.oversample - 0.5
    place = np.linspace(-1, 1, wave.size)
    return Detector(
        wave=wave,
        fine=(padded[:, None] + step * inside).ravel(),
        place=place,
        throughput=blaze_function(place, settings.blaze),
        bright=bright,
        dead=dead,
    )


def expose(
    flux: Float[np.ndarray, " M"],
    detector: Detector,
    settings: InstrumentSettings,
    rng: np.random.Generator,
    *,
    snr: float,
    lsf_scale: float,
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """What the detector records of a star.

    Args:
      flux: at the detector's `fine` wavelengths, in any unit.
      snr: per pixel at the median flux.
      lsf_scale: the star's line spread over the usual one.

    Returns:
      Photons and their inverse variances. Cosmic rays and bright features are not marked; dead pixels have 0
      and 0.
    """
    wave = detector.wave
    width = settings.lsf_fwhm * lsf_scale * (1 + settings.lsf_tilt * detector.place)
    clean = line_spread(detector.fine, flux, wave=wave, fwhm=width)
    clean *= detector.throughput
    wiggle = np.polynomial.chebyshev.chebval(detector.place, np.r_[0, rng.uniform(-0.5, 0.5, 4)])
    clean *= 1 + settings.response * wiggle
    counts = clean / np.median(clean) * snr**2  # photons, so that σ = sqrt(counts)
    places = detector.bright + settings.bright_jitter * rng.standard_normal(detector.bright.size)
    heights = rng.uniform(*settings.bright_height, detector.bright.size) * snr**2
    sigma = settings.bright_fwhm * _SIGMA_PER_FWHM / settings.wave_step  # pixels
    shapes = np.exp(-0.5 * ((np.arange(wave.size) - places[:, None]) / sigma) ** 2)
    counts = counts + heights @ shapes  # their photons are noisy like any others
    noise = np.sqrt(np.maximum(counts, 1.0))
    noisy = counts + noise * rng.standard_normal(wave.size)
    hits = rng.integers(0, wave.size, rng.poisson(settings.cosmic_rays))
    noisy[hits] += rng.uniform(0.2, 2.0, hits.size) * np.median(counts)
    ivar = 1 / noise**2
    noisy[detector.dead] = 0.0
    ivar[detector.dead] = 0.0
    return noisy, ivar


def blaze_function(x: Float[np.ndarray, " N"], loss: float) -> Float[np.ndarray, " N"]:
    """sinc² blaze of a grating (Gray 2008, eq. 3.8), 1 at mid-detector and 1 - loss at its ends.

    Args:
      x: float[N], place on the detector, -1 to 1.
      loss: fraction lost at x = ±1, in [0, 1).

    Returns:
      float64[N].
    """
    edge = optimize.brentq(lambda a: np.sinc(a) ** 2 - (1 - loss), 0.0, 1.0)
    return np.sinc(edge * np.asarray(x, np.float64)) ** 2


def line_spread(
    fine: Float[np.ndarray, " M"],
    flux: Float[np.ndarray, " M"],
    *,
    wave: Float[np.ndarray, " N"],
    fwhm: Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
    """Spectrum seen through a Gaussian line-spread function of varying width.

    Args:
      fine: float[M], evenly spaced, Å; must reach 4σ beyond `wave` at both ends.
      flux: float[M].
      wave: float[N], pixel centres, Å.
      fwhm: float[N], Å, full width at half maximum at each pixel.

    Returns:
      float64[N].

    Raises:
      ValueError: `fine` does not reach far enough.
    """
    step = (fine[-1] - fine[0]) / (fine.size - 1)
    sigma = fwhm * _SIGMA_PER_FWHM
    half = int(np.ceil(4 * np.max(sigma) / step))
    centre = np.rint((wave - fine[0]) / step).astype(int)
    if centre[0] < half or centre[-1] + half >= fine.size:
        raise ConfigError(
            f"the model covers {fine[0]:g}-{fine[-1]:g} Å, too little for pixels at {wave[0]:g}-{wave[-1]:g} "
            f"Å with a line-spread function of {np.max(fwhm):g} Å"
        )
    windows = np.lib.stride_tricks.sliding_window_view(flux, 2 * half + 1)[centre - half]
    distance = (fine[centre] - wave)[:, None] + step * np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    return np.einsum("pk,pk->p", windows, weights) / weights.sum(axis=1)
