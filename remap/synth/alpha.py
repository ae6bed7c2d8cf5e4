"""What [α/Fe] does to spectra: d ln flux / d [α/Fe] per pixel, from the embedded model.

Libraries with the solar mixture of elements lack it, and metal-poor stars have 0.2 to 0.4 dex of it. With Mg, Si, Ca
and Ti raised together by `REACH` and [Fe/H] kept, the model's spectra give a slope that is drawn from in training
(`remap.sampling.nuisances`).

Its limits are the model's. Lines: some hundreds of strong ones and no molecules, so that MgH in K dwarfs does not
respond; the haze of weak lines responds in the mean over 30 Å alone. Atmosphere: electrons of the raised elements
enter the opacity and so weaken other elements' lines (by a sixth per dex in Fe I 5269.5 of the Sun, by a hundredth
at 6,100 K and [Fe/H] = -1.2), but T(τ) stays that of [α/Fe] = 0. The slope is a chord over `REACH`, although strong
lines saturate: half of it gives another by 5 to 8 %. It belongs to the model's line strengths, not to those of the
library that it is applied to, and to one line spread. Good as a nuisance; not for measuring [α/Fe].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from remap.config import ConfigError
from remap.preprocess.resample import LineSpread, degrade_and_resample
from remap.spectra import make_spectra, to_medium
from remap.synth.atoms import ALPHA_ELEMENTS, ELEMENTS, LABEL_RANGES
from remap.synth.blanketing import default_lines
from remap.synth.lines import LineList
from remap.synth.model import synthesize_batch

REACH = 0.4  # dex: from 0 to what halo stars have
MICROTURBULENCE = (2.0, -0.2)  # km/s: a + b log g, as in configs/quickstart.py
MARGIN = 5.0  # σ of the line spread that the spectra reach beyond the arm
STEP = 0.03  # Å: monochromatic points, see `synthesize_batch`
COVERED = (4850.0, 5750.0)  # Å, air: where the line table is meant to be whole


def alpha_response(
    labels: Float[np.ndarray, "stars three"],
    wave: Float[np.ndarray, " N"],
    *,
    medium: str,
    fwhm: Float[np.ndarray, " N"],
    reach: float = REACH,
    lines: LineList | None = None,
    chunk: int = 16,
) -> Float[np.ndarray, "stars N"]:
    """d ln flux / d [α/Fe], per dex, at the line spread of an arm, of the flux over its true continuum.

    Args:
      labels: Teff [K], log g and [Fe/H] (dex).
      wave: the arm's uniform grid [Å], in `medium` ("air" or "vacuum").
      fwhm: its line spread [Å].
      reach: of the chord (dex).
      lines: None takes `default_lines()`.
      chunk: spectra under way at a time.

    Raises:
      ConfigError: labels outside the model's range, or an arm outside the wavelengths of its lines.
    """
    air = to_medium(wave, source=medium, target="air")
    if air[0] < COVERED[0] - 1 or air[-1] > COVERED[1] + 1:
        raise ConfigError(
            f"augment.alpha: expected arms within {COVERED[0]:g}-{COVERED[1]:g} Å (air), where the lines of the "
            f"embedded model are, found one of {air[0]:.1f}-{air[-1]:.1f} Å"
        )
    widest = float(np.max(fwhm))
    pixel = min(0.1, float(np.min(fwhm)) / 5)
    margin = MARGIN * widest / 2.35 + 4 * pixel
    fine = np.arange(air[0] - margin, air[-1] + margin + pixel, pixel)
    labels = np.asarray(labels, np.float64)
    microturbulence = MICROTURBULENCE[0] + MICROTURBULENCE[1] * labels[:, 1:2]
    offsets = np.zeros((2, len(labels), len(ELEMENTS)))
    offsets[1] = reach * np.isin(ELEMENTS, ALPHA_ELEMENTS)
    flux, _ = synthesize_batch(
        np.tile(np.concatenate([labels, microturbulence], axis=1), (2, 1)),
        lines=default_lines() if lines is None else lines,
        wave=fine,
        oversample=max(1, int(np.ceil(pixel / STEP - 1e-9))),
        chunk=chunk,
        offsets=offsets.reshape(-1, len(ELEMENTS)),
    )
    spectra = make_spectra(fine, flux.astype(np.float64), medium="air")
    seen = degrade_and_resample(spectra, wave, medium=medium, lsf=LineSpread(fwhm=fwhm))
    plain, enhanced = np.log(seen.flux).reshape(2, len(labels), -1)
    return (enhanced - plain) / reach


def response_axes(
    ranges: dict[str, tuple[float, float]], counts: dict[str, int]
) -> dict[str, Float[np.ndarray, " points"]]:
    """Values of Teff, log g and [Fe/H] for the response: evenly over the ranges, as far as the model goes.

    Args:
      ranges: of "teff", "logg" and "feh".
      counts: of values of each.

    Raises:
      ConfigError: a range that the model has no part of.
    """
    out = {}
    for name, (low, high) in ranges.items():
        least, most = LABEL_RANGES["m_h" if name == "feh" else name]
        low, high = max(low, least), min(high, most)
        if not low < high:
            raise ConfigError(
                f"augment.alpha: the embedded model knows {name} from {least:g} to {most:g} alone"
            )
        out[name] = np.linspace(low, high, counts[name])
    return out
