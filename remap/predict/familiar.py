"""How well the references explain a spectrum: what the flag FAR is raised by.

A spectrum's k nearest references are mixed, with weights that are not negative and add up to 1, so that the mixture
fits best; what is left is compared with what is left of stars that are known to be normal. Its variance at a pixel is
that of noise, which is what scatters from pixel to pixel more than in the mixture, plus (floor² + (blanket · mean
depth)² + (depth · line's depth)²) times a factor of the pixel: a library's lines are wrong by a part of their depth,
and stars with few lines are known better than others. The reduced χ² is that of the fit.

References come in pools (labelled stars, the library), each with a tolerance and a usual ln χ² of its own, learned on
the labelled stars, each of which is judged without itself. A spectrum's score is that of the pool that explains it
best, so that giants need no labelled giants; the threshold is a quantile of the stars' own scores, with one of its
own for the tenth of the stars with the fewest lines, which hot and metal-poor stars are taken for. Neither labels nor
networks have a part in it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.optimize import nnls

from remap.config import ConfigError
from remap.predict.neighbors import nearest

POOLS = ("stars", "library")
STEPS = 60  # of the fit of the weights
ROUNDS = 3  # of tolerance and fit
BISECTIONS = 26  # float32 has 24 bits
NUMBERS = 1 << 23  # of candidates' pixels at a time
MAD = 1.4826  # standard deviations of a normal distribution per median absolute deviation
PIXEL = (0.5, 3.0)  # limits of a pixel's factor on the tolerance, a standard deviation
FLOOR = 1e-3  # of the tolerance, of the continuum
LEAST_CHI2 = 1e-6
FEW_LINES = 0.1  # share of the stars that have a threshold of their own
Values = TypeVar("Values", np.ndarray, jax.Array)
Groups = tuple[np.ndarray, np.ndarray]  # int[S], int[R], see `neighbors.nearest`


@dataclasses.dataclass(frozen=True, kw_only=True)
class FarSettings:
    """When a spectrum is called far from all references (config section `far`).

    Attributes:
      use: the pools that may explain it, of "stars" and "library"; () = the flag is never raised.
      rate: share of normal stars that are called far. Fewer labelled stars than 1 / rate cannot tell it: then it is
        one over their number and one.
      mixed: nearest references of a pool that are mixed.
      noise: standard deviation of the noise, of the continuum, beyond which none is allowed for.
      min_snr: signal-to-noise ratio per pixel, by the scatter of the spectrum itself, below which noise hides
        what a spectrum is, and it is called far.
      min_stars: labelled stars below which no threshold can be set.
    """

    use: tuple[str, ...] = POOLS
    rate: float = 0.01
    mixed: int = 16
    noise: float = 0.1
    min_snr: float = 5.0
    min_stars: int = 10

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.use) - set(POOLS)):
            raise ConfigError(f"far.use must name some of {POOLS}, found {unknown}")
        if not 0 < self.rate < 1:
            raise ConfigError(f"far.rate must be between 0 and 1, found {self.rate}")
        if self.mixed < 1 or self.min_stars < 2 or not self.noise > 0 or self.min_snr < 0:
            raise ConfigError(
                "far: expected mixed >= 1, min_stars >= 2, noise > 0 and min_snr >= 0, found "
                f"{self.mixed}, {self.min_stars}, {self.noise} and {self.min_snr}"
            )


class Sheets(NamedTuple):
    """Normalised spectra, all arms side by side, with no holes."""

    flux: np.ndarray  # float32[S, N], straight lines over invalid pixels
    valid: np.ndarray  # bool[S, N]


class Tolerance(NamedTuple):
    """By how much a mixture of a pool's references may miss a normal star, as a standard deviation."""

    floor: np.ndarray | np.float32  # of the continuum
    blanket: np.ndarray | np.float32  # per mean depth of the spectrum
    depth: np.ndarray | np.float32  # per depth of the pixel
    pixel: np.ndarray  # float32[N]


