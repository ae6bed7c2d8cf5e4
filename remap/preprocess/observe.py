"""Observed spectra from their own pixels to the arms' grids: cleaned, at rest, of one line spread, one per star.

The order is that of the paper's §3.3 read for many surveys: bad pixels and cosmic rays are masked on the spectrum's
own pixels, the velocity is known or measured, then one convolution and one interpolation, and at last the exposures
of a star become one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from remap.config import ConfigError
from remap.preprocess.description import Preprocessing
from remap.preprocess.exposure_masks import cleaned
from remap.preprocess.exposures import Exposures, first_fact, in_tables, split_exposures
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import ArmOnGrid, Observed, either, rows_of, without_rows
from remap.preprocess.placing import Placed, place
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.preprocess.velocity import no_velocities
from remap.preprocess.velocity_choice import (
    choose_velocities,
    given_velocities,
    measure,
    stated_velocities,
    sure,
)
from remap.spectra import SPEED_OF_LIGHT, Spectra

logger = logging.getLogger(__name__)


def observe(
    files: Sequence[Sequence[Spectra]],
    preprocessing: Preprocessing,
    *,
    settings: ObserveSettings | None = None,
    velocities: Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
    templates: Templates | None = None,
    stationary: StationaryMask | None = None,
) -> Observed:
    """The exposures of some files on the arms' grids, one row per exposure; `join` makes stars of them.

    Args:
      files: the segments of each, as `remap.io.read_segments` gives them.
      settings: None = `ObserveSettings()`.
      velocities: km/s, of each exposure in the order of first appearance, or by name; what is not finite makes a row
        that cannot be used. None = as `settings.velocity` says.
      templates: of the library, to measure velocities with.
      stationary: places of the detector that are masked before anything is shifted.

    Returns:
      One row per exposure. Nothing raises for a spectrum: one that cannot be used says why in `messages`.

    Raises:
      ConfigError: velocities are to be measured and there are no templates, or `velocities` are not as many.
    """
    settings = settings or ObserveSettings()
    split = split_exposures(files)
    count = len(split.names)
    split = in_tables(split, settings)
    split = split._replace(segments=cleaned(split, settings, stationary, preprocessing))
    given = given_velocities(velocities, split.names)
    if templates is None and given is None and settings.velocity == "measure":
        raise ConfigError(
            "velocities cannot be measured without templates of the library: run the stage preprocess again"
        )
    stated, error = stated_velocities(split, given, settings)
    usable = np.abs(stated) < SPEED_OF_LIGHT
    placed = place(split, np.where(usable, stated, 0), preprocessing, settings)
    wanted = np.isnan(stated) & (given is None and templates is not None)
    measured = no_velocities(count)
    if templates is not None:
        doubted = np.zeros(count, bool)
        if settings.check:
            doubted = usable & ~sure(_arms(placed), split.star_ids, templates, settings)
        if (wanted | doubted).any():
            seen = _as_observed(split, stated, wanted | doubted, placed, preprocessing, settings)
            measured = measure(_arms(seen), split.star_ids, templates, settings, wanted | doubted)
    chosen = choose_velocities(stated, error, wanted, measured, settings)
    used = chosen.velocity
    messages = _messages(split.names, used, placed, preprocessing, measurable=given is None)
    known = np.array([not m for m in messages], bool)
    placed = _placed_again(split, used, wanted & known & (used != 0), placed, preprocessing, settings)
    placed = {arm: (without_rows(on, ~known), coarse) for arm, (on, coarse) in placed.items()}
    return Observed(
        names=tuple(split.names),
        star_ids=tuple(split.star_ids),
        arms={arm: on for arm, (on, _) in placed.items()},
        velocity=np.where(known, used, np.nan),
        velocity_error=chosen.error,
        measured=np.where(measured.poor, np.nan, measured.velocity),
        poor=chosen.poor,
        doubtful=chosen.doubtful,
        coarse=np.any([coarse for _, coarse in placed.values()], axis=0),
        ra=first_fact(split, "ra", count),
        dec=first_fact(split, "dec", count),
        star_within=first_fact(split, "star_within", count),
        inputs=np.ones(count, int),
        messages=messages,
    )


def _messages(
    names: Sequence[str],
    used: np.ndarray,
    placed: Placed,
    preprocessing: Preprocessing,
    *,
    measurable: bool,
) -> tuple[str, ...]:
    """Why each exposure cannot be used, "" elsewhere.

    Args:
      used: float[E], km/s.
      measurable: those that are not known were to be measured, and not given.
    """
    out = [""] * len(names)
    for i in np.flatnonzero(~(np.abs(used) < SPEED_OF_LIGHT)).tolist():
        out[i] = f"{names[i]}: expected a radial velocity [km/s], found {used[i]}"
        if measurable and np.isnan(used[i]):
            out[i] = f"{names[i]}: the velocity could not be measured: {_coverage(placed, i, preprocessing)}"
    return tuple(out)


def _coverage(placed: Placed, row: int, preprocessing: Preprocessing) -> str:
    if not any(on.valid[row].any() for on, _ in placed.values()):
        waves = [preprocessing.wave(arm) for arm in placed]
        first, last = min(w[0] for w in waves), max(w[-1] for w in waves)
        return f"expected good pixels in the arms, from {first:.0f} to {last:.0f} Å, found none"
    shares = ", ".join(f"{on.valid[row].mean():.0%} of arm {arm}" for arm, (on, _) in placed.items())
    return f"expected good pixels in the arms and lines of a star, found {shares} covered"


def _arms(placed: Placed) -> dict[str, ArmOnGrid]:
    return {arm: on for arm, (on, _) in placed.items()}


def _as_observed(
    split: Exposures,
    stated: np.ndarray,
    rows: np.ndarray,
    placed: Placed,
    preprocessing: Preprocessing,
    settings: ObserveSettings,
) -> Placed:
    """Exposures with no velocity taken out, if they are `rows` bool[E] or may be other arms of their stars."""
    stars = {split.star_ids[i] for i in np.flatnonzero(rows)} - {""} if settings.join else set()
    too = rows | np.array([name in stars for name in split.star_ids], bool)
    moved = too & (np.abs(stated) < SPEED_OF_LIGHT) & (stated != 0)
    return _placed_again(split, np.zeros(len(stated)), moved, placed, preprocessing, settings)


def _placed_again(
    split: Exposures,
    velocity: np.ndarray,
    moved: np.ndarray,
    placed: Placed,
    preprocessing: Preprocessing,
    settings: ObserveSettings,
) -> Placed:
    """Exposures that are `moved` bool[E] once more from their own pixels, the others as they were `placed`."""
    if not moved.any():
        return placed
    again = place(split, np.where(moved, velocity, np.nan), preprocessing, settings)
    return {
        arm: (either(moved, again[arm][0], on), np.where(moved, again[arm][1], coarse))
        for arm, (on, coarse) in placed.items()
    }


def observe_files(
    files: Sequence[Sequence[Spectra]],
    preprocessing: Preprocessing,
    *,
    settings: ObserveSettings,
    velocities: Sequence[float] | None,
    templates: Templates | None,
    stationary: StationaryMask | None = None,
) -> list[Observed]:
    """`observe` of several files at once, taken apart again; `velocities` has one number per file."""
    if not files:
        return []
    counts = [len(split_exposures([segments]).names) for segments in files]
    each = None
    if velocities is not None:
        each = np.repeat(
            [_of_all(v, segments) for v, segments in zip(velocities, files, strict=True)], counts
        )
    found = observe(
        files, preprocessing, settings=settings, velocities=each, templates=templates, stationary=stationary
    )
    ends = np.cumsum(counts)
    return [rows_of(found, slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def _of_all(velocity: float, segments: Sequence[Spectra]) -> float:
    """The velocity given for a file; NaN where the file has several stars, of which it says nothing."""
    names = {name for part in segments for name in part.names}
    if len(names) > 1 and np.isfinite(velocity):
        logger.warning("%s and others: one velocity was given for a file of %d stars", min(names), len(names))
        return float("nan")
    return velocity
