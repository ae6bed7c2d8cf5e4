"""Grid search over the autoencoder's width, L1 weight and rate, by cross-validation on library cells.

Every combination trains on all folds of the cells but one, for a few epochs, and is judged by the mean squared error
of the fold left out. A finished run is one line of `search/results.jsonl`, so that an interrupted search goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from astropy.table import Table
from jaxtyping import Array, Float, Int

from remap.autoencoder.inputs import draw_pool
from remap.autoencoder.members import Route, fit_settings, open_route, stage_meta
from remap.autoencoder.network import Autoencoder, AutoencoderLoss, Pixels, autoencoder_loss
from remap.autoencoder.sources import cell_chance, read_source
from remap.autoencoder.train import fit_autoencoder
from remap.config import ConfigError, record
from remap.store import checkpoint
from remap.store.atomic import check_writable, read_json, write_files, write_json
from remap.store.inputs import keep_inputs
from remap.store.records import open_records, read_records
from remap.store.tables import ecsv_writer
from remap.train.keys import root_key
from remap.train.loop import DivergedError, Run

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """The grid and how it is judged (config section `search`).

    Attributes:
      widths, l1, rates: of the grid: width, L1 weight and peak rate of an autoencoder.
      folds: of the library's cells.
      epochs: the length of every training.
      best: how many of the first combinations are shown.
    """

    widths: tuple[int, ...] = (1024, 1280, 1536, 1792, 2048)
    l1: tuple[float, ...] = (8e-8, 9e-8, 1e-7, 1.1e-7, 1.2e-7)
    rates: tuple[float, ...] = (1e-4,)
    folds: int = 4
    epochs: int = 15
    best: int = 5


def combinations(grid: GridSettings) -> list[dict[str, Any]]:
    """All widths × L1 weights × rates."""
    return [
        {"width": int(w), "l1": float(a), "rate": float(r)}
        for w, a, r in itertools.product(grid.widths, grid.l1, grid.rates)
    ]


def search(config: ml_collections.ConfigDict, workdir: str | Path) -> Table:
    """Runs what is left of the grid; writes search/results.jsonl and search/summary.ecsv.

    Returns:
      One row per combination, the best first: width, l1, rate, parameters' own mean squared error (mean over the
      folds, scaled flux) and its standard deviation over them.

    Raises:
      ValueError: the folder holds a search with other settings (both values of each difference are named).
    """
    grid = record(GridSettings, config.search, "search")
    route = open_route(config, Path(workdir))
    folder = route.workdir / "search"
    check_writable(folder / "summary.ecsv")
    free = ("widths", "l1", "rates", "best")  # may grow without making what is done worthless
    meta = stage_meta(config, route.preprocessing, "search", ("search",))
    meta["config"]["search"] = {k: v for k, v in meta["config"]["search"].items() if k not in free}
    known = folder / "settings.json"
    if known.exists():
        checkpoint.check_equal(
            read_json(known, "delete the folder to search again"),
            checkpoint.plain(meta),
            f"{folder}: searched with other settings",
        )
    else:
        write_json(known, meta)
    keep_inputs(folder, route.workdir, route.files(survey=False))
    results = folder / "results.jsonl"
    done = {_name(r): r["error"] for r in read_records(results)}
    runs = [c | {"fold": k} for c in combinations(grid) for k in range(grid.folds)]
    todo = [r for r in runs if _name(r) not in done]
    logger.info("search: %d runs, %d of them done already", len(runs), len(runs) - len(todo))
    if todo:
        folds = _pools(route, grid.folds)
    open_records(results, step=0).close()  # without the half of a line that a kill may have left
    for run in todo:
        try:
            done[_name(run)] = _one(route, grid.epochs, folder / _name(run), folds, meta, run)
        except DivergedError as error:  # a finding about this setting, with which the others go on
            logger.warning("search: %s", error)
            done[_name(run)] = np.inf
        with results.open("a") as file:
            file.write(json.dumps(run | {"step": 0, "error": done[_name(run)]}) + "\n")
        shutil.rmtree(folder / _name(run))  # its checkpoints are large, and it is in the record now
    rows = []
    for c in combinations(grid):
        errors = [done[_name(c | {"fold": k})] for k in range(grid.folds)]
        rows.append(c | {"error": float(np.mean(errors)), "scatter": float(np.std(errors, ddof=1))})
    table = Table(sorted(rows, key=lambda row: row["error"]))
    write_files({folder / "summary.ecsv": ecsv_writer(table)})
    return table


def _name(run: dict[str, Any]) -> str:
    return f"width{run['width']}_l1{run['l1']:g}_rate{run['rate']:g}_fold{run['fold']}"


def _pools(route: Route, count: int) -> list[Pixels]:
    """Library spectra of the cells of each of so many folds, equally many."""
    settings = route.autoencoder
    source = read_source(route)
    if not 2 <= count <= len(source.cells):
        raise ConfigError(f"search.folds: expected 2 to {len(source.cells)} (library cells), found {count}")
    fold: Int[np.ndarray, " cells"] = np.arange(len(source.cells)) % count  # the cells are shuffled
    return [
        draw_pool(
            root_key(route.seed, "search", "fold", k),
            source.libraries,
            source.cells[fold == k],
            jax.tree.map(lambda a, k=k: a[fold == k], source.ranges),
            count=max(1, settings.examples // count),
            chunk=settings.chunk,
            window=source.window,
            noise=settings.noise,
            chance=cell_chance(source.libraries[0], source.cells[fold == k]),
        ).pixels
        for k in range(count)
    ]


def _one(
    route: Route,
    epochs: int,
    folder: Path,
    folds: list[Pixels],
    meta: dict[str, Any],
    run: dict[str, Any],
) -> float:
    """Mean squared error on a fold of an autoencoder that was trained on the others."""
    train = jax.tree.map(lambda *a: jnp.concatenate(a), *(p for k, p in enumerate(folds) if k != run["fold"]))
    held = folds[run["fold"]]
    settings = route.autoencoder
    length = Run(
        dataclasses.replace(
            fit_settings(settings, run["rate"], settings.rate_fall), cycles=1, epochs_per_cycle=epochs
        ),
        max(1, len(train.flux) // settings.batch_size),
        root_key(route.seed, "search", "training", run["fold"]),
        folder,
        meta | run,
        _name(run),
    )
    params = fit_autoencoder(settings, train, held, length, width=run["width"], l1=run["l1"])
    model = settings.model(run["width"], held.flux.shape[1])
    return float(_reconstruction(model, params, held, settings.loss(0.0)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _reconstruction(
    model: Autoencoder, params: Any, held: Pixels, settings: AutoencoderLoss
) -> Float[Array, ""]:
    return autoencoder_loss(model, params, held, settings).reconstruction
