"""Continuum normalisation: how fast, and how close to the true continuum?

    python -m benchmarks.bench_continuum --output=workdirs/bench_continuum            about 15 minutes
    python -m benchmarks.bench_continuum --output=workdirs/bench_continuum --short    under a minute, for CI

Side by side in one run: Algorithm 1 as `remap.continuum` computes it, its plain NumPy loop, the same loop as a naive
vmapped `lax.while_loop`, the two simpler normalisers of `remap.continuum.normalizers`, and specutils' `fit_continuum`
(linear fit of a Chebyshev series) and `fit_generic_continuum`. Spectra: `lte_grid.npz`, whose continuum is known,
at R = 11,000 times the response `RESPONSE`, with Gaussian noise. Rates are per second of CPU time, in a process
that is kept on one core: other work on the machine disturbs them less than it would the wall clock. Writes
continuum.md, continuum.png and the numbers as JSON.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.continuum_report import plot, report
from remap.continuum import _kernel as kernel
from remap.continuum.algorithm1 import PATIENCE, ContinuumSettings, normalize_batch
from remap.continuum.common import scale_flux
from remap.continuum.normalizers import ChebyshevSettings, QuantileSettings, get_normalizer
from remap.continuum.reference import node_matrix, node_pixels, reference
from remap.io import find_data
from remap.preprocess.resample import LineSpread, degrade_and_resample
from remap.spectra import make_spectra

START = 4851.0  # Å: the library begins at 4850, and the line spread needs a margin
GRIDS = {478: 0.9, 4300: 0.1, 4700: 0.1}  # pixels and their width [Å]; 478 is arm A at MILES's sampling
RESPONSE = (1.0, 0.15, -0.35, -0.10)  # of the instrument, a polynomial in u = -1..1 along the grid
RESOLUTION = 11_000
GROUPS = {
    "all": lambda teff, feh: teff > 0,
    "4000-4500 K": lambda teff, feh: teff <= 4500,
    "4750-5500 K": lambda teff, feh: (teff > 4500) & (teff <= 5500),
    "5750-7000 K": lambda teff, feh: teff > 5500,
    "[Fe/H] < -1": lambda teff, feh: feh < -1,
    "[Fe/H] >= 0": lambda teff, feh: feh >= 0,
}
BINS = tuple(range(2, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the tables, the plot and the numbers"
    )
    parser.add_argument("--short", action="store_true", help="fewer spectra, sizes and noise levels")
    parser.add_argument("--part", choices=("one core", "all cores"), help="used by the script itself")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.part == "all cores":
        save(arguments, "all_cores", all_cores())
    elif arguments.part == "one core":
        save(arguments, "agreement", agreement(arguments.short))
        save(arguments, "speed", speed(arguments.short))
        save(arguments, "accuracy", accuracy(arguments.short, arguments.output))
    else:
        # Thread pools size themselves when they start, so what is to stay on one core is a process of its own.
        run_part(arguments, "one core", {max(os.sched_getaffinity(0))})
        if not arguments.short:
            run_part(arguments, "all cores", None)
        report(arguments.output, short=arguments.short)


def run_part(arguments: argparse.Namespace, part: str, cores: set[int] | None) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_continuum",
        f"--output={arguments.output}",
        f"--part={part}",
    ]
    pin = functools.partial(os.sched_setaffinity, 0, cores) if cores else None
    subprocess.run(command + ["--short"] * arguments.short, check=True, preexec_fn=pin)


def save(arguments: argparse.Namespace, name: str, value: object) -> None:
    (arguments.output / f"{name}.json").write_text(json.dumps(value, indent=1))


# Spectra


@functools.lru_cache(maxsize=4)
def library(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noiseless spectra [L, N], their true continuum times the response [L, N], and labels [L, 2].

    For the smallest grid, which the short form uses, every seventh of the 594.
    """
    some = slice(None, None, 7 if count == min(GRIDS) else 1)
    with np.load(find_data("lte_grid.npz")) as file:
        spectra = make_spectra(file["wave_air"], file["flux"][some], medium="air")
        coarse, continua, labels = file["cont_wave_air"], file["continuum"][some], file["labels"][some]
    grid = START + GRIDS[count] * np.arange(count)
    lines = degrade_and_resample(spectra, grid, medium="air", lsf=LineSpread(resolution=RESOLUTION)).flux
    response = np.polynomial.polynomial.polyval(np.linspace(-1, 1, count), RESPONSE)
    truth = np.array([np.interp(grid, coarse, c / c.mean()) for c in continua]) * response
    return lines * truth, truth, labels[:, [0, 2]]


