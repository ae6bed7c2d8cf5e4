"""The flag FAR: how well are spectra unlike the references told from normal stars, kind by kind?

    python -m benchmarks.bench_far --workdir=workdirs/fgk_r1800

Needs MILES, the real files of the data root's folder `surveys`, and a working folder of `configs/fgk_r1800.py` (or
another network of MILES) in which `launch.references` has run. Every labelled star is judged in the fold that tests
it, by references, tolerances and a threshold in which it has no part; odd spectra are made of these stars
(`benchmarks/odd_kinds.py`) and judged in the same way. Real files are judged as `launch.predict` judges them. Prints
Markdown: AUC against normal stars, the share that is caught at the threshold, both with 95 % intervals.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy.stats import rankdata

from benchmarks.bench_surveys import stars as single_stars
from benchmarks.odd_kinds import NORMAL, ODD, Star
from launch import cli
from remap import io, surveys
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import Flag
from remap.predict.familiar import Familiar, Sheets, learn
from remap.predict.loading import load
from remap.predict.predictor import Predictor
from remap.predict.references import bridged
from remap.preprocess.grid import usable
from remap.preprocess.observe import observe
from remap.preprocess.observed import Observed
from remap.spectra import Spectra
from remap.store.stars import readable_stars
from remap.store.workdir import load_survey

COUNT = flags.DEFINE_integer("count", 40, "Spectra of every odd kind per fold.")
SEED = 0


class Bench:
    """Judges spectra without those of a fold's test stars."""

    def __init__(self, predictor: Predictor, workdir: Path) -> None:
        self.predictor, self.known, self.workdir = predictor, predictor.known, workdir
        self.sizes = [len(predictor.preprocessing.wave(arm)) for arm in predictor.networks]
        self.count = int(np.count_nonzero(self.known.star_ids != ""))

    def learned(self, keep: np.ndarray) -> Familiar:
        """From the stars bool[stars] among the references, and the library."""
        rows = np.flatnonzero(keep)
        pools = {"stars": rows, "library": np.arange(self.count, len(self.known.sheets.flux))}
        flux = np.asarray(self.known.sheets.flux[rows], np.float32)
        own = self.known.groups(self.known.star_ids[rows])
        groups = own[0], own[1][: len(self.known.sheets.flux)]
        stars = Sheets(flux, self.known.sheets.valid[rows])
        settings = self.known.familiar.settings
        found = learn(stars, self.known.sheets, pools, settings, self.sizes, groups)
        if found is None:
            raise ValueError(f"{len(rows)} stars are too few")
        return found

    def sheets(self, inputs: dict[str, ArmInputs]) -> Sheets:
        """Normalised spectra of all arms, side by side."""
        flux, valid = [], []
        for arm, x in inputs.items():
            normal = self.predictor.normalize_arm(arm, x).flux
            used = usable(x.flux, x.valid, min_coverage=self.predictor.config["predict"]["min_coverage"])
            flux.append(bridged(normal, x.valid))
            valid.append(x.valid & used[:, None])
        return Sheets(np.concatenate(flux, axis=1), np.concatenate(valid, axis=1))

    def observed(self, spectra: Sequence[Spectra]) -> Sheets:
        """Of spectra at rest in memory."""
        settings = dataclasses.replace(self.predictor.observe_settings, velocity="rest", check=False)
        found = observe(
            [[s] for s in spectra],
            self.predictor.preprocessing,
            settings=settings,
            templates=self.predictor.templates,
        )
        return self.on_grid(found)

    def on_grid(self, observed: Observed) -> Sheets:
        """Of spectra on the arms' grids."""
        return self.sheets({arm: ArmInputs(on.flux, on.valid, on.snr) for arm, on in observed.arms.items()})

    def margin(self, familiar: Familiar, sheets: Sheets) -> np.ndarray:
        """float[S]: score less threshold; NaN = could not be judged."""
        return familiar.judge(sheets, self.known.sheets).score - familiar.threshold


def main() -> None:
    workdir = Path(cli.WORKDIR.value)
    predictor = load(workdir)
    logging.getLogger("remap").setLevel(logging.ERROR)
    if predictor.known is None or predictor.known.familiar is None:
        raise SystemExit(f"{workdir}: run launch.references first")
    bench = Bench(predictor, workdir)
    normal, odd = simulated(bench, workdir)
    good = normal["as observed"]
    print(
        "**Normal stars**, each judged without itself: false alarms\n\n| spectra | n | flagged |\n|---|---|---|"
    )
    for name, values in normal.items():
        print(f"| {name} | {len(values)} | {share(values)} |")
    for line in dwarfs_alone(bench):
        print(line)
    for line in surveys_of_others(bench):
        print(line)
    print("\n**Odd spectra**\n\n| kind | n | AUC | caught |\n|---|---|---|---|")
    for name, values in {**odd, **own_outliers(bench, workdir)}.items():
        print(f"| {name} | {len(values)} | {auc(values, good)} | {share(values)} |")
    print("\n**Real files**: score less threshold, above 0 = far\n")
    print("| star | file of | score | flags |\n|---|---|---|---|")
    for line in singles(bench):
        print(line)


