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
from remap.preprocess.observed import Observed, either, rows_of, without_rows
from remap.preprocess.placing import Placed, place
from remap.preprocess.stationary import StationaryMask
from remap.preprocess.templates import Templates
from remap.preprocess.velocity_choice import choose_velocities, given_velocities, measure
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
    wanted = settings.velocity
    if templates is None and given is None and wanted == "measure":
        raise ConfigError(
            "velocities cannot be measured without templates of the library: run the stage preprocess again"
        )
    measured = placed = None
    if templates is not None and (settings.check or (given is None and wanted != "rest")):
        placed = place(split, np.zeros(count), preprocessing, settings)
        measured = measure({arm: on for arm, (on, _) in placed.items()}, split.star_ids, templates, settings)
    chosen = choose_velocities(split, given, measured, settings)
    used = chosen.velocity
    if placed is None:
        placed = place(split, np.where(np.abs(used) < SPEED_OF_LIGHT, used, 0), preprocessing, settings)
    messages = _messages(split.names, used, placed, preprocessing, measurable=given is None)
    known = np.array([not m for m in messages], bool)
    moved = known & (used != 0)
    if measured is not None and moved.any():
        placed = _placed_again(split, used, moved, placed, preprocessing, settings)
    placed = {arm: (without_rows(on, ~known), coarse) for arm, (on, coarse) in placed.items()}
    return Observed(
        names=tuple(split.names),
        star_ids=tuple(split.star_ids),
        arms={arm: on for arm, (on, _) in placed.items()},
        velocity=np.where(known, used, np.nan),
        velocity_error=chosen.error,
        measured=np.where(measured.poor, np.nan, measured.velocity) if measured else np.full(count, np.nan),
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
    out = []
    for i, (name, v) in enumerate(zip(names, used, strict=True)):
        message = f"{name}: expected a radial velocity [km/s], found {v}"
        if measurable and np.isnan(v):
            message = f"{name}: the velocity could not be measured: {_coverage(placed, i, preprocessing)}"
        out.append("" if abs(v) < SPEED_OF_LIGHT else message)
    return tuple(out)


def _coverage(placed: Placed, row: int, preprocessing: Preprocessing) -> str:
    if not any(on.valid[row].any() for on, _ in placed.values()):
        waves = [preprocessing.wave(arm) for arm in placed]
        first, last = min(w[0] for w in waves), max(w[-1] for w in waves)
        return f"expected good pixels in the arms, from {first:.0f} to {last:.0f} Å, found none"
    shares = ", ".join(f"{on.valid[row].mean():.0%} of arm {arm}" for arm, (on, _) in placed.items())
    return f"expected good pixels in the arms and lines of a star, found {shares} covered"


def _placed_again(
    split: Exposures,
    used: np.ndarray,
    moved: np.ndarray,
    placed: Placed,
    preprocessing: Preprocessing,
    settings: ObserveSettings,
) -> Placed:
    """Exposures that are `moved` bool[E] once more from their own pixels, the others as they were `placed`."""
    again = place(split, np.where(moved, used, np.nan), preprocessing, settings)
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
