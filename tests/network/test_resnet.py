"""The network: activation, shapes, types of modules, heads, masks, and every config's network."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import common
from remap.labels import bin_mask
from remap.network.layers import ACTIVATIONS, mish
from remap.network.resnet import (
    POOLS,
    Head,
    ModelSettings,
    ResidualModule,
    build_model,
    count_parameters,
    init_variables,
    make_model,
    model_settings,
)
from remap.preprocess.description import make_preprocessing

PIXELS, STARS = 33, 3
MASK = np.array([[True] * 5, [True] * 3 + [False] * 2])
TINY = ModelSettings(
    stem_filters=4,
    stem_kernel=3,
    stem_stride=1,
    filters=(4, 6),
    kernel=3,
    dropout=0.5,
    embedding=7,
    activation="mish",
    pooling="avg_max",
    validity_channel=True,
    masked="told",
    temperature=True,
    batch_norm_momentum=0.9,
)
# Of experiments: autoencoder.py adds sections to another config, synthesize.py describes a library alone.
OTHERS = ("__init__", "autoencoder", "synthesize")
CONFIGS = sorted(p.stem for p in Path(common.__file__).parent.glob("*.py") if p.stem not in OTHERS)


@functools.cache
def tiny():
    """The tiny network, random variables and its jitted inference: (variables, flux, valid) -> outputs."""
    model = make_model(TINY, MASK)
    variables = random_variables(model)
    return (
        model,
        variables,
        jax.jit(lambda v, flux, valid: model.apply(v, flux, valid, train=False, running=True)),
    )


def random_variables(model):
    """Variables from NumPy, which compiles nothing; temperatures 1, as at the start of training."""
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(abstract_variables(model, PIXELS), sep="/")
    for path, s in flat.items():
        kind = path.rsplit("/", 1)[-1]
        if kind == "log_temperature":
            flat[path] = jnp.zeros(s.shape)
        elif kind in ("scale", "var"):
            flat[path] = jnp.asarray(rng.uniform(0.5, 1.5, size=s.shape), s.dtype)
        else:
            flat[path] = jnp.asarray(rng.normal(scale=0.3, size=s.shape), s.dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


@functools.cache
def spectra():
    """Flux and mask of a batch with a few invalid pixels."""
    rng = np.random.default_rng(0)
    valid = rng.uniform(size=(STARS, PIXELS)) > 0.2
    return jnp.asarray(1 - 0.3 * rng.uniform(size=valid.shape), jnp.float32), jnp.asarray(valid)


def abstract_variables(model, pixels):
    return jax.eval_shape(lambda key: init_variables(model, key, pixels), jax.random.key(0))


def changed(variables, path, value):
    """`variables` with one parameter replaced."""
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    assert flat[path].shape == value.shape
    return {**variables, "params": traverse_util.unflatten_dict({**flat, path: value}, sep="/")}


def test_mish_equals_its_definition_in_float64_and_in_jax():
    x = np.concatenate([np.linspace(-30, 30, 601), [-1e4, -80.0, 19.99, 20.01, 80.0, 1e4, 1e30]])
    x32 = jnp.asarray(x, jnp.float32)
    exact = np.asarray(x32, np.float64)
    expected = exact * np.tanh(np.logaddexp(0, exact))
    # exp of float32's -30 is known to 30·6e-8; below -87 float32 has no exponential left.
    np.testing.assert_allclose(mish(x32), expected, rtol=4e-6, atol=1e-30)
    np.testing.assert_allclose(mish(x32), jax.nn.mish(x32), rtol=4e-6, atol=1e-30)
    grad = jax.vmap(jax.grad(mish))(x32)
    assert np.isfinite(grad).all()
    # The derivative of the ratio is a difference of two numbers near 1, times x up to 20: 20·6e-8·a few.
    np.testing.assert_allclose(grad, jax.vmap(jax.grad(jax.nn.mish))(x32), atol=1e-5)
    assert grad[-1] == 1.0


def test_number_of_parameters_of_the_common_config():
    config = common.get_config()
    model = build_model(config.model, make_preprocessing(config).labels)
    variables = abstract_variables(model, 4300)
    stem = 7 * 2 * 16 + 2 * 16
    v1 = 2 * 5 * 16 * 16 + 2 * 2 * 16
    v2 = sum(5 * a * b + 5 * b * b + a * b + 3 * 2 * b for a, b in ((16, 32), (32, 64), (64, 128)))
    heads = 3 * ((256 + 1) * 32 + (256 + 1) * 60 + 1)
    assert count_parameters(variables["params"]) == stem + v1 + v2 + heads == 247_191


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_a_network_that_fits_its_arms(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    preprocessing = make_preprocessing(config)
    model = build_model(config.model, preprocessing.labels)
    bins = [b.bins for b in preprocessing.labels]
    for arm in preprocessing.arms:
        pixels = len(preprocessing.wave(arm))
        variables = abstract_variables(model, pixels)
        flux = jax.ShapeDtypeStruct((2, pixels), jnp.float32)
        valid = jax.ShapeDtypeStruct((2, pixels), bool)
        out = jax.eval_shape(
            lambda v, f, m: model.apply(v, f, m, train=False, running=True), variables, flux, valid
        )
        assert out.logits.shape == (len(bins), 2, max(bins))
        assert out.embedding.shape == (len(bins), 2, config.model.embedding)
        assert out.logits.dtype == out.embedding.dtype == jnp.float32


def test_outputs_have_one_head_per_label_with_padding_at_minus_infinity():
    _, variables, apply = tiny()
    out = apply(variables, *spectra())
    assert out.logits.shape == (2, STARS, 5)
    assert out.embedding.shape == (2, STARS, 7)
    finite = np.isfinite(np.asarray(out.logits))
    np.testing.assert_array_equal(finite, np.broadcast_to(MASK[:, None], finite.shape))
    assert (np.asarray(out.logits)[~finite] == -np.inf).all()
    # A unit vector of seven numbers in float32.
    np.testing.assert_allclose(np.linalg.norm(out.embedding, axis=-1), 1.0, atol=1e-6)


def test_heads_start_from_different_weights_at_temperature_1():
    init = jax.jit(lambda key: init_variables(tiny()[0], key, PIXELS)["params"]["heads"])
    heads = init(jax.random.key(0))
    for layer in ("embedding", "logits"):
        one, two = heads[layer]["kernel"]
        assert np.abs(one - two).min() > 0
    np.testing.assert_array_equal(heads["log_temperature"], np.zeros(2))


def test_temperature_is_positive_divides_the_logits_of_its_label_and_leaves_the_embedding():
    _, variables, apply = tiny()
    path = "heads/log_temperature"
    plain = apply(variables, *spectra())
    hot = apply(changed(variables, path, jnp.log(jnp.array([4.0, 0.5]))), *spectra())
    for j, t in enumerate((4.0, 0.5)):
        real = MASK[j]
        np.testing.assert_allclose(
            hot.logits[j][:, real], plain.logits[j][:, real] / t, rtol=1e-6
        )  # exp(log T)
    np.testing.assert_array_equal(hot.embedding, plain.embedding)
    frozen = apply(changed(variables, path, jnp.array([-50.0, 50.0])), *spectra())
    for j in range(2):  # any parameter keeps the order of the bins: T is positive
        assert (np.argsort(frozen.logits[j]) == np.argsort(plain.logits[j])).all()


def test_without_a_temperature_the_logits_are_those_of_temperature_1():
    _, variables, apply = tiny()
    model = make_model(dataclasses.replace(TINY, temperature=False), MASK)
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    assert flat.pop("heads/log_temperature").tolist() == [0, 0]
    assert set(flat) == set(traverse_util.flatten_dict(abstract_variables(model, PIXELS)["params"], sep="/"))
    bare = {**variables, "params": traverse_util.unflatten_dict(flat, sep="/")}
    out = jax.jit(lambda v, flux, valid: model.apply(v, flux, valid, train=False, running=True))(
        bare, *spectra()
    )
    for a, b in zip(out, apply(variables, *spectra()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_zero_features_give_a_finite_embedding_and_gradient():
    head = Head(bins=3, embedding=4, temperature=True)
    params = {
        "embedding": {"kernel": jnp.ones((5, 4)), "bias": jnp.zeros(4)},
        "logits": {"kernel": jnp.ones((5, 3)), "bias": jnp.zeros(3)},
        "log_temperature": jnp.zeros(()),
    }

    def first(params, features):
        return head.apply({"params": params}, features, jnp.array([True, True, False])).embedding[0, 0]

    value, grads = jax.jit(jax.value_and_grad(first, argnums=(0, 1)))(params, jnp.zeros((1, 5)))
    assert value == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_masked_pixels_are_bridged_by_their_neighbours():
    """As if the straight line had been observed; also at the ends, and in a spectrum without a valid pixel."""
    _, variables, told = tiny()
    model = make_model(dataclasses.replace(TINY, masked="bridged"), MASK)
    apply = jax.jit(lambda flux, valid: model.apply(variables, flux, valid, train=False, running=True))
    flux, valid = (np.array(x) for x in spectra())
    valid[0, :3], valid[1, -3:], valid[2] = False, False, False
    filled = flux.copy()
    at = np.arange(PIXELS)
    for row, good in zip(filled, valid, strict=True):
        row[:] = np.interp(at, at[good], row[good]) if good.any() else 1.0
    spoiled = np.where(valid, flux, np.nan)
    for a, b in zip(apply(spoiled, valid), apply(filled, np.ones_like(valid)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert np.abs(told(variables, flux, valid).embedding - apply(flux, valid).embedding).max() > 1e-2


def test_flux_at_invalid_pixels_has_no_influence():
    _, variables, apply = tiny()
    flux, valid = spectra()
    plain = apply(variables, flux, valid)
    for filler in (0.0, 1e9, np.nan, np.inf):
        for a, b in zip(plain, apply(variables, jnp.where(valid, flux, filler), valid), strict=True):
            np.testing.assert_array_equal(a, b)
    other = apply(variables, flux, valid.at[0, jnp.argmax(valid[0])].set(False))
    assert np.abs(other.embedding[:, 0] - plain.embedding[:, 0]).max() > 0
    np.testing.assert_array_equal(other.embedding[:, 1:], plain.embedding[:, 1:])  # one star, one row


def test_modules_are_v1_where_filters_stay_and_v2_where_they_change():
    params = tiny()[1]["params"]
    assert sorted(params) == ["heads", "module_0", "module_1", "stem", "stem_norm"]
    assert sorted(params["module_0"]) == ["conv1", "conv2", "norm1", "norm2"]
    assert sorted(params["module_1"]) == ["conv1", "conv2", "norm1", "norm2", "shortcut", "shortcut_norm"]
    assert params["module_1"]["shortcut"]["kernel"].shape == (1, 4, 6)
    assert params["stem"]["kernel"].shape == (3, 2, 4)  # flux and validity
    without = abstract_variables(make_model(dataclasses.replace(TINY, validity_channel=False), MASK), PIXELS)
    assert without["params"]["stem"]["kernel"].shape == (3, 1, 4)


@pytest.mark.parametrize(("pixels", "halved"), [(33, 17), (32, 16), (1, 1)])
def test_v1_keeps_the_length_and_v2_halves_it_upwards(pixels, halved):
    for project, length, filters in ((False, pixels, 4), (True, halved, 6)):
        module = ResidualModule(filters, 3, project, 0.1, "mish", 0.9)
        x = jax.ShapeDtypeStruct((2, pixels, 4), jnp.float32)
        out, _ = jax.eval_shape(
            lambda x, module=module: module.init_with_output(jax.random.key(0), x, train=False, running=True),
            x,
        )
        assert out.shape == (2, length, filters)


def test_v1_adds_its_input_before_the_last_activation():
    module = ResidualModule(4, 3, False, 0.1, "relu", 0.9)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4)), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False, running=True), x)
    variables = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    norm = {"scale": jnp.zeros(4), "bias": jnp.full(4, 0.25)}  # the branch gives 0.25
    variables["params"]["norm2"] = norm
    out = jax.jit(lambda v, x: module.apply(v, x, train=False, running=True))(variables, x)
    np.testing.assert_allclose(out, np.maximum(np.asarray(x) + 0.25, 0), rtol=1e-6)


def test_stem_stride_and_pooling_set_the_sizes_of_the_features():
    shapes = {}
    for pooling in POOLS:
        settings = dataclasses.replace(TINY, pooling=pooling, stem_stride=2)
        variables = abstract_variables(make_model(settings, MASK), PIXELS)
        shapes[pooling] = variables["params"]["heads"]["embedding"]["kernel"].shape
    assert shapes == {"avg_max": (2, 12, 7), "avg": (2, 6, 7), "max": (2, 6, 7)}


def test_places_tell_a_line_from_the_same_line_elsewhere():
    """Pools do not: a line moved by the network's whole stride gives the same features away from the ends."""
    settings = ModelSettings(stem_filters=4, filters=(4, 8), temperature=False, place_filters=2)
    flux = np.ones((2, 96), np.float32)
    flux[0, 40:43], flux[1, 48:51] = 0.5, 0.5
    seen = []
    for each in (settings, dataclasses.replace(settings, place_filters=0)):
        model = make_model(each, np.ones((1, 5), bool))
        variables = init_variables(model, jax.random.key(0), 96)
        valid = jnp.ones(flux.shape, bool)
        _, kept = model.apply(
            variables, jnp.asarray(flux), valid, train=False, running=True, mutable=["intermediates"]
        )
        seen.append(np.asarray(kept["intermediates"]["features"][0]))
    places, pools = seen
    assert pools.shape == (2, 16)
    assert places.shape == (2, 16 + 2 * 48)
    np.testing.assert_allclose(pools[0], pools[1], atol=1e-6)
    np.testing.assert_allclose(places[0, :16], places[1, :16], atol=1e-6)
    moved = places[:, 16:].reshape(2, 48, 2)
    np.testing.assert_allclose(moved[0, 12:32], moved[1, 16:36], atol=1e-6)
    assert np.abs(moved[0] - moved[1]).max() > 1e-3


