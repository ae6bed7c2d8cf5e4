"""Why the networks say what they say: where in a spectrum an answer comes from, and a library spectrum beside it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap.network.resnet import ResNet1D
from remap.predict.arms import ArmInputs
from remap.predict.ensemble import mean_pmf, member_pmf
from remap.predict.running import Runner
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.preprocess.templates import Templates
from remap.store.workdir import load_library

logger = logging.getLogger(__name__)

CANDIDATES = 12  # library spectra per star that are compared with it
TRUSTED = 0.1  # of the continuum: the least normalised flux that the continuum is found again from


class LibrarySpectra(NamedTuple):
    """Spectra of a library on the arms' grids, at the middle line spread of the networks, before normalisation."""

    flux: Mapping[str, np.ndarray]  # arm -> float32[P, N]
    valid: Mapping[str, np.ndarray]  # arm -> bool[N]
    labels: np.ndarray  # float[P, L], in the order of the predictor's labels


class ArmExplanation(NamedTuple):
    """One arm of S spectra; NaN where a pixel was not used."""

    wave: np.ndarray  # float64[N], Å
    flux: np.ndarray  # float32[S, N], before normalisation
    continuum: np.ndarray  # float32[S, N], of the same unit
    normalized: np.ndarray  # float32[S, N], as the networks see it
    library: np.ndarray  # float32[S, N], the normalised library spectrum
    saliency: np.ndarray  # float32[L, S, N], label's unit per 1 % of the continuum over 1 Å


class Explanation(NamedTuple):
    """What `explain` finds of S spectra."""

    arms: dict[str, ArmExplanation]
    chosen: np.ndarray  # int[S], the row of the library that is shown, -1 = none
    rms: np.ndarray  # float[S], of the difference from it in units of the continuum, NaN = none


def explain(
    runner: Runner,
    inputs: Mapping[str, ArmInputs],
    *,
    labels: np.ndarray | None = None,
    library: LibrarySpectra | None = None,
) -> Explanation:
    """Continuum, saliency and the library spectrum that fits best, of every spectrum.

    The saliency of a label in an arm is the gradient of the median of that arm's PMF, the mean over its networks,
    with respect to the normalised flux. Masked pixels have none.

    Args:
      inputs: arm -> its spectra, the same S in all.
      labels: float[S, L], near which library spectra are looked for; NaN = none is looked for.
      library: to look in; None = none.
    """
    count = len(next(iter(inputs.values())).flux)
    normal = {arm: runner.normalize_arm(arm, x).flux for arm, x in inputs.items()}
    used = {
        arm: usable(x.flux, x.valid, min_coverage=runner.limits["min_coverage"]) for arm, x in inputs.items()
    }
    good = {arm: x.valid & used[arm][:, None] for arm, x in inputs.items()}
    chosen, rms = np.full(count, -1), np.full(count, np.nan)
    beside = {arm: np.full(x.flux.shape, np.nan, np.float32) for arm, x in inputs.items()}
    if library is not None and labels is not None:
        chosen, rms, beside = _best_library(runner, library, normal, good, labels)
    arms = {}
    for arm, x in inputs.items():
        steps = runner.preprocessing.arms[arm][2]
        gradient = saliency(runner, arm, normal[arm], x.valid) * (0.01 / steps)
        gone = ~good[arm]
        arms[arm] = ArmExplanation(
            runner.preprocessing.wave(arm),
            np.where(gone, np.nan, x.flux).astype(np.float32),
            np.where(used[arm][:, None], _continuum(x.flux, normal[arm], good[arm]), np.nan).astype(
                np.float32
            ),
            np.where(gone, np.nan, normal[arm]),
            beside[arm],
            np.where(used[arm][None, :, None], gradient, np.nan),
        )
    return Explanation(arms, chosen, rms)


