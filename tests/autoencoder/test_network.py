"""The autoencoder: its shape as published, the contractive penalty against automatic differentiation, its loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.autoencoder.network import (
    Autoencoder,
    AutoencoderLoss,
    AutoencoderSettings,
    Pixels,
    adapt_rules,
    autoencoder_loss,
    contractive_penalty,
    init_params,
    reconstruction_error,
)
from remap.network.resnet import count_parameters
from remap.train.optim import match_rules

PIXELS, LATENT = 20, 4
SMALL = Autoencoder(AutoencoderSettings(16, LATENT, "relu", 0.8, 3.0), PIXELS)


@pytest.fixture(scope="module")
def params():
    return init_params(SMALL, jax.random.key(0))


def batch(seed=1, stars=5):
    flux = jax.random.uniform(jax.random.key(seed), (stars, PIXELS))
    return Pixels(flux, flux, jnp.ones(flux.shape, bool))


def test_widths_and_number_of_parameters_are_the_published_ones():
    """Mas-Buitrago et al. 2024: w, 3w/4, w/2, w/4, w/8, 32, mirrored, for 3501 pixels and the narrowest width."""
    model = Autoencoder(AutoencoderSettings(1024, 32, "relu", 0.0, 1.0), 3501)
    params = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 3501))), jax.random.key(0))["params"]
    sizes = (3501, 1024, 768, 512, 256, 128, 32, 128, 256, 512, 768, 1024, 3501)
    names = (
        [f"encoder_{i}" for i in range(5)] + ["bottleneck"] + [f"decoder_{i}" for i in range(5)] + ["output"]
    )
    found = {name: params[name]["kernel"].shape for name in names}
    assert found == dict(zip(names, itertools.pairwise(sizes), strict=True))
    assert set(params) == set(names)
    # 3501·1024 + 1024·768 + 768·512 + 512·256 + 256·128 + 128·32 = 4,932,608 weights on each side, and
    # 1024 + 768 + 512 + 256 + 128 = 2,688 biases on each side, 32 of the bottleneck, 3501 of the output.
    assert count_parameters(params) == 2 * 4_932_608 + 2 * 2_688 + 32 + 3501


@pytest.mark.parametrize("width", [0, 12, -8])
def test_a_width_that_cannot_be_divided_is_refused(width):
    with pytest.raises(ValueError, match=f"multiple of 8, found {width}"):
        AutoencoderSettings(width, 32, "relu", 0.0, 1.0)


def test_output_lies_between_0_and_1_and_encode_gives_the_same_features(params):
    x = batch()
    coded = SMALL.apply({"params": params}, x.flux)
    assert coded.output.shape == (5, PIXELS)
    assert coded.latent.shape == (5, LATENT)
    assert bool(jnp.all((coded.output > 0) & (coded.output < 1)))
    np.testing.assert_array_equal(coded.latent, jnp.maximum(coded.drive, 0))
    latent = SMALL.apply({"params": params}, x.flux, method="encode")
    np.testing.assert_array_equal(latent, coded.latent)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "softplus", "identity"])
def test_exact_penalty_is_the_norm_of_the_bottlenecks_jacobian(activation):
    keys = jax.random.split(jax.random.key(2), 3)
    z = jax.random.normal(keys[0], (6, 7))
    kernel = jax.random.normal(keys[1], (7, 3))
    bias = jax.random.normal(keys[2], (3,))
    functions = {
        "relu": lambda a: jnp.where(a > 0, a, 0.0),
        "sigmoid": lambda a: 1 / (1 + jnp.exp(-a)),
        "tanh": lambda a: 1 - 2 / (jnp.exp(2 * a) + 1),
        "softplus": lambda a: jnp.log(1 + jnp.exp(a)),
        "identity": lambda a: a,
    }
    jacobian = jax.vmap(jax.jacfwd(lambda row: functions[activation](row @ kernel + bias)))(z)
    drive = z @ kernel + bias[None]
    found = contractive_penalty(drive, kernel, activation=activation, kind="exact")
    np.testing.assert_allclose(found, jnp.sum(jacobian**2, axis=(1, 2)), rtol=1e-4)  # float32
    if (
        activation == "relu"
    ):  # some units are silent and some are not, or the test would not see the derivative
        assert 0 < float(jnp.mean(drive > 0)) < 1


def test_published_penalty_is_exact_for_a_sigmoid_and_not_for_relu():
    drive = jnp.array([[2.0, -1.0, 1.0]])
    kernel = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]])  # columns of squared norms 2, 4, 10
    sigmoid = {
        kind: contractive_penalty(drive, kernel, activation="sigmoid", kind=kind)
        for kind in ("exact", "published")
    }
    np.testing.assert_allclose(sigmoid["exact"], sigmoid["published"], rtol=1e-5)
    exact = contractive_penalty(drive, kernel, activation="relu", kind="exact")
    published = contractive_penalty(drive, kernel, activation="relu", kind="published")
    np.testing.assert_allclose(exact, [2.0 + 10.0])
    np.testing.assert_allclose(
        published, [(2.0 * (1 - 2.0)) ** 2 * 2.0]
    )  # h = 2, 0, 1: nothing from the last


def test_loss_is_the_weighted_sum_of_its_parts(params):
    x = batch()
    terms = autoencoder_loss(SMALL, params, x, AutoencoderLoss(0.3, "exact", 0.02))
    # The layers by hand.
    hidden, activity = 3.0 * (np.asarray(x.flux) - 0.8), np.zeros(5)
    for i in range(5):
        layer = params[f"encoder_{i}"]
        hidden = np.maximum(hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        activity += hidden.sum(axis=1) if i > 0 else 0  # published: not the first
    drive = hidden @ np.asarray(params["bottleneck"]["kernel"]) + np.asarray(params["bottleneck"]["bias"])
    hidden = np.maximum(drive, 0)
    for i in range(5):
        layer = params[f"decoder_{i}"]
        hidden = np.maximum(hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)
        activity += hidden.sum(axis=1)
    last = params["output"]
    output = 1 / (1 + np.exp(-(hidden @ np.asarray(last["kernel"]) + np.asarray(last["bias"]))))
    norm = (np.asarray(params["bottleneck"]["kernel"]) ** 2).sum(axis=0)
    expected = [
        np.mean((output - x.flux) ** 2),
        np.mean(((drive > 0) * norm).sum(axis=1)),
        np.mean(activity),
    ]
    np.testing.assert_allclose(terms[1:], expected, rtol=1e-4)  # float32
    assert float(terms.total) == pytest.approx(np.dot(expected, [1, 0.3, 0.02]), rel=1e-4)


def test_invalid_pixels_have_no_part_in_the_error():
    target = jnp.zeros((2, 4))
    output = jnp.array([[1.0, 2.0, 100.0, jnp.inf], [5.0, 5.0, 5.0, 5.0]])
    valid = jnp.array([[True, True, False, False], [False] * 4])
    np.testing.assert_allclose(reconstruction_error(output, target, valid), [2.5, 0.0])


@pytest.mark.parametrize(
    ("trains", "moving"),
    [
        ("bottleneck", {"bottleneck"}),
        ("decoder", {"bottleneck", "output", *(f"decoder_{i}" for i in range(5))}),
        ("code", {"encoder_4", "bottleneck", "output", *(f"decoder_{i}" for i in range(5))}),
        ("encoder", {"bottleneck", *(f"encoder_{i}" for i in range(5))}),
        ("all", None),
    ],
)
def test_rules_freeze_what_they_say(params, trains, moving):
    rules = adapt_rules(trains)
    index = match_rules(params, rules)
    found = {name for name, layer in index.items() if rules[layer["kernel"]][1] is not None}
    assert found == (set(params) if moving is None else moving)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match=r"adapt\.trains must be one of .*'heads'"):
        adapt_rules("heads")
    with pytest.raises(ValueError, match=r"autoencoder\.penalty must be one of .*'right'"):
        AutoencoderLoss(1e-4, "right", 0.0)
    with pytest.raises(ValueError, match=r"autoencoder\.bottleneck must be one of .*'step'"):
        AutoencoderSettings(8, 32, "step", 0.0, 1.0)
    with pytest.raises(ValueError, match=r"contractive and l1 >= 0, found -1"):
        AutoencoderLoss(-1.0, "exact", 0.0)


def test_a_network_with_a_centre_starts_at_the_continuum(params):
    start = jax.tree.map(jnp.zeros_like, params)
    start["output"]["bias"] = params["output"]["bias"]
    np.testing.assert_allclose(SMALL.apply({"params": start}, batch().flux).output, 0.8, rtol=1e-6)
    with pytest.raises(ValueError, match=r"0 <= centre < 1 and gain > 0, found 1\.0 and 1\.0"):
        AutoencoderSettings(8, 32, "relu", 1.0, 1.0)
