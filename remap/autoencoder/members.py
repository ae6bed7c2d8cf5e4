"""A route's settings, and the members of its ensemble: where they lie, and how they are read back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from remap.autoencoder.inputs import Noise
from remap.autoencoder.network import Autoencoder, AutoencoderLoss, AutoencoderSettings
from remap.autoencoder.regressor import RegressSettings
from remap.config import ConfigError, Section, deciding, record
from remap.preprocess.description import Preprocessing
from remap.sampling.mixture import library_weights
from remap.store import checkpoint
from remap.store.workdir import check_prepared, library_path, stage_folder, survey_path
from remap.train.loop import FitSettings

AUTOENCODER, ADAPT, REGRESSOR = "autoencoder", "adapt", "regressor"  # stages, and config sections
ENCODERS = {"library": AUTOENCODER, "adapted": ADAPT}  # name in the config -> stage that makes it


class Member(NamedTuple):
    """One autoencoder of the ensemble."""

    model: Autoencoder
    params: Any
    step: int  # training steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleSettings(FitSettings):
    """Of the autoencoders and what they are trained on (config section `autoencoder`); rates are those of members.

    Attributes:
      scale_low, scale_high: normalised flux that becomes 0 and 1.
      centre: True subtracts the continuum from what the first layer sees, which is multiplied by `gain`.
      limits: label -> (low, high) of library draws; none = the whole library.
      latent, bottleneck: see `AutoencoderSettings`.
      contractive, penalty: see `AutoencoderLoss`.
      members: width, L1 weight and peak rate of each.
      noise_low, noise_high, denoise: see `Noise`.
      examples: library spectra drawn once, for autoencoders and regressors.
      chunk: spectra that are drawn or encoded at a time.
      batch_size: spectra in a batch.
      rate_fall: last over first rate of a cycle.
      validation: fraction of the library's cells kept aside; `validation_size`: spectra drawn from these.
    """

    cycles: int = 1
    epochs_per_cycle: int = 120
    checkpoint_epochs: int = 20
    keep: int = 1
    scale_low: float = 0.0
    scale_high: float = 1.2
    centre: bool = False
    gain: float = 1.0
    limits: Section = dataclasses.field(default_factory=dict)
    latent: int = 32
    bottleneck: str = "relu"
    contractive: float = 1e-4
    penalty: str = "exact"
    members: tuple[tuple[int | float, ...], ...] = (
        (1024, 1e-7, 1e-4),
        (1280, 1e-7, 1e-4),
        (1536, 1e-7, 1e-4),
        (1792, 1e-7, 1e-4),
        (2048, 1e-7, 1e-4),
    )
    noise_low: float = 0.0
    noise_high: float = 0.0
    denoise: bool = False
    examples: int = 22933
    chunk: int = 256
    batch_size: int = 128
    rate_fall: float = 1.0
    validation: float = 0.1
    validation_size: int = 2048

    @property
    def noise(self) -> Noise:
        """The noise of library spectra."""
        return Noise(self.noise_low, self.noise_high, self.denoise)

    def member(self, i: int) -> dict[str, Any]:
        """Width, L1 weight and peak rate of a member."""
        width, l1, rate = self.members[i]
        return {"width": int(width), "l1": float(l1), "rate": float(rate)}

    def model(self, width: int, pixels: int) -> Autoencoder:
        """An autoencoder of a given width."""
        low, high = self.scale_low, self.scale_high
        centre = (1.0 - low) / (high - low) if self.centre else 0.0  # the continuum
        settings = AutoencoderSettings(width, self.latent, self.bottleneck, centre, self.gain)
        return Autoencoder(settings, pixels)

    def loss(self, l1: float) -> AutoencoderLoss:
        """The loss, with a member's own weight of the activity."""
        return AutoencoderLoss(self.contractive, self.penalty, l1)


@dataclasses.dataclass(frozen=True)
class Route:
    """A working folder of the route and what its stages share.

    Attributes:
      workdir: it.
      preprocessing: of its data.
      seed: of all random numbers.
      interpolate: True draws library spectra from cells, False takes its nodes.
      weights: share of the draws of each library (`mixture.library_weights`).
      min_coverage: valid fraction of an arm below which a survey spectrum is left out.
      kept_aside: fraction of the stars that the fine-tuning does not see.
      autoencoder, regressor: settings of these sections.
      member_metas: stage -> what describes each autoencoder after it.
      regressor_metas: encoder -> what describes the regressors of its features.
    """

    workdir: Path
    preprocessing: Preprocessing
    seed: int
    interpolate: bool
    weights: Mapping[str, float]
    min_coverage: float
    kept_aside: float
    autoencoder: EnsembleSettings
    regressor: RegressSettings
    member_metas: Mapping[str, Sequence[dict[str, Any]]]
    regressor_metas: Mapping[str, dict[str, Any]]

    @property
    def pixels(self) -> int:
        """Of all arms."""
        return sum(len(self.preprocessing.wave(arm)) for arm in self.preprocessing.arms)

    def files(self, *, survey: bool) -> list[Path]:
        """The prepared data that a training reads: the libraries, and the survey's spectra where it asks for them."""
        data, arms = self.workdir / "data", self.preprocessing.arms
        out = [library_path(data, arm, name) for name in self.weights for arm in arms]
        return [*out, *(survey_path(data, arm) for arm in arms if survey)]


