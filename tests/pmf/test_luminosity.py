"""Luminosity classes: the line, and the probability above it against a sum over a fine grid."""

import numpy as np
import pytest

from remap.pmf.luminosity import dwarf_giant, dwarf_probability

TEFF = np.linspace(3900.0, 6500.0, 14)  # neither 4250 nor 6000 K is an edge
LOGG = np.array([1.0, 3.0, 3.4, 3.45, 3.9, 4.0, 5.5])


def test_dwarfs_and_giants_at_the_boundaries():
    below = np.nextafter
    cases = [
        (6000.0, 3.5, "dwarf"),
        (6000.0, below(3.5, 0), "giant"),
        (7000.0, 3.5, "dwarf"),
        (4250.0, 4.0, "dwarf"),
        (4250.0, below(4.0, 0), "giant"),
        (3000.0, 4.0, "dwarf"),
        (5000.0, 5.2 - 2.8e-4 * 5000, "dwarf"),  # 3.8
        (5000.0, 3.799, "giant"),
        (5999.0, 3.51, "giant"),  # 3.5203 between, 3.5 from 6000 K
        (4251.0, 4.005, "giant"),  # 4.0097 between, 4.0 up to 4250 K
        (np.nan, 4.0, ""),
        (5000.0, np.nan, ""),
        (np.inf, 4.0, ""),
    ]
    teff, logg, expected = zip(*cases, strict=True)
    np.testing.assert_array_equal(dwarf_giant(np.array(teff), np.array(logg)), expected)


def test_the_probability_is_that_of_a_fine_grid():
    rng = np.random.default_rng(0)
    teff_pmf = rng.dirichlet(np.ones(TEFF.size - 1), 5)
    logg_pmf = rng.dirichlet(np.ones(LOGG.size - 1), 5)
    fine = 400  # points per bin and label
    inside = (np.arange(fine) + 0.5) / fine
    teff = (TEFF[:-1, None] + np.diff(TEFF)[:, None] * inside).ravel()
    logg = (LOGG[:-1, None] + np.diff(LOGG)[:, None] * inside).ravel()
    dwarf = dwarf_giant(teff[:, None], logg[None]) == "dwarf"
    weights = (np.repeat(p, fine, axis=1) / fine for p in (teff_pmf, logg_pmf))
    expected = [t @ dwarf @ g for t, g in zip(*weights, strict=True)]
    found = dwarf_probability(teff_pmf, TEFF, logg_pmf, LOGG)
    np.testing.assert_allclose(found, expected, atol=1e-3)  # a point counts wholly or not at all: 1 / fine


def test_certain_stars_and_missing_ones():
    one = np.eye(TEFF.size - 1)[[6, 6, 6, 6]]  # 5100 to 5300 K, where a dwarf has at least 3.72 to 3.77
    other = np.eye(LOGG.size - 1)[[5, 0, 5, 0]]
    one[2], other[3] = np.nan, np.nan
    np.testing.assert_array_equal(dwarf_probability(one, TEFF, other, LOGG), [1, 0, np.nan, np.nan])
    assert dwarf_probability(one[:0], TEFF, other[:0], LOGG).shape == (0,)


def test_a_star_has_the_same_bits_among_any_others():
    """As the shards of a stream have other numbers of stars than a prediction at once."""
    rng = np.random.default_rng(1)
    teff, logg = np.linspace(4000, 7000, 41), np.linspace(1, 5, 24)
    pmfs = rng.dirichlet(np.ones(40), 40), rng.dirichlet(np.ones(23), 40)
    whole = dwarf_probability(pmfs[0], teff, pmfs[1], logg)
    for count in (1, 2, 3, 7):
        parts = [
            dwarf_probability(pmfs[0][i : i + count], teff, pmfs[1][i : i + count], logg)
            for i in range(0, 40, count)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_half_of_a_cell():
    """A square of which the line is a diagonal."""
    low = 5000.0
    high = low + 0.14 / 2.8e-4
    g = 5.2 - 2.8e-4 * np.array([high, low])
    assert dwarf_probability([[1.0]], [low, high], [[1.0]], g)[0] == pytest.approx(0.5, abs=1e-12)


def test_pmfs_of_different_stars_are_refused():
    with pytest.raises(ValueError, match=r"expected PMFs \[S, K\] and \[S, M\], found \(2, 1\) and \(1, 1\)"):
        dwarf_probability([[1.0], [1.0]], [4000.0, 5000.0], [[1.0]], [1.0, 5.0])


def test_a_star_has_the_same_probability_to_the_last_bit_whoever_is_beside_it():
    rng = np.random.default_rng(0)
    teff, logg = (rng.dirichlet(np.ones(n), 60).astype(np.float32) for n in (62, 50))
    edges = np.linspace(3800.0, 7600.0, 63), np.linspace(0.0, 5.5, 51)
    whole = dwarf_probability(teff, edges[0], logg, edges[1])
    for size in (1, 3, 8):
        parts = [
            dwarf_probability(teff[i : i + size], edges[0], logg[i : i + size], edges[1])
            for i in range(0, 60, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
