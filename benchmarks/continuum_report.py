"""The tables and the plot of `bench_continuum`, from what it measured."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np


def plot(
    path: Path,
    wave: np.ndarray,
    shown: tuple[np.ndarray, np.ndarray],
    example: dict[str, np.ndarray],
    profiles: dict[str, np.ndarray],
) -> None:
    """One spectrum with every continuum, and the median of continuum over truth at every pixel."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 8), sharex=True, layout="constrained")
    top.plot(wave, shown[0], color="0.75", lw=0.5, label="spectrum, SNR 100")
    top.plot(wave, shown[1], "k--", lw=1, label="true continuum")
    for i, name in enumerate(profiles):
        top.plot(wave, example[name], color=f"C{i}", lw=1, label=name)
        bottom.plot(wave, profiles[name], color=f"C{i}", lw=1)
    top.set_ylabel("flux")
    top.legend(fontsize=8, ncols=2)
    bottom.axhline(0, color="k", lw=0.5)
    bottom.set_ylabel("continuum / truth - 1, median [%]")
    bottom.set_xlabel("wavelength in air [Å]")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(folder: Path, *, short: bool) -> None:
    """continuum.md from the JSON files in `folder`."""
    read = lambda name: json.loads((folder / f"{name}.json").read_text())  # noqa: E731
    agreed, rows, errors = (read(name) for name in ("agreement", "speed", "accuracy"))
    versions = f"jax {jax.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}"
    lines = [
        "## Continuum normalisation",
        "",
        f"`python -m benchmarks.bench_continuum --output=...{' --short' * short}`, commit {commit()}, "
        f"{processor()}, {versions}.",
        "Spectra of the LTE library at R = 11,000 times a smooth response. Machines are noisy: compare ratios.",
        "",
        "Agreement with the plain NumPy loop, SNR 50 to 1000 (worst relative difference of a continuum):",
        "",
        "| type | relift | N | spectra | other integers k | off where k is the same | off at worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in agreed:
        cells = [row[key] for key in ("type", "relift", "pixels", "spectra", "other k")]
        cells += [f"{row[key]:.0e}" for key in ("off, same k", "off, all")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    columns = sorted({(row["pixels"], row["batch"]) for row in rows})
    table = {(row["method"], row["pixels"], row["batch"]): row["rate"] for row in rows}
    names = list(dict.fromkeys(row["method"] for row in rows))
    lines += ["", "Spectra per second of CPU time on one core, by pixels × batch:", ""]
    lines.append("| method | " + " | ".join(f"{n} × {b}" for n, b in columns) + " |")
    lines.append("|---|" + "---|" * len(columns))
    for name in names:
        cells = (table.get((name, n, b)) for n, b in columns)
        lines.append(f"| {name} | " + " | ".join("" if c is None else f"{c:,.0f}" for c in cells) + " |")
    pixels, batch = max(columns, key=lambda column: (column[0] == 4300, column[1]))
    lines += ["", f"Ratios at N = {pixels}, batch {batch} (of the others, the best of their batches):", ""]
    for relift, mine in (("1.05", "Algorithm 1, relift 1.05"), ("1.0", "Algorithm 1, relift 1.0 (paper)")):
        parts = []
        for other in names:
            same = other.endswith(f"relift {relift}") and "Algorithm" not in other
            if mine in names and (same or "specutils" in other):
                best = max(v for (m, n, _), v in table.items() if m == other and n == pixels)
                parts.append(f"{table[mine, pixels, batch] / best:.1f} × {other}")
        if parts:
            lines.append(f"- relift {relift}: " + ", ".join(parts))
    if not short:
        cores = read("all_cores")
        many = cores["cores"]
        text = f"{cores['1']:,.0f} spectra per second in one thread, {cores[str(many)]:,.0f} in {many}."
        lines += ["", f"Wall clock, N = 4300, relift 1.05, batch 1024: {text}"]
    lines += [
        "",
        "Continuum over true continuum [%]: median over spectra of the mean along a spectrum (bias), its standard "
        "deviation between spectra (spread), the median of the standard deviation along a spectrum (scatter), and "
        "the median over the first and last 2 % of the pixels.",
        "",
        "| SNR | group | method | bias | spread | scatter | left edge | right edge |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in errors:
        if row["group"] == "all" or row["snr"] == 100:
            values = " | ".join(f"{row[key]:+.2f}" for key in ("bias", "spread", "scatter", "left", "right"))
            lines.append(f"| {row['snr']} | {row['group']} ({row['spectra']}) | {row['method']} | {values} |")
    lines += ["", "![Continua of one spectrum, and their median error along the grid](continuum.png)", ""]
    text = "\n".join(lines)
    (folder / "continuum.md").write_text(text)
    print(text)


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return (
        f"one core of {names[0].split(':')[1].strip()} ({len(names)} cores)" if names else "unknown processor"
    )
