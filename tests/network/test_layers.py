"""The layers agree with Flax's own and automatic differentiation to rounding, and masks bit for bit."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.network.layers import (
    ACTIVATIONS,
    BatchNorm,
    Dropout,
    convolve,
    convolve_blocks,
    keep_mask,
    mish,
    mish_slope,
    normalized_sum,
)
from remap.network.resnet import ModelSettings, init_variables, make_model

STARS, PIXELS, FILTERS = 4, 19, 5


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(found, expected, *, rtol):
    """Agreement to a fraction of the largest number of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-30),
        found,
        expected,
    )


def test_slope_of_mish_is_its_derivative_in_float64_and_finite_everywhere():
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e30, -1e4, -80.0, 19.99, 20.01, 80.0, 1e4, 1e30]])
    x32 = jnp.asarray(x, jnp.float32)
    exact = np.asarray(x32, np.float64)
    tanh = np.tanh(np.logaddexp(0, exact))
    with np.errstate(over="ignore"):
        expected = tanh + exact * (1 - tanh**2) / (1 + np.exp(-exact))
    # Values up to 1.1 of a handful of rounded operations.
    np.testing.assert_allclose(mish_slope(x32), expected, atol=5e-7)
    np.testing.assert_array_equal(jax.vmap(jax.grad(mish))(x32), mish_slope(x32))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize(("count", "skip"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("running", [False, True])
def test_normalized_sum_is_that_of_flax_with_its_gradients_and_statistics(activation, count, skip, running):
    # Means several times the scatter, as behind a constant channel.
    xs = [3.0 + random(STARS, PIXELS, FILTERS, seed=i) * (1 + i) for i in range(count)]
    rest = random(STARS, PIXELS, FILTERS, seed=7) if skip else None
    weight = random(STARS, PIXELS, FILTERS, seed=8)
    variables = [
        {
            "params": {"scale": 1 + 0.3 * random(FILTERS, seed=10 + i), "bias": random(FILTERS, seed=20 + i)},
            "batch_stats": {
                "mean": random(FILTERS, seed=30 + i),
                "var": 0.5 + random(FILTERS, seed=40 + i) ** 2,
            },
        }
        for i in range(count)
    ]

    def ours(module, xs, rest, params):
        found = [
            module.apply({**v, "params": p}, x, running=running, mutable=["batch_stats"])
            for v, p, x in zip(variables, params, xs, strict=True)
        ]
        out = normalized_sum(tuple(f[0] for f in found), rest, activation=activation, running=running)
        return jnp.sum(out * weight), (out, [f[1] for f in found])

    def flaxs(module, xs, rest, params):
        found = [
            module.apply({**v, "params": p}, x, mutable=["batch_stats"])
            for v, p, x in zip(variables, params, xs, strict=True)
        ]
        total = sum(f[0] for f in found) if rest is None else rest + found[0][0]
        out = ACTIVATIONS[activation].value(total)
        return jnp.sum(out * weight), (out, [f[1] for f in found])

    args = xs, rest, [v["params"] for v in variables]
    found, expected = (
        jax.jit(jax.grad(functools.partial(run, module), argnums=(0, 1, 2), has_aux=True))(*args)
        for run, module in (
            (ours, BatchNorm(0.9)),
            (flaxs, nn.BatchNorm(use_running_average=running, momentum=0.9)),
        )
    )
    close(found[1], expected[1], rtol=1e-6)
    close(found[0], expected[0], rtol=1e-5)  # differences of sums of 76 numbers near 3


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("pixels", "width"), [(16, 5), (17, 5), (16, 1), (17, 1), (18, 7), (5, 4), (1, 5)])
def test_convolution_over_blocks_and_its_gradients_are_those_of_a_strided_one(pixels, width, stride):
    x, kernel = random(2, pixels, 3), random(width, 3, 4, seed=1)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    expected, pull = jax.vjp(plain, x, kernel)
    cotangent = random(*expected.shape, seed=2)
    for form in (convolve, convolve_blocks):
        out, ours = jax.vjp(lambda x, kernel, form=form: form(x, kernel, stride), x, kernel)
        close((out, ours(cotangent)), (expected, pull(cotangent)), rtol=2e-6)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 2), (64, 33)])
