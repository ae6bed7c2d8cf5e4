"""Layers of the network in forms that train fast on CPU, with the same parameters, names and results as Flax's own.

Long spectra are bound by memory, not by arithmetic: an activation of 128 spectra of 4,300 pixels has 35 MB, and what
automatic differentiation keeps of batch normalisation and Mish is several times what must be kept. So

- `normalized_sum` has a derivative of its own, which keeps what the convolutions give and reads it again.
- The derivative of Mish is one fused pass, with one exponential and one division (`mish_slope`).
- That of a strided convolution is one of stride 1 over blocks of pixels, without the zeros between the pixels that
  XLA multiplies (`convolve`).
- Dropout draws the bits of `jax.random.bernoulli` in one pass (`keep_mask`); JAX's own loop goes through memory at
  every round of its generator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import lecun_normal
from jax import lax
from jaxtyping import Array, Bool, Float

EPSILON = 1e-5  # added to variances, as in flax.linen.BatchNorm
LARGE = 20.0  # beyond it tanh(softplus(x)) is 1 in float32, and below 20² · 20² nothing overflows
AXES = ("NWC", "WIO", "NWC")
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of Threefry-2x32, in turn


def mish(x: Float[Array, ...]) -> Float[Array, ...]:
    """Mish, x·tanh(softplus(x)) (Misra 2019, arXiv:1908.08681), with a single exponential.

    With e = exp(x) and n = e(e + 2), tanh(log(1 + e)) = n / (n + 2); beyond x = 20 the ratio is 1 in float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> [f"{x:.3f}" for x in mish(jnp.array([-1.0, 0.0, 1.0])).tolist()]
      ['-0.303', '0.000', '0.865']
    """
    return _mish(x)


def mish_slope(x: Float[Array, ...]) -> Float[Array, ...]:
    """Derivative of `mish`: (n d + 4 x (n - e)) / d², with d = n + 2; to 3e-7, in one pass."""
    x = jnp.minimum(x, LARGE)
    e = jnp.exp(x)
    n = e * (e + 2.0)
    d = n + 2.0
    return (n * d + 4.0 * x * (n - e)) / (d * d)


@jax.custom_jvp
def _mish(x: Array) -> Array:
    e = jnp.exp(jnp.minimum(x, LARGE))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@_mish.defjvp
def _mish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _mish(*primals), tangents[0] * mish_slope(*primals)


def _relu_slope(x: Array) -> Array:
    return (x > 0).astype(x.dtype)


class Activation(NamedTuple):
    """A function of each number, and its derivative."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ACTIVATIONS: dict[str, Activation] = {
    "mish": Activation(mish, mish_slope),
    "relu": Activation(jax.nn.relu, _relu_slope),
}


class Normalized(NamedTuple):
    """Something to be normalised, and by what; `normalized_sum` does it."""

    x: Float[Array, "stars pixels filters"]
    mean: Float[Array, " filters"]
    variance: Float[Array, " filters"]
    scale: Float[Array, " filters"]
    bias: Float[Array, " filters"]


def batch_moments(
    x: Float[Array, "stars pixels filters"],
) -> tuple[Float[Array, " filters"], Float[Array, " filters"]]:
    """Mean and variance of each filter over stars and pixels, from the means of x and x², as Flax has them."""
    mean = jnp.mean(x, axis=(0, 1))
    return mean, jnp.maximum(0.0, jnp.mean(lax.square(x), axis=(0, 1)) - lax.square(mean))


