"""What the training stages share, and the first of them: pretrain. `remap.tuning` has finetune.

Each takes a config and a working folder, reads what the one before it wrote, may be run again, and resumes
what was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from remap.config import NETWORK_SECTIONS, config_to_json
from remap.continuum.common import NormalizeFn
from remap.labels import label_prior, padded_edges, soft_labels
from remap.network.losses import LossSettings
from remap.network.resnet import (
    ResNet1D,
    build_model,
    count_parameters,
    init_variables,
    model_settings,
)
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import AugmentSettings, Batch, finish, join, library_draw, paper_set_size
from remap.sampling.sources import Draw, Library, random_labels
from remap.store import checkpoint
from remap.store.workdir import (
    check_prepared,
    load_library,
    stage_folder,
    write_config,
)
from remap.train.embeddings import EmbeddingSettings, fixed_spectra, make_recorder
from remap.train.keys import PRETRAIN, stage_key
from remap.train.loop import BatchFn, FitSettings, OnEpoch, fit, run_keys
from remap.train.optim import Rule, make_optimizer, sgdr

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What both training stages need of one arm."""

    name: str
    model: ResNet1D
    normalize: NormalizeFn
    edges: jnp.ndarray  # [L, K + 1]
    wave: jnp.ndarray  # [N], Å
    meta: dict[str, Any]

    def finish(self, draw: Draw) -> Batch:
        return finish(draw, self.normalize, self.edges)

    def library_targets(self, key: jax.Array, library: Library) -> jax.Array:
        """Soft labels [L, S, K] of spectra as they are drawn from the library."""
        labels = random_labels(key, library, -(-PRIOR_SPECTRA // len(library.cells)))
        return soft_labels(labels, jnp.broadcast_to(library.sigma, labels.shape), self.edges)


# Of the labels in training: folded into the key, and the number of spectra by which it is found.
PRIOR, PRIOR_SPECTRA = 1 << 20, 4096


def open_arm(config: ml_collections.ConfigDict, preprocessing: Preprocessing, arm: str, stage: str) -> Arm:
    """What a stage needs of one arm, with the description that its networks are kept with."""
    keep = [*NETWORK_SECTIONS, stage]
    if stage == "align":
        keep.append("pretrain")  # it draws from the library as that stage does
    if stage == "finetune" and config.finetune.init == "pretrained" and start_stage(config) == "align":
        keep.append("align")
    plain = config_to_json(config)
    return Arm(
        arm,
        build_model(config.model, preprocessing.labels),
        preprocessing.normalizer(arm),
        jnp.asarray(padded_edges(preprocessing.labels), jnp.float32),
        jnp.asarray(preprocessing.wave(arm), jnp.float32),
        {
            "arm": arm,
            "stage": stage,
            "preprocessing": preprocessing.to_json(),
            "config": {k: plain[k] for k in keep},
        },
    )


def _network_settings(section: ml_collections.ConfigDict, steps: int, *, freeze_stats: bool) -> FitSettings:
    return FitSettings(
        cycles=section.cycles,
        epochs_per_cycle=section.epochs_per_cycle,
        steps_per_epoch=steps,
        checkpoint_epochs=section.checkpoint_epochs,
        keep=section.keep,
        stats_batches=section.stats_batches,
        freeze_stats=freeze_stats,
        average=section.average,
    )


def start_stage(config: Mapping[str, Any]) -> str:
    """The stage that fine-tuning starts from: the last of those that no label of a star has a part in."""
    return "pretrain" if config["align"]["kind"] == "none" else "align"


def check_network(found: Mapping[str, Any], arm: Arm, where: str) -> None:
    """Raises ValueError if a network on disk is not that of the config's section `model`."""
    free = {"dropout", "batch_norm_momentum"}  # of training alone: another value may be fine-tuned with
    models = [
        checkpoint.plain({k: v for k, v in settings.items() if k not in free})
        for settings in (
            dataclasses.asdict(model_settings(meta["config"]["model"])) for meta in (found, arm.meta)
        )
    ]
    checkpoint.check_equal(*models, f"{where}: another network than that of config.model")


def check_single(found: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if what is on disk is an ensemble: training goes on from one network."""
    if found["config"]["pretrain"].get("average") == "snapshots":
        raise ValueError(f"{where}: expected one network to train on, found pretrain.average 'snapshots'")


def check_sections(
    found: Mapping[str, Any], config: ml_collections.ConfigDict, names: Sequence[str], where: str
) -> None:
    """Raises ValueError if config sections that a network was trained with are not those of `config`."""
    own = checkpoint.plain(config_to_json(config))
    for name in names:
        checkpoint.check_equal({name: found["config"][name]}, {name: own[name]}, where)


class Training(NamedTuple):
    """What the training of one network starts from, in either stage."""

    model: ResNet1D
    variables: dict
    rules: tuple[Rule, ...]  # factors on the rate of its layers
    batch_fn: BatchFn
    data: Any
    validation: Batch | None
    steps: int  # per epoch
    key: jax.Array
    prior: jax.Array  # [L, K], PMFs of the labels that it draws


def train_network(
    start: Training,
    config: ml_collections.ConfigDict,
    stage: str,
    *,
    folder: Path,
    meta: Mapping[str, Any],
    name: str,
    on_epoch: OnEpoch | None = None,
) -> dict:
    """Trains as the config's section `stage` says and resumes in `folder`: the averaged network, see `loop.fit`."""
    section = config[stage]
    schedule = sgdr(
        peak=section.rate_high,
        end=section.rate_low,
        cycles=section.cycles,
        steps_per_cycle=section.epochs_per_cycle * start.steps,
    )
    freeze_stats = stage == "finetune" and section.freeze_stats
    return fit(
        start.model,
        start.variables,
        make_optimizer(start.variables["params"], start.rules, schedule, clip_norm=section.clip_norm),
        start.batch_fn,
        start.data,
        start.validation,
        loss=LossSettings(**config.loss),
        settings=_network_settings(section, start.steps, freeze_stats=freeze_stats),
        key=start.key,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=name,
        on_epoch=on_epoch,
    )


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
    draw_fn: Callable[[jax.Array, jax.Array, Library], Draw]  # what batch_fn finishes
    library: Library  # with the cells that are trained on
    held_out: np.ndarray  # the other cells
    steps: int  # per epoch
    fit_key: jax.Array
    validation_key: jax.Array
    prior: jax.Array  # [L, K], PMFs of the labels

    def training(self, validation: Batch | None) -> Training:
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

    def draw_fn(key: jax.Array, step: jax.Array, data: Library) -> Draw:
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
    return make_recorder(start.model, spectra, folder, settings.epochs)
