"""Errors of the autoencoder route: of reconstructed flux in both domains, and of labels, with intervals."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Bool, Float, Int

from remap.autoencoder.estimate import estimate_labels
from remap.autoencoder.members import Member
from remap.autoencoder.network import Autoencoder, Pixels, reconstruction_error
from remap.autoencoder.regress import Regressors
from remap.autoencoder.sources import Sky
from remap.config import ConfigError, Section, record
from remap.pmf.metrics import coverage, crps, residual_table
from remap.predict.catalogue import Catalogue
from remap.predict.held_out import held_out
from remap.store.checkpoint import has_final
from remap.store.stars import within
from remap.store.workdir import stage_folder

logger = logging.getLogger(__name__)

LEVELS = (0.68, 0.95)


@dataclasses.dataclass(frozen=True)
class GapSettings:
    """Diagnostics of the gap between library and survey (config section `gap`).

    Attributes:
      folds, repeats, ridge: of the classifier that tells the two apart (`two_sample.classifier_auc`).
      permutations: of the test of the MMD.
      resamples, level: of bootstrap intervals.
      perplexity: of the maps of the features.
      seed: of the config, for all of them.
    """

    folds: int = 5
    repeats: int = 4
    ridge: float = 1.0
    permutations: int = 1000
    resamples: int = 1000
    level: float = 0.95
    perplexity: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.folds < 2 or min(self.repeats, self.permutations, self.resamples) < 1:
            raise ConfigError(
                "gap: expected at least 2 folds, and repeats, permutations and resamples of at least 1, found "
                f"{self.folds}, {self.repeats}, {self.permutations} and {self.resamples}"
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"gap.level: expected a probability between 0 and 1, found {self.level}")


def gap_settings(config: ml_collections.ConfigDict) -> GapSettings:
    """The settings that a config has.

    Raises:
      ConfigError: unknown or missing fields, or values that cannot be.
    """
    return record(GapSettings, {**config.gap, "seed": config.seed}, "gap")


def reconstruction_rows(
    gap: GapSettings, members: Mapping[str, list[Member]], sky: Sky, held: Pixels, *, scale: float
) -> list[dict[str, Any]]:
    """Root mean square of output minus input in both domains, in units of the continuum.

    Args:
      scale: normalised flux in the unit of the pixels.
    """
    stages = {"before": members["library"], "after": members["adapted"]}
    survey = {
        "survey, trained on": np.flatnonzero(sky.usable & ~sky.held),
        "survey, kept aside": np.flatnonzero(sky.usable & sky.held),
    }
    squares = {"library": {stage: _member_errors(own, held) for stage, own in stages.items()}}
    for domain, rows in survey.items():
        if len(rows):
            squares[domain] = _survey_errors(stages, sky, rows)
    out = []
    for stage in stages:
        for domain, found in squares.items():
            square = np.mean(found[stage], axis=0)
            rms = lambda x: scale * float(np.sqrt(np.mean(x)))  # noqa: E731
            low, high = bootstrap(gap, square, rms)
            out.append(
                {"stage": stage, "domain": domain, "n": len(square), "rms": rms(square)}
                | {"rms_low": low, "rms_high": high}
            )
    return out


def _survey_errors(
    stages: Mapping[str, list[Member]], sky: Sky, rows: np.ndarray
) -> dict[str, Float[np.ndarray, "autoencoders stars"]]:
    """Mean squared errors of spectra of the survey, by the autoencoders of each stage."""
    parts: dict[str, list[np.ndarray]] = {stage: [] for stage in stages}
    for some, pixels in sky.blocks(rows):
        for stage, own in stages.items():
            parts[stage].append(_member_errors(own, pixels)[:, : len(some)])
    return {stage: np.concatenate(each, axis=1) for stage, each in parts.items()}


def _member_errors(members: list[Member], pixels: Pixels) -> Float[np.ndarray, "autoencoders stars"]:
    found = [_square_errors(m.model, m.params, pixels.flux, pixels.valid) for m in members]
    return np.stack([np.asarray(each) for each in found])


@functools.partial(jax.jit, static_argnums=0)
def _square_errors(
    model: Autoencoder, params: Any, flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
) -> Float[Array, " stars"]:
    return reconstruction_error(model.apply({"params": params}, flux).output, flux, valid)


def bootstrap(
    gap: GapSettings, values: np.ndarray, statistic: Callable[[np.ndarray], float]
) -> tuple[float, float]:
    """Ends of the bootstrap interval of a statistic of values[S, ...], S resampled; NaN without values."""
    if not len(values):
        return np.nan, np.nan
    rng = np.random.default_rng(gap.seed)
    draws = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(gap.resamples)]
    low, high = np.percentile(draws, [50 * (1 - gap.level), 50 * (1 + gap.level)])
    return float(low), float(high)


def zero_shot(
    config: ml_collections.ConfigDict, workdir: Path, stars: Table, rows: Int[np.ndarray, " some"]
) -> dict[str, Catalogue]:
    """What zero-shot deep-REMAP says of some of the stars, by name; nothing where its networks are not there.

    Args:
      stars: all rows of `store.stars.readable_stars`.
      rows: those that are predicted.
    """
    if not len(rows):
        return {}
    arms = [stage_folder(workdir, "pretrain", arm) for arm in config.arm_names]
    if all(has_final(folder / "final") for folder in arms):
        return {"zero-shot": held_out(config, workdir, stars, "pretrain", rows=rows).catalogue(stars[rows])}
    logger.info("report: no comparison with zero-shot deep-REMAP: launch.pretrain has not run here")
    return {}


def label_rows(
    gap: GapSettings,
    groups: Section,
    stars: Table,
    usable: Bool[np.ndarray, " stars"],
    routes: Mapping[str, Catalogue],
) -> list[dict[str, Any]]:
    """Estimates of survey stars against their labels.

    Args:
      groups: name -> limits of labels (`stars.within`).
      stars: S rows, with the labels.
      usable: those whose spectra cover every arm.
      routes: name -> its estimates of these: "zero-shot", with which the others are compared, where it is there.
    """
    rows = []
    for route, found in routes.items():
        for group, limits in groups.items():
            member = within(stars, limits) & usable
            for label, edges in found.edges.items():
                truth = np.asarray(stars[label], float)
                known = member & np.isfinite(truth)
                if not known.any():
                    continue
                error = np.asarray(found.table[label], float)[known] - truth[known]
                row = {"route": route, "group": group, "label": label} | _errors(gap, error)
                pmf = found.pmfs[label][known]
                held = coverage(pmf, edges, truth[known], LEVELS)
                row |= {f"cover{round(100 * x)}": float(c) for x, c in zip(LEVELS, held, strict=True)}
                row["crps"] = float(np.mean(crps(pmf, edges, truth[known])))
                # How much smaller the absolute error is than zero-shot's, of the same stars.
                row |= {"gain": np.nan, "gain_low": np.nan, "gain_high": np.nan}
                if "zero-shot" in routes and route != "zero-shot":
                    other = np.asarray(routes["zero-shot"].table[label], float)[known] - truth[known]
                    improved = np.abs(other) - np.abs(error)
                    low, high = bootstrap(gap, improved, lambda x: float(np.mean(x)))
                    row |= {"gain": float(np.mean(improved)), "gain_low": low, "gain_high": high}
                rows.append(row)
    return rows


def library_rows(
    gap: GapSettings,
    regressors: Regressors,
    latents: Mapping[str, Float[np.ndarray, "autoencoders stars features"]],
    truth: Mapping[str, Float[np.ndarray, " stars"]],
) -> list[dict[str, Any]]:
    """Library spectra of cells kept aside: what the regressors can do with the features of an encoder.

    Args:
      latents: encoder -> features of the S spectra: of the encoder that the regressors learned from and, where that
        is the one before its fine-tuning, of the other, to see what moving the encoder does to the labels.
      truth: label -> its value for each spectrum.
    """
    rows = []
    for encoder, latent in latents.items():
        values = np.median(estimate_labels(regressors, latent).values, axis=(0, 1))
        for j, (label, known) in enumerate(truth.items()):
            error = values[j] - known
            nothing = dict.fromkeys(("cover68", "cover95", "crps", "gain", "gain_low", "gain_high"), np.nan)
            row = {"route": f"{encoder} encoder", "group": "library", "label": label}
            rows.append(row | _errors(gap, error) | nothing)
    return rows


def _errors(gap: GapSettings, error: np.ndarray) -> dict[str, float]:
    """n, mean and robust scatter of errors with their intervals, and the mean absolute error."""
    table = residual_table(error, np.zeros(len(error)))
    error = error[np.isfinite(error)]
    robust = lambda x: residual_table(x, np.zeros(len(x)))["robust"]  # noqa: E731
    bias, scatter = bootstrap(gap, error, lambda x: float(np.mean(x))), bootstrap(gap, error, robust)
    row = {"n": table["n"], "bias": table["bias"], "bias_low": bias[0], "bias_high": bias[1]}
    row |= {"robust": table["robust"], "robust_low": scatter[0], "robust_high": scatter[1]}
    return row | {"std": table["std"], "mae": float(np.mean(np.abs(error))) if len(error) else np.nan}
