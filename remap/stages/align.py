"""The stage align, between pretrain and finetune: the features of library and survey pulled together without labels.

Each arm's pre-trained network goes on learning the library while a second term holds its pooled features of observed
spectra close to those of library spectra (`align.kind`):

    mmd, coral    their discrepancy (`remap.network.discrepancy`; Long et al. 2015, arXiv:1502.02791;
                  Sun & Saenko 2016)
    autoencoder   the error of a decoder that makes both kinds of spectra from them (Ghifary et al. 2016,
                  arXiv:1607.03516), the main route's counterpart of `remap.autoencoder.network`

No label of an observed star is looked at, but all spectra are, the test stars of later folds too, unless
`align.validation` keeps them aside. Fine-tuning and prediction then start from here instead of `pretrain`. The
pre-trained batch statistics stay.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Bool, Float

from remap import sharding
from remap.config import ConfigError, record
from remap.continuum.common import NormalizeFn
from remap.labels import label_prior
from remap.network.discrepancy import AlignSettings, Scale, discrepancy, find_scale
from remap.network.layers import mish
from remap.network.losses import LossSettings
from remap.network.resnet import Outputs, ResNet1D
from remap.pmf.distributions import pmf_quantile
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.augment import Batch, finish, join, take
from remap.sampling.batches import (
    FixedSource,
    LibrarySource,
    fixed_rows,
    normalize_in_chunks,
    source_tree,
    static,
)
from remap.sampling.folds import split_stars
from remap.sampling.sources import locate_each, matched_cells
from remap.stages.common import (
    Arm,
    first_network,
    library_files,
    network_pmfs,
    open_arm,
)
from remap.stages.pretrain import Pretraining, held_out_batch, pretraining
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.stars import readable_stars
from remap.store.workdir import check_prepared, load_survey, stage_folder, survey_path, write_config
from remap.train.keys import root_key
from remap.train.loop import FitSettings, Run, draw_batch, fit
from remap.train.objectives import Stateless, Task, batch_loss

logger = logging.getLogger(__name__)


class Observed(NamedTuple):
    """Normalised observed spectra."""

    flux: Float[Array, "stars pixels"]
    valid: Bool[Array, "stars pixels"]


class AlignBatch(NamedTuple):
    """What a step sees."""

    library: (
        Batch  # first half: of the whole library; second: library spectra that the stars are compared with
    )
    stars: Observed


class AlignTerms(NamedTuple):
    """Parts of the loss of the stage."""

    total: Float[Array, ""]
    labels: Float[Array, ""]  # the loss of pre-training, over all library spectra
    alignment: Float[Array, ""]  # before its weight


class Decoder(nn.Module):
    """Depth below the continuum from the features: dense, Mish, dense."""

    hidden: int
    pixels: int

    @nn.compact
    def __call__(self, features: Float[Array, "stars features"]) -> Float[Array, "stars pixels"]:
        return nn.Dense(self.pixels)(mish(nn.Dense(self.hidden)(features)))


def align(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Aligns the pre-trained network of each arm; a finished arm is left as it is, and so are all for "none"."""
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    settings = record(AlignStageSettings, config.align, "align")
    if settings.kind == "none":
        logger.info("align: nothing to do, align.kind is 'none'")
        return
    min_coverage = config.predict.min_coverage
    for name in preprocessing.arms:
        folder = stage_folder(workdir, "align", name)
        arm = open_arm(config, preprocessing, name, "align")
        arm = dataclasses.replace(arm, meta=arm.meta | {"min_coverage": min_coverage})
        if checkpoint.is_finished(folder, arm.meta):
            check_inputs(folder, workdir)
            continue
        variables = first_network(workdir, preprocessing, arm, "pretrain", ("seed", "pretrain"))
        pre = pretraining(config, workdir, preprocessing, name)
        stars, aside = _survey_parts(workdir, arm, settings, min_coverage=min_coverage, seed=config.seed)
        source = _source(arm, preprocessing, settings, pre, variables, stars)
        key = root_key(config.seed, "align", name)
        files = [survey_path(workdir / "data", name), *library_files(config, workdir, name)]
        with hold(folder):
            save_inputs(folder, workdir, files)
            _align_arm(arm, settings, pre, variables, source, aside, key=key, folder=folder)
    write_config(workdir, config)