class BatchNorm(nn.Module):
    """Parameters and running statistics of `flax.linen.BatchNorm`; what is done with them is `normalized_sum`'s.

    Attributes:
      momentum: weight of the past in the running statistics.
    """

    momentum: float

    @nn.compact
    def __call__(self, x: Float[Array, "stars pixels filters"], *, running: bool) -> Normalized:
        """x with the running statistics, or with its own, which the running ones then follow."""
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, x.dtype))
        variance = self.variable("batch_stats", "var", lambda: jnp.ones(shape, x.dtype))
        scale = self.param("scale", nn.initializers.ones, shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, x.dtype)
        if running:
            # Variables that were read from disk are NumPy's.
            return Normalized(x, *map(jnp.asarray, (mean.value, variance.value, scale, bias)))
        # `normalized_sum` knows how they depend on x.
        own = lax.stop_gradient(batch_moments(x))
        if not self.is_initializing():
            for kept, found in zip((mean, variance), own, strict=True):
                kept.value = self.momentum * kept.value + (1 - self.momentum) * found
        return Normalized(x, *own, scale, bias)


def normalized_sum(
    parts: tuple[Normalized, ...],
    skip: Float[Array, "stars pixels filters"] | None,
    *,
    activation: str,
    running: bool,
) -> Float[Array, "stars pixels filters"]:
    """Activation of the sum of all parts, each normalised, scaled and shifted, and of `skip`.

    Args:
      parts: of equal shapes.
      skip: added as it is; None = nothing.
      activation: a name in `ACTIVATIONS`.
      running: the statistics of the parts are constants. False: they are those of the batch (`batch_moments`), and
        the derivative in x has how they depend on it, though none goes through the fields themselves.
    """
    if running:
        return ACTIVATIONS[activation].value(_sum(parts, skip))
    return _batch_normalized_sum(activation, parts, skip)


def _sum(parts: tuple[Normalized, ...], skip: Array | None) -> Array:
    total = skip
    for part in parts:
        factor = lax.rsqrt(part.variance + EPSILON) * part.scale
        one = (part.x - _along(part.mean)) * _along(factor) + _along(part.bias)
        total = one if total is None else total + one
    return total


def _along(x: Array) -> Array:
    return x[None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _batch_normalized_sum(activation: str, parts: tuple[Normalized, ...], skip: Array | None) -> Array:
    return ACTIVATIONS[activation].value(_sum(parts, skip))


def _forward(activation: str, parts: tuple[Normalized, ...], skip: Array | None) -> tuple[Array, tuple]:
    return _batch_normalized_sum(activation, parts, skip), (parts, skip)


def _backward(activation: str, kept: tuple, cotangent: Array) -> tuple[tuple[Normalized, ...], Array | None]:
    # Behind a barrier, or XLA would keep what both passes compute, the exponential first of all.
    parts, skip = lax.optimization_barrier(kept)
    # With u the sum, σ' its slope and g = ∂L/∂u: x̂ = (x - μ)/s has ∂L/∂x = (γ/s)(g - ⟨g⟩ - x̂⟨g x̂⟩).
    g = cotangent * ACTIVATIONS[activation].slope(_sum(parts, skip))
    count = g.size // g.shape[-1]
    total = jnp.sum(g, axis=(0, 1))
    found = []
    for part in parts:
        rsqrt = lax.rsqrt(part.variance + EPSILON)
        # Sums of g and g·x as they lie in memory, or (x - μ) would be written out for them.
        moment = (jnp.sum(g * part.x, axis=(0, 1)) - part.mean * total) * rsqrt
        centred = (part.x - _along(part.mean)) * _along(moment * rsqrt / count)
        dx = _along(part.scale * rsqrt) * (g - _along(total / count) - centred)
        nothing = jnp.zeros_like(part.mean)
        found.append(Normalized(dx, nothing, nothing, moment, total))
    return tuple(found), None if skip is None else g


_batch_normalized_sum.defvjp(_forward, _backward)


class Conv(nn.Module):
    """`flax.linen.Conv` over pixels, without a bias and with "SAME" padding.

    Attributes:
      filters: of the output.
      width: of the kernel [pixels].
      stride: pixels from one output to the next.
    """

    filters: int
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "stars pixels filters"]) -> Array:
        """float[stars, ceil(pixels / stride), filters of the output]."""
        shape = (self.width, x.shape[-1], self.filters)
        kernel = jnp.asarray(
            self.param("kernel", lecun_normal(), shape, x.dtype)
        )  # read from disk it is NumPy's
        # Elsewhere than on CPU nobody has measured it.
        if self.stride > 1 and jax.default_backend() == "cpu":
            return convolve(x, kernel, self.stride)
        return _convolve(x, kernel, self.stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "stars pixels channels"], kernel: Float[Array, "width channels filters"], stride: int
) -> Float[Array, "stars outputs filters"]:
    """Convolution with "SAME" padding whose derivative in x is found without zeros between the pixels."""
    return _convolve(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride,), "SAME", dimension_numbers=AXES)


