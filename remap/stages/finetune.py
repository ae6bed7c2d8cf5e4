"""The stage finetune: what is trained on, what stands beside the stars, and the training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from remap.config import ConfigError, Section, config_to_json, record
from remap.labels import label_prior, soft_labels
from remap.network.resnet import init_variables
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.augment import AugmentSettings, Batch, finish, take
from remap.sampling.batches import (
    FinishedSource,
    FixedSource,
    LibrarySource,
    MixedSource,
    RehearsalSource,
    StarSource,
    as_given,
    normalize_in_chunks,
    padded_rows,
)
from remap.sampling.correction import CHUNK, apply_correction, fit_corrections
from remap.sampling.mixture import library_weights
from remap.sampling.sources import Library, Stars, library_shares, node_cells, with_cells
from remap.stages.common import (
    Arm,
    Training,
    chosen_arms,
    finish_stage,
    first_network,
    library_files,
    network_pmfs,
    open_arm,
    start_stage,
    train_network,
)
from remap.stages.nuisances import library_nuisances
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.stars import fold_split, readable_stars, save_split, split_settings, within
from remap.store.workdir import (
    check_prepared,
    load_library,
    load_survey,
    stage_folder,
    survey_path,
)
from remap.train.keys import root_key
from remap.train.loop import FitSettings
from remap.train.objectives import NetworkObjective
from remap.train.optim import layer_rules

logger = logging.getLogger(__name__)

ANCHOR_BYTES = (
    2**31
)  # of the flux of spectra of stars that are not selected: a survey may be larger than memory
PADDED = 32  # validation stars of a fold are filled up to a multiple of it


def finetune(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    arms: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
) -> None:
    """Fine-tunes the pre-trained network of each arm on the labelled stars, once per fold in `split.run`.

    Args:
      arms, folds: those to train; None = all. As of `pretrain`: runs of different ones may share a working folder.

    Raises:
      ConfigError: an arm is none of the prepared ones, a fold none of `split.run`, or one has a network of other
        settings.
    """
    workdir = Path(workdir)
    if unknown := sorted(set(folds or ()) - set(config.split.run)):
        raise ConfigError(f"folds: expected some of {tuple(config.split.run)} (split.run), found {unknown}")
    preprocessing = check_prepared(config, workdir)
    stars = readable_stars(workdir)
    chosen = within(stars, config.finetune.select)
    logger.info("finetune: %d of %d spectra may be trained on", np.count_nonzero(chosen), len(stars))
    how = split_settings(config)
    for fold in config.split.run if folds is None else folds:
        split = fold_split(stars, how, fold)
        for name in chosen_arms(preprocessing, arms):
            folder = stage_folder(workdir, "finetune", name, fold)
            arm = open_arm(config, preprocessing, name, "finetune")
            meta = arm.meta | {"fold": fold, "split": config_to_json(config)["split"]}
            if checkpoint.is_finished(folder, meta):
                check_inputs(folder, workdir)
                continue
            start = finetuning(config, workdir, preprocessing, name, fold, split)
            with hold(folder):
                # Before the first step, but not of a run that is refused.
                save_split(folder, stars, split, how, fold)
                save_inputs(folder, workdir, _files(config, workdir, name))
                averaged = train_network(start, folder=folder, meta=meta, name=f"finetune {name} fold {fold}")
                # With the distribution of the labels, for `predict.combine`.
                averaged |= {"prior": start.prior}
                checkpoint.save_final(folder / "final", averaged, meta | {"step": start.total})
    every = [
        stage_folder(workdir, "finetune", name, fold)
        for fold in config.split.run
        for name in preprocessing.arms
    ]
    finish_stage(config, workdir, every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(FitSettings):
    """Of this stage (config section `finetune`).

    Attributes:
      init: "pretrained" starts from the stage before, "scratch" from a fresh network.
      layer_rates, rate_factor: see `optim.layer_rules` (paper §5 ii).
      batch_size: spectra in a batch.
      batches: "random", or "paired" (`sources.paired_indices`).
      freeze_stats: normalise with the pre-trained running statistics and leave them as they are.
      noise_low, noise_high, augment: how observed spectra are varied; what differs from the config's section
        `augment`.
      select: limits of the labels of stars that may be trained on.
      rehearsal: fraction of every batch that is drawn from the library, varied as `rehearsal_augment` says in the
        same way.
      correction: "linear" makes the library look like the stars (`remap.sampling.correction`), "none" leaves it.
      correction_ridge, residual_clip: of the correction.
      residual_weight: limits of the factor on the stars' residuals, which are noise on library spectra.
      unlabelled: fraction of every batch that is drawn from spectra of stars that are not selected.
      anchor: labels in which what the first network says of them is the target.
    """

    checkpoint_epochs: int = 30
    keep: int = 1
    stats_batches: int = 20
    init: str = "pretrained"
    layer_rates: str = "graded"
    rate_factor: float = 0.1
    batch_size: int = 64
    batches: str = "random"
    freeze_stats: bool = True
    noise_low: float = 0.0
    noise_high: float = 0.0
    augment: Section = dataclasses.field(default_factory=dict)
    select: Section = dataclasses.field(default_factory=lambda: {"logg": (3.5, 5.5)})
    rehearsal: float = 0.0
    rehearsal_augment: Section = dataclasses.field(default_factory=dict)
    correction: str = "none"
    correction_ridge: float = 10.0
    residual_weight: tuple[float, float] = (0.0, 0.0)
    residual_clip: float = 0.3
    unlabelled: float = 0.0
    anchor: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {
            "init": ("pretrained", "scratch"),
            "batches": ("random", "paired"),
            "correction": ("none", "linear"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                first, second = values
                raise ConfigError(
                    f"finetune.{name} must be {first!r} or {second!r}, found {getattr(self, name)!r}"
                )
        if self.observed < 1:
            raise ConfigError(
                f"finetune.rehearsal {self.rehearsal} and finetune.unlabelled {self.unlabelled} leave no room "
                f"for stars in a batch of {self.batch_size}"
            )
        if self.anchored and self.init != "pretrained":
            raise ConfigError(
                f"finetune.unlabelled needs a pre-trained network, found init {self.init!r}; set it to 0"
            )

    @property
    def replayed(self) -> int:
        """Library spectra in a batch."""
        return round(self.rehearsal * self.batch_size)

    @property
    def anchored(self) -> int:
        """Spectra in a batch of stars that are not selected."""
        return round(self.unlabelled * self.batch_size)

    @property
    def observed(self) -> int:
        """Labelled stars in a batch."""
        return self.batch_size - self.replayed - self.anchored


def finetuning(
    config: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    name: str,
    fold: int,
    split: np.ndarray,
) -> Training:
    """What the fine-tuning of one arm starts from.

    Args:
      fold: sets the random numbers.
      split: str[S], "train" and "val" as in `fold_split`; stars of other names have no part.
    """
    arm = open_arm(config, preprocessing, name, "finetune")
    settings = record(FinetuneSettings, config.finetune, "finetune")
    most = ANCHOR_BYTES // (4 * len(arm.wave)) if settings.anchored else 0
    survey = _open_survey(workdir, arm, split, config.predict.min_coverage, most)
    if not survey.train.any():
        raise ConfigError(f"arm {name}, fold {fold}: none of {len(split)} spectra can be trained on")
    init_key, fit_key = jax.random.split(root_key(config.seed, "finetune", name, "fold", fold))
    if settings.init == "scratch":
        variables = init_variables(arm.model, init_key, len(arm.wave))
    else:
        stage = start_stage(config)
        sections = ("align",) if stage == "align" else ()
        variables = first_network(workdir, preprocessing, arm, stage, sections)
    rehearsal, anchors = None, None
    if settings.replayed:
        # A correction is fitted between the nodes, even where nodes alone are rehearsed.
        nodes = not config.library.interpolate
        between = settings.correction != "none" or not nodes
        weights = library_weights(config)
        library = load_library(workdir, preprocessing, name, interpolate=between, weights=weights)
        rehearsal = _rehearsal(library, workdir, preprocessing, arm, settings, survey, nodes=nodes)
    if settings.anchored:
        names = [b.name for b in preprocessing.labels]
        anchors = _anchors(arm, settings, variables, survey.others, names)
    train = jax.tree.map(lambda a: jnp.asarray(a[survey.train]), survey.stars)
    parts = [(settings.observed, soft_labels(train.labels, train.errors, arm.edges))]
    if rehearsal is not None:
        library = rehearsal.spectra.library
        targets = arm.library_targets(fit_key, library)
        parts.append((settings.replayed, targets))
        rehearsal = arm.finished(rehearsal)
    if anchors is not None:
        parts.append((settings.anchored, anchors.spectra.target))
    return Training(
        NetworkObjective(arm.model, arm.loss, settings.freeze_stats),
        variables,
        layer_rules(
            settings.layer_rates,
            len(arm.model.settings.filters),
            factor=settings.rate_factor,
            beside=arm.model.settings.beside,
        ),
        MixedSource(_stars(arm, settings, survey), anchors, rehearsal),
        _validation(arm, survey),
        settings,
        max(1, round(np.count_nonzero(survey.train) / settings.observed)),
        fit_key,
        label_prior(parts),
    )


def _files(config: ml_collections.ConfigDict, workdir: Path, arm: str) -> list[Path]:
    """What a network is made of: the survey, and the library that it was pre-trained on or rehearses."""
    section = config.finetune
    alone = section.init == "scratch" and not section.rehearsal
    return [survey_path(workdir / "data", arm), *([] if alone else library_files(config, workdir, arm))]


class _Survey(NamedTuple):
    """The spectra of one arm that the folds train on, and others of the survey that the arm covers."""

    stars: Stars  # those of any fold, the same in all
    train: np.ndarray  # bool of those
    val: np.ndarray
    others: Stars  # spectra of stars that no fold trains or tests on, if they are wanted; their labels are not used


def _open_survey(workdir: Path, arm: Arm, split: np.ndarray, min_coverage: float, most: int) -> _Survey:
    """The stars of the folds, and of the others so many at most; no more of the survey comes into memory."""
    survey, _ = load_survey(workdir, arm.name)
    # As at prediction: an arm that hardly covers a spectrum must not learn from it.
    seen = usable(survey.flux, survey.valid, min_coverage=min_coverage)
    ids = np.asarray(readable_stars(workdir)["star_id"])
    mine = (split != "other") & seen
    others = (split == "other") & ~np.isin(ids, ids[split != "other"]) & seen
    chosen = evenly(np.flatnonzero(others), most)
    return _Survey(
        Stars(*(a[mine] for a in survey)),
        split[mine] == "train",
        split[mine] == "val",
        Stars(*(a[chosen] for a in survey)),
    )


def evenly(index: np.ndarray, most: int) -> np.ndarray:
    """So many entries of an index at most, evenly spread over it.

    Examples:
      >>> evenly(np.arange(10, 20), 4).tolist(), evenly(np.arange(3), 4).tolist(), evenly(np.arange(3), 0).tolist()
      ([10, 12, 15, 17], [0, 1, 2], [])
    """
    return index if len(index) <= most else index[np.arange(most) * len(index) // max(most, 1)]


def _stars(arm: Arm, settings: FinetuneSettings, survey: _Survey) -> FinishedSource:
    """The labelled stars as they are trained on."""
    noise = {"noise_low": settings.noise_low, "noise_high": settings.noise_high}
    augment = record(AugmentSettings, {**vars(arm.augment), **noise, **settings.augment}, "finetune.augment")
    stars, normalize = survey.stars, arm.normalize
    if not augment.changes_stars:  # the same spectra at every step: normalise them once
        stars = stars._replace(flux=normalize_in_chunks(normalize, stars.flux, stars.valid))
        normalize = as_given
    edges = arm.edges if settings.batches == "paired" else None
    rows, count = padded_rows(survey.train)
    stars = jax.tree.map(jnp.asarray, stars)
    spectra = StarSource(stars, rows, count, arm.wave, edges, settings.observed, augment)
    return FinishedSource(spectra, arm.edges, normalize)


def _rehearsal(
    library: Library,
    workdir: Path,
    preprocessing: Preprocessing,
    arm: Arm,
    settings: FinetuneSettings,
    survey: _Survey,
    *,
    nodes: bool,
) -> RehearsalSource:
    """The library that is rehearsed, made to look like the stars if the settings ask for it.

    Args:
      nodes: True draws its nodes alone.
    """
    residuals, count = None, 0
    if settings.correction != "none":
        found = fit_corrections(
            library,
            Stars(*(a[survey.train] for a in survey.stars)),
            arm.normalize,
            spread=library.log_flux.shape[0] // 2,
            ridge=settings.correction_ridge,
            clip=settings.residual_clip,
        )
        count = len(found.residuals)
        logger.info(
            "finetune: library corrected by %.4f rms from %d stars, residuals of %.4f rms",
            found.nodes.std(),
            count,
            found.residuals.std(),
        )
        library = apply_correction(library, found)
        if max(settings.residual_weight) > 0:  # padded to one shape for all folds
            rows = len(survey.stars.flux) * len(library_shares(library))
            residuals = np.zeros((rows, *survey.stars.flux.shape[1:]), survey.stars.flux.dtype)
            residuals[:count] = found.residuals
    augment = record(
        AugmentSettings, {**vars(arm.augment), **settings.rehearsal_augment}, "finetune.rehearsal_augment"
    )
    # Of the corrected libraries: what the stars have told of both is no longer in doubt.
    nuisances = library_nuisances(augment, library, workdir, preprocessing, arm.name, arm.normalize)
    if nodes:
        library = with_cells(library, node_cells(len(library.labels)))
    library = jax.tree.map(jnp.asarray, library)
    spectra = LibrarySource(library, arm.wave, settings.replayed, augment, nuisances)
    residuals = None if residuals is None else jnp.asarray(residuals)
    return RehearsalSource(spectra, residuals, jnp.asarray(count, jnp.int32), tuple(settings.residual_weight))


def _anchors(
    arm: Arm, settings: FinetuneSettings, variables: dict, others: Stars, names: Sequence[str]
) -> FixedSource:
    """Spectra whose targets are the PMFs of a network (Li & Hoiem 2016, arXiv:1606.09282), for some labels."""
    if unknown := set(settings.anchor) - set(names):
        raise ConfigError(f"finetune.anchor must name labels of {tuple(names)}, found {sorted(unknown)}")
    if not len(others.flux):
        raise ConfigError(
            "finetune.unlabelled needs spectra of stars that are not selected, found none; set it to 0"
        )
    flux = normalize_in_chunks(arm.normalize, others.flux, others.valid)
    valid = jnp.asarray(others.valid)
    pmf = network_pmfs(arm.model, variables, flux, valid, chunk=CHUNK)
    known = jnp.asarray([name in settings.anchor for name in names])[:, None]
    target, classes = jnp.where(known[..., None], pmf, 0.0), jnp.where(known, jnp.argmax(pmf, axis=-1), -1)
    return FixedSource(Batch(flux, valid, target, classes), len(flux), settings.anchored, take)


def _validation(arm: Arm, survey: _Survey) -> Batch | None:
    """The validation stars, None without any; spectra without labels fill up to a number that folds share."""
    if not survey.val.any():
        return None
    held = Stars(*(a[survey.val] for a in survey.stars))
    flux = normalize_in_chunks(arm.normalize, held.flux, held.valid)
    missing = -len(flux) % PADDED
    held = held._replace(
        flux=jnp.pad(flux, ((0, missing), (0, 0)), constant_values=1.0),
        valid=np.pad(held.valid, ((0, missing), (0, 0))),
        labels=np.pad(held.labels, ((0, missing), (0, 0)), constant_values=np.nan),
        errors=np.pad(held.errors, ((0, missing), (0, 0)), constant_values=1.0),
    )
    return finish(jax.tree.map(jnp.asarray, held), as_given, arm.edges)
