"""What is masked of exposures on their own pixels, before anything is shifted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from remap.preprocess.cleaning import mask_bad
from remap.preprocess.cosmic_rays import mask_cosmic_rays
from remap.preprocess.cosmic_rays_in_stack import mask_cosmic_rays_in_stack
from remap.preprocess.description import Preprocessing
from remap.preprocess.exposures import Exposures
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.stationary import StationaryMask, mask_stationary
from remap.spectra import Spectra

logger = logging.getLogger(__name__)


def cleaned(
    split: Exposures,
    settings: ObserveSettings,
    stationary: StationaryMask | None,
    preprocessing: Preprocessing,
) -> list[Spectra]:
    """Bad pixels, cosmic rays and stationary features masked, in this order, each in what the last one left."""
    parts = split.segments
    used = [bool((own >= 0).any()) for own in split.owner]
    if settings.bad_pixels:
        parts = [mask_bad(p, settings.cleaning) if u else p for p, u in zip(parts, used, strict=True)]
    if settings.cosmic_rays:
        parts = _without_cosmic_rays(parts, used, settings, preprocessing)
    if stationary is not None:
        parts = [mask_stationary(p, stationary) for p in parts]
    return parts


def _without_cosmic_rays(
    parts: Sequence[Spectra], used: Sequence[bool], settings: ObserveSettings, preprocessing: Preprocessing
) -> list[Spectra]:
    """Exposures of one star and segment against each other, the rest along wavelength alone."""
    out = list(parts)
    together: dict[object, list[int]] = {}
    for i, part in enumerate(parts):
        if not used[i]:
            continue
        single = len(part) == 1 and part.fact("exposure")[0]
        key = (part.names[0], part.fact("star_id")[0], part.fact("segment")[0]) if single else i
        together.setdefault(key, []).append(i)
    blind = 0
    for members in together.values():
        own = [_with_width(parts[i], preprocessing, settings) for i in members]
        blind += sum(len(part) for part in own if not _sampled(part, settings.cleaning.min_sampling))
        if len(members) == 1:
            cleaned = [mask_cosmic_rays(own[0], settings.cleaning)]
        else:
            cleaned = list(mask_cosmic_rays_in_stack(own, settings.cleaning))
        for i, part in zip(members, cleaned, strict=True):
            out[i] = dataclasses.replace(parts[i], valid=part.valid)
    if blind:
        logger.warning(
            "cosmic rays are not looked for in most of the pixels of %d of %d segments: their lines are under %g "
            "pixels wide, or of unknown width",
            blind,
            sum(len(part) for part, u in zip(parts, used, strict=True) if u),
            settings.cleaning.min_sampling,
        )
    return out


def _with_width(part: Spectra, preprocessing: Preprocessing, settings: ObserveSettings) -> Spectra:
    """The same with the line spread that the networks know where it does not say its own and is trusted to be so."""
    if part.fwhm is not None or not settings.trust_width:
        return part
    wave = np.concatenate([preprocessing.wave(arm) for arm in preprocessing.arms])
    fwhm = np.concatenate([preprocessing.fwhm(arm) for arm in preprocessing.arms])
    order = np.argsort(wave)
    return dataclasses.replace(part, fwhm=np.interp(part.wave, wave[order], fwhm[order]))


def _sampled(part: Spectra, pixels: float) -> bool:
    """Whether lines are at least so many pixels wide, in half of the pixels or more."""
    return part.fwhm is not None and bool(np.mean(part.fwhm >= pixels * np.gradient(part.wave)) >= 0.5)
