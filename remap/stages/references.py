"""The stage `references`: what predictions are compared with, neighbours and all (`remap.predict.references`).

It stands after `finetune`; the calibration neither needs nor changes it. References are all stars that a fold trains
or validates on, and random spectra of the libraries at the middle line spread, without noise. The tolerance and the
threshold of the flag FAR are learned on the same stars, each of which is judged without itself.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table

from remap.config import ConfigError, Section, record
from remap.predict.arms import ArmInputs
from remap.predict.familiar import FarSettings, Sheets, learn
from remap.predict.loading import load
from remap.predict.neighbors import unit_mean
from remap.predict.predictor import Predictor
from remap.predict.references import ReferenceSet, ReferenceSettings, bridged, save_references
from remap.preprocess.grid import usable
from remap.sampling.mixture import further_libraries, library_weights
from remap.sampling.sources import Library, Stars, cell_origin, draw_cells, draw_library
from remap.store.atomic import check_writable
from remap.store.stars import read_split, readable_stars, split_settings
from remap.store.workdir import check_prepared, load_library, load_survey
from remap.train.keys import root_key

logger = logging.getLogger(__name__)

CHUNK = 1024  # library spectra that are drawn at a time


def references(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Makes `references/` of a working folder in which the fine-tuning has run.

    Returns:
      One row per pool of references that a spectrum may be explained by: its name, how many references it has, what
      ln χ² is usual, the threshold of the score, the share of normal stars beyond it and how many were judged.

    Raises:
      FileNotFoundError: the fine-tuning has not been run.
      ConfigError: settings that cannot be, or a config that is not that of the folder's data.
    """
    workdir = Path(workdir)
    settings, far = reference_settings(config), far_settings(config)
    check_writable(workdir / "references" / "references.npz")
    check_prepared(config, workdir)
    predictor = load(workdir, folds=list(config.split.run), calibrated=False, expert=False, references=False)
    chosen, ids, star_labels = _stars(config, workdir, predictor)
    draws = _Draws(config, workdir, predictor, settings.library)
    members, flux, valid, seen = {}, [], [], {}
    kept = min(settings.spectra, settings.library)
    for arm in predictor.networks:
        survey, snr = load_survey(workdir, arm)
        parts = [_look(predictor, arm, ArmInputs(survey.flux[chosen], survey.valid[chosen], snr[chosen]))]
        parts += [_look(predictor, arm, inputs) for inputs in draws.spectra(arm)]
        members[arm] = np.concatenate([part.embedding for part in parts], axis=2)
        seen[arm] = np.concatenate([part.used for part in parts])
        flux.append(np.concatenate([part.flux for part in parts])[: len(ids) + kept])
        valid.append(np.concatenate([part.valid for part in parts])[: len(ids) + kept])
    sheets = Sheets(np.concatenate(flux, axis=1), np.concatenate(valid, axis=1))
    # As they are kept on disk, so that what is learned is what will be compared with.
    sheets = sheets._replace(flux=sheets.flux.astype(np.float16))
    label_names = predictor.labels
    found = ReferenceSet(
        names=np.array([*ids, *draws.names]),
        labels=np.concatenate([star_labels, draws.labels]).astype(np.float32),
        label_names=label_names,
        star_ids=np.array([*ids, *[""] * settings.library]),
        embedding={arm: unit_mean(value) for arm, value in members.items()},
        seen=seen,
        sheets=sheets,
        familiar=None,
        count=settings.neighbors,
    )
    stars = Sheets(sheets.flux[: len(ids)].astype(np.float32), sheets.valid[: len(ids)])
    sizes = [len(predictor.preprocessing.wave(arm)) for arm in predictor.networks]
    own = found.groups(ids)
    pools = {"stars": np.arange(len(ids)), "library": np.arange(len(ids), len(ids) + kept)}
    familiar = learn(stars, sheets, pools, far, sizes, (own[0], own[1][: len(sheets.flux)]))
    save_references(
        workdir,
        dataclasses.replace(found, familiar=familiar),
        members,
        predictor.networks,
        predictor.preprocessing,
    )
    logger.info("references: %d stars, %d library spectra", len(ids), settings.library)
    if familiar is None:
        if far.use:
            logger.warning(
                "references: %d labelled stars, and pools of %s: too few to learn from: the flag FAR is never set",
                len(ids),
                {name: len(rows) for name, rows in pools.items()},
            )
        return Table(names=COLUMNS, dtype=("U16", int, float, float, float, int))
    if familiar.rate > far.rate:
        logger.warning(
            "references: %d stars cannot tell a share of %g: the flag FAR may be set for %.2g of normal stars",
            familiar.stars,
            far.rate,
            familiar.rate,
        )
    rows: list[dict[str, Any]] = [
        {
            "pool": pool.name,
            "references": len(pool.rows),
            "usual": pool.usual,
            "threshold": familiar.threshold,
            "rate": familiar.rate,
            "stars": familiar.stars,
        }
        for pool in familiar.pools
    ]
    return Table(rows=rows)


