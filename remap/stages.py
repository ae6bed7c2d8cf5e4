"""The training stages that the launch scripts run after `prepare.preprocess`: pretrain and finetune.

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
    take,
)
from remap.correction import add_residuals, apply_correction, fit_correction
from remap.data import Draw, Library, Survey, node_cells, random_labels, split_stars, stream_indices
from remap.embeddings import EmbeddingSettings, fixed_spectra, make_recorder
from remap.labels import bin_mask, label_prior, padded_edges, soft_labels
from remap.models import ModelSettings, ResNet1D, count_parameters, init_variables, make_model
from remap.optim import Rule, layer_rules, make_optimizer, sgdr
from remap.prepare import STATUS_OK, readable_stars
from remap.preprocess import (
    Preprocessing,
    make_preprocessing,
    usable,
)
from remap.train import BatchFn, FitSettings, LossSettings, OnEpoch, fit, run_keys

logger = logging.getLogger(__name__)


def model_settings(config: Mapping[str, Any]) -> ModelSettings:
    """The config section `model` as a record."""
    # Networks on disk from before the switch existed have a temperature.
    section = {"temperature": True, **dict(config["model"])}
    return ModelSettings(**{**section, "filters": tuple(section["filters"])})


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


# What decides a network besides its inputs and the section of its stage; kept with it.
NETWORK_SECTIONS = ("name", "seed", "model", "loss", "augment", "library")


def _open_arm(config: ml_collections.ConfigDict, preprocessing: Preprocessing, arm: str, stage: str) -> _Arm:
    keep = (*NETWORK_SECTIONS, stage)
    plain = layout.config_to_json(config)
    return _Arm(
        arm,
        build_model(config, preprocessing),
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
        average=section.average,
    )


def _stage_key(config: ml_collections.ConfigDict, arm: str, *what: int) -> jax.Array:
    """The root key of a run: a function of the seed, the arm and what is run."""
    key = jax.random.fold_in(jax.random.key(config.seed), config.arm_names.index(arm))
    for number in what:
        key = jax.random.fold_in(key, number)
    return key


PRETRAIN, FINETUNE = 0, 1  # folded into the keys


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
    """Trains as the config's section `stage` says and resumes in `folder`: the averaged network, see `train.fit`."""
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
        settings=_fit_settings(section, start.steps, freeze_stats=freeze_stats),
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
    layout.write_config(workdir, config)


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
    folder = layout.stage_folder(workdir, "pretrain", name)
    arm = _open_arm(config, preprocessing, name, "pretrain")
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
    start = finetuning(config, workdir, preprocessing, name, fold, split)
    label = f"finetune {name} fold {fold}"
    averaged = train_network(start, config, "finetune", folder=folder, meta=meta, name=label)
    total = section.cycles * section.epochs_per_cycle * start.steps
    # With the distribution of the labels, for `predict.combine`.
    averaged |= {"prior": start.prior}
    checkpoint.save_final(folder / "final", averaged, meta | {"step": total})


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
    arm = _open_arm(config, preprocessing, name, "finetune")
    section = config.finetune
    library_augment = AugmentSettings(**{**config.augment, **section.rehearsal_augment})
    noise = {"noise_low": section.noise_low, "noise_high": section.noise_high}
    star_augment = AugmentSettings(**{**config.augment, **noise, **section.augment})
    survey, _ = layout.load_survey(workdir, name)
    # As at prediction: an arm that hardly covers a spectrum must not learn from it.
    seen = usable(survey.flux, survey.valid, min_coverage=config.predict.min_coverage)
    train, val = (split == "train") & seen, (split == "val") & seen
    if not train.any():
        raise ValueError(f"arm {name}, fold {fold}: none of {len(split)} spectra can be trained on")
    stars = jax.tree.map(lambda a: jnp.asarray(a[train]), survey)
    init_key, fit_key = jax.random.split(_stage_key(config, name, FINETUNE, fold + 1))
    if section.init == "scratch":
        variables = init_variables(arm.model, init_key, len(arm.wave))
    elif section.init == "pretrained":
        start = layout.stage_folder(workdir, "pretrain", name) / "final"
        variables, found = checkpoint.load_final(start)
        variables.pop("prior", None)
        if found["config"]["pretrain"].get("average") == "snapshots":
            raise ValueError(
                f"{start}: fine-tuning starts from one network, found pretrain.average 'snapshots'"
            )
        layout.check_preprocessing(found["preprocessing"], preprocessing.to_json(), str(start))
        _check_network(found, arm, str(start))
    else:
        raise ValueError(f"finetune.init must be 'pretrained' or 'scratch', found {section.init!r}")
    replayed = round(section.rehearsal * section.batch_size)
    anchored = round(section.unlabelled * section.batch_size)
    observed = section.batch_size - replayed - anchored
    if observed < 1:
        raise ValueError(
            f"finetune.rehearsal {section.rehearsal} and finetune.unlabelled {section.unlabelled} leave no room "
            f"for stars in a batch of {section.batch_size}"
        )
    if section.batches not in ("random", "paired"):
        raise ValueError(f"finetune.batches must be 'random' or 'paired', found {section.batches!r}")
    steps = max(1, round(stars.flux.shape[0] / observed))
    library, residuals = None, None
    if replayed:
        # A correction is fitted between the nodes, even where nodes alone are rehearsed.
        between = config.library.interpolate or section.correction != "none"
        library = layout.load_library(workdir, preprocessing, name, interpolate=between)
        library, residuals = _corrected(library, stars, arm.normalize, section)
        if not config.library.interpolate:
            library = library._replace(cells=node_cells(len(library.labels)))
    varied = star_augment.changes_stars
    if not varied:  # the same spectra at every step: normalise them once
        stars = stars._replace(flux=jax.jit(arm.normalize)(stars.flux, stars.valid))
    unlabelled = None
    if anchored:
        other = _unlabelled(readable_stars(workdir), split, seen)
        if section.init != "pretrained" or not other.any():
            raise ValueError(
                "finetune.unlabelled needs a pre-trained network and spectra of stars that are not selected, "
                f"found init {section.init!r} and {np.count_nonzero(other)} spectra; set it to 0"
            )
        unlabelled = _anchors(
            arm, variables, survey.flux[other], survey.valid[other], section.anchor, config.label_names
        )

    def batch_fn(key: jax.Array, step: jax.Array, data: _FinetuneData) -> Batch:
        star_key, library_key, residual_key, anchor_key = jax.random.split(key, 4)
        draw = survey_draw(
            star_key,
            step,
            data.stars,
            arm.wave,
            batch=observed,
            settings=star_augment,
            edges=arm.edges if section.batches == "paired" else None,
        )
        batch = finish(draw, arm.normalize if varied else lambda flux, valid: flux, arm.edges)
        if data.unlabelled is not None:
            index = stream_indices(anchor_key, step, data.unlabelled.flux.shape[0], anchored)
            batch = join(batch, take(data.unlabelled, index))
        if not replayed:
            return batch
        more = library_draw(
            library_key, step, data.library, arm.wave, batch=replayed, settings=library_augment
        )
        if data.residuals is not None:
            # Last: residuals belong to their star's pixels, and gaps stay zero under any factor.
            residual_key = jax.random.fold_in(residual_key, step)
            low, high = section.residual_weight
            more = add_residuals(residual_key, more, data.residuals, low=low, high=high)
        return join(batch, arm.finish(more))

    data = jax.tree.map(jnp.asarray, _FinetuneData(stars, library, residuals, unlabelled))
    validation = None
    if val.any():
        held = Draw(*(jnp.asarray(a[val]) for a in survey))
        validation = jax.jit(arm.finish)(held)
    rules = layer_rules(section.layer_rates, len(config.model.filters), factor=section.rate_factor)
    parts = [(observed, soft_labels(stars.labels, stars.errors, arm.edges))]
    if replayed:
        parts.append((replayed, arm.library_targets(jax.random.fold_in(fit_key, PRIOR), data.library)))
    if anchored:
        parts.append((anchored, unlabelled.target))
    return Training(
        arm.model, variables, rules, batch_fn, data, validation, steps, fit_key, label_prior(parts)
    )