class Pool(NamedTuple):
    """Some of the references, with what is usual of stars that they explain."""

    name: str
    rows: np.ndarray  # int[R], which of the references
    tolerance: Tolerance
    usual: float  # mean of ln χ²
    spread: float  # its mean absolute deviation


class Fit(NamedTuple):
    """The best mixture of references for each of S spectra."""

    model: np.ndarray  # float32[S, N]
    chi2: np.ndarray  # float[S], reduced
    arms: np.ndarray  # float[A, S], the same of every arm alone, NaN where it is not used
    noise: np.ndarray  # float[S], standard deviation of the noise, of the continuum


class Judgement(NamedTuple):
    """What `Familiar.judge` says of S spectra."""

    score: np.ndarray  # float[S], above `threshold` = far; NaN = not known
    arms: np.ndarray  # float[A, S], reduced χ² of the pool that explains the spectrum best
    far: np.ndarray  # bool[S]


@dataclasses.dataclass(frozen=True)
class Familiar:
    """Scores and their threshold.

    Attributes:
      pools: those that explain spectra.
      threshold: of the score.
      rate: share of normal stars above it.
      stars: how many labelled stars it was learned from.
      settings: as it was learned with.
      sizes: pixels of the arms.
      few_lines: mean depth of the mixture at or below which a spectrum has few lines, 0 = none has,
      added: to the score of these, whose own threshold is lower by it.
    """

    pools: tuple[Pool, ...]
    threshold: float
    rate: float
    stars: int
    settings: FarSettings
    sizes: tuple[int, ...]
    few_lines: float = 0.0
    added: float = 0.0

    def judge(self, sheets: Sheets, references: Sheets, groups: Groups | None = None) -> Judgement:
        """How well the references explain spectra.

        Args:
          sheets: S spectra.
          references: those that the pools' rows point to.
          groups: which spectra and references are of one star, see `neighbors.nearest`.
        """
        known = sheets.valid.any(axis=1)
        score = np.full((len(self.pools), len(known)), np.nan)
        arms = np.full((len(self.pools), len(self.sizes), len(known)), np.nan)
        noise, lines = np.full(len(known), np.nan), np.full((len(self.pools), len(known)), np.nan)
        own = None if groups is None else (groups[0][known], groups[1])
        some = Sheets(sheets.flux[known], sheets.valid[known])
        for i, pool in enumerate(self.pools):
            found = explain_by(some, references, pool.rows, pool.tolerance, self.settings, self.sizes, own)
            score[i, known] = standard(found.chi2, pool)
            arms[i][:, known], noise[known] = found.arms, found.noise
            lines[i, known] = mean_depth(found.model)
        if not self.pools:
            nothing = np.full(len(known), np.nan)
            return Judgement(
                nothing, np.full((len(self.sizes), len(known)), np.nan), np.zeros(len(known), bool)
            )
        best = np.argmin(np.where(np.isfinite(score), score, np.inf), axis=0)
        one = np.arange(len(known))
        lowest = score[best, one] + np.where(lines[best, one] <= self.few_lines, self.added, 0.0)
        hidden = self.threshold + np.log(np.maximum(noise * self.settings.min_snr, LEAST_CHI2))
        lowest = np.where(np.isfinite(lowest), np.maximum(lowest, hidden), np.nan)
        with np.errstate(invalid="ignore"):
            return Judgement(lowest, arms[best, :, one].T, lowest > self.threshold)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, which `from_json` reads; arrays are `arrays`."""
        pools = [{"name": p.name, "usual": p.usual, "spread": p.spread} for p in self.pools]
        return {
            "pools": pools,
            "threshold": self.threshold,
            "rate": self.rate,
            "stars": self.stars,
            "settings": dataclasses.asdict(self.settings),
            "sizes": list(self.sizes),
            "few_lines": self.few_lines,
            "added": self.added,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the pools, by name."""
        out = {}
        for pool in self.pools:
            out[f"rows_{pool.name}"] = pool.rows
            tolerance = pool.tolerance._asdict().items()
            out |= {f"{part}_{pool.name}": np.asarray(value) for part, value in tolerance}
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Familiar:
        """What `to_json` and `arrays` gave."""
        pools = tuple(
            Pool(
                p["name"],
                arrays[f"rows_{p['name']}"],
                Tolerance(*(arrays[f"{part}_{p['name']}"] for part in Tolerance._fields)),
                float(p["usual"]),
                float(p["spread"]),
            )
            for p in value["pools"]
        )
        settings = FarSettings(**{**value["settings"], "use": tuple(value["settings"]["use"])})
        sizes = tuple(int(n) for n in value["sizes"])
        numbers = {name: float(value[name]) for name in ("threshold", "rate", "few_lines", "added")}
        return cls(pools=pools, stars=int(value["stars"]), settings=settings, sizes=sizes, **numbers)


