"""Who is one star by position: for spectra whose identifier is a position, or a number that changes between visits.

The fact `star_within` of a spectrum says so, and how far apart [arcsec] positions of one star may be; without it the
identifier is a name, and positions join nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.spatial import cKDTree

ARCSEC = np.pi / 180 / 3600  # rad


def near_pairs(ra: np.ndarray, dec: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Pairs of rows that are one star by position, as many as connect all that are.

    Two rows are, where at least one of them goes by its position, and they lie no farther apart than it allows (the
    larger of both). What is connected does not depend on the order of the rows.

    Args:
      ra, dec: float[S], degrees, NaN = not known.
      within: float[S], arcsec, the fact `star_within`; NaN (or 0) = the row has a name.

    Returns:
      int[P, 2].

    Examples:
      >>> import numpy as np
      >>> near_pairs(np.array([10.0, 10.0, 10.0002, 10.01]), np.zeros(4), np.array([1.5, 1.5, 1.5, 1.5])).tolist()
      [[0, 1], [0, 2]]
    """
    known = np.isfinite(ra) & np.isfinite(dec)
    by_place = np.flatnonzero(known & (within > 0))
    if not by_place.size:
        return np.zeros((0, 2), int)
    named = np.flatnonzero(known & ~(within > 0))
    _, first, place = np.unique(
        np.stack([ra[by_place], dec[by_place]], axis=1), axis=0, return_index=True, return_inverse=True
    )
    place = place.reshape(-1)
    head = by_place[first]  # a row for every place
    reach = np.zeros(first.size)
    np.maximum.at(reach, place, within[by_place])
    pairs = [np.stack([head[place], by_place], axis=1)]
    tree = cKDTree(_directions(ra[head], dec[head]))
    radius = 2 * np.sin(reach.max() * ARCSEC / 2) * (1 + 1e-6)  # the distances below decide
    found = tree.query_pairs(radius, output_type="ndarray").reshape(-1, 2)
    apart = separation(ra, dec, head[found[:, 0]], head[found[:, 1]])
    pairs.append(head[found[apart <= reach[found].max(axis=1)]])
    if named.size:
        lists = tree.query_ball_point(_directions(ra[named], dec[named]), radius)
        row = np.repeat(named, [len(one) for one in lists])
        at = np.array([i for one in lists for i in one], int)
        apart = separation(ra, dec, head[at], row)
        pairs.append(np.stack([head[at], row], axis=1)[apart <= reach[at]])
    out = np.sort(np.concatenate(pairs), axis=1)
    return out[out[:, 0] != out[:, 1]]


def connected(count: int, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Numbers below `count` in groups that pairs connect, each in order, in the order of their first.

    Examples:
      >>> connected(4, [(0, 2), (3, 2)])
      [[0, 2, 3], [1]]
    """
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for i in range(count):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def same_names(names: Iterable[str]) -> list[tuple[int, int]]:
    """Pairs of rows that connect those of one name; "" is none.

    Examples:
      >>> same_names(["a", "", "a", "", "a"])
      [(0, 2), (0, 4)]
    """
    first: dict[str, int] = {}
    return [(at, i) for i, name in enumerate(names) if name and (at := first.setdefault(name, i)) != i]


def separation(ra: np.ndarray, dec: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float[P], arcsec between rows i and j int[P] of positions in degrees; the same to the bit for j and i."""
    a, b, ra = np.radians(dec[i]), np.radians(dec[j]), np.radians(ra)
    half = np.sin((a - b) / 2) ** 2 + np.cos(a) * np.cos(b) * np.sin((ra[i] - ra[j]) / 2) ** 2
    return 2 * np.arcsin(np.sqrt(half)) / ARCSEC


def diameter(ra: np.ndarray, dec: np.ndarray) -> float:
    """arcsec: the largest distance between two of the positions [degrees] that are known; 0 without two of them."""
    known = np.isfinite(ra) & np.isfinite(dec)
    ra, dec = np.unique(np.stack([ra[known], dec[known]]), axis=1)
    rows = np.arange(ra.size)
    return max((float(separation(ra, dec, rows[i : i + 1], rows).max()) for i in rows), default=0.0)


def _directions(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """float[S, 3], unit vectors."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
