"""The segments of files told apart by star and exposure, and put together where they lie on the same pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from remap.preprocess.observe_settings import ObserveSettings
from remap.spectra import Spectra


class Exposures(NamedTuple):
    """The spectra of some files, told apart by star and exposure."""

    names: list[str]
    star_ids: list[str]
    segments: list[Spectra]
    owner: list[np.ndarray]  # int[rows of the segment]: whose each is, -1 = not used


def split_exposures(files: Sequence[Sequence[Spectra]]) -> Exposures:
    """Tells apart the stars and exposures of the segments of some files.

    Rows of one file, name and exposure belong together: they are the arms, chips or orders of one spectrum. Of a star
    that has sums as well as single exposures in the file the sums alone are used.
    """
    index: dict[tuple[object, ...], int] = {}
    out = Exposures([], [], [], [])
    for file, segments in enumerate(files):
        summed = {
            name
            for part in segments
            for name, exposure in zip(part.names, part.fact("exposure"), strict=True)
            if not exposure
        }
        for part in segments:
            own = np.full(len(part), -1)
            met: dict[tuple[str, str], int] = {}
            told = zip(part.names, part.fact("exposure"), part.fact("star_id"), strict=True)
            for row, (name, exposure, star_id) in enumerate(told):
                if exposure and name in summed:
                    continue
                # Rows of one segment are never one spectrum, whatever they are called.
                met[name, exposure] = met.get((name, exposure), -1) + 1
                key = (file, name, exposure, met[name, exposure])
                if key not in index:
                    index[key] = len(out.names)
                    out.names.append(name)
                    out.star_ids.append(str(star_id))
                if part.wave.size > 1:  # one pixel has no width, and says nothing
                    own[row] = index[key]
            out.segments.append(part)
            out.owner.append(own)
    return out


def in_tables(split: Exposures, settings: ObserveSettings) -> Exposures:
    """Segments on the same pixels as one: a table of many spectra costs a fraction of as many tables of one."""
    cleaning = settings.cleaning
    known = settings.trust_width or cleaning.fwhm is not None or cleaning.resolution is not None
    together: dict[object, list[int]] = {}
    for i, part in enumerate(split.segments):
        key: object = i
        # Cosmic rays are looked for among the exposures of a star, and with a line spread that may be one star's own.
        alone = (part.fwhm is None and not known) or bool(np.any(part.fact("exposure") != ""))
        if not (settings.cosmic_rays and alone):
            fwhm = None if part.fwhm is None else part.fwhm.tobytes()
            kind = part.flux.dtype, None if part.ivar is None else part.ivar.dtype
            key = (part.wave.tobytes(), part.medium, fwhm, kind)
        together.setdefault(key, []).append(i)
    return split._replace(
        segments=[_table([split.segments[i] for i in members]) for members in together.values()],
        owner=[np.concatenate([split.owner[i] for i in members]) for members in together.values()],
    )


def _table(parts: Sequence[Spectra]) -> Spectra:
    """Spectra on the same pixels as one container."""
    if len(parts) == 1:
        return parts[0]
    facts = dict.fromkeys(name for part in parts for name in part.facts)
    return dataclasses.replace(
        parts[0],
        flux=np.concatenate([p.flux for p in parts]),
        valid=np.concatenate([p.valid for p in parts]),
        ivar=None if parts[0].ivar is None else np.concatenate([p.ivar for p in parts]),
        names=tuple(name for p in parts for name in p.names),
        labels={},
        facts={name: np.concatenate([p.fact(name) for p in parts]) for name in facts},
    )


def first_fact(split: Exposures, name: str, count: int) -> np.ndarray:
    """float[E]: the first finite value among the segments of each exposure."""
    out = np.full(count, np.nan)
    for part, own in zip(split.segments, split.owner, strict=True):
        for row, value in zip(own, part.fact(name), strict=True):
            if row >= 0 and not np.isfinite(out[row]):
                out[row] = value
    return out
