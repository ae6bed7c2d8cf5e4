"""The stage align, between pretrain and finetune: the features of library and survey pulled together without labels.

Each arm's pre-trained network goes on learning the library while a second term holds its pooled features of observed
spectra close to those of library spectra (`align.kind`):

    mmd, coral    their discrepancy (`remap.network.discrepancy`; Long et al. 2015, arXiv:1502.02791;
                  Sun & Saenko 2016)
    autoencoder   the error of a decoder that makes both kinds of spectra from them (Ghifary et al. 2016,
                  arXiv:1607.03516), the main route's counterpart of `remap.autoencoder.network`

No label of an observed star is looked at, but all spectra are, the test stars of later folds too, unless
`align.validation` keeps them aside. Fine-tuning and prediction then start from here instead of `pretrain`. The
pre-trained batch statistics stay.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float

from remap.labels import label_prior
from remap.network.discrepancy import AlignSettings, Scale, discrepancy, find_scale
from remap.network.losses import LossSettings
from remap.network.resnet import Outputs, ResNet1D, mish
from remap.pmf.distributions import pmf_quantile
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.augment import AugmentSettings, Batch, join, library_draw, take
from remap.sampling.folds import split_stars
from remap.sampling.sources import Library, locate, matched_cells, stream_indices
from remap.stages.common import PRIOR, Arm, check_network, check_sections, check_single, open_arm
from remap.stages.pretrain import Pretraining, held_out_batch, pretraining
from remap.store import checkpoint
from remap.store.stars import readable_stars
from remap.store.workdir import check_prepared, check_preprocessing, load_survey, stage_folder, write_config
from remap.train.keys import ALIGN, stage_key
from remap.train.loop import batch_loss, fit_function, fit_settings
from remap.train.optim import make_optimizer, sgdr

logger = logging.getLogger(__name__)


class Observed(NamedTuple):
    """Normalised observed spectra."""

    flux: Float[Array, "stars pixels"]
    valid: Bool[Array, "stars pixels"]


class AlignBatch(NamedTuple):
    """What a step sees."""

    library: (
        Batch  # first half: of the whole library; second: library spectra that the stars are compared with
    )
    stars: Observed


class AlignTerms(NamedTuple):
    """Parts of the loss of the stage."""

    total: Float[Array, ""]
    labels: Float[Array, ""]  # the loss of pre-training, over all library spectra
    alignment: Float[Array, ""]  # before its weight


class Decoder(nn.Module):
    """Depth below the continuum from the features: dense, Mish, dense."""

    hidden: int
    pixels: int

    @nn.compact
    def __call__(self, features: Float[Array, "stars features"]) -> Float[Array, "stars pixels"]:
        return nn.Dense(self.pixels)(mish(nn.Dense(self.hidden)(features)))


def align(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Aligns the pre-trained network of each arm; a finished arm is left as it is, and so are all for "none"."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    if config.align.kind == "none":
        logger.info("align: nothing to do, align.kind is 'none'")
        return
    for arm in preprocessing.arms:
        _align_arm(config, workdir, preprocessing, arm)
    write_config(workdir, config)


def held_stars(config: ml_collections.ConfigDict, workdir: Path) -> np.ndarray:
    """bool[S]: spectra that have no part in the alignment, by star (`align.validation`)."""
    ids = np.asarray(readable_stars(workdir)["star_id"])
    split = split_stars(
        ids, folds=2, fold=-1, validation=config.align.validation, seed=config.seed
    )  # fold -1: no test stars
    return split == "val"


def _align_arm(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> None:
    section = config.align
    settings = AlignSettings(section.kind, section.weight, section.match)
    folder = stage_folder(workdir, "align", name)
    arm = open_arm(config, preprocessing, name, "align")
    meta = arm.meta | {"min_coverage": config.predict.min_coverage}
    if checkpoint.is_finished(folder, meta):
        return
    start = stage_folder(workdir, "pretrain", name) / "final"
    variables, found = checkpoint.load_final(start)
    variables.pop("prior", None)
    check_preprocessing(found["preprocessing"], preprocessing.to_json(), str(start))
    check_network(found, arm, str(start))
    check_single(found, str(start))
    check_sections(found, config, ("seed", "pretrain"), f"{start}: trained with other settings")
    variables = jax.tree.map(jnp.asarray, variables)

    pre = pretraining(config, workdir, preprocessing, name)
    stars, aside = _survey_parts(config, workdir, arm)
    matched = pre.library
    if settings.match:
        cell, _ = locate(pre.library, _estimates(arm, preprocessing, variables, stars, section.chunk))
        matched = jax.tree.map(jnp.asarray, matched_cells(pre.library, cell))
        logger.info(
            "align %s: library spectra from the cells of %d of %d", name, len(matched.cells), len(cell)
        )
    augment = AugmentSettings(**config.augment)
    size = section.batch_size

    def draw_batch(key: Array, step: Array, data: tuple[Library, Library]) -> Batch:
        draws = [
            library_draw(k, step, library, arm.wave, batch=size, settings=augment)
            for k, library in zip(jax.random.split(key), data, strict=True)
        ]
        return arm.finish(jax.tree.map(lambda *x: jnp.concatenate(x), *draws))  # the normaliser compiles once

    def batch_fn(key: Array, step: Array, data: tuple[Library, Library, Observed]) -> AlignBatch:
        library_key, star_key = jax.random.split(key)
        observed = data[2]
        index = stream_indices(star_key, step, observed.flux.shape[0], size)
        return AlignBatch(draw_batch(library_key, step, data[:2]), jax.tree.map(lambda a: a[index], observed))

    scale_key, decoder_key, fit_key = jax.random.split(stage_key(config, name, ALIGN), 3)
    data = (pre.library, matched, stars)
    make = jax.jit(batch_fn)
    seen_first = [make(scale_key, jnp.asarray(i, jnp.int32), data) for i in range(section.scale_batches)]
    run = jax.jit(lambda batch: network_outputs(arm.model, variables, batch.library)[1][size:])
    features = np.concatenate([np.asarray(run(batch)) for batch in seen_first])
    scale = find_scale(features, floor=section.floor)
    params: dict[str, Any] = {"network": variables["params"]}
    decoder = None
    if settings.kind == "autoencoder":
        decoder = Decoder(section.decoder, stars.flux.shape[1])
        params["decoder"] = decoder.init(decoder_key, jnp.asarray(features[:1]))["params"]
    steps = pre.steps
    schedule = sgdr(
        peak=section.rate_high,
        end=section.rate_low,
        cycles=section.cycles,
        steps_per_cycle=section.epochs_per_cycle * steps,
    )
    aligned = fit_function(
        functools.partial(
            align_loss,
            arm.model,
            variables["batch_stats"],
            decoder,
            LossSettings(**config.loss),
            settings,
            scale,
        ),
        params,
        make_optimizer(params, ((".*", 1.0),), schedule, clip_norm=section.clip_norm),
        batch_fn,
        data,
        None if aside is None else _validation(pre, config, seen_first, aside),
        terms=AlignTerms,
        settings=fit_settings(section, steps),
        key=fit_key,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=f"align {name}",
    )
    # With the distribution of the labels, for `predict.combine`.
    prior_key = jax.random.fold_in(fit_key, PRIOR)
    drawn = [(1.0, arm.library_targets(prior_key, library)) for library in data[:2]]
    out = {"params": aligned["network"], "batch_stats": variables["batch_stats"], "prior": label_prior(drawn)}
    total = section.cycles * section.epochs_per_cycle * steps
    checkpoint.save_final(folder / "final", out, meta | {"step": total})


def network_outputs(model: ResNet1D, variables: Any, batch: Batch | Observed) -> tuple[Outputs, Array]:
    """The outputs of a network with its running statistics, and the pooled features [S, F] that its heads see."""
    outputs, kept = model.apply(
        variables, batch.flux, batch.valid, train=False, running=True, mutable=["intermediates"]
    )
    return outputs, kept["intermediates"]["features"][0]


def align_loss(
    model: ResNet1D,
    batch_stats: Any,
    decoder: Decoder | None,
    loss: LossSettings,
    settings: AlignSettings,
    scale: Scale,
    params: Any,
    batch: AlignBatch,
) -> AlignTerms:
    """The loss of pre-training on library spectra + weight · how far apart stars and library are.

    Args:
      decoder: of kind "autoencoder", whose error is in units of the variance of the batch's depths; else None.
      params: {"network": ..., "decoder": ...}, the second with a decoder only.
    """
    variables = {"params": params["network"], "batch_stats": batch_stats}
    outputs, library = network_outputs(model, variables, batch.library)
    labels = batch_loss(outputs, batch.library, loss).total
    _, stars = network_outputs(model, variables, batch.stars)
    matched = library[library.shape[0] // 2 :]
    if decoder is None:
        apart = discrepancy(matched, stars, scale, kind=settings.kind)
    else:
        half = Observed(*(x[len(x) // 2 :] for x in batch.library[:2]))
        features = scale(jnp.concatenate([matched, stars]))
        seen = jax.tree.map(lambda *x: jnp.concatenate(x), half, batch.stars)
        depth = jnp.where(seen.valid, seen.flux - 1.0, 0.0)
        error = jnp.where(seen.valid, decoder.apply({"params": params["decoder"]}, features) - depth, 0.0)
        apart = jnp.mean(error**2) / jnp.maximum(jnp.var(depth), 1e-12)
    return AlignTerms(labels + settings.weight * apart, labels, apart)


def _survey_parts(
    config: ml_collections.ConfigDict, workdir: Path, arm: Arm
) -> tuple[Observed, Observed | None]:
    """The survey's normalised spectra: up to `align.stars` to align with, and up to half as many kept aside.

    Raises:
      ValueError: fewer than two are left to align with.
    """
    survey, _ = load_survey(workdir, arm.name)
    seen = usable(survey.flux, survey.valid, min_coverage=config.predict.min_coverage)
    held = held_stars(config, workdir)
    order = np.asarray(jax.random.permutation(stage_key(config, arm.name, ALIGN, 0), len(seen)))
    chosen = order[(seen & ~held)[order]][: config.align.stars]
    kept = order[(seen & held)[order]][: config.align.stars // 2]
    if len(chosen) < 2:
        raise ValueError(f"align, arm {arm.name}: expected spectra to align with, found {len(chosen)}")
    normalize = jax.jit(arm.normalize)

    def observed(rows: np.ndarray) -> Observed:
        flux, valid = survey.flux[rows], survey.valid[rows]
        run = lambda x: Observed(normalize(jnp.asarray(x[0]), jnp.asarray(x[1])), jnp.asarray(x[1]))  # noqa: E731
        return in_chunks(run, (flux, valid), config.align.chunk)

    return observed(chosen), observed(kept) if len(kept) else None


def _estimates(
    arm: Arm, preprocessing: Preprocessing, variables: Any, stars: Observed, chunk: int
) -> np.ndarray:
    """float[S, L]: medians of the PMFs that a network gives the stars."""
    run = jax.jit(
        lambda x: jax.nn.softmax(arm.model.apply(variables, *x, train=False, running=True).logits).swapaxes(
            0, 1
        )
    )
    pmf = np.asarray(in_chunks(run, tuple(stars), chunk)).swapaxes(0, 1)
    return np.stack(
        [pmf_quantile(pmf[j][:, : b.bins], b.edges, 0.5) for j, b in enumerate(preprocessing.labels)], axis=1
    )


def in_chunks(run: Callable[[Any], Any], rows: Any, chunk: int) -> Any:
    """`run` over arrays with a common leading axis, `chunk` rows at a time and all in one shape."""
    count = len(jax.tree.leaves(rows)[0])
    parts = []
    for i in range(0, count, chunk):
        index = np.minimum(np.arange(i, i + chunk), count - 1)
        parts.append(run(jax.tree.map(lambda a, index=index: a[index], rows)))
    return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *parts)


def _validation(
    pre: Pretraining, config: ml_collections.ConfigDict, batches: Sequence[AlignBatch], aside: Observed
) -> AlignBatch:
    """Stars kept aside, as many library spectra of their cells, and as many of held-out cells (of any without)."""
    seen = functools.reduce(join, (batch.library for batch in batches))
    count = len(aside.flux)
    size = batches[0].library.flux.shape[0]
    matched = np.flatnonzero(np.arange(len(seen.flux)) % size >= size // 2)
    held = held_out_batch(pre, config.pretrain) if len(pre.held_out) else seen
    index = jnp.arange(count)
    return AlignBatch(
        join(take(held, index % len(held.flux)), take(seen, jnp.asarray(np.resize(matched, count)))), aside
    )
