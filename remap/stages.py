"""The training stages that the launch scripts run after `prepare.preprocess`: pretrain and finetune.

Each takes a config and a working folder, reads what the one before it wrote, may be run again, and resumes
what was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table

from remap import checkpoint
from remap import workdir as layout
from remap.augment import (
    AugmentSettings,
    Batch,
    NormalizeFn,
    finish,
    join,
    library_draw,
    paper_set_size,
    survey_draw,
)
from remap.correction import add_residuals, apply_correction, fit_correction
from remap.data import Draw, Library, Survey, split_stars
from remap.labels import bin_mask, padded_edges
from remap.models import ModelSettings, ResNet1D, count_parameters, init_variables, make_model
from remap.optim import layer_rules, make_optimizer, sgdr
from remap.prepare import STATUS_OK, readable_stars
from remap.preprocess import (
    Preprocessing,
    make_preprocessing,
    usable,
)
from remap.train import BatchFn, FitSettings, LossSettings, fit

logger = logging.getLogger(__name__)


def model_settings(config: Mapping[str, Any]) -> ModelSettings:
    """The config section `model` as a record."""
    return ModelSettings(**{**dict(config["model"]), "filters": tuple(config["model"]["filters"])})


def build_model(config: Mapping[str, Any], preprocessing: Preprocessing) -> ResNet1D:
    """The network that a config describes."""
    return make_model(model_settings(config), bin_mask(preprocessing.labels))


@dataclasses.dataclass(frozen=True)
class _Arm:
    """What both training stages need of one arm."""

    name: str
    model: ResNet1D
    normalize: NormalizeFn
    edges: jnp.ndarray  # [L, K + 1]
    pixels: int
    meta: dict[str, Any]

    def finish(self, draw: Draw) -> Batch:
        return finish(draw, self.normalize, self.edges)


def _open_arm(config: ml_collections.ConfigDict, preprocessing: Preprocessing, arm: str, stage: str) -> _Arm:
    keep = ("name", "seed", "model", "loss", "augment", "library", stage)
    plain = layout.config_to_json(config)
    return _Arm(
        arm,
        build_model(config, preprocessing),
        preprocessing.normalizer(arm),
        jnp.asarray(padded_edges(preprocessing.labels), jnp.float32),
        len(preprocessing.wave(arm)),
        {
            "arm": arm,
            "stage": stage,
            "preprocessing": preprocessing.to_json(),
            "config": {k: plain[k] for k in keep},
        },
    )


def check_prepared(config: ml_collections.ConfigDict, workdir: Path) -> Preprocessing:
    """The preprocessing of the data in `workdir`, refused where it is not what the config asks for."""
    found = layout.read_preprocessing(workdir)
    layout.check_preprocessing(found.to_json(), make_preprocessing(config).to_json(), f"{workdir / 'data'}")
    return found


def _fit_settings(section: ml_collections.ConfigDict, steps: int, *, freeze_stats: bool) -> FitSettings:
    return FitSettings(
        cycles=section.cycles,
        epochs_per_cycle=section.epochs_per_cycle,
        steps_per_epoch=steps,
        checkpoint_epochs=section.checkpoint_epochs,
        keep=section.keep,
        stats_batches=section.stats_batches,
        freeze_stats=freeze_stats,
    )


def _stage_key(config: ml_collections.ConfigDict, arm: str, *what: int) -> jax.Array:
    """The root key of a run: a function of the seed, the arm and what is run."""
    key = jax.random.fold_in(jax.random.key(config.seed), config.arm_names.index(arm))
    for number in what:
        key = jax.random.fold_in(key, number)
    return key


PRETRAIN, FINETUNE = 0, 1  # folded into the keys


def pretrain(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains one network per arm on the library; a finished arm is left as it is."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    for arm in preprocessing.arms:
        _pretrain_arm(config, workdir, preprocessing, arm)
    # Only now: prediction reads it, and it must be that of the networks in the folder.
    layout.write_config(workdir, config)


class Pretraining(NamedTuple):
    """Where the pre-training of an arm starts, and what it draws from."""

    model: ResNet1D
    variables: dict
    batch_fn: BatchFn
    library: Library  # with the cells that are trained on
    held_out: np.ndarray  # the other cells
    steps: int  # per epoch
    fit_key: jax.Array
    validation_key: jax.Array


def pretraining(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> Pretraining:
    """Fresh network, batches and keys of one arm, as a function of config and prepared data alone."""
    arm = _open_arm(config, preprocessing, name, "pretrain")
    section = config.pretrain
    augment = AugmentSettings(**config.augment)
    library = layout.load_library(workdir, preprocessing, name, interpolate=config.library.interpolate)
    key = _stage_key(config, name, PRETRAIN)
    init_key, split_key, fit_key, validation_key = jax.random.split(key, 4)
    # The library's "stars" are its cells (or nodes): held-out ones give no training spectrum.
    order = np.asarray(jax.random.permutation(split_key, len(library.cells)))
    held = round(section.validation * len(order))
    held_out, trained = library.cells[order[:held]], library.cells[order[held:]]
    library = jax.tree.map(jnp.asarray, library._replace(cells=trained))
    size = paper_set_size(library, augment) if augment.kind == "paper" else section.epoch_size

    def batch_fn(key: jax.Array, step: jax.Array, data: Library) -> Batch:
        return arm.finish(library_draw(key, step, data, batch=section.batch_size, settings=augment))

    return Pretraining(
        arm.model,
        init_variables(arm.model, init_key, arm.pixels),
        batch_fn,
        library,
        held_out,
        max(1, size // section.batch_size),
        fit_key,
        validation_key,
    )


def _pretrain_arm(
    config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing, name: str
) -> None:
    folder = layout.stage_folder(workdir, "pretrain", name)
    arm = _open_arm(config, preprocessing, name, "pretrain")
    if checkpoint.is_finished(folder, arm.meta):
        return
    section = config.pretrain
    start = pretraining(config, workdir, preprocessing, name)
    schedule = sgdr(
        peak=section.rate_high,
        end=section.rate_low,
        cycles=section.cycles,
        steps_per_cycle=section.epochs_per_cycle * start.steps,
    )
    params = start.variables["params"]
    logger.info(
        "pretrain %s: %d parameters, %d steps of %d spectra per epoch",
        name,
        count_parameters(params),
        start.steps,
        section.batch_size,
    )
    validation = None
    if len(start.held_out):
        # As many cells as are trained on (repeated), so that the same compiled program serves.
        repeated = np.resize(start.held_out, start.library.cells.shape)
        held_library = start.library._replace(cells=jnp.asarray(repeated))
        make = jax.jit(start.batch_fn)
        count = max(1, section.validation_size // section.batch_size)
        parts = [make(start.validation_key, jnp.asarray(i, jnp.int32), held_library) for i in range(count)]
        validation = functools.reduce(join, parts)
    averaged = fit(
        arm.model,
        start.variables,
        make_optimizer(params, ((".*", 1.0),), schedule, clip_norm=section.clip_norm),
        start.batch_fn,
        start.library,
        validation,
        loss=LossSettings(**config.loss),
        settings=_fit_settings(section, start.steps, freeze_stats=False),
        key=start.fit_key,
        schedule=schedule,
        folder=folder,
        meta=arm.meta,
        name=f"pretrain {name}",
    )
    total = section.cycles * section.epochs_per_cycle * start.steps
    checkpoint.save_final(folder / "final", averaged, arm.meta | {"step": total})


def finetune(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Fine-tunes the pre-trained network of each arm on the labelled stars, once per fold in `split.run`."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    stars = readable_stars(workdir)
    chosen = selected(stars, config)
    logger.info("finetune: %d of %d spectra may be trained on", np.count_nonzero(chosen), len(stars))
    for fold in config.split.run:
        split = fold_split(stars, config, fold)
        for arm in preprocessing.arms:
            _finetune_arm(config, workdir, preprocessing, arm, fold, split)
    layout.write_config(workdir, config)


def selected(stars: Table, config: ml_collections.ConfigDict) -> np.ndarray:
    """bool[S]: stars with labels inside the bins and inside `finetune.select`."""
    keep = np.array([s == STATUS_OK for s in stars["status"]])
    for name, (low, high) in config.finetune.select.items():
        value = np.asarray(stars[name], float)
        with np.errstate(invalid="ignore"):
            keep &= (value >= low) & (value <= high)
    return keep


def fold_split(stars: Table, config: ml_collections.ConfigDict, fold: int) -> np.ndarray:
    """str[S]: "train", "val", "test" for the selected stars, "other" for the rest."""
    chosen = selected(stars, config)
    if not chosen.any():
        raise ValueError(f"finetune.select {dict(config.finetune.select)} leaves none of {len(stars)} stars")
    out = np.full(len(stars), "other", dtype="<U5")
    out[chosen] = split_stars(
        np.asarray(stars["star_id"][chosen]),
        folds=config.split.folds,
        fold=fold,
        validation=config.split.validation,
        seed=config.seed,
    )
    return out


def _finetune_arm(
    config: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    name: str,
    fold: int,
    split: np.ndarray,
) -> None:
    folder = layout.stage_folder(workdir, "finetune", name, fold)
    arm = _open_arm(config, preprocessing, name, "finetune")
    meta = arm.meta | {"fold": fold, "split": layout.config_to_json(config)["split"]}
    if checkpoint.is_finished(folder, meta):
        return
    section = config.finetune
    survey, _ = layout.load_survey(workdir, name)
    # As at prediction: an arm that hardly covers a spectrum must not learn from it.
    seen = usable(survey.flux, survey.valid, min_coverage=config.predict.min_coverage)
    train, val = (split == "train") & seen, (split == "val") & seen
    if not train.any():
        raise ValueError(f"arm {name}, fold {fold}: none of {len(split)} spectra can be trained on")
    stars = jax.tree.map(lambda a: jnp.asarray(a[train]), survey)
    init_key, fit_key = jax.random.split(_stage_key(config, name, FINETUNE, fold + 1))
    if section.init == "scratch":
        variables = init_variables(arm.model, init_key, arm.pixels)
    elif section.init == "pretrained":
        start = layout.stage_folder(workdir, "pretrain", name) / "final"
        variables, found = checkpoint.load_final(start)
        layout.check_preprocessing(found["preprocessing"], meta["preprocessing"], str(start))
    else:
        raise ValueError(f"finetune.init must be 'pretrained' or 'scratch', found {section.init!r}")
    replayed = round(section.rehearsal * section.batch_size)
    observed = section.batch_size - replayed
    if observed < 1:
        raise ValueError(
            f"finetune.rehearsal {section.rehearsal} leaves no room for stars in a batch of {section.batch_size}"
        )
    steps = max(1, round(stars.flux.shape[0] / observed))
    schedule = sgdr(
        peak=section.rate_high,
        end=section.rate_low,
        cycles=section.cycles,
        steps_per_cycle=section.epochs_per_cycle * steps,
    )
    library, residuals = None, None
    if replayed:
        library = layout.load_library(workdir, preprocessing, name, interpolate=config.library.interpolate)
        library, residuals = _corrected(library, stars, arm.normalize, section)
    observed_augment = AugmentSettings(
        **{**config.augment, "noise_low": section.noise_low, "noise_high": section.noise_high}
    )
    noisy = observed_augment.kind == "online" and section.noise_high > 0
    if not noisy:  # the same spectra at every step: normalise them once
        stars = stars._replace(flux=jax.jit(arm.normalize)(stars.flux, stars.valid))
    library_augment = AugmentSettings(**config.augment)

    def batch_fn(key: jax.Array, step: jax.Array, data: _FinetuneData) -> Batch:
        star_key, library_key, residual_key = jax.random.split(key, 3)
        draw = survey_draw(star_key, step, data.stars, batch=observed, settings=observed_augment)
        batch = finish(draw, arm.normalize if noisy else lambda flux, valid: flux, arm.edges)
        if not replayed:
            return batch
        more = library_draw(library_key, step, data.library, batch=replayed, settings=library_augment)
        if data.residuals is not None:
            residual_key = jax.random.fold_in(residual_key, step)
            more = add_residuals(residual_key, more, data.residuals, section.residual_weight)
        return join(batch, arm.finish(more))

    data = jax.tree.map(jnp.asarray, _FinetuneData(stars, library, residuals))
    validation = None
    if val.any():
        held = Draw(*(jnp.asarray(a[val]) for a in survey))
        validation = jax.jit(arm.finish)(held)
    rules = layer_rules(section.layer_rates, len(config.model.filters), factor=section.rate_factor)
    averaged = fit(
        arm.model,
        variables,
        make_optimizer(variables["params"], rules, schedule, clip_norm=section.clip_norm),
        batch_fn,
        data,
        validation,
        loss=LossSettings(**config.loss),
        settings=_fit_settings(section, steps, freeze_stats=section.freeze_stats),
        key=fit_key,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=f"finetune {name} fold {fold}",
    )
    total = section.cycles * section.epochs_per_cycle * steps
    checkpoint.save_final(folder / "final", averaged, meta | {"step": total})


class _FinetuneData(NamedTuple):
    """What fine-tuning draws from; the library and the residuals are None where they have no part."""

    stars: Survey
    library: Library | None
    residuals: Any


def _corrected(
    library: Library, stars: Survey, normalize: NormalizeFn, section: ml_collections.ConfigDict
) -> tuple[Library, np.ndarray | None]:
    """The library to rehearse with, and the residuals of the stars if they are to be its noise."""
    if section.correction == "none":
        return library, None
    if section.correction != "linear":
        raise ValueError(f"finetune.correction must be 'none' or 'linear', found {section.correction!r}")
    found = fit_correction(
        library,
        stars,
        normalize,
        spread=library.log_flux.shape[0] // 2,
        ridge=section.correction_ridge,
        clip=section.residual_clip,
    )
    logger.info(
        "finetune: library corrected by %.4f rms from %d stars, residuals of %.4f rms",
        found.nodes.std(),
        len(found.residuals),
        found.residuals.std(),
    )
    return apply_correction(library, found), found.residuals if section.residual_weight > 0 else None