def saliency(runner: Runner, arm: str, flux: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Gradient of the medians of an arm's PMFs with respect to the normalised flux.

    Args:
      flux: float32[S, N], normalised, as `Runner.normalize_arm` gives it.
      valid: bool[S, N].

    Returns:
      float32[L, S, N], label's unit per unit of flux (the continuum) of one pixel.
    """
    network, bins = runner.networks[arm], runner.preprocessing.labels
    batch = runner.limits["small_batch_size"]
    out = np.zeros((len(bins), *flux.shape), np.float32)
    for i in range(0, len(flux), batch):
        rows = slice(i, min(i + batch, len(flux)))
        short = ((0, batch - (rows.stop - rows.start)), (0, 0))
        some = jnp.asarray(np.pad(flux[rows], short, constant_values=1.0))
        mask = jnp.asarray(np.pad(valid[rows], short, constant_values=True))
        pmf = mean_pmf(jnp.stack([member_pmf(v, some, mask, model=network.model) for v in network.members]))
        pulls = np.zeros(pmf.shape, np.float32)
        for j, b in enumerate(bins):
            pulls[j, :, : b.bins] = median_gradient(pmf[j, :, : b.bins], jnp.asarray(b.edges, jnp.float32))
        # The mean over the networks is linear: each has its share of the pull.
        share = jnp.asarray(pulls / len(network.members))
        total = sum(_member_gradient(v, some, mask, share, model=network.model) for v in network.members)
        out[:, rows] = np.asarray(total)[:, : rows.stop - rows.start]
    return out


@jax.jit
def median_gradient(
    pmf: Float[Array, "stars bins"], edges: Float[Array, " edges"]
) -> Float[Array, "stars bins"]:
    """Derivative of the median with respect to every bin's probability.

    The median is where the cumulative distribution, straight within bins, passes half of its total.

    Args:
      pmf: at least 0.
      edges: one more than bins.
    """
    return jax.grad(lambda p: jnp.sum(jax.vmap(_median, (0, None))(p, edges)))(pmf)


def library_spectra(
    workdir: Path | None, preprocessing: Preprocessing, templates: Templates | None
) -> LibrarySpectra | None:
    """The prepared library of a working folder, or else the templates of velocities; None where there is neither."""
    if workdir is None:
        return _of_templates(preprocessing, templates)
    spreads = preprocessing.spreads[1]
    middle = spreads.index(sorted(spreads)[len(spreads) // 2])
    flux, valid, labels = {}, {}, None
    try:
        for arm in preprocessing.arms:
            part = load_library(workdir, preprocessing, arm, interpolate=False)
            log_flux = np.asarray(part.log_flux[middle])
            flux[arm] = np.exp(
                log_flux - log_flux.max(axis=1, keepdims=True, where=part.valid, initial=-np.inf)
            )
            valid[arm], labels = np.asarray(part.valid), np.asarray(part.labels)
        return LibrarySpectra(flux, valid, labels)
    except FileNotFoundError:
        return _of_templates(preprocessing, templates)


def _of_templates(preprocessing: Preprocessing, templates: Templates | None) -> LibrarySpectra | None:
    """Templates of velocities as a library, where they are on the grids of the arms and have the labels."""
    if templates is None or set(templates.wave) != set(preprocessing.arms):
        return None
    same = all(
        np.array_equal(templates.wave[arm], preprocessing.wave(arm)) for arm in preprocessing.arms
    ) and templates.labels.shape[1] == len(preprocessing.labels)
    if not same:
        return None
    flux = {arm: np.asarray(f + 1.0, np.float32) for arm, f in templates.flux.items()}
    return LibrarySpectra(flux, templates.valid, templates.labels)


def _best_library(
    runner: Runner,
    library: LibrarySpectra,
    normal: Mapping[str, np.ndarray],
    good: Mapping[str, np.ndarray],
    labels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """`chosen`, `rms` of an `Explanation`, and arm -> float32[S, N] of the library spectra."""
    count, size = len(labels), len(library.labels)
    scale = np.ptp(library.labels, axis=0)
    apart = (labels[:, None] - library.labels[None]) / np.where(scale > 0, scale, 1.0)
    distance = np.sqrt(np.sum(apart**2, axis=-1))
    near = np.argsort(np.where(np.isfinite(distance), distance, np.inf), axis=1)[:, : min(CANDIDATES, size)]
    known = np.isfinite(distance).any(axis=1)
    rows, place = np.unique(near[known], return_inverse=True)
    chosen, rms = np.full(count, -1), np.full(count, np.nan)
    out = {arm: np.full(x.shape, np.nan, np.float32) for arm, x in normal.items()}
    if not rows.size:
        return chosen, rms, out
    every = {}
    for arm in normal:
        mask = np.broadcast_to(library.valid[arm], (rows.size, library.valid[arm].size))
        flux = np.where(mask, library.flux[arm][rows], 0.0).astype(np.float32)
        snr = np.full(rows.size, np.nan)
        every[arm] = runner.normalize_arm(arm, ArmInputs(flux, np.array(mask), snr)).flux
    place = place.reshape(near[known].shape)
    for star, places in zip(np.flatnonzero(known), place, strict=True):
        total, pixels = np.zeros(places.size), 0
        for arm, spectra in every.items():
            both = good[arm][star] & library.valid[arm]
            total += np.sum((spectra[places][:, both] - normal[arm][star, both]) ** 2, axis=1)
            pixels += both.sum()
        if not pixels:
            continue
        best = int(np.argmin(total))
        chosen[star], rms[star] = rows[places[best]], np.sqrt(total[best] / pixels)
        for arm, spectra in every.items():
            if good[arm][star].any():
                out[arm][star] = np.where(library.valid[arm], spectra[places[best]], np.nan)
    return chosen, rms, out


def _continuum(flux: np.ndarray, normal: np.ndarray, good: np.ndarray) -> np.ndarray:
    """float[S, N]: what the flux was divided by, straight lines over pixels where that cannot be seen."""
    out = np.full(flux.shape, np.nan)
    pixels = np.arange(flux.shape[1])
    for i, seen in enumerate(good & (np.abs(normal) > TRUSTED)):
        if seen.any():
            out[i] = np.interp(pixels, pixels[seen], flux[i, seen] / normal[i, seen])
    return out


def _median(pmf: Float[Array, " bins"], edges: Float[Array, " edges"]) -> Float[Array, ""]:
    total = jnp.cumsum(pmf)
    half = total[-1] / 2
    k: Int[Array, ""] = jnp.argmax(total >= half)
    before = total[k] - pmf[k]
    return edges[k] + (half - before) / pmf[k] * (edges[k + 1] - edges[k])


@functools.partial(jax.jit, static_argnames=("model",))
def _member_gradient(
    variables: Any,
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    pull: Float[Array, "labels stars bins"],
    *,
    model: ResNet1D,
) -> Float[Array, "labels stars pixels"]:
    """Of one network: for each label, the gradient of Σ pull·PMF of that label's head."""

    def pmf(f: Float[Array, "stars pixels"]) -> Float[Array, "labels stars bins"]:
        return jax.nn.softmax(model.apply(variables, f, valid, train=False, running=True).logits)

    _, back = jax.vjp(pmf, flux)
    own = jnp.eye(pull.shape[0])[:, :, None, None] * pull[None]
    return jax.lax.map(lambda p: back(p)[0], own)