def convolve_blocks(
    x: Float[Array, "stars pixels channels"], kernel: Float[Array, "width channels filters"], stride: int
) -> Float[Array, "stars outputs filters"]:
    """`convolve` as a convolution of stride 1 over blocks of `stride` pixels, whose channels lie side by side."""
    stars, pixels, channels = x.shape
    width, _, filters = kernel.shape
    outputs = -(-pixels // stride)
    before = max((outputs - 1) * stride + width - pixels, 0) // 2  # the padding of "SAME"
    first, last = (
        -before // stride,
        (width - 1 - before) // stride,
    )  # blocks that an output sees, from its own
    place = np.zeros((last - first + 1, stride, width), np.float32)
    for k in range(width):
        place[(k - before) // stride - first, (k - before) % stride, k] = 1.0
    blocks = jnp.einsum("tik,kco->tico", place, kernel, precision="highest")
    out = lax.conv_general_dilated(
        jnp.pad(x, ((0, 0), (0, outputs * stride - pixels), (0, 0))).reshape(
            stars, outputs, stride * channels
        ),
        blocks.reshape(-1, stride * channels, filters),
        (1,),
        [(-first, last)],
        dimension_numbers=AXES,
    )
    return out


def _convolve_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (dx,) = jax.vjp(lambda x: convolve_blocks(x, kernel, stride), x)[1](cotangent)
    (dkernel,) = jax.vjp(lambda kernel: _convolve(x, kernel, stride), kernel)[1](cotangent)
    return dx, dkernel


convolve.defvjp(_convolve_forward, _convolve_backward)


class Dropout(nn.Module):
    """`flax.linen.Dropout`, with the same random numbers.

    Attributes:
      rate: probability of 0; what stays is divided by its own.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, ...], *, train: bool) -> Array:
        """x as it is unless `train`."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return jnp.where(keep_mask(self.make_rng("dropout"), keep, x.shape), x / keep, 0.0)


def keep_mask(key: Array, probability: float, shape: tuple[int, ...]) -> Bool[Array, ...]:
    """`jax.random.bernoulli(key, probability, shape)`, bit for bit.

    On CPU the twenty rounds of the generator (Threefry-2x32, Salmon et al. 2011) are written out, so that XLA makes
    one pass of them and of what uses them. Keys of another generator, and other backends, get JAX's own.
    """
    size = int(np.prod(shape))
    if (
        jax.default_backend() != "cpu"
        or str(jax.random.key_impl(key)) != "threefry2x32"
        or not jax.config.jax_threefry_partitionable
        or size >= 2**32
    ):
        return jax.random.bernoulli(key, probability, shape)
    data = jax.random.key_data(key)
    keys = (data[0], data[1], data[0] ^ data[1] ^ np.uint32(0x1BD11BDA))
    a = jnp.full(shape, keys[0])
    b = lax.iota(jnp.uint32, size).reshape(shape) + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = (b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))
            b = a ^ b
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + np.uint32(group + 1)
    # The upper 23 bits as a number in [1, 2).
    number = lax.bitcast_convert_type(((a ^ b) >> np.uint32(9)) | np.uint32(0x3F800000), jnp.float32)
    return number - 1.0 < probability
