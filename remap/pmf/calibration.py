"""Honest widths: PMFs made wider or narrower by what validation stars show (the fit: `remap.pmf.calibration_fit`).

Conflation (eq. 6) takes the arms for independent. They are not: label errors, abundances and the library's faults
move them together, so that the product of their PMFs is too narrow. Networks that were trained on labels with
errors, on the other hand, give the distribution of a label, which is wider than that of the star. A change of width
about the median mends both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from remap.pmf.distributions import checked, cumulative, pmf_quantile, temper

KINDS = ("deconvolved", "outliers", "coverage", "temperature", "none")
PMFs = Mapping[str, np.ndarray]  # label -> float[S, K]
Limits = Mapping[str, Mapping[str, tuple[float, float]]]  # group -> label -> low, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How `calibration_fit.fit` finds the widths (config section `calibrate`).

    Attributes:
      kind: "deconvolved" (a width about the median, by the likelihood of the observed label under PMF ⊗ label
        error, so that the PMF is that of the star's own value; labels that are wrong by far more than their
        errors are a share of the labels and not of the PMF). The others are fitted to labels as if those were
        exact: "outliers" (power, and a share of outliers that is put into the PMF, by likelihood), "coverage"
        (both, such that intervals of every level hold their share of the stars), "temperature" (power alone, by
        likelihood, §4.5). Or "none".
      breadth: width of an outlier's PMF over that of the others, in units of a Gaussian's σ².
      tails: centre of the prior on the share of stars that are outliers themselves ("deconvolved"): networks are far
        off for a few, whose tails would else widen the middle of all. Its width is `outliers_sigma`. 0 = none.
      label_breadth: centre of the prior on how much wrong labels are wrong, in units of the σ² of the errors that are
        quoted ("deconvolved"); 4 to 400.
      label_breadth_sigma: its width, of the logarithm.
      power_sigma: width of the prior on ln power, centred on 0: with few stars nothing is changed much.
      outliers: centre of the prior on the share of outliers.
      outliers_sigma: its width, on the logistic scale.
      min_stars: with fewer validation stars the PMFs stay as they are; with fewer of a group, its stars keep the
        calibration of all.
      groups: kinds of stars with a power of their own ("deconvolved" alone): name -> limits of labels. At prediction
        the labels are not known, so a star belongs to a group with the probability that its PMFs give to the
        limits, and its ln power is the mean over the groups (that of all stars has the rest).
      group_sigma: width of the prior on ln power of a group, centred on that of all stars.
      snr_sigma: width of the prior on the slope of ln power with log10 S/N, centred on 0 ("deconvolved" alone). 0
        = no slope, and there is none where the validation stars have no range of S/N
        (`calibration_fit.SNR_RANGE`).
    """

    kind: str = "deconvolved"
    breadth: float = 9.0
    label_breadth: float = 25.0
    label_breadth_sigma: float = 1.0
    power_sigma: float = 1.0
    outliers: float = 0.05
    outliers_sigma: float = 1.5
    tails: float = 0.05
    min_stars: int = 10
    groups: Limits = dataclasses.field(
        default_factory=lambda: {"dwarfs": {"logg": (3.5, 5.5)}, "giants": {"logg": (1.0, 3.5)}}
    )
    group_sigma: float = 1.0
    snr_sigma: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"calibrate.kind must be one of {KINDS}, found {self.kind!r}")
        if self.breadth < 1 or not 0 < self.outliers < 1 or self.min_stars < 2:
            raise ValueError(
                "calibrate: expected breadth >= 1, 0 < outliers < 1 and min_stars >= 2, found "
                f"{self.breadth}, {self.outliers} and {self.min_stars}"
            )
        if not 0 <= self.tails < 1:
            raise ValueError(f"calibrate.tails: expected a share in [0, 1), found {self.tails}")
        if not 4 <= self.label_breadth <= 400:
            raise ValueError(f"calibrate.label_breadth must lie within 4 to 400, found {self.label_breadth}")
        widths = (self.power_sigma, self.outliers_sigma, self.label_breadth_sigma, self.group_sigma)
        if min(widths) <= 0 or self.snr_sigma < 0:
            raise ValueError(
                f"calibrate: priors need positive widths (snr_sigma may be 0), found {widths} and {self.snr_sigma}"
            )
        plain = {
            name: {label: (float(low), float(high)) for label, (low, high) in limits.items()}
            for name, limits in self.groups.items()
        }
        for name, limits in plain.items():
            if not limits or not all(low < high for low, high in limits.values()):
                raise ValueError(
                    f"calibrate.groups: {name} needs limits of labels, each low < high, found {limits}"
                )
        object.__setattr__(self, "groups", plain)


