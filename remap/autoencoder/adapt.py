"""Second stage of the autoencoder route: every autoencoder is fine-tuned on the survey's spectra, without labels.

The fine-tuned encoders bring the survey's spectra to the latent features that the regressors know (Mas-Buitrago et
al. 2024, A&A 687, A205).
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array

from remap.autoencoder.inputs import Pool, Ranges, draw_pool, take
from remap.autoencoder.members import (
    ADAPT,
    MATCHED,
    TUNE,
    Member,
    encode,
    load_members,
    loss_settings,
    member_folder,
    member_meta,
    member_settings,
    stage_key,
)
from remap.autoencoder.network import (
    AdaptBatch,
    AdaptTerms,
    Autoencoder,
    AutoencoderLoss,
    Pixels,
    adapt_loss,
    adapt_rules,
)
from remap.autoencoder.sources import (
    Source,
    noise_settings,
    open_sky,
    open_source,
    training_pool,
)
from remap.network.discrepancy import AlignSettings, Scale, find_scale, squared_distances
from remap.sampling.sources import locate, stream_indices
from remap.store import checkpoint
from remap.store.workdir import check_prepared, write_config
from remap.train.loop import fit_function, fit_settings
from remap.train.optim import make_optimizer, sgdr

logger = logging.getLogger(__name__)


def adapt(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Fine-tunes every autoencoder on the survey's spectra, without labels; `adapt.trains` says which part.

    With `adapt.align` the latent features of stars and of library spectra are pulled together, by the encoder that
    both go through from then on.
    """
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    members = load_members(config, workdir, "library")
    section = config.adapt
    align = AlignSettings(**section.align)
    if align.kind == "autoencoder":
        raise ValueError(
            "adapt.align.kind 'autoencoder' is this route itself; expected 'none', 'mmd' or 'coral'"
        )
    if align.kind != "none" and config.regressor.encoder != "adapted":
        raise ValueError(
            "adapt.align pulls features of one encoder together: expected regressor.encoder 'adapted', "
            f"found {config.regressor.encoder!r}"
        )
    metas = [member_meta(config, preprocessing, ADAPT, i) for i in range(len(members))]
    folders = [member_folder(workdir, ADAPT, i) for i in range(len(members))]
    todo = [i for i, meta in enumerate(metas) if not checkpoint.is_finished(folders[i], meta)]
    replayed = round(section.rehearsal * section.batch_size)
    observed = section.batch_size - replayed
    if observed < 1:
        raise ValueError(
            f"adapt.rehearsal {section.rehearsal} leaves no room for stars in a batch of {section.batch_size}"
        )
    if todo:
        sky = open_sky(config, workdir, preprocessing)
        stars = take(sky.pixels, jnp.flatnonzero(sky.usable & ~sky.held))
        aside = take(sky.pixels, jnp.flatnonzero(sky.usable & sky.held))
        pool = None
        if replayed or align.kind != "none":
            source = open_source(config, workdir, preprocessing)
            pool = training_pool(config, source)
        matched = None
        if align.kind != "none":
            matched = _matched_pool(config, source, members, pool, stars) if align.match else pool
        data = _AdaptData(stars, pool.pixels if replayed else None, matched and matched.pixels)
        count = stars.flux.shape[0]
        logger.info("adapt: %d spectra to train on, %d kept aside", count, aside.flux.shape[0])
        settings = fit_settings(section, max(1, round(count / observed)))

    def batch_fn(key: Array, step: Array, data: _AdaptData) -> AdaptBatch:
        keys = jax.random.split(key, 3)

        def draw(i: int, pixels: Pixels | None, size: int) -> Pixels | None:
            if pixels is None:
                return None
            return take(pixels, stream_indices(keys[i], step, pixels.flux.shape[0], size))

        return AdaptBatch(
            draw(0, data.stars, observed), draw(1, data.library, replayed), draw(2, data.matched, observed)
        )

    for i in todo:
        member = members[i]
        own = member_settings(config, i)
        schedule = sgdr(
            peak=own["rate"] * section.rate_factor,
            end=own["rate"] * section.rate_factor * section.rate_fall,
            cycles=section.cycles,
            steps_per_cycle=settings.steps_per_cycle,
        )
        loss = loss_settings(config, own["l1"])
        scale = None
        if align.kind != "none":
            chunk = config.autoencoder.chunk
            latent = encode([member], matched.pixels.flux[: section.align_size], chunk=chunk)[0]
            scale = find_scale(latent, floor=section.align_floor)
        params = fit_function(
            functools.partial(_adapt_objective, member.model, loss, align, scale),
            member.params,
            make_optimizer(member.params, adapt_rules(section.trains), schedule, clip_norm=section.clip_norm),
            batch_fn,
            data,
            _validation(aside, matched),
            terms=AdaptTerms,
            settings=settings,
            key=stage_key(config, TUNE, i),
            schedule=schedule,
            folder=folders[i],
            meta=metas[i],
            name=f"adapt {i}",
        )
        total = settings.epochs * settings.steps_per_epoch
        checkpoint.save_final(folders[i] / "final", {"params": params}, metas[i] | {"step": total})
    write_config(workdir, config)


