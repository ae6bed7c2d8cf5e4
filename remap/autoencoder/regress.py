"""The stage `regress`: networks learn the labels from the library's latent features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array

from remap.autoencoder.members import (
    ADAPT,
    REGRESS,
    REGRESSOR,
    encode,
    load_members,
    member_settings,
    stage_key,
    stage_meta,
)
from remap.autoencoder.regressor import (
    Examples,
    Regressor,
    RegressorSettings,
    RegressorTerms,
    Scaling,
    find_scaling,
    init_networks,
    predict_labels,
    regressor_loss,
    standardise,
)
from remap.autoencoder.sources import held_pool, open_source, training_pool
from remap.preprocess.description import Preprocessing
from remap.sampling.sources import stream_indices
from remap.store import checkpoint
from remap.store.workdir import check_prepared, stage_folder, write_config
from remap.train.loop import fit_function, fit_settings
from remap.train.optim import make_optimizer, sgdr


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
    section = config.regressor
    pool = held = None
    for encoder in encoders(config):
        meta = _regressor_meta(config, preprocessing, encoder)
        folder = stage_folder(workdir, REGRESSOR, encoder)
        if checkpoint.is_finished(folder, meta):
            continue
        if pool is None:
            source = open_source(config, workdir, preprocessing)
            pool, held = training_pool(config, source), held_pool(config, source)
        members = load_members(config, workdir, encoder)
        chunk = config.autoencoder.chunk
        examples = Examples(jnp.asarray(encode(members, pool.pixels.flux, chunk=chunk)), pool.labels)
        aside = Examples(jnp.asarray(encode(members, held.pixels.flux, chunk=chunk)), held.labels)
        scaling = find_scaling(examples)
        model = build_regressor(config)
        init_key, fit_key = jax.random.split(stage_key(config, REGRESS))
        params = init_networks(
            model,
            init_key,
            autoencoders=len(members),
            networks=section.networks,
            labels=examples.labels.shape[1],
            features=examples.latent.shape[2],
        )
        count = examples.labels.shape[0]
        settings = fit_settings(section, max(1, count // section.batch_size))
        schedule = sgdr(
            peak=section.rate_high,
            end=section.rate_low,
            cycles=section.cycles,
            steps_per_cycle=settings.steps_per_cycle,
        )

        def batch_fn(key: Array, step: Array, data: Examples, count: int = count) -> Examples:
            index = stream_indices(key, step, count, section.batch_size)
            return Examples(data.latent[:, index], data.labels[index])

        params = fit_function(
            lambda params, batch, model=model: regressor_loss(model, params, batch),
            params,
            # The networks have nothing in common, so that a norm over all of them would mean nothing.
            make_optimizer(params, ((".*", 1.0),), schedule, clip_norm=None),
            batch_fn,
            _scaled(examples, scaling),
            _scaled(aside, scaling),
            terms=RegressorTerms,
            settings=settings,
            key=fit_key,
            schedule=schedule,
            folder=folder,
            meta=meta,
            name=f"regressor {encoder}",
        )
        error = predict_labels(model, params, scaling, aside.latent) - aside.labels.T[None, None]
        variables = {
            "params": params,
            "scaling": scaling._asdict(),
            "residual": jnp.sqrt(jnp.mean(error**2, axis=-1)),
        }
        total = settings.epochs * settings.steps_per_epoch
        checkpoint.save_final(folder / "final", variables, meta | {"step": total})
    write_config(workdir, config)


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
