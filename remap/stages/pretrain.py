"""The stage pretrain: one network per arm learns the library."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from remap.labels import label_prior
from remap.network.resnet import (
    ResNet1D,
    count_parameters,
    init_variables,
)
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import AugmentSettings, Batch, join, library_draw, paper_set_size
from remap.sampling.sources import Library, Stars
from remap.stages.common import PRIOR, Training, open_arm, train_network
from remap.store import checkpoint
from remap.store.workdir import (
    check_prepared,
    load_library,
    stage_folder,
    write_config,
)
from remap.train.embeddings import EmbeddingSettings, embedding_recorder, fixed_spectra
from remap.train.keys import PRETRAIN, stage_key
from remap.train.loop import BatchFn, OnEpoch, run_keys

logger = logging.getLogger(__name__)


def pretrain(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains one network per arm on the library; a finished arm is left as it is."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    for arm in preprocessing.arms:
        _pretrain_arm(config, workdir, preprocessing, arm)
    # Only now: prediction reads it, and it must be that of the networks in the folder.
    write_config(workdir, config)


class Pretraining(NamedTuple):
    """Where the pre-training of an arm starts, and what it draws from."""

    model: ResNet1D
    variables: dict
    batch_fn: BatchFn
    draw_fn: Callable[[jax.Array, jax.Array, Library], Stars]  # what batch_fn finishes
    library: Library  # with the cells that are trained on
    held_out: np.ndarray  # the other cells
    steps: int  # per epoch
    fit_key: jax.Array
    validation_key: jax.Array
    prior: jax.Array  # [L, K], PMFs of the labels

    def training(self, validation: Batch | None) -> Training:
        """The same as a training of all parameters at the rate of the schedule."""
        return Training(
            self.model,
            self.variables,
            ((".*", 1.0),),
            self.batch_fn,
            self.library,
            validation,
            self.steps,
            self.fit_key,
            self.prior,
        )


def pretraining(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> Pretraining:
    """Fresh network, batches and keys of one arm, as a function of config and prepared data alone."""
    arm = open_arm(config, preprocessing, name, "pretrain")
    section = config.pretrain
    augment = AugmentSettings(**config.augment)
    library = load_library(workdir, preprocessing, name, interpolate=config.library.interpolate)
    key = stage_key(config, name, PRETRAIN)
    init_key, split_key, fit_key, validation_key = jax.random.split(key, 4)
    # The library's "stars" are its cells (or nodes): held-out ones give no training spectrum.
    order = np.asarray(jax.random.permutation(split_key, len(library.cells)))
    held = round(section.validation * len(order))
    held_out, trained = library.cells[order[:held]], library.cells[order[held:]]
    library = jax.tree.map(jnp.asarray, library._replace(cells=trained))
    size = section.epoch_size or paper_set_size(library, augment)

    def draw_fn(key: jax.Array, step: jax.Array, data: Library) -> Stars:
        return library_draw(key, step, data, arm.wave, batch=section.batch_size, settings=augment)

    def batch_fn(key: jax.Array, step: jax.Array, data: Library) -> Batch:
        return arm.finish(draw_fn(key, step, data))

    return Pretraining(
        arm.model,
        init_variables(arm.model, init_key, len(arm.wave)),
        batch_fn,
        draw_fn,
        library,
        held_out,
        max(1, size // section.batch_size),
        fit_key,
        validation_key,
        label_prior([(1.0, arm.library_targets(jax.random.fold_in(fit_key, PRIOR), library))]),
    )


def held_out_batch(start: Pretraining, section: ml_collections.ConfigDict) -> Batch:
    """The fixed spectra of held-out cells that give the validation loss."""
    make, held = jax.jit(start.batch_fn), _held_library(start)
    count = max(1, section.validation_size // section.batch_size)
    parts = [make(start.validation_key, jnp.asarray(i, jnp.int32), held) for i in range(count)]
    return functools.reduce(join, parts)


def _pretrain_arm(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> None:
    folder = stage_folder(workdir, "pretrain", name)
    arm = open_arm(config, preprocessing, name, "pretrain")
    if checkpoint.is_finished(folder, arm.meta):
        return
    section = config.pretrain
    start = pretraining(config, workdir, preprocessing, name)
    logger.info(
        "pretrain %s: %d parameters, %d steps of %d spectra per epoch",
        name,
        count_parameters(start.variables["params"]),
        start.steps,
        section.batch_size,
    )
    training = start.training(held_out_batch(start, section) if len(start.held_out) else None)
    averaged = train_network(
        training,
        config,
        "pretrain",
        folder=folder,
        meta=arm.meta,
        name=f"pretrain {name}",
        on_epoch=_embedding_recorder(config, start, folder, f"pretrain {name}"),
    )
    total = section.cycles * section.epochs_per_cycle * start.steps
    # With the distribution of the labels, for `predict.combine`.
    averaged |= {"prior": start.prior}
    checkpoint.save_final(folder / "final", averaged, arm.meta | {"step": total})


def _held_library(start: Pretraining) -> Library:
    """The held-out cells, repeated to as many as are trained on, so that the same compiled programs serve."""
    return start.library._replace(cells=jnp.asarray(np.resize(start.held_out, start.library.cells.shape)))


def _embedding_recorder(
    config: ml_collections.ConfigDict, start: Pretraining, folder: Path, name: str
) -> OnEpoch | None:
    """Saves the embeddings of the first spectra that are trained on, and of held-out ones; None if not wanted."""
    settings = EmbeddingSettings(**config.embeddings)
    if not settings.epochs:
        return None
    last = config.pretrain.cycles * config.pretrain.epochs_per_cycle
    if beyond := [epoch for epoch in settings.epochs if epoch > last]:
        logger.warning("%s: no embeddings after the epochs %s, the run has %d", name, beyond, last)
    sources = {"train": (run_keys(start.fit_key).batches, start.library)}
    if len(start.held_out):
        sources["val"] = (start.validation_key, _held_library(start))
    spectra = {
        part: fixed_spectra(start.batch_fn, start.draw_fn, key, library, settings.size)
        for part, (key, library) in sources.items()
    }
    return embedding_recorder(start.model, spectra, folder, settings.epochs)
