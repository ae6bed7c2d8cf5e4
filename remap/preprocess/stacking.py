"""Several spectra of one star on one grid as one: exposures, overlapping orders and arms."""

from __future__ import annotations

import dataclasses

import numpy as np

from remap.preprocess.grid import snr_estimate
from remap.spectra import Spectra

FEWEST_COMMON = 10  # pixels that two spectra must share for one to be brought to the other's level


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackSettings:
    """How spectra of one star are brought to one level before they are averaged.

    Attributes:
      degree: of the polynomial in wavelength that takes one spectrum to the other where they share more than `wide`
        of the grid; a constant where they share less. Exposures differ by slopes that come from their calibration.
      wide: fraction of the grid.
    """

    degree: int = 3
    wide: float = 0.5


def stack(spectra: Spectra, *, settings: StackSettings | None = None) -> Spectra:
    """The mean of spectra of one star, weighted by their inverse variance.

    The spectrum with the most signal keeps its level, and the others are brought to it by the ratio of their fluxes
    in common pixels, from the best to the worst; one that has pixels in common with others of them alone waits for
    these. One without common pixels keeps its own level, which is right for orders and arms of one calibration. Where
    a spectrum has no inverse variance, one number per spectrum takes its place, from `snr_estimate`.

    Args:
      spectra: K spectra of one star on one grid, at rest.
      settings: None = `StackSettings()`.

    Returns:
      One spectrum with the first one's name, labels and facts. A pixel is valid where it is in one of them. Its
      inverse variance is the sum of theirs on the common level; None where one of them has none.

    Examples:
      >>> import numpy as np
      >>> from remap import make_spectra
      >>> wave = np.arange(5000.0, 5020.0)
      >>> flux = np.stack([np.full(20, 1.0), np.full(20, 3.0)])
      >>> both = stack(make_spectra(wave, flux, medium="air", ivar=np.stack([flux[0] * 100, flux[0] * 100])))
      >>> both.flux[0, :2].round(3).tolist(), both.ivar[0, :2].round(3).tolist()
      ([3.0, 3.0], [111.111, 111.111])
    """
    settings = settings or StackSettings()
    if len(spectra) == 1:
        return spectra
    flux = np.where(spectra.valid, spectra.flux, 0.0).astype(np.float64)
    weight = np.where(spectra.valid, _inverse_variance(spectra), 0.0)
    signal = np.sum(flux**2 * weight, axis=1)
    first, *left = np.argsort(-signal, kind="stable").tolist()
    total, norm = flux[first] * weight[first], weight[first].copy()
    while left:
        k = next(
            (k for k in left if np.count_nonzero((norm > 0) & (weight[k] > 0)) >= FEWEST_COMMON), left[0]
        )
        left.remove(k)
        common = (norm > 0) & (weight[k] > 0)
        ratio = _ratio(
            flux[k], np.divide(total, norm, where=norm > 0, out=np.zeros_like(total)), common, settings
        )
        total += flux[k] * ratio * weight[k] / ratio**2
        norm += weight[k] / ratio**2
    valid = norm > 0
    mean = np.divide(total, norm, where=valid, out=np.zeros_like(total))
    one = spectra.rows(slice(0, 1))
    return dataclasses.replace(
        one,
        flux=mean[None].astype(spectra.flux.dtype),
        valid=valid[None],
        ivar=None if spectra.ivar is None else norm[None],
    )


def _inverse_variance(spectra: Spectra) -> np.ndarray:
    """float64[K, N]: what is known, or one number for all pixels of a spectrum."""
    if spectra.ivar is not None:
        return spectra.ivar.astype(np.float64)
    out = np.zeros(spectra.flux.shape)
    for k, snr in enumerate(snr_estimate(spectra.flux, spectra.valid, None)):
        good = spectra.valid[k]
        level = np.median(np.abs(spectra.flux[k][good])) if good.any() else 0.0
        out[k] = (snr / level) ** 2 if np.isfinite(snr) and snr > 0 and level > 0 else 1.0
    return out


def _ratio(flux: np.ndarray, to: np.ndarray, common: np.ndarray, settings: StackSettings) -> np.ndarray:
    """float64[N]: what takes `flux` to the level of `to`; 1 where they share too little or it is not positive."""
    common = common & (flux > 0) & (to > 0)
    count = np.count_nonzero(common)
    if count < FEWEST_COMMON:
        return np.ones_like(flux)
    constant = float(np.median(to[common]) / np.median(flux[common]))
    if count < settings.wide * flux.size:
        return np.full_like(flux, constant)
    x = np.linspace(-1, 1, flux.size)
    # The polynomial goes through log ratios, so that it is positive; two rounds leave out what one of the two has
    # alone, a cosmic ray for example.
    y = np.log(to[common] / flux[common])
    keep = np.ones(count, bool)
    fitted = np.full(count, np.log(constant))
    for _ in range(3):
        scatter = 1.4826 * np.median(np.abs((y - fitted)[keep])) + 1e-12
        keep = np.abs(y - fitted) < 4 * scatter
        if np.count_nonzero(keep) < FEWEST_COMMON:
            return np.full_like(flux, constant)
        poly = np.polynomial.chebyshev.chebfit(x[common][keep], y[keep], settings.degree)
        fitted = np.polynomial.chebyshev.chebval(x[common], poly)
    # Outside the common pixels a polynomial runs away: its value at their ends goes on.
    low, high = x[common][[0, -1]]
    return np.exp(np.polynomial.chebyshev.chebval(np.clip(x, low, high), poly))
