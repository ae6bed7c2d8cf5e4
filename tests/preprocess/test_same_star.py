"""Who is one star by position: against every pair, at the poles, across 0 h, in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remap.preprocess.same_star import ARCSEC, connected, diameter, near_pairs, separation


def angle(ra, dec):
    """float[S, S], arcsec, by cross products of unit vectors."""
    ra, dec = np.radians(ra), np.radians(dec)
    v = np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)
    cross = np.linalg.norm(np.cross(v[:, None], v[None]), axis=-1)
    return np.arctan2(cross, v @ v.T) / ARCSEC


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(10.0, 0.0), (0.0, 60.0), (123.0, 90.0), (200.0, -89.9999)])
)
def test_groups_are_those_of_every_pair(seed, centre):
    rng = np.random.default_rng(seed)
    count = 30
    ra = (centre[0] + rng.normal(0, 4, count) / 3600 / max(np.cos(np.radians(centre[1])), 1e-4)) % 360
    dec = np.clip(centre[1] + rng.normal(0, 4, count) / 3600, -90, 90)
    within = rng.choice([np.nan, 0.0, 1.0, 2.0], count)
    copies = rng.integers(0, count, 8)  # several rows of one place
    ra[:8], dec[:8] = ra[copies], dec[copies]
    ra[rng.random(count) < 0.1] = np.nan
    limit = np.fmax.outer(np.nan_to_num(within), np.nan_to_num(within))
    with np.errstate(invalid="ignore"):
        apart = angle(ra, dec)
        if np.any(np.abs(apart - limit) < 1e-6 * (limit > 0)):
            return
        expected = connected(count, np.argwhere((apart <= limit) & (limit > 0)).tolist())
    assert connected(count, near_pairs(ra, dec, within).tolist()) == expected
    order = rng.permutation(count)
    again = connected(count, near_pairs(ra[order], dec[order], within[order]).tolist())
    assert sorted(sorted(order[group].tolist()) for group in map(np.array, again)) == sorted(expected)


def test_many_visits_of_one_place_make_few_pairs():
    count = 20_000
    pairs = near_pairs(np.full(count, 5.0), np.full(count, 5.0), np.full(count, 1.5))
    assert len(pairs) == count - 1
    assert len(connected(count, pairs.tolist())) == 1


def test_names_alone_join_nothing():
    assert near_pairs(np.zeros(5), np.zeros(5), np.full(5, np.nan)).shape == (0, 2)


def test_distances():
    ra, dec = np.array([359.9999, 0.0001, 180.0]), np.array([0.0, 0.0, np.nan])
    assert separation(ra, dec, np.array([0]), np.array([1]))[0] == pytest.approx(0.72)
    assert diameter(ra, dec) == pytest.approx(0.72)
    assert diameter(ra[2:], dec[2:]) == 0.0
