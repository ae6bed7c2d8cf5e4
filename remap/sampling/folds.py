"""Folds and splits by star: every spectrum of a star falls on the same side."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from remap.config import ConfigError


def assign_folds(star_ids: ArrayLike, folds: int, seed: int) -> np.ndarray:
    """int[S]: the fold of every spectrum; all spectra of a star share one fold.

    The folds depend on the set of star ids and the seed, not on the order of the spectra.
    """
    unique, inverse = np.unique(np.asarray(star_ids, dtype=str), return_inverse=True)
    if not 2 <= folds <= len(unique):
        raise ConfigError(f"expected between 2 and {len(unique)} folds (one star each), found {folds}")
    order = np.random.default_rng(seed).permutation(len(unique))
    fold = np.empty(len(unique), int)
    fold[order] = np.arange(len(unique)) % folds
    return fold[inverse]


def split_stars(star_ids: ArrayLike, *, folds: int, fold: int, validation: float, seed: int) -> np.ndarray:
    """str[S]: "train", "val" or "test" for every spectrum, by star.

    Args:
      folds, fold: stars of this fold are "test"; fold -1 makes no test stars.
      validation: fraction of the remaining stars that become "val".
      seed: of the folds and of the validation stars.
    """
    star_ids = np.asarray(star_ids, dtype=str)
    if not -1 <= fold < folds:
        raise ConfigError(f"split.fold must be -1 (none) or 0 to {folds - 1}, found {fold}")
    if not 0 <= validation < 1:
        raise ConfigError(f"split.validation must be in [0, 1), found {validation}")
    split = np.full(len(star_ids), "train", dtype="<U5")
    if fold >= 0:
        split[assign_folds(star_ids, folds, seed) == fold] = "test"
    rest = np.unique(star_ids[split == "train"])
    count = round(validation * len(rest))
    chosen = np.random.default_rng((seed, fold + 1)).permutation(rest)[:count]
    split[np.isin(star_ids, chosen) & (split == "train")] = "val"
    return split