def simulated(bench: Bench, workdir: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Margins of normal and odd spectra by kind, each star in the fold that tests it."""
    stars = _miles(bench, workdir)
    ids = list(stars)
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(ids))
    folds = 5
    normal: dict[str, list[np.ndarray]] = {name: [] for name in NORMAL}
    odd: dict[str, list[np.ndarray]] = {name: [] for name in ODD}
    star_ids = bench.known.star_ids[: bench.count]
    for fold in range(folds):
        test = [ids[i] for i in order[fold::folds]]
        familiar = bench.learned(~np.isin(star_ids, test))
        mine = [stars[name] for name in test]
        for name, make in NORMAL.items():
            spectra = [s.with_flux(make(s, mine, rng)) for s in mine]
            normal[name].append(bench.margin(familiar, bench.observed(spectra)))
        for name, make in ODD.items():
            some = [mine[i] for i in rng.choice(len(mine), min(COUNT.value, len(mine)), replace=False)]
            spectra = [s.with_flux(make(s, mine, rng)) for s in some]
            odd[name].append(bench.margin(familiar, bench.observed(spectra)))
    return tuple({k: np.concatenate(v) for k, v in each.items()} for each in (normal, odd))


def _miles(bench: Bench, workdir: Path) -> dict[str, Star]:
    """Identifier -> spectrum of every star among the references."""
    survey, table = surveys.get("miles"), readable_stars(workdir)
    root = io.find_data("miles") / "spectra"
    known = set(bench.known.star_ids.tolist()) - {""}
    out = {}
    for row in table:
        if str(row["star_id"]) in known:
            spectrum = io.read(root / str(row["file"]), source=survey.source, within=(4500.0, 6100.0))
            labels = [float(row[k]) for k in ("teff", "logg", "feh")]
            out[str(row["star_id"])] = Star(spectrum, *labels)
    return out


def dwarfs_alone(bench: Bench) -> Iterator[str]:
    """False alarms on giants when no giant is labelled."""
    stars = slice(0, bench.count)
    logg = bench.known.labels[stars, bench.known.label_names.index("logg")]
    familiar = bench.learned(logg >= 3.5)
    giants = np.flatnonzero(logg < 3.5)
    sheets = Sheets(np.asarray(bench.known.sheets.flux[giants], np.float32), bench.known.sheets.valid[giants])
    found = bench.margin(familiar, sheets)
    yield f"| giants, dwarfs alone being labelled | {len(found)} | {share(found)} |"


def surveys_of_others(bench: Bench) -> Iterator[str]:
    """Spectra of LAMOST, at measured velocities, without flags of poor data but that of their resolution."""
    survey, predictor = surveys.get("lamost_lrs"), bench.predictor
    poor = int(Flag.UNREADABLE | Flag.MISSING_ARM | Flag.VELOCITY | Flag.EDGE)
    for folder in ("lamost_lrs", "lamost_repeats"):
        files = sorted((io.find_data("surveys") / folder / "spectra").iterdir())
        found = predictor.predict_files(files, survey=survey, velocities="measure")
        table = found.table
        limit = found.meta["references"]["far"]["threshold"]
        margin = np.asarray(table["far"], float) - limit
        clean = (np.asarray(table["flags"]) & poor) == 0
        for low, high in ((0, 10), (10, 20), (20, np.inf)):
            some = clean & (table["snr"] > low) & (table["snr"] <= high)
            if np.any(some):
                yield f"| {folder}, S/N {low} to {high} | {np.count_nonzero(some)} | {share(margin[some])} |"


def own_outliers(bench: Bench, workdir: Path) -> dict[str, np.ndarray]:
    """Margins of MILES's stars outside the limits of what is trained on."""
    table = readable_stars(workdir)
    inputs = {}
    for arm in bench.predictor.networks:
        survey, snr = load_survey(workdir, arm)
        inputs[arm] = ArmInputs(survey.flux, survey.valid, snr)
    found = bench.margin(bench.known.familiar, bench.sheets(inputs))
    teff, feh = (np.asarray(table[k], float) for k in ("teff", "feh"))
    known = np.isin(np.asarray(table["star_id"], str), bench.known.star_ids)
    kinds = {
        "M stars below 3,900 K": teff < 3900,
        "above 7,000 K": teff > 7000,
        "[Fe/H] below -2.5": feh < -2.5,
    }
    return {f"MILES: {name}": found[some & ~known] for name, some in kinds.items() if np.any(some & ~known)}


def singles(bench: Bench) -> Iterator[str]:
    """One row per single star of `bench_surveys`."""
    root = io.find_data("surveys")
    for star in single_stars():
        folder = root / star.folder
        file = folder / star.file if star.file else io.list_files(folder, star.survey.patterns)[0]
        velocities = "rest" if star.survey.frame == "rest" else "measure"
        found = bench.predictor.predict_files([file], survey=star.survey, velocities=velocities)
        margin = float(found.table["far"][0]) - found.meta["references"]["far"]["threshold"]
        raised = ", ".join(f.name for f in Flag if found.table["flags"][0] & f) or "none"
        yield f"| {star.name} | {star.folder} | {margin:+.1f} | {raised} |"


def share(margin: np.ndarray) -> str:
    """Of spectra above 0, with Wilson's 95 % interval."""
    known = margin[np.isfinite(margin)]
    n, k, z = len(known), int(np.count_nonzero(known > 0)), 1.96
    if not n:
        return "-"
    p = k / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return f"{p:.3f} ({max(middle - half, 0):.3f} to {min(middle + half, 1):.3f})"


def auc(bad: np.ndarray, good: np.ndarray, *, resamples: int = 500) -> str:
    """Chance that an odd spectrum scores above a normal one, with the 95 % interval of a bootstrap."""
    bad, good = bad[np.isfinite(bad)], good[np.isfinite(good)]
    rng = np.random.default_rng(SEED)

    def value(x: np.ndarray, y: np.ndarray) -> float:
        ranks = rankdata(np.r_[x, y])[: len(x)]
        return float((ranks.sum() - len(x) * (len(x) + 1) / 2) / (len(x) * len(y)))

    draws = [value(rng.choice(bad, len(bad)), rng.choice(good, len(good))) for _ in range(resamples)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{value(bad, good):.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
