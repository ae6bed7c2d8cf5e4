"""The network: a ResNet-1D with one vmapped head per label (paper §2, fig. 1)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from remap.config import ConfigError, Section
from remap.labels import LabelBins, bin_mask
from remap.network.layers import ACTIVATIONS, BatchNorm, Conv, Dropout, Normalized, normalized_sum


class Outputs(NamedTuple):
    """What the network says of a batch."""

    logits: Float[Array, "labels stars bins"]  # divided by the temperature, if any; -inf in padded bins
    embedding: Float[Array, "labels stars features"]  # L2-normalised


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Widths, depth and kernels of the network (config section `model`).

    Attributes:
      stem_filters: filters of the stem convolution.
      stem_kernel: its kernel [pixels].
      stem_stride: its stride.
      filters: filters of each residual module, in order. A module whose filters differ from those of its
        input is of type V2 (projection, stride 2), the others are of type V1 (identity).
      kernel: kernel of the modules' convolutions [pixels].
      dropout: rate between the two convolutions of a module.
      embedding: size of each label's embedding.
      activation: "mish" (paper §2 i) or "relu".
      pooling: "avg_max" (paper §2 ii), "avg" or "max".
      validity_channel: True adds the validity mask as a second input channel.
      temperature: True divides each label's logits by a learned temperature (paper §4.5); False leaves them.
      batch_norm_momentum: weight of the past in the running batch statistics.
      masked: what stands at invalid pixels: "bridged", a straight line between the valid neighbours, with a validity
        channel that says nothing; or "told", the continuum and the mask. A network that never saw a mask in training
        (`augment.gaps` is 0) takes a single masked pixel for a line: "told" is for those that did.
      place_filters: filters of a 1×1 convolution whose map the heads see place by place, beside the pools, which do
        not tell a line from one like it elsewhere; 0 = none (paper).
    """

    stem_filters: int = 16
    stem_kernel: int = 7
    stem_stride: int = 1
    filters: tuple[int, ...] = (16, 32, 64, 128)
    kernel: int = 5
    dropout: float = 0.1
    embedding: int = 32
    activation: str = "mish"
    pooling: str = "avg_max"
    validity_channel: bool = True
    temperature: bool = True
    batch_norm_momentum: float = 0.9
    masked: str = "bridged"
    place_filters: int = 0

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the modules that the heads see beside the last residual one."""
        return ("places",) if self.place_filters else ()


def bridge(flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]) -> Array:
    """Flux with invalid pixels on a straight line between their valid neighbours; at the ends the last valid value.

    A spectrum without a valid pixel becomes 1 throughout, the continuum.

    Examples:
      >>> import jax.numpy as jnp
      >>> flux, valid = jnp.array([[9.0, 1.0, 9.0, 9.0, 0.4, 9.0]]), jnp.array([[0, 1, 0, 0, 1, 0]], bool)
      >>> [round(x, 2) for x in bridge(flux, valid)[0].tolist()]
      [1.0, 1.0, 0.8, 0.6, 0.4, 0.4]
    """
    pixels = flux.shape[-1]
    at = jnp.arange(pixels)[None]
    left = jax.lax.cummax(jnp.where(valid, at, -1), axis=1)
    right = jax.lax.cummin(jnp.where(valid, at, pixels), axis=1, reverse=True)
    before = jnp.take_along_axis(flux, jnp.maximum(left, 0), axis=1)
    after = jnp.take_along_axis(flux, jnp.minimum(right, pixels - 1), axis=1)
    share = (at - left) / jnp.maximum(right - left, 1)
    first, last = left < 0, right == pixels
    between = before * (1 - share) + after * share
    value = jnp.where(first & last, 1.0, jnp.where(first, after, jnp.where(last, before, between)))
    return jnp.where(valid, flux, value)


POOLS: dict[str, tuple[Callable[..., Array], ...]] = {
    "avg_max": (jnp.mean, jnp.max),
    "avg": (jnp.mean,),
    "max": (jnp.max,),
}


class ResidualModule(nn.Module):
    """conv-BN-activation-dropout-conv-BN plus shortcut, then activation: V1 if `project` is False, else V2."""

    filters: int
    kernel: int
    project: bool
    dropout: float
    activation: str
    momentum: float

    @nn.compact
    def __call__(self, x: Float[Array, "stars pixels filters"], *, train: bool, running: bool) -> Array:
        stride = 2 if self.project else 1
        act = functools.partial(normalized_sum, activation=self.activation, running=running)

        def norm(name: str, x: Array) -> Normalized:
            return BatchNorm(self.momentum, name=name)(x, running=running)

        y = norm("norm1", Conv(self.filters, self.kernel, stride, name="conv1")(x))
        y = Dropout(self.dropout, name="Dropout_0")(act((y,), None), train=train)
        y = norm("norm2", Conv(self.filters, self.kernel, name="conv2")(y))
        if not self.project:
            return act((y,), x)
        shortcut = norm("shortcut_norm", Conv(self.filters, 1, stride, name="shortcut")(x))
        return act((shortcut, y), None)


class Head(nn.Module):
    """One label: dense → L2-normalised embedding; dense → logits over the bins, divided by the temperature."""

    bins: int
    embedding: int
    temperature: bool

    @nn.compact
    def __call__(self, features: Float[Array, "stars features"], mask: Bool[Array, " bins"]) -> Outputs:
        e = nn.Dense(self.embedding, name="embedding")(features)
        # rsqrt of a floored square: finite gradient even for a zero vector.
        e = e * jax.lax.rsqrt(jnp.maximum(jnp.sum(e**2, axis=-1, keepdims=True), 1e-12))
        logits = nn.Dense(self.bins, name="logits")(features)
        if self.temperature:
            # The exponential keeps T positive by construction (paper §4.5; T = 1 at the start).
            log_temperature = self.param("log_temperature", nn.initializers.zeros, ())
            logits = logits * jnp.exp(-log_temperature)
        return Outputs(jnp.where(mask[None, :], logits, -jnp.inf), e)


class ResNet1D(nn.Module):
    """The whole network of fig. 1.

    Attributes:
      settings: widths, depth and kernels.
      bin_mask: bool[L, K] as nested tuples, True for real bins; L heads are made.
    """

    settings: ModelSettings
    bin_mask: tuple[tuple[bool, ...], ...]

    @nn.compact
    def __call__(
        self,
        flux: Float[Array, "stars pixels"],
        valid: Bool[Array, "stars pixels"],
        *,
        train: bool,
        running: bool,
    ) -> Outputs:
        """The PMFs' logits and the embeddings of a batch.

        Args:
          flux: normalised flux, continuum at 1; any value at invalid pixels.
          valid: True = good.
          train: dropout on.
          running: normalise with the running batch statistics instead of those of this batch.
        """
        s = self.settings
        if s.masked == "bridged":
            flux = jax.lax.cond(jnp.all(valid), lambda f, v: f, bridge, flux, valid)
            valid = jnp.ones_like(valid)
        x = jnp.where(valid, flux - 1.0, 0.0)[..., None]  # depth below the continuum; 0 says nothing
        if s.validity_channel:
            x = jnp.concatenate([x, valid.astype(x.dtype)[..., None]], axis=-1)
        x = Conv(s.stem_filters, s.stem_kernel, s.stem_stride, name="stem")(x)
        stem = BatchNorm(s.batch_norm_momentum, name="stem_norm")(x, running=running)
        x = normalized_sum((stem,), None, activation=s.activation, running=running)
        for i, filters in enumerate(s.filters):
            x = ResidualModule(
                filters=filters,
                kernel=s.kernel,
                project=filters != x.shape[-1],
                dropout=s.dropout,
                activation=s.activation,
                momentum=s.batch_norm_momentum,
                name=f"module_{i}",
            )(x, train=train, running=running)
        features = jnp.concatenate([pool(x, axis=1) for pool in POOLS[s.pooling]], axis=-1)
        if s.place_filters:
            places = nn.Conv(s.place_filters, (1,), name="places")(x)
            features = jnp.concatenate([features, places.reshape(places.shape[0], -1)], axis=-1)
        if not self.is_initializing():  # or `init` would return them with the variables
            self.sow("intermediates", "features", features)  # kept where `apply` is asked for them
        mask = jnp.asarray(np.array(self.bin_mask))
        heads = nn.vmap(
            Head,
            in_axes=(None, 0),
            out_axes=0,
            axis_size=mask.shape[0],
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return heads(mask.shape[1], s.embedding, s.temperature, name="heads")(features, mask)


def make_model(settings: ModelSettings, bin_mask: np.ndarray) -> ResNet1D:
    """The network for labels with the given real bins (bool[L, K])."""
    for name, value, known in (
        ("activation", settings.activation, ACTIVATIONS),
        ("pooling", settings.pooling, POOLS),
        ("masked", settings.masked, ("bridged", "told")),
    ):
        if value not in known:
            raise ConfigError(f"model.{name} must be one of {sorted(known)}, found {value!r}")
    if not settings.filters:
        raise ConfigError("model.filters must name at least one residual module")
    return ResNet1D(settings, tuple(tuple(bool(v) for v in row) for row in bin_mask))


def init_variables(model: ResNet1D, key: Array, pixels: int) -> dict:
    """Fresh `params` and `batch_stats` for spectra of `pixels` pixels."""
    flux, valid = jnp.ones((2, pixels)), jnp.ones((2, pixels), bool)
    return jax.jit(lambda key: model.init(key, flux, valid, train=False, running=True))(
        key
    )  # eagerly it takes seconds


def count_parameters(params: dict) -> int:
    """Number of trained numbers."""
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


def model_settings(section: Section) -> ModelSettings:
    """The config section `model` as a record."""
    # Networks on disk from before the switch existed have a temperature.
    section = {"temperature": True, **dict(section)}
    return ModelSettings(**{**section, "filters": tuple(section["filters"])})


def build_model(section: Section, labels: Sequence[LabelBins]) -> ResNet1D:
    """The network that a config section `model` describes, with a head for each of the labels."""
    return make_model(model_settings(section), bin_mask(labels))
