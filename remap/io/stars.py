"""Whose the spectra of a file are: identifiers, and positions where these may tell as well."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remap.spectra import Spectra

WHOSE = ("star_id", "ra", "dec", "star_within")  # the facts that say so


class Star(NamedTuple):
    """A star, as far as a file says who it is. Positions are told where they may decide, and are NaN elsewhere."""

    name: str  # the fact star_id
    ra: float = math.nan  # degrees
    dec: float = math.nan  # degrees
    within: float = math.nan  # arcsec, the fact star_within


def asked(declared: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[str, ...]:
    """Those of `WHOSE` that are there and tell who a star is: positions only beside an identifier that changes.

    Args:
      declared: of `remap.io.facts.check_facts`.
    """
    changes = "star_within" in declared or any(
        place.get("within") is not None for place in declared.get("star_id", ())
    )
    return tuple(name for name in (WHOSE if changes else WHOSE[:1]) if name in declared)


def stars_of_rows(facts: Mapping[str, Sequence | np.ndarray]) -> tuple[Star, ...]:
    """The stars of S spectra, each once and sorted.

    Args:
      facts: some of `WHOSE` -> S values.
    """
    names = [str(name) for name in facts.get("star_id", ())]
    numbers = [[math.nan] * len(names)] * 3
    if "star_within" in facts:
        numbers = [facts.get(name, [math.nan] * len(names)) for name in WHOSE[1:]]
    # One object for every NaN, so that equal rows are equal.
    places = zip(
        *([float(x) if np.isfinite(x) else math.nan for x in column] for column in numbers), strict=True
    )
    found = {Star(name, *place) for name, place in zip(names, places, strict=True) if name}
    return tuple(sorted(found, key=lambda star: (star.name, repr(star))))


def stars_of_segments(parts: Sequence[Spectra]) -> tuple[Star, ...]:
    """The same of the segments of a file; of a spectrum in several segments counts the first that is known."""
    found: dict[tuple[str, str, int], list] = {}
    for part in parts:
        met: Counter = Counter()
        columns = zip(*(part.fact(name) for name in WHOSE), strict=True)
        for name, exposure, own in zip(part.names, part.fact("exposure"), columns, strict=True):
            met[name, exposure] += 1  # rows of one segment are never one spectrum
            old = found.setdefault((name, exposure, met[name, exposure]), list(own))
            old[1:] = [new if np.isnan(x) else x for x, new in zip(old[1:], own[1:], strict=True)]
    facts = dict(zip(WHOSE, zip(*found.values(), strict=True), strict=True)) if found else {}
    if not any("star_within" in part.facts for part in parts):
        facts.pop("star_within", None)
    return stars_of_rows(facts)
