"""The table and the plot of `bench_synth`, from what it measured."""

import json
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np

from benchmarks.continuum_report import commit, processor

NAMES = {"teff": "Teff", "logg": "log g", "m_h": "[M/H]"}


def plot(
    path: Path,
    wave: np.ndarray,
    stars: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: dict[str, tuple[float, float, float]],
) -> None:
    """Each star (ours, the grid's) over the whole range and around Mg b and Fe 5270, with residuals below."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(stars), 2, figsize=(15, 3.4 * len(stars)), sharey=True, sharex="col", layout="constrained"
    )
    for (name, (ours, theirs)), row in zip(stars.items(), axes, strict=True):
        for axis, limits in zip(row, ((wave[0], wave[-1]), (5150, 5290)), strict=True):
            some = (wave >= limits[0]) & (wave <= limits[1])
            axis.plot(wave[some], theirs[some], color="0.6", lw=1, label="lte_grid")
            axis.plot(wave[some], ours[some], color="C0", lw=0.6, label="remap.synth")
            axis.plot(wave[some], (ours - theirs)[some] - 0.3, color="C3", lw=0.5, label="difference - 0.3")
            axis.axhline(-0.3, color="k", lw=0.4)
            axis.set_xlim(limits)
        teff, logg, m_h = labels[name]
        row[0].set_title(f"{name}: {teff:g} K, log g {logg:g}, [M/H] {m_h:g}", fontsize=10, loc="left")
        row[0].set_ylabel("flux / true continuum")
    axes[0, 0].legend(fontsize=8, ncols=3, loc="lower right")
    for axis in axes[-1]:
        axis.set_xlabel("wavelength in air [Å]")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(folder: Path, *, short: bool) -> None:
    """synth.md from the JSON files in `folder`."""
    read = lambda name: json.loads((folder / f"{name}.json").read_text())  # noqa: E731
    grid, phoenix, one, every = (read(n) for n in ("lte_grid", "phoenix", "one_core", "all_cores"))
    versions = f"jax {jax.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}"
    lines = [
        "## The embedded library against full synthesis",
        "",
        f"`python -m benchmarks.bench_synth --output=...{' --short' * short}`, commit {commit()}, "
        f"{processor()}, {versions}.",
        "",
        "Correlation of pixels, node by node; rms and mean of the difference of the normalised fluxes (medians):",
        "",
        "| against | nodes | median | least | at Teff, log g, [M/H] | below 0.80 | rms | mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in (("lte_grid, R = 11,000", grid), ("PHOENIX MedRes, R = 10,000", phoenix)):
        r = np.array(found["correlation"])
        worst = ", ".join(f"{x:g}" for x in found["labels"][int(r.argmin())])
        lines.append(
            f"| {name} | {len(r)} | {np.median(r):.3f} | {r.min():.3f} | {worst} | {np.mean(r < 0.8):.0%} | "
            f"{np.median(found['rms']):.3f} | {np.median(found['mean_difference']):+.3f} |"
        )
    lines += ["", f"PHOENIX HiRes file, 5000-5750 Å at R = 11,000: correlation {phoenix['hires']:.3f}."]
    lines += _by_label(grid)
    for title, found in (("lte_grid", grid), ("PHOENIX MedRes", phoenix)):
        lines += [
            "",
            f"Equivalent widths and their derivatives, ours over {title}: median (16th to 84th percentile); and the "
            "fraction of derivatives with the same sign, of all pairs of neighbours and of those where the reference "
            "changes by more than 1 % of the width.",
            "",
            "| band | width | derivative | factor | same sign, all | same sign, clear | pairs |",
            "|---|---|---|---|---|---|---|",
        ]
        for band, values in found["bands"].items():
            for i, (label, d) in enumerate(values["derivatives"].items()):
                width = _spread(values["ratio"]) if i == 0 else ""
                lines.append(
                    f"| {band if i == 0 else ''} | {width} | {NAMES[label]} | {_spread(d['ratio'])} | "
                    f"{d['same_sign']:.0%} | {d['clear_same_sign']:.0%} | {d['pairs']} |"
                )
    lines += ["", "Spectra per second of 22,501 pixels, points per pixel 1 and 2:", ""]
    lines += ["| cores | wall, 1 | wall, 2 | CPU time, 1 | CPU time, 2 |", "|---|---|---|---|---|"]
    for found in (one, every):
        rates = [found[n][clock] for clock in ("wall", "cpu") for n in ("1", "2")]
        lines.append(f"| {found['cores']} | " + " | ".join(f"{x:.0f}" for x in rates) + " |")
    lines += ["", "![Four stars, ours and the grid's, and the difference](synth.png)", ""]
    text = "\n".join(lines)
    (folder / "synth.md").write_text(text)
    print(text)


def _by_label(found: dict) -> list[str]:
    """Median and least correlation at every value of every label."""
    labels, r = np.array(found["labels"]), np.array(found["correlation"])
    lines = ["", "Against lte_grid, by label:", "", "| label | median (least) at each value |", "|---|---|"]
    for i, name in enumerate(NAMES.values()):
        cells = []
        for value in np.unique(labels[:, i]):
            some = r[labels[:, i] == value]
            cells.append(f"{value:g}: {np.median(some):.2f} ({some.min():.2f})")
        lines.append(f"| {name} | {', '.join(cells)} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"
