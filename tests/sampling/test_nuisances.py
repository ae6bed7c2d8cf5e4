"""Line strengths and [α/Fe]: what is fitted is what was put in, and what is drawn has the spread that was fitted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.config import ConfigError
from remap.sampling import mixture
from remap.sampling.augment import AugmentSettings, library_draw
from remap.sampling.nuisances import (
    KNOTS,
    AlphaResponse,
    Nuisances,
    alpha_change,
    enhance_alpha,
    fit_line_errors,
    library_differences,
    perturb_lines,
    scale_depths,
)
from remap.sampling.sources import Library, Stars, find_cells, node_cells

PIXELS, STARS = 60, 6000
KEY = jax.random.key(1)
AXES = (np.linspace(4000, 7000, 9), np.linspace(1, 5, 5), np.linspace(-2, 0, 5))
QUIET = {"noise_low": 0.0, "noise_high": 0.0}


def as_given(flux, valid):
    return flux


def half(flux, valid):
    """A normaliser for which a factor means nothing."""
    return flux / jnp.mean(flux, axis=1, keepdims=True) * 0.9


def nodes():
    return np.stack([a.ravel() for a in np.meshgrid(*AXES, indexing="ij")], axis=1)


def library(log_flux, labels, *, cells=None):
    cells = find_cells(labels, ("teff", "logg", "feh")) if cells is None else cells
    stacked = np.stack([log_flux - 9.0, log_flux, log_flux - 9.0]).astype(
        np.float32
    )  # the middle spread counts
    sigma = np.ones(3, np.float32)
    return Library(stacked, np.ones(log_flux.shape[1], bool), labels.astype(np.float32), sigma, cells)


def truth(labels, rng):
    """Differences in two patterns whose standard deviations rise by a factor e from [Fe/H] = -2 to 0, and fall."""
    patterns = np.zeros((2, PIXELS))
    patterns[0, 5:10], patterns[1, 30:50] = 1 / np.sqrt(5), 1 / np.sqrt(20)
    # One larger than the other: of equal ones any mixture would be as good.
    sigma = [0.08, 0.03] * np.exp(np.stack([labels[:, 2] / 2 + 0.5, -labels[:, 2] / 2 - 0.5], axis=1))
    return patterns, sigma, (sigma * rng.standard_normal(sigma.shape)) @ patterns


def pair(rng, *, interpolate=True):
    labels = nodes()
    patterns, sigma, difference = truth(labels, rng)
    level = -0.2 + 0.05 * rng.standard_normal((len(labels), PIXELS))
    cells = None if interpolate else node_cells(len(labels))
    first, second = (library(level + d, labels, cells=cells) for d in (difference, 0 * difference))
    return mixture.mix([first, second], [0.5, 0.5]), difference, patterns, sigma


def draws(labels, flux=0.8):
    labels = jnp.broadcast_to(jnp.asarray(labels, jnp.float32), (STARS, 3))
    return Stars(
        jnp.full((STARS, PIXELS), flux), jnp.ones((STARS, PIXELS), bool), labels, jnp.ones((STARS, 3))
    )


@pytest.mark.parametrize("interpolate", [True, False])
def test_differences_are_those_of_the_middle_line_spread_at_common_nodes(interpolate):
    both, difference, _, _ = pair(np.random.default_rng(0), interpolate=interpolate)
    found, labels = library_differences(both, as_given)
    np.testing.assert_allclose(found, difference, atol=2e-6)  # float32
    np.testing.assert_allclose(labels, nodes(), rtol=1e-6)


def test_nodes_between_those_of_the_other_library_are_compared_with_its_interpolation():
    labels = nodes()
    slope = np.array([1e-4, 0.02, 0.1]) @ ((labels - labels.mean(axis=0)).T)
    between = labels[np.asarray(find_cells(labels, "abc"))].mean(axis=1)
    own = np.array([1e-4, 0.02, 0.1]) @ ((between - labels.mean(axis=0)).T)
    flat = np.full((1, PIXELS), -0.3)
    first = library(flat + own[:, None] + 0.03, between)
    second = library(flat + slope[:, None], labels)
    found, where = library_differences(mixture.mix([first, second], [0.5, 0.5]), as_given)
    np.testing.assert_allclose(where, between, rtol=1e-6)
    np.testing.assert_allclose(found, 0.03, atol=2e-6)


def test_a_factor_between_the_libraries_is_no_difference_of_lines():
    labels = nodes()
    flat = np.zeros((len(labels), PIXELS))
    both = mixture.mix([library(flat - 0.5, labels), library(flat - 0.1, labels)], [0.5, 0.5])
    np.testing.assert_allclose(library_differences(both, half)[0], 0.0, atol=1e-6)


def test_fitted_components_are_those_put_in_with_their_dependence_on_labels():
    both, _, patterns, sigma = pair(np.random.default_rng(2))
    errors = fit_line_errors(both, as_given, components=2)
    overlap = np.abs(errors.basis @ patterns.T)
    np.testing.assert_allclose(overlap.max(axis=1), 1.0, atol=0.01)
    x = (nodes() - errors.middle) / errors.spread
    for k in range(2):
        fitted = np.exp(0.5 * (errors.slopes[k, 0] + x @ errors.slopes[k, 1:]))
        # 225 nodes give each of four coefficients of ln σ² to sqrt(2 / 225), and σ to about a tenth.
        assert np.abs(np.log(fitted / sigma[:, overlap[k].argmax()])).max() < 0.35
        assert np.abs(np.median(np.log(fitted / sigma[:, overlap[k].argmax()]))) < 0.15


def test_drawn_spectra_have_the_spread_that_was_fitted():
    both, _, _, _ = pair(np.random.default_rng(2))
    errors = fit_line_errors(both, as_given, components=2)
    perturb = jax.jit(perturb_lines, static_argnames=("common", "single"))
    label = np.array([5500.0, 4.0, -0.5])
    x = (label - errors.middle) / errors.spread
    sigma = np.exp(0.5 * (errors.slopes[:, 0] + errors.slopes[:, 1:] @ x))
    out = perturb(KEY, draws(label), errors, common=1.5, single=0.0)
    ratio = np.log(np.asarray(out.flux) / 0.8)
    # 6000 draws: a standard deviation to 1 %.
    np.testing.assert_allclose(
        ratio.std(axis=0), 1.5 * np.sqrt(sigma**2 @ errors.basis**2), rtol=0.05, atol=1e-6
    )
    out = perturb(KEY, draws(label), errors, common=0.0, single=2.0)
    ratio = np.log(np.asarray(out.flux) / 0.8)
    scale = np.exp(0.5 * (errors.scale[0] + errors.scale[1:] @ x))
    np.testing.assert_allclose(ratio.std(axis=0), 2.0 * scale * errors.single, rtol=0.05, atol=1e-6)
    lines = errors.single > 0.5 * errors.single.max()
    both_on = ratio[:, :-1][:, lines[:-1] & lines[1:]], ratio[:, 1:][:, lines[:-1] & lines[1:]]
    expected = np.sum(errors.kernel[1:] * errors.kernel[:-1])
    found = (
        np.mean(both_on[0] * both_on[1]) / np.mean(both_on[0] ** 2) ** 0.5 / np.mean(both_on[1] ** 2) ** 0.5
    )
    assert abs(found - expected) < 0.05
    assert np.isfinite(
        np.asarray(perturb(KEY, draws([9000.0, 9.0, 3.0]), errors, common=1.0, single=1.0).flux)
    ).all()


def test_the_correlation_between_neighbours_is_that_of_the_differences():
    rng, labels, sigma = np.random.default_rng(3), nodes(), 1.7
    taps = np.exp(-0.5 * (np.arange(-8, 9) / sigma) ** 2)
    noise = rng.standard_normal((len(labels), PIXELS + 16))
    smooth = 0.02 * np.stack([np.convolve(row, taps, "valid") for row in noise])
    both = mixture.mix([library(smooth - 0.3, labels), library(0 * smooth - 0.3, labels)], [0.5, 0.5])
    kernel = fit_line_errors(both, as_given, components=4).kernel
    found = np.sqrt(-0.5 / np.log(kernel[kernel.argmax() + 1] / kernel.max()))
    assert found == pytest.approx(sigma, rel=0.05)
    assert np.sum(kernel**2) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("both", "components", "message"),
    [
        (lambda: library(np.full((225, PIXELS), -0.3), nodes()), 4, "two libraries or more.*found one"),
        (lambda: pair(np.random.default_rng(0))[0], 200, "at least 400 nodes.*found 225"),
    ],
)
def test_libraries_that_cannot_be_compared_are_refused(both, components, message):
    with pytest.raises(ConfigError, match=message):
        fit_line_errors(both(), as_given, components=components)


def test_libraries_that_do_not_overlap_are_refused():
    labels = nodes()
    flat = np.full((len(labels), PIXELS), -0.3)
    both = mixture.mix([library(flat, labels), library(flat, labels + 1e5)], [0.5, 0.5])
    with pytest.raises(ConfigError, match="overlap"):
        fit_line_errors(both, as_given, components=2)


def test_depths_are_scaled_together_and_the_continuum_is_left():
    draw = draws([5500.0, 4.0, 0.0])
    depth = np.linspace(0.0, 1.0, PIXELS)
    draw = draw._replace(flux=jnp.broadcast_to(jnp.exp(-jnp.asarray(depth, jnp.float32)), (STARS, PIXELS)))
    out = np.log(np.asarray(scale_depths(KEY, draw, amplitude=0.2).flux))
    np.testing.assert_array_equal(out[:, 0], 0.0)
    factor = -out[:, 1:] / depth[1:] - 1
    at = np.argmin(np.abs(np.linspace(0, KNOTS - 1, PIXELS)[1:, None] - np.arange(1, KNOTS)), axis=0)
    np.testing.assert_allclose(factor[:, at].std(axis=0), 0.2, rtol=0.1)  # at the knots; less between them
    assert abs(np.corrcoef(factor[:, 20], factor[:, 21])[0, 1]) > 0.9
    assert abs(np.corrcoef(factor[:, 5], factor[:, 50])[0, 1]) < 0.1


def response():
    """Linear in the labels, so that interpolation is exact; the labels stand in another order."""
    axes = (np.array([4000.0, 5000.0, 7000.0]), np.array([1.0, 5.0]), np.array([-2.0, -0.5, 0.0]))
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    values = slope(points)
    columns = np.array([2, 0, 1], np.int32)
    return AlphaResponse(
        *(jnp.asarray(a, jnp.float32) for a in axes), columns, jnp.asarray(values, jnp.float32)
    )


def slope(points):
    return ((points - [5500, 3, -1]) / [3000, 4, 2]) @ np.array([[0.5, 0.0], [0.2, 0.0], [0.3, -1.0]])


def test_response_is_interpolated_in_the_labels_and_constant_beyond():
    points = np.array([[4000, 1, -2], [4321, 2.2, -1.1], [6999, 4.9, -0.1]], float)
    found = alpha_change(response(), jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(found, slope(points), atol=1e-5)
    beyond = alpha_change(response(), jnp.asarray([[9000.0, 7.0, 1.0]]))
    np.testing.assert_allclose(beyond, slope(np.array([[7000.0, 5.0, 0.0]])), atol=1e-5)


def alphas(feh, **kwargs):
    """[α/Fe] of draws, found again from the second pixel, which responds to [Fe/H] alone."""
    columns = jnp.asarray([[4.0, feh, 5500.0]])
    draw = draws([0.0, 0.0, 0.0])._replace(labels=jnp.broadcast_to(columns, (STARS, 3)))
    draw = draw._replace(flux=draw.flux[:, :2], valid=draw.valid[:, :2])
    out = enhance_alpha(KEY, draw, response(), **kwargs)
    np.testing.assert_array_equal(out.labels, draw.labels)
    return np.log(np.asarray(out.flux[:, 1]) / 0.8) / slope(np.array([[5500.0, 4.0, min(feh, 0.0)]]))[0, 1]


def test_alpha_is_uniform_or_follows_the_trend():
    even = alphas(-2.0, low=-0.1, high=0.4, scatter=0.0)
    assert even.min() >= -0.1001
    assert even.max() <= 0.4001
    assert abs(even.mean() - 0.15) < 0.01
    for feh, mean in ((-2.0, 0.35), (-0.5, 0.2), (0.3, 0.05)):
        drawn = alphas(feh, low=0.05, high=0.35, scatter=0.08)
        assert abs(drawn.mean() - mean) < 0.005
        assert drawn.std() == pytest.approx(0.08, rel=0.05)


ALL = {"lines": 1.0, "lines_each": 0.5, "lines_components": 2, "depths": 0.1, "alpha": (0.0, 0.4)}


def draw_of(both, nuisances, **on):
    settings = AugmentSettings(**QUIET, **on)
    wave = jnp.arange(5000.0, 5000.0 + PIXELS)
    draw = jax.jit(library_draw, static_argnames=("batch", "settings"))
    device = jax.tree.map(jnp.asarray, both)
    return draw(KEY, jnp.asarray(3), device, wave, batch=16, settings=settings, nuisances=nuisances)


def nuisances_of(both):
    alpha = response()
    wide = jnp.tile(alpha.response[:, :1], (1, PIXELS))
    alpha = alpha._replace(response=wide, columns=jnp.arange(3))
    return Nuisances(jax.tree.map(jnp.asarray, fit_line_errors(both, as_given, components=2)), alpha)


@pytest.mark.parametrize("name", ["lines", "lines_each", "depths", "alpha"])
def test_each_field_changes_the_flux_and_nothing_else(name):
    both = pair(np.random.default_rng(2))[0]
    found = nuisances_of(both)
    plain, varied = draw_of(both, None), draw_of(both, found, **{name: ALL[name]})
    for field in ("valid", "labels", "errors"):
        np.testing.assert_array_equal(getattr(plain, field), getattr(varied, field))
    assert np.abs(np.log(np.asarray(varied.flux / plain.flux))).max() > 1e-3
    assert np.isfinite(np.asarray(varied.flux)).all()
    again = draw_of(both, found, **{name: ALL[name]})
    np.testing.assert_array_equal(varied.flux, again.flux)


def test_what_is_on_needs_what_it_draws_from():
    both = pair(np.random.default_rng(2))[0]
    for name in ("lines", "alpha"):
        with pytest.raises(ConfigError, match=rf"augment\.{name} is on"):
            draw_of(both, None, **{name: ALL[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lines": -0.1}, "lines >= 0"),
        ({"depths": float("nan")}, "depths >= 0"),
        ({"lines": 1.0, "lines_components": 0}, "lines_components >= 1"),
        ({"alpha": (0.4, 0.0)}, r"alpha as \(\) or \(low, high\)"),
        ({"alpha": (0.4,)}, r"alpha as \(\) or \(low, high\)"),
        ({"alpha_scatter": 0.1}, "alpha_scatter"),
        ({"kind": "paper", "lines": 1.0}, "fixed set"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AugmentSettings(**changes)


def test_stars_are_not_varied_by_what_is_for_libraries():
    settings = AugmentSettings(**QUIET, **ALL)
    assert not settings.changes_stars
    assert settings.of_library.keys() == {"lines", "lines_each", "depths", "alpha"}
    assert dataclasses.replace(settings, velocity=3.0).changes_stars
