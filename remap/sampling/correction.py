"""The library made to look like the survey: observed over synthetic flux of the labelled stars, per pixel.

Line data of a library are wrong in ways that repeat from star to star: at a given pixel, all stars of one kind
deviate alike. `fit_correction` takes that from the labelled stars as a ratio that depends linearly on the labels;
what it leaves of each star (abundances, label errors, noise, continuum) serves as realistic noise, with its true
correlations from pixel to pixel, on the library's spectra.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remap.config import ConfigError
from remap.continuum.common import NormalizeFn
from remap.sampling.sources import (
    Library,
    Stars,
    cell_origin,
    draw_library,
    in_chunks,
    library_shares,
    locate,
)

CHUNK = 64  # spectra: one shape, however many stars there are, because the normaliser takes long to compile
MIN_DEPTH_FLUX = 0.05  # normalised flux below which a logarithm says more about the zero point than the star


class Correction(NamedTuple):
    """What `fit_correction` finds; both are natural logarithms of observed over synthetic normalised flux."""

    nodes: Float[np.ndarray, "nodes pixels"]  # to be added to the library's log flux
    residuals: Float[np.ndarray, "stars pixels"]  # what is left of each star used; 0 at invalid pixels


def fit_correction(
    library: Library,
    stars: Stars,
    normalize: NormalizeFn,
    *,
    spread: int,
    ridge: float,
    clip: float,
    chunk: int = CHUNK,
) -> Correction:
    """Ridge regression, per pixel, of log(observed / synthetic) on the labels of the stars.

    Nodes beyond the 2nd and 98th percentile of the stars' labels get the correction of that limit: nothing is
    known out there, and a straight line would grow without bound.

    Args:
      library: one with cells to interpolate in.
      stars: the labelled stars, before normalisation. Those without all labels or outside the library's cells
        are left out.
      normalize: the continuum normaliser, for both.
      spread: index of the line spread of the library that the stars have.
      ridge: penalty on the slopes per standard deviation of a label, in units of one star's weight.
      clip: limit of the residuals' absolute value; beyond it are cosmic rays and emission.
      chunk: spectra that are normalised at a time.

    Raises:
      ValueError: the library has no cells, or fewer usable stars than twice the coefficients per pixel.
    """
    if library.cells.shape[1] == 1:
        raise ConfigError("a correction of the library needs library.interpolate, found nodes without cells")
    cell, place = locate(library, np.asarray(stars.labels, float))
    use = np.flatnonzero(cell >= 0)
    needed = 2 * (1 + stars.labels.shape[1])
    if len(use) < needed:
        raise ConfigError(
            f"a correction of the library needs at least {needed} stars with all labels inside its grid, "
            f"found {len(use)} of {len(cell)}: set finetune.correction to 'none'"
        )
    ratio, good = _log_ratio(library, stars, normalize, spread, use, cell, place, chunk)
    labels = np.asarray(stars.labels, float)[use]
    mean, std = labels.mean(axis=0), np.maximum(labels.std(axis=0), 1e-12)
    x = _design(labels, mean, std)
    penalty = np.diag([1e-6] + [ridge] * labels.shape[1])  # the tiny one: a pixel that is valid in no star
    normal = np.einsum("sp,si,sj->pij", good.astype(float), x, x) + penalty
    coefficients = np.linalg.solve(normal, np.einsum("sp,si->pi", ratio, x)[..., None])[..., 0]
    low, high = np.percentile(labels, [2, 98], axis=0)
    nodes = _design(np.clip(np.asarray(library.labels, float), low, high), mean, std)
    residuals = np.where(good, ratio - x @ coefficients.T, 0.0)
    return Correction(
        (nodes @ coefficients.T).astype(np.float32), np.clip(residuals, -clip, clip).astype(np.float32)
    )


def fit_corrections(
    library: Library,
    stars: Stars,
    normalize: NormalizeFn,
    *,
    spread: int,
    ridge: float,
    clip: float,
    chunk: int = CHUNK,
) -> Correction:
    """`fit_correction` of each of the libraries that are mixed, since each is wrong in its own way.

    Args:
      library, stars, normalize, spread, ridge, clip, chunk: as there.

    Returns:
      The corrections of all nodes; the residuals that each library leaves, one after the other.

    Raises:
      ValueError: as there, for any of the libraries.
    """
    how = {"spread": spread, "ridge": ridge, "clip": clip, "chunk": chunk}
    if library.origin is None:
        return fit_correction(library, stars, normalize, **how)
    origin, cells = np.asarray(library.origin), np.asarray(library.cells)
    nodes, residuals = np.zeros(np.shape(library.log_flux)[1:], np.float32), []
    for k in range(len(library_shares(library))):
        mine = origin == k
        one = library._replace(cells=cells[cell_origin(library) == k], chance=None, origin=None)
        found = fit_correction(one, stars, normalize, **how)
        nodes[mine] = found.nodes[mine]
        residuals.append(found.residuals)
    return Correction(nodes, np.concatenate(residuals))


def _log_ratio(
    library: Library,
    stars: Stars,
    normalize: NormalizeFn,
    spread: int,
    use: np.ndarray,
    cell: np.ndarray,
    place: np.ndarray,
    chunk: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log(observed / synthetic) of the stars `use`, 0 where it is not known, and where it is known."""

    def run(rows: tuple) -> tuple[Array, Array]:
        return _ratios(device, *rows, normalize=normalize, spread=spread)

    device = jax.tree.map(jnp.asarray, library)
    rows = stars.flux[use], stars.valid[use], cell[use], place[use]
    ratio, good = in_chunks(run, tuple(map(np.asarray, rows)), chunk)
    return np.asarray(ratio, float), np.asarray(good)


