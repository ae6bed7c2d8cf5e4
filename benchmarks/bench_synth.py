"""The embedded library: how close are its spectra to those of full spectrum synthesis, and how fast?

    python -m benchmarks.bench_synth --output=workdirs/bench_synth            about 2 minutes
    python -m benchmarks.bench_synth --output=workdirs/bench_synth --short    under a minute, for CI

`remap.synth` at the nodes of `lte_grid.npz` within `LIMITS`, and with the labels of the PHOENIX files; nothing in
the model was fitted to either. Pixels are compared at `RESOLUTION` (PHOENIX at its own), equivalent widths within
`BANDS`, and their derivatives as differences between neighbouring nodes. Fluxes are divided by the true continua;
PHOENIX files come without one, so theirs is that of the grid, interpolated (for the HiRes file, fluxes are
compared). Speed is measured in processes of their own. Writes synth.md, synth.png and the numbers as JSON.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.synth_report import plot, report
from remap import io
from remap.io import find_data
from remap.preprocess.resample import LineSpread, degrade_and_resample
from remap.spectra import make_spectra
from remap.synth import default_lines, synthesize_batch

LIMITS = {"teff": (4500, 6500), "logg": (1.5, 5.0), "m_h": (-1.5, 0.5)}
RESOLUTION = 11_000
GRID = 4852.0 + 0.1 * np.arange(8970)  # Å in air; the line spread needs a margin to 4850 and 5750
FINE = 4850.0 + 0.04 * np.arange(22501)  # Å in air, pixels of the library and of the speed test
OVERSAMPLE = 2
# The Lick indices' own bands (Trager et al. 1998, ApJS 116, 1), cut to the grid; without their side bands.
BANDS = {
    "Hβ": (4852.0, 4876.625),
    "Mg b": (5160.125, 5192.625),
    "Fe 5270": (5245.650, 5285.650),
    "Fe 5335": (5312.125, 5352.125),
}
SMALL = 0.01  # signs of derivatives count where the reference changes by this fraction of the width per node
STARS = {
    "Sun-like": (5750, 4.5, 0.0),
    "giant": (4750, 2.5, 0.0),
    "metal-poor": (5500, 4.0, -1.5),
    "K dwarf": (4500, 4.5, 0.0),
}
MEDRES = {"format": "image", "medium": "vacuum", "axis": "ln", "wave_unit": "Angstrom"}
HIRES = {
    "format": "phoenix_hires",
    "medium": "vacuum",
    "wave_unit": "Angstrom",
    "wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits",
}
MEDRES_RESOLUTION = 10_000
MICROTURBULENCE = {5000: 0.72, 5300: 0.77, 5600: 0.97, 5800: 0.97, 6200: 1.06}  # km/s, PHXXI_L of the files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for table, plot and numbers")
    parser.add_argument("--short", action="store_true", help="every other node, fewer spectra for the speed")
    parser.add_argument("--part", choices=("one core", "all cores"), help="used by the script itself")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        save(arguments, arguments.part, speed(4 if arguments.short else 48))
        return
    for part, cores in (("one core", {max(os.sched_getaffinity(0))}), ("all cores", None)):
        # Thread pools size themselves when they start, so what is to stay on one core is a process of its own.
        command = [sys.executable, "-m", "benchmarks.bench_synth", f"--output={arguments.output}"]
        pin = functools.partial(os.sched_setaffinity, 0, cores) if cores else None
        command += [f"--part={part}"] + ["--short"] * arguments.short
        subprocess.run(command, check=True, preexec_fn=pin)
    save(arguments, "lte_grid", against_lte_grid(arguments.short, arguments.output / "synth.png"))
    save(arguments, "phoenix", against_phoenix(arguments.short))
    report(arguments.output, short=arguments.short)


def save(arguments: argparse.Namespace, name: str, value: object) -> None:
    (arguments.output / f"{name.replace(' ', '_')}.json").write_text(json.dumps(value, indent=1))


def against_lte_grid(short: bool, picture: Path) -> dict:
    """Pixels, equivalent widths and derivatives at the nodes of the grid, and the plot."""
    with np.load(find_data("lte_grid.npz")) as file:
        labels = file["labels"].astype(np.float64)
        keep = np.ones(len(labels), bool)
        for i, (low, high) in enumerate(LIMITS.values()):
            keep &= (labels[:, i] >= low) & (labels[:, i] <= high)
        if short:  # steps of 500 K and of 1 dex in log g, and all of [M/H], so that neighbours remain
            shown = np.any([np.all(np.isclose(labels[:, :3], s), axis=1) for s in STARS.values()], axis=0)
            keep &= ((labels[:, 0] % 500 == 0) & (labels[:, 1] % 1 == 0.5)) | shown
        labels = labels[keep]
        theirs = at_resolution(file["wave_air"], file["flux"][keep])
    ours, _ = synthesize_batch(labels, lines=default_lines(), wave=FINE, oversample=OVERSAMPLE, chunk=16)
    ours = at_resolution(FINE, ours)
    rows = [np.flatnonzero(np.all(np.isclose(labels[:, :3], s), axis=1))[0] for s in STARS.values()]
    plot(picture, GRID, dict(zip(STARS, zip(ours[rows], theirs[rows], strict=True), strict=True)), STARS)
    return compare(labels[:, :3], ours, theirs)


def against_phoenix(short: bool) -> dict:
    """The same with the MedRes files, all of log g 4.5 and solar metals, and the HiRes file's correlation."""
    folder = find_data("phoenix")
    files = io.list_files(folder / "medres", "*.fits")[:: 2 if short else 1]
    theirs, labels = [], []
    for file in files:
        spectra = io.read(file, source=MEDRES)
        theirs.append(degrade_and_resample(spectra, GRID, medium="air", lsf=None).flux[0])
        labels.append([spectra.labels[n][0] for n in ("teff", "logg", "feh")])
    labels = np.array(labels)
    flux, _ = synthesize_batch(
        np.column_stack([labels, [MICROTURBULENCE[int(t)] for t in labels[:, 0]]]),
        lines=default_lines(),
        wave=FINE,
        oversample=OVERSAMPLE,
        chunk=16,
    )
    # Algorithm 1 would take out the haze of weak lines: true continua, for PHOENIX's that of the grid
    curves = true_continua(labels[:, 0])
    theirs = np.array(theirs) * 1e-8 / curves  # the files are per cm
    found = compare(labels, at_resolution(FINE, flux, MEDRES_RESOLUTION), theirs)
    (file,) = io.list_files(folder / "hires_cut", "lte*.fits")
    sharp = io.read(file, source=HIRES)
    label = [sharp.labels[n][0] for n in ("teff", "logg", "feh")]
    grid = GRID[(GRID > 5003) & (GRID < 5748)]
    flux, continuum = synthesize_batch(
        np.array([[*label, MICROTURBULENCE[int(label[0])]]]),
        lines=default_lines(),
        wave=FINE,
        oversample=OVERSAMPLE,
        chunk=1,
    )
    ours = at_resolution(FINE, flux * continuum, grid=grid)[0]
    theirs = degrade_and_resample(sharp, grid, medium="air", lsf=LineSpread(resolution=RESOLUTION)).flux[0]
    found["hires"] = float(np.corrcoef(ours, theirs)[0, 1])
    return found


