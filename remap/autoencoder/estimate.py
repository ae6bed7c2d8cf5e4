"""What the ensemble of autoencoders and regressors says of spectra: estimates with an asymmetric spread."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from remap.autoencoder.members import Member, Route, encode, open_route, read_members
from remap.autoencoder.regress import Regressors, load_regressors
from remap.autoencoder.regressor import predict_labels
from remap.autoencoder.sources import Sky, read_sky
from remap.config import ConfigError, Section, config_to_json, record
from remap.labels import LabelBins
from remap.pmf.distributions import count_modes, is_edge
from remap.predict.catalogue import Catalogue, Flag, build_catalogue, provenance
from remap.store.stars import readable_stars

KERNELS = ("spread", "residual")
BLOCK = 256  # spectra whose mixtures are made together


@dataclasses.dataclass(frozen=True)
class EstimateSettings:
    """How the ensemble's values become PMFs (config section `estimate`).

    Attributes:
      kernel: see `kernel_width`.
      refine: every bin of a label is divided by it.
    """

    kernel: str = "spread"
    refine: int = 10

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ConfigError(f"estimate.kernel must be one of {KERNELS}, found {self.kernel!r}")
        if self.refine < 1:
            raise ConfigError(f"estimate.refine: expected at least 1, found {self.refine}")


@dataclasses.dataclass(frozen=True)
class CatalogueSettings:
    """How estimates become a catalogue.

    Attributes:
      estimate: how values become PMFs.
      limits: of the flags (config section `predict`).
      written: the whole config as plain values, for the catalogue's head.
    """

    estimate: EstimateSettings
    limits: Section
    written: dict[str, Any]


def catalogue_settings(config: ml_collections.ConfigDict) -> CatalogueSettings:
    """The settings that a config has.

    Raises:
      ConfigError: unknown or missing fields, or values that cannot be.
    """
    return CatalogueSettings(
        record(EstimateSettings, config.estimate, "estimate"), config.predict, config_to_json(config)
    )


class Estimates(NamedTuple):
    """What every network of the ensemble says of S spectra."""

    values: np.ndarray  # float[A, C, L, S], units of the labels
    residual: np.ndarray  # float[A, C, L], rms error of each network on library spectra


def estimate_labels(
    regressors: Regressors, latent: Float[np.ndarray, "autoencoders stars features"]
) -> Estimates:
    """Labels from latent features, by every network."""
    values = _predict(regressors.model, regressors.params, regressors.scaling, jnp.asarray(latent))
    return Estimates(np.asarray(values, np.float64), regressors.residual)


_predict = jax.jit(predict_labels, static_argnums=0)


def kernel_width(values: np.ndarray, residual: np.ndarray, *, kernel: str) -> np.ndarray:
    """Standard deviation of the Gaussian that stands for each member's value.

    Args:
      values: float[M, S], of one label.
      residual: float[M], rms error of each member on library spectra.
      kernel: "spread", Silverman's width for M values of their standard deviation, so that the spread of the
        ensemble is the uncertainty (published); "residual", the members' own errors on the library, on top of which
        the spread comes by itself.

    Returns:
      float[M, S], positive where the members do not all agree.
    """
    if kernel == "spread":
        count = len(values)
        width = np.std(values, axis=0, ddof=1 if count > 1 else 0) * (0.75 * count) ** -0.2
        return np.broadcast_to(width, values.shape)
    if kernel == "residual":
        return np.broadcast_to(np.asarray(residual)[:, None], values.shape)
    raise ConfigError(f"estimate.kernel must be one of {KERNELS}, found {kernel!r}")


def mixture_pmf(values: np.ndarray, width: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Probability of each bin for a mixture of Gaussians with equal weights.

    Args:
      values, width: float[M, S], centres and standard deviations; a width below a tenth of a bin counts as that.
      edges: float[K + 1]; what lies beyond the range goes to the outermost bin, where it can be seen.

    Returns:
      float32[S, K]; NaN where a value is not finite.
    """
    width = np.maximum(width, 0.1 * (edges[1] - edges[0]))
    bound = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
    cumulative = np.mean(ndtr((bound[None, None] - values[..., None]) / width[..., None]), axis=0)
    return np.diff(cumulative, axis=-1).astype(np.float32)