def _check_network(found: Mapping[str, Any], arm: _Arm, where: str) -> None:
    """Raises ValueError if a pre-trained network is not that of the config's section `model`."""
    free = {"dropout", "batch_norm_momentum"}  # of training alone: another value may be fine-tuned with
    models = [
        checkpoint.plain({k: v for k, v in settings.items() if k not in free})
        for settings in (dataclasses.asdict(model_settings(meta["config"])) for meta in (found, arm.meta))
    ]
    checkpoint.check_equal(*models, f"{where}: another network than that of config.model")


class _FinetuneData(NamedTuple):
    """What fine-tuning draws from; the library and the residuals are None where they have no part."""

    stars: Survey
    library: Library | None
    residuals: Any
    unlabelled: Batch | None  # spectra of other stars, with what the pre-trained network says of them


def _unlabelled(stars: Table, split: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """bool[S]: spectra of the survey that no fold trains or tests on; their labels, if any, are not used."""
    ids = np.asarray(stars["star_id"])
    return (split == "other") & ~np.isin(ids, ids[split != "other"]) & seen


def _anchors(
    arm: _Arm,
    variables: dict,
    flux: np.ndarray,
    valid: np.ndarray,
    anchor: Sequence[str],
    names: Sequence[str],
) -> Batch:
    """Spectra whose targets are the PMFs of a network (Li & Hoiem 2016, arXiv:1606.09282), for some labels."""
    if unknown := set(anchor) - set(names):
        raise ValueError(f"finetune.anchor must name labels of {tuple(names)}, found {sorted(unknown)}")

    @jax.jit
    def predict(variables: dict, flux: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        flux = arm.normalize(flux, valid)
        return flux, jax.nn.softmax(arm.model.apply(variables, flux, valid, False, True).logits)

    flux, pmf = predict(variables, jnp.asarray(flux), jnp.asarray(valid))
    known = jnp.asarray([name in anchor for name in names])[:, None]
    return Batch(
        flux,
        jnp.asarray(valid),
        jnp.where(known[..., None], pmf, 0.0),
        jnp.where(known, jnp.argmax(pmf, axis=-1), -1),
    )


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
    return apply_correction(library, found), found.residuals if max(section.residual_weight) > 0 else None
