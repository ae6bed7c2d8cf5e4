"""First stage of the autoencoder route: every member of the ensemble learns the library's spectra."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections

from remap.autoencoder.members import (
    AUTOENCODER,
    build_autoencoder,
    fit_settings,
    loss_settings,
    member_folder,
    member_meta,
    member_settings,
)
from remap.autoencoder.network import AutoencoderObjective, Pixels, init_params
from remap.autoencoder.sources import held_pool, open_source, training_pool
from remap.network.resnet import count_parameters
from remap.sampling.batches import fixed_rows
from remap.store import checkpoint
from remap.store.workdir import check_prepared, write_config
from remap.train.keys import root_key
from remap.train.loop import Run, fit
from remap.train.objectives import Task

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
        own = member_settings(config, i)
        run = Run(
            fit_settings(config.autoencoder, "autoencoder", own["rate"]),
            max(1, len(pool.flux) // config.autoencoder.batch_size),
            root_key(config.seed, "autoencoder", "member", i),
            folder,
            meta,
            f"autoencoder {i}",
        )
        params = fit_autoencoder(config, pool, held, run, width=own["width"], l1=own["l1"])
        checkpoint.save_final(folder / "final", {"params": params}, meta | {"step": run.total})
    write_config(workdir, config)


def fit_autoencoder(
    config: ml_collections.ConfigDict, pool: Pixels, held: Pixels, run: Run, *, width: int, l1: float
) -> Any:
    """Trains one autoencoder on fixed library spectra; returns its parameters, averaged over the ends of cycles.

    Args:
      run: its key is split: one half draws the first parameters.
    """
    model = build_autoencoder(config, width, pool.flux.shape[1])
    init_key, fit_key = jax.random.split(run.key)
    params = init_params(model, init_key)
    size = config.autoencoder.batch_size
    logger.info(
        "%s: width %d, %d parameters, %d steps of %d spectra per epoch",
        run.name,
        width,
        count_parameters(params),
        run.steps,
        size,
    )
    task = Task(
        AutoencoderObjective(model, loss_settings(config, l1)), params, (), fixed_rows(pool, size), held
    )
    return fit(task, run.optimizer(), dataclasses.replace(run, key=fit_key)).params
