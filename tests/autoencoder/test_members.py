"""The members of the ensemble: programs are compiled once for all that have one shape."""

import jax
import numpy as np
import pytest
from helpers import tiny

from remap.autoencoder import inputs, members
from remap.autoencoder.errors import _square_errors
from remap.autoencoder.members import Member, encode
from remap.autoencoder.network import Autoencoder, AutoencoderSettings, init_params
from remap.preprocess.description import make_preprocessing

PIXELS = 24


def member(width, seed):
    model = Autoencoder(AutoencoderSettings(width, 4, "relu", 0.0, 1.0), PIXELS)
    return Member(model, init_params(model, jax.random.key(seed)), 1)


@pytest.fixture
def flux():
    return jax.random.uniform(jax.random.key(0), (10, PIXELS))


def test_features_are_those_of_each_member_whatever_the_chunk(flux):
    two = [member(16, 1), member(24, 2)]
    found = encode(two, flux, chunk=4)
    assert found.shape == (2, 10, 4)
    for m, features in zip(two, found, strict=True):
        expected = m.model.apply({"params": m.params}, flux, method="encode")
        np.testing.assert_allclose(features, expected, rtol=1e-6, atol=1e-6)


def test_members_of_one_width_share_a_program(flux):
    members._latent.clear_cache()
    encode([member(16, 1)], flux, chunk=5)
    assert members._latent._cache_size() == 1
    encode([member(16, 1), member(16, 2)], flux, chunk=5)
    assert members._latent._cache_size() == 1
    encode([member(16, 3)], flux, chunk=4)  # two more: 4 and the last 2
    assert members._latent._cache_size() == 3
    encode([member(24, 3)], flux, chunk=5)
    assert members._latent._cache_size() == 4


def test_errors_of_members_of_one_width_share_a_program(flux):
    _square_errors.clear_cache()
    for m in (member(16, 1), member(16, 2)):
        _square_errors(m.model, m.params, flux, flux > 0.1)
    assert _square_errors._cache_size() == 1


def test_windows_of_one_preprocessing_share_a_program():
    """Also where each was opened by itself: the normaliser is slow to compile."""
    windows = [inputs.make_window(make_preprocessing(tiny.get_config()), low=0.0, high=1.2) for _ in range(2)]
    assert windows[0] == windows[1]
    assert hash(windows[0]) == hash(windows[1])
    other = inputs.make_window(make_preprocessing(tiny.get_config()), low=0.0, high=1.3)
    assert other != windows[0]
