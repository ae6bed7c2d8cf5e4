"""The paper's resolution on real stars: zero-shot networks of configs/fgk_r11000.py against the literature.

    python -m benchmarks.bench_high_resolution --workdir=workdirs/fgk_r11000 --others=workdirs/miles
    python -m benchmarks.bench_high_resolution --workdir=/tmp/short --argument=short       a few minutes, for tests

Runs preprocess and pretrain of the config in the working folder, if they have not finished there, and predicts
the sharp spectra of the data root's folder `surveys` (MIKE, HARPS, two of the Sun), each degraded to the networks.
`--others` are finished working folders, whose pre-trained networks see the same stars, degraded to theirs: what is
due to resolution shows in the difference. Both arms' own medians are given, because an arm that is off alone says
where to look. Writes high_resolution.md into the working folder.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
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
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain
from remap.store.workdir import read_config

ARGUMENT = flags.DEFINE_string("argument", "", "Of configs/fgk_r11000.py, for example 'lines,alpha'.")
OTHERS = flags.DEFINE_list("others", [], "Finished working folders whose networks see the same stars.")
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
        lines += table(load(folder, stage="pretrain"), root)
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


def sharp_stars() -> tuple[Star, ...]:
    """Stars with spectra sharper than R = 11,000 and labels from the literature."""
    return tuple(s for s in stars() if s.folder in FOLDERS and s.truth is not None)


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
