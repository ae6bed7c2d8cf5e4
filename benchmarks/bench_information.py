"""How much of the scatter between visits of one star is noise that no method could avoid?

    python -m benchmarks.bench_information --workdir=workdirs/fgk_r1800 --network=fgk_r1800

The Cramér-Rao bound of the labels for every visit of LAMOST's repeated stars: the derivatives of a library's
spectrum at the labels that the network gives, on the pixels and with the errors of the file, less whatever a
polynomial for the continuum of each arm, velocity, and line spread explain of them. An unbiased estimate from the
same pixels cannot scatter by less, if the library's lines are the star's. `--workdir` is a folder in which
`launch.preprocess` of the network's config has run, for its library; without `--network` its own networks are judged.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from astropy.table import Table
from jaxtyping import Float, Int
from scipy import linalg

from benchmarks.bench_surveys import LABELS, NETWORK, UNITS, visit_pairs
from launch import cli
from remap import io, surveys
from remap.predict.release import load
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import at_rest
from remap.sampling.sources import Library, draw_library, locate
from remap.spectra import Spectra, to_medium
from remap.store.workdir import load_library, read_preprocessing

DEGREE = flags.DEFINE_integer("degree", 4, "Of the polynomial in each arm.")
STEPS = {"teff": 50.0, "logg": 0.1, "feh": 0.05}  # of the differences that stand for derivatives
LIGHT = 299_792.458  # km/s
ENOUGH = 50  # good pixels of an arm


def main() -> None:
    workdir, root = Path(cli.WORKDIR.value), io.find_data("surveys")
    preprocessing = read_preprocessing(workdir)
    predictor = load(NETWORK.value or workdir)
    logging.getLogger("remap").setLevel(logging.ERROR)
    libraries = {
        arm: jax.tree.map(jnp.asarray, load_library(workdir, preprocessing, arm, interpolate=True))
        for arm in preprocessing.arms
    }
    survey, folder = surveys.get("lamost_lrs"), root / "lamost_repeats"
    listed = Table.read(folder / "repeats.csv", format="ascii.csv")
    files = [folder / "spectra" / str(name) for name in listed["file"]]
    settings = dataclasses.replace(predictor.observe_settings, velocity="measure", join=False)
    table = predictor.predict_files(files, source=survey.source, settings=settings).table
    pairs = visit_pairs(table, np.asarray(listed["group"]))
    used = np.unique(pairs)
    bounds = np.full((len(files), len(LABELS)), np.nan)
    for i in used:
        spectra = io.read(files[i], source=survey.source, within=(4800.0, 5800.0))
        labels = [float(table[label][i]) for label in LABELS]
        bounds[i] = bound(
            at_rest(spectra, float(table["rv"][i])), labels, libraries, preprocessing, degree=DEGREE.value
        )
    for line in report(table, pairs, bounds):
        print(line)


def bound(
    spectra: Spectra,
    labels: Sequence[float],
    libraries: dict[str, Library],
    preprocessing: Preprocessing,
    *,
    degree: int,
) -> Float[np.ndarray, " labels"]:
    """Standard deviations that no unbiased estimate of the labels falls below.

    Args:
      spectra: one, at rest, with errors.
      labels: those of `LABELS`, where the derivatives are taken; NaN comes out where no library reaches around.
      libraries: arm -> library on the grid of `preprocessing`.
      degree: of the polynomial by which each arm's continuum may be wrong.
    """
    own = np.asarray(to_medium(spectra.wave, source=spectra.medium, target=preprocessing.medium))
    shared, smooth = [], []
    for arm, library in libraries.items():
        wave = preprocessing.wave(arm)
        good = (own >= wave[0]) & (own <= wave[-1]) & spectra.valid[0] & (spectra.ivar[0] > 0)
        found = derivatives(library, wave, labels)
        if found is None or np.count_nonzero(good) < ENOUGH:
            return np.full(len(LABELS), np.nan)
        rows = np.stack([np.interp(own[good], wave, row) for row in found]) * np.sqrt(spectra.ivar[0][good])
        place = np.interp(own[good], wave, np.linspace(-1.0, 1.0, len(wave)))
        shapes = np.polynomial.legendre.legvander(place, degree).T
        # The continuum that makes the library's spectrum this one: derivatives come out in its flux.
        observed = spectra.flux[0][good] * np.sqrt(spectra.ivar[0][good])
        weights = np.linalg.lstsq((shapes * rows[0]).T, observed, rcond=None)[0]
        shared.append(rows[1:] * (weights @ shapes))
        smooth.append(shapes * rows[0])
    together = np.concatenate(shared, axis=1)
    wanted, others = together[: len(LABELS)], [together[len(LABELS) :], linalg.block_diag(*smooth)]
    unknown = np.concatenate(others)
    unknown /= np.linalg.norm(unknown, axis=1, keepdims=True)
    left = wanted - np.linalg.lstsq(unknown.T, wanted.T, rcond=None)[0].T @ unknown
    return np.sqrt(np.diag(np.linalg.inv(left @ left.T)))


def derivatives(
    library: Library, wave: Float[np.ndarray, " pixels"], labels: Sequence[float]
) -> Float[np.ndarray, "rows pixels"] | None:
    """The library's spectrum and its derivatives with respect to the labels, velocity (km/s) and line spread.

    None where the library does not reach from below to above the labels by `STEPS`.
    """
    spreads = library.log_flux.shape[0]
    centre = np.asarray(labels, float)
    steps = np.diag([STEPS[label] for label in LABELS])
    at = np.concatenate([centre[None], centre + steps, centre - steps]).astype(np.float32)
    cell, place = locate(library, at)
    if (cell < 0).any():
        return None

    def draw(spread: list[int], rows: list[int]) -> np.ndarray:
        where = (jnp.asarray(spread), jnp.asarray(cell[rows]), jnp.asarray(place[rows]))
        return np.asarray(draw_library(library, *where).flux, float)

    flux = draw([spreads // 2] * len(cell), list(range(len(cell))))
    two = draw([0, spreads - 1], [0, 0])
    count = len(LABELS)
    of_labels = (flux[1 : 1 + count] - flux[1 + count :]) / (2.0 * np.diag(steps))[:, None]
    of_velocity = np.gradient(flux[0], wave) * wave / LIGHT
    return np.concatenate([flux[:1], of_labels, of_velocity[None], two[1:] - two[:1]])


def report(
    table: Table, pairs: Int[np.ndarray, "pairs two"], bounds: Float[np.ndarray, "spectra labels"]
) -> Iterator[str]:
    """The scatter of the pairs, what was predicted of it, and the bound."""
    known = np.isfinite(bounds[pairs]).all(axis=(1, 2))
    yield f"{len(pairs)} pairs, {np.count_nonzero(known)} of them with labels that the library reaches around"
    yield ""
    yield "| label | robust scatter of a difference / √2 | predicted error | bound (medians) | scatter in bounds |"
    yield "|---|---|---|---|---|"
    first, second = pairs[known].T
    for k, label in enumerate(LABELS):
        value = np.asarray(table[label], float)
        width = np.asarray(table[f"{label}_p84"] - table[f"{label}_p16"], float) / 2
        difference = np.abs(value[first] - value[second])
        pull = difference / np.hypot(bounds[first, k], bounds[second, k])
        both = np.sqrt((bounds[first, k] ** 2 + bounds[second, k] ** 2) / 2)
        told = np.sqrt((width[first] ** 2 + width[second] ** 2) / 2)
        numbers = (1.4826 * np.median(difference) / np.sqrt(2), np.median(told), np.median(both))
        cells = " | ".join(f"{x:.{UNITS[label] + (label != 'teff')}f}" for x in numbers)
        yield f"| {label} | {cells} | {1.4826 * np.median(pull):.2f} |"


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
