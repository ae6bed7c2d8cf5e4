"""Batches as pure functions of (key, step): noise, the fixed set of the paper, fresh draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.augment import (
    AugmentSettings,
    Batch,
    add_noise,
    finish,
    join,
    library_draw,
    paper_set_size,
    survey_draw,
)
from remap.data import Draw, Library, Survey, find_cells

PIXELS = 400
ONLINE = AugmentSettings("online", noise_low=0.005, noise_high=0.02, levels=5, draws=3)
PAPER = AugmentSettings("paper", noise_low=0.005, noise_high=0.02, levels=5, draws=3)
EDGES = jnp.array([[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 1.0]])
KEY = jax.random.key(0)

jit_library = jax.jit(library_draw, static_argnames=("batch", "settings"))
jit_survey = jax.jit(survey_draw, static_argnames=("batch", "settings"))
jit_noise = jax.jit(add_noise)
jit_finish = jax.jit(finish, static_argnums=1)


@functools.cache
def make_library(interpolate=False):
    """Four nodes of three line spreads, with flux 1 + 10·node + spread, so that a spectrum tells where it is from."""
    labels = np.array([[0.5, -0.5], [0.5, 0.5], [2.5, -0.5], [2.5, 0.5]])
    flux = 1.0 + 10.0 * np.arange(4)[None, :] + np.arange(3)[:, None]
    return Library(
        jnp.asarray(np.log(np.repeat(flux[..., None], PIXELS, axis=-1)), jnp.float32),
        jnp.ones(PIXELS, bool),
        jnp.asarray(labels, jnp.float32),
        jnp.array([0.2, 0.1]),
        jnp.asarray(find_cells(labels, "ab") if interpolate else np.arange(4, dtype=np.int32)[:, None]),
    )


@functools.cache
def make_survey():
    """Five stars, one of which lacks a label."""
    labels = np.array([[0.1, 0.1], [1.1, 0.2], [2.1, np.nan], [2.2, -0.3], [0.3, -0.9]])
    return Survey(
        jnp.asarray(np.arange(1.0, 6.0)[:, None] * np.ones(PIXELS), jnp.float32),
        jnp.ones((5, PIXELS), bool),
        jnp.asarray(labels, jnp.float32),
        jnp.full((5, 2), 0.1, jnp.float32),
    )


def batch_of(step, key=KEY, settings=ONLINE, *, interpolate=False):
    size = 60 if settings is PAPER else 4
    draw = jit_library(key, jnp.asarray(step), make_library(interpolate), batch=size, settings=settings)
    return jax.tree.map(np.asarray, draw)


def same(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def test_noise_has_the_given_standard_deviation_is_white_and_scales_with_the_flux():
    flux = jnp.asarray(np.array([1.0, 1.0, 1e6])[:, None] * np.linspace(0.5, 2, 20_000), jnp.float32)
    sigma = jnp.array([0.02, 0.005, 0.01])
    noisy = np.asarray(jit_noise(jax.random.split(KEY, 3), flux, sigma), np.float64)
    relative = noisy / np.asarray(flux, np.float64) - 1
    # 20,000 pixels give σ to 0.5 % and all the rest to 0.7-1 %, one standard deviation; five are allowed.
    np.testing.assert_allclose(relative.std(axis=1), sigma, rtol=0.025)
    np.testing.assert_allclose(relative.mean(axis=1) / np.asarray(sigma), 0, atol=0.035)
    halves = relative[:, :10_000].std(axis=1) / relative[:, 10_000:].std(axis=1)
    np.testing.assert_allclose(halves, 1, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(relative), np.eye(3), atol=0.035)
    assert abs(np.corrcoef(relative[0, 1:], relative[0, :-1])[0, 1]) < 0.035


def test_no_noise_leaves_every_bit():
    flux = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9)), jnp.float32)
    noisy = jit_noise(jax.random.split(KEY, 2), flux, jnp.zeros(2))
    np.testing.assert_array_equal(noisy, flux)


def paper_set(key=KEY, epoch=0):
    """All 180 spectra of one epoch of the fixed set, in their order."""
    steps = [batch_of(i, key, PAPER) for i in range(3 * epoch, 3 * epoch + 3)]
    return jax.tree.map(lambda *x: np.concatenate(x), *steps)


def test_the_paper_set_has_45_spectra_per_node_of_every_spread_and_noise():
    assert paper_set_size(make_library(), PAPER) == 4 * 45
    draw = paper_set()
    level = np.round(draw.flux.mean(axis=1) - 1).astype(int)  # the noise of the mean is below 0.1 % · 34
    node, spread = level // 10, level % 10
    np.testing.assert_array_equal(draw.labels, np.asarray(make_library().labels)[node])
    counts = np.zeros((4, 3), int)
    np.add.at(counts, (node, spread), 1)
    assert (counts == 15).all()
    sigma = (draw.flux / draw.flux.mean(axis=1, keepdims=True)).std(axis=1)
    # 400 pixels give each σ to 3.5 %; the ends of the range may be passed by four times that.
    assert sigma.min() > 0.005 * 0.86
    assert sigma.max() < 0.02 * 1.14
    # Five values of σ, the same for all: each is seen 36 times, so the sorted measurements form five steps.
    steps = np.sort(sigma).reshape(5, 36)
    assert len({s.tobytes() for s in draw.flux}) == 180
    per_cell = np.array([np.sort(sigma[(node == n) & (spread == s)]) for n in range(4) for s in range(3)])
    np.testing.assert_allclose(
        per_cell.reshape(12, 5, 3).mean(axis=2), steps.mean(axis=1) * np.ones((12, 1)), rtol=0.1
    )


def test_the_paper_set_repeats_bit_for_bit_in_another_order_at_every_epoch():
    first, second = paper_set(), paper_set(epoch=1)
    rows = [row.tobytes() for row in first.flux]
    again = [row.tobytes() for row in second.flux]
    assert rows != again
    assert sorted(rows) == sorted(again)
    other = [row.tobytes() for row in paper_set(key=jax.random.key(1)).flux]
    assert not set(rows) & set(other)


@pytest.mark.parametrize("settings", [ONLINE, PAPER], ids=lambda s: s.kind)
def test_a_library_batch_depends_on_key_and_step_alone(settings):
    first = [batch_of(i, settings=settings) for i in (0, 1, 7)]
    again = [batch_of(i, settings=settings) for i in (7, 1, 0)]
    for a, b in zip(first, reversed(again), strict=True):
        assert same(a, b)
    assert not same(first[0], first[1])
    assert not same(first[0], batch_of(0, jax.random.key(1), settings))


def test_online_draws_are_fresh_but_visit_every_cell_once_per_epoch():
    draws = [batch_of(i) for i in range(4)]
    fluxes = {row.tobytes() for d in draws for row in d.flux}
    assert len(fluxes) == 16  # no spectrum comes twice
    for d in draws:
        assert sorted(np.round(d.flux.mean(axis=1)).astype(int) // 10) == [0, 1, 2, 3]
    spreads = {int(np.round(row.mean() - 1)) % 10 for d in draws for row in d.flux}
    assert spreads == {0, 1, 2}


def test_online_noise_lies_within_its_limits_and_varies():
    draws = [batch_of(i) for i in range(32)]
    sigma = np.concatenate([(d.flux / d.flux.mean(axis=1, keepdims=True)).std(axis=1) for d in draws])
    assert sigma.min() > 0.005 * 0.86  # as above: 400 pixels give each σ to 3.5 %
    assert sigma.max() < 0.02 * 1.14
    # A uniform distribution of 128: mean 0.0125 ± 0.0004, standard deviation 0.0043.
    np.testing.assert_allclose(sigma.mean(), 0.0125, atol=0.002)
    np.testing.assert_allclose(sigma.std(), 0.015 / np.sqrt(12), rtol=0.25)


def test_online_places_fill_the_cells():
    labels = np.concatenate([batch_of(i, interpolate=True).labels for i in range(32)])
    for column, (low, high) in zip(labels.T, ((0.5, 2.5), (-0.5, 0.5)), strict=True):
        place = (column - low) / (high - low)
        assert place.min() >= 0
        assert place.max() <= 1
        assert np.histogram(place, bins=4, range=(0, 1))[0].min() > 128 / 4 / 2  # 32 ± 5 in each quarter
    assert abs(np.corrcoef(labels.T)[0, 1]) < 0.4  # 0 ± 0.09


def test_survey_batches_take_every_star_once_per_epoch_and_add_noise_only_when_asked():
    steps = np.arange(5)
    quiet = AugmentSettings("online", noise_low=0.0, noise_high=0.0, levels=1, draws=1)
    for settings in (quiet, PAPER):
        flux = np.stack([jit_survey(KEY, s, make_survey(), batch=5, settings=settings).flux for s in steps])
        for epoch in flux:
            np.testing.assert_array_equal(np.sort(epoch[:, 0]), [1, 2, 3, 4, 5])
            assert (epoch == epoch[:, :1]).all()
    draws = [jit_survey(KEY, s, make_survey(), batch=5, settings=ONLINE) for s in steps]
    draws = [jax.tree.map(np.asarray, d) for d in draws]
    star = np.stack([np.round(np.mean(d.flux, axis=1)) for d in draws])
    sigma = np.stack([np.std(d.flux, axis=1) for d in draws]) / star
    assert sigma.min() > 0.005 * 0.86  # as above
    assert sigma.max() < 0.02 * 1.14
    assert len({row.tobytes() for d in draws for row in np.asarray(d.flux)}) == 25
    for d, stars in zip(draws, star, strict=True):
        np.testing.assert_array_equal(d.labels, np.asarray(make_survey().labels)[stars.astype(int) - 1])
    again = jit_survey(KEY, steps[3], make_survey(), batch=5, settings=ONLINE)
    np.testing.assert_array_equal(again.flux, draws[3].flux)


def halve(flux, valid):
    """A normaliser that shows what it was given."""
    return jnp.where(valid, 0.5 * flux, -1.0)


def test_finish_normalises_and_makes_the_targets_of_known_labels():
    survey = make_survey()
    valid = survey.valid.at[1, 3].set(False)
    made = jit_finish(Draw(survey.flux, valid, survey.labels, survey.errors), halve, EDGES)
    np.testing.assert_array_equal(made.flux, np.where(valid, 0.5 * np.asarray(survey.flux), -1.0))
    np.testing.assert_array_equal(made.valid, valid)
    assert np.asarray(made.classes).tolist() == [[0, 1, 2, 2, 0], [1, 1, -1, 0, 0]]
    total = np.asarray(made.target).sum(axis=-1)
    np.testing.assert_allclose(total, [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]], atol=1e-6)  # float32
    assert not made.target[1, 2].any()
    assert not made.target[1, :, 2].any()  # padding


def test_join_keeps_the_label_axis_in_front():
    survey = make_survey()
    made = jit_finish(Draw(*survey), halve, EDGES)
    both = join(made, jax.tree.map(lambda a: a[:, :2] if a.shape[0] == 2 else a[:2], made))
    assert [a.shape for a in both] == [(7, PIXELS), (7, PIXELS), (2, 7, 3), (2, 7)]
    for name, axis in (("flux", 0), ("valid", 0), ("target", 1), ("classes", 1)):
        value = np.asarray(getattr(both, name))
        np.testing.assert_array_equal(value.take([5, 6], axis), value.take([0, 1], axis))
    assert isinstance(both, Batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "offline"}, "augment.kind must be 'online' or 'paper', found 'offline'"),
        ({"noise_low": 0.03}, "expected 0 <= noise_low <= noise_high, found 0.03, 0.02"),
        ({"noise_low": -0.1}, "found -0.1, 0.02"),
        ({"noise_high": float("nan")}, "found 0.005, nan"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    settings = {"kind": "online", "noise_low": 0.005, "noise_high": 0.02, "levels": 5, "draws": 3}
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**settings | change)
