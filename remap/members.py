"""The members of the autoencoder ensemble: what they are trained on, where they lie, and how they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from remap.autoencoder import Autoencoder, AutoencoderLoss, AutoencoderSettings
from remap.config import config_to_json
from remap.preprocess.description import Preprocessing
from remap.sampling.sources import Library
from remap.store import checkpoint
from remap.store.workdir import check_prepared, stage_folder
from remap.window import Noise, Pool, Ranges, Window, draw_pool, limit_cells, load_libraries, make_window

AUTOENCODER, ADAPT, REGRESSOR = "autoencoder", "adapt", "regressor"  # stages, and config sections
ENCODERS = {"library": AUTOENCODER, "adapted": ADAPT}  # name in the config -> stage that makes it
SPLIT, POOL, HELD, TRAIN, TUNE, REGRESS, MATCH, SEARCH, MATCHED = range(9)  # folded into the keys


class Member(NamedTuple):
    """One autoencoder of the ensemble."""

    model: Autoencoder
    params: Any
    step: int  # training steps


class Source(NamedTuple):
    """The library of a working folder, ready to be drawn from."""

    window: Window
    libraries: tuple[Library, ...]  # of the arms
    cells: np.ndarray  # int[K], those within the limits that are trained on
    ranges: Ranges  # of those
    held_cells: np.ndarray  # int[H], those kept aside
    held_ranges: Ranges


def stage_key(config: ml_collections.ConfigDict, *what: int) -> Array:
    """The root key of a run: a function of the seed and of what is run."""
    key = jax.random.key(config.seed)
    for number in what:
        key = jax.random.fold_in(key, number)
    return key


def open_window(config: ml_collections.ConfigDict, preprocessing: Preprocessing) -> Window:
    """How the config scales the pixels of all arms."""
    section = config.autoencoder
    return make_window(preprocessing, low=section.scale_low, high=section.scale_high)


def open_source(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> Source:
    """The library with the cells that training may draw from, and those kept aside for validation."""
    section = config.autoencoder
    libraries = load_libraries(workdir, preprocessing, interpolate=config.library.interpolate)
    cells, ranges = limit_cells(libraries[0], section.limits, [b.name for b in preprocessing.labels])
    order = np.asarray(jax.random.permutation(stage_key(config, SPLIT), len(cells)))
    held = round(section.validation * len(cells))
    if not 0 < held < len(cells):
        raise ValueError(
            f"autoencoder.validation {section.validation} of {len(cells)} library cells: expected at least one "
            f"kept aside and one to train on, found {held} kept aside"
        )
    aside, trained = order[:held], order[held:]
    return Source(
        open_window(config, preprocessing),
        libraries,
        cells[trained],
        Ranges(*(r[trained] for r in ranges)),
        cells[aside],
        Ranges(*(r[aside] for r in ranges)),
    )


def noise_settings(config: ml_collections.ConfigDict) -> Noise:
    """The noise of library spectra, from the config section `autoencoder`."""
    section = config.autoencoder
    return Noise(section.noise_low, section.noise_high, section.denoise)


def training_pool(config: ml_collections.ConfigDict, source: Source) -> Pool:
    """The library spectra that autoencoders and regressors are trained on."""
    section = config.autoencoder
    return draw_pool(
        stage_key(config, POOL),
        source.libraries,
        source.cells,
        source.ranges,
        count=section.examples,
        chunk=section.chunk,
        window=source.window,
        noise=noise_settings(config),
    )


def held_pool(config: ml_collections.ConfigDict, source: Source) -> Pool:
    """Library spectra of cells that no network has seen."""
    section = config.autoencoder
    return draw_pool(
        stage_key(config, HELD),
        source.libraries,
        source.held_cells,
        source.held_ranges,
        count=section.validation_size,
        chunk=section.chunk,
        window=source.window,
        noise=noise_settings(config),
    )


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


def member_folder(workdir: Path, stage: str, member: int) -> Path:
    """Where a stage keeps one autoencoder."""
    return stage_folder(workdir, stage, f"member_{member}")


def stage_meta(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, stage: str, sections: tuple[str, ...]
) -> dict[str, Any]:
    """What must agree for a run of a stage to be continued or used.

    The list of members is left out, so that one can be added without training the others again.
    """
    plain = config_to_json(config)
    kept = {k: plain[k] for k in ("name", "seed", "library", AUTOENCODER, *sections)}
    kept[AUTOENCODER] = {k: v for k, v in kept[AUTOENCODER].items() if k != "members"}
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
        raise ValueError(f"the encoder must be one of {sorted(ENCODERS)}, found {encoder!r}")
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
      flux: scaled, from `remap.window`.
      chunk: spectra at a time.
    """

    def one(member: Member) -> np.ndarray:
        run = jax.jit(lambda params, x: member.model.apply({"params": params}, x, method="encode"))
        return np.concatenate(
            [np.asarray(run(member.params, flux[i : i + chunk])) for i in range(0, len(flux), chunk)]
        )

    return np.stack([one(member) for member in members])
