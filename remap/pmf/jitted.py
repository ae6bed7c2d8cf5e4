"""The last steps of a prediction in JAX: combination of the arms and calibration, float32, to be jitted and exported.

They say what `distributions.combine_arms` and `calibration.Calibration` say, whose float64 they agree with to 1e-6 of
a PMF; the catalogue is made by those. Everything here may be traced with a number of stars that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap.pmf.calibration import Calibration, Widening
from remap.pmf.distributions import COMBINATIONS, PMF_FLOOR

Joint = Mapping[str, Float[Array, "stars _"]]  # by label


class Calibrated(NamedTuple):
    """Calibrated PMFs, and which stars' widths were fitted to stars of their kind."""

    pmf: dict[str, Float[Array, "stars _"]]  # by label
    covered: Bool[Array, " stars"]  # for all labels


def combine(
    pmfs: Float[Array, "arms stars bins"],
    present: Bool[Array, "arms stars"],
    *,
    method: str,
    prior: np.ndarray | None = None,
) -> Float[Array, "stars bins"]:
    """As `distributions.combine_arms`: the arms' PMFs as one, NaN for stars without an arm.

    Args:
      pmfs: rows of absent arms may hold anything.
      present: True = the arm was observed.
      method: one of `distributions.COMBINATIONS`.
      prior: float[K] for "prior_corrected".

    Raises:
      ValueError: another method, or "prior_corrected" without a prior.
    """
    if method not in COMBINATIONS:
        raise ValueError(f"the combination of the arms must be one of {COMBINATIONS}, found {method!r}")
    if method == "prior_corrected" and prior is None:
        raise ValueError("the combination 'prior_corrected' needs the prior of the training, found none")
    here = present[..., None]
    pmfs = jnp.where(here, _unit(pmfs), 0.0)
    count = jnp.sum(present, axis=0)[:, None]
    alone = jnp.sum(pmfs, axis=0)
    if method == "mean":
        return jnp.where(count > 0, alone / jnp.maximum(count, 1), jnp.nan)
    logs = jnp.sum(jnp.where(here, jnp.log(jnp.maximum(pmfs, PMF_FLOOR)), 0.0), axis=0)
    if method == "prior_corrected":
        prior = np.asarray(prior, np.float64)
        known = np.log(np.maximum(prior / prior.sum(), PMF_FLOOR)).astype(np.float32)
        logs -= jnp.maximum(count - 1, 0) * known[None]
    return jnp.where(count > 1, jax.nn.softmax(logs), jnp.where(count == 1, alone, jnp.nan))


def calibrate(
    calibration: Calibration,
    joint: Joint,
    edges: Mapping[str, np.ndarray],
    used: Mapping[str, Bool[Array, " stars"]],
    snr: Float[Array, " stars"],
) -> Calibrated:
    """As `Calibration.apply` and `Calibration.covers`: the combined PMFs as they should be.

    Args:
      joint: label -> float[S, K], combined.
      edges: label -> float[K + 1].
      used: arm -> bool[S].
      snr: per pixel, NaN = not known.
    """
    member = _membership(joint, edges, calibration.groups)
    covered = jnp.ones_like(snr, dtype=bool)
    out = {}
    for label, pmf in joint.items():
        finite = jnp.all(jnp.isfinite(pmf), axis=1)
        found, known = pmf, jnp.zeros_like(covered)
        for key, widening in calibration.widenings.get(label, {}).items():
            rows = finite & _with_arms(key, used)
            groups = calibration.by_group.get(label, {}).get(key, {})
            log_power = np.float32(np.log(widening.power)) + _snr_offset(widening, snr)
            unknown = jnp.zeros_like(snr)
            for group, own in groups.items():
                log_power += member[group] * np.float32(np.log(own.power / widening.power))
                unknown += 0.0 if own.fitted else member[group]
            moved = _widened(widening, pmf, edges[label], jnp.exp(log_power))
            found = jnp.where(rows[:, None], moved, found)
            known |= rows & (unknown < 0.5) & widening.fitted
        out[label] = found
        covered &= known
    return Calibrated(out, covered)


