"""First stage of the autoencoder route: every member of the ensemble learns the library's spectra."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jaxtyping import Array

from remap.autoencoder.inputs import take
from remap.autoencoder.members import (
    AUTOENCODER,
    TRAIN,
    build_autoencoder,
    loss_settings,
    member_folder,
    member_meta,
    member_settings,
    stage_key,
)
from remap.autoencoder.network import (
    AutoencoderTerms,
    Pixels,
    autoencoder_loss,
    init_params,
)
from remap.autoencoder.sources import (
    held_pool,
    open_source,
    training_pool,
)
from remap.network.resnet import count_parameters
from remap.sampling.sources import stream_indices
from remap.store import checkpoint
from remap.store.workdir import check_prepared, write_config
from remap.train.loop import FitSettings, fit_function, fit_settings
from remap.train.optim import make_optimizer, sgdr

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
