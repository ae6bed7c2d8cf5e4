"""The autoencoder's input: arms side by side, draws within limits, one code for both domains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remap.autoencoder.inputs import (
    Noise,
    Window,
    draw_pixels,
    draw_pool,
    limit_cells,
    pool_at,
    survey_blocks,
    survey_pixels,
)
from remap.sampling.sources import Library, Stars, find_cells

# Nodes at 4000, 5000, 6000 K and 2, 3, 4 dex; flux falls with both labels, so that a spectrum tells its labels.
NODES = np.array([(t, g) for t in (4000.0, 5000.0, 6000.0) for g in (2.0, 3.0, 4.0)])
NAMES = ("teff", "logg")
PIXELS = (6, 4)


def halved(flux, valid):
    """A normaliser that is easy to follow."""
    return flux / 2.0


WINDOW = Window((halved, halved), 0.0, 1.25)
QUIET, NOISY = Noise(0.0, 0.0, False), Noise(0.01, 0.02, True)


def library(pixels):
    level = -0.1 * (NODES[:, 0] - 5000) / 1000 - 0.05 * (NODES[:, 1] - 3)
    log_flux = np.log(2.0) - 0.3 + np.tile(level[None, :, None], (2, 1, pixels))
    valid = np.ones(pixels, bool)
    valid[0] = False
    return Library(
        log_flux.astype(np.float32),
        valid,
        NODES.astype(np.float32),
        np.ones(2, np.float32),
        find_cells(NODES, NAMES),
    )


LIBRARIES = tuple(library(n) for n in PIXELS)


def expected_flux(labels):
    """Scaled flux of every valid pixel at these labels."""
    labels = np.asarray(labels)
    return np.exp(-0.3 - 0.1 * (labels[:, 0] - 5000) / 1000 - 0.05 * (labels[:, 1] - 3)) / 1.25


def test_limits_keep_the_part_of_each_cell_that_is_inside():
    cells, ranges = limit_cells(LIBRARIES[0], {"teff": (4500.0, 5250.0)}, NAMES)
    assert len(cells) == 4  # both temperatures, both gravities
    low, high = (NODES[LIBRARIES[0].cells[cells][:, corner]] for corner in (0, -1))
    np.testing.assert_allclose(low + ranges.low * (high - low), np.maximum(low, [4500.0, -np.inf]))
    np.testing.assert_allclose(low + ranges.high * (high - low), np.minimum(high, [5250.0, np.inf]))
    assert len(limit_cells(LIBRARIES[0], {}, NAMES)[0]) == 4
    assert len(limit_cells(LIBRARIES[0], {"logg": (3.0, 4.0)}, NAMES)[0]) == 2  # those below only touch it


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"names \['feh'\]; the labels are \('teff', 'logg'\)"):
        limit_cells(LIBRARIES[0], {"feh": (-1.0, 0.0)}, NAMES)
    with pytest.raises(ValueError, match="leave none of 4 library cells"):
        limit_cells(LIBRARIES[0], {"teff": (6000.0, 7000.0)}, NAMES)


def test_draws_have_the_labels_of_their_place_in_every_arm():
    pixels, labels = draw_pixels(
        jax.random.key(0),
        jax.tree.map(jnp.asarray, LIBRARIES),
        jnp.array([0, 3]),
        jnp.array([[0.5, 0.5], [1.0, 0.0]]),
        window=WINDOW,
        noise=QUIET,
    )
    np.testing.assert_allclose(labels, [[4500, 2.5], [6000, 3.0]])
    assert pixels.flux.shape == (2, sum(PIXELS))
    np.testing.assert_array_equal(pixels.valid, np.tile(np.arange(10) % 6 != 0, (2, 1)))
    np.testing.assert_allclose(pixels.flux[:, [0, 6]], 1 / 1.25)  # invalid: the continuum
    good = np.asarray(pixels.flux)[:, [1, 5, 7, 9]]
    np.testing.assert_allclose(good, np.tile(expected_flux(labels)[:, None], (1, 4)), rtol=1e-5)
    np.testing.assert_array_equal(pixels.target, pixels.flux)


def test_noise_is_in_the_input_and_not_in_the_target():
    many = 400
    pixels, labels = draw_pixels(
        jax.random.key(1),
        jax.tree.map(jnp.asarray, LIBRARIES),
        jnp.zeros(many, int),
        jnp.full((many, 2), 0.5),
        window=WINDOW,
        noise=NOISY,
    )
    clean = expected_flux(labels)[:, None]
    valid = np.asarray(pixels.valid[0])
    np.testing.assert_allclose(pixels.target[:, valid], np.tile(clean, (1, valid.sum())), rtol=1e-5)
    spread = np.std(np.asarray(pixels.flux)[:, valid] / clean, axis=1)
    # U(0.01, 0.02) has a mean square of 0.0153²; 8 pixels each
    assert np.sqrt(np.mean(spread**2)) == pytest.approx(0.0153, rel=0.1)


def test_scaling_cuts_what_lies_beyond():
    flux, valid = WINDOW.join(
        [jnp.array([[0.5, 2.0, -1.0, jnp.nan]])], [jnp.array([[True, True, True, True]])]
    )
    np.testing.assert_allclose(flux, [[0.4, 1.0, 0.0, 0.8]])
    np.testing.assert_array_equal(valid, [[True, True, True, False]])
    with pytest.raises(ValueError, match=r"scale_low < 1 < scale_high, found 0\.0 and 1\.0"):
        Window((halved,), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"noise_low <= noise_high, found 0\.2, 0\.1"):
        Noise(0.2, 0.1, False)


def test_survey_and_library_pass_through_the_same_code():
    flux = [np.full((1, n), 2.0 * np.exp(-0.3), np.float32) for n in PIXELS]
    valid = [np.tile(x.valid, (1, 1)) for x in LIBRARIES]
    nothing = np.full((1, 2), np.nan, np.float32)
    surveys = [Stars(f, v, nothing, nothing) for f, v in zip(flux, valid, strict=True)]
    seen = survey_pixels(WINDOW, surveys, np.arange(1), chunk=4)
    drawn, _ = draw_pixels(
        jax.random.key(0),
        jax.tree.map(jnp.asarray, LIBRARIES),
        jnp.array([0]),
        jnp.array([[1.0, 1.0]]),  # 5000 K, 3 dex
        window=WINDOW,
        noise=QUIET,
    )
    np.testing.assert_allclose(seen.flux, drawn.flux, rtol=1e-6)
    np.testing.assert_array_equal(seen.valid, drawn.valid)


class Mapped:
    """An array in a file, and how many rows of it were asked for at a time."""

    def __init__(self, path, array):
        array.tofile(path)
        self.array, self.asked = np.memmap(path, array.dtype, mode="c", shape=array.shape), []
        self.shape = array.shape

    def __getitem__(self, index):
        self.asked.append(np.asarray(index))
        return self.array[index]


def test_a_mapped_survey_larger_than_a_block_gives_the_same_pixels_as_at_once(tmp_path):
    rng = np.random.default_rng(0)
    flux = [rng.uniform(1, 2, (50, n)).astype(np.float32) for n in PIXELS]
    valid = [rng.random(f.shape) < 0.8 for f in flux]
    expected = WINDOW.join([jnp.asarray(f / 2) for f in flux], [jnp.asarray(v) for v in valid])
    mapped = [
        Stars(*(Mapped(tmp_path / f"{i}_{j}", a) for j, a in enumerate(arrays)), None, None)
        for i, arrays in enumerate(zip(flux, valid, strict=True))
    ]
    rows = rng.permutation(50)[:19]
    found = survey_pixels(WINDOW, mapped, rows, chunk=8)
    np.testing.assert_allclose(found.flux, expected[0][rows], rtol=1e-6)
    np.testing.assert_array_equal(found.valid, expected[1][rows])
    np.testing.assert_array_equal(found.target, found.flux)
    for arm in mapped:
        assert [len(index) for index in arm.flux.asked] == [8, 8, 8]  # one shape, and no more in memory
        assert set(np.concatenate(arm.valid.asked)) == set(rows)
    blocks = list(survey_blocks(WINDOW, mapped, rows, chunk=8))
    assert [some.tolist() for some, _ in blocks] == [rows[i : i + 8].tolist() for i in (0, 8, 16)]
    assert {pixels.flux.shape for _, pixels in blocks} == {(8, 10)}
    assert survey_pixels(WINDOW, mapped, rows[:0], chunk=8).flux.shape == (0, 10)


def test_a_pool_draws_every_cell_alike_and_does_not_depend_on_the_chunk_for_its_labels():
    cells, ranges = limit_cells(LIBRARIES[0], {"teff": (4200.0, 5900.0)}, NAMES)
    settings = {"count": 40, "window": WINDOW, "noise": QUIET}
    pool = draw_pool(jax.random.key(2), LIBRARIES, cells, ranges, chunk=16, **settings)
    again = draw_pool(jax.random.key(2), LIBRARIES, cells, ranges, chunk=40, **settings)
    labels = np.asarray(pool.labels)
    np.testing.assert_allclose(labels, again.labels)
    assert pool.pixels.flux.shape == (40, 10)
    assert labels[:, 0].min() >= 4200
    assert labels[:, 0].max() <= 5900
    for hot in (False, True):
        for giant in (False, True):
            assert np.count_nonzero(((labels[:, 0] > 5000) == hot) & ((labels[:, 1] < 3) == giant)) == 10
    np.testing.assert_allclose(pool.pixels.flux[:, 1], expected_flux(labels), rtol=1e-5)


def test_spectra_at_given_places_are_in_the_order_of_the_places():
    places = np.random.default_rng(0).random((7, 2)).astype(np.float32)
    pool = pool_at(
        jax.random.key(0), LIBRARIES, np.zeros(7, int), places, chunk=3, window=WINDOW, noise=QUIET
    )
    np.testing.assert_allclose(pool.labels, [4000, 2] + 1 * places * [1000, 1], rtol=1e-6)