def test_dropout_and_batch_statistics_follow_their_own_switches():
    model = make_model(dataclasses.replace(TINY, filters=(4,)), MASK)
    variables = random_variables(model)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(train, running, key):
        return model.apply(
            variables,
            *spectra(),
            train=train,
            running=running,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )

    out, stats = run(True, True, jax.random.key(0))  # frozen statistics: unchanged, and still returned whole
    assert jax.tree.structure(stats["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)
    other, _ = run(True, True, jax.random.key(1))
    assert np.abs(other.embedding - out.embedding).max() > 1e-4  # dropout acts
    one, stats = run(False, False, jax.random.key(0))
    two, _ = run(False, False, jax.random.key(1))
    np.testing.assert_array_equal(one.embedding, two.embedding)  # and not here
    before = variables["batch_stats"]["stem_norm"]["mean"]
    mean = stats["batch_stats"]["stem_norm"]["mean"]
    flux, valid = spectra()
    x = jnp.stack([jnp.where(valid, flux - 1, 0), valid.astype(jnp.float32)], axis=-1)
    stem = np.asarray(variables["params"]["stem"]["kernel"], np.float64)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (0, 0)))
    conv = sum(padded[:, k : k + PIXELS] @ stem[k] for k in range(3))
    expected = TINY.batch_norm_momentum * np.asarray(before) + 0.1 * conv.mean(axis=(0, 1))
    np.testing.assert_allclose(mean, expected, rtol=1e-5)  # float32 means of 99 numbers


def test_unknown_choices_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"model.activation must be one of \['mish', 'relu'\], found 'gelu'"):
        make_model(dataclasses.replace(TINY, activation="gelu"), MASK)
    with pytest.raises(ValueError, match=r"model.pooling must be one of .*, found 'median'"):
        make_model(dataclasses.replace(TINY, pooling="median"), MASK)
    with pytest.raises(ValueError, match="at least one residual module"):
        make_model(dataclasses.replace(TINY, filters=()), MASK)
    assert ACTIVATIONS["mish"].value is mish


def test_model_settings_come_from_the_config_and_are_hashable():
    config = common.get_config()
    settings = model_settings(config.model)
    assert settings.filters == (16, 32, 64, 128)
    plain = config.to_dict()  # of a network that was trained before the switch existed
    del plain["model"]["temperature"]
    assert model_settings(plain["model"]) == settings
    assert hash(make_model(settings, bin_mask(make_preprocessing(config).labels)))
