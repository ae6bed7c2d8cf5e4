"""What the training stages share.

Each stage takes a config and a working folder, reads what the one before it wrote, may be run again, and resumes
what was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from remap.config import ConfigError, Section, deciding, record
from remap.continuum.common import NormalizeFn
from remap.labels import padded_edges, soft_labels
from remap.network.losses import LossSettings
from remap.network.resnet import (
    ResNet1D,
    build_model,
    model_settings,
)
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import AugmentSettings, Batch
from remap.sampling.batches import FinishedSource
from remap.sampling.mixture import library_weights
from remap.sampling.sources import Library, in_chunks, random_labels
from remap.store import checkpoint
from remap.store.workdir import check_preprocessing, library_path, stage_folder, write_config
from remap.train.keys import named_key
from remap.train.loop import FitSettings, OnEpoch, Run, fit
from remap.train.objectives import NetworkObjective, Task
from remap.train.optim import Rule

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Arm:
    """What both training stages need of one arm."""

    name: str
    model: ResNet1D
    normalize: NormalizeFn
    edges: jnp.ndarray  # [L, K + 1]
    wave: jnp.ndarray  # [N], Å
    augment: AugmentSettings  # of library spectra
    loss: LossSettings
    meta: dict[str, Any]

    def finished(self, spectra: Any) -> FinishedSource:
        """A source of spectra, normalised and with their targets."""
        return FinishedSource(spectra, self.edges, self.normalize)

    def library_targets(self, key: jax.Array, library: Library) -> jax.Array:
        """Soft labels [L, S, K] of spectra as they are drawn from the library.

        Args:
          key: of the run, of which a part of its own is used.
        """
        key = named_key(key, "prior")
        labels = random_labels(key, library, -(-PRIOR_SPECTRA // len(library.cells)))
        return soft_labels(labels, jnp.broadcast_to(library.sigma, labels.shape), self.edges)


PRIOR_SPECTRA = 4096  # by which the distribution of the labels in training is found


def open_arm(config: ml_collections.ConfigDict, preprocessing: Preprocessing, arm: str, stage: str) -> Arm:
    """What a stage needs of one arm, with the description that its networks are kept with."""
    aligned = stage == "finetune" and config.finetune.init == "pretrained" and start_stage(config) == "align"
    return Arm(
        arm,
        build_model(config.model, preprocessing.labels),
        preprocessing.normalizer(arm),
        jnp.asarray(padded_edges(preprocessing.labels), jnp.float32),
        jnp.asarray(preprocessing.wave(arm), jnp.float32),
        record(AugmentSettings, config.augment, "augment"),
        record(LossSettings, config.loss, "loss"),
        {
            "arm": arm,
            "stage": stage,
            "preprocessing": preprocessing.to_json(),
            "config": deciding(config, stage, also=("align",) if aligned else ()),
        },
    )


def library_files(config: Section, workdir: Path, arm: str) -> list[Path]:
    """Where the prepared libraries of an arm are, one or several."""
    return [library_path(workdir / "data", arm, name) for name in library_weights(config)]


def start_stage(config: Section) -> str:
    """The stage that fine-tuning starts from: the last of those that no label of a star has a part in."""
    return "pretrain" if config["align"]["kind"] == "none" else "align"


def chosen_arms(preprocessing: Preprocessing, arms: Sequence[str] | None) -> tuple[str, ...]:
    """The arms that a run trains, in the order of the preprocessing; None = all.

    Raises:
      ConfigError: one of them was not prepared.
    """
    known = tuple(preprocessing.arms)
    if unknown := sorted(set(arms or ()) - set(known)):
        raise ConfigError(f"arms: expected some of {known}, as prepared, found {unknown}")
    return known if arms is None else tuple(name for name in known if name in arms)


def finish_stage(config: ml_collections.ConfigDict, workdir: Path, folders: Sequence[Path]) -> None:
    """Records the settings of a stage whose networks are all there; says which are not, where some are left.

    Prediction reads the settings, and they must be those of the networks in the folder: so not before the last.

    Args:
      folders: one per network of the stage.
    """
    left = [folder for folder in folders if not checkpoint.has_final(folder / "final")]
    if not left:
        write_config(workdir, config)
        return
    names = ", ".join(str(folder.relative_to(workdir)) for folder in left)
    logger.info("%d of %d networks of this stage are not trained yet: %s", len(left), len(folders), names)


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
        raise ConfigError(f"{where}: expected one network to train on, found pretrain.average 'snapshots'")


def check_sections(found: Mapping[str, Any], sections: Mapping[str, Any], where: str) -> None:
    """Raises ValueError if config sections that a network was trained with are not `sections` (plain JSON)."""
    for name, own in sections.items():
        checkpoint.check_equal({name: found["config"][name]}, {name: own}, where)


def first_network(
    workdir: Path, preprocessing: Preprocessing, arm: Arm, stage: str, sections: Sequence[str]
) -> dict:
    """The network of an earlier stage that a training goes on from, checked.

    Args:
      sections: of the arm's config that it must have been trained with.

    Raises:
      FileNotFoundError: that stage has not finished.
      ValueError: it is another network, an ensemble, or was trained otherwise.
    """
    start = stage_folder(workdir, stage, arm.name) / "final"
    variables, found = checkpoint.load_final(start)
    variables.pop("prior", None)
    checkpoint.check_place(found, start, stage=stage, arm=arm.name)
    check_preprocessing(found["preprocessing"], preprocessing.to_json(), str(start))
    check_network(found, arm, str(start))
    check_single(found, str(start))
    how = {"pretrain": "trained", "align": "aligned"}[stage]
    own = {name: arm.meta["config"][name] for name in sections}
    check_sections(found, own, f"{start}: {how} with other settings")
    return jax.tree.map(jnp.asarray, variables)


class Training(NamedTuple):
    """What the training of one network starts from, in either stage."""

    objective: NetworkObjective
    variables: dict
    rules: tuple[Rule, ...]  # factors on the rate of its layers
    source: Any
    validation: Batch | None
    settings: FitSettings
    steps: int  # per epoch
    key: jax.Array
    prior: jax.Array  # [L, K], PMFs of the labels that it draws

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.steps


def train_network(
    start: Training,
    *,
    folder: Path,
    meta: Mapping[str, Any],
    name: str,
    on_epoch: OnEpoch | None = None,
) -> dict:
    """Trains and resumes in `folder`: `params` and `batch_stats` of the averaged network, see `loop.fit`."""
    run = Run(start.settings, start.steps, start.key, folder, meta, name, on_epoch)
    task = Task(
        start.objective,
        start.variables["params"],
        start.variables["batch_stats"],
        start.source,
        start.validation,
    )
    fitted = fit(task, run.optimizer(start.rules), run)
    return {"params": fitted.params, "batch_stats": fitted.model_state}


def network_pmfs(
    model: ResNet1D, variables: Any, flux: jax.Array, valid: jax.Array, *, chunk: int
) -> jax.Array:
    """[L, S, K]: PMFs that a network gives normalised spectra, `chunk` of them at a time."""

    def run(rows: tuple) -> jax.Array:
        return _pmfs(variables, *rows, model=model)

    return in_chunks(run, (flux, valid), chunk).swapaxes(0, 1)


@functools.partial(jax.jit, static_argnames="model")
def _pmfs(variables: Any, flux: jax.Array, valid: jax.Array, *, model: ResNet1D) -> jax.Array:
    logits = model.apply(variables, flux, valid, train=False, running=True).logits
    return jax.nn.softmax(logits).swapaxes(0, 1)