def held_stars(stars: Table, *, validation: float, seed: int) -> np.ndarray:
    """bool[S]: spectra that have no part in the alignment, by star.

    Args:
      stars: S rows of `store.stars.readable_stars`.
      validation: fraction of the stars (`align.validation`).
      seed: of the config.
    """
    ids = np.asarray(stars["star_id"])
    split = split_stars(ids, folds=2, fold=-1, validation=validation, seed=seed)  # fold -1: no test stars
    return split == "val"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignStageSettings(FitSettings):
    """Of this stage (config section `align`); `kind`, `weight` and `match` are those of `AlignSettings`.

    Attributes:
      decoder: hidden units of the decoder, "autoencoder" alone.
      batch_size: spectra of the library, of the stars' cells, and of stars, each.
      scale_batches: batches of the stars' cells that give the units of the features.
      floor: least variance of a feature in those units, as a fraction of the largest.
      validation: fraction of the stars kept aside, whose alignment is logged.
      stars: spectra at most, drawn at random, and half as many kept aside.
      chunk: spectra that are normalised at a time.
    """

    cycles: int = 1
    epochs_per_cycle: int = 10
    keep: int = 1
    kind: str = "none"
    weight: float = 30.0
    match: bool = True
    decoder: int = 128
    batch_size: int = 64
    scale_batches: int = 8
    floor: float = 1e-3
    validation: float = 0.2
    stars: int = 20000
    chunk: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alignment  # noqa: B018  its errors at the door

    @property
    def alignment(self) -> AlignSettings:
        """The second term of the loss."""
        return AlignSettings(self.kind, self.weight, self.match)


def _align_arm(
    arm: Arm,
    settings: AlignStageSettings,
    pre: Pretraining,
    variables: dict,
    source: AlignSource,
    aside: Observed | None,
    *,
    key: Array,
    folder: Path,
) -> None:
    """Trains the pre-trained network of an arm on; `aside` are the stars that judge it."""
    scale_key, decoder_key, fit_key = jax.random.split(key, 3)
    first = [draw_batch(source, scale_key, jnp.asarray(i, jnp.int32)) for i in range(settings.scale_batches)]
    features = np.concatenate(
        [sharding.to_host(_features(arm.model, variables, b.library))[settings.batch_size :] for b in first]
    )
    params: dict[str, Any] = {"network": variables["params"]}
    decoder = None
    if settings.kind == "autoencoder":
        decoder = Decoder(settings.decoder, len(arm.wave))
        params["decoder"] = decoder.init(decoder_key, jnp.asarray(features[:1]))["params"]
    task = Task(
        AlignObjective(arm.model, decoder, arm.loss, settings.alignment),
        params,
        AlignState(variables["batch_stats"], find_scale(features, floor=settings.floor)),
        source,
        None if aside is None else _validation(pre, first, aside),
    )
    run = Run(settings, pre.steps, fit_key, folder, arm.meta, f"align {arm.name}")
    aligned = fit(task, run.optimizer(), run).params["network"]
    # With the distribution of the labels, for `predict.combine`.
    libraries = (source.library.library, source.matched.library)
    prior = label_prior([(1.0, arm.library_targets(fit_key, library)) for library in libraries])
    out = {"params": aligned, "batch_stats": variables["batch_stats"], "prior": prior}
    checkpoint.save_final(folder / "final", out, arm.meta | {"step": run.total})


@source_tree
class AlignSource:
    """Batches of the stage: spectra of the whole library, as many of the stars' cells, and of stars.

    Attributes:
      library, matched: the two kinds of library spectra.
      stars: normalised spectra.
      edges: of the bins.
      normalize: the normaliser.
    """

    library: LibrarySource
    matched: LibrarySource
    stars: FixedSource
    edges: Float[Array, "labels edges"]
    normalize: NormalizeFn = static()

    def draw(self, key: Array, step: Array) -> AlignBatch:
        """The batch of a step."""
        library_key, star_key = jax.random.split(key)
        first, second = jax.random.split(library_key)
        draws = self.library.draw(first, step), self.matched.draw(second, step)
        both = jax.tree.map(lambda *x: jnp.concatenate(x), *draws)  # the normaliser compiles once
        return AlignBatch(finish(both, self.normalize, self.edges), self.stars.draw(star_key, step))


def _source(
    arm: Arm,
    preprocessing: Preprocessing,
    settings: AlignStageSettings,
    pre: Pretraining,
    variables: dict,
    stars: Observed,
) -> AlignSource:
    matched = pre.library
    if settings.match:
        estimates = _estimates(arm, preprocessing, variables, stars, settings.chunk)
        cell = locate_each(pre.library, estimates)
        matched = jax.tree.map(jnp.asarray, matched_cells(pre.library, cell))
        logger.info(
            "align %s: library spectra from %d cells for %d stars",
            arm.name,
            len(matched.cells),
            len(estimates),
        )
    parts = [
        LibrarySource(library, arm.wave, settings.batch_size, arm.augment, pre.source.spectra.nuisances)
        for library in (pre.library, matched)
    ]
    return AlignSource(*parts, fixed_rows(stars, settings.batch_size), arm.edges, arm.normalize)


class AlignState(NamedTuple):
    """What stays as it is while the features are aligned."""

    batch_stats: Any
    scale: Scale