@dataclasses.dataclass(frozen=True)
class Widening:
    """What a fit finds for one label, one set of arms and one kind of stars; power 1 and no outliers change nothing.

    Attributes:
      power: inverse factor on σ² at the middle of `snr_low` and `snr_high`; below 1 it widens, above 1 it narrows.
      outliers: share of the stars whose PMF is that much broader.
      breadth: how much broader, in units of σ².
      stars: validation stars of the kind.
      label_outliers: share of wrong labels among those that it was fitted to. Of no consequence for a PMF.
      fitted: False where there were too few stars for a fit of their own.
      snr_slope: of ln power with log10 S/N, from `snr_low` to `snr_high`; beyond them as at the nearer one.
      snr_low, snr_high: S/N per pixel.
      scaled: the width changes by 1 / √power about a median that stays (`rescale`); False: `power` is one of the PMF.
    """

    power: float
    outliers: float
    breadth: float
    stars: int
    label_outliers: float = 0.0
    fitted: bool = True
    snr_slope: float = 0.0
    snr_low: float = 1.0
    snr_high: float = 1.0
    scaled: bool = False

    def __call__(self, pmf: np.ndarray, edges: np.ndarray, snr: np.ndarray | None = None) -> np.ndarray:
        """PMFs float[S, K] as they should be, of spectra with S/N float[S] (NaN or None = not known)."""
        power = np.full(len(pmf), self.power)
        return self.widened(pmf, edges, power if snr is None else power * np.exp(self.snr_offset(snr)))

    def widened(self, pmf: np.ndarray, edges: np.ndarray, power: np.ndarray) -> np.ndarray:
        """PMFs float[S, K] as they should be, for stars of a power float[S]."""
        if not self.scaled:
            return widen(pmf, power=power, outliers=self.outliers, breadth=self.breadth)
        return with_tails(pmf, edges, power, share=self.outliers, breadth=self.breadth)

    def snr_offset(self, snr: np.ndarray) -> np.ndarray:
        """float64[S]: what S/N adds to ln power; 0 where it is not known."""
        return self.snr_slope * log_snr(snr, self.snr_low, self.snr_high)


def log_snr(snr: np.ndarray, low: float, high: float) -> np.ndarray:
    """float64[S]: log10 of S/N over the middle (of the logarithms) of two limits, within these; 0 where unknown."""
    snr = np.asarray(snr, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(snr), np.log10(np.clip(snr, low, high) / np.sqrt(low * high)), 0.0)