def at_resolution(
    wave: np.ndarray, flux: np.ndarray, resolution: float = RESOLUTION, grid: np.ndarray = GRID
) -> np.ndarray:
    spectra = make_spectra(wave, flux, medium="air")
    return degrade_and_resample(spectra, grid, medium="air", lsf=LineSpread(resolution=resolution)).flux


def true_continua(teff: np.ndarray) -> np.ndarray:
    """Continua of the LTE grid on GRID, erg/s/cm²/Å, interpolated to effective temperatures at log g 4.5, solar."""
    with np.load(find_data("lte_grid.npz")) as file:
        labels, coarse = file["labels"], file["cont_wave_air"]
        rows = np.flatnonzero(np.all(np.isclose(labels[:, 1:3], (4.5, 0.0)), axis=1))
        rows = rows[np.argsort(labels[rows, 0])]
        known, curves = (
            labels[rows, 0],
            np.array([np.interp(GRID, coarse, c) for c in file["continuum"][rows]]),
        )
    return np.exp([[np.interp(t, known, c) for c in np.log(curves).T] for t in teff])


def compare(labels: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> dict:
    """Correlation of pixels, and ratios of equivalent widths and of their derivatives, ours over theirs."""
    correlation = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    found = {
        "nodes": len(labels),
        "labels": labels.tolist(),
        "correlation": correlation.tolist(),
        "rms": np.sqrt(np.mean((ours - theirs) ** 2, axis=1)).tolist(),
        "mean_difference": np.mean(ours - theirs, axis=1).tolist(),
        "bands": {},
    }
    for name, (low, high) in BANDS.items():
        inside = np.arange(*np.searchsorted(GRID, (low, high)))
        step = GRID[1] - GRID[0]
        a, b = (np.sum(1 - f[:, inside], axis=1) * step for f in (ours, theirs))
        band = {"ours": a.tolist(), "theirs": b.tolist(), "derivatives": {}}
        for i, label in enumerate(LIMITS):
            pairs = neighbours(labels, i)
            if len(pairs) == 0:
                continue
            mine, other = (w[pairs[:, 1]] - w[pairs[:, 0]] for w in (a, b))
            clear = np.abs(other) > SMALL * b[pairs].mean(axis=1)
            band["derivatives"][label] = {
                "pairs": len(pairs),
                "same_sign": float(np.mean(np.sign(mine) == np.sign(other))),
                "clear": int(clear.sum()),
                "clear_same_sign": float(np.mean((np.sign(mine) == np.sign(other))[clear])),
                "ratio": quantiles(mine[clear] / other[clear]),
            }
        band["ratio"] = quantiles(a / b)
        found["bands"][name] = band
    return found


def neighbours(labels: np.ndarray, axis: int) -> np.ndarray:
    """int[P, 2]: rows that differ in one label alone, by the smallest step there is upwards."""
    rest = np.delete(labels, axis, axis=1)
    pairs = []
    for row, here in enumerate(labels):
        above = np.all(np.isclose(rest, rest[row]), axis=1) & (labels[:, axis] > here[axis] + 1e-6)
        if above.any():
            others = np.flatnonzero(above)
            pairs.append((row, others[np.argmin(labels[others, axis])]))
    return np.array(pairs, int).reshape(-1, 2)


def quantiles(values: np.ndarray) -> list[float]:
    """Median, 16th and 84th percentile."""
    return np.percentile(values, (50, 16, 84)).tolist()


def speed(count: int) -> dict:
    """Spectra per second of 22,501 pixels, by wall clock and by CPU time, after one batch that compiles."""
    lines, found = default_lines(), {"cores": len(os.sched_getaffinity(0))}
    rng = np.random.default_rng(0)
    labels = np.column_stack([rng.uniform(*r, count) for r in LIMITS.values()] + [np.full(count, 1.2)])
    for oversample in (1, OVERSAMPLE):
        run = functools.partial(synthesize_batch, lines=lines, wave=FINE, oversample=oversample, chunk=16)
        run(labels[:2])
        wall, cpu = time.perf_counter(), time.process_time()
        run(labels)
        found[str(oversample)] = {
            "wall": count / (time.perf_counter() - wall),
            "cpu": count / (time.process_time() - cpu),
        }
    return found


if __name__ == "__main__":
    main()