def _mixtures(values: np.ndarray, width: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """As `mixture_pmf`, for any number of spectra: on the way there are as many PMFs as networks."""
    out = np.empty((values.shape[1], len(edges) - 1), np.float32)
    for i in range(0, len(out), BLOCK):
        some = slice(i, i + BLOCK)
        out[some] = mixture_pmf(values[:, some], width[:, some], edges)
    return out


def fine_bins(label: LabelBins, refine: int) -> LabelBins:
    """The label's bins, each divided by `refine`: the ensemble's spread may be far smaller than a bin."""
    return LabelBins(label.name, label.low, label.high, label.bins * refine, label.unit)


def make_catalogue(
    settings: CatalogueSettings,
    labels: tuple[LabelBins, ...],
    arms: tuple[str, ...],
    estimates: Estimates,
    sky: Sky,
    *,
    files: list[str],
    star_ids: list[str],
    steps: list[int],
    date: str | None,
) -> Catalogue:
    """Medians, percentiles and PMFs of the ensemble, with flags.

    Args:
      estimates: of the S spectra of `sky`.
      steps: training steps of each autoencoder.
      date: ISO 8601; None = now.
    """
    limits, refine = settings.limits, settings.estimate.refine
    members = estimates.values.shape[0] * estimates.values.shape[1]
    flags = np.zeros(len(files), np.int32)
    pmfs, edges, units = {}, {}, {}
    for j, label in enumerate(labels):
        fine = fine_bins(label, refine)
        values = estimates.values[:, :, j].reshape(members, -1)
        residual = estimates.residual[:, :, j].reshape(members)
        width = kernel_width(values, residual, kernel=settings.estimate.kernel)
        pmf = np.where(sky.usable[:, None], _mixtures(values, width, fine.edges), np.nan)
        pmfs[label.name], edges[label.name], units[label.name] = pmf, fine.edges, fine.unit
    # Of all labels or of none.
    lost = sky.usable & ~np.all([np.isfinite(pmf).all(axis=1) for pmf in pmfs.values()], axis=0)
    used = sky.usable & ~lost
    for label in labels:
        pmf = pmfs[label.name] = np.where(used[:, None], pmfs[label.name], np.nan)
        flags[is_edge(pmf, bins=2 * refine, mass=limits["edge_mass"])] |= Flag.EDGE
        flags[count_modes(pmf, prominence=limits["mode_prominence"]) > 1] |= Flag.MULTIMODAL
    with np.errstate(invalid="ignore"):
        flags[np.mean(sky.snr, axis=0) < limits["min_snr"]] |= Flag.LOW_SNR
    flags[np.any(sky.coverage < limits["full_coverage"], axis=0)] |= Flag.BAD_PIXELS
    flags[~used] = Flag.UNREADABLE
    flags[lost] |= Flag.NOT_FINITE
    reasons = np.where(sky.usable, "", "the autoencoder needs every arm; one is not covered").astype(object)
    reasons[lost] = "the networks give no finite PMF"
    table = build_catalogue(
        files,
        pmfs,
        edges,
        units=units,
        flags=flags,
        snr=np.mean(sky.snr, axis=0),
        arms={arm: used for arm in arms},
        messages=list(reasons),
        star_ids=star_ids,
    )
    meta = provenance(
        config=settings.written,
        checkpoint_step=steps,
        date=date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        inputs=len(files),
    )
    return Catalogue(table, pmfs, edges, meta)


def estimate(
    config: ml_collections.ConfigDict, workdir: str | Path, *, adapted: bool = True, date: str | None = None
) -> Catalogue:
    """The catalogue of the survey of a working folder.

    Args:
      adapted: False takes the stars' features, too, from the encoders before their fine-tuning: what the route
        says without the bridge.
      date: of the catalogue, ISO 8601; None = now.
    """
    settings = catalogue_settings(config)  # its mistakes before the networks are read
    route = open_route(config, Path(workdir))
    members = read_members(route, "adapted" if adapted else "library")
    return estimate_sky(route, settings, members, read_sky(route), adapted=adapted, date=date)


def estimate_sky(
    route: Route,
    settings: CatalogueSettings,
    members: list[Member],
    sky: Sky,
    *,
    adapted: bool,
    date: str | None,
) -> Catalogue:
    """As `estimate`, of encoders and spectra that have been found already.

    Of pixels and latent features there are never more than those of `autoencoder.chunk` spectra.
    """
    regressors = load_regressors(route, route.regressor.encoder if adapted else "library")
    stars = readable_stars(route.workdir)
    values = np.empty((*regressors.residual.shape, len(stars)))
    for rows, pixels in sky.blocks(np.arange(len(stars))):
        latent = encode(members, pixels.flux, chunk=sky.chunk)
        values[..., rows] = estimate_labels(regressors, latent).values[..., : len(rows)]
    return make_catalogue(
        settings,
        route.preprocessing.labels,
        tuple(route.preprocessing.arms),
        Estimates(values, regressors.residual),
        sky,
        files=list(stars["file"]),
        star_ids=list(stars["star_id"]),
        steps=[m.step for m in members],
        date=date,
    )
