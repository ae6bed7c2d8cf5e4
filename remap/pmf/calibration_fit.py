"""The fit of a calibration (`remap.pmf.calibration`) to validation stars; the stage is `remap.stages.calibrate`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from remap.pmf.calibration import (
    Calibration,
    CalibrationSettings,
    Widening,
    log_snr,
    membership,
    widen,
    with_tails,
)
from remap.pmf.metrics import nll, pit
from remap.pmf.observed import density_kernel

SNR_RANGE = 1.5  # between the percentiles 16 and 84 of the stars' S/N, below which no slope is fitted
TINY = 1e-300  # least likelihood of a label in units of its largest, so that its logarithm exists
BREADTHS = np.geomspace(
    4.0, 400.0, 6
)  # of wrong labels, in units of σ²; between them by interpolation of densities
EXACT = 1e-3  # of a bin's width, below which an error of a label makes no difference


def anderson_darling(values: np.ndarray) -> float:
    """Squared distance of a sample in [0, 1] from uniform, with weight on both ends; about 1 if it is uniform.

    The ordered values u_k against their places (k - ½) / n, in units of the binomial variance there: the sum
    that Anderson & Darling (1952) write as an integral, kept finite for values of exactly 0 and 1.
    """
    ordered = np.sort(np.asarray(values, float))
    place = (np.arange(len(ordered)) + 0.5) / len(ordered)
    return float(np.sum((ordered - place) ** 2 / (place * (1 - place) + 0.5 / len(ordered))))


def fit_widening(
    pmf: np.ndarray,
    edges: np.ndarray,
    truth: np.ndarray,
    settings: CalibrationSettings,
    *,
    errors: np.ndarray | None = None,
    snr: np.ndarray | None = None,
    weight: float = 1.0,
) -> Widening:
    """What maximises the posterior of the known labels, all stars alike (`fit` does the groups).

    With `kind` "deconvolved" the likelihood of a label x with error σ is

        (1 - o) (PMF_w ⊗ N(0, σ²))(x) + o (PMF_w ⊗ N(0, b σ²))(x),

    PMF_w having 1 / √w times the width and a share of tails (`calibration.with_tails`), and a share o of the labels
    being wrong; only w and the tails go into the PMF. The breadth b is fitted, too: with a wrong one, w would make up
    for it. With "coverage" minus the log likelihood gives way to the Anderson-Darling distance of
    the central intervals that just reach the truth from uniform: the likelihood of exact labels widens all stars for
    the sake of a few.

    Args:
      pmf: float[S, K] of stars that the networks did not train on.
      edges: float[K + 1].
      truth: float[S], NaN = unknown.
      settings: prior and kind of the widening.
      errors: float[S], standard deviations of `truth`, used by "deconvolved" alone; None = labels are exact.
      snr: float[S], of the spectra, NaN = not known; None = of no spectrum.
      weight: how many stars each spectrum counts for, used by "deconvolved" alone: 1 / c where each star is there c
        times, with noise of its own.
    """
    if settings.kind == "deconvolved":
        errors = np.zeros(len(truth)) if errors is None else errors
        rows = _known(pmf, edges, truth, errors)
        snr = np.full(len(truth), np.nan) if snr is None else snr
        fits = _Deconvolved(pmf[rows], edges, truth[rows], errors[rows], settings, weight)
        return fits.common(snr[rows])
    keep = _known(pmf, edges, truth, np.zeros(len(truth)))
    pmf, truth = pmf[keep], truth[keep]
    unchanged = Widening(1.0, 0.0, settings.breadth, int(keep.sum()), fitted=False)
    if settings.kind == "none" or len(truth) < settings.min_stars:
        return unchanged
    centre = np.log(settings.outliers / (1 - settings.outliers))

    def unpack(x: np.ndarray) -> tuple[float, float]:
        share = 0.0 if settings.kind == "temperature" else expit(x[1])
        return float(np.exp(x[0])), float(share)

    def objective(x: np.ndarray) -> float:
        power, share = unpack(x)
        wide = widen(pmf, power=power, outliers=share, breadth=settings.breadth)
        prior = (x[0] / settings.power_sigma) ** 2 + ((x[1] - centre) / settings.outliers_sigma) ** 2
        if settings.kind == "coverage":
            return anderson_darling(np.abs(2 * pit(wide, edges, truth) - 1)) + 0.5 * float(prior)
        return float(np.sum(nll(wide, edges, truth)) + 0.5 * prior)

    power, outliers = unpack(minimize(objective, np.array([0.0, centre]), method="Nelder-Mead").x)
    return dataclasses.replace(unchanged, power=power, outliers=outliers, fitted=True)


class _Deconvolved:
    """Fits of kind "deconvolved" to the same stars: of all of them, and of groups.

    Args:
      pmf: float[S, K].
      edges: float[K + 1].
      truth, errors: float[S], finite.
      weight: see `fit_widening`.
    """

    def __init__(
        self,
        pmf: np.ndarray,
        edges: np.ndarray,
        truth: np.ndarray,
        errors: np.ndarray,
        settings: CalibrationSettings,
        weight: float,
    ) -> None:
        errors = np.maximum(errors, EXACT * np.min(np.diff(edges)))
        self.settings, self.weight = settings, weight
        kernels = [density_kernel(edges, truth, errors * np.sqrt(b)) for b in (1.0, *BREADTHS)]
        # Each row in units of its largest value, which is added to the logarithm again: far labels do not underflow.
        self.scales = [np.max(kernel, axis=1, initial=-np.inf) for kernel in kernels]
        self.kernels = [np.exp(k - scale[:, None]) for k, scale in zip(kernels, self.scales, strict=True)]
        self.pmf, self.edges = pmf, edges
        count = round(weight * len(truth))
        self.unchanged = Widening(1.0, 0.0, settings.breadth, count, fitted=False, scaled=True)

    def log_likelihood(self, power: np.ndarray, share: float, log_breadth: float, tails: float) -> np.ndarray:
        """float64[S]: of the labels, for PMFs of a power float[S] and a share of tails, a share of wrong labels and
        their ln breadth."""
        scaled = with_tails(self.pmf, self.edges, power, share=tails, breadth=self.settings.breadth)

        def of_kernel(i: int) -> np.ndarray:
            found = np.einsum("sk,sk->s", scaled, self.kernels[i])
            return np.log(np.maximum(found, TINY)) + self.scales[i]

        nodes = np.log(BREADTHS)
        place = float(np.interp(log_breadth, nodes, np.arange(len(nodes))))
        lower = min(int(place), len(nodes) - 2)
        with np.errstate(divide="ignore"):
            near, far = np.log(1 - (place - lower)), np.log(place - lower)
        wrong = np.logaddexp(near + of_kernel(1 + lower), far + of_kernel(2 + lower))
        return np.logaddexp(np.log1p(-share) + of_kernel(0), np.log(share) + wrong)

    def maximum(
        self,
        weights: np.ndarray,
        centre: float,
        sigma: float,
        offset: np.ndarray,
        x: np.ndarray | None,
        tails: float | None = None,
    ) -> tuple[float, float, float, float]:
        """ln power, share of wrong labels, share of tails, and slope with x.

        Args:
          weights: float[S], how much each star counts.
          centre, sigma: of the prior on ln power.
          offset: float[S], added to ln power.
          x: float[S], what there is a slope with; None = the slope is 0.
          tails: their share; None = it is found.
        """
        settings = self.settings
        if tails is None and settings.tails == 0:
            tails = 0.0
        free = [True, True, True, tails is None, x is not None]
        usual = 0.0 if tails is not None else np.log(settings.tails / (1 - settings.tails))
        middle = np.log(settings.outliers / (1 - settings.outliers))
        broad = np.log(settings.label_breadth)

        # ln power, logit of wrong labels, ln of their breadth, logit of tails, slope: the centres of their priors,
        # the widths of these, and first steps of a size with them (the default ones are 5 % of a start that may be
        # 0).
        start = np.array([centre, middle, broad, usual, 0.0])
        widths = np.array(
            [sigma, settings.outliers_sigma, settings.label_breadth_sigma, settings.outliers_sigma, 1.0]
        )
        widths[4] = settings.snr_sigma or 1.0
        steps = np.diag([0.3, 0.5, 0.5, 0.5, 0.2])[free]

        def whole(p: np.ndarray) -> np.ndarray:
            out = start.copy()
            out[free] = p
            return out

        def share_of_tails(q: np.ndarray) -> float:
            return float(expit(q[3])) if tails is None else tails

        def objective(p: np.ndarray) -> float:
            q = whole(p)
            log_power = q[0] + offset + (0.0 if x is None else q[4] * x)
            # exp(±6) is beyond what any data can ask for, and keeps the search from overflowing.
            power = np.exp(np.clip(log_power, -6, 6))
            found = self.log_likelihood(power, float(expit(q[1])), float(q[2]), share_of_tails(q))
            return float(-weights @ found + 0.5 * np.sum(((q - start) / widths) ** 2))

        options = {
            "initial_simplex": np.concatenate([start[None], start + steps])[:, free],
            "xatol": 3e-3,
            "fatol": 1e-3,
            "maxiter": 2000,
        }
        found = whole(minimize(objective, start[free], method="Nelder-Mead", options=options).x)
        return float(found[0]), float(expit(found[1])), share_of_tails(found), float(found[4])

    def common(self, snr: np.ndarray) -> Widening:
        """The fit to all stars, whose spectra have S/N float[S]."""
        settings, count = self.settings, len(self.pmf)
        if self.unchanged.stars < settings.min_stars:
            return self.unchanged
        low, high, x = 1.0, 1.0, None
        known = snr[np.isfinite(snr) & (snr > 0)]
        if settings.snr_sigma > 0 and len(known) >= max(settings.min_stars, count / 2):
            near, far = np.percentile(known, (16, 84))
            if far > SNR_RANGE * near:
                low, high = (float(v) for v in np.percentile(known, (5, 95)))
                x = log_snr(snr, low, high)
        log_power, share, tails, slope = self.maximum(
            np.full(count, self.weight), 0.0, settings.power_sigma, np.zeros(count), x
        )
        return dataclasses.replace(
            self.unchanged,
            power=float(np.exp(log_power)),
            outliers=tails,
            label_outliers=share,
            fitted=True,
            snr_slope=slope,
            snr_low=low,
            snr_high=high,
        )

    def group(self, common: Widening, weights: np.ndarray, stars: int, snr: np.ndarray) -> Widening:
        """The fit to one group, of which there are `stars`, each of those here with a probability of `weights`.

        Without enough of them it has that of all, but is not narrowed: other kinds of stars say nothing of how wrong
        the networks are for this one, and too wide is the lesser fault.
        """
        own = dataclasses.replace(common, power=min(common.power, 1.0), stars=stars, fitted=False)
        weights = self.weight * weights
        if not (common.fitted and stars and weights.sum() >= self.settings.min_stars):
            return own
        # The tails are those of all stars: they are few.
        log_power, share, _, _ = self.maximum(
            weights,
            np.log(common.power),
            self.settings.group_sigma,
            common.snr_offset(snr),
            None,
            tails=common.outliers,
        )
        return dataclasses.replace(own, power=float(np.exp(log_power)), label_outliers=share, fitted=True)


def fit(
    pmfs: Mapping[str, np.ndarray],
    edges: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    used: np.ndarray,
    arms: Sequence[str],
    settings: CalibrationSettings,
    combine: Callable[[str, np.ndarray], np.ndarray],
    *,
    errors: Mapping[str, np.ndarray] | None = None,
    snr: np.ndarray | None = None,
    pooled: Callable[[Mapping[str, np.ndarray], str, np.ndarray], dict[str, np.ndarray]] | None = None,
    weight: float = 1.0,
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
      errors: per label float[S], standard deviations of `truth`; None = labels are exact.
      snr: float[S], of the spectra, NaN = not known; None = of no spectrum.
      pooled: (combined float[S', K] by label, set of arms, rows int[S']) -> the same, what an expert makes of them;
        None = there is none.
      weight: how many stars each spectrum counts for, see `fit_widening`.

    Raises:
      ValueError: groups by a label that there is not.
    """
    groups = settings.groups if settings.kind == "deconvolved" else {}
    found: dict[str, dict[str, Widening]] = {label: {} for label in pmfs}
    by_group: dict[str, dict[str, dict[str, Widening]]] = {label: {} for label in pmfs} if groups else {}
    snr = np.full(used.shape[1], np.nan) if snr is None else np.asarray(snr, np.float64)
    for size in range(1, len(arms) + 1):
        for chosen in itertools.combinations(range(len(arms)), size):
            rows = used[list(chosen)].all(axis=0)
            key = "+".join(arms[i] for i in chosen)
            joint = {label: combine(label, values[list(chosen)][:, rows]) for label, values in pmfs.items()}
            if pooled is not None:
                joint = pooled(joint, key, np.flatnonzero(rows))
            member = membership(joint, edges, groups)
            labels = {label: values[rows] for label, values in truth.items()}
            kind = {name: _labelled(labels, limits) for name, limits in groups.items()}
            for label, pmf in joint.items():
                own = np.zeros(rows.sum()) if errors is None else errors[label][rows]
                found[label][key] = common = fit_widening(
                    pmf, edges[label], labels[label], settings, errors=own, snr=snr[rows], weight=weight
                )
                if not groups:
                    continue
                known = _known(pmf, edges[label], labels[label], own)
                fits = _Deconvolved(
                    pmf[known], edges[label], labels[label][known], own[known], settings, weight
                )
                by_group[label][key] = {
                    name: fits.group(
                        common,
                        member[name][known],
                        round(weight * np.count_nonzero(kind[name][known])),
                        snr[rows][known],
                    )
                    for name in groups
                }
    return Calibration(found, groups, by_group)


def _known(pmf: np.ndarray, edges: np.ndarray, truth: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """bool[S]: stars with a PMF and a label within the bins, of known error."""
    return (
        np.isfinite(truth)
        & np.isfinite(errors)
        & np.isfinite(pmf).all(axis=1)
        & (truth >= edges[0])
        & (truth <= edges[-1])
    )


def _labelled(truth: Mapping[str, np.ndarray], limits: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """bool[S]: stars whose known labels, one at least, lie within the limits of a group."""
    known = np.stack([np.isfinite(truth[label]) for label in limits])
    with np.errstate(invalid="ignore"):
        inside = np.stack([(truth[n] >= low) & (truth[n] <= high) for n, (low, high) in limits.items()])
    return np.all(inside | ~known, axis=0) & known.any(axis=0)
