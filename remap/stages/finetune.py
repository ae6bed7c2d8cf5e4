"""The stage finetune: what is trained on, what stands beside the stars, and the training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import config_to_json
from remap.continuum.common import NormalizeFn
from remap.labels import label_prior, soft_labels
from remap.network.resnet import init_variables
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.augment import AugmentSettings, Batch, finish, join, library_draw, survey_draw, take
from remap.sampling.correction import add_residuals, apply_correction, fit_correction
from remap.sampling.sources import Library, Stars, node_cells, stream_indices
from remap.stages.common import (
    PRIOR,
    Arm,
    Training,
    check_network,
    check_sections,
    check_single,
    open_arm,
    start_stage,
    train_network,
)
from remap.store import checkpoint
from remap.store.stars import fold_split, readable_stars, save_split, within
from remap.store.workdir import (
    check_prepared,
    check_preprocessing,
    load_library,
    load_survey,
    stage_folder,
    write_config,
)
from remap.train.keys import FINETUNE, stage_key
from remap.train.optim import layer_rules

logger = logging.getLogger(__name__)


def finetune(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Fine-tunes the pre-trained network of each arm on the labelled stars, once per fold in `split.run`."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    stars = readable_stars(workdir)
    chosen = within(stars, config.finetune.select)
    logger.info("finetune: %d of %d spectra may be trained on", np.count_nonzero(chosen), len(stars))
    for fold in config.split.run:
        split = fold_split(stars, config, fold)
        for arm in preprocessing.arms:
            _finetune_arm(config, workdir, preprocessing, arm, fold, stars, split)
    write_config(workdir, config)


def _finetune_arm(
    config: ml_collections.ConfigDict,
    workdir: Path,
    preprocessing: Preprocessing,
    name: str,
    fold: int,
    stars: Table,
    split: np.ndarray,
) -> None:
    folder = stage_folder(workdir, "finetune", name, fold)
    arm = open_arm(config, preprocessing, name, "finetune")
    meta = arm.meta | {"fold": fold, "split": config_to_json(config)["split"]}
    if checkpoint.is_finished(folder, meta):
        return
    save_split(folder, stars, split, config, fold)
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
    arm = open_arm(config, preprocessing, name, "finetune")
    section = config.finetune
    library_augment = AugmentSettings(**{**config.augment, **section.rehearsal_augment})
    noise = {"noise_low": section.noise_low, "noise_high": section.noise_high}
    star_augment = AugmentSettings(**{**config.augment, **noise, **section.augment})
    survey, _ = load_survey(workdir, name)
    # As at prediction: an arm that hardly covers a spectrum must not learn from it.
    seen = usable(survey.flux, survey.valid, min_coverage=config.predict.min_coverage)
    train, val = (split == "train") & seen, (split == "val") & seen
    if not train.any():
        raise ValueError(f"arm {name}, fold {fold}: none of {len(split)} spectra can be trained on")
    stars = jax.tree.map(lambda a: jnp.asarray(a[train]), survey)
    init_key, fit_key = jax.random.split(stage_key(config, name, FINETUNE, fold + 1))
    if section.init == "scratch":
        variables = init_variables(arm.model, init_key, len(arm.wave))
    elif section.init == "pretrained":
        stage = start_stage(config)
        start = stage_folder(workdir, stage, name) / "final"
        variables, found = checkpoint.load_final(start)
        variables.pop("prior", None)
        check_single(found, str(start))
        check_preprocessing(found["preprocessing"], preprocessing.to_json(), str(start))
        check_network(found, arm, str(start))
        if stage == "align":
            check_sections(found, config, ("align",), f"{start}: aligned with other settings")
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
        library = load_library(workdir, preprocessing, name, interpolate=between)
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
        held = Stars(*(jnp.asarray(a[val]) for a in survey))
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


class _FinetuneData(NamedTuple):
    """What fine-tuning draws from; the library and the residuals are None where they have no part."""

    stars: Stars
    library: Library | None
    residuals: Any
    unlabelled: Batch | None  # spectra of other stars, with what the pre-trained network says of them


def _unlabelled(stars: Table, split: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """bool[S]: spectra of the survey that no fold trains or tests on; their labels, if any, are not used."""
    ids = np.asarray(stars["star_id"])
    return (split == "other") & ~np.isin(ids, ids[split != "other"]) & seen


def _anchors(
    arm: Arm,
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
        return flux, jax.nn.softmax(arm.model.apply(variables, flux, valid, train=False, running=True).logits)

    flux, pmf = predict(variables, jnp.asarray(flux), jnp.asarray(valid))
    known = jnp.asarray([name in anchor for name in names])[:, None]
    return Batch(
        flux,
        jnp.asarray(valid),
        jnp.where(known[..., None], pmf, 0.0),
        jnp.where(known, jnp.argmax(pmf, axis=-1), -1),
    )


def _corrected(
    library: Library, stars: Stars, normalize: NormalizeFn, section: ml_collections.ConfigDict
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
