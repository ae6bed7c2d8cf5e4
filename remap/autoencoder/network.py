"""The contractive autoencoder that brings spectra of both domains to a few latent features.

Mas-Buitrago et al. 2024 (A&A 687, A205, doi 10.1051/0004-6361/202449865), their slides and their published
code. Dense layers of widths w, 3w/4, w/2, w/4, w/8, then the bottleneck, then the same mirrored; ReLU between, a
sigmoid at the end, so that spectra must be scaled to 0..1 first (`remap.autoencoder.inputs`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from remap.config import ConfigError
from remap.network.discrepancy import AlignSettings, Scale, discrepancy
from remap.train.objectives import Stateless
from remap.train.optim import Rule

# Published widths of the encoder's layers before the bottleneck, as fractions of the first: numerator, denominator.
WIDTHS = ((1, 1), (3, 4), (1, 2), (1, 4), (1, 8))
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "identity": lambda x: x,
}
PENALTIES = ("exact", "published")
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())  # as the published code


class Pixels(NamedTuple):
    """A batch of spectra, scaled to 0..1."""

    flux: Float[Array, "stars pixels"]  # what goes in; the continuum's value where not valid
    target: Float[Array, "stars pixels"]  # what should come out
    valid: Bool[Array, "stars pixels"]  # pixels that count


class Coded(NamedTuple):
    """What the autoencoder makes of a batch."""

    output: Float[Array, "stars pixels"]
    latent: Float[Array, "stars features"]
    drive: Float[Array, "stars features"]  # the bottleneck before its activation
    activity: Float[Array, " stars"]  # sum of the absolute activations of the regularised layers


class AutoencoderTerms(NamedTuple):
    """Parts of the loss; every entry is a mean over the spectra."""

    total: Float[Array, ""]
    reconstruction: Float[
        Array, ""
    ]  # mean squared error over valid pixels, flux in units of the scaled range
    contractive: Float[Array, ""]  # before its weight
    activity: Float[Array, ""]  # before its weight


class AdaptTerms(NamedTuple):
    """Parts of the loss of the fine-tuning."""

    total: Float[Array, ""]
    reconstruction: Float[Array, ""]  # as of `AutoencoderTerms`, over stars and library spectra
    contractive: Float[Array, ""]
    activity: Float[Array, ""]
    alignment: Float[Array, ""]  # discrepancy of the latent features, before its weight


class AdaptBatch(NamedTuple):
    """What the fine-tuning sees in a step; None where a part is not asked for."""

    stars: Pixels
    library: Pixels | None  # rehearsed
    matched: Pixels | None  # library spectra whose features the stars' are compared with


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """Shape of an autoencoder (config section `autoencoder`).

    Attributes:
      width: w, units of the first layer; a multiple of 8, so that all widths are whole.
      latent: units of the bottleneck (published: 32).
      bottleneck: its activation, a key of `ACTIVATIONS` (published: "relu").
      centre, gain: the first layer sees gain · (flux - centre) (published: 0 and 1). Normalised spectra are nearly
        1 everywhere, so that without a centre all pixels push every unit the same way; on MILES the error after
        the same steps is five times smaller with the continuum as the centre and a gain of 10.
    """

    width: int
    latent: int = 32
    bottleneck: str = "relu"
    centre: float = 0.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ConfigError(f"autoencoder width: expected a positive multiple of 8, found {self.width}")
        if self.latent < 1:
            raise ConfigError(f"autoencoder.latent: expected at least 1, found {self.latent}")
        if not 0 <= self.centre < 1 or not self.gain > 0:
            raise ConfigError(
                f"autoencoder: expected 0 <= centre < 1 and gain > 0, found {self.centre} and {self.gain}"
            )
        if self.bottleneck not in ACTIVATIONS:
            raise ConfigError(
                f"autoencoder.bottleneck must be one of {sorted(ACTIVATIONS)}, found {self.bottleneck!r}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of the encoder's layers before the bottleneck."""
        return tuple(self.width * a // b for a, b in WIDTHS)


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the loss (config section `autoencoder`).

    Attributes:
      contractive: λ of the contractive penalty (published: 1e-4).
      penalty: "exact" for the bottleneck's own activation, or "published" (see `contractive_penalty`).
      l1: weight of the sum of absolute activations (published grid: 8e-8 to 1.2e-7).
    """

    contractive: float = 1e-4
    penalty: str = "exact"
    l1: float = 1e-7

    def __post_init__(self) -> None:
        if self.penalty not in PENALTIES:
            raise ConfigError(f"autoencoder.penalty must be one of {PENALTIES}, found {self.penalty!r}")
        if self.contractive < 0 or self.l1 < 0:
            raise ConfigError(
                f"autoencoder: expected weights contractive and l1 >= 0, found {self.contractive} and {self.l1}"
            )


class Autoencoder(nn.Module):
    """Parameters: encoder_0 to encoder_4, bottleneck, decoder_0 to decoder_4, output, in the order of the data.

    Attributes:
      settings: widths and the bottleneck's activation.
      pixels: of a spectrum.
    """

    settings: AutoencoderSettings
    pixels: int

    def setup(self) -> None:
        """Makes the layers (Flax calls it)."""
        widths = self.settings.widths
        self.encoder = [Dense(w) for w in widths]
        self.bottleneck = Dense(self.settings.latent)
        self.decoder = [Dense(w) for w in reversed(widths)]
        # With a centre, a network that knows nothing yet says the continuum.
        c = self.settings.centre
        start = nn.initializers.constant(jnp.log(c / (1 - c))) if c > 0 else nn.initializers.zeros
        self.output = Dense(self.pixels, bias_init=start)

    def __call__(self, flux: Float[Array, "stars pixels"]) -> Coded:
        """Reconstruction, latent features and what the penalties need."""
        x = nn.relu(self.encoder[0](self._centred(flux)))
        activity = jnp.zeros(flux.shape[0])  # published: the first layer is not regularised
        for layer in self.encoder[1:]:
            x = nn.relu(layer(x))
            activity += jnp.sum(x, axis=1)  # ReLU: the activations are their own absolute values
        drive = self.bottleneck(x)
        latent = ACTIVATIONS[self.settings.bottleneck](drive)
        x = latent
        for layer in self.decoder:
            x = nn.relu(layer(x))
            activity += jnp.sum(x, axis=1)
        return Coded(nn.sigmoid(self.output(x)), latent, drive, activity)

    def encode(self, flux: Float[Array, "stars pixels"]) -> Float[Array, "stars features"]:
        """The latent features alone."""
        x = self._centred(flux)
        for layer in self.encoder:
            x = nn.relu(layer(x))
        return ACTIVATIONS[self.settings.bottleneck](self.bottleneck(x))

    def _centred(self, flux: Array) -> Array:
        return self.settings.gain * (flux - self.settings.centre)


def init_params(model: Autoencoder, key: Array) -> dict:
    """Fresh parameters: Glorot uniform, biases 0 (but see `Autoencoder.setup` for the output)."""
    flux = jnp.zeros((1, model.pixels))
    return jax.jit(lambda key: model.init(key, flux)["params"])(key)


def contractive_penalty(
    drive: Float[Array, "stars features"],
    kernel: Float[Array, "inputs features"],
    *,
    activation: str,
    kind: str,
) -> Float[Array, " stars"]:
    """Squared Frobenius norm of the Jacobian of the bottleneck, ‖∂h/∂z‖² = Σ_j f'(a_j)² Σ_i W_ij².

    h = f(a), a = z W + b, z the layer before. Kind "exact" takes the derivative of the activation in use; for
    ReLU it is 1 for active units and 0 for others. Kind "published" is the formula of the published code,
    Σ_j (h_j (1 - h_j))² Σ_i W_ij², which is the derivative of a sigmoid whatever f is. On a ReLU bottleneck it is
    no Jacobian: it vanishes at h = 1 and grows with the fourth power of h. (That code also keeps W in it at its
    value when training starts; here it is the current W.)

    Args:
      drive: a.
      kernel: W.
      activation: f, a key of `ACTIVATIONS`.
      kind: "exact" or "published".

    References:
      Rifai et al. 2011, ICML, eq. 3 and §5.1 (sigmoid); "published": Mas-Buitrago et al. 2024, A&A 687, A205.
    """
    f = ACTIVATIONS[activation]
    weight = jnp.sum(kernel**2, axis=0)
    if kind == "exact":
        _, slope = jax.jvp(f, (drive,), (jnp.ones_like(drive),))  # f acts on each element alone
    elif kind == "published":
        h = f(drive)
        slope = h * (1.0 - h)
    else:
        raise ConfigError(f"penalty must be one of {PENALTIES}, found {kind!r}")
    return jnp.sum(slope**2 * weight[None, :], axis=1)


def reconstruction_error(
    output: Float[Array, "stars pixels"],
    target: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
) -> Float[Array, " stars"]:
    """Mean squared error of each spectrum over its valid pixels (0 where there is none)."""
    square = jnp.where(valid, (output - target) ** 2, 0.0)
    return jnp.sum(square, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)


def autoencoder_loss(
    model: Autoencoder, params: Any, batch: Pixels, settings: AutoencoderLoss
) -> AutoencoderTerms:
    """Mean squared error + λ · contractive penalty + l1 · activity, means over spectra (Mas-Buitrago et al. 2024)."""
    coded = model.apply({"params": params}, batch.flux)
    reconstruction = jnp.mean(reconstruction_error(coded.output, batch.target, batch.valid))
    contractive = jnp.mean(
        contractive_penalty(
            coded.drive,
            params["bottleneck"]["kernel"],
            activation=model.settings.bottleneck,
            kind=settings.penalty,
        )
    )
    activity = jnp.mean(coded.activity)
    total = reconstruction + settings.contractive * contractive + settings.l1 * activity
    return AutoencoderTerms(total, reconstruction, contractive, activity)


def adapt_loss(
    model: Autoencoder,
    params: Any,
    batch: AdaptBatch,
    settings: AutoencoderLoss,
    align: AlignSettings,
    scale: Scale | None,
) -> AdaptTerms:
    """`autoencoder_loss` of stars and rehearsed spectra + weight · discrepancy of the stars' latent features.

    Args:
      scale: units of the latent features; None where nothing is aligned.
    """
    seen = [part for part in (batch.stars, batch.library) if part is not None]
    terms = autoencoder_loss(model, params, jax.tree.map(lambda *x: jnp.concatenate(x), *seen), settings)
    apart = jnp.zeros(())
    if scale is not None:
        library, stars = (
            model.apply({"params": params}, x.flux, method="encode") for x in (batch.matched, batch.stars)
        )
        apart = discrepancy(library, stars, scale, kind=align.kind)
    return AdaptTerms(terms.total + align.weight * apart, *terms[1:], apart)


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective(Stateless):
    """`autoencoder_loss`.

    Attributes:
      model: the autoencoder.
      settings: weights of the loss.
    """

    model: Autoencoder
    settings: AutoencoderLoss

    @property
    def terms(self) -> type[AutoencoderTerms]:
        """Parts of the loss."""
        return AutoencoderTerms

    def loss(self, params: Any, model_state: Any, batch: Pixels) -> AutoencoderTerms:
        """The terms of a batch."""
        return autoencoder_loss(self.model, params, batch, self.settings)


@dataclasses.dataclass(frozen=True)
class AdaptObjective(Stateless):
    """`adapt_loss`, whose model state is the scale of the latent features, or () where nothing is aligned.

    Attributes:
      model: the autoencoder.
      settings: weights of the loss.
      align: how latent features are aligned.
    """

    model: Autoencoder
    settings: AutoencoderLoss
    align: AlignSettings

    @property
    def terms(self) -> type[AdaptTerms]:
        """Parts of the loss."""
        return AdaptTerms

    def loss(self, params: Any, model_state: Any, batch: AdaptBatch) -> AdaptTerms:
        """The terms of a batch."""
        return adapt_loss(self.model, params, batch, self.settings, self.align, model_state or None)


def adapt_rules(trains: str) -> tuple[Rule, ...]:
    """Rules of the fine-tuning on observed spectra, by the name of the part that trains.

    "bottleneck": every encoder layer before the last and the decoder are frozen, so that the latent features
    keep the meaning that the decoder has given them on the library. "decoder": the bottleneck and the decoder train
    (published text). "code": the encoder's layer before the bottleneck, too (what the published code does: its
    index counts the input as a layer). "encoder": all but the decoder. "all": nothing is frozen.
    """
    trained = {
        "bottleneck": r"bottleneck/.*",
        "encoder": r"(encoder_\d|bottleneck)/.*",
        "decoder": r"(bottleneck|decoder_\d|output)/.*",
        "code": r"(encoder_4|bottleneck|decoder_\d|output)/.*",
    }
    if trains == "all":
        return ((".*", 1.0),)
    if trains not in trained:
        raise ConfigError(f"adapt.trains must be one of {[*trained, 'all']}, found {trains!r}")
    return ((trained[trains], 1.0), (".*", None))
