"""Many small networks at once: each is what it would be alone, and the convolution is a convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from remap.autoencoder.regressor import (
    Examples,
    PairConvolution,
    Regressor,
    RegressorSettings,
    apply_networks,
    find_scaling,
    init_networks,
    predict_labels,
    regressor_loss,
    standardise,
)
from remap.network.resnet import count_parameters

A, C, L, F = 2, 3, 2, 6
MODEL = Regressor(RegressorSettings((3, 2), (8, 6, 4)))


def networks():
    return init_networks(MODEL, jax.random.key(0), autoencoders=A, networks=C, labels=L, features=F)


def test_pair_convolution_is_flax_convolution_of_width_2():
    x = jax.random.normal(jax.random.key(0), (4, 7, 3))
    pair, conv = PairConvolution(5), nn.Conv(5, (2,), padding="SAME")
    params = pair.init(jax.random.key(1), x)["params"]["Dense_0"]
    kernel = params["kernel"].reshape(2, 3, 5)
    expected = conv.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
    np.testing.assert_allclose(pair.apply({"params": {"Dense_0": params}}, x), expected, atol=1e-5)  # float32


def test_number_of_parameters_is_the_published_one():
    """Two convolutions of width 2 (64, 32), dense 256, 128, 64, one output, on 32 features (published code)."""
    model = Regressor(RegressorSettings((64, 32), (256, 128, 64)))
    params = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32))), jax.random.key(0))["params"]
    convolutions = (2 * 1 * 64 + 64) + (2 * 64 * 32 + 32)
    dense = (32 * 32 * 256 + 256) + (256 * 128 + 128) + (128 * 64 + 64) + (64 + 1)
    assert count_parameters(params) == convolutions + dense == 307_937


def test_networks_under_vmap_are_the_networks_one_by_one():
    params = networks()
    latent = jax.random.normal(jax.random.key(3), (A, 5, F))
    found = apply_networks(MODEL, params, latent)
    assert found.shape == (A, C, L, 5)
    for index in ((0, 0, 0), (1, 2, 0), (0, 1, 1)):
        alone = MODEL.apply({"params": jax.tree.map(lambda p, i=index: p[i], params)}, latent[index[0]])
        np.testing.assert_allclose(found[index], alone, atol=1e-5)  # float32, other order of the sums
    assert len({float(v) for v in np.asarray(found[..., 0]).ravel()}) == A * C * L  # no two are alike


def test_loss_of_one_network_does_not_move_another():
    params = networks()
    latent = jax.random.normal(jax.random.key(3), (A, 5, F))
    labels = jax.random.normal(jax.random.key(4), (5, L))
    grads = jax.grad(lambda p: regressor_loss(MODEL, p, Examples(latent, labels)).total)(params)
    other = labels.at[:, 1].add(1.0)
    moved = jax.grad(lambda p: regressor_loss(MODEL, p, Examples(latent, other)).total)(params)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(a[:, :, 0], b[:, :, 0])
        assert not np.array_equal(a[:, :, 1], b[:, :, 1])
    terms = regressor_loss(MODEL, params, Examples(latent, labels))
    out = apply_networks(MODEL, params, latent)
    error = np.mean((np.asarray(out) - np.asarray(labels).T[None, None]) ** 2, axis=-1)
    np.testing.assert_allclose(terms.total, error.sum(), rtol=1e-5)
    np.testing.assert_allclose(terms.error, error.mean(axis=(0, 1)), rtol=1e-5)


def test_labels_come_out_in_their_own_units_and_a_silent_feature_does_no_harm():
    rng = np.random.default_rng(0)
    latent = rng.normal(3, 2, (A, 50, F)).astype(np.float32)
    latent[0, :, 2] = 0.0
    labels = np.stack([rng.normal(5000, 400, 50), rng.normal(4, 0.5, 50)], axis=1).astype(np.float32)
    scaling = find_scaling(Examples(jnp.asarray(latent), jnp.asarray(labels)))
    scaled = standardise(jnp.asarray(latent), scaling)
    np.testing.assert_allclose(jnp.mean(scaled, axis=1), 0, atol=1e-5)
    expected = np.ones((A, F))
    expected[0, 2] = 0
    np.testing.assert_allclose(jnp.std(scaled, axis=1), expected, atol=1e-5)
    found = predict_labels(MODEL, networks(), scaling, jnp.asarray(latent))
    plain = apply_networks(MODEL, networks(), scaled)
    for j in range(L):
        np.testing.assert_allclose(
            found[:, :, j], labels[:, j].mean() + labels[:, j].std() * np.asarray(plain[:, :, j]), rtol=1e-4
        )
