"""What the autoencoder route draws from: the library within its limits, and the survey's spectra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Float

from remap.autoencoder.inputs import (
    Pool,
    Ranges,
    Window,
    draw_pool,
    limit_cells,
    load_libraries,
    load_surveys,
    make_window,
    survey_blocks,
    survey_pixels,
)
from remap.autoencoder.members import Member, Route, encode, make_route
from remap.autoencoder.network import Pixels
from remap.config import ConfigError
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import usable
from remap.sampling.folds import split_stars
from remap.sampling.sources import Library, Stars, cell_origin, split_cells, with_cells
from remap.store.stars import readable_stars
from remap.train.keys import root_key


class Sky(NamedTuple):
    """The survey's spectra, in the order of `stars.readable_stars`; they stay in their files until asked for."""

    window: Window  # what makes pixels of them
    surveys: tuple[Stars, ...]  # of the arms, S rows each
    chunk: int  # spectra that are normalised at a time
    usable: np.ndarray  # bool[S], every arm is covered well enough
    held: np.ndarray  # bool[S], kept aside from the fine-tuning, by star
    coverage: np.ndarray  # float[A, S], valid fraction of each arm
    snr: np.ndarray  # float[A, S]

    def pixels(self, rows: np.ndarray) -> Pixels:
        """Spectra int[R] of the survey as the autoencoders take them, all at once."""
        return survey_pixels(self.window, self.surveys, rows, chunk=self.chunk)

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Pixels]]:
        """The same, some rows at a time (`inputs.survey_blocks`): what is made of blocks is cut to their rows."""
        return survey_blocks(self.window, self.surveys, rows, chunk=self.chunk)


def encode_stars(
    members: Sequence[Sequence[Member]], sky: Sky, rows: np.ndarray
) -> list[Float[np.ndarray, "autoencoders stars features"]]:
    """Latent features of spectra int[R] of the survey by several sets of autoencoders; see `members.encode`."""
    found: list[list[np.ndarray]] = [[] for _ in members]
    for some, pixels in sky.blocks(rows):
        for parts, own in zip(found, members, strict=True):
            parts.append(encode(list(own), pixels.flux, chunk=sky.chunk)[:, : len(some)])
    return [np.concatenate(parts, axis=1) for parts in found]


def open_sky(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> Sky:
    """As `read_sky`, of a working folder that is not open yet."""
    return read_sky(make_route(config, workdir, preprocessing))


def read_sky(route: Route) -> Sky:
    """The survey of a working folder. Its labels are not looked at.

    Raises:
      ValueError: no spectrum covers every arm, or the split leaves none to train on.
    """
    stars = readable_stars(route.workdir)
    surveys, snr = load_surveys(route.workdir, route.preprocessing)
    good = np.all([usable(s.flux, s.valid, min_coverage=route.min_coverage) for s in surveys], axis=0)
    ids = np.asarray(stars["star_id"])
    split = split_stars(
        ids, folds=2, fold=-1, validation=route.kept_aside, seed=route.seed
    )  # fold -1: no test stars
    held = split == "val"
    if not (good & ~held).any():
        raise ConfigError(
            f"adapt: expected survey spectra to train on, found {np.count_nonzero(good)} of {len(good)} that "
            f"cover every arm, all kept aside"
        )
    coverage = np.stack([s.valid.mean(axis=1) for s in surveys])
    return Sky(open_window(route), surveys, route.autoencoder.chunk, good, held, coverage, snr)


class Source(NamedTuple):
    """The library of a working folder, ready to be drawn from."""

    window: Window
    libraries: tuple[Library, ...]  # of the arms
    cells: np.ndarray  # int[K], those within the limits that are trained on
    ranges: Ranges  # of those
    held_cells: np.ndarray  # int[H], those kept aside
    held_ranges: Ranges


def open_window(route: Route) -> Window:
    """How the pixels of all arms are scaled."""
    return make_window(
        route.preprocessing, low=route.autoencoder.scale_low, high=route.autoencoder.scale_high
    )


def open_source(config: ml_collections.ConfigDict, workdir: Path, preprocessing: Preprocessing) -> Source:
    """As `read_source`, of a working folder that is not open yet."""
    return read_source(make_route(config, workdir, preprocessing))


def read_source(route: Route) -> Source:
    """The library with the cells that training may draw from, and those kept aside for validation."""
    settings = route.autoencoder
    libraries = load_libraries(
        route.workdir, route.preprocessing, interpolate=route.interpolate, weights=route.weights
    )
    cells, ranges = limit_cells(libraries[0], settings.limits, [b.name for b in route.preprocessing.labels])
    order = np.asarray(jax.random.permutation(root_key(route.seed, "autoencoder", "split"), len(cells)))
    origin = cell_origin(libraries[0])[cells]
    if len(np.unique(origin)) < len(route.weights):
        raise ConfigError(
            f"autoencoder.limits {dict(settings.limits)} leave no cell of one of the libraries {list(route.weights)}"
        )
    aside, trained = split_cells(origin, order, settings.validation)
    held = len(aside)
    if not 0 < held < len(cells):
        raise ConfigError(
            f"autoencoder.validation {settings.validation} of {len(cells)} library cells: expected at least one "
            f"kept aside and one to train on, found {held} kept aside"
        )
    return Source(
        open_window(route),
        libraries,
        cells[trained],
        Ranges(*(r[trained] for r in ranges)),
        cells[aside],
        Ranges(*(r[aside] for r in ranges)),
    )


def cell_chance(library: Library, cells: np.ndarray) -> np.ndarray | None:
    """float32[K]: chance of a draw to come from each of K cells of the library; None = all alike."""
    return with_cells(library, np.asarray(library.cells)[cells]).chance


def training_pool(route: Route, source: Source) -> Pool:
    """The library spectra that autoencoders and regressors are trained on."""
    return _pool(route, source, "pool", source.cells, source.ranges, count=route.autoencoder.examples)


def held_pool(route: Route, source: Source) -> Pool:
    """Library spectra of cells that no network has seen."""
    cells = source.held_cells, source.held_ranges
    return _pool(route, source, "held", *cells, count=route.autoencoder.validation_size)


def _pool(route: Route, source: Source, what: str, cells: np.ndarray, ranges: Ranges, *, count: int) -> Pool:
    return draw_pool(
        root_key(route.seed, "autoencoder", what),
        source.libraries,
        cells,
        ranges,
        count=count,
        chunk=route.autoencoder.chunk,
        window=source.window,
        noise=route.autoencoder.noise,
        chance=cell_chance(source.libraries[0], cells),
    )
