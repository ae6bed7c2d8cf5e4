"""The table of the survey's spectra: which can be read, which are within limits, and on which side of a fold."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from remap.config import ConfigError, Section, record
from remap.sampling.folds import split_stars
from remap.store.atomic import named, read_json, write_json
from remap.store.checkpoint import check_equal, has_state, plain
from remap.store.workdir import read_preprocessing, read_stars, stage_folder

# Status of a survey spectrum in `data/stars.ecsv`.
STATUS_OK, STATUS_UNLABELLED, STATUS_OUTSIDE, STATUS_UNREADABLE = "ok", "unlabelled", "outside", "unreadable"


def readable_stars(workdir: Path) -> Table:
    """The rows of `data/stars.ecsv` that have a spectrum, in the order of `workdir.load_survey`."""
    stars = read_stars(workdir)
    return stars[[s != STATUS_UNREADABLE for s in stars["status"]]]


def labelled(stars: Table, names: Sequence[str]) -> np.ndarray:
    """bool[S]: spectra of stars of which at least one of the labels is known."""
    return np.any([np.isfinite(np.asarray(stars[name], float)) for name in names], axis=0)


def labelled_rows(workdir: Path, stars: Table) -> np.ndarray:
    """int[R]: which of the rows of `readable_stars` are `labelled`, by the labels of the folder's networks."""
    return np.flatnonzero(labelled(stars, [b.name for b in read_preprocessing(workdir).labels]))


def within(stars: Table, limits: Section) -> np.ndarray:
    """bool[S]: stars with labels inside the bins, and those of `limits` (label -> low, high) within the limits.

    Both ends belong to the limits; a label that is not known lies within none.
    """
    keep = np.array([s == STATUS_OK for s in stars["status"]], bool)
    for label, (low, high) in limits.items():
        value = np.asarray(stars[label], float)
        with np.errstate(invalid="ignore"):
            keep &= (value >= low) & (value <= high)
    return keep


PARTS = ("train", "val", "test", "other")  # of a split; the last one has no part


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """What decides the splits into folds, besides the stars.

    Attributes:
      seed: of the config.
      folds, validation: how many folds, and the fraction of the other stars that validate (section `split`).
      select: limits of the labels of stars that have a part (`finetune.select`).
    """

    seed: int = 0
    folds: int = 5
    validation: float = 0.1
    select: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"logg": (3.5, 5.5)})

    def to_json(self, fold: int) -> dict[str, Any]:
        """What decides the split of one fold, by the names of the config's fields, as plain JSON values."""
        names = {"seed": self.seed, "fold": fold, "finetune.select": self.select}
        return plain(names | {"split.folds": self.folds, "split.validation": self.validation})


def split_settings(config: Section) -> SplitSettings:
    """The settings of the splits, from a whole config.

    Raises:
      ConfigError: a field that is missing.
    """
    own = {"seed": config["seed"], "select": dict(config["finetune"]["select"])}
    return record(SplitSettings, {**config["split"], **own}, "split", part=True)


def fold_split(stars: Table, settings: SplitSettings, fold: int) -> np.ndarray:
    """str[S]: "train", "val", "test" for the stars within `settings.select`, "other" for the rest.

    This is the split that a fine-tuning would use. The one that networks have been fine-tuned with is read by
    `read_split`.
    """
    chosen = within(stars, settings.select)
    if not chosen.any():
        raise ConfigError(f"finetune.select {dict(settings.select)} leaves none of {len(stars)} stars")
    out = np.full(len(stars), "other", dtype="<U5")
    out[chosen] = split_stars(
        np.asarray(stars["star_id"][chosen]),
        folds=settings.folds,
        fold=fold,
        validation=settings.validation,
        seed=settings.seed,
    )
    return out


def save_split(folder: Path, stars: Table, split: np.ndarray, settings: SplitSettings, fold: int) -> None:
    """Writes beside a network, before it is trained, who trains it: `folder`/split.json, whole or not at all.

    Args:
      folder: of the network of one arm and fold.
      stars: S rows of `readable_stars`.
      split: str[S], from `fold_split`.

    Raises:
      ConfigError: a training with another split has begun in `folder`; names what differs.
    """
    path = _split_path(folder)
    own = {"settings": settings.to_json(fold), **_identity(stars), "part": split.tolist()}
    own |= {"labels": _labels_hash(stars, split)}
    if path.exists():
        found = _read(path)
        if found == own:
            return
        if has_state(folder / "checkpoints"):
            check_equal(
                found["settings"],
                own["settings"],
                f"{folder}: this run was started with other settings of the split",
            )
            _check_stars(found, stars, path)
            _check_parts(found["part"], own["part"], f"{path}: the split that this run was started with")
            _check_labels(found, stars, path)
    write_json(path, own)