def open_route(config: ml_collections.ConfigDict, workdir: Path) -> Route:
    """The route in a working folder.

    Raises:
      FileNotFoundError: nothing has been prepared there.
      ValueError: the data were prepared with other settings, or settings that cannot be.
    """
    return make_route(config, workdir, check_prepared(config, workdir))


def make_route(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> Route:
    """As `open_route`, of a folder whose preprocessing has been read already."""
    settings = record(EnsembleSettings, config.autoencoder, "autoencoder")
    regressor = record(RegressSettings, config.regressor, "regressor")
    if regressor.encoder not in ENCODERS:
        raise ConfigError(f"regressor.encoder must be one of {sorted(ENCODERS)}, found {regressor.encoder!r}")
    own = [settings.member(i) for i in range(len(settings.members))]
    return Route(
        workdir=workdir,
        preprocessing=preprocessing,
        seed=config.seed,
        interpolate=config.library.interpolate,
        weights=library_weights(config),
        min_coverage=config.predict.min_coverage,
        kept_aside=config.adapt.validation,
        autoencoder=settings,
        regressor=regressor,
        member_metas={s: _member_metas(config, preprocessing, s, own) for s in ENCODERS.values()},
        regressor_metas={e: _regressor_meta(config, preprocessing, e, own) for e in ENCODERS},
    )


def fit_settings(settings: FitSettings, rate: float, fall: float) -> FitSettings:
    """Length and rates of a training of one member.

    Args:
      settings: of the stage.
      rate: the first.
      fall: last over first rate of a cycle.
    """
    return dataclasses.replace(settings, rate_high=rate, rate_low=rate * fall)


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


def _member_metas(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, stage: str, own: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What describes each autoencoder after a stage; `own` are the settings of each."""
    sections = () if stage == AUTOENCODER else (stage,)
    meta = stage_meta(config, preprocessing, stage, sections)
    if stage == ADAPT:
        meta["min_coverage"] = config.predict.min_coverage
        if config.adapt.align.kind != "none" and config.adapt.align.match:
            # All members together say which cells the stars are in.
            meta["matched_by"] = own
    return [meta | {"member": one} for one in own]


def _regressor_meta(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, encoder: str, own: list[dict[str, Any]]
) -> dict[str, Any]:
    """What describes the regressors of the features of an encoder."""
    sections = (REGRESSOR,) if encoder == "library" else (ADAPT, REGRESSOR)
    meta = stage_meta(config, preprocessing, REGRESSOR, sections)
    meta["config"][REGRESSOR].pop("encoder")  # those of "library" are the same whatever is used in the end
    return meta | {"encoder": encoder, "members": own}


def load_members(config: ml_collections.ConfigDict, workdir: Path, encoder: str) -> list[Member]:
    """As `read_members`, of a working folder that is not open yet."""
    return read_members(open_route(config, workdir), encoder)


def read_members(route: Route, encoder: str) -> list[Member]:
    """The autoencoders of a working folder.

    Args:
      encoder: "library", as trained on the library, or "adapted", after their fine-tuning on the survey.

    Raises:
      FileNotFoundError: one of them has not been trained.
      ValueError: one of them was trained with other settings, or no such encoder.
    """
    if encoder not in ENCODERS:
        raise ConfigError(f"the encoder must be one of {sorted(ENCODERS)}, found {encoder!r}")
    stage = ENCODERS[encoder]
    members, known = [], {}
    for i, meta in enumerate(route.member_metas[stage]):
        folder = member_folder(route.workdir, stage, i)
        variables, found = checkpoint.load_final(folder / "final")
        step = found.pop("step")
        checkpoint.check_equal(found, checkpoint.plain(meta), f"{folder}: trained with other settings")
        # Members may have equal settings, so that only their parameters tell a copy.
        if (other := known.setdefault(checkpoint.array_hash(variables), folder)) != folder:
            raise ConfigError(f"{folder}: holds the network of {other} once more")
        model = route.autoencoder.model(route.autoencoder.member(i)["width"], route.pixels)
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