def rescale(
    pmf: Float[Array, "stars bins"], edges: np.ndarray, power: Float[Array, " stars"]
) -> Float[Array, "stars bins"]:
    """As `calibration.rescale`: widths times 1 / √power about the medians, which stay.

    Args:
      edges: float[K + 1], strictly increasing.
      power: above 0.
    """
    # In widths of a bin from the first edge, where float32 loses nothing: 6000 K in it are good to 5e-4 K.
    edges = np.asarray(edges, np.float64)
    edges = (edges - edges[0]) / np.mean(np.diff(edges))
    width = np.diff(edges).astype(np.float32)
    at = edges.astype(np.float32)
    known = jnp.all(jnp.isfinite(pmf), axis=1, keepdims=True)
    cdf = _cumulative(jnp.where(known, pmf, np.float32(1 / width.size)))
    start, end = cdf[:, :-1], cdf[:, 1:]
    half = jnp.argmax((end >= 0.5) & (end > start), axis=1)
    low, high = (jnp.take_along_axis(side, half[:, None], axis=1) for side in (start, end))
    middle = jnp.asarray(at)[half][:, None] + jnp.asarray(width)[half][:, None] * ((0.5 - low) / (high - low))
    place = middle + (at[None] - middle) * jnp.sqrt(power)[:, None]
    left = jnp.sum(place[:, :, None] >= at[None, None, 1:-1], axis=2)
    share = jnp.clip((place - jnp.asarray(at)[left]) / jnp.asarray(width)[left], 0.0, 1.0)
    below, above = (jnp.take_along_axis(cdf, left + i, axis=1) for i in (0, 1))
    moved = below * (1 - share) + above * share
    moved = moved.at[:, 0].set(0.0).at[:, -1].set(1.0)
    return jnp.where(known, jnp.diff(moved, axis=1), jnp.nan)


def temper(pmf: Float[Array, "stars bins"], power: Float[Array, " stars"]) -> Float[Array, "stars bins"]:
    """As `distributions.temper`: p_i^w / Σ_j p_j^w for powers w > 0."""
    logs = power[:, None] * jnp.log(jnp.maximum(_unit(pmf), jnp.finfo(jnp.float32).tiny))
    return jax.nn.softmax(logs)


def _widened(widening: Widening, pmf: Array, edges: np.ndarray, power: Array) -> Array:
    share = widening.outliers
    if widening.scaled:
        middle = rescale(pmf, edges, power)
        if share == 0:
            return middle
        return (1 - share) * middle + share * rescale(pmf, edges, power / widening.breadth)
    return (1 - share) * temper(pmf, power) + share * temper(pmf, power / widening.breadth)


def _membership(
    joint: Joint, edges: Mapping[str, np.ndarray], groups: Mapping[str, Mapping[str, tuple[float, float]]]
) -> dict[str, Array]:
    """As `calibration.membership`."""
    out: dict[str, Array] = {}
    for name, limits in groups.items():
        found: Array | float = 1.0
        for label, (low, high) in limits.items():
            start, width = np.asarray(edges[label], np.float64)[:-1], np.diff(edges[label])
            inside = np.clip((high - start) / width, 0, 1) - np.clip((low - start) / width, 0, 1)
            given = jnp.sum(_unit(joint[label]) * inside.astype(np.float32)[None], axis=1)
            found = found * jnp.where(jnp.isfinite(given), given, 0.0)
        out[name] = found
    total = jnp.maximum(sum(out.values(), jnp.zeros(())), 1.0)
    return {name: found / total for name, found in out.items()}


def _snr_offset(widening: Widening, snr: Array) -> Array:
    low, high = widening.snr_low, widening.snr_high
    middle = np.float32(0.5 * np.log10(low * high))
    found = widening.snr_slope * (jnp.log10(jnp.clip(snr, low, high)) - middle)
    return jnp.where(jnp.isfinite(snr), found, 0.0)


def _with_arms(key: str, used: Mapping[str, Array]) -> Array:
    """bool[S]: stars that have the arms of the set and no others."""
    names = key.split("+")
    same = [have if arm in names else ~have for arm, have in used.items()]
    return jnp.all(jnp.stack(same), axis=0)


def _cumulative(pmf: Array) -> Array:
    """F at the edges, float[S, K + 1]: exactly 0 first and exactly 1 last."""
    cdf = jnp.pad(jnp.cumsum(pmf, axis=1), ((0, 0), (1, 0)))
    return cdf / cdf[:, -1:]


def _unit(pmf: Array) -> Array:
    return pmf / jnp.sum(pmf, axis=-1, keepdims=True)
