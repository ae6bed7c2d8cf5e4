"""From what the arms say to the rows of a catalogue: one PMF per label, calibrated, with flags and reasons."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from remap.config import ConfigError
from remap.labels import LabelBins
from remap.pmf.calibration import Calibrates
from remap.pmf.distributions import arm_disagreement, combine_arms, count_modes, is_edge, is_near
from remap.predict.arms import ArmPrediction, mean_over_arms
from remap.predict.catalogue import Flag, build_catalogue
from remap.predict.expert import GivesOpinions
from remap.predict.formats import PmfKey
from remap.predict.identity import broken_arms
from remap.predict.references import ComparesSpectra, Look
from remap.preprocess.observed import Observed

logger = logging.getLogger(__name__)

Arms = Mapping[str, ArmPrediction]
Joint = Mapping[str, np.ndarray]  # label -> float[S, K]


@dataclasses.dataclass(frozen=True)
class Combiner:
    """How arms become one.

    Attributes:
      labels: in their order.
      limits: the config's section `predict`.
      prior: of label i with so many bins, float64[K]; None where the networks do not know it.
      expert: pools the combined PMFs with its opinion; None = there is none.
      calibration: widens them; None = they stay.
      known: references that neighbours are looked for among, and that FAR is judged by; None = there are none.
    """

    labels: Sequence[LabelBins]
    limits: Mapping[str, Any]
    prior: Callable[[int, int], np.ndarray | None]
    expert: GivesOpinions | None = None
    calibration: Calibrates | None = None
    known: ComparesSpectra | None = None


class Rows(NamedTuple):
    """What of S spectra can be used, of A arms."""

    used: np.ndarray  # bool[A, S]
    lost: np.ndarray  # bool[S], a network gives no finite PMF
    why: np.ndarray  # object[S], what is to be said of it, "" elsewhere


class Combined(NamedTuple):
    """The rows of a catalogue."""

    table: Table
    pmfs: dict[PmfKey, np.ndarray]


def combine(
    arms: Arms,
    names: Sequence[str],
    how: Combiner,
    *,
    messages: Sequence[str] | None = None,
    star_ids: Sequence[str] | None = None,
    observed: Observed | None = None,
) -> Combined:
    """The table and the PMFs of the arms' predictions.

    Args:
      arms: all of them (`complete_arms`), each of the same S spectra.
      names, messages, star_ids, observed: see `remap.predict.predictor.Predictor.combine`.
    """
    broken, why = broken_arms({arm: (a.pmf, a.used) for arm, a in arms.items()})
    used = np.stack([a.used for a in arms.values()]) & ~broken
    rows = Rows(used, broken.any(axis=0), why)
    snr = mean_over_arms(np.stack([a.snr for a in arms.values()]), used)
    edges = {b.name: b.edges for b in how.labels}
    single = single_pmfs(arms, broken, how.labels)
    joint = joint_pmfs(single, used, how)
    flags = arm_flags(arms, used, snr, how.limits)
    if how.expert is not None:
        near = {arm: a.distances for arm, a in arms.items() if a.distances is not None}
        joint = how.expert.apply(joint, edges, used, near)
    if how.calibration is not None:
        known = [how.calibration.covers(label, joint, edges, used, tuple(arms)) for label in joint]
        flags[used.any(axis=0) & ~np.all(known, axis=0)] |= Flag.UNCALIBRATED
        joint = how.calibration.apply(joint, edges, used, tuple(arms), snr)
    for b in how.labels:
        flags |= pmf_flags(b, joint[b.name], single[b.name], used, how.limits)
    if observed is not None:
        flags[observed.coarse] |= Flag.RESOLUTION
        flags[observed.doubtful] |= Flag.VELOCITY
    of_arm = {(label, arm): each[i] for label, each in single.items() for i, arm in enumerate(arms)}
    pmfs: dict[PmfKey, np.ndarray] = {**joint, **of_arm}
    rows = without_lost(rows, pmfs, how.labels)
    unusable = ~rows.used.any(axis=0)
    flags[unusable] = Flag.UNREADABLE
    flags[rows.lost] |= Flag.NOT_FINITE
    warn_of_lost(rows.lost, names)
    more = {} if observed is None else observed_columns(observed)
    if how.known is not None and all(a.look is not None for a in arms.values()):
        looks = {arm: a.look for arm, a in arms.items()}
        units = {b.name: b.unit for b in how.labels}
        about = how.known.compare(looks, rows.used, {k: pmfs[k] for k in edges}, edges, units)
        flags[about.far & ~unusable] |= Flag.FAR
        more |= about.columns
    table = build_catalogue(
        list(names),
        pmfs,
        edges,
        units={b.name: b.unit for b in how.labels},
        flags=flags,
        snr=snr,
        arms=dict(zip(arms, rows.used, strict=True)),
        messages=reasons(messages, rows, {arm: a.coverage for arm, a in arms.items()}),
        star_ids=star_ids,
        more=more,
    )
    return Combined(table, pmfs)


def complete_arms(arms: Arms, pixels: Mapping[str, int]) -> dict[str, ArmPrediction]:
    """All arms in the networks' order; one that is not given is one that no spectrum covers.

    Calibration, expert and references are those of sets of arms among all, and would take fewer for another set.

    Args:
      arms: some or all of them.
      pixels: of every arm of the networks, in their order.

    Raises:
      ConfigError: none is given, or one that the networks do not have.
    """
    if not arms or (unknown := sorted(set(arms) - set(pixels))):
        found = f"also {unknown}" if arms else "none"
        raise ConfigError(f"expected predictions of arms among {list(pixels)}, found {found}")
    first = next(iter(arms.values()))
    return {arm: arms[arm] if arm in arms else _uncovered(first, count) for arm, count in pixels.items()}


def _uncovered(like: ArmPrediction, pixels: int) -> ArmPrediction:
    """What an arm says of spectra that do not reach it.

    Args:
      like: of the same spectra, in another arm.
      pixels: of the arm.
    """
    count, no = len(like.used), np.zeros(len(like.used), bool)
    look = None
    if like.look is not None:
        shape = (count, pixels)
        nothing = np.zeros((*like.look.embedding.shape[:2], 0), np.float32)
        look = Look(nothing, np.ones(shape, np.float32), np.zeros(shape, bool))
    return ArmPrediction(
        pmf=np.full_like(like.pmf, np.nan),
        used=no,
        coverage=np.zeros(count),
        snr=np.full(count, np.nan),
        trouble=no,
        distances=None if like.distances is None else np.full_like(like.distances, np.nan),
        look=look,
    )


def single_pmfs(arms: Arms, broken: np.ndarray, labels: Sequence[LabelBins]) -> dict[str, np.ndarray]:
    """Label -> float[A, S, K], NaN where an arm says nothing finite (bool[A, S] `broken`)."""
    out = {}
    for j, b in enumerate(labels):
        each = np.stack([a.pmf[j][:, : b.bins] for a in arms.values()])
        out[b.name] = np.where(broken[..., None], np.nan, each)
    return out


def joint_pmfs(single: Mapping[str, np.ndarray], used: np.ndarray, how: Combiner) -> dict[str, np.ndarray]:
    """Label -> float[S, K], of the arms that are used bool[A, S], as `predict.combine` says."""
    return {
        b.name: combine_arms(
            np.where(used[..., None], single[b.name], np.nan),
            used,
            method=how.limits["combine"],
            prior=how.prior(j, b.bins),
        )
        for j, b in enumerate(how.labels)
    }


def arm_flags(arms: Arms, used: np.ndarray, snr: np.ndarray, limits: Mapping[str, Any]) -> np.ndarray:
    """int32[S]: what the spectra themselves give reason to note.

    Args:
      used: bool[A, S].
      snr: float[S], mean over the arms.
      limits: the config's section `predict`.
    """
    flags = np.zeros(len(snr), np.int32)
    coverage = np.stack([a.coverage for a in arms.values()])
    with np.errstate(invalid="ignore"):
        flags[snr < limits["min_snr"]] |= Flag.LOW_SNR
    flags[np.any(used & (coverage < limits["full_coverage"]), axis=0)] |= Flag.BAD_PIXELS
    gaps = [np.zeros(len(snr)) if a.gap is None else a.gap for a in arms.values()]
    flags[np.any(used & (np.stack(gaps) > 1), axis=0)] |= Flag.BAD_PIXELS
    flags[np.any(used & np.stack([a.trouble for a in arms.values()]), axis=0)] |= Flag.CONTINUUM
    flags[~used.all(axis=0)] |= Flag.MISSING_ARM
    return flags


def pmf_flags(
    label: LabelBins, joint: np.ndarray, single: np.ndarray, used: np.ndarray, limits: Mapping[str, Any]
) -> np.ndarray:
    """int32[S]: what the PMFs of one label give reason to note.

    Args:
      joint: float[S, K], combined.
      single: float[A, S, K], of the arms.
      used: bool[A, S].
      limits: the config's section `predict`.
    """
    edges, flags = label.edges, np.zeros(len(joint), np.int32)
    flags[is_edge(joint, bins=2, mass=limits["edge_mass"])] |= Flag.EDGE
    if label.name in (known := limits.get("range", {})):  # which older configs do not have
        flags[is_near(joint, edges, known[label.name], widths=limits["range_widths"])] |= Flag.EDGE
    flags[count_modes(joint, prominence=limits["mode_prominence"]) > 1] |= Flag.MULTIMODAL
    with np.errstate(invalid="ignore"):
        apart = arm_disagreement(single, edges, used) > limits["disagreement"]
    flags[apart] |= Flag.ARMS_DISAGREE
    return flags


def without_lost(rows: Rows, pmfs: Mapping[PmfKey, np.ndarray], labels: Sequence[LabelBins]) -> Rows:
    """Rows whose combined PMFs are not finite, though an arm's are, are lost; all their PMFs become NaN in place."""
    finite = np.all([np.isfinite(pmfs[b.name]).all(axis=1) for b in labels], axis=0)
    gone = rows.used.any(axis=0) & ~finite
    if not gone.any():
        return rows
    for each in pmfs.values():
        each[gone] = np.nan
    why = rows.why.copy()
    why[gone] = "the combined PMF is not finite"
    return Rows(rows.used & ~gone, rows.lost | gone, why)


