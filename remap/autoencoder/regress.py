"""The stage `regress`: networks learn the labels from the library's latent features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from remap.autoencoder.members import (
    ADAPT,
    REGRESSOR,
    encode,
    load_members,
    member_settings,
    stage_meta,
)
from remap.autoencoder.regressor import (
    Examples,
    Regressor,
    RegressorObjective,
    RegressorSettings,
    Scaling,
    find_scaling,
    init_networks,
    predict_labels,
    standardise,
    take_examples,
)
from remap.autoencoder.sources import held_pool, open_source, training_pool
from remap.config import record
from remap.preprocess.description import Preprocessing
from remap.sampling.batches import FixedSource
from remap.store import checkpoint
from remap.store.workdir import check_prepared, stage_folder, write_config
from remap.train.keys import root_key
from remap.train.loop import FitSettings, Run, fit
from remap.train.objectives import Task


class Regressors(NamedTuple):
    """The networks that belong to one kind of encoder."""

    model: Regressor
    params: Any  # leading axes [A, C, L]
    scaling: Scaling
    residual: (
        np.ndarray
    )  # float[A, C, L], rms error on library spectra of cells kept aside, units of the labels
    step: int


def encoders(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The encoders whose library features regressors are trained on: before the fine-tuning, and the config's."""
    return tuple(dict.fromkeys(("library", config.regressor.encoder)))


def _regressor_meta(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, encoder: str
) -> dict[str, Any]:
    sections = (REGRESSOR,) if encoder == "library" else (ADAPT, REGRESSOR)
    meta = stage_meta(config, preprocessing, REGRESSOR, sections)
    meta["config"][REGRESSOR].pop("encoder")  # those of "library" are the same whatever is used in the end
    members = [member_settings(config, i) for i in range(len(config.autoencoder.members))]
    return meta | {"encoder": encoder, "members": members}


def build_regressor(config: ml_collections.ConfigDict) -> Regressor:
    """The network that the config section `regressor` describes."""
    section = config.regressor
    return Regressor(RegressorSettings(tuple(section.filters), tuple(section.dense)))


def regress(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains the regressors, all autoencoders × networks × labels at once, for every encoder in use.

    `regressor.encoder` "library" trains them on features of the encoders before their fine-tuning (published: the
    library's features come from those, the stars' from the fine-tuned ones); "adapted" has one encoder for both.
    """
    workdir = Path(workdir)
    preprocessing = check_prepared(config, workdir)
    pools = None
    for encoder in encoders(config):
        meta = _regressor_meta(config, preprocessing, encoder)
        folder = stage_folder(workdir, REGRESSOR, encoder)
        if checkpoint.is_finished(folder, meta):
            continue
        if pools is None:
            source = open_source(config, workdir, preprocessing)
            pools = training_pool(config, source), held_pool(config, source)
        members = load_members(config, workdir, encoder)
        chunk = config.autoencoder.chunk
        examples, aside = (
            Examples(jnp.asarray(encode(members, pool.pixels.flux, chunk=chunk)), pool.labels)
            for pool in pools
        )
        _fit_regressors(config, examples, aside, folder=folder, meta=meta, name=f"regressor {encoder}")
    write_config(workdir, config)


def _fit_regressors(
    config: ml_collections.ConfigDict,
    examples: Examples,
    aside: Examples,
    *,
    folder: Path,
    meta: dict[str, Any],
    name: str,
) -> None:
    """Trains the regressors of one encoder and saves them with their error on the examples kept aside."""
    section = config.regressor
    scaling = find_scaling(examples)
    model = build_regressor(config)
    init_key, fit_key = jax.random.split(root_key(config.seed, "regressor"))
    autoencoders, count, features = examples.latent.shape
    params = init_networks(
        model,
        init_key,
        autoencoders=autoencoders,
        networks=section.networks,
        labels=examples.labels.shape[1],
        features=features,
    )
    # The networks have nothing in common, so that a norm over all of them would mean nothing.
    settings = dataclasses.replace(record(FitSettings, section, "regressor", part=True), clip_norm=None)
    run = Run(settings, max(1, count // section.batch_size), fit_key, folder, meta, name)
    source = FixedSource(_scaled(examples, scaling), count, section.batch_size, take_examples)
    task = Task(RegressorObjective(model), params, (), source, _scaled(aside, scaling))
    params = fit(task, run.optimizer(), run).params
    error = predict_labels(model, params, scaling, aside.latent) - aside.labels.T[None, None]
    variables = {
        "params": params,
        "scaling": scaling._asdict(),
        "residual": jnp.sqrt(jnp.mean(error**2, axis=-1)),
    }
    checkpoint.save_final(folder / "final", variables, meta | {"step": run.total})


def _scaled(examples: Examples, scaling: Scaling) -> Examples:
    labels = (examples.labels - scaling.label_mean[None]) / scaling.label_std[None]
    return Examples(standardise(examples.latent, scaling), labels)


def load_regressors(config: ml_collections.ConfigDict, workdir: Path, encoder: str) -> Regressors:
    """The regressors trained on the features of an encoder ("library" or "adapted").

    Raises:
      FileNotFoundError: they have not been trained.
      ValueError: they were trained with other settings.
    """
    folder = stage_folder(workdir, REGRESSOR, encoder)
    variables, found = checkpoint.load_final(folder / "final")
    step = found.pop("step")
    expected = checkpoint.plain(_regressor_meta(config, check_prepared(config, workdir), encoder))
    checkpoint.check_equal(found, expected, f"{folder}: trained with other settings")
    variables = jax.tree.map(jnp.asarray, variables)
    return Regressors(
        build_regressor(config),
        variables["params"],
        Scaling(**variables["scaling"]),
        np.asarray(variables["residual"]),
        int(step),
    )
