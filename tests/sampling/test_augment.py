"""Batches as pure functions of (key, step): noise, the fixed set of the paper, fresh draws, velocity to gaps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.sampling import augment
from remap.sampling.augment import (
    AugmentSettings,
    Batch,
    add_noise,
    draw_noise_levels,
    finish,
    join,
    library_draw,
    paper_set_size,
    survey_draw,
    vary,
)
from remap.sampling.sources import (
    Library,
    Stars,
    draw_library,
    draw_survey,
    find_cells,
    stream_indices,
)
from remap.spectra import SPEED_OF_LIGHT

PIXELS = 400
WAVE = jnp.asarray(5000.0 + np.arange(PIXELS), jnp.float32)
OFF = {"velocity": 0.0, "scattered": 0.0, "tilt": 0.0, "gaps": 0, "gap_pixels": 0}
ON = {"velocity": 200.0, "scattered": 0.3, "tilt": 0.2, "gaps": 3, "gap_pixels": 10}
ONLINE = AugmentSettings("online", noise_low=0.005, noise_high=0.02, levels=5, draws=3, **OFF)
PAPER = dataclasses.replace(ONLINE, kind="paper")
QUIET = dataclasses.replace(ONLINE, noise_low=0.0, noise_high=0.0)
EVERYTHING = dataclasses.replace(ONLINE, **ON)
EDGES = jnp.array([[0.0, 1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 1.0]])
KEY = jax.random.key(0)

jit_library = jax.jit(library_draw, static_argnames=("batch", "settings"))
jit_survey = jax.jit(survey_draw, static_argnames=("batch", "settings"))
jit_noise = jax.jit(add_noise)
jit_vary = jax.jit(vary, static_argnames="settings")
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
    return Stars(
        jnp.asarray(np.arange(1.0, 6.0)[:, None] * np.ones(PIXELS), jnp.float32),
        jnp.ones((5, PIXELS), bool),
        jnp.asarray(labels, jnp.float32),
        jnp.full((5, 2), 0.1, jnp.float32),
    )


def batch_of(step, key=KEY, settings=ONLINE, *, interpolate=False):
    size = 60 if settings is PAPER else 4
    draw = jit_library(key, jnp.asarray(step), make_library(interpolate), WAVE, batch=size, settings=settings)
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
    for settings in (QUIET, PAPER):
        flux = np.stack(
            [jit_survey(KEY, s, make_survey(), WAVE, batch=5, settings=settings).flux for s in steps]
        )
        for epoch in flux:
            np.testing.assert_array_equal(np.sort(epoch[:, 0]), [1, 2, 3, 4, 5])
            assert (epoch == epoch[:, :1]).all()
    draws = [jit_survey(KEY, s, make_survey(), WAVE, batch=5, settings=ONLINE) for s in steps]
    draws = [jax.tree.map(np.asarray, d) for d in draws]
    star = np.stack([np.round(np.mean(d.flux, axis=1)) for d in draws])
    sigma = np.stack([np.std(d.flux, axis=1) for d in draws]) / star
    assert sigma.min() > 0.005 * 0.86  # as above
    assert sigma.max() < 0.02 * 1.14
    assert len({row.tobytes() for d in draws for row in np.asarray(d.flux)}) == 25
    for d, stars in zip(draws, star, strict=True):
        np.testing.assert_array_equal(d.labels, np.asarray(make_survey().labels)[stars.astype(int) - 1])
    again = jit_survey(KEY, steps[3], make_survey(), WAVE, batch=5, settings=ONLINE)
    np.testing.assert_array_equal(again.flux, draws[3].flux)


# ------------------------------------------------------------------ velocity, scattered light, tilt, gaps


def former_library_draw(key, step, library, wave, *, batch, settings):
    """`library_draw`, online, before there was anything but noise."""
    order_key, _, fresh_key = jax.random.split(key, 3)
    cell = stream_indices(order_key, step, library.cells.shape[0], batch)
    fresh_key = jax.random.fold_in(fresh_key, step)
    spread_key, place_key, sigma_key, noise_key, _ = jax.random.split(fresh_key, 5)
    spread = jax.random.randint(spread_key, (batch,), 0, library.log_flux.shape[0])
    sigma = jax.random.uniform(sigma_key, (batch,), minval=settings.noise_low, maxval=settings.noise_high)
    keys = jax.random.split(noise_key, batch)
    draw = draw_library(
        library, spread, cell, jax.random.uniform(place_key, (batch, library.labels.shape[1]))
    )
    return draw._replace(flux=add_noise(keys, draw.flux, sigma))


def former_survey_draw(key, step, survey, wave, *, batch, settings):
    """`survey_draw` before there was anything but noise."""
    order_key, fresh_key = jax.random.split(key)
    draw = draw_survey(survey, stream_indices(order_key, step, survey.flux.shape[0], batch))
    if settings.noise_high == 0:
        return draw
    sigma_key, noise_key, _ = jax.random.split(jax.random.fold_in(fresh_key, step), 3)
    sigma = jax.random.uniform(sigma_key, (batch,), minval=settings.noise_low, maxval=settings.noise_high)
    return draw._replace(flux=add_noise(jax.random.split(noise_key, batch), draw.flux, sigma))


def source_of(kind):
    return (library_draw, make_library(True)) if kind == "library" else (survey_draw, make_survey())


@pytest.mark.parametrize("settings", [ONLINE, QUIET], ids=["noise", "quiet"])
@pytest.mark.parametrize("kind", ["library", "survey"])
def test_with_everything_off_batches_are_bit_for_bit_what_they_were(kind, settings):
    draw, source = source_of(kind)
    former = former_library_draw if kind == "library" else former_survey_draw
    ours, theirs = (
        jax.jit(functools.partial(f, batch=4, settings=settings), static_argnames=()) for f in (draw, former)
    )
    for step in (0, 1, 5):
        found, expected = (f(KEY, jnp.asarray(step), source, WAVE) for f in (ours, theirs))
        assert all(
            np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(found, expected, strict=True)
        )


@pytest.mark.parametrize("kind", ["library", "survey"])
def test_with_everything_off_there_is_nothing_more_to_compute(kind):
    draw, source = source_of(kind)
    former = former_library_draw if kind == "library" else former_survey_draw

    def program(f, settings):
        traced = jax.make_jaxpr(functools.partial(f, batch=4, settings=settings))
        return str(traced(KEY, jnp.asarray(0), source, WAVE))

    assert program(draw, ONLINE) == program(former, ONLINE)
    assert len(program(draw, EVERYTHING)) > len(program(former, ONLINE))


def lines(stars, *, seed=0):
    """A draw of equal spectra: continuum 2 with one line in the middle, of depth 1.2 and σ 3 pixels."""
    flux = 2 - 1.2 * np.exp(-0.5 * ((np.arange(PIXELS) - 200) / 3) ** 2)
    labels = jnp.asarray(np.random.default_rng(seed).normal(size=(stars, 2)), jnp.float32)
    flux = jnp.broadcast_to(jnp.asarray(flux, jnp.float32), (stars, PIXELS))
    return Stars(
        flux, jnp.ones((stars, PIXELS), bool).at[:, 50].set(False), labels, jnp.full((stars, 2), 0.1)
    )


def varied(settings, key=KEY, stars=256):
    keys, sigma = jax.random.split(jax.random.key(9), stars), jnp.full(stars, 0.01)
    return jax.tree.map(np.asarray, jit_vary(key, lines(stars), keys, sigma, WAVE, settings=settings))


def only(**fields):
    return dataclasses.replace(QUIET, **fields)


def assert_uniform(values, low, high):
    """256 values: the ends are within 1/20 of the range of the limits but for one in 1e5, the mean ± 1/55."""
    span = high - low
    assert low - 1e-3 * span <= values.min() < low + 0.05 * span
    assert high - 0.05 * span < values.max() <= high + 1e-3 * span
    assert abs(values.mean() - (low + high) / 2) < 0.08 * span


def test_velocities_are_uniform_and_validity_moves_along():
    limit = 400.0  # 6.9 pixels at the line
    draw = varied(only(velocity=limit))
    away = np.arange(PIXELS) - 200
    depth = (2 - draw.flux) * (np.abs(away) < 30)
    moved = (depth * away).sum(axis=1) / depth.sum(axis=1)
    assert_uniform(moved * SPEED_OF_LIGHT / 5200, -limit, limit)
    for row, pixels in zip(draw.valid, moved, strict=True):
        # The invalid pixel spoils both pixels that lie beside its new place; at the line it moves 200/5050 further.
        place = 50 + pixels * 5050 / 5200
        np.testing.assert_array_equal(
            np.flatnonzero(~row[15:-15]) + 15, [np.floor(place), np.floor(place) + 1]
        )
        assert row[:15].all() == (pixels < 0)
        assert row[-15:].all() == (pixels > 0)


def test_fractions_of_scattered_light_and_tilts_are_uniform():
    contrast = varied(only(scattered=0.3)).flux
    assert_uniform(1 - (contrast[:, 0] - contrast[:, 200]) / 1.2, 0.0, 0.3)
    ends = varied(only(tilt=0.2)).flux
    assert_uniform((ends[:, -1] - ends[:, 0]) / 4, -0.2, 0.2)


def test_gaps_differ_from_star_to_star_and_leave_the_rest():
    draw, before = varied(only(gaps=3, gap_pixels=10)), varied(QUIET)
    gone = before.valid & ~draw.valid
    assert set(np.unique(gone.sum(axis=1))) >= set(range(20))  # 0 to 30, small numbers more often
    assert gone.sum(axis=1).max() <= 30
    # 256 × 1.5 runs of 5.5 pixels on average are 5 at each of 400: none of 32 places of ten pixels is spared.
    assert gone[:, 60:380].reshape(256, 32, 10).any(axis=(0, 2)).all()
    assert (draw.flux[~draw.valid & before.valid] == 0).all()
    np.testing.assert_array_equal(draw.flux[draw.valid], before.flux[draw.valid])
    runs = np.diff(gone.astype(int), axis=1, prepend=0, append=0)
    assert ((runs == 1).sum(axis=1) <= 4).all()  # three, one of which the old bad pixel may divide


def test_an_effect_leaves_the_draws_of_the_others_as_they_are():
    """Without velocities the gaps, the veils, the tilts and the noise are the same ones."""
    everything, still = varied(EVERYTHING), varied(dataclasses.replace(EVERYTHING, velocity=0.0))
    inner = np.s_[:, 60:-10]  # away from the ends and the bad pixel, which a velocity moves
    np.testing.assert_array_equal(everything.valid[inner], still.valid[inner])
    beside = np.s_[
        :, 260:-10
    ]  # the continuum: the same wherever it comes from, but for the mean that is scattered
    np.testing.assert_allclose(everything.flux[beside], still.flux[beside], rtol=1e-3)
    line = np.s_[:, 190:210]
    assert np.abs(everything.flux[line] - still.flux[line]).max() > 0.3
    for a, b in ((everything.labels, still.labels), (everything.errors, still.errors)):
        np.testing.assert_array_equal(a, b)


def test_effects_come_in_the_order_of_the_docstring(monkeypatch):
    seen = []

    def spy(name):
        function = getattr(augment, name)

        def wrapped(*args, **kwargs):
            seen.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(augment, name, wrapped)

    for name in ("cut_gaps", "tilt_continuum", "add_noise", "shift_velocity", "add_scattered_light"):
        spy(name)
    jax.eval_shape(lambda: vary(KEY, lines(2), jax.random.split(KEY, 2), jnp.full(2, 0.01), WAVE, EVERYTHING))
    assert seen == ["shift_velocity", "add_scattered_light", "tilt_continuum", "add_noise", "cut_gaps"]


@pytest.mark.parametrize("kind", ["library", "survey"])
def test_varied_batches_depend_on_key_and_step_alone_and_keep_their_labels(kind):
    draw, source = source_of(kind)
    make = jax.jit(functools.partial(draw, batch=4, settings=EVERYTHING))
    first = [make(KEY, jnp.asarray(i), source, WAVE) for i in (0, 1, 7)]
    again = [make(KEY, jnp.asarray(i), source, WAVE) for i in (7, 1, 0)]
    for a, b in zip(first, reversed(again), strict=True):
        assert same(*(jax.tree.map(np.asarray, x) for x in (a, b)))
    other = make(jax.random.key(1), jnp.asarray(0), source, WAVE)
    for a in (first[1], other):
        assert not np.array_equal(a.valid, first[0].valid)
    assert len({row.tobytes() for d in first for row in np.asarray(d.flux)}) == 12
    plain = (jit_library if kind == "library" else jit_survey)(
        KEY, jnp.asarray(7), source, WAVE, batch=4, settings=ONLINE
    )
    np.testing.assert_array_equal(first[2].labels, plain.labels)
    np.testing.assert_array_equal(first[2].errors, plain.errors)


@pytest.mark.parametrize("change", [{"velocity": 1.0}, {"scattered": 0.1}, {"tilt": 0.1}, ON], ids=str)
def test_stars_vary_at_every_step_with_any_of_the_fields(change):
    assert only(**change).changes_stars
    assert ONLINE.changes_stars
    assert not QUIET.changes_stars
    assert not PAPER.changes_stars


def test_stars_vary_without_noise():
    settings = only(gaps=3, gap_pixels=10)
    steps = [jit_survey(KEY, i, make_survey(), WAVE, batch=5, settings=settings) for i in range(2)]
    assert not np.array_equal(np.sort(steps[0].flux.sum(axis=1)), np.sort(steps[1].flux.sum(axis=1)))
    for draw in steps:
        flux = np.asarray(draw.flux)
        np.testing.assert_array_equal(flux, np.where(draw.valid, flux.max(axis=1, keepdims=True), 0))


def halve(flux, valid):
    """A normaliser that shows what it was given."""
    return jnp.where(valid, 0.5 * flux, -1.0)


def test_finish_normalises_and_makes_the_targets_of_known_labels():
    survey = make_survey()
    valid = survey.valid.at[1, 3].set(False)
    made = jit_finish(Stars(survey.flux, valid, survey.labels, survey.errors), halve, EDGES)
    np.testing.assert_array_equal(made.flux, np.where(valid, 0.5 * np.asarray(survey.flux), -1.0))
    np.testing.assert_array_equal(made.valid, valid)
    assert np.asarray(made.classes).tolist() == [[0, 1, 2, 2, 0], [1, 1, -1, 0, 0]]
    total = np.asarray(made.target).sum(axis=-1)
    np.testing.assert_allclose(total, [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]], atol=1e-6)  # float32
    assert not made.target[1, 2].any()
    assert not made.target[1, :, 2].any()  # padding


def test_join_keeps_the_label_axis_in_front():
    survey = make_survey()
    made = jit_finish(Stars(*survey), halve, EDGES)
    both = join(made, jax.tree.map(lambda a: a[:, :2] if a.shape[0] == 2 else a[:2], made))
    assert [a.shape for a in both] == [(7, PIXELS), (7, PIXELS), (2, 7, 3), (2, 7)]
    for name, axis in (("flux", 0), ("valid", 0), ("target", 1), ("classes", 1)):
        value = np.asarray(getattr(both, name))
        np.testing.assert_array_equal(value.take([5, 6], axis), value.take([0, 1], axis))
    assert isinstance(both, Batch)


@pytest.mark.parametrize(("law", "median"), [("uniform", 0.055), ("log", 0.0316)])
def test_law_of_the_noise(law, median):
    settings = AugmentSettings(
        **dataclasses.asdict(ONLINE) | {"noise_low": 0.01, "noise_high": 0.1, "noise_law": law}
    )
    sigma = draw_noise_levels(jax.random.key(3), 2000, settings)
    assert 0.01 <= float(sigma.min()) < float(sigma.max()) <= 0.1
    assert float(np.median(sigma)) == pytest.approx(median, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "offline"}, "augment.kind must be 'online' or 'paper', found 'offline'"),
        ({"noise_low": 0.03}, "expected 0 <= noise_low <= noise_high, found 0.03, 0.02"),
        ({"noise_low": -0.1}, "found -0.1, 0.02"),
        ({"noise_high": float("nan")}, "found 0.005, nan"),
        ({"noise_law": "normal"}, "noise_law must be 'uniform' or 'log', found 'normal'"),
        ({"noise_law": "log", "noise_low": 0.0}, "'log' needs noise_low > 0"),
        ({"velocity": -1.0}, r"expected 0 <= velocity < 299792\.458 km/s, found -1\.0"),
        ({"velocity": 3e5}, r"found 300000\.0"),
        ({"scattered": 1.0}, r"expected 0 <= scattered < 1, found 1\.0"),
        ({"tilt": float("nan")}, "expected 0 <= tilt < 1, found nan"),
        ({"gaps": 2}, "gaps and gap_pixels both 0 or both above, found 2, 0"),
        ({"gap_pixels": 2}, "found 0, 2"),
        ({"gaps": -1, "gap_pixels": -1}, "found -1, -1"),
        ({"kind": "paper", "velocity": 3.0}, r"'paper' is a fixed set .* found {'velocity': 3\.0}"),
        ({"kind": "paper", "scattered": 0.1}, r"'paper' is a fixed set .* found {'scattered': 0\.1}"),
        ({"kind": "paper", "tilt": 0.1}, r"'paper' is a fixed set .* found {'tilt': 0\.1}"),
        ({"kind": "paper", "gaps": 1, "gap_pixels": 5}, r"'paper' is a fixed set .* found {'gaps': 1}"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**dataclasses.asdict(ONLINE) | change)
