"""Second stage of the autoencoder route: every autoencoder is fine-tuned on the survey's spectra, without labels.

The fine-tuned encoders bring the survey's spectra to the latent features that the regressors know (Mas-Buitrago et
al. 2024, A&A 687, A205).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from remap.autoencoder.inputs import Pool, Ranges, draw_pool, take
from remap.autoencoder.members import (
    ADAPT,
    Member,
    Route,
    encode,
    fit_settings,
    member_folder,
    open_route,
    read_members,
)
from remap.autoencoder.network import AdaptBatch, AdaptObjective, Pixels, adapt_rules
from remap.autoencoder.sources import Sky, Source, read_sky, read_source, training_pool
from remap.config import ConfigError, Section, record
from remap.network.discrepancy import AlignSettings, find_scale, squared_distances
from remap.sampling.batches import FixedSource, fixed_rows, source_tree
from remap.sampling.sources import in_chunks, locate_each, matched_chance
from remap.store import checkpoint
from remap.store.inputs import check_inputs, save_inputs
from remap.store.lock import hold
from remap.store.workdir import write_config
from remap.train.keys import root_key
from remap.train.loop import FitSettings, Run, fit
from remap.train.objectives import Task

logger = logging.getLogger(__name__)


def adapt(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Fine-tunes every autoencoder on the survey's spectra, without labels; `adapt.trains` says which part.

    With `adapt.align` the latent features of stars and of library spectra are pulled together, by the encoder that
    both go through from then on.
    """
    route = open_route(config, Path(workdir))
    settings = record(AdaptSettings, config.adapt, "adapt")
    if settings.alignment.kind != "none" and route.regressor.encoder != "adapted":
        raise ConfigError(
            "adapt.align pulls features of one encoder together: expected regressor.encoder 'adapted', "
            f"found {route.regressor.encoder!r}"
        )
    members = read_members(route, "library")
    todo = []
    for i, meta in enumerate(route.member_metas[ADAPT]):
        folder = member_folder(route.workdir, ADAPT, i)
        if checkpoint.is_finished(folder, meta):
            check_inputs(folder, route.workdir)
        else:
            todo.append((i, folder, meta))
    if todo:
        drawn = _spectra(route, settings, members)
    for i, folder, meta in todo:
        own = route.autoencoder.member(i)
        run = Run(
            fit_settings(settings, own["rate"] * settings.rate_factor, settings.rate_fall),
            max(1, round(drawn.source.stars.count / settings.observed)),
            root_key(route.seed, "adapt", "member", i),
            folder,
            meta,
            f"adapt {i}",
        )
        loss = route.autoencoder.loss(own["l1"])
        scale: Any = ()
        if drawn.matched is not None:
            flux = drawn.matched.flux[: settings.align_size]
            latent = encode([members[i]], flux, chunk=route.autoencoder.chunk)[0]
            scale = find_scale(latent, floor=settings.align_floor)
        objective = AdaptObjective(members[i].model, loss, settings.alignment)
        task = Task(objective, members[i].params, scale, drawn.source, drawn.validation)
        with hold(folder):
            save_inputs(folder, route.workdir, route.files(survey=True))
        params = fit(task, run.optimizer(adapt_rules(settings.trains)), run).params
        checkpoint.save_final(folder / "final", {"params": params}, meta | {"step": run.total})
    write_config(route.workdir, config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptSettings(FitSettings):
    """Of this stage (config section `adapt`); the rates are those of the members.

    Attributes:
      trains: the part that is trained (`network.adapt_rules`).
      rate_factor: on the rate of each member; `rate_fall`: last over first rate of a cycle.
      batch_size: spectra in a batch.
      rehearsal: fraction of every batch that is drawn from the library.
      validation: fraction of the stars kept aside.
      stars: spectra at most, drawn at random, and half as many kept aside.
      align: see `AlignSettings`.
      neighbours: library spectra that tell which cell a star is in.
      matched: library spectra drawn from the stars' cells.
      align_floor, align_size: of the features' units (`find_scale`), and the spectra that give them.
    """

    cycles: int = 1
    epochs_per_cycle: int = 60
    checkpoint_epochs: int = 60
    keep: int = 1
    trains: str = "decoder"
    rate_factor: float = 1.0
    rate_fall: float = 1.0
    batch_size: int = 128
    rehearsal: float = 0.0
    validation: float = 0.2
    stars: int = 20000
    align: Section = dataclasses.field(default_factory=dict)
    neighbours: int = 8
    matched: int = 8192
    align_floor: float = 1e-3
    align_size: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment.kind == "autoencoder":
            raise ConfigError(
                "adapt.align.kind 'autoencoder' is this route itself; expected 'none', 'mmd' or 'coral'"
            )
        if self.stars < 1:
            raise ConfigError(f"adapt.stars: expected at least 1, found {self.stars}")
        if self.observed < 1:
            raise ConfigError(
                f"adapt.rehearsal {self.rehearsal} leaves no room for stars in a batch of {self.batch_size}"
            )
        adapt_rules(self.trains)  # its errors at the door

    @property
    def alignment(self) -> AlignSettings:
        """How latent features are aligned."""
        return record(AlignSettings, self.align, "adapt.align")

    @property
    def replayed(self) -> int:
        """Library spectra in a batch."""
        return round(self.rehearsal * self.batch_size)

    @property
    def observed(self) -> int:
        """Stars in a batch."""
        return self.batch_size - self.replayed


@source_tree
class AdaptSource:
    """Batches of the stage; None for parts that are not asked for.

    Attributes:
      stars: of the survey.
      library: rehearsed.
      matched: whose features those of the stars are compared with.
    """

    stars: FixedSource
    library: FixedSource | None
    matched: FixedSource | None

    def draw(self, key: Array, step: Array) -> AdaptBatch:
        """The batch of a step."""
        parts = zip(jax.random.split(key, 3), (self.stars, self.library, self.matched), strict=True)
        return AdaptBatch(*(None if part is None else part.draw(k, step) for k, part in parts))


class _Drawn(NamedTuple):
    source: AdaptSource
    matched: Pixels | None
    validation: AdaptBatch | None


def _spectra(route: Route, settings: AdaptSettings, members: list[Member]) -> _Drawn:
    """What all members are fine-tuned on."""
    sky = read_sky(route)
    stars, aside = (sky.pixels(rows) for rows in chosen_rows(sky, settings.stars, seed=route.seed))
    align = settings.alignment
    library = matched = None
    if settings.replayed or align.kind != "none":
        source = read_source(route)
        pool = training_pool(route, source)
        library = fixed_rows(pool.pixels, settings.replayed) if settings.replayed else None
        if align.kind != "none":
            found = _matched_pool(route, settings, source, members, pool, stars) if align.match else pool
            matched = found.pixels
    logger.info("adapt: %d spectra to train on, %d kept aside", len(stars.flux), len(aside.flux))
    observed = settings.observed
    return _Drawn(
        AdaptSource(
            fixed_rows(stars, observed), library, None if matched is None else fixed_rows(matched, observed)
        ),
        matched,
        _validation(aside, matched),
    )


def chosen_rows(sky: Sky, most: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the survey that are trained on, `most` at most, and half as many kept aside: all, or some at random.

    Args:
      seed: of the config.
    """

    def some(rows: np.ndarray, count: int, part: str) -> np.ndarray:
        if len(rows) <= count:
            return rows
        key = root_key(seed, "adapt", "stars", part)
        return np.sort(rows[np.asarray(jax.random.permutation(key, len(rows)))[:count]])

    trained, aside = (np.flatnonzero(sky.usable & (sky.held == held)) for held in (False, True))
    return some(trained, most, "trained"), some(aside, most // 2, "aside")


def _validation(aside: Pixels, matched: Pixels | None) -> AdaptBatch | None:
    """Stars kept aside, with as many library spectra to compare them with."""
    count = len(aside.flux)
    if not count:
        return None
    if matched is None:
        return AdaptBatch(aside, None, None)
    return AdaptBatch(aside, None, take(matched, jnp.arange(count) % len(matched.flux)))


def _matched_pool(
    route: Route, settings: AdaptSettings, source: Source, members: list[Member], pool: Pool, stars: Pixels
) -> Pool:
    """Library spectra from the cells of the stars, as far as the nearest library spectra can tell.

    A star's labels are the mean of those of the `adapt.neighbours` library spectra whose latent features, before the
    fine-tuning and of all autoencoders together, are the nearest.
    """
    if source.libraries[0].cells.shape[1] == 1:
        raise ConfigError("adapt.align.match needs library.interpolate, found nodes without cells")
    chunk = route.autoencoder.chunk
    drawn, observed = (
        np.concatenate(list(encode(members, x, chunk=chunk)), axis=1) for x in (pool.pixels.flux, stars.flux)
    )
    std = np.where(drawn.std(axis=0) > 0, drawn.std(axis=0), 1.0)
    # Features that hardly change lie far from zero in this unit: their squares would leave no digit of the distances.
    drawn, observed = ((x - drawn.mean(axis=0)) / std for x in (drawn, observed))
    near = functools.partial(_nearest, library=jnp.asarray(drawn), count=settings.neighbours)
    nearest = in_chunks(near, observed, chunk)
    labels = np.asarray(pool.labels)[np.asarray(nearest)].mean(axis=1)
    library = source.libraries[0]
    place = {c: k for k, c in enumerate(source.cells.tolist())}
    cell = np.vectorize(lambda c: place.get(c, -1), otypes=[int])(locate_each(library, labels.astype(float)))
    rows = cell[cell >= 0]
    if not len(rows):
        raise ConfigError(f"adapt.align.match: none of {len(labels)} stars seems to lie inside the library")
    logger.info("adapt: library spectra from %d cells for %d stars", len(rows), len(labels))
    return draw_pool(
        root_key(route.seed, "adapt", "matched"),
        source.libraries,
        source.cells[rows],
        Ranges(*(r[rows] for r in source.ranges)),
        count=settings.matched,
        chunk=chunk,
        window=source.window,
        noise=route.autoencoder.noise,
        chance=None if library.chance is None else matched_chance(library, cell),
    )


@functools.partial(jax.jit, static_argnames="count")
def _nearest(
    stars: Float[Array, "stars features"], *, library: Float[Array, "spectra features"], count: int
) -> Int[Array, "stars count"]:
    """The library spectra that are nearest to each star."""
    return jax.lax.top_k(-squared_distances(stars, library), count)[1]