@runtime_checkable
class Calibrates(Protocol):
    """What `Predictor` asks of a calibration."""

    def apply(
        self, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str], snr: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The PMFs of all labels as they should be, combined from the arms that are True in `used`.

        Args:
          pmfs: label -> float[S, K].
          edges: label -> float[K + 1].
          used: bool[A, S].
          arms: A names.
          snr: float[S], NaN = not known; None = of no spectrum.
        """
        ...

    def covers(
        self, label: str, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str]
    ) -> np.ndarray:
        """bool[S]: stars whose widths were fitted to stars of their kind; all others are uncalibrated.

        Args:
          label: one of those in `pmfs`.
          pmfs, edges, used, arms: as for `apply`, before the calibration.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One `Widening` per label and set of arms, the set written as names joined by +, and per group if there are any.

    Attributes:
      widenings: label -> arms -> what is found for all stars.
      groups: name -> limits of labels, see `CalibrationSettings.groups`.
      by_group: label -> arms -> group -> what is found for its stars; that of all stars, not `fitted` and never
        narrower, where there are too few.
    """

    widenings: Mapping[str, Mapping[str, Widening]]
    groups: Limits = dataclasses.field(default_factory=dict)
    by_group: Mapping[str, Mapping[str, Mapping[str, Widening]]] = dataclasses.field(default_factory=dict)

    def apply(
        self, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str], snr: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """See `Calibrates`; stars of a set of arms without a widening, and rows of NaN, stay as they are."""
        member = membership(pmfs, edges, self.groups)
        out = {label: np.array(pmf, np.float64) for label, pmf in pmfs.items()}
        for label, pmf in out.items():
            for key, widening in self.widenings.get(label, {}).items():
                rows = _with_arms(key, used, arms) & np.isfinite(pmf).all(axis=1)
                if not rows.any():
                    continue
                log_power = np.full(rows.sum(), np.log(widening.power))
                for group, own in self.by_group.get(label, {}).get(key, {}).items():
                    log_power += member[group][rows] * np.log(own.power / widening.power)
                if snr is not None:
                    log_power += widening.snr_offset(np.asarray(snr)[rows])
                pmf[rows] = widening.widened(pmf[rows], edges[label], np.exp(log_power))
        return out

    def covers(
        self, label: str, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str]
    ) -> np.ndarray:
        """See `Calibrates`: the star's arms have a fit, and groups without a fit of their own are unlikely."""
        member = membership(pmfs, edges, self.groups)
        out = np.zeros(used.shape[1], bool)
        for key, widening in self.widenings.get(label, {}).items():
            rows = _with_arms(key, used, arms) & np.isfinite(pmfs[label]).all(axis=1) & widening.fitted
            unknown = [g for g, own in self.by_group.get(label, {}).get(key, {}).items() if not own.fitted]
            out[rows] = sum((member[group][rows] for group in unknown), np.zeros(rows.sum())) < 0.5
        return out

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which `from_json` reads."""
        return {
            "widenings": {
                label: {key: dataclasses.asdict(w) for key, w in found.items()}
                for label, found in self.widenings.items()
            },
            "groups": {
                name: {label: list(limits) for label, limits in each.items()}
                for name, each in self.groups.items()
            },
            "by_group": {
                label: {
                    key: {g: dataclasses.asdict(w) for g, w in each.items()} for key, each in found.items()
                }
                for label, found in self.by_group.items()
            },
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_json` wrote, now or when there were no groups."""
        if "widenings" not in value:
            value = {"widenings": value, "groups": {}, "by_group": {}}
        return cls(
            {
                label: {key: Widening(**w) for key, w in found.items()}
                for label, found in value["widenings"].items()
            },
            {
                name: {label: (low, high) for label, (low, high) in each.items()}
                for name, each in value["groups"].items()
            },
            {
                label: {key: {g: Widening(**w) for g, w in each.items()} for key, each in found.items()}
                for label, found in value["by_group"].items()
            },
        )


@dataclasses.dataclass(frozen=True)
class FoldCalibration:
    """Stars of fold k by `folds[k]`, all others by `default`: for reports on stars that took no part in it."""

    folds: Mapping[int, Calibration]
    fold_of_star: np.ndarray  # int[S], -1 = none
    default: Calibration

    def apply(
        self, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str], snr: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """See `Calibrates`."""
        out = self.default.apply(pmfs, edges, used, arms, snr)
        for rows, calibration in self._each():
            part = {label: pmf[rows] for label, pmf in pmfs.items()}
            own = None if snr is None else np.asarray(snr)[rows]
            for label, found in calibration.apply(part, edges, used[:, rows], arms, own).items():
                out[label][rows] = found
        return out

    def covers(
        self, label: str, pmfs: PMFs, edges: PMFs, used: np.ndarray, arms: Sequence[str]
    ) -> np.ndarray:
        """See `Calibrates`."""
        out = self.default.covers(label, pmfs, edges, used, arms)
        for rows, calibration in self._each():
            part = {name: pmf[rows] for name, pmf in pmfs.items()}
            out[rows] = calibration.covers(label, part, edges, used[:, rows], arms)
        return out

    def _each(self) -> list[tuple[np.ndarray, Calibration]]:
        return [(self.fold_of_star == fold, calibration) for fold, calibration in self.folds.items()]


def membership(pmfs: PMFs, edges: PMFs, groups: Limits) -> dict[str, np.ndarray]:
    """The probability that a star belongs to each group, labels taken for independent of one another.

    Args:
      pmfs: label -> float[S, K]; rows of NaN say nothing.
      edges: label -> float[K + 1].
      groups: name -> limits of labels.

    Returns:
      group -> float64[S], with a sum of 1 at most over the groups; 0 where a PMF that is needed is missing.

    Raises:
      ValueError: limits of a label without PMFs.
    """
    out = {}
    for name, limits in groups.items():
        if unknown := sorted(set(limits) - set(pmfs)):
            raise ValueError(
                f"calibrate.groups: {name} has limits of {unknown}, expected labels among {sorted(pmfs)}; set "
                "calibrate.groups"
            )
        found = np.ones(len(next(iter(pmfs.values()))))
        for label, ends in limits.items():
            found = found * _probability(pmfs[label], edges[label], *ends)
        out[name] = found
    total = np.maximum(sum(out.values(), np.zeros(1)), 1.0)
    return {name: found / total for name, found in out.items()}


