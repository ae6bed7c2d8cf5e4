"""The members of the autoencoder ensemble: what they are trained on, where they lie, and how they are read back."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from remap.autoencoder.network import Autoencoder, AutoencoderLoss, AutoencoderSettings
from remap.config import ConfigError, deciding, record
from remap.preprocess.description import Preprocessing
from remap.store import checkpoint
from remap.store.workdir import check_prepared, stage_folder
from remap.train.loop import FitSettings

AUTOENCODER, ADAPT, REGRESSOR = "autoencoder", "adapt", "regressor"  # stages, and config sections
ENCODERS = {"library": AUTOENCODER, "adapted": ADAPT}  # name in the config -> stage that makes it


class Member(NamedTuple):
    """One autoencoder of the ensemble."""

    model: Autoencoder
    params: Any
    step: int  # training steps


def member_settings(config: ml_collections.ConfigDict, member: int) -> dict[str, Any]:
    """Width, L1 weight and peak rate of a member."""
    width, l1, rate = config.autoencoder.members[member]
    return {"width": int(width), "l1": float(l1), "rate": float(rate)}


def build_autoencoder(config: ml_collections.ConfigDict, width: int, pixels: int) -> Autoencoder:
    """The autoencoder that a config describes, of a given width."""
    section = config.autoencoder
    low, high = section.scale_low, section.scale_high
    centre = (1.0 - low) / (high - low) if section.centre else 0.0  # the continuum
    settings = AutoencoderSettings(width, section.latent, section.bottleneck, centre, section.gain)
    return Autoencoder(settings, pixels)


def loss_settings(config: ml_collections.ConfigDict, l1: float) -> AutoencoderLoss:
    """The loss that a config describes, with a member's own weight of the activity."""
    return AutoencoderLoss(config.autoencoder.contractive, config.autoencoder.penalty, l1)


def fit_settings(section: ml_collections.ConfigDict, name: str, rate: float) -> FitSettings:
    """Length and rates of a training of one member.

    Args:
      section: of the config, with `rate_fall`, the last over the first rate of a cycle.
      name: of the section.
      rate: the first.
    """
    settings = record(FitSettings, section, name, part=True)
    return dataclasses.replace(settings, rate_high=rate, rate_low=rate * section.rate_fall)


def member_folder(workdir: Path, stage: str, member: int) -> Path:
    """Where a stage keeps one autoencoder."""
    return stage_folder(workdir, stage, f"member_{member}")


def stage_meta(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, stage: str, sections: tuple[str, ...]
) -> dict[str, Any]:
    """What must agree for a run of a stage to be continued or used.

    The list of members is left out, so that one can be added without training the others again.
    """
    kept = deciding(config, AUTOENCODER, also=sections)
    return {"stage": stage, "preprocessing": preprocessing.to_json(), "config": kept}


def member_meta(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, stage: str, member: int
) -> dict[str, Any]:
    """What describes one autoencoder after a stage."""
    sections = () if stage == AUTOENCODER else (stage,)
    meta = stage_meta(config, preprocessing, stage, sections)
    if stage == ADAPT:
        meta["min_coverage"] = config.predict.min_coverage
        if config.adapt.align.kind != "none" and config.adapt.align.match:
            # All members together say which cells the stars are in.
            meta["matched_by"] = [member_settings(config, i) for i in range(len(config.autoencoder.members))]
    return meta | {"member": member_settings(config, member)}


def load_members(config: ml_collections.ConfigDict, workdir: Path, encoder: str) -> list[Member]:
    """The autoencoders of a working folder.

    Args:
      encoder: "library", as trained on the library, or "adapted", after their fine-tuning on the survey.

    Raises:
      FileNotFoundError: one of them has not been trained.
      ValueError: one of them was trained with other settings, or no such encoder.
    """
    if encoder not in ENCODERS:
        raise ConfigError(f"the encoder must be one of {sorted(ENCODERS)}, found {encoder!r}")
    preprocessing = check_prepared(config, workdir)
    pixels = sum(len(preprocessing.wave(arm)) for arm in preprocessing.arms)
    stage = ENCODERS[encoder]
    members = []
    for i in range(len(config.autoencoder.members)):
        folder = member_folder(workdir, stage, i)
        variables, found = checkpoint.load_final(folder / "final")
        step = found.pop("step")
        expected = checkpoint.plain(member_meta(config, preprocessing, stage, i))
        checkpoint.check_equal(found, expected, f"{folder}: trained with other settings")
        model = build_autoencoder(config, member_settings(config, i)["width"], pixels)
        members.append(Member(model, jax.tree.map(jnp.asarray, variables["params"]), int(step)))
    return members


def encode(
    members: list[Member], flux: Float[Array, "stars pixels"], *, chunk: int
) -> Float[np.ndarray, "autoencoders stars features"]:
    """Latent features of every member; the widths differ, so one after the other.

    Args:
      flux: scaled, from `remap.autoencoder.inputs`.
      chunk: spectra at a time.
    """
    parts = [flux[i : i + chunk] for i in range(0, len(flux), chunk)]
    return np.stack(
        [np.concatenate([np.asarray(_latent(m.model, m.params, part)) for part in parts]) for m in members]
    )


@functools.partial(jax.jit, static_argnums=0)
def _latent(
    model: Autoencoder, params: Any, flux: Float[Array, "stars pixels"]
) -> Float[Array, "stars features"]:
    """Compiled once for each width and number of spectra, whichever member asks."""
    return model.apply({"params": params}, flux, method="encode")
