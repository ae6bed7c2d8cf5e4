"""A tiny experiment: a library of 27 nodes and a survey of 24 files from a formula, and its config.

The spectra are a few Gaussian lines whose depths follow the labels, on a sloping continuum. Both arms have one
number of pixels and everything is predicted in batches of one size, because the normaliser takes seconds to
compile for each shape. This file is a config, too: `--config=tests/helpers/tiny.py --config.data_root=DIR`.
"""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
from astropy.io import fits
from astropy.table import Table

from configs import autoencoder, common
from remap import io, make_spectra

REPOSITORY = Path(__file__).resolve().parents[2]
PIXELS = 120  # of each arm
ARMS = {"A": (5000.0, 5120.0), "B": (5120.0, 5240.0)}
WAVE = 4990.3 + np.arange(262.0)  # Å, of the survey: a third of a pixel off the arms' grids
LIBRARY_WIDTH, SURVEY_WIDTH = 0.5, np.hypot(0.5, 2.5 / 2.3548)  # σ of the lines, Å; the survey's FWHM is 2.5
CENTRES = 5006.0 + 18.7 * np.arange(13)
SNR = 100.0

# file, star, teff, logg, feh: 18 spectra of 16 stars that are trained on (two stars were seen twice, one has no
# metallicity), two giants, one star outside the bins, one without labels, one file that ends within arm A, one
# broken. Each fold tests one of the repeated stars, so that both train on seven spectra.
STARS = (*range(16), 0, 8)
DWARFS = [
    (
        f"dwarf_{i:02d}.fits",
        f"D{s:02d}",
        4600.0 + 75.0 * s,
        3.6 + 0.075 * (5 * s % 16),
        -0.9 + 0.05 * (7 * s % 16),
    )
    for i, s in enumerate(STARS)
]
OTHERS = [
    ("giant_0.fits", "G0", 4700.0, 3.1, -0.4),
    ("giant_1.fits", "G1", 5100.0, 3.3, -0.1),
    ("hot.fits", "H0", 9000.0, 4.0, 0.0),
    ("nameless.fits", None, 5000.0, 4.2, -0.3),
    ("one_arm.fits", None, 5300.0, 4.4, -0.2),
    ("truncated.fits", "T0", 5000.0, 4.0, -0.5),
]
NO_METALLICITY = "dwarf_03.fits"


CONTINUUM = {"name": "chebyshev", "degree": 2, "low": 1.2, "high": 3.0, "iterations": 5}  # compiles in 2 s


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The tiny experiment's settings, with `route` those of the autoencoder; the caller fills in `data_root`."""
    if common.parse_arg(arg, route=False)["route"]:
        return route_config("")
    c = common.get_config()
    c.name = "tiny"
    c.library = common.bundle_library("library.npz", columns=("teff", "logg", "m_h"), absolute=False)
    c.survey = common.fits_table_survey("survey", c.label_names, errors=("teff",))
    c.survey.labels.update({"repeat_stars": True, "rv_column": None})
    c.arms = {name: {"start": low, "stop": high, "step": 1.0} for name, (low, high) in ARMS.items()}
    c.continuum = dict(CONTINUUM)
    c.lsf = ml_collections.ConfigDict({"kind": "fwhm", "values": (2.4, 2.6)})
    c.labels.teff.library_sigma = 150.0
    c.model.update({"stem_filters": 4, "stem_kernel": 5, "filters": (4, 8), "kernel": 3, "embedding": 4})
    c.pretrain.update({"batch_size": 8, "epoch_size": 16, "cycles": 2, "epochs_per_cycle": 2})
    c.pretrain.update({"checkpoint_epochs": 2, "stats_batches": 2, "validation": 0.25, "validation_size": 8})
    c.pretrain.rate_high = 1e-2  # four epochs of two steps must change something
    c.align.update({"weight": 50.0, "batch_size": 8, "scale_batches": 4, "epochs_per_cycle": 10})
    c.align.update({"rate_high": 1e-2, "chunk": 8})
    c.finetune.update({"batch_size": 4, "cycles": 1, "epochs_per_cycle": 2, "checkpoint_epochs": 2})
    c.finetune.update({"stats_batches": 2, "rate_high": 1e-1})
    c.split.update({"folds": 2, "run": (0, 1), "validation": 0.25})
    c.embeddings.update({"epochs": (0, 2, 4), "size": 12, "perplexity": 4.0})
    c.predict.update({"batch_size": 4, "small_batch_size": 4})
    c.evaluate.snr_edges = (95.0, 100.1)
    c.evaluate.groups = {"dwarfs": {"logg": (3.5, 5.5)}, "giants": {"logg": (1.0, 3.4999)}}
    c.lock()
    return c