def test_masks_are_those_of_bernoulli_bit_for_bit(shape):
    for seed in range(3):
        key = jax.random.key(seed)
        for probability in (0.1, 0.5, 0.9):
            np.testing.assert_array_equal(
                keep_mask(key, probability, shape), jax.random.bernoulli(key, probability, shape)
            )


def test_masks_of_another_generator_are_its_own():
    key = jax.random.key(1, impl="rbg")
    np.testing.assert_array_equal(keep_mask(key, 0.3, (50,)), jax.random.bernoulli(key, 0.3, (50,)))


def test_dropout_is_that_of_flax():
    x, rngs = random(6, 50), {"dropout": jax.random.key(3)}
    expected = nn.Dropout(0.3, deterministic=False).apply({}, x, rngs=rngs)
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, train=True, rngs=rngs), expected)
    assert (np.asarray(expected) == 0).any()
    np.testing.assert_array_equal(Dropout(0.3).apply({}, x, train=False), x)


class Plain(nn.Module):
    """The network up to its last module, of Flax's layers alone."""

    settings: ModelSettings

    @nn.compact
    def __call__(self, x):
        s = self.settings
        x = jnp.stack([x - 1.0, jnp.ones_like(x)], axis=-1)
        x = nn.Conv(s.stem_filters, (s.stem_kernel,), s.stem_stride, use_bias=False, name="stem")(x)
        x = jax.nn.mish(nn.BatchNorm(use_running_average=False, momentum=0.9, name="stem_norm")(x))
        for i, filters in enumerate(s.filters):
            x = PlainModule(filters, s.kernel, s.dropout, filters != x.shape[-1], name=f"module_{i}")(x)
        return jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=-1)


class PlainModule(nn.Module):
    filters: int
    width: int
    dropout: float
    project: bool

    @nn.compact
    def __call__(self, x):
        stride = 2 if self.project else 1
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
        conv = functools.partial(nn.Conv, self.filters, use_bias=False)
        y = jax.nn.mish(norm(name="norm1")(conv((self.width,), stride, name="conv1")(x)))
        y = nn.Dropout(self.dropout, deterministic=False)(y)
        y = norm(name="norm2")(conv((self.width,), name="conv2")(y))
        if self.project:
            x = norm(name="shortcut_norm")(conv((1,), stride, name="shortcut")(x))
        return jax.nn.mish(x + y)


def test_the_network_trains_as_one_of_flax_layers_does():
    settings = ModelSettings(stem_filters=4, stem_stride=2, filters=(4, 6), dropout=0.3)
    model = make_model(settings, np.ones((2, 3), bool))
    flux, valid = 1 + 0.1 * random(6, 45), jnp.ones((6, 45), bool)
    weight, rngs = random(6, 12, seed=1), {"dropout": jax.random.key(5)}
    variables = jax.jit(Plain(settings).init)({"params": jax.random.key(0), **rngs}, flux)
    whole = init_variables(model, jax.random.key(0), 45)
    trunk = {k: v for k, v in whole["params"].items() if k != "heads"}
    jax.tree.map(np.testing.assert_array_equal, trunk, variables["params"])  # the same start
    state = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    @functools.partial(jax.jit, static_argnums=0)
    def both(plain, params):
        def loss(params):
            if plain:
                features, found = Plain(settings).apply(
                    {"params": params, "batch_stats": state}, flux, mutable=["batch_stats"], rngs=rngs
                )
            else:
                _, found = model.apply(
                    {"params": {**params, "heads": whole["params"]["heads"]}, "batch_stats": state},
                    flux,
                    valid,
                    train=True,
                    running=False,
                    mutable=["batch_stats", "intermediates"],
                    rngs=rngs,
                )
                features = found["intermediates"]["features"][0]
            return jnp.sum(features * weight), (features, found["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    found, expected = both(False, trunk), both(True, trunk)
    close(found[1], expected[1], rtol=3e-6)
    # Gradients go back through six normalisations, each of which takes a mean away.
    close(found[0], expected[0], rtol=3e-5)