COLUMNS = ("pool", "references", "usual", "threshold", "rate", "stars")


def reference_settings(config: Section) -> ReferenceSettings:
    """The settings of the references, from a whole config."""
    return record(ReferenceSettings, config.get("references", {}), "references")


def far_settings(config: Section) -> FarSettings:
    """The settings of the flag FAR, from a whole config."""
    section = dict(config.get("far", {}))
    if "use" in section:
        section["use"] = tuple(section["use"])
    return record(FarSettings, section, "far")


class _Looked(NamedTuple):
    embedding: np.ndarray  # float32[M, L, S, F]
    flux: np.ndarray  # float32[S, N]
    valid: np.ndarray  # bool[S, N]
    used: np.ndarray  # bool[S]


def _look(predictor: Predictor, arm: str, inputs: ArmInputs) -> _Looked:
    used = usable(inputs.flux, inputs.valid, min_coverage=predictor.config["predict"]["min_coverage"])
    normal = predictor.normalize_arm(arm, inputs).flux
    embedding = predictor.member_embeddings(arm, normal, inputs.valid)
    valid = inputs.valid & used[:, None]
    return _Looked(embedding, bridged(normal, inputs.valid), valid, used)


def _stars(
    config: ml_collections.ConfigDict, workdir: Path, predictor: Predictor
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Rows of the survey that are references, their stars' identifiers, and labels float[S, L]."""
    stars = readable_stars(workdir)
    how, arms = split_settings(config), tuple(predictor.networks)
    mine = np.zeros(len(stars), bool)
    for fold in config.split.run:
        mine |= np.isin(read_split(workdir, stars, how, arms, fold), ("train", "val"))
    if not mine.any():
        raise ConfigError(f"{workdir}: expected stars that a fold trains on, found none")
    chosen = np.flatnonzero(mine)
    labels = np.stack([np.asarray(stars[name], float)[chosen] for name in predictor.labels], axis=1)
    return chosen, [str(stars["star_id"][i]) for i in chosen], labels


class _Draws:
    """Random spectra of the libraries, the same in all arms."""

    def __init__(
        self, config: ml_collections.ConfigDict, workdir: Path, predictor: Predictor, count: int
    ) -> None:
        self.weights = library_weights(config)
        self.interpolate = bool(config.library.interpolate)
        self.workdir, self.preprocessing, self.count = workdir, predictor.preprocessing, count
        first = self._library(next(iter(predictor.networks)))
        cell_key, place_key = jax.random.split(root_key(config.seed, "references"))
        chance = np.ones(len(first.cells)) if first.chance is None else np.asarray(first.chance)
        self.cell = np.asarray(draw_cells(cell_key, jnp.asarray(chance, jnp.float32), count))
        self.place = np.asarray(jax.random.uniform(place_key, (count, first.labels.shape[1])))
        names = ["library", *further_libraries(config)]
        origin = cell_origin(first)[self.cell]
        self.names = [f"{names[k]}:{i}" for i, k in enumerate(origin)]
        # One pixel is enough for the labels.
        small = first._replace(log_flux=first.log_flux[:, :, :1], valid=first.valid[:1])
        labels = [np.zeros((0, len(predictor.labels))), *(part.labels for part in self._drawn(small))]
        self.labels = np.concatenate(labels)

    def _library(self, arm: str) -> Library:
        found = load_library(
            self.workdir, self.preprocessing, arm, interpolate=self.interpolate, weights=self.weights
        )
        middle = sorted(range(found.log_flux.shape[0]), key=self._spread)[found.log_flux.shape[0] // 2]
        return found._replace(log_flux=found.log_flux[middle : middle + 1])

    def _spread(self, index: int) -> float:
        return float(self.preprocessing.spreads[1][index])

    def _drawn(self, library: Library) -> Iterator[Stars]:
        device = jax.tree.map(jnp.asarray, library)
        for start in range(0, self.count, CHUNK):
            index = np.minimum(np.arange(start, start + CHUNK), self.count - 1)
            spread = jnp.zeros(CHUNK, jnp.int32)
            drawn = _draw(device, spread, jnp.asarray(self.cell[index]), jnp.asarray(self.place[index]))
            rows = min(CHUNK, self.count - start)
            yield Stars(*(np.asarray(part)[:rows] for part in drawn))

    def spectra(self, arm: str) -> Iterator[ArmInputs]:
        """Of an arm, as inputs, some at a time."""
        for part in self._drawn(self._library(arm)):
            yield ArmInputs(part.flux, part.valid, np.full(len(part.flux), np.nan))


_draw = jax.jit(draw_library)