@dataclasses.dataclass(frozen=True)
class AlignObjective(Stateless):
    """The loss of pre-training on library spectra + weight · how far apart stars and library are.

    Attributes:
      decoder: of kind "autoencoder", whose error is in units of the variance of the batch's depths; else None.
    """

    model: ResNet1D
    decoder: Decoder | None
    loss_settings: LossSettings
    settings: AlignSettings

    @property
    def terms(self) -> type[AlignTerms]:
        """Parts of the loss."""
        return AlignTerms

    def loss(self, params: Any, model_state: AlignState, batch: AlignBatch) -> AlignTerms:
        """The terms of a batch.

        Args:
          params: {"network": ..., "decoder": ...}, the second with a decoder only.
        """
        variables = {"params": params["network"], "batch_stats": model_state.batch_stats}
        outputs, library = network_outputs(self.model, variables, batch.library)
        labels = batch_loss(outputs, batch.library, self.loss_settings).total
        _, stars = network_outputs(self.model, variables, batch.stars)
        matched = library[library.shape[0] // 2 :]
        if self.decoder is None:
            apart = discrepancy(matched, stars, model_state.scale, kind=self.settings.kind)
        else:
            half = Observed(*(x[len(x) // 2 :] for x in batch.library[:2]))
            features = model_state.scale(jnp.concatenate([matched, stars]))
            seen = jax.tree.map(lambda *x: jnp.concatenate(x), half, batch.stars)
            apart = _decoding_error(self.decoder, params["decoder"], features, seen)
        return AlignTerms(labels + self.settings.weight * apart, labels, apart)


def _decoding_error(decoder: Decoder, params: Any, features: Array, seen: Observed) -> Array:
    depth = jnp.where(seen.valid, seen.flux - 1.0, 0.0)
    error = jnp.where(seen.valid, decoder.apply({"params": params}, features) - depth, 0.0)
    return jnp.mean(error**2) / jnp.maximum(jnp.var(depth), 1e-12)


@functools.partial(jax.jit, static_argnums=0)
def _features(model: ResNet1D, variables: dict, batch: Batch) -> Array:
    return network_outputs(model, variables, batch)[1]


def network_outputs(model: ResNet1D, variables: Any, batch: Batch | Observed) -> tuple[Outputs, Array]:
    """The outputs of a network with its running statistics, and the pooled features [S, F] that its heads see."""
    outputs, kept = model.apply(
        variables, batch.flux, batch.valid, train=False, running=True, mutable=["intermediates"]
    )
    return outputs, kept["intermediates"]["features"][0]


def _survey_parts(
    workdir: Path, arm: Arm, settings: AlignStageSettings, *, min_coverage: float, seed: int
) -> tuple[Observed, Observed | None]:
    """The survey's normalised spectra: up to `stars` to align with, and up to half as many kept aside.

    Args:
      min_coverage: valid fraction of the arm below which a spectrum has no part.
      seed: of the config.

    Raises:
      ValueError: fewer than two are left to align with.
    """
    survey, _ = load_survey(workdir, arm.name)
    seen = usable(survey.flux, survey.valid, min_coverage=min_coverage)
    held = held_stars(readable_stars(workdir), validation=settings.validation, seed=seed)
    order = np.asarray(jax.random.permutation(root_key(seed, "align", arm.name, "stars"), len(seen)))
    chosen = order[(seen & ~held)[order]][: settings.stars]
    kept = order[(seen & held)[order]][: settings.stars // 2]
    if len(chosen) < 2:
        raise ConfigError(f"align, arm {arm.name}: expected spectra to align with, found {len(chosen)}")

    def observed(rows: np.ndarray) -> Observed:
        flux, valid = survey.flux[rows], survey.valid[rows]
        return Observed(
            normalize_in_chunks(arm.normalize, flux, valid, chunk=settings.chunk), jnp.asarray(valid)
        )

    return observed(chosen), observed(kept) if len(kept) else None


def _estimates(
    arm: Arm, preprocessing: Preprocessing, variables: Any, stars: Observed, chunk: int
) -> np.ndarray:
    """float[S, L]: medians of the PMFs that a network gives the stars."""
    pmf = np.asarray(network_pmfs(arm.model, variables, *stars, chunk=chunk))
    return np.stack(
        [pmf_quantile(pmf[j][:, : b.bins], b.edges, 0.5) for j, b in enumerate(preprocessing.labels)], axis=1
    )


def _validation(pre: Pretraining, batches: Sequence[AlignBatch], aside: Observed) -> AlignBatch:
    """Stars kept aside, as many library spectra of their cells, and as many of held-out cells (of any without)."""
    seen = functools.reduce(join, (batch.library for batch in batches))
    count = len(aside.flux)
    size = batches[0].library.flux.shape[0]
    matched = np.flatnonzero(np.arange(len(seen.flux)) % size >= size // 2)
    held = held_out_batch(pre) if len(pre.held_out) else seen
    index = jnp.arange(count)
    return AlignBatch(
        join(take(held, index % len(held.flux)), take(seen, jnp.asarray(np.resize(matched, count)))), aside
    )
