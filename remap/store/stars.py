"""The table of the survey's spectra: which can be read, which are within limits, and on which side of a fold."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import Section
from remap.sampling.folds import split_stars
from remap.store.workdir import (
    read_stars,
)

# Status of a survey spectrum in `data/stars.ecsv`.
STATUS_OK, STATUS_UNLABELLED, STATUS_OUTSIDE, STATUS_UNREADABLE = "ok", "unlabelled", "outside", "unreadable"


def readable_stars(workdir: Path) -> Table:
    """The rows of `data/stars.ecsv` that have a spectrum, in the order of `workdir.load_survey`."""
    stars = read_stars(workdir)
    return stars[[s != STATUS_UNREADABLE for s in stars["status"]]]


def selected(stars: Table, config: ml_collections.ConfigDict) -> np.ndarray:
    """bool[S]: stars with labels inside the bins and inside `finetune.select`."""
    keep = np.array([s == STATUS_OK for s in stars["status"]])
    for name, (low, high) in config.finetune.select.items():
        value = np.asarray(stars[name], float)
        with np.errstate(invalid="ignore"):
            keep &= (value >= low) & (value <= high)
    return keep


def fold_split(stars: Table, config: ml_collections.ConfigDict, fold: int) -> np.ndarray:
    """str[S]: "train", "val", "test" for the selected stars, "other" for the rest."""
    chosen = selected(stars, config)
    if not chosen.any():
        raise ValueError(f"finetune.select {dict(config.finetune.select)} leaves none of {len(stars)} stars")
    out = np.full(len(stars), "other", dtype="<U5")
    out[chosen] = split_stars(
        np.asarray(stars["star_id"][chosen]),
        folds=config.split.folds,
        fold=fold,
        validation=config.split.validation,
        seed=config.seed,
    )
    return out


def in_group(stars: Table, limits: Section) -> np.ndarray:
    """bool[S]: stars whose known labels lie within the limits and inside the bins."""
    keep = np.array([s == STATUS_OK for s in stars["status"]])
    for label, (low, high) in limits.items():
        value = np.asarray(stars[label], float)
        with np.errstate(invalid="ignore"):
            keep &= (value >= low) & (value <= high)
    return keep
