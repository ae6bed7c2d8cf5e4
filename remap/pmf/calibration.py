"""Honest widths: PMFs widened by what validation stars show (the stage that fits it is `remap.stages.calibrate`).

Conflation (eq. 6) takes the arms for independent. They are not: label errors, abundances and the library's faults
move them together, so that the product of their PMFs is too narrow; and a few stars are wrong by far more than any
PMF says. `widen` has a number for each, fitted on stars that the networks did not train on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.optimize import minimize

from remap.pmf.distributions import temper
from remap.pmf.metrics import nll, pit

KINDS = ("outliers", "coverage", "temperature", "none")


@dataclasses.dataclass(frozen=True)
class CalibrationSettings:
    """How `fit` widens (config section `calibrate`).

    Attributes:
      kind: "outliers" (power and share of outliers, by likelihood), "coverage" (both, such that intervals of
        every level hold their share of the stars), "temperature" (power alone, by likelihood, §4.5) or "none".
      breadth: width of an outlier's PMF over that of the others, in units of a Gaussian's σ².
      power_sigma: width of the prior on ln power, centred on 0: with few stars nothing is widened much.
      outliers: centre of the prior on the share of outliers.
      outliers_sigma: its width, on the logistic scale.
      min_stars: with fewer validation stars the PMFs stay as they are.
    """

    kind: str
    breadth: float
    power_sigma: float
    outliers: float
    outliers_sigma: float
    min_stars: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"calibrate.kind must be one of {KINDS}, found {self.kind!r}")
        if self.breadth < 1 or not 0 < self.outliers < 1 or self.min_stars < 2:
            raise ValueError(
                "calibrate: expected breadth >= 1, 0 < outliers < 1 and min_stars >= 2, found "
                f"{self.breadth}, {self.outliers} and {self.min_stars}"
            )
        if self.power_sigma <= 0 or self.outliers_sigma <= 0:
            raise ValueError(
                f"calibrate: priors need positive widths, found {self.power_sigma} and {self.outliers_sigma}"
            )


@dataclasses.dataclass(frozen=True)
class Widening:
    """What `fit` finds for one label and one set of arms; power 1 and no outliers change nothing."""

    power: float
    outliers: float
    breadth: float
    stars: int  # that it rests on

    def __call__(self, pmf: np.ndarray) -> np.ndarray:
        return widen(pmf, power=self.power, outliers=self.outliers, breadth=self.breadth)


@runtime_checkable
class Calibrates(Protocol):
    """What `Predictor` asks of a calibration."""

    def apply(self, label: str, pmf: np.ndarray, used: np.ndarray, arms: Sequence[str]) -> np.ndarray:
        """PMFs float[S, K] of a label, combined from the arms that are True in `used` bool[A, S]."""
        ...


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One `Widening` per label and set of arms, the set written as names joined by +."""

    widenings: Mapping[str, Mapping[str, Widening]]

    def apply(self, label: str, pmf: np.ndarray, used: np.ndarray, arms: Sequence[str]) -> np.ndarray:
        """See `Calibrates`; stars of a set of arms without a widening, and rows of NaN, stay as they are."""
        out = np.array(pmf, np.float64)
        for key, widening in self.widenings.get(label, {}).items():
            member = np.array([arm in key.split("+") for arm in arms])
            rows = np.all(used == member[:, None], axis=0) & np.isfinite(out).all(axis=1)
            if rows.any():
                out[rows] = widening(out[rows])
        return out

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which `from_json` reads."""
        return {
            label: {key: dataclasses.asdict(w) for key, w in found.items()}
            for label, found in self.widenings.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote."""
        return cls(
            {label: {key: Widening(**w) for key, w in found.items()} for label, found in value.items()}
        )


@dataclasses.dataclass(frozen=True)
class FoldCalibration:
    """Stars of fold k by `folds[k]`, all others by `default`: for reports on stars that took no part in it."""

    folds: Mapping[int, Calibration]
    fold_of_star: np.ndarray  # int[S], -1 = none
    default: Calibration

    def apply(self, label: str, pmf: np.ndarray, used: np.ndarray, arms: Sequence[str]) -> np.ndarray:
        """See `Calibrates`."""
        out = self.default.apply(label, pmf, used, arms)
        for fold, calibration in self.folds.items():
            rows = self.fold_of_star == fold
            out[rows] = calibration.apply(label, pmf[rows], used[:, rows], arms)
        return out


