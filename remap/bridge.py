"""The stages of the autoencoder route: a bridge from library to survey that needs no labelled star.

    train_autoencoders   every member of the ensemble learns the library's spectra
    adapt                each is fine-tuned on the survey's spectra, without labels
    regress              networks learn the labels from the library's latent features

Each takes a config and a working folder in which `preprocess.preprocess` has run, and resumes what was interrupted.
`ensemble.estimate` then applies the regressors to the survey's latent features. DESIGN §8, Mas-Buitrago et al. 2024.
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

from remap.autoencoder import (
    AdaptBatch,
    AdaptTerms,
    Autoencoder,
    AutoencoderLoss,
    AutoencoderTerms,
    Pixels,
    adapt_loss,
    adapt_rules,
    autoencoder_loss,
    init_params,
)
from remap.members import (
    ADAPT,
    AUTOENCODER,
    MATCHED,
    TRAIN,
    TUNE,
    Member,
    Source,
    build_autoencoder,
    encode,
    held_pool,
    load_members,
    loss_settings,
    member_folder,
    member_meta,
    member_settings,
    noise_settings,
    open_source,
    open_window,
    stage_key,
    training_pool,
)
from remap.network.discrepancy import AlignSettings, Scale, find_scale, squared_distances
from remap.network.resnet import count_parameters
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.folds import split_stars
from remap.sampling.sources import locate, stream_indices
from remap.store import checkpoint
from remap.store.stars import readable_stars
from remap.store.workdir import check_prepared, write_config
from remap.train.loop import FitSettings, fit_function, fit_settings
from remap.train.optim import make_optimizer, sgdr
from remap.window import Pool, Ranges, draw_pool, load_surveys, survey_pixels, take

logger = logging.getLogger(__name__)


def train_autoencoders(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains every member of `autoencoder.members` on library spectra; finished ones are left as they are."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    todo = []
    for i in range(len(config.autoencoder.members)):
        meta = member_meta(config, preprocessing, AUTOENCODER, i)
        if not checkpoint.is_finished(member_folder(workdir, AUTOENCODER, i), meta):
            todo.append((i, meta))
    if todo:
        source = open_source(config, workdir, preprocessing)
        pool, held = training_pool(config, source).pixels, held_pool(config, source).pixels
    for i, meta in todo:
        folder = member_folder(workdir, AUTOENCODER, i)
        settings = fit_settings(config.autoencoder, max(1, len(pool.flux) // config.autoencoder.batch_size))
        params = fit_autoencoder(
            config,
            pool,
            held,
            **member_settings(config, i),
            settings=settings,
            key=stage_key(config, TRAIN, i),
            folder=folder,
            meta=meta,
            name=f"autoencoder {i}",
        )
        total = settings.epochs * settings.steps_per_epoch
        checkpoint.save_final(folder / "final", {"params": params}, meta | {"step": total})
    write_config(workdir, config)


def fit_autoencoder(
    config: ml_collections.ConfigDict,
    pool: Pixels,
    held: Pixels,
    *,
    width: int,
    l1: float,
    rate: float,
    settings: FitSettings,
    key: Array,
    folder: Path,
    meta: dict[str, Any],
    name: str,
) -> Any:
    """Trains one autoencoder on fixed library spectra; returns its parameters, averaged over the ends of cycles."""
    section = config.autoencoder
    model = build_autoencoder(config, width, pool.flux.shape[1])
    init_key, fit_key = jax.random.split(key)
    params = init_params(model, init_key)
    schedule = sgdr(
        peak=rate,
        end=rate * section.rate_fall,
        cycles=settings.cycles,
        steps_per_cycle=settings.steps_per_cycle,
    )
    loss = loss_settings(config, l1)
    logger.info(
        "%s: width %d, %d parameters, %d steps of %d spectra per epoch",
        name,
        width,
        count_parameters(params),
        settings.steps_per_epoch,
        section.batch_size,
    )
    return fit_function(
        lambda params, batch: autoencoder_loss(model, params, batch, loss),
        params,
        make_optimizer(params, ((".*", 1.0),), schedule, clip_norm=section.clip_norm),
        lambda key, step, data: take(data, stream_indices(key, step, data.flux.shape[0], section.batch_size)),
        pool,
        held,
        terms=AutoencoderTerms,
        settings=settings,
        key=fit_key,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=name,
    )


class Sky(NamedTuple):
    """The survey's spectra as the autoencoders take them, in the order of `stars.readable_stars`."""

    pixels: Pixels  # of all S rows
    usable: np.ndarray  # bool[S], every arm is covered well enough
    held: np.ndarray  # bool[S], kept aside from the fine-tuning, by star
    coverage: np.ndarray  # float[A, S], valid fraction of each arm
    snr: np.ndarray  # float[A, S]


def open_sky(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> Sky:
    """The survey of a working folder. Its labels are not looked at.

    Raises:
      ValueError: no spectrum covers every arm, or the split leaves none to train on.
    """
    stars = readable_stars(workdir)
    surveys, snr = load_surveys(workdir, preprocessing)
    good = np.all(
        [usable(s.flux, s.valid, min_coverage=config.predict.min_coverage) for s in surveys], axis=0
    )
    ids = np.asarray(stars["star_id"])
    split = split_stars(
        ids, folds=2, fold=-1, validation=config.adapt.validation, seed=config.seed
    )  # fold -1: no test stars
    held = split == "val"
    if not (good & ~held).any():
        raise ValueError(
            f"adapt: expected survey spectra to train on, found {np.count_nonzero(good)} of {len(good)} that "
            f"cover every arm, all kept aside"
        )
    pixels = survey_pixels(open_window(config, preprocessing), surveys)
    return Sky(pixels, good, held, np.stack([s.valid.mean(axis=1) for s in surveys]), snr)


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
