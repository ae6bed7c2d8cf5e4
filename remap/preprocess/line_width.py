"""How wide the lines of spectra are, in pixels: as they say, or as their power spectra show."""

from __future__ import annotations

import logging

import numpy as np

from remap.preprocess.cleaning import CleaningSettings, segment_median
from remap.preprocess.resample import FWHM_PER_SIGMA
from remap.spectra import Spectra

log = logging.getLogger(__name__)

SEGMENT = 256  # pixels over which noise and contrast are taken
MEASURED = 0.6  # stars' lines are wider than the line spread, so a width measured from them is an upper limit


def measure_line_width(flux: np.ndarray, valid: np.ndarray) -> float:
    """Typical FWHM of the narrowest structure of spectra, in pixels, from their power spectra.

    A Gaussian of standard deviation σ pixels leaves the power exp(-4π²σ²f²) at frequency f, and the slope of its
    logarithm in f² is fitted where the power is well above the noise's. Rotation and the star's own line widths are
    in it, so it is an upper limit to the line spread.

    Args:
      flux: float[S, N].
      valid: bool[S, N].

    Returns:
      The median over the spectra; NaN where no structure stands out of the noise.
    """
    found = []
    for row, good in zip(flux, valid, strict=True):
        ends = np.flatnonzero(good)
        if ends.size < 64:
            continue
        part = slice(ends[0], ends[-1] + 1)
        y = np.interp(np.arange(part.start, part.stop), ends, row[ends].astype(np.float64))
        level = segment_median(y[None], SEGMENT)[0]
        scale = np.median(np.abs(level))
        if not scale > 0:
            continue
        y = np.clip((y - level) / scale, -3, 3) * np.hanning(y.size)
        power = np.abs(np.fft.rfft(y)) ** 2
        bins = np.array_split(power, 40)
        mean = np.array([np.median(b) for b in bins])
        f2 = ((np.arange(40) + 0.5) / 80) ** 2
        use = mean > 5 * np.median(mean[-6:])
        last = int(np.argmin(use)) if not use.all() else use.size
        if last < 5:
            continue
        slope = np.polyfit(f2[1:last], np.log(mean[1:last]), 1)[0]
        if slope < 0:
            found.append(np.sqrt(-slope / (4 * np.pi**2)) * FWHM_PER_SIGMA)
    return float(np.median(found)) if found else float("nan")


def pixels_per_fwhm(spectra: Spectra, settings: CleaningSettings) -> np.ndarray | None:
    """float64[N]: the line spread in pixels, None where it is not known."""
    if spectra.wave.size < 2:
        return None
    step = np.gradient(spectra.wave)
    if spectra.fwhm is not None:
        return spectra.fwhm / step
    if settings.fwhm is not None:
        return settings.fwhm / step
    if settings.resolution is not None:
        return spectra.wave / settings.resolution / step
    who = spectra.names[0] if spectra.names else "spectra"
    width = measure_line_width(spectra.flux, spectra.valid)
    if not np.isfinite(width):
        log.debug("%s: no cosmic rays are looked for: the line spread is not known and nothing shows it", who)
        return None
    log.debug(
        "%s: the line spread is not known; the narrowest structure has a FWHM of %.2g pixels, and %.2g are taken",
        who,
        width,
        MEASURED * width,
    )
    return np.full(spectra.wave.size, MEASURED * width)