def learn(
    stars: Sheets,
    references: Sheets,
    pools: Mapping[str, np.ndarray],
    settings: FarSettings,
    sizes: Sequence[int],
    groups: Groups,
) -> Familiar | None:
    """Tolerances, usual values and threshold from normal stars, each judged by the references of other stars.

    Args:
      stars: S spectra of stars that are known to be normal.
      references: all of them.
      pools: name -> int[R], the references of each pool.
      sizes: pixels of the arms.
      groups: which stars and references are one.

    Returns:
      None where there are too few stars.
    """
    sizes = tuple(sizes)
    known = stars.valid.any(axis=1)
    stars, groups = Sheets(stars.flux[known], stars.valid[known]), (groups[0][known], groups[1])
    if len(stars.flux) < settings.min_stars:
        return None
    found, scores, lines = [], [], []
    for name in settings.use:
        rows = np.asarray(pools.get(name, np.zeros(0)), np.int64)
        # With one reference left out there must be another.
        if len(rows) < 2:
            continue
        tolerance = first_tolerance(stars.flux.shape[1])
        for _ in range(ROUNDS):
            fit = explain_by(stars, references, rows, tolerance, settings, sizes, groups)
            tolerance = fit_tolerance(stars, fit.model, tolerance)
        fit = explain_by(stars, references, rows, tolerance, settings, sizes, groups)
        logs = np.log(np.maximum(fit.chi2, LEAST_CHI2))
        usual = float(np.mean(logs))
        pool = Pool(name, rows, tolerance, usual, max(float(np.mean(np.abs(logs - usual))), 0.05))
        found.append(pool)
        scores.append(standard(fit.chi2, pool))
        lines.append(mean_depth(fit.model))
    if not found:
        return None
    best = np.argmin(scores, axis=0)[None]
    score, depth = (np.take_along_axis(np.array(x), best, axis=0)[0] for x in (scores, lines))
    limits = two_limits(score, depth, settings.rate)
    return Familiar(tuple(found), stars=len(stars.flux), settings=settings, sizes=sizes, **limits)


def two_limits(score: np.ndarray, lines: np.ndarray, rate: float) -> dict[str, float]:
    """`threshold`, `rate`, `few_lines` and `added` of `Familiar`.

    Of the stars with the fewest lines none is above their own threshold, of the others so many that it is the share
    `rate` of all. Where their own would take more than half of it, there is one threshold.

    Args:
      score, lines: float[S], of normal stars.
    """
    few = int(FEW_LINES * len(score))
    if FEW_LINES / (few + 1) <= rate / 2:
        limit = float(np.sort(lines)[few - 1])
        mine = lines <= limit
        own, chance = upper_limit(score[mine], 0.0)
        share = float(mine.mean())
        if share * chance < rate and share <= 0.5:
            threshold, _ = upper_limit(score[~mine], (rate - share * chance) / (1 - share))
        else:  # many are equal
            threshold = own
        if own < threshold:
            return {"threshold": threshold, "rate": rate, "few_lines": limit, "added": threshold - own}
    threshold, rate = upper_limit(score, rate)
    return {"threshold": threshold, "rate": rate}


def mean_depth(model: np.ndarray) -> np.ndarray:
    """float[S]: how much the lines of spectra take away, of the continuum."""
    return np.abs(1.0 - model).mean(axis=1)