def widen(pmf: np.ndarray, *, power: float, outliers: float, breadth: float) -> np.ndarray:
    """(1 - o)·p^w + o·p^(w / b), each normalised: a share o of the stars is √b times wider than the others.

    Args:
      pmf: float[..., K].
      power: w > 0; 1 / w is a temperature (paper §4.5; Guo et al. 2017, arXiv:1706.04599).
      outliers: o in [0, 1].
      breadth: b >= 1.

    Returns:
      float64[..., K], normalised; NaN rows stay NaN.
    """
    return (1 - outliers) * temper(pmf, power) + outliers * temper(pmf, power / breadth)


def anderson_darling(values: np.ndarray) -> float:
    """Squared distance of a sample in [0, 1] from uniform, with weight on both ends; about 1 if it is uniform.

    The ordered values u_k against their places (k - ½) / n, in units of the binomial variance there: the sum
    that Anderson & Darling (1952) write as an integral, kept finite for values of exactly 0 and 1.
    """
    ordered = np.sort(np.asarray(values, float))
    place = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return float(np.sum((ordered - place) ** 2 / (place * (1 - place) + 0.5 / len(ordered))))


def fit_widening(
    pmf: np.ndarray, edges: np.ndarray, truth: np.ndarray, settings: CalibrationSettings
) -> Widening:
    """The power and the share of outliers that maximise the posterior of the true labels.

    With `kind` "coverage" minus the log likelihood gives way to the Anderson-Darling distance of the central
    intervals that just reach the truth from uniform: the likelihood widens all stars for the sake of a few.

    Args:
      pmf: float[S, K] of stars that the networks did not train on.
      edges: float[K + 1].
      truth: float[S], NaN = unknown.
      settings: prior and kind of the widening.
    """
    keep = np.isfinite(truth) & np.isfinite(pmf).all(axis=1) & (truth >= edges[0]) & (truth <= edges[-1])
    pmf, truth = pmf[keep], truth[keep]
    unchanged = Widening(1.0, 0.0, settings.breadth, int(keep.sum()))
    if settings.kind == "none" or len(truth) < settings.min_stars:
        return unchanged
    centre = np.log(settings.outliers / (1 - settings.outliers))

    def unpack(x: np.ndarray) -> tuple[float, float]:
        share = 0.0 if settings.kind == "temperature" else 1 / (1 + np.exp(-x[1]))
        return float(np.exp(x[0])), float(share)

    def objective(x: np.ndarray) -> float:
        power, share = unpack(x)
        wide = widen(pmf, power=power, outliers=share, breadth=settings.breadth)
        prior = (x[0] / settings.power_sigma) ** 2 + ((x[1] - centre) / settings.outliers_sigma) ** 2
        if settings.kind == "coverage":
            return anderson_darling(np.abs(2 * pit(wide, edges, truth) - 1)) + 0.5 * float(prior)
        return float(np.sum(nll(wide, edges, truth)) + 0.5 * prior)

    found = minimize(objective, np.array([0.0, centre]), method="Nelder-Mead")
    return dataclasses.replace(unchanged, **dict(zip(("power", "outliers"), unpack(found.x), strict=True)))


def fit(
    pmfs: Mapping[str, np.ndarray],
    edges: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    used: np.ndarray,
    arms: Sequence[str],
    settings: CalibrationSettings,
    combine: Callable[[str, np.ndarray], np.ndarray],
) -> Calibration:
    """A widening for every label and every set of arms, each from the stars that have all arms of the set.

    Args:
      pmfs: per label float[A, S, K], the arms' PMFs.
      edges: per label float[K + 1].
      truth: per label float[S], NaN = unknown.
      used: bool[A, S], True = the arm was observed.
      arms: A names.
      settings: how to widen.
      combine: (label, float[A', S', K]) -> float[S', K], how arms that are all present become one PMF.
    """
    found: dict[str, dict[str, Widening]] = {label: {} for label in pmfs}
    for size in range(1, len(arms) + 1):
        for chosen in itertools.combinations(range(len(arms)), size):
            rows = used[list(chosen)].all(axis=0)
            key = "+".join(arms[i] for i in chosen)
            for label, values in pmfs.items():
                part = values[list(chosen)][:, rows]
                found[label][key] = fit_widening(
                    combine(label, part), edges[label], truth[label][rows], settings
                )
    return Calibration(found)
