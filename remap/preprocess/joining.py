"""Rows of one star as one: who belongs together, and what becomes of fluxes, velocities and names."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from remap.preprocess.description import Preprocessing
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.observed import ArmOnGrid, Observed, empty_arm, put
from remap.preprocess.same_star import connected, diameter, near_pairs, same_names, separation
from remap.preprocess.stacking import StackSettings, stack
from remap.spectra import make_spectra

logger = logging.getLogger(__name__)


def star_groups(observed: Observed, *, settings: ObserveSettings | None = None) -> list[list[int]]:
    """Rows that are one star each, in the order of their first rows.

    A row goes by its `star_id`; one without stays as it is. Rows with one identifier whose positions lie farther
    apart than `settings.radius` are not one star: they stay rows of their own, with a warning. Rows whose identifier
    changes between visits (`Observed.star_within`) are one star where their positions agree to that, too. Where it
    is not plain who is (a row in the middle between two others that are too far apart for one star, or that two stars
    with names lie near), identifiers alone decide, with a warning.
    """
    settings = settings or ObserveSettings()
    final: list[list[int]] = []
    for members in _told(observed, settings):
        key = observed.star_ids[members[0]]
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


def _told(observed: Observed, settings: ObserveSettings) -> list[list[int]]:
    """Rows that are one star by identifier or, where that changes between visits, by position."""
    ids, within = observed.star_ids, np.minimum(observed.star_within, settings.radius)
    pairs = near_pairs(observed.ra, observed.dec, within)
    by_name = connected(len(ids), same_names(ids))
    if not len(pairs):
        return by_name
    out, loose = [], set()
    for members in connected(len(ids), [*same_names(ids), *pairs.tolist()]):
        different = {ids[i] for i in members}
        if len(members) == 1 or (len(different) == 1 and ids[members[0]]):
            continue
        apart = diameter(observed.ra[members], observed.dec[members])
        names = {ids[i] for i in members if ids[i] and not within[i] > 0}
        if apart > np.nanmax(within[members]) or len(names) > 1:
            logger.warning(
                "%d spectra of %d identifiers, such as %s, lie near one another, up to %.2g arcsec apart, and could "
                "be of one star or of several; those of one identifier are taken for one",
                *(len(members), len(different), ids[members[0]], apart),
            )
            continue
        out.append(members)
        loose.update(members)
    return [*out, *(members for members in by_name if members[0] not in loose)]


def join(
    observed: Observed, preprocessing: Preprocessing, *, settings: ObserveSettings | None = None
) -> Observed:
    """Rows of one star as one row: exposures averaged, arms of different files put side by side.

    A spectrum that is there twice (a file and its archive, a release within another) counts once, with a warning: the
    mean of the two would claim half the variance.

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
        star_within=observed.star_within[first],
        inputs=np.array([int(observed.inputs[m].sum()) for m in used]),
        messages=tuple(observed.messages[i] for i in first),
    )


def _best(members: Sequence[int], observed: Observed) -> list[int]:
    """The rows of a star that are used: without those that cannot be, and of poor velocity, if there are others."""
    for bad in (np.array([bool(m) for m in observed.messages]), observed.poor):
        members = [i for i in members if not bad[i]] or list(members)
    return list(members)


def _once(members: list[int], observed: Observed) -> list[int]:
    """The rows of a star without those that have the pixels of an earlier one: a copy of a file tells nothing new."""
    if len(members) < 2:
        return members
    kept: dict[object, int] = {}
    for i in members:
        rows = [(on.flux[i], on.valid[i]) for on in observed.arms.values()]
        pixels = tuple((flux[good].tobytes(), good.tobytes()) for flux, good in rows)
        first = kept.setdefault(pixels if any(good.any() for _, good in rows) else i, i)
        if first != i:
            logger.warning(
                "%s: has the pixels of %s, of the same star: the spectrum counts once",
                *(observed.names[i], observed.names[first]),
            )
    return list(kept.values())


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
    rows = np.flatnonzero(known)
    return float(separation(ra, dec, rows, rows[:1]).max())


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