@functools.partial(jax.jit, static_argnames=("normalize", "spread"))
def _ratios(
    library: Library,
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    cell: Int[Array, " stars"],
    place: Float[Array, "stars labels"],
    *,
    normalize: NormalizeFn,
    spread: int,
) -> tuple[Float[Array, "stars pixels"], Bool[Array, "stars pixels"]]:
    drawn = draw_library(library, jnp.full(cell.shape, spread), cell, place)
    observed, synthetic = normalize(flux, valid), normalize(drawn.flux, drawn.valid)
    good = valid & drawn.valid & (observed > MIN_DEPTH_FLUX) & (synthetic > MIN_DEPTH_FLUX)
    return jnp.where(good, jnp.log(jnp.where(good, observed / synthetic, 1.0)), 0.0), good


def _design(labels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """[S, 1 + L]: a constant and the standardised labels."""
    return np.concatenate([np.ones((len(labels), 1)), (labels - mean) / std], axis=1)


def apply_correction(library: Library, correction: Correction) -> Library:
    """The library with corrected nodes; interpolation between them interpolates the correction."""
    return library._replace(log_flux=library.log_flux + correction.nodes[None])


def add_residuals(
    key: Array,
    draw: Stars,
    residuals: Float[Array, "residuals pixels"],
    *,
    low: float,
    high: float,
    count: int | Int[Array, ""] | None = None,
) -> Stars:
    """Each spectrum with the residuals of a random star, times a random factor between `low` and `high`.

    At 1 and the labels of that star the spectrum is the star's own, so that nothing but its labels tells an
    observed star of one kind from library spectra of another.

    Args:
      low, high: limits of the factor.
      count: only the first so many residuals are used; may be traced. None = all.
    """
    star_key, factor_key = jax.random.split(key)
    spectra = draw.flux.shape[0]
    star = jax.random.randint(star_key, (spectra,), 0, residuals.shape[0] if count is None else count)
    factor = jax.random.uniform(factor_key, (spectra, 1), minval=low, maxval=high)
    return draw._replace(flux=draw.flux * jnp.exp(factor * residuals[star]))
