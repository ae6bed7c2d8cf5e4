"""Small convolutional networks from latent features to one label each, many at once under `vmap`.

Mas-Buitrago et al. 2024: two convolutions of width 2, three dense layers, one linear output; ReLU.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from remap.train.loop import FitSettings
from remap.train.objectives import Stateless


class Examples(NamedTuple):
    """Latent features of A autoencoders for the same spectra, with their labels."""

    latent: Float[Array, "autoencoders stars features"]
    labels: Float[Array, "stars labels"]

    @property
    def spectra_axes(self) -> dict[str, int]:
        """Fields whose spectra do not lie along the first axis."""
        return {"latent": 1}


class Scaling(NamedTuple):
    """Mean and standard deviation that inputs and labels are given before the networks see them."""

    latent_mean: Float[Array, "autoencoders features"]
    latent_std: Float[Array, "autoencoders features"]  # 1 where a feature never changes
    label_mean: Float[Array, " labels"]
    label_std: Float[Array, " labels"]  # 1 where a label never changes


class RegressorTerms(NamedTuple):
    """Parts of the loss, in units of the labels' variance."""

    total: Float[Array, ""]  # sum over the networks: each depends on its own parameters alone
    error: Float[Array, " labels"]  # mean squared error, mean over the networks of a label


@dataclasses.dataclass(frozen=True)
class RegressorSettings:
    """Shape of one network (config section `regressor`).

    Attributes:
      filters: of the two convolutions (published, for Teff: 64, 32).
      dense: units of the three dense layers (published, for Teff: 256, 128, 64).
    """

    filters: tuple[int, ...] = (64, 32)
    dense: tuple[int, ...] = (256, 128, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressSettings(FitSettings):
    """Of the stage `regress` (config section `regressor`).

    Attributes:
      encoder: whose features of library spectra to learn from, "library" or "adapted".
      networks: per autoencoder and label.
      filters, dense: see `RegressorSettings`; one shape for all labels, so that they train under `vmap`.
      batch_size: spectra in a batch.
    """

    cycles: int = 1
    epochs_per_cycle: int = 200
    rate_high: float = 1e-2
    rate_low: float = 1e-4
    checkpoint_epochs: int = 20
    keep: int = 1
    encoder: str = "library"
    networks: int = 5
    filters: tuple[int, ...] = (64, 32)
    dense: tuple[int, ...] = (256, 128, 64)
    batch_size: int = 32

    @property
    def model(self) -> Regressor:
        """One network."""
        return Regressor(RegressorSettings(tuple(self.filters), tuple(self.dense)))


class PairConvolution(nn.Module):
    """A convolution of width 2, stride 1, padded at the end: y_i = W_0 x_i + W_1 x_(i+1) + b.

    The same numbers as `nn.Conv(filters, (2,))` with "SAME" padding, as one matrix product: under `vmap` over
    networks XLA turns convolutions into grouped ones, which are slow on CPU.
    """

    filters: int

    @nn.compact
    def __call__(self, x: Float[Array, "stars places channels"]) -> Float[Array, "stars places filters"]:
        ahead = jnp.concatenate([x[:, 1:], jnp.zeros_like(x[:, :1])], axis=1)
        return nn.Dense(self.filters)(jnp.concatenate([x, ahead], axis=-1))


class Regressor(nn.Module):
    """One label from the latent features, both standardised."""

    settings: RegressorSettings

    @nn.compact
    def __call__(self, latent: Float[Array, "stars features"]) -> Float[Array, " stars"]:
        x = latent[..., None]
        for filters in self.settings.filters:
            x = nn.relu(PairConvolution(filters)(x))
        x = x.reshape(x.shape[0], -1)
        for units in self.settings.dense:
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(1)(x)[:, 0]


def init_networks(
    model: Regressor, key: Array, *, autoencoders: int, networks: int, labels: int, features: int
) -> Any:
    """Fresh parameters with leading axes [A, C, L]: `networks` per autoencoder and label, each with its own key."""
    keys = jax.random.split(key, (autoencoders, networks, labels))
    latent = jnp.zeros((1, features))

    def one(key: Array) -> Any:
        return model.init(key, latent)["params"]

    return jax.jit(jax.vmap(jax.vmap(jax.vmap(one))))(keys)


def apply_networks(
    model: Regressor, params: Any, latent: Float[Array, "autoencoders stars features"]
) -> Float[Array, "autoencoders networks labels stars"]:
    """All networks on standardised features; the labels come out standardised, too."""

    def one(params: Any, latent: Array) -> Array:
        return model.apply({"params": params}, latent)

    by_label = jax.vmap(one, in_axes=(0, None))
    by_network = jax.vmap(by_label, in_axes=(0, None))
    return jax.vmap(by_network)(params, latent)


def take_examples(examples: Examples, index: Int[Array, " batch"]) -> Examples:
    """Those of the spectra `index`."""
    return Examples(examples.latent[:, index], examples.labels[index])


def find_scaling(examples: Examples) -> Scaling:
    """Means and standard deviations of the examples."""
    # A unit of the bottleneck may be silent for all spectra, and a library may have one value of a label.
    spreads = jnp.std(examples.latent, axis=1), jnp.std(examples.labels, axis=0)
    latent, label = (jnp.where(s > 0, s, 1.0) for s in spreads)
    return Scaling(jnp.mean(examples.latent, axis=1), latent, jnp.mean(examples.labels, axis=0), label)


def standardise(latent: Float[Array, "autoencoders stars features"], scaling: Scaling) -> Array:
    """Latent features as the networks take them."""
    return (latent - scaling.latent_mean[:, None]) / scaling.latent_std[:, None]


def predict_labels(
    model: Regressor, params: Any, scaling: Scaling, latent: Float[Array, "autoencoders stars features"]
) -> Float[Array, "autoencoders networks labels stars"]:
    """What every network says, in the units of the labels."""
    out = apply_networks(model, params, standardise(latent, scaling))
    return scaling.label_mean[None, None, :, None] + scaling.label_std[None, None, :, None] * out


def regressor_loss(model: Regressor, params: Any, batch: Examples) -> RegressorTerms:
    """Mean squared error of every network; features and labels standardised."""
    out = apply_networks(model, params, batch.latent)
    error = jnp.mean((out - batch.labels.T[None, None]) ** 2, axis=-1)
    return RegressorTerms(jnp.sum(error), jnp.mean(error, axis=(0, 1)))


@dataclasses.dataclass(frozen=True)
class RegressorObjective(Stateless):
    """`regressor_loss`.

    Attributes:
      model: one network.
    """

    model: Regressor

    @property
    def terms(self) -> type[RegressorTerms]:
        """Parts of the loss."""
        return RegressorTerms

    def loss(self, params: Any, model_state: Any, batch: Examples) -> RegressorTerms:
        """The terms of a batch."""
        return regressor_loss(self.model, params, batch)
