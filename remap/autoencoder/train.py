"""First stage of the autoencoder route: every member of the ensemble learns the library's spectra."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import ml_collections

from remap.autoencoder.members import AUTOENCODER, EnsembleSettings, fit_settings, member_folder, open_route
from remap.autoencoder.network import AutoencoderObjective, Pixels, init_params
from remap.autoencoder.sources import held_pool, read_source, training_pool
from remap.network.resnet import count_parameters
from remap.sampling.batches import fixed_rows
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.workdir import write_config
from remap.train.keys import root_key
from remap.train.loop import Run, fit
from remap.train.objectives import Task

logger = logging.getLogger(__name__)


def train_autoencoders(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains every member of `autoencoder.members` on library spectra; finished ones are left as they are."""
    route = open_route(config, Path(workdir))
    settings = route.autoencoder
    todo = []
    for i, meta in enumerate(route.member_metas[AUTOENCODER]):
        folder = member_folder(route.workdir, AUTOENCODER, i)
        if checkpoint.is_finished(folder, meta):
            check_inputs(folder, route.workdir)
        else:
            todo.append((i, folder, meta))
    if todo:
        source = read_source(route)
        pool, held = training_pool(route, source).pixels, held_pool(route, source).pixels
    for i, folder, meta in todo:
        own = settings.member(i)
        run = Run(
            fit_settings(settings, own["rate"], settings.rate_fall),
            max(1, len(pool.flux) // settings.batch_size),
            root_key(route.seed, "autoencoder", "member", i),
            folder,
            meta,
            f"autoencoder {i}",
        )
        with hold(folder):
            save_inputs(folder, route.workdir, route.files(survey=False))
        params = fit_autoencoder(settings, pool, held, run, width=own["width"], l1=own["l1"])
        checkpoint.save_final(folder / "final", {"params": params}, meta | {"step": run.total})
    write_config(route.workdir, config)


def fit_autoencoder(
    settings: EnsembleSettings, pool: Pixels, held: Pixels, run: Run, *, width: int, l1: float
) -> Any:
    """Trains one autoencoder on fixed library spectra; returns its parameters, averaged over the ends of cycles.

    Args:
      run: its key is split: one half draws the first parameters.
    """
    model = settings.model(width, pool.flux.shape[1])
    init_key, fit_key = jax.random.split(run.key)
    params = init_params(model, init_key)
    size = settings.batch_size
    logger.info(
        "%s: width %d, %d parameters, %d steps of %d spectra per epoch",
        run.name,
        width,
        count_parameters(params),
        run.steps,
        size,
    )
    objective = AutoencoderObjective(model, settings.loss(l1))
    task = Task(objective, params, (), fixed_rows(pool, size), held)
    return fit(task, run.optimizer(), dataclasses.replace(run, key=fit_key)).params