def noisy(number: int, count: int, snr: float, seed: int = 0) -> np.ndarray:
    """float64[number, N]: spectra of the library in random order, again and again, each with its own noise."""
    rng = np.random.default_rng(seed)
    clean = library(count)[0]
    picked = np.concatenate([rng.permutation(len(clean)) for _ in range(-(-number // len(clean)))])[:number]
    return clean[picked] * (1 + rng.normal(size=(number, count)) / snr)


# Methods: (flux[S, N]) -> continuum[S, N], as NumPy arrays


def compiled(name: str, settings: object) -> Callable[[np.ndarray], np.ndarray]:
    batch = get_normalizer(name).normalize_batch

    def run(flux: np.ndarray) -> np.ndarray:
        return np.asarray(batch(flux, np.ones(flux.shape, bool), settings=settings).continuum)

    return run


def numpy_loop(pixel: float, relift: float) -> Callable[[np.ndarray], np.ndarray]:
    def run(flux: np.ndarray) -> np.ndarray:
        options = {
            "exceed": ContinuumSettings().exceed_for(flux.shape[1]),
            "sigma": 15.0 / pixel,
            "relift": relift,
        }
        return np.array([reference(row, np.ones(len(row), bool), **options).continuum for row in flux])

    return run


def naive_loop(pixel: float, relift: float) -> Callable[[np.ndarray], np.ndarray]:
    """The plain loop as one would first write it in JAX: every sweep a product with B, vmapped over spectra."""

    def one(flux: jax.Array) -> jax.Array:
        count, exceed = flux.shape[0], ContinuumSettings().exceed_for(flux.shape[0])
        z = flux / jnp.max(flux)
        nodes, before = jnp.full(2, 11.0, z.dtype), None
        for v in BINS:
            matrix = node_matrix(count, v)
            if before is not None:
                nodes = 1.0 * relift * (jnp.asarray(before[node_pixels(count, v)], z.dtype) @ nodes)
            before = matrix
            edges = np.array([i * count // v for i in range(v + 1)])
            places = edges[:-1, None] + np.arange(-(-count // v))
            inside = places < edges[1:, None]
            dense, places = jnp.asarray(matrix, z.dtype), np.minimum(places, count - 1)

            def short(k, nodes=nodes, dense=dense, places=places, inside=inside):
                above = z >= dense @ (nodes * 0.999**k)
                return (jnp.sum(above[places] & inside, axis=1) < exceed) & (k < 9206)

            k = lax.while_loop(
                lambda k, short=short: jnp.any(short(k)),
                lambda k, short=short: k + short(k),
                jnp.zeros(v, jnp.int32),
            )
            nodes = nodes * 0.999**k
        return jnp.max(flux) * kernel.dot(kernel.final_matrix(count, 11, 6, 15.0 / pixel), nodes)

    run = jax.jit(jax.vmap(one))
    return lambda flux: np.asarray(run(flux))


def specutils_fit(generic: bool) -> Callable[[np.ndarray], np.ndarray]:
    """`fit_continuum` with a Chebyshev series of degree 3 by linear least squares, or `fit_generic_continuum`."""
    from astropy import units
    from astropy.modeling.fitting import LinearLSQFitter
    from astropy.modeling.polynomial import Chebyshev1D
    from specutils import Spectrum
    from specutils.fitting import fit_continuum, fit_generic_continuum

    def run(flux: np.ndarray) -> np.ndarray:
        count = flux.shape[1]
        wave = (START + GRIDS[count] * np.arange(count)) * units.AA
        out = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in flux:
                spectrum = Spectrum(flux=row * units.one, spectral_axis=wave)
                if generic:
                    model = fit_generic_continuum(spectrum)
                else:
                    model = fit_continuum(spectrum, model=Chebyshev1D(3), fitter=LinearLSQFitter())
                out.append(np.asarray(model(wave)))
        return np.array(out)

    return run


def methods(count: int, short: bool) -> dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]]:
    """name -> (method, the most spectra that it is worth to wait for)."""
    pixel = GRIDS[count]
    ours = functools.partial(ContinuumSettings, pixel=pixel)
    many, few = 1024, 12
    found = {
        "Algorithm 1, relift 1.05": (compiled("algorithm1", ours()), many),
        "NumPy loop, relift 1.05": (numpy_loop(pixel, 1.05), few),
        "naive vmapped while_loop, relift 1.05": (naive_loop(pixel, 1.05), 64),
        "clipped Chebyshev": (compiled("chebyshev", ChebyshevSettings()), many),
        "running quantile": (compiled("quantile", QuantileSettings(pixel=pixel)), many),
        "specutils fit_continuum, linear": (specutils_fit(generic=False), 64),
    }
    if not short:
        found |= {
            "Algorithm 1, relift 1.0 (paper)": (compiled("algorithm1", ours(relift=1.0)), many),
            "NumPy loop, relift 1.0": (numpy_loop(pixel, 1.0), few),
            "naive vmapped while_loop, relift 1.0": (naive_loop(pixel, 1.0), 64),
            "specutils fit_generic_continuum": (specutils_fit(generic=True), few),
        }
    return found


# Measurements


def agreement(short: bool) -> list[dict]:
    """How many spectra have other integers k than the plain loop, by type and relift."""
    count, number, rows = (478, 2, []) if short else (4300, 130, [])
    flux = np.concatenate([noisy(number, count, snr, seed) for seed, snr in enumerate((50, 100, 200, 1e3))])
    options = {"exceed": ContinuumSettings().exceed_for(count), "sigma": 15.0 / GRIDS[count]}
    for relift in (1.05, 1.0):
        plain = [reference(f, np.ones(count, bool), relift=relift, **options) for f in flux]
        steps = np.array([np.concatenate(p.steps) for p in plain])
        curves = np.array([p.continuum for p in plain])
        for wide in (True, False):
            with jax.enable_x64(wide):
                typed = flux.astype(np.float64 if wide else np.float32)
                found_steps, found = map(np.asarray, _descend_all(typed, relift, **options))
            off = np.max(np.abs(found / curves - 1), axis=1)
            other = np.any(found_steps != steps, axis=1)
            rows.append(
                {
                    "type": "float64" if wide else "float32",
                    "relift": relift,
                    "pixels": count,
                    "spectra": len(flux),
                    "other k": int(other.sum()),
                    "off, same k": float(off[~other].max()),
                    "off, all": float(off.max()),
                }
            )
    return rows


@functools.partial(jax.jit, static_argnames=("exceed", "sigma"))
def _descend_all(flux: jax.Array, relift: float, *, exceed: int, sigma: float) -> tuple[jax.Array, jax.Array]:
    """The integers [S, 65] and the continuum [S, N] as `normalize` computes them; relift is traced."""

    def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, scale, _ = scale_flux(row, jnp.ones(row.shape, bool))
        found = kernel.descend(
            z, exceed=exceed, ratio=0.999, bins=BINS, relift=relift, max_steps=9206, patience=PATIENCE
        )
        return found.steps, scale * kernel.dot(kernel.final_matrix(row.shape[0], 11, 6, sigma), found.nodes)

    return lax.map(one, flux)


def rate(
    method: Callable[[np.ndarray], np.ndarray],
    flux: np.ndarray,
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> float:
    """Spectra per second, the median of a few runs after one that compiles."""
    method(flux)
    spent = []
    for _ in range(repeats):
        begin = clock()
        method(flux)
        spent.append(clock() - begin)
    return len(flux) / float(np.median(spent))


def speed(short: bool) -> list[dict]:
    """Spectra per second in float32 (float64 for NumPy and specutils), by grid, batch and method."""
    rows = []
    for count in (478,) if short else GRIDS:
        for name, (method, most) in methods(count, short).items():
            for batch in (64,) if short else (1, 64, 1024):
                loops = "NumPy" in name or "specutils" in name  # one after the other, whatever the batch
                if (not loops and batch > most) or (loops and batch > 1 and not short):
                    continue
                flux = noisy(batch if not loops else min(most, 4 if short else 64), count, 100.0)
                if batch == 1 and not loops:  # speeds differ between spectra: the mean of 16
                    alone = [jnp.asarray(row[None], jnp.float32) for row in noisy(16, count, 100.0)]
                    found = 16 / sum(1 / rate(method, row, 5) for row in alone)
                else:
                    if not loops:
                        flux = jax.block_until_ready(jnp.asarray(flux, jnp.float32))
                    found = rate(method, flux, 3 if short or most < 1024 else 7)
                rows.append({"pixels": count, "batch": batch, "method": name, "rate": found})
    return rows


def all_cores() -> dict:
    """Spectra per second of wall time when threads share a batch of 1024, N = 4300, and of one thread."""
    cores = len(os.sched_getaffinity(0))
    flux = noisy(1024, 4300, 100.0).astype(np.float32)
    result = {"cores": cores}
    for threads in (1, cores):
        parts = [jnp.asarray(part) for part in np.array_split(flux, threads)]
        with ThreadPoolExecutor(threads) as pool:
            result[str(threads)] = rate(functools.partial(_share, pool, parts), flux, 3, time.perf_counter)
    return result


def _share(pool: ThreadPoolExecutor, parts: list[jax.Array], _: np.ndarray) -> list[jax.Array]:
    def work(part: jax.Array) -> jax.Array:
        result = normalize_batch(part, jnp.ones(part.shape, bool), settings=ContinuumSettings())
        return jax.block_until_ready(result.flux)

    return list(pool.map(work, parts))


def accuracy(short: bool, output: Path) -> list[dict]:
    """Bias, scatter and edges of the continuum over the true one [%], by method, SNR and group; and the plot."""
    count = 478 if short else 4300
    clean, truth, labels = library(count)
    rng = np.random.default_rng(1)
    chosen = {
        name: m
        for name, (m, _) in methods(count, short).items()
        if "NumPy" not in name and "naive" not in name
    }
    edge = count // 50
    rows, profiles, example = [], {}, {}
    for snr in (100,) if short else (50, 100, 200):
        flux = clean * (1 + rng.normal(size=clean.shape) / snr)
        used = dict(chosen)
        if snr != 100:  # at 100 it is the default
            used["Algorithm 1, a from the SNR"] = compiled(
                "algorithm1", ContinuumSettings(pixel=GRIDS[count], snr=snr)
            )
        for name, method in used.items():
            curves = method(flux)
            off = 100 * (curves / truth - 1)
            if snr == 100:
                profiles[name] = np.median(off, axis=0)
                example[name] = curves[len(flux) // 2]
            for group, pick in GROUPS.items():
                part = off[pick(*labels.T)]
                rows.append(
                    {
                        "snr": snr,
                        "method": name,
                        "group": group,
                        "spectra": len(part),
                        "bias": float(np.median(part.mean(axis=1))),
                        "spread": float(np.std(part.mean(axis=1))),
                        "scatter": float(np.median(part.std(axis=1))),
                        "left": float(np.median(part[:, :edge])),
                        "right": float(np.median(part[:, -edge:])),
                    }
                )
        if snr == 100:
            shown = flux[len(flux) // 2], truth[len(flux) // 2]
    plot(output / "continuum.png", START + GRIDS[count] * np.arange(count), shown, example, profiles)
    return rows


if __name__ == "__main__":
    main()
