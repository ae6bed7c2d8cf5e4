"""Rows of one star as one: who belongs together, and what becomes of fluxes, velocities and names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from remap.preprocess.description import Preprocessing
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import ArmOnGrid, Observed, empty_arm, put
from remap.preprocess.stacking import StackSettings, stack
from remap.spectra import make_spectra

logger = logging.getLogger(__name__)


def star_groups(observed: Observed, *, settings: ObserveSettings | None = None) -> list[list[int]]:
    """Rows that are one star each, in the order of their first rows.

    A row goes by its `star_id`; one without stays as it is. Rows with one identifier whose positions lie farther
    apart than `settings.radius` are not one star: they stay rows of their own, with a warning.
    """
    settings = settings or ObserveSettings()
    groups: dict[object, list[int]] = {}
    for i, star_id in enumerate(observed.star_ids):
        groups.setdefault(star_id or i, []).append(i)
    final: list[list[int]] = []
    for key, members in groups.items():
        if len(members) > 1 and _spread(observed.ra[members], observed.dec[members]) > settings.radius:
            logger.warning(
                "%s: %d spectra have this identifier and lie more than %g arcsec apart; they stay rows of their own",
                key,
                len(members),
                settings.radius,
            )
            final += [[i] for i in members]
            continue
        final.append(members)
    return sorted(final, key=lambda members: members[0])


def join(
    observed: Observed, preprocessing: Preprocessing, *, settings: ObserveSettings | None = None
) -> Observed:
    """Rows of one star as one row: exposures averaged, arms of different files put side by side.

    Args:
      settings: None = `ObserveSettings()`; see `star_groups` for who belongs together.

    Returns:
      One row per star; names, joined by "+", tell what each is made of (the first three). A spectrum that is there
      more than once counts once.
    """
    settings = settings or ObserveSettings()
    groups = star_groups(observed, settings=settings)
    if all(len(members) == 1 for members in groups):
        return observed
    used = [_once(_best(members, observed), observed) for members in groups]
    first = np.array([members[0] for members in used])
    arms = {
        arm: _join_arm(on, used, preprocessing, arm, settings.stacking) for arm, on in observed.arms.items()
    }
    return Observed(
        names=tuple(_joint_name([observed.names[i] for i in members]) for members in groups),
        star_ids=tuple(observed.star_ids[i] for i in first),
        arms=arms,
        velocity=np.array([_mean(observed.velocity[m], observed.velocity_error[m]) for m in used]),
        velocity_error=np.array([_joint_error(observed.velocity_error[m]) for m in used]),
        measured=np.array([_mean(observed.measured[m], observed.velocity_error[m]) for m in used]),
        poor=np.array([observed.poor[m].all() for m in used]),
        doubtful=np.array([observed.doubtful[m].any() for m in used]),
        coarse=np.array([observed.coarse[m].any() for m in used]),
        ra=observed.ra[first],
        dec=observed.dec[first],
        inputs=np.array([int(observed.inputs[m].sum()) for m in used]),
        messages=tuple(observed.messages[i] for i in first),
    )


def _best(members: Sequence[int], observed: Observed) -> list[int]:
    """The rows of a star that are used: without those that cannot be, and of poor velocity, if there are others."""
    for bad in (np.array([bool(m) for m in observed.messages]), observed.poor):
        members = [i for i in members if not bad[i]] or list(members)
    return list(members)


def _once(members: list[int], observed: Observed) -> list[int]:
    """The rows of a star without those that are another one to the bit: a copy of a file tells nothing new."""
    if len(members) < 2:
        return members
    found: dict[object, int] = {}
    for i in members:
        seen = [on for on in observed.arms.values() if on.valid[i].any()]
        pixels = ((id(on), on.flux[i].tobytes(), on.valid[i].tobytes()) for on in seen)
        first = found.setdefault(tuple(pixels) or i, i)  # where nothing is seen nothing is the same
        if first != i:
            told = observed.names[first], observed.names[i], observed.star_ids[i]
            logger.warning("%s and %s, of the star %s, are the same spectrum: it counts once", *told)
    return list(found.values())


def _joint_name(names: Sequence[str]) -> str:
    several = list(dict.fromkeys(names))
    more = f"+{len(several) - 3} more" if len(several) > 3 else ""
    return "+".join(several[:3]) + more


def _join_arm(
    arm: ArmOnGrid,
    groups: Sequence[Sequence[int]],
    preprocessing: Preprocessing,
    name: str,
    settings: StackSettings,
) -> ArmOnGrid:
    out = empty_arm(len(groups), arm.flux.shape[1])
    wave = preprocessing.wave(name)
    for row, members in enumerate(groups):
        some = [i for i in members if arm.valid[i].any()]
        if not some:
            continue
        if len(some) == 1:
            for target, values in zip(out, arm, strict=True):
                target[row] = values[some[0]]
            continue
        scale = arm.scale[some][:, None]
        ivar = None
        if not np.isnan(arm.ivar[some]).all(axis=1).any():
            ivar = arm.ivar[some].astype(np.float64) / scale**2
        parts = make_spectra(
            wave,
            arm.flux[some].astype(np.float64) * scale,
            medium=preprocessing.medium,
            valid=arm.valid[some],
            ivar=ivar,
        )
        put(out, row, stack(parts, settings=settings))
    return out


def _spread(ra: np.ndarray, dec: np.ndarray) -> float:
    """arcsec: the largest distance from the first position that is known; 0 without two of them."""
    known = np.isfinite(ra) & np.isfinite(dec)
    if np.count_nonzero(known) < 2:
        return 0.0
    ra, dec = np.radians(ra[known]), np.radians(dec[known])
    half = np.sin((dec - dec[0]) / 2) ** 2 + np.cos(dec) * np.cos(dec[0]) * np.sin((ra - ra[0]) / 2) ** 2
    return float(np.degrees(2 * np.arcsin(np.sqrt(half.max()))) * 3600)


def _mean(velocity: np.ndarray, error: np.ndarray) -> float:
    known = np.isfinite(velocity)
    if not known.any():
        return float("nan")
    weight = np.ones_like(velocity)
    if np.all(np.isfinite(error[known]) & (error[known] > 0)):
        weight[known] = 1 / error[known] ** 2
    return float(np.average(velocity[known], weights=weight[known]))


def _joint_error(error: np.ndarray) -> float:
    known = np.isfinite(error) & (error > 0)
    return float(1 / np.sqrt(np.sum(1 / error**2))) if known.all() else float("nan")
