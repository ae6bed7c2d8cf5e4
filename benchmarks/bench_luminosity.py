"""Dwarf or giant: how often is the class right, and does the probability mean what it says?

    python -m benchmarks.bench_luminosity --workdir=workdirs/fgk_r1800

Needs a working folder in which `launch.evaluate` has run. Every labelled star is predicted by networks that never saw
it; the truth is the class (Ciardi et al. 2011) of its known labels. Stars whose label lies within `--margin` standard
errors of the line between the classes are counted apart. Prints Markdown, with 95 % Wilson intervals.
"""

import itertools
from pathlib import Path

import numpy as np
from absl import flags
from scipy.stats import norm

from launch import cli
from remap.pmf.luminosity import dwarf_giant
from remap.predict.catalogue import read_catalogue
from remap.store.stars import labelled_rows, readable_stars

MARGIN = flags.DEFINE_float(
    "margin", 2.0, "Standard errors of log g from the line within which the truth is open."
)
BINS = (0.0, 0.02, 0.2, 0.5, 0.8, 0.98, 1.0)


def wilson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927); NaN without any."""
    if not count:
        return float("nan"), float("nan")
    z, p = norm.ppf((1 + level) / 2), hits / count
    middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(middle - half), float(middle + half)


def share(hits: int, count: int) -> str:
    """A share with its interval."""
    low, high = wilson(hits, count)
    return f"{hits / count:.3f} ({low:.3f} to {high:.3f})" if count else "-"


def main() -> None:
    workdir = Path(cli.WORKDIR.value)
    found, stars = read_catalogue(workdir / "evaluate" / "finetune.fits").table, readable_stars(workdir)
    stars = stars[labelled_rows(workdir, stars)]
    teff, logg, error = (np.asarray(stars[name], float) for name in ("teff", "logg", "logg_err"))
    known = np.isfinite(teff) & np.isfinite(logg) & np.isfinite(found["dwarf_probability"])
    known &= np.array([status == "ok" for status in stars["status"]])
    truth = dwarf_giant(np.where(known, teff, 5000.0), np.where(known, logg, 4.0)) == "dwarf"
    reach = MARGIN.value * np.where(np.isfinite(error), error, 0.0)
    sides = [
        dwarf_giant(np.where(known, teff, 5000.0), np.where(known, logg + s * reach, 4.0)) for s in (-1, 1)
    ]
    clear = known & (sides[0] == sides[1])
    said = np.asarray(found["luminosity_class"]) == "dwarf"
    probability = np.asarray(found["dwarf_probability"], float)
    print("| stars | n | class right |")
    print("|---|---|---|")
    for name, rows in (
        ("dwarfs", clear & truth),
        ("giants", clear & ~truth),
        ("near the line", known & ~clear),
    ):
        print(f"| {name} | {rows.sum()} | {share(int((said == truth)[rows].sum()), int(rows.sum()))} |")
    print("\n| dwarf_probability | n | mean | dwarfs among them |")
    print("|---|---|---|---|")
    for low, high in itertools.pairwise(BINS):
        rows = known & (probability >= low) & ((probability < high) | (high == 1.0))
        count = int(rows.sum())
        mean = f"{probability[rows].mean():.3f}" if count else "-"
        print(f"| {low:g} to {high:g} | {count} | {mean} | {share(int(truth[rows].sum()), count)} |")
    brier = float(np.mean((probability[known] - truth[known]) ** 2))
    print(f"\nBrier score of {known.sum()} stars: {brier:.4f}")


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