def config(data: Path | str, **changes: object) -> ml_collections.ConfigDict:
    """The config for data in a folder; `changes` are values of fields, dots written as two underscores."""
    c = get_config()
    c.data_root = str(data)
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def with_algorithm1(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same with Algorithm 1 as the normaliser, which takes 9 s to compile for each shape."""
    with c.unlocked():
        c.continuum = common.get_config().continuum
    return c


def route_config(data: Path | str, **changes: object) -> ml_collections.ConfigDict:
    """The autoencoder route on the same data: all 240 pixels, tiny networks."""
    c = get_config()
    with c.unlocked():
        c.name = "tiny_route"
        c.seed = 3  # of four latent features some may be silent from the start; here they are alive
        autoencoder.add_route(c)
        c.autoencoder.members = ((16, 1e-7, 1e-2), (16, 1e-7, 1e-2))
        c.autoencoder.update(
            {"latent": 4, "examples": 32, "chunk": 16, "batch_size": 8, "epochs_per_cycle": 2}
        )
        c.autoencoder.update({"cycles": 3, "checkpoint_epochs": 1, "validation": 0.25, "validation_size": 16})
        c.autoencoder.update({"noise_low": 0.005, "noise_high": 0.02, "denoise": True, "rate_fall": 0.1})
        c.adapt.update({"trains": "bottleneck", "cycles": 3, "epochs_per_cycle": 1, "batch_size": 8})
        c.adapt.update({"checkpoint_epochs": 1})
        c.regressor.update({"networks": 2, "filters": (3, 2), "dense": (8, 6, 4), "batch_size": 16})
        c.regressor.update({"cycles": 1, "epochs_per_cycle": 2, "checkpoint_epochs": 1})
        c.estimate.refine = 2
        c.gap.update({"folds": 2, "repeats": 1, "permutations": 20, "resamples": 20, "perplexity": 5.0})
        c.search.update(
            {"widths": (8, 16), "l1": (1e-7,), "rates": (1e-2,), "folds": 2, "epochs": 1, "best": 1}
        )
    c.data_root = str(data)
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return c


def flux(wave: np.ndarray, labels: np.ndarray, width: float) -> np.ndarray:
    """float64[S, N]: 13 lines whose depths depend on teff, logg and feh (columns of `labels`), continuum 1."""
    teff, logg, feh = np.atleast_2d(labels).T[:, :, None]
    k = np.arange(len(CENTRES))[None]
    warm = (teff - 5300) / 1500
    depth = 0.25 + 0.15 * np.cos(1.3 * k) * warm + 0.06 * np.sin(2.1 * k) * (logg - 4) + 0.12 * (feh + 0.5)
    area = np.clip(depth, 0.02, 0.45) * SURVEY_WIDTH / width
    lines = np.exp(-0.5 * ((wave[None] - CENTRES[:, None]) / width) ** 2)
    return 1 - area @ lines


def observed(
    labels: np.ndarray, *, seed: int, snr: float = SNR, wave: np.ndarray = WAVE
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and inverse variance float64[N] of a star as the survey sees it, in counts, with a slope."""
    clean = snr**2 * flux(wave, labels, SURVEY_WIDTH)[0] * (1 + 0.002 * (wave - 5100))
    noise = np.random.default_rng(seed).standard_normal(wave.size)
    return clean + np.sqrt(clean) * noise, 1 / clean


def star(i: int, **kwargs: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelength, flux and inverse variance of dwarf i."""
    return (kwargs.get("wave", WAVE), *observed(np.array(DWARFS[i][2:]), **{"seed": i, **kwargs}))


def spectra(indices: tuple[int, ...] = tuple(range(5))):
    """A `Spectra` of dwarfs, named as their files are."""
    fluxes, ivars = zip(*(star(i)[1:] for i in indices), strict=True)
    names = [DWARFS[i][0] for i in indices]
    return make_spectra(WAVE, np.stack(fluxes), medium="air", ivar=np.stack(ivars), names=names)


def write_table(path: Path, wave: np.ndarray, flux: np.ndarray, ivar: np.ndarray) -> Path:
    """One spectrum as a FITS binary table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [
        fits.Column("wavelength", "D", unit="Angstrom", array=wave),
        fits.Column("flux", "D", array=flux),
        fits.Column("ivar", "D", array=ivar),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)
    return path


def write_image(path: Path, start: float, step: float, flux: np.ndarray) -> Path:
    """One spectrum as a FITS image with a linear axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.writeto(path, flux, fits.Header({"CRVAL1": start, "CDELT1": step, "CRPIX1": 1.0}), overwrite=True)
    return path


def write_labels(path: Path, rows: list[tuple[str, str, float, float, float]]) -> Path:
    """The label table of a survey: file, star, teff, logg, feh; NaN for what is not known."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Table(rows=rows, names=("file", "star_id", "teff", "logg", "feh"))
    table["teff_err"] = np.full(len(table), 60.0)
    table.write(path, format="ascii.ecsv", overwrite=True)
    return path


def write_library(path: Path, *, wave: np.ndarray | None = None, change=lambda flux: flux) -> Path:
    """A library bundle of 27 nodes; `change` may spoil its flux."""
    wave = np.arange(4975.0, 5265.0, 0.25) if wave is None else wave
    nodes = np.array(list(itertools.product((4500, 5250, 6000), (3.0, 4.0, 5.0), (-1.0, -0.5, 0.0))), float)
    library = make_spectra(
        wave,
        change(flux(wave, nodes, LIBRARY_WIDTH)),
        medium="air",
        names=[f"node {i}" for i in range(len(nodes))],
        labels=dict(zip(("teff", "logg", "m_h"), nodes.T, strict=True)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    io.write_bundle(path, library)
    return path


def write_data(folder: Path) -> Path:
    """The whole of it: library, survey with its bad cases, labels."""
    write_library(folder / "library.npz")
    files = folder / "survey" / "spectra"
    rows = []
    for i, (name, star_id, *labels) in enumerate(DWARFS + OTHERS):
        known = list(labels)
        if name == NO_METALLICITY:
            known[2] = np.nan
        if star_id is not None:
            rows.append((name, star_id, *known))
        counts, ivar = observed(np.array([min(labels[0], 6000.0), *labels[1:]]), seed=i)
        keep = WAVE < 5110 if name == "one_arm.fits" else slice(None)
        path = write_table(files / name, WAVE[keep], counts[keep], ivar[keep])
        if name == "truncated.fits":
            path.write_bytes(path.read_bytes()[:-2880])
    write_labels(folder / "survey" / "labels.ecsv", rows)
    return folder


def small_survey(folder: Path, data: Path, names: tuple[str, ...] = ()) -> Path:
    """A folder for one test: the library of `data`, its label table, and the named spectra."""
    (folder / "survey" / "spectra").mkdir(parents=True)
    shutil.copy(data / "library.npz", folder)
    shutil.copy(data / "survey" / "labels.ecsv", folder / "survey")
    for name in names:
        shutil.copy(data / "survey" / "spectra" / name, folder / "survey" / "spectra")
    return folder


def launch(
    module: str, *arguments: object, before: str = "", timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m launch.NAME` in the repository, after the Python statements `before`, on one CPU device."""
    argv = [module, *map(str, arguments), f"--compilation_cache={jax.config.jax_compilation_cache_dir}"]
    code = (
        f"import runpy, sys\nsys.argv = {argv!r}\n{before}\nrunpy.run_module({module!r}, run_name='__main__')"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
