"""Five networks per arm, their average as one, or one of them: what do they say otherwise, and what do they cost?

    python -m benchmarks.bench_members --workdir=workdirs/fgk_r1800

Fine-tuned networks of a working folder on LAMOST's repeated stars, which none was trained on. "All folds" is the
mean PMF; "average" has the mean of the weights over the folds (`launch.release --average`); "one fold" is the first
network alone. Differences of medians are in widths of "all folds"; those of "one fold" are the epistemic part that
folds show.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator

import numpy as np
from absl import flags
from astropy.table import Table

from benchmarks.bench_surveys import LABELS, UNITS, visit_pairs
from launch import cli
from remap import io, surveys
from remap.predict.ensemble import averaged
from remap.predict.loading import load
from remap.predict.predictor import Predictor

REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of which the median counts.")


def main() -> None:
    everyone = load(cli.WORKDIR.value, references=False)
    logging.getLogger("remap").setLevel(logging.ERROR)
    one = {
        arm: n._replace(members=n.members[:1], folds=n.folds[:1], steps=n.steps[:1])
        for arm, n in everyone.networks.items()
    }
    means = {arm: averaged(n) for arm, n in everyone.networks.items()}
    ways = {
        "all folds": everyone,
        "average": dataclasses.replace(everyone, networks=means),
        "one fold": dataclasses.replace(everyone, networks=one),
    }
    for line in table(ways):
        print(line)


def table(ways: dict[str, Predictor]) -> Iterator[str]:
    """Per way and label: how far from the first way, how wide, how alike between visits of a star; and the time."""
    survey, folder = surveys.get("lamost_lrs"), io.find_data("surveys") / "lamost_repeats"
    listed = Table.read(folder / "repeats.csv", format="ascii.csv")
    files = [folder / "spectra" / str(name) for name in listed["file"]]
    first = next(iter(ways.values()))
    settings = dataclasses.replace(first.observe_settings, velocity="measure", join=False)
    observed = first.observe_files(files, source=survey.source, settings=settings)
    found = {way: predictor.predict_observed(observed).table for way, predictor in ways.items()}
    pairs = visit_pairs(found["all folds"], np.asarray(listed["group"]))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS.value):  # one after the other, so that all meet the same machine
        for way, predictor in ways.items():
            began = time.perf_counter()
            predictor.predict_observed(observed)
            seconds[way].append(time.perf_counter() - began)
    yield f"{len(pairs)} pairs of visits of one star"
    yield ""
    columns = "median, rms difference / width | width over that of all folds | scatter between visits"
    yield f"| networks | label | {columns} | time over that of all folds |"
    yield "|---|---|---|---|---|---|"
    used, base = np.unique(pairs), np.median(seconds["all folds"])
    for way, own in found.items():
        for label in LABELS:
            width, mine = (
                np.asarray(t[f"{label}_p84"] - t[f"{label}_p16"], float)[used] / 2
                for t in (found["all folds"], own)
            )
            value = np.asarray(own[label], float)
            moved = (value - np.asarray(found["all folds"][label], float))[used] / width
            apart = np.abs(value[pairs[:, 0]] - value[pairs[:, 1]])
            scatter = f"{1.4826 * np.median(apart) / np.sqrt(2):.{UNITS[label] + (label != 'teff')}f}"
            yield (
                f"| {way} | {label} | {np.median(moved):+.2f}, {np.sqrt(np.mean(moved**2)):.2f} | "
                f"{np.median(mine / width):.2f} | {scatter} | {np.median(seconds[way]) / base:.2f} |"
            )


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
