"""The stage `regress`: networks learn the labels from the library's latent features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array

from remap.autoencoder.members import (
    ADAPT,
    ENCODERS,
    REGRESSOR,
    Route,
    encode,
    open_route,
    read_members,
)
from remap.autoencoder.regressor import (
    Examples,
    Regressor,
    RegressorObjective,
    RegressSettings,
    Scaling,
    find_scaling,
    init_networks,
    predict_labels,
    standardise,
    take_examples,
)
from remap.autoencoder.sources import held_pool, read_source, training_pool
from remap.sampling.batches import FixedSource
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.workdir import stage_folder, write_config
from remap.train.keys import root_key
from remap.train.loop import Run, fit
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


def encoders(settings: RegressSettings) -> tuple[str, ...]:
    """The encoders whose library features regressors are trained on: before the fine-tuning, and the chosen one."""
    return tuple(dict.fromkeys(("library", settings.encoder)))


def regress(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Trains the regressors, all autoencoders × networks × labels at once, for every encoder in use.

    `regressor.encoder` "library" trains them on features of the encoders before their fine-tuning (published: the
    library's features come from those, the stars' from the fine-tuned ones); "adapted" has one encoder for both.
    """
    route = open_route(config, Path(workdir))
    pools = None
    for encoder in encoders(route.regressor):
        meta = route.regressor_metas[encoder]
        folder = stage_folder(route.workdir, REGRESSOR, encoder)
        if checkpoint.is_finished(folder, meta):
            check_inputs(folder, route.workdir)
            continue
        if pools is None:
            source = read_source(route)
            pools = training_pool(route, source), held_pool(route, source)
        members = read_members(route, encoder)
        chunk = route.autoencoder.chunk
        examples, aside = (
            Examples(jnp.asarray(encode(members, pool.pixels.flux, chunk=chunk)), pool.labels)
            for pool in pools
        )
        with hold(folder):
            save_inputs(folder, route.workdir, route.files(survey=ENCODERS[encoder] == ADAPT))
        key = root_key(route.seed, "regressor")
        named = {"folder": folder, "meta": meta, "name": f"regressor {encoder}"}
        _fit_regressors(route.regressor, key, examples, aside, **named)
    write_config(route.workdir, config)


def _fit_regressors(
    settings: RegressSettings,
    key: Array,
    examples: Examples,
    aside: Examples,
    *,
    folder: Path,
    meta: dict[str, Any],
    name: str,
) -> None:
    """Trains the regressors of one encoder and saves them with their error on the examples kept aside."""
    scaling = find_scaling(examples)
    model = settings.model
    init_key, fit_key = jax.random.split(key)
    autoencoders, count, features = examples.latent.shape
    params = init_networks(
        model,
        init_key,
        autoencoders=autoencoders,
        networks=settings.networks,
        labels=examples.labels.shape[1],
        features=features,
    )
    # The networks have nothing in common, so that a norm over all of them would mean nothing.
    unclipped = dataclasses.replace(settings, clip_norm=None)
    run = Run(unclipped, max(1, count // settings.batch_size), fit_key, folder, meta, name)
    source = FixedSource(_scaled(examples, scaling), count, settings.batch_size, take_examples)
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


def load_regressors(route: Route, encoder: str) -> Regressors:
    """The regressors trained on the features of an encoder ("library" or "adapted").

    Raises:
      FileNotFoundError: they have not been trained.
      ValueError: they were trained with other settings.
    """
    folder = stage_folder(route.workdir, REGRESSOR, encoder)
    variables, found = checkpoint.load_final(folder / "final")
    step = found.pop("step")
    expected = checkpoint.plain(route.regressor_metas[encoder])
    checkpoint.check_equal(found, expected, f"{folder}: trained with other settings")
    variables = jax.tree.map(jnp.asarray, variables)
    return Regressors(
        route.regressor.model,
        variables["params"],
        Scaling(**variables["scaling"]),
        np.asarray(variables["residual"]),
        int(step),
    )
