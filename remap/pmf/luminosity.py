"""Dwarfs and giants by Ciardi et al. (2011, AJ 141, 108): a line in Teff and log g, and the probability above it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from remap.pmf.distributions import checked

COOL, HOT = 4250.0, 6000.0  # K, beyond which the line is level
_START, _SLOPE = 5.2, 2.8e-4  # of the line between them


def dwarf_limit(teff: ArrayLike) -> np.ndarray:
    """Least log g of a dwarf [dex], float64[...] for Teff [K] of that shape.

    3.5 for Teff >= 6000 K, 4.0 for Teff <= 4250 K, and 5.2 - 2.8e-4 Teff between, which jumps a little at both ends.
    """
    teff = np.asarray(teff, np.float64)
    return np.select([teff >= HOT, teff <= COOL], [3.5, 4.0], _START - _SLOPE * teff)


def dwarf_giant(teff: ArrayLike, logg: ArrayLike) -> np.ndarray:
    """Luminosity class: "dwarf" at or above `dwarf_limit`; all others are giants (subgiants among them).

    Args:
      teff: float[S], K.
      logg: float[S], dex (cm/s²).

    Returns:
      str[S]: "dwarf" or "giant"; "" where a value is not finite.

    Examples:
      >>> dwarf_giant([5777, 4800], [4.44, 2.5]).tolist()
      ['dwarf', 'giant']
    """
    teff, logg = np.broadcast_arrays(np.asarray(teff, np.float64), np.asarray(logg, np.float64))
    known = np.isfinite(teff) & np.isfinite(logg)
    return np.select([~known, logg >= dwarf_limit(teff)], ["", "dwarf"], "giant")


def dwarf_probability(
    teff_pmf: ArrayLike, teff_edges: ArrayLike, logg_pmf: ArrayLike, logg_edges: ArrayLike
) -> np.ndarray:
    """Probability that a star is a dwarf, from the PMFs of its Teff and log g taken as independent.

    Exact for values that are uniform within a bin: along Teff the share of a bin of log g above the line is piecewise
    linear, so that its mean over a piece is its value in the middle. Networks give one PMF per label and none of
    both together: where errors of Teff and log g go together, a star near the line is more or less certain.

    Args:
      teff_pmf: float[S, K].
      teff_edges: float[K + 1], K, strictly increasing.
      logg_pmf: float[S, M].
      logg_edges: float[M + 1], dex (cm/s²), strictly increasing.

    Returns:
      float64[S], 0 to 1; NaN where either PMF is missing.

    Raises:
      ValueError: PMFs or edges that are none, or of different numbers of stars.

    Examples:
      >>> dwarf_probability([[1.0, 0.0]], [4000.0, 4250.0, 4500.0], [[0.5, 0.5]], [3.5, 4.5, 5.5]).tolist()
      [0.75]
    """
    teff_pmf, teff_edges = checked(teff_pmf, teff_edges)
    logg_pmf, logg_edges = checked(logg_pmf, logg_edges)
    if teff_pmf.ndim != 2 or logg_pmf.ndim != 2 or len(teff_pmf) != len(logg_pmf):
        raise ValueError(f"expected PMFs [S, K] and [S, M], found {teff_pmf.shape} and {logg_pmf.shape}")
    # Not a product of matrices, whose last bit depends on how many stars there are.
    teff_pmf = np.ascontiguousarray(teff_pmf)
    above = np.stack(
        [np.sum(teff_pmf * share, axis=1) for share in _shares(teff_edges, logg_edges).T], axis=1
    )
    found = np.sum(above * logg_pmf, axis=1)
    return np.clip(found, 0.0, 1.0)  # of rounding; NaN stays


def _shares(teff_edges: np.ndarray, logg_edges: np.ndarray) -> np.ndarray:
    """float64[K, M]: the part of every cell of Teff and log g that lies above the line."""
    crossings = (_START - logg_edges) / _SLOPE  # where the line meets an edge of log g
    ends = np.unique(np.concatenate([teff_edges, [COOL, HOT], crossings]))
    ends = ends[(ends >= teff_edges[0]) & (ends <= teff_edges[-1])]
    width, middle = np.diff(ends), (ends[:-1] + ends[1:]) / 2
    above = np.clip((logg_edges[1:] - dwarf_limit(middle)[:, None]) / np.diff(logg_edges), 0.0, 1.0)
    owner = np.searchsorted(teff_edges, middle) - 1
    out = np.zeros((teff_edges.size - 1, logg_edges.size - 1))
    np.add.at(out, owner, above * width[:, None])
    return out / np.diff(teff_edges)[:, None]
