"""Which velocity is taken out of each exposure: given, the file's or the measured one, and whether they agree."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from remap.config import ConfigError
from remap.preprocess.exposures import Exposures, first_fact
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import ArmOnGrid, Observed
from remap.preprocess.templates import Templates
from remap.preprocess.velocity import Velocities, measure_velocities, no_velocities
from remap.preprocess.velocity_check import surely_at_rest
from remap.spectra import velocities_in_km_s

logger = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """Of E exposures."""

    velocity: np.ndarray  # float[E], km/s, to be taken out; NaN = not known
    error: np.ndarray  # float[E], km/s, NaN = not known
    poor: np.ndarray  # bool[E], it was measured, poorly
    doubtful: np.ndarray  # bool[E], it is poor, or contradicts the measured one


def stated_velocities(
    split: Exposures, given: np.ndarray | None, settings: ObserveSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The velocity of each exposure and its error: as given float[E], else as `settings.velocity` says.

    Returns:
      float[E] each, km/s, NaN where they are not known.
    """
    count = len(split.names)
    unknown = np.full(count, np.nan)
    if given is not None:
        return given, unknown
    if settings.velocity == "rest":
        return np.zeros(count), unknown
    if settings.velocity == "measure":
        return unknown, unknown
    velocity = first_fact(split, "rv", count)
    known = np.isfinite(velocity)
    return np.where(known, velocity, np.nan), np.where(known, first_fact(split, "rv_err", count), np.nan)


def choose_velocities(
    stated: np.ndarray, error: np.ndarray, wanted: np.ndarray, measured: Velocities, settings: ObserveSettings
) -> Chosen:
    """The velocity of each exposure: the measured one where it is `wanted` bool[E], else as is stated float[E].

    Args:
      measured: NaN where nothing was measured.
    """
    used = np.where(wanted, measured.velocity, stated)
    poor = wanted & measured.poor
    apart = np.zeros(len(used), bool)
    if settings.check:
        apart = contradicted(used, measured, settings)
    return Chosen(used, np.where(wanted, measured.error, error), poor, poor | apart)


def given_velocities(
    velocities: Mapping[str, float] | Sequence[float] | np.ndarray | None, names: Sequence[str]
) -> np.ndarray | None:
    """float[E], NaN for names without one."""
    if velocities is None:
        return None
    if isinstance(velocities, Mapping):
        values = dict(zip(velocities, velocities_in_km_s(list(velocities.values())).tolist(), strict=True))
        return np.array([values.get(name, np.nan) for name in names], float)
    found = np.atleast_1d(velocities_in_km_s(velocities))
    if found.shape != (len(names),):
        raise ConfigError(f"expected {len(names)} velocities, found shape {found.shape}")
    return found


def measure(
    arms: Mapping[str, ArmOnGrid],
    star_ids: Sequence[str],
    templates: Templates,
    settings: ObserveSettings,
    rows: np.ndarray,
) -> Velocities:
    """Velocities of some rows bool[E], NaN elsewhere; where the noise is not known with equal weights, apart."""
    if settings.join:
        arms = _with_other_arms(arms, star_ids)
    out = no_velocities(rows.size)
    arms = {arm: ArmOnGrid(*(values[rows] for values in on)) for arm, on in arms.items()}
    arms = {arm: on._replace(ivar=_known_noise(arm, arms)) for arm, on in arms.items()}
    unknown = np.all([np.isnan(on.ivar).all(axis=1) for on in arms.values()], axis=0)
    for some, known in ((~unknown, True), (unknown, False)):
        if not some.any():
            continue
        part = {
            a: (on.flux[some], on.valid[some], on.ivar[some] if known else None) for a, on in arms.items()
        }
        found = measure_velocities(part, templates, settings.cross_correlation)
        for field in dataclasses.fields(Velocities):
            getattr(out, field.name)[np.flatnonzero(rows)[some]] = getattr(found, field.name)
    return out


def sure(
    arms: Mapping[str, ArmOnGrid], star_ids: Sequence[str], templates: Templates, settings: ObserveSettings
) -> np.ndarray:
    """bool[E]: exposures that are at rest where they should be, so that no velocity need be measured to check it."""
    if settings.join:
        arms = _with_other_arms(arms, star_ids)
    light = {arm: (on.flux, on.valid) for arm, on in arms.items()}
    return surely_at_rest(light, templates, settings.cross_correlation, tolerance=settings.tolerance)


def _with_other_arms(arms: Mapping[str, ArmOnGrid], star_ids: Sequence[str]) -> dict[str, ArmOnGrid]:
    """Rows of stars whose arms lie in files of their own, each with all arms of its star: they have one velocity."""
    groups: dict[str, list[int]] = {}
    for i, star_id in enumerate(star_ids):
        if star_id:
            groups.setdefault(star_id, []).append(i)
    has = {arm: on.valid.any(axis=1) for arm, on in arms.items()}
    split = [m for m in groups.values() if len(m) > 1 and all(has[arm][m].sum() <= 1 for arm in arms)]
    if not split:
        return dict(arms)
    out = {}
    for arm, on in arms.items():
        source = np.arange(len(star_ids))
        for members in split:
            owner = [i for i in members if has[arm][i]]
            source[members] = owner[0] if owner else members[0]
        out[arm] = ArmOnGrid(*(values[source] for values in on))
    return out


def _known_noise(arm: str, arms: Mapping[str, ArmOnGrid]) -> np.ndarray:
    """Inverse variances of an arm; where this one has none but another has, one number from the signal-to-noise."""
    on = arms[arm]
    missing = np.isnan(on.ivar).all(axis=1)
    known = np.any([~np.isnan(x.ivar).all(axis=1) for x in arms.values()], axis=0)
    rows = np.flatnonzero(missing & known & np.isfinite(on.snr) & (on.snr > 0))
    if not rows.size:
        return on.ivar
    out = on.ivar.copy()
    for i in rows:
        good = on.valid[i]
        level = np.median(np.abs(on.flux[i][good])) if good.any() else 0.0
        if level > 0:
            out[i] = (on.snr[i] / level) ** 2
    return out


def contradicted(used: np.ndarray, measured: Velocities, settings: ObserveSettings) -> np.ndarray:
    """bool[S]: the measured velocity is good and differs from the one that is used by more than the tolerance."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(measured.velocity - used)
        return ~measured.poor & (difference - 2 * measured.error > settings.tolerance)


def warn_of_velocities(observed: Observed, settings: ObserveSettings) -> None:
    """Logs how many spectra are not at the velocity that was taken out of them, and by how much."""
    with np.errstate(invalid="ignore"):
        difference = observed.measured - observed.velocity
        apart = observed.doubtful & (np.abs(difference) > settings.tolerance)
    if not apart.any():
        return
    worst = int(np.flatnonzero(apart)[np.argmax(np.abs(difference[apart]))])
    logger.warning(
        "%d of %d spectra are not at the velocity that is declared: measured less declared is %+.0f km/s in the "
        "median of these, %+.0f km/s for %s (flag VELOCITY); air and vacuum wavelengths differ by 83 km/s",
        np.count_nonzero(apart),
        len(observed),
        np.median(difference[apart]),
        difference[worst],
        observed.names[worst],
    )