def standard(chi2: np.ndarray, pool: Pool) -> np.ndarray:
    """ln χ² over what is usual, in units of its spread."""
    return (np.log(np.maximum(chi2, LEAST_CHI2)) - pool.usual) / pool.spread


def upper_limit(scores: np.ndarray, rate: float) -> tuple[float, float]:
    """The value that a further score exceeds with a chance of `rate` at most, and that chance.

    Of n scores it is the ⌈(n + 1)(1 - rate)⌉-th (Vovk et al. 2005, conformal prediction); of too few the largest,
    and the chance is 1 / (n + 1).

    Examples:
      >>> import numpy as np
      >>> upper_limit(np.arange(1.0, 100.0), 0.1)
      (90.0, 0.1)
      >>> upper_limit(np.array([1.0, 3.0, 2.0]), 0.01)
      (3.0, 0.25)
    """
    ordered = np.sort(scores[np.isfinite(scores)])
    n = len(ordered)
    place = int(np.ceil((n + 1) * (1 - rate) - 1e-9))
    if place > n:
        return float(ordered[-1]), 1.0 / (n + 1)
    return float(ordered[place - 1]), rate


def first_tolerance(pixels: int) -> Tolerance:
    """What is tolerated before anything is learned."""
    return Tolerance(*(np.float32(v) for v in (0.005, 0.0, 0.05)), np.ones(pixels, np.float32))


def fit_tolerance(stars: Sheets, model: np.ndarray, before: Tolerance) -> Tolerance:
    """The tolerance by which mixtures miss stars: medians over bins of depth and of mean depth, then over the stars.

    The stars' own noise is taken for a part of it.
    """
    residual = np.where(stars.valid, stars.flux - model, np.nan)
    depth = 1.0 - model
    blanket = mean_depth(model)
    rows, targets = [], []
    limits = np.quantile(blanket, np.linspace(0, 1, 6))
    for low, high in itertools.pairwise(limits):
        mine = (blanket >= low) & (blanket <= high)
        own, left = depth[mine], residual[mine] / before.pixel
        inner = np.quantile(own, np.linspace(0, 1, 11))
        for a, b in itertools.pairwise(inner):
            some = (own >= a) & (own <= b) & np.isfinite(left)
            if np.count_nonzero(some) >= 50:
                rows.append([1.0, np.mean(blanket[mine] ** 2), np.mean(own[some] ** 2)])
                targets.append(max((MAD * np.median(np.abs(left[some]))) ** 2, FLOOR**2))
    if rows:
        # Relative errors: variances differ by orders of magnitude.
        design = np.array(rows) / np.array(targets)[:, None]
        squares = nnls(design, np.ones(len(targets)))[0]
    else:
        squares = np.array([before.floor**2, before.blanket**2, before.depth**2], float)
    floor, wide, deep = np.sqrt(np.maximum(squares, [FLOOR**2, 0.0, FLOOR**2]))
    found = Tolerance(np.float32(floor), np.float32(wide), np.float32(deep), before.pixel)
    scale = np.sqrt(variance(model, found))
    ratio = np.abs(residual) / scale
    seen = np.isfinite(ratio).any(axis=0)
    factor = np.ones(ratio.shape[1])
    factor[seen] = MAD * np.nanmedian(ratio[:, seen], axis=0)
    return found._replace(pixel=np.clip(before.pixel * factor, *PIXEL).astype(np.float32))