def _probability(pmf: np.ndarray, edges: np.ndarray, low: float, high: float) -> np.ndarray:
    """float64[S]: what PMFs float[S, K] give to the range from `low` to `high`; 0 for rows of NaN."""
    known = np.isfinite(pmf).all(axis=1)
    start, width = edges[:-1], np.diff(edges)
    inside = np.clip((high - start) / width, 0, 1) - np.clip((low - start) / width, 0, 1)
    cdf_end = cumulative(np.where(known[:, None], pmf, 1.0))
    return np.where(known, np.sum(np.diff(cdf_end, axis=1) * inside, axis=1), 0.0)


def _with_arms(key: str, used: np.ndarray, arms: Sequence[str]) -> np.ndarray:
    """bool[S]: stars that have the arms of the set and no others, from `used` bool[A, S]."""
    member = np.array([arm in key.split("+") for arm in arms])
    return np.all(used == member[:, None], axis=0)


def rescale(pmf: np.ndarray, edges: np.ndarray, power: np.ndarray) -> np.ndarray:
    """PMFs with widths times 1 / √power about their medians, which stay; the last bins hold what lies beyond them.

    A power of the PMF does the same to a normal distribution, but where a PMF has a shoulder or two modes it takes
    the median to the highest mode, which is the poorer estimate.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      power: float[S], above 0.

    Returns:
      float64[S, K]; NaN rows stay NaN.

    Examples:
      >>> rescale(np.array([[0.0, 0.25, 0.5, 0.25, 0.0]]), np.arange(6.0), np.array([4.0])).tolist()
      [[0.0, 0.125, 0.75, 0.125, 0.0]]
    """
    pmf, edges = checked(pmf, edges)
    known = np.isfinite(pmf).all(axis=1)
    cdf = cumulative(np.where(known[:, None], pmf, 1.0 / pmf.shape[1]))
    middle = pmf_quantile(np.where(known[:, None], pmf, 1.0 / pmf.shape[1]), edges, 0.5)[:, None]
    place = middle + (edges[None] - middle) * np.sqrt(power)[:, None]
    left = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, len(edges) - 2)
    share = np.clip((place - edges[left]) / np.diff(edges)[left], 0.0, 1.0)
    below, above = (np.take_along_axis(cdf, left + i, axis=1) for i in (0, 1))
    moved = below * (1 - share) + above * share
    moved[:, 0], moved[:, -1] = 0.0, 1.0
    moved = np.maximum.accumulate(np.clip(moved, 0.0, 1.0), axis=1)  # the rounding of a flat piece may fall
    return np.where(known[:, None], np.diff(moved, axis=1), np.nan)


def with_tails(
    pmf: np.ndarray, edges: np.ndarray, power: np.ndarray, *, share: float, breadth: float
) -> np.ndarray:
    """PMFs as of `rescale`, a share of them √breadth times wider about the same median.

    Args:
      pmf: float[S, K].
      edges: float[K + 1], strictly increasing.
      power: float[S], above 0.
      share: in [0, 1].
      breadth: of 1 or more.

    Returns:
      float64[S, K]; NaN rows stay NaN.
    """
    middle = rescale(pmf, edges, power)
    return middle if share == 0 else (1 - share) * middle + share * rescale(pmf, edges, power / breadth)


def widen(pmf: np.ndarray, *, power: float | np.ndarray, outliers: float, breadth: float) -> np.ndarray:
    """(1 - o)·p^w + o·p^(w / b), each normalised: a share o of the stars is √b times wider than the others.

    Args:
      pmf: float[..., K].
      power: w > 0, one for all or float[...]; 1 / w is a temperature (paper §4.5; Guo et al. 2017,
        arXiv:1706.04599).
      outliers: o in [0, 1].
      breadth: b >= 1.

    Returns:
      float64[..., K], normalised; NaN rows stay NaN.
    """
    return (1 - outliers) * temper(pmf, power) + outliers * temper(pmf, power / breadth)
