"""The stage pretrain: one network per arm learns the library."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from remap.config import ConfigError, record
from remap.labels import label_prior
from remap.network.resnet import count_parameters, init_variables
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import Batch, join, paper_set_size
from remap.sampling.batches import FinishedSource, LibrarySource
from remap.sampling.mixture import library_weights
from remap.sampling.sources import Library, cell_origin, split_cells, with_cells
from remap.stages.common import (
    Arm,
    Training,
    chosen_arms,
    finish_stage,
    library_files,
    open_arm,
    train_network,
)
from remap.stages.nuisances import library_nuisances
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.workdir import check_prepared, load_library, stage_folder
from remap.train.embeddings import EmbeddingSettings, embedding_recorder, fixed_spectra
from remap.train.keys import root_key
from remap.train.loop import FitSettings, OnEpoch, draw_batch, run_keys
from remap.train.objectives import NetworkObjective

logger = logging.getLogger(__name__)


def pretrain(
    config: ml_collections.ConfigDict, workdir: str | Path, *, arms: Sequence[str] | None = None
) -> None:
    """Trains one network per arm on the library; a finished arm is left as it is.

    Args:
      arms: those to train; None = all. Runs with different arms may share a working folder at the same time: random
        numbers depend on the arm alone. The stage is finished once all its networks are, and the settings are
        recorded by the run that finishes it.

    Raises:
      ConfigError: an arm is none of the prepared ones, or has a network of other settings.
    """
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    embeddings = record(EmbeddingSettings, config.embeddings, "embeddings")
    chosen = chosen_arms(preprocessing, arms)
    for name in preprocessing.arms:
        folder = stage_folder(workdir, "pretrain", name)
        # Of the other arms, too: networks of other settings do not belong beside those of this run.
        if checkpoint.is_finished(folder, open_arm(config, preprocessing, name, "pretrain").meta):
            check_inputs(folder, workdir)
            continue
        if name not in chosen:
            continue
        with hold(folder):
            start = pretraining(config, workdir, preprocessing, name)
            save_inputs(folder, workdir, library_files(config, workdir, name))
            _pretrain_arm(start, embeddings, folder)
    finish_stage(config, workdir, [stage_folder(workdir, "pretrain", name) for name in preprocessing.arms])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(FitSettings):
    """Of this stage (config section `pretrain`).

    Attributes:
      batch_size: spectra in a batch.
      epoch_size: spectra in an epoch; 0 = as many as the paper's fixed set has (`augment.paper_set_size`).
      validation: fraction of the library's cells (or nodes) that are held out for the validation loss.
      validation_size: spectra in the fixed validation batch.
    """

    batch_size: int = 128
    epoch_size: int = 110000
    validation: float = 0.05
    validation_size: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1 or self.epoch_size < 0:
            raise ConfigError(
                f"expected batch_size >= 1 and epoch_size >= 0, found {self.batch_size} and {self.epoch_size}"
            )
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation: expected a fraction below 1, found {self.validation}")


class Pretraining(NamedTuple):
    """Where the pre-training of an arm starts, and what it draws from."""

    arm: Arm
    settings: PretrainSettings
    variables: dict
    source: FinishedSource  # of the cells that are trained on
    held_out: np.ndarray  # the other cells
    steps: int  # per epoch
    fit_key: jax.Array
    validation_key: jax.Array
    prior: jax.Array  # [L, K], PMFs of the labels

    @property
    def library(self) -> Library:
        """The library with the cells that are trained on."""
        return self.source.spectra.library

    def drawing_from(self, cells: np.ndarray) -> FinishedSource:
        """The source of other cells of the same library."""
        library = jax.tree.map(jnp.asarray, with_cells(self.library, np.asarray(cells)))
        return dataclasses.replace(
            self.source, spectra=dataclasses.replace(self.source.spectra, library=library)
        )

    def training(self, validation: Batch | None) -> Training:
        """The same as a training of all parameters at the rate of the schedule."""
        return Training(
            NetworkObjective(self.arm.model, self.arm.loss),
            self.variables,
            ((".*", 1.0),),
            self.source,
            validation,
            self.settings,
            self.steps,
            self.fit_key,
            self.prior,
        )


def pretraining(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> Pretraining:
    """Fresh network, batches and keys of one arm, as a function of config and prepared data alone."""
    arm = open_arm(config, preprocessing, name, "pretrain")
    settings = record(PretrainSettings, config.pretrain, "pretrain")
    library = load_library(
        workdir,
        preprocessing,
        name,
        interpolate=config.library.interpolate,
        weights=library_weights(config),
    )
    key = root_key(config.seed, "pretrain", name)
    init_key, split_key, fit_key, validation_key = jax.random.split(key, 4)
    # The library's "stars" are its cells (or nodes): held-out ones give no training spectrum.
    order = np.asarray(jax.random.permutation(split_key, len(library.cells)))
    aside, rest = split_cells(cell_origin(library), order, settings.validation)
    held_out = library.cells[aside]
    nuisances = library_nuisances(arm.augment, library, workdir, preprocessing, name, arm.normalize)
    library = jax.tree.map(jnp.asarray, with_cells(library, library.cells[rest]))
    size = settings.epoch_size or paper_set_size(library, arm.augment)
    return Pretraining(
        arm,
        settings,
        init_variables(arm.model, init_key, len(arm.wave)),
        arm.finished(LibrarySource(library, arm.wave, settings.batch_size, arm.augment, nuisances)),
        held_out,
        max(1, size // settings.batch_size),
        fit_key,
        validation_key,
        label_prior([(1.0, arm.library_targets(fit_key, library))]),
    )


def held_out_batch(start: Pretraining) -> Batch:
    """The fixed spectra of held-out cells that give the validation loss."""
    held = _held_source(start)
    count = max(1, start.settings.validation_size // start.settings.batch_size)
    parts = [draw_batch(held, start.validation_key, jnp.asarray(i, jnp.int32)) for i in range(count)]
    return functools.reduce(join, parts)


def _pretrain_arm(start: Pretraining, embeddings: EmbeddingSettings, folder: Path) -> None:
    """Trains the network of an arm."""
    name, meta = f"pretrain {start.arm.name}", start.arm.meta
    logger.info(
        "%s: %d parameters, %d steps of %d spectra per epoch",
        name,
        count_parameters(start.variables["params"]),
        start.steps,
        start.settings.batch_size,
    )
    training = start.training(held_out_batch(start) if len(start.held_out) else None)
    averaged = train_network(
        training,
        folder=folder,
        meta=meta,
        name=name,
        on_epoch=_embedding_recorder(embeddings, start, folder, name),
    )
    # With the distribution of the labels, for `predict.combine`.
    averaged |= {"prior": start.prior}
    checkpoint.save_final(folder / "final", averaged, meta | {"step": training.total})


def _held_source(start: Pretraining) -> FinishedSource:
    """Of the held-out cells, repeated to as many as are trained on, so that the same compiled programs serve."""
    return start.drawing_from(np.resize(start.held_out, start.library.cells.shape))


def _embedding_recorder(
    settings: EmbeddingSettings, start: Pretraining, folder: Path, name: str
) -> OnEpoch | None:
    """Saves the embeddings of the first spectra that are trained on, and of held-out ones; None if not wanted."""
    if not settings.epochs:
        return None
    last = start.settings.epochs
    if beyond := [epoch for epoch in settings.epochs if epoch > last]:
        logger.warning("%s: no embeddings after the epochs %s, the run has %d", name, beyond, last)
    sources = {"train": (start.source, run_keys(start.fit_key).batches)}
    if len(start.held_out):
        sources["val"] = (_held_source(start), start.validation_key)
    spectra = {part: fixed_spectra(source, key, settings.size) for part, (source, key) in sources.items()}
    return embedding_recorder(start.arm.model, spectra, folder, settings.epochs)
