"""What the training stages share.

Each stage takes a config and a working folder, reads what the one before it wrote, may be run again, and resumes
what was interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from remap.config import Section, config_to_json, deciding
from remap.continuum.common import NormalizeFn
from remap.labels import padded_edges, soft_labels
from remap.network.losses import LossSettings
from remap.network.resnet import (
    ResNet1D,
    build_model,
    model_settings,
)
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import Batch, finish
from remap.sampling.sources import Library, Stars, random_labels
from remap.store import checkpoint
from remap.train.loop import BatchFn, FitSettings, OnEpoch, fit
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

    def finish(self, draw: Stars) -> Batch:
        """The batch of a draw: normalised, with its targets."""
        return finish(draw, self.normalize, self.edges)

    def library_targets(self, key: jax.Array, library: Library) -> jax.Array:
        """Soft labels [L, S, K] of spectra as they are drawn from the library."""
        labels = random_labels(key, library, -(-PRIOR_SPECTRA // len(library.cells)))
        return soft_labels(labels, jnp.broadcast_to(library.sigma, labels.shape), self.edges)


# Of the labels in training: folded into the key, and the number of spectra by which it is found.
PRIOR, PRIOR_SPECTRA = 1 << 20, 4096


def open_arm(config: ml_collections.ConfigDict, preprocessing: Preprocessing, arm: str, stage: str) -> Arm:
    """What a stage needs of one arm, with the description that its networks are kept with."""
    aligned = stage == "finetune" and config.finetune.init == "pretrained" and start_stage(config) == "align"
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
            "config": deciding(config, stage, also=("align",) if aligned else ()),
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


def start_stage(config: Section) -> str:
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
