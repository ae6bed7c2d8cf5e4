"""The autoencoder's input: the normalised pixels of all arms side by side, scaled to 0..1.

Library spectra are drawn at places in the library's cells, survey spectra are taken as they are; both pass
through the same normaliser and the same scaling.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap.autoencoder.network import Pixels
from remap.config import ConfigError, Section
from remap.continuum.common import NormalizeFn
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import add_noise
from remap.sampling.sources import Library, Stars, draw_cells, draw_library, stream_indices
from remap.store.workdir import load_library, load_survey


@dataclasses.dataclass(frozen=True)
class Window:
    """What turns the spectra of all arms into one vector.

    Attributes:
      normalizers: of each arm, in their order.
      low, high: normalised flux that becomes 0 and 1; what lies beyond is cut. The output is a sigmoid, which
        reaches neither end, so the continuum (1) should keep clear of `high`.
    """

    normalizers: tuple[NormalizeFn, ...]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < 1 < self.high:
            raise ConfigError(
                f"autoencoder: expected scale_low < 1 < scale_high, found {self.low} and {self.high}"
            )

    def normalize(
        self, fluxes: Sequence[Float[Array, "stars _"]], valids: Sequence[Bool[Array, "stars _"]]
    ) -> list[Float[Array, "stars _"]]:
        """Each arm divided by its continuum."""
        return [n(f, v) for n, f, v in zip(self.normalizers, fluxes, valids, strict=True)]

    def join(
        self, parts: Sequence[Float[Array, "stars _"]], valids: Sequence[Bool[Array, "stars _"]]
    ) -> tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"]]:
        """Normalised arms side by side, scaled; invalid pixels get the continuum's value."""
        flux, valid = jnp.concatenate(list(parts), axis=1), jnp.concatenate(list(valids), axis=1)
        valid = valid & jnp.isfinite(flux)
        scaled = (jnp.where(valid, flux, 1.0) - self.low) / (self.high - self.low)
        return jnp.clip(scaled, 0.0, 1.0), valid


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is done to library spectra (config section `autoencoder`).

    Attributes:
      low, high: limits of σ, uniform, as a fraction of the flux; the noise comes before the normalisation.
      denoise: True takes the spectrum without its noise, divided by the continuum of the one with it, as the
        target; False the noisy one (published).
    """

    low: float = 0.0
    high: float = 0.0
    denoise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(
                f"autoencoder: expected 0 <= noise_low <= noise_high, found {self.low}, {self.high}"
            )


class Ranges(NamedTuple):
    """Where in each cell of a library spectra are drawn, in units of the cell; 0 to 1 is all of it."""

    low: Float[Array, "cells labels"]
    high: Float[Array, "cells labels"]


def make_window(preprocessing: Preprocessing, *, low: float, high: float) -> Window:
    """The window of all arms of a preprocessing."""
    return Window(tuple(preprocessing.normalizer(arm) for arm in preprocessing.arms), low, high)


def load_libraries(
    workdir: Path,
    preprocessing: Preprocessing,
    *,
    interpolate: bool,
    weights: Mapping[str, float] | None = None,
) -> tuple[Library, ...]:
    """The preprocessed library (or several as one, see `load_library`) in every arm; they share nodes and cells."""
    return tuple(
        load_library(workdir, preprocessing, arm, interpolate=interpolate, weights=weights)
        for arm in preprocessing.arms
    )


def load_surveys(workdir: Path, preprocessing: Preprocessing) -> tuple[tuple[Stars, ...], np.ndarray]:
    """The preprocessed survey in every arm, mapped (`load_survey`), and its signal-to-noise float[A, S]."""
    parts = [load_survey(workdir, arm) for arm in preprocessing.arms]
    return tuple(s for s, _ in parts), np.stack([snr for _, snr in parts])


def limit_cells(library: Library, limits: Section, names: Sequence[str]) -> tuple[np.ndarray, Ranges]:
    """The cells, and the part of each, that lie within limits of labels.

    Args:
      limits: label -> (low, high), in its unit; labels without limits are free.
      names: of the library's labels, in order.

    Returns:
      int[K], indices into `library.cells` of the cells that are inside at least in part, and the part of
      each. Cells of one corner are in or out.

    Raises:
      ValueError: a limit of an unknown label, or limits that leave no cell.
    """
    unknown = sorted(set(limits) - set(names))
    if unknown:
        raise ConfigError(f"autoencoder.limits names {unknown}; the labels are {tuple(names)}")
    nodes = np.asarray(library.labels, float)
    cells = np.asarray(library.cells)
    low, high = nodes[cells[:, 0]], nodes[cells[:, -1]]
    bound = np.array([limits.get(name, (-np.inf, np.inf)) for name in names]).T
    from_, to = np.maximum(low, bound[0][None]), np.minimum(high, bound[1][None])
    # A cell that only touches a limit would give spectra of one value of that label.
    keep = np.all((to > from_) | ((high == low) & (to == from_)), axis=1)
    if not keep.any():
        raise ConfigError(f"autoencoder.limits {dict(limits)} leave none of {len(cells)} library cells")
    width = np.where(high > low, high - low, 1.0)[keep]
    ranges = Ranges(*(((x[keep] - low[keep]) / width).astype(np.float32) for x in (from_, to)))
    return np.flatnonzero(keep), ranges


def draw_pixels(
    key: Array,
    libraries: tuple[Library, ...],
    cells: Int[Array, " batch"],
    places: Float[Array, "batch labels"],
    *,
    window: Window,
    noise: Noise,
) -> tuple[Pixels, Float[Array, "batch labels"]]:
    """Noisy library spectra at given places, as the network takes them, with their labels.

    Args:
      key: of line spreads and noise.
      libraries: of the arms; a spectrum has one line spread and one level of noise in all of them.
      cells, places: as for `sources.draw_library`.
    """
    batch = cells.shape[0]
    spread_key, sigma_key, noise_key = jax.random.split(key, 3)
    spreads = jax.random.randint(spread_key, (batch,), 0, libraries[0].log_flux.shape[0])
    sigma = jax.random.uniform(sigma_key, (batch,), minval=noise.low, maxval=noise.high)
    draws = [draw_library(library, spreads, cells, places) for library in libraries]
    noisy = [
        add_noise(jax.random.split(jax.random.fold_in(noise_key, i), batch), draw.flux, sigma)
        for i, draw in enumerate(draws)
    ]
    valids = [draw.valid for draw in draws]
    normalised = window.normalize(noisy, valids)
    flux, valid = window.join(normalised, valids)
    if not noise.denoise:
        return Pixels(flux, flux, valid), draws[0].labels
    # The continuum is that of the noisy spectrum, so that input and target differ by the noise alone.
    clean = [n * d.flux / f for n, d, f in zip(normalised, draws, noisy, strict=True)]
    target, finite = window.join(clean, valids)
    return Pixels(flux, target, valid & finite), draws[0].labels


class Pool(NamedTuple):
    """A fixed set of library spectra, normalised once, that training draws its batches from."""

    pixels: Pixels
    labels: Float[Array, "stars labels"]


def draw_pool(
    key: Array,
    libraries: tuple[Library, ...],
    cells: Int[np.ndarray, " cells"],
    ranges: Ranges,
    *,
    count: int,
    chunk: int,
    window: Window,
    noise: Noise,
    chance: Float[np.ndarray, " cells"] | None = None,
) -> Pool:
    """`count` spectra at random places of the given cells, every cell as often as any other.

    Args:
      cells: indices into the libraries' cells; `ranges` has a row for each.
      chance: of each of the cells, where they are not all alike.
      chunk: spectra at a time.
    """
    order_key, place_key, draw_key = jax.random.split(key, 3)
    if chance is None:
        which = np.asarray(stream_indices(order_key, jnp.asarray(0, jnp.int32), len(cells), count))
    else:
        which = np.asarray(draw_cells(order_key, jnp.asarray(chance), count))
    low, high = (np.asarray(r)[which] for r in ranges)
    places = low + (high - low) * np.asarray(jax.random.uniform(place_key, low.shape))
    return pool_at(
        draw_key, libraries, np.asarray(cells)[which], places, chunk=chunk, window=window, noise=noise
    )


def pool_at(
    key: Array,
    libraries: tuple[Library, ...],
    cells: Int[np.ndarray, " stars"],
    places: Float[np.ndarray, "stars labels"],
    *,
    chunk: int,
    window: Window,
    noise: Noise,
) -> Pool:
    """Spectra at the given places, `chunk` at a time and all in one shape, so that one program serves."""
    libraries = jax.tree.map(jnp.asarray, libraries)
    parts = []
    for i in range(0, len(cells), chunk):
        index = np.minimum(np.arange(i, i + chunk), len(cells) - 1)
        part = _draw_chunk(
            jax.random.fold_in(key, i),
            libraries,
            jnp.asarray(cells[index]),
            jnp.asarray(places[index]),
            window=window,
            noise=noise,
        )
        parts.append(jax.tree.map(np.asarray, part))
    whole = jax.tree.map(lambda *x: np.concatenate(x)[: len(cells)], *parts)
    return jax.tree.map(jnp.asarray, whole)


@functools.partial(jax.jit, static_argnames=("window", "noise"))
def _draw_chunk(
    key: Array,
    libraries: tuple[Library, ...],
    cells: Int[Array, " batch"],
    places: Float[Array, "batch labels"],
    *,
    window: Window,
    noise: Noise,
) -> Pool:
    """Compiled once for all pools of one window, noise and chunk: the normalisers are slow to compile."""
    return Pool(*draw_pixels(key, libraries, cells, places, window=window, noise=noise))


def take(pixels: Pixels, index: Int[Array, " batch"]) -> Pixels:
    """The given spectra."""
    return jax.tree.map(lambda a: a[index], pixels)


def survey_blocks(
    window: Window, surveys: Sequence[Stars], rows: Int[np.ndarray, " stars"], *, chunk: int
) -> Iterator[tuple[Int[np.ndarray, " some"], Pixels]]:
    """Observed spectra as the network takes them, `chunk` at a time; they are their own target.

    All blocks have one shape, so that one program serves, and only their rows are read from surveys that are mapped.

    Args:
      surveys: of the arms.
      rows: of the survey that are wanted, in any order.

    Yields:
      Some of the rows, and `chunk` spectra that begin with theirs; the rest repeats the last one.
    """
    for i in range(0, len(rows), chunk):
        some = rows[i : i + chunk]
        index = rows[np.minimum(np.arange(i, i + chunk), len(rows) - 1)]
        fluxes = [jnp.asarray(s.flux[index]) for s in surveys]
        valids = [jnp.asarray(s.valid[index]) for s in surveys]
        flux, valid = _pack(window, fluxes, valids)
        yield some, Pixels(flux, flux, valid)


def survey_pixels(
    window: Window, surveys: Sequence[Stars], rows: Int[np.ndarray, " stars"], *, chunk: int
) -> Pixels:
    """All of `survey_blocks` together, on the device."""
    width = sum(s.flux.shape[1] for s in surveys)
    flux, valid = np.zeros((len(rows), width), np.float32), np.zeros((len(rows), width), bool)
    at = 0
    for some, pixels in survey_blocks(window, surveys, rows, chunk=chunk):
        here = slice(at, at := at + len(some))
        flux[here], valid[here] = pixels.flux[: len(some)], pixels.valid[: len(some)]
    on_device = jnp.asarray(flux)
    return Pixels(on_device, on_device, jnp.asarray(valid))


@functools.partial(jax.jit, static_argnums=0)
def _pack(
    window: Window, fluxes: list[Float[Array, "stars _"]], valids: list[Bool[Array, "stars _"]]
) -> tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"]]:
    return window.join(window.normalize(fluxes, valids), valids)