def explain_by(
    sheets: Sheets,
    references: Sheets,
    rows: np.ndarray,
    tolerance: Tolerance,
    settings: FarSettings,
    sizes: Sequence[int],
    groups: Groups | None = None,
) -> Fit:
    """The mixture of the references `rows` int[R] that fits each spectrum best.

    Spectra that lack an arm are explained in the others, by references that have these.
    """
    count, pixels = sheets.flux.shape
    sizes = tuple(sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    used = np.logical_or.reduceat(sheets.valid, starts, axis=1)
    has = np.logical_or.reduceat(references.valid[rows], starts, axis=1)
    model = np.zeros((count, pixels), np.float32)
    chi2, noise, arms = np.full(count, np.nan), np.full(count, np.nan), np.full((len(sizes), count), np.nan)
    pool = np.asarray(references.flux[rows], np.float32)
    for pattern in np.unique(used, axis=0):
        mine = np.flatnonzero((used == pattern).all(axis=1))
        if not pattern.any():
            continue
        scale = (np.repeat(pattern, sizes) / tolerance.pixel).astype(np.float32)
        own = None if groups is None else (groups[0][mine], groups[1][rows])
        near = nearest(
            (sheets.flux[mine] * scale)[None],
            [(pool * scale)[None]],
            settings.mixed,
            groups=own,
            usable=has[:, pattern].all(axis=1),
        ).index[0]
        chunk = 1 << max(0, int(np.log2(max(1, NUMBERS // (settings.mixed * pixels)))))
        # One shape for any number of spectra, because another one rounds otherwise: a CPU gains nothing by more.
        chunk = min(chunk, 16 if jax.default_backend() == "cpu" else 256)
        for i in range(0, len(mine), chunk):
            some = mine[i : i + chunk]
            padding = ((0, chunk - len(some)), (0, 0))
            index = np.pad(near[i : i + chunk], padding)
            parts = _mix(
                jnp.asarray(np.pad(sheets.flux[some], padding, constant_values=1.0)),
                jnp.asarray(np.pad(sheets.valid[some], padding)),
                jnp.asarray(pool[np.maximum(index, 0)]),
                jnp.asarray(index >= 0),
                jax.tree.map(jnp.asarray, tolerance),
                jnp.float32(settings.noise),
                sizes=sizes,
            )
            m, c, a, s = (np.asarray(p) for p in parts)
            model[some], chi2[some], noise[some] = m[: len(some)], c[: len(some)], s[: len(some)]
            arms[:, some] = a[:, : len(some)]
    chi2[noise < 0] = np.nan
    return Fit(model, chi2, arms, noise)


def variance(model: Values, tolerance: Tolerance) -> Values:
    """float[S, N]: by how much a normal star may differ from the mixture, squared; noise comes in addition."""
    depth = 1.0 - model
    blanket = abs(depth).mean(axis=1, keepdims=True)
    square = tolerance.floor**2 + (tolerance.blanket * blanket) ** 2 + (tolerance.depth * depth) ** 2
    return square * (tolerance.pixel**2)[None]


@functools.partial(jax.jit, static_argnames=("sizes",))
def _mix(
    flux: Float[Array, "stars pixels"],
    valid: Bool[Array, "stars pixels"],
    near: Float[Array, "stars mixed pixels"],
    there: Bool[Array, "stars mixed"],
    tolerance: Tolerance,
    most: Float[Array, ""],
    *,
    sizes: tuple[int, ...],
) -> tuple[Array, Array, Array, Array]:
    """`Fit` of spectra and their candidates, nearest first; noise -1 where there is no candidate."""
    own = _scatter(flux, valid, sizes)

    def noise(model: Array) -> Array:
        square = jnp.maximum(own**2 - _scatter(model, valid, sizes) ** 2, 0.0)
        return jnp.repeat(square, jnp.asarray(sizes), axis=1, total_repeat_length=flux.shape[1])

    model = near[:, 0]
    precise = jax.lax.Precision.HIGHEST
    for _ in range(2):
        weight = valid / (variance(model, tolerance) + jnp.minimum(noise(model), most**2))
        weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1e-30)
        # About the nearest one, whose share follows from the others': small numbers keep their digits.
        apart = near - near[:, :1]
        gram = jnp.einsum("skp,slp->skl", apart * weight[:, None], apart, precision=precise)
        pull = jnp.einsum("skp,sp->sk", apart, weight * (flux - near[:, 0]), precision=precise)
        share = _simplex_fit(gram, pull, there)
        model = near[:, 0] + jnp.einsum("sk,skp->sp", share, apart, precision=precise)
    square = noise(model)
    ratio = valid * (flux - model) ** 2 / (variance(model, tolerance) + jnp.minimum(square, most**2))
    edges = np.cumsum([0, *sizes])
    sums = jnp.stack([jnp.sum(ratio[:, a:b], axis=1) for a, b in itertools.pairwise(edges)])
    counts = jnp.stack([jnp.sum(valid[:, a:b], axis=1) for a, b in itertools.pairwise(edges)])
    arms = jnp.where(counts > 0, sums / jnp.maximum(counts, 1), jnp.nan)
    chi2 = jnp.sum(sums, axis=0) / jnp.maximum(jnp.sum(counts, axis=0), 1)
    level = jnp.sqrt(jnp.sum(valid * square, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1))
    return model, chi2, arms, jnp.where(there[:, 0], level, -1.0)


def _scatter(
    flux: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"], sizes: tuple[int, ...]
) -> Float[Array, "stars arms"]:
    """Standard deviation from pixel to pixel of every arm, from second differences (Stoehr et al. 2008, DER_SNR).

    0 for an arm without valid pixels.
    """
    edges, out = np.cumsum([0, *sizes]), []
    for a, b in itertools.pairwise(edges):
        x, v = flux[:, a:b], valid[:, a:b]
        second = jnp.abs(2.0 * x[:, 2:-2] - x[:, :-4] - x[:, 4:])
        out.append(MAD / np.sqrt(6.0) * _median(second, v[:, 2:-2] & v[:, :-4] & v[:, 4:]))
    return jnp.stack(out, axis=1)


def _median(
    values: Float[Array, "stars pixels"], valid: Bool[Array, "stars pixels"]
) -> Float[Array, " stars"]:
    """Median of the valid values, none below 0, by bisection: sorting takes ten times as long. 0 without any."""
    half = (jnp.sum(valid, axis=1) + 1) // 2
    values = jnp.where(valid, values, jnp.inf)
    high = jnp.max(jnp.where(valid, values, 0.0), axis=1)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = state
        middle = (low + high) / 2
        enough = jnp.sum(values <= middle[:, None], axis=1) >= half
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, BISECTIONS, step, (jnp.zeros_like(high), high))[1]


def _simplex_fit(
    gram: Float[Array, "stars mixed mixed"],
    pull: Float[Array, "stars mixed"],
    there: Bool[Array, "stars mixed"],
) -> Float[Array, "stars mixed"]:
    """Weights w >= 0 with sum 1 that minimise w'Gw - 2 w'b (Beck & Teboulle 2009, FISTA); 0 for what is not there."""
    size = jnp.sqrt(jnp.sum(gram**2, axis=(1, 2)))[:, None] + 1e-12
    start = there / jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1)

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        share, ahead, t = state
        slope = jnp.einsum("skl,sl->sk", gram, ahead, precision=jax.lax.Precision.HIGHEST) - pull
        new = _onto_simplex(jnp.where(there, ahead - slope / size, -jnp.inf))
        after = (1.0 + jnp.sqrt(1.0 + 4.0 * t**2)) / 2.0
        return new, new + (t - 1.0) / after * (new - share), after

    return jax.lax.fori_loop(0, STEPS, step, (start, start, jnp.float32(1.0)))[0]


def _onto_simplex(values: Float[Array, "stars mixed"]) -> Float[Array, "stars mixed"]:
    """The nearest weights that are not negative and add up to 1 (Duchi et al. 2008); entries of -inf become 0."""
    ordered = -jnp.sort(-values, axis=1)
    finite = jnp.where(jnp.isfinite(ordered), ordered, 0.0)
    sums = (jnp.cumsum(finite, axis=1) - 1.0) / jnp.arange(1, values.shape[1] + 1, dtype=values.dtype)[None]
    count = jnp.sum(jnp.isfinite(ordered) & (ordered > sums), axis=1, keepdims=True)
    limit = jnp.take_along_axis(sums, jnp.maximum(count - 1, 0), axis=1)
    return jnp.where(count > 0, jnp.maximum(values - limit, 0.0), 0.0)