def read_split(
    workdir: Path, stars: Table, settings: SplitSettings, arms: Sequence[str], fold: int
) -> np.ndarray:
    """The split that the networks of a fold were fine-tuned with.

    For networks of before it was saved, it is made again from the settings, which must be known to be theirs.

    Args:
      stars: S rows of `readable_stars`.
      arms: whose networks are asked; they must agree.

    Returns:
      str[S]: "train", "val", "test", or "other" for stars that no fold trains or tests on.

    Raises:
      ConfigError: other settings than those of the networks, or arms with different splits.
      ValueError: the survey table is not that of the split.
    """
    first, expected = None, None
    for arm in arms:
        path, found = _split_path(stage_folder(workdir, "finetune", arm, fold)), None
        if path.exists():
            found = _read(path)
            check_equal(
                found["settings"],
                settings.to_json(fold),
                f"{path}: split with other settings than those of the config",
            )
            _check_stars(found, stars, path)
            split = np.array(found["part"], dtype="<U5")
        else:
            split = fold_split(stars, settings, fold)
        if expected is None:
            first, expected = path, split
        _check_parts(split, expected, f"{path}: the split of {first}")
        if found is not None:
            _check_labels(found, stars, path)
    return expected


def _read(path: Path) -> dict[str, Any]:
    cure = "bring it back from a copy, or fine-tune this fold again"
    found = read_json(path, cure)
    with named(path, cure):
        if missing := {"settings", "star_id", "file", "part"} - set(found):
            raise ValueError(f"expected a split, found none of {sorted(missing)}")
        if len(found["part"]) != len(found["star_id"]):
            raise ValueError(f"{len(found['part'])} parts of {len(found['star_id'])} spectra")
        if unknown := sorted({*map(str, found["part"])} - set(PARTS)):
            raise ValueError(f"expected parts among {PARTS}, found {unknown}")
    return found


def _split_path(folder: Path) -> Path:
    return folder / "split.json"


def _identity(stars: Table) -> dict[str, list[str]]:
    return {name: [str(value) for value in stars[name]] for name in ("star_id", "file")}


def _check_stars(found: Mapping[str, Any], stars: Table, path: Path) -> None:
    """Raises ValueError if a saved split is that of another survey table."""
    for name, own in _identity(stars).items():
        saved = found[name]
        if saved != own:
            where = next(
                (i for i, pair in enumerate(zip(own, saved, strict=False)) if len({*pair}) > 1), None
            )
            rows = (
                f"{len(own)} of them, found {len(saved)}"
                if where is None
                else f"{name} {own[where]!r} in row {where}, found {saved[where]!r}"
            )
            raise ConfigError(
                f"{path}: expected the stars of data/stars.ecsv, {rows}; the survey was prepared anew after the "
                "networks had been fine-tuned: fine-tune them again"
            )


def _labels_hash(stars: Table, split: Sequence[str] | np.ndarray) -> str:
    """SHA-256 of the labels, and their errors, of the stars that train or validate."""
    names = sorted(name for name in stars.colnames if stars[name].dtype.kind == "f")
    mine = np.isin(np.asarray(split), ("train", "val"))
    values = [np.ma.filled(np.ma.asarray(stars[name], float), np.nan)[mine].tolist() for name in names]
    return hashlib.sha256(repr([names, values]).encode()).hexdigest()


def _check_labels(found: Mapping[str, Any], stars: Table, path: Path) -> None:
    """Raises ConfigError if stars that a network was trained with have other labels; older splits are believed."""
    if found.get("labels") not in (None, _labels_hash(stars, found["part"])):
        raise ConfigError(
            f"{path}: stars that these networks were trained with have other labels, or errors of them, in "
            "data/stars.ecsv now: fine-tune again"
        )


def _check_parts(found: Sequence[str] | np.ndarray, expected: Sequence[str] | np.ndarray, where: str) -> None:
    """Raises ConfigError if stars are on different sides."""
    other = [(i, *pair) for i, pair in enumerate(zip(expected, found, strict=True)) if len({*pair}) > 1]
    if other:
        row, theirs, own = other[0]
        raise ConfigError(
            f"{where}: expected the same, found {len(other)} of {len(found)} spectra on another side "
            f"(row {row}: expected {str(theirs)!r}, found {str(own)!r})"
        )