def _validation(aside: Pixels, matched: Pool | None) -> AdaptBatch | None:
    """Stars kept aside, with as many library spectra to compare them with."""
    count = len(aside.flux)
    if not count:
        return None
    if matched is None:
        return AdaptBatch(aside, None, None)
    return AdaptBatch(aside, None, take(matched.pixels, jnp.arange(count) % len(matched.pixels.flux)))


class _AdaptData(NamedTuple):
    """What the fine-tuning draws from."""

    stars: Pixels
    library: Pixels | None
    matched: Pixels | None


def _adapt_objective(
    model: Autoencoder,
    loss: AutoencoderLoss,
    align: AlignSettings,
    scale: Scale | None,
    params: Any,
    batch: AdaptBatch,
) -> AdaptTerms:
    return adapt_loss(model, params, batch, loss, align, scale)


def _matched_pool(
    config: ml_collections.ConfigDict, source: Source, members: list[Member], pool: Pool, stars: Pixels
) -> Pool:
    """Library spectra from the cells of the stars, as far as the nearest library spectra can tell.

    A star's labels are the mean of those of the `adapt.neighbours` library spectra whose latent features, before the
    fine-tuning and of all autoencoders together, are the nearest.
    """
    if source.libraries[0].cells.shape[1] == 1:
        raise ValueError("adapt.align.match needs library.interpolate, found nodes without cells")
    chunk = config.autoencoder.chunk
    library, observed = (
        np.concatenate(list(encode(members, x, chunk=chunk)), axis=1) for x in (pool.pixels.flux, stars.flux)
    )
    std = np.where(library.std(axis=0) > 0, library.std(axis=0), 1.0)
    square = squared_distances(jnp.asarray(observed / std), jnp.asarray(library / std))
    _, nearest = jax.lax.top_k(-square, config.adapt.neighbours)
    labels = np.asarray(pool.labels)[np.asarray(nearest)].mean(axis=1)
    cell, _ = locate(source.libraries[0], labels.astype(float))
    place = {c: k for k, c in enumerate(source.cells.tolist())}
    rows = np.array([place[c] for c in cell.tolist() if c in place], int)
    if not len(rows):
        raise ValueError(f"adapt.align.match: none of {len(cell)} stars seems to lie inside the library")
    logger.info("adapt: library spectra from the cells of %d of %d stars", len(rows), len(cell))
    return draw_pool(
        stage_key(config, MATCHED),
        source.libraries,
        source.cells[rows],
        Ranges(*(r[rows] for r in source.ranges)),
        count=config.adapt.matched,
        chunk=chunk,
        window=source.window,
        noise=noise_settings(config),
    )
