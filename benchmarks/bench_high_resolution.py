"""The paper's resolution on real stars: zero-shot networks of configs/fgk_r11000.py against the literature.

    python -m benchmarks.bench_high_resolution --workdir=workdirs/fgk_r11000 --others=workdirs/miles
    python -m benchmarks.bench_high_resolution --workdir=/tmp/short --argument=short       a few minutes, for tests
    python -m benchmarks.bench_high_resolution --workdir=workdirs/fgk_r11000 --trials  where the differences come from

Runs preprocess and pretrain of the config in the working folder, if they have not finished there, and predicts
the sharp spectra of the data root's folder `surveys` (MIKE, HARPS, two of the Sun), each degraded to the networks.
`--others` are finished working folders, whose pre-trained networks see the same stars, degraded to theirs: what is
due to resolution shows in the difference. Both arms' own medians are given, because an arm that is off alone says
where to look. `--trials` changes the spectra (a line masked, a slope, noise) and tells how far each arm's labels
move. Writes high_resolution.md into the working folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.bench_surveys import LABELS, UNITS, Star, stars
from launch import cli
from remap import io
from remap.pmf.distributions import pmf_quantile
from remap.predict.catalogue import Flag
from remap.predict.loading import load
from remap.predict.predictor import Predictor
from remap.preprocess.observe import Observed
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.workdir import read_config

ARGUMENT = flags.DEFINE_string("argument", "", "Of configs/fgk_r11000.py, for example 'lines,alpha'.")
OTHERS = flags.DEFINE_list("others", [], "Finished working folders whose networks see the same stars.")
TRIALS = flags.DEFINE_bool("trials", False, "Tell how labels move when the spectra are changed.")
Change = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
FOLDERS = ("sun_image", "sun_text", "harps", "mike")  # sharp enough for R = 11,000


def main() -> None:
    workdir = Path(cli.WORKDIR.value)
    root = io.find_data("surveys")
    config = importlib.import_module("configs.fgk_r11000").get_config(ARGUMENT.value or None)
    if not (workdir / "data" / "preprocessing.json").is_file():
        preprocess(config, workdir)
    pretrain(config, workdir)
    logging.getLogger("remap").setLevel(logging.ERROR)
    lines = []
    for folder in (workdir, *map(Path, OTHERS.value)):
        lines += ["", f"**{read_config(folder)['name']}** ({folder.name})", ""]
        predictor = load(folder, stage="pretrain")
        lines += table(predictor, root)
        lines += ["", *trials(predictor, root)] if TRIALS.value else []
    text = "\n".join(lines).lstrip() + "\n"
    (workdir / "high_resolution.md").write_text(text)
    print(text)


def table(predictor: Predictor, root: Path) -> Iterator[str]:
    """One row per star and label: what is known, what is predicted from both arms and from each, and flags."""
    arms, bins = list(predictor.preprocessing.arms), {b.name: b for b in predictor.preprocessing.labels}
    alone = " | ".join(f"arm {arm} alone" for arm in arms)
    yield f"| star | label | literature | predicted | difference | {alone} | flags |"
    yield "|---" * (6 + len(arms)) + "|"
    differences: dict[str, list[float]] = {label: [] for label in LABELS}
    for star in sharp_stars():
        found = predictor.predict_files([root / star.folder / star.file], survey=star.survey)
        row = found.table[0]
        raised = ", ".join(f.name for f in Flag if row["flags"] & f) or "none"
        for label, known in zip(LABELS, star.truth, strict=True):
            form = f".{UNITS[label]}f"
            width = (row[f"{label}_p84"] - row[f"{label}_p16"]) / 2
            cells = [
                f"{known:{form}}",
                f"{row[label]:{form}} ± {width:{form}}",
                f"{row[label] - known:+{form}}",
            ]
            for arm in arms:
                pmf = found.pmfs[label, arm][0]
                known_arm = np.isfinite(pmf).all()
                cells.append(f"{pmf_quantile(pmf, found.edges[label], 0.5):{form}}" if known_arm else "")
            yield f"| {star.name} ({star.folder}) | {label} | {' | '.join(cells)} | {raised} |"
            if bins[label].low <= known <= bins[label].high:
                differences[label].append(abs(float(row[label]) - known))
    yield ""
    told = (
        f"{label} {np.nanmedian(values):.{UNITS[label]}f} ({len(values)} spectra)"
        for label, values in differences.items()
        if values
    )
    yield f"Median of the absolute differences, where the literature lies within the bins: {', '.join(told)}."


def trials(predictor: Predictor, root: Path) -> Iterator[str]:
    """One row per star and change of its spectrum: by how much each arm's labels move."""
    arms, rng = list(predictor.preprocessing.arms), np.random.default_rng(0)

    def masked(low: float, high: float) -> Change:
        return lambda wave, flux, valid: (flux, valid & ~((wave > low) & (wave < high)))

    def sloped(wave, flux, valid):
        return flux * (1 + 0.1 * (wave - wave.mean()) / np.ptp(wave)).astype(np.float32), valid

    def noisy(wave, flux, valid):
        return flux * (1 + 0.01 * rng.standard_normal(flux.shape)).astype(np.float32), valid

    changes: dict[str, Change] = {
        "core of Hβ masked (4 Å to both sides)": masked(4857.3, 4865.3),
        "all below 4,885 Å masked": masked(0.0, 4885.0),
        "4,900 to 4,908 Å masked, for comparison": masked(4900.0, 4908.0),
        "a slope of 10 % over the arm": sloped,
        "noise of 1 %": noisy,
    }
    heads = [f"arm {arm}: {', '.join(LABELS)}" for arm in arms]
    yield f"| star | change | {' | '.join(heads)} |"
    yield "|---" * (2 + len(arms)) + "|"
    for star in sharp_stars():
        observed = predictor.observe_files([root / star.folder / star.file], survey=star.survey)
        before = medians(predictor, observed)
        for name, change in changes.items():
            changed = {}
            for arm, on in observed.arms.items():
                flux, valid = change(predictor.preprocessing.wave(arm), on.flux, on.valid)
                changed[arm] = on._replace(flux=flux, valid=valid)
            after = medians(predictor, dataclasses.replace(observed, arms=changed))
            cells = [
                ", ".join(f"{after[arm][x] - before[arm][x]:+.{UNITS[x]}f}" for x in LABELS) for arm in arms
            ]
            yield f"| {star.name} ({star.folder}) | {name} | {' | '.join(cells)} |"


def medians(predictor: Predictor, observed: Observed) -> dict[str, dict[str, float]]:
    """Arm -> label -> the median of that arm alone, of a single spectrum; NaN where the arm is not used."""
    found = predictor.predict_observed(observed)
    return {arm: {x: float(found.table[f"{x}_{arm}"][0]) for x in LABELS} for arm in observed.arms}


def sharp_stars() -> tuple[Star, ...]:
    """Stars with spectra sharper than R = 11,000 and labels from the literature."""
    return tuple(s for s in stars() if s.folder in FOLDERS and s.truth is not None)


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