def reasons(messages: Sequence[str] | None, rows: Rows, coverage: Mapping[str, np.ndarray]) -> list[str]:
    """Why each row, or arms of it, cannot be used: what is known of the spectrum comes first.

    Args:
      coverage: arm -> float[S], its valid fraction.
    """
    out = np.array([""] * len(rows.lost) if messages is None else list(messages), dtype=object)
    own = rows.lost & (out == "")
    out[own] = rows.why[own]
    for row in np.flatnonzero(~rows.used.any(axis=0) & (out == "")):
        shares = ", ".join(f"{share[row]:.0%} of arm {arm}" for arm, share in coverage.items())
        out[row] = f"no arm has enough valid pixels: {shares}"
    return list(out)


def warn_of_lost(lost: np.ndarray, names: Sequence[str]) -> None:
    """Logs how many spectra bool[S] networks give no finite PMF of, and the first of their names."""
    if lost.any():
        some = ", ".join(names[i] for i in np.flatnonzero(lost)[:3])
        logger.warning("%d spectra of which networks give no finite PMF are flagged: %s", lost.sum(), some)


def observed_columns(observed: Observed) -> dict[str, tuple[np.ndarray, str, str]]:
    """Columns of the catalogue: name -> values, unit, description. Positions only where there are some."""
    columns = {
        "rv": (observed.velocity, "km/s", "radial velocity that was taken out; 0 = taken to be at rest"),
        "rv_err": (observed.velocity_error, "km/s", "its standard deviation, NaN = not known"),
    }
    for name, values in (("ra", observed.ra), ("dec", observed.dec)):
        if np.isfinite(values).any():
            columns[name] = (values, "deg", "position as the file says")
    if np.any(observed.inputs > 1):
        columns["exposures"] = (observed.inputs.astype(np.int32), "", "spectra that the row is made of")
    return columns
