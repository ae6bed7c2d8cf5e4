"""What a library gets wrong or leaves out, drawn afresh for every spectrum: line strengths, [α/Fe].

Line data differ from library to library by more than the noise of any survey, and no two agree about which lines are
too strong. A network that has seen each library spectrum under many sets of line strengths rests on what is common to
them. `fit_line_errors` finds from two libraries how far apart they are, at which pixels together and for which stars;
`perturb_lines` draws from that. `scale_depths` needs one library alone: all lines of a stretch of the spectrum are
deeper or shallower. `enhance_alpha` gives spectra of a scaled solar library another [α/Fe]; the response of the
spectrum to it comes from `remap.synth.alpha`.

All belong to the star, not to the instrument: they act on the library's flux before anything of `augment.vary`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from remap.config import ConfigError
from remap.continuum.common import NormalizeFn
from remap.sampling.sources import Library, Stars, draw_library, in_chunks, locate

CHUNK = 64  # spectra that are normalised at a time
LOWEST = 0.05  # normalised flux below which a logarithm says more about the zero point than about a line
LIMIT = (
    0.5  # largest difference of log flux that counts: beyond it one of the libraries has no such line at all
)
RIDGE = 5.0  # on the slopes of the logarithm of a variance, in nodes
KNOTS = 8  # of the random factor on the depths, over an arm
WIDEST = 6.0  # pixels: σ of the correlation of single lines, at most


class LineErrors(NamedTuple):
    """How two libraries differ, as distributions of ln flux; labels enter standardised and clipped to where both are.

    The common part is Σ_k z_k σ_k v_k, with z standard normal and ln σ_k² linear in the labels.
    """

    basis: Float[Array | np.ndarray, "components pixels"]  # v_k, of unit length
    slopes: Float[Array | np.ndarray, "components terms"]  # of ln σ_k², a constant and one per label
    single: Float[Array | np.ndarray, " pixels"]  # rms over the nodes, over the scale of each node
    scale: Float[Array | np.ndarray, " terms"]  # the same slopes of the ln of that scale squared
    kernel: Float[Array | np.ndarray, " taps"]  # of the correlation between neighbours; its squares sum to 1
    middle: Float[Array | np.ndarray, " labels"]
    spread: Float[Array | np.ndarray, " labels"]
    low: Float[Array | np.ndarray, " labels"]
    high: Float[Array | np.ndarray, " labels"]


class AlphaResponse(NamedTuple):
    """d ln flux / d [α/Fe], per dex, at the points of a regular grid in Teff, log g and [Fe/H]."""

    teff: Float[Array | np.ndarray, " teffs"]  # K, increasing
    logg: Float[Array | np.ndarray, " loggs"]
    feh: Float[Array | np.ndarray, " fehs"]
    columns: Int[Array | np.ndarray, " three"]  # where the three stand among the labels
    response: Float[Array | np.ndarray, "points pixels"]  # [Fe/H] varies fastest


class Nuisances(NamedTuple):
    """What `augment.library_draw` needs for the fields of its settings that are on; None = off."""

    lines: LineErrors | None = None
    alpha: AlphaResponse | None = None


def fit_line_errors(
    library: Library, normalize: NormalizeFn, *, components: int, chunk: int = CHUNK
) -> LineErrors:
    """How the libraries that are mixed in one differ, at the nodes of each that lie in cells of a later one.

    Both are normalised first, since a difference of continua is none of lines. Differences have no sign: the truth
    may lie on either side, so that a systematic difference is a component like others.

    Args:
      library: of two libraries or more (`mixture.mix`). Cells of one node match nodes with the same labels.
      components: how many principal components are kept.
      chunk: spectra that are normalised at a time.

    Raises:
      ConfigError: one library alone, or fewer common nodes than twice the components.
    """
    difference, labels = library_differences(library, normalize, chunk=chunk)
    if len(difference) < 2 * components:
        raise ConfigError(
            f"augment.lines: expected at least {2 * components} nodes with labels that two libraries have, for "
            f"{components} components, found {len(difference)}"
        )
    middle, spread = labels.mean(axis=0), np.maximum(labels.std(axis=0), 1e-6)
    x = np.concatenate([np.ones((len(labels), 1)), (labels - middle) / spread], axis=1)
    scale = _log_variance(x, np.mean(difference**2, axis=1))
    scaled = difference / np.exp(0.5 * x @ scale)[:, None]  # so that a few cool nodes are not all there is
    basis = np.linalg.svd(scaled, full_matrices=False)[2][:components]
    slopes = np.stack([_log_variance(x, (difference @ v) ** 2) for v in basis])
    parts = (basis, slopes, np.sqrt(np.mean(scaled**2, axis=0)), scale, _kernel(scaled))
    rest = (middle, spread, labels.min(axis=0), labels.max(axis=0))
    return LineErrors(*(np.asarray(a, np.float32) for a in (*parts, *rest)))


def library_differences(
    library: Library, normalize: NormalizeFn, *, chunk: int = CHUNK
) -> tuple[Float[np.ndarray, "nodes pixels"], Float[np.ndarray, "nodes labels"]]:
    """ln of the normalised flux of one library over that of another, and at which labels.

    At the middle line spread; 0 where it is not known. Arguments and errors are those of `fit_line_errors`.
    """
    if library.origin is None:
        raise ConfigError(
            "augment.lines: expected two libraries or more, whose differences are drawn from, found one; "
            "augment.depths does without"
        )
    origin, nodes = np.asarray(library.origin), np.asarray(library.labels, float)
    device = jax.tree.map(jnp.asarray, library)

    def run(rows: tuple) -> Array:
        return _difference(device, *rows, normalize=normalize)

    found, where = [], []
    last = int(origin.max())
    for first in range(last):
        for second in range(first + 1, last + 1):
            mine = np.flatnonzero(origin == first)
            with np.errstate(invalid="ignore", divide="ignore"):  # cells of one node have no extent
                cell, place = locate(library, nodes[mine], origin=second)
            use = np.flatnonzero(cell >= 0)
            if len(use):
                rows = (mine[use], cell[use], np.nan_to_num(place[use]))
                found.append(np.asarray(in_chunks(run, rows, chunk), float))
                where.append(nodes[mine[use]])
    if not found:
        raise ConfigError(
            "augment.lines: expected libraries that overlap in their labels, found none that do"
        )
    return np.concatenate(found), np.concatenate(where)


@functools.partial(jax.jit, static_argnames="normalize")
def _difference(
    library: Library,
    node: Int[Array, " spectra"],
    cell: Int[Array, " spectra"],
    place: Float[Array, "spectra labels"],
    *,
    normalize: NormalizeFn,
) -> Float[Array, "spectra pixels"]:
    spread = library.log_flux.shape[0] // 2
    other = draw_library(library, jnp.full(cell.shape, spread), cell, place)
    one = normalize(jnp.exp(library.log_flux[spread, node]), other.valid)
    two = normalize(other.flux, other.valid)
    good = other.valid & (one > LOWEST) & (two > LOWEST)
    return jnp.clip(jnp.where(good, jnp.log(jnp.where(good, one / two, 1.0)), 0.0), -LIMIT, LIMIT)


def _log_variance(x: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """float64[1 + L]: c for which the variance exp(x c) makes zero-mean values with these squares most likely.

    Fisher scoring of a Gamma regression with a logarithmic link, with a penalty on the slopes.
    """
    squares = np.maximum(squares, 1e-4 * squares.mean() + 1e-20)
    c = np.zeros(x.shape[1])
    c[0] = np.log(squares.mean())
    penalty = np.diag([0.0] + [RIDGE] * (x.shape[1] - 1))
    for _ in range(100):
        eta = x @ c
        pull = np.minimum(squares / np.exp(eta), 20.0) - 1.0  # a node far off may not throw the iteration
        step = np.linalg.solve(x.T @ x + penalty, x.T @ pull - penalty @ c)
        c = c + step
        if np.abs(step).max() < 1e-6:
            break
    return c


def _kernel(difference: np.ndarray) -> np.ndarray:
    """The Gaussian that gives white noise the differences' own correlation from pixel to pixel.

    Noise that a Gaussian of σ pixels has smoothed has the correlation exp(-1 / 4σ²) between neighbours.
    """
    left, right = difference[:, :-1], difference[:, 1:]
    next_to = np.sum(left * right) / max(0.5 * np.sum(left**2 + right**2), 1e-30)
    sigma = min(np.sqrt(-0.25 / np.log(np.clip(next_to, 1e-3, 0.999))), WIDEST)
    reach = max(int(np.ceil(3 * sigma)), 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return taps / np.sqrt(np.sum(taps**2))


def perturb_lines(key: Array, draw: Stars, errors: LineErrors, *, common: float, single: float) -> Stars:
    """Spectra whose lines are as much off as one library's are from another's.

    Args:
      draw: of a library, before normalisation; its labels are known.
      common: factor on the common part, lines that go together; 1 = as the two differ. Each of them may be as
        wrong as the other, which is a factor of 0.7.
      single: factor on a part that differs from line to line, in the same unit.
    """
    common_key, single_key = jax.random.split(key)
    stars, pixels = draw.flux.shape
    labels = jnp.clip(draw.labels, errors.low[None], errors.high[None])
    x = jnp.concatenate([jnp.ones((stars, 1)), (labels - errors.middle[None]) / errors.spread[None]], axis=1)

    def sigma(slopes: Array) -> Array:
        return jnp.exp(0.5 * _product(x, slopes.T))

    change = jnp.zeros_like(draw.flux)
    if common > 0:
        z = jax.random.normal(common_key, (stars, errors.basis.shape[0]))
        change = change + common * _product(z * sigma(errors.slopes), errors.basis)
    if single > 0:
        taps = errors.kernel.shape[0]
        noise = jax.random.normal(single_key, (stars, pixels + taps - 1))
        smooth = sum(
            errors.kernel[i] * jax.lax.slice_in_dim(noise, i, i + pixels, axis=1) for i in range(taps)
        )
        change = change + single * sigma(errors.scale[None]) * errors.single[None] * smooth
    return draw._replace(flux=draw.flux * jnp.exp(change))


def scale_depths(key: Array, draw: Stars, *, amplitude: float) -> Stars:
    """Spectra whose log flux is multiplied by 1 + a smooth random function of the wavelength.

    It is linear between `KNOTS` points evenly over the arm, at which it is normal with the standard deviation
    `amplitude`. What it does to the continuum is smooth, and the normaliser takes it away.
    """
    stars, pixels = draw.flux.shape
    place = jnp.linspace(0.0, KNOTS - 1, pixels)
    hats = _hats(place, KNOTS)
    factor = amplitude * _product(jax.random.normal(key, (stars, KNOTS)), hats.T)
    return draw._replace(flux=draw.flux * jnp.exp(factor * jnp.log(draw.flux)))


def enhance_alpha(
    key: Array, draw: Stars, response: AlphaResponse, *, low: float, high: float, scatter: float
) -> Stars:
    """Spectra with a random [α/Fe]; their labels, [Fe/H] among them, stay.

    Args:
      draw: of a library with [α/Fe] = 0, before normalisation.
      low, high: without `scatter` the limits of a uniform distribution, dex. With it the trend of the Galaxy: `low`
        at [Fe/H] >= 0, `high` at [Fe/H] <= -1, a straight line between them.
      scatter: standard deviation about that trend, dex.
    """
    labels = draw.labels[:, response.columns]
    if scatter > 0:
        trend = low + (high - low) * jnp.clip(-labels[:, 2], 0.0, 1.0)
        alpha = trend + scatter * jax.random.normal(key, trend.shape)
    else:
        alpha = jax.random.uniform(key, labels.shape[:1], minval=low, maxval=high)
    change = alpha[:, None] * alpha_change(response, labels)
    return draw._replace(flux=draw.flux * jnp.exp(change))


def alpha_change(
    response: AlphaResponse, labels: Float[Array, "stars three"]
) -> Float[Array, "stars pixels"]:
    """d ln flux / d [α/Fe] at given Teff, log g and [Fe/H]: linear between the points, constant beyond them."""
    weights = jnp.ones((labels.shape[0], 1))
    for i, axis in enumerate((response.teff, response.logg, response.feh)):
        count = axis.shape[0]
        place = jnp.interp(labels[:, i], axis, jnp.arange(count, dtype=labels.dtype))
        weights = (weights[:, :, None] * _hats(place, count)[:, None, :]).reshape(labels.shape[0], -1)
    return _product(weights, response.response)


def _hats(place: Float[Array, " points"], count: int) -> Float[Array, "points count"]:
    """Weights of linear interpolation between `count` values at 0, 1, 2, ..."""
    return jnp.maximum(1.0 - jnp.abs(place[:, None] - jnp.arange(count)[None, :]), 0.0)


def _product(
    left: Float[Array, "rows inner"], right: Float[Array, "inner columns"]
) -> Float[Array, "rows columns"]:
    """Matrix product in full float32, on accelerators too."""
    return jnp.matmul(left, right, precision="highest")
