"""How much memory does the preparation of a survey take, and does it grow with the survey?

    python -m benchmarks.bench_prepare --output=workdirs/bench_prepare --counts=500,1000,2000

A library of 27 nodes and surveys of so many spectra (two arms of 4,800 pixels, 10,480 pixels a file, made by a
formula) are written into a temporary folder and prepared (`remap.stages.preprocess`), each in a process of its own.

Writes prepare.md.
"""

import argparse
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from remap.io import write_bundle
from remap.spectra import make_spectra
from remap.stages.preprocess import preprocess

ARMS = {"A": (5000.0, 5120.0), "B": (5120.0, 5240.0)}
STEP = 0.025  # Å
LABELS = ("teff", "logg", "m_h")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the table")
    parser.add_argument("--counts", default="500,1000,2000", help="spectra of the surveys")
    parser.add_argument("--folder", type=Path, help="for the processes")
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(dataclasses.asdict(prepared(arguments.folder))))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "",
        "| spectra | largest memory [MB] | before [MB] | survey's files [MB] | processor time, ms each | sha256 |",
        "|---|---|---|---|---|---|",
    ]
    for count in map(int, arguments.counts.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.output) as name:
            write_data(Path(name), count)
            command = [sys.executable, "-m", "benchmarks.bench_prepare", "--output", arguments.output]
            done = subprocess.run(
                [*map(str, command), "--folder", name], stdout=subprocess.PIPE, text=True, check=True
            )
        found = Prepared(**json.loads(done.stdout.splitlines()[-1]))
        lines.append(
            f"| {count} | {found.peak:.0f} | {found.before:.0f} | {found.size:.0f} | "
            f"{1e3 * found.seconds / count:.0f} | {found.digest[:12]} |"
        )
        print(lines[-1], flush=True)
    (arguments.output / "prepare.md").write_text("\n".join(lines) + "\n")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a preparation took: MB, seconds of processor time, and the hash of the survey's files."""

    peak: float
    before: float
    size: float
    seconds: float
    digest: str


def prepared(folder: Path) -> Prepared:
    """Prepares the survey of a folder."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.process_time()
    preprocess(config(folder), folder / "work")
    files = sorted((folder / "work" / "data").glob("survey_*.npz"))
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
    return Prepared(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        before,
        sum(path.stat().st_size for path in files) / 1e6,
        time.process_time() - begin,
        digest.hexdigest(),
    )


def config(folder: Path) -> object:
    """The settings of the surveys."""
    common = importlib.import_module("configs.common")
    c = common.get_config()
    c.data_root = str(folder)
    c.library = common.bundle_library("library.npz", columns=LABELS, absolute=False)
    c.survey = common.fits_table_survey("survey", c.label_names, errors=("teff",))
    c.survey.labels.rv_column = None
    c.arms = {name: {"start": low, "stop": high, "step": STEP} for name, (low, high) in ARMS.items()}
    with c.unlocked():
        c.lsf = {"kind": "fwhm", "values": (0.24, 0.26)}
        c.observe.update({"check": False, "join": False, "stationary": False})
    return c


def lines(wave: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """float64[S, N]: 26 lines of depths that follow the rows' numbers."""
    centres = 5003.0 + 9.3 * np.arange(26)
    shape = np.exp(-0.5 * ((wave - centres[:, None]) / 0.12) ** 2)
    return 1 - np.clip(0.3 + 0.2 * np.cos(np.arange(26) + depth[:, None]), 0.05, 0.6) @ shape


def write_data(folder: Path, count: int) -> None:
    """Library, survey and labels."""
    nodes = np.array(list(itertools.product((4500, 5250, 6000), (3.0, 4.0, 5.0), (-1.0, -0.5, 0.0))), float)
    wave = np.arange(4970.0, 5270.0, 0.02)
    labels = dict(zip(LABELS, nodes.T, strict=True))
    names = [f"node {i}" for i in range(len(nodes))]
    library = make_spectra(wave, lines(wave, np.arange(27.0)), medium="air", names=names, labels=labels)
    write_bundle(folder / "library.npz", library)
    (folder / "survey" / "spectra").mkdir(parents=True)
    wave = 4990.01 + STEP * np.arange(10480)
    clean = lines(wave, np.linspace(0, 26, 8))
    rows = []
    for i in range(count):
        noisy = clean[i % 8] + 0.01 * np.random.default_rng(i).standard_normal(wave.size)
        columns = [
            fits.Column("wavelength", "D", unit="Angstrom", array=wave),
            fits.Column("flux", "E", array=noisy),
            fits.Column("ivar", "E", array=np.full(wave.size, 1e4)),
        ]
        name = f"star_{i:06d}.fits"
        fits.BinTableHDU.from_columns(columns).writeto(folder / "survey" / "spectra" / name)
        rows.append((name, f"S{i}", 5000.0 + i % 500, 4.0, -0.5))
    table = Table(rows=rows, names=("file", "star_id", "teff", "logg", "feh"))
    table["teff_err"] = 60.0
    table.write(folder / "survey" / "labels.ecsv", format="ascii.ecsv")


if __name__ == "__main__":
    main()
