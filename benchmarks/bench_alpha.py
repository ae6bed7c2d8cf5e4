"""What does an [α/Fe] that the library lacks do to the labels that a network gives?

    python -m benchmarks.bench_alpha --workdir=workdirs/fgk_r1800 --stage=pretrain

Library spectra, without noise, as they are and with Mg, Si, Ca and Ti raised by `--alpha` (`remap.synth.alpha`), put
through the same networks. Metal-poor stars of the Galaxy have [α/Fe] of 0.3 to 0.4, scaled-solar libraries 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from astropy.table import Table

from benchmarks.bench_surveys import LABELS, STAGE, UNITS
from launch import cli
from remap.predict.arms import ArmInputs
from remap.predict.loading import load
from remap.predict.predictor import Predictor
from remap.sampling.nuisances import alpha_change
from remap.sampling.sources import draw_library, locate
from remap.stages.nuisances import read_response
from remap.store.workdir import load_library

ALPHA = flags.DEFINE_float("alpha", 0.3, "[α/Fe] of the raised spectra, dex.")
STARS = np.array(
    [
        (5800.0, 4.4, 0.0),
        (6200.0, 4.2, -0.3),
        (6100.0, 4.2, -1.2),
        (5500.0, 4.4, -1.2),
        (5000.0, 4.6, -1.0),
        (5000.0, 3.0, -0.5),
        (4600.0, 2.0, -1.0),
    ],
    np.float32,
)


def main() -> None:
    workdir = Path(cli.WORKDIR.value)
    for line in table(load(workdir, stage=STAGE.value, references=False, expert=False), workdir):
        print(line)


def table(predictor: Predictor, workdir: Path) -> Iterator[str]:
    """One row per star: what comes out otherwise than goes in, and how that moves."""
    plain, raised = (predict(predictor, workdir, alpha) for alpha in (0.0, ALPHA.value))
    yield "| star | " + " | ".join(f"{x}: out less in, moved by" for x in LABELS) + " |"
    yield "|---" * (1 + len(LABELS)) + "|"
    for i, star in enumerate(STARS):
        cells = []
        for label, known in zip(LABELS, star, strict=True):
            off, moved = plain[label][i] - known, raised[label][i] - plain[label][i]
            cells.append(f"{off:+.{UNITS[label]}f}, {moved:+.{UNITS[label]}f}")
        yield f"| {star[0]:.0f}, {star[1]:.1f}, {star[2]:.1f} | {' | '.join(cells)} |"


def predict(predictor: Predictor, workdir: Path, alpha: float) -> Table:
    """The catalogue of `STARS` from the first library of the working folder, with an [α/Fe]."""
    arms = {}
    for arm in predictor.preprocessing.arms:
        library = load_library(workdir, predictor.preprocessing, arm, interpolate=True)
        response = jax.tree.map(jnp.asarray, read_response(workdir, predictor.preprocessing, arm))
        cell, place = locate(library, STARS)
        middle = jnp.full(len(STARS), library.log_flux.shape[0] // 2)
        on_device = jax.tree.map(jnp.asarray, library)
        drawn = draw_library(on_device, middle, jnp.asarray(cell), jnp.asarray(place))
        flux = np.asarray(drawn.flux * jnp.exp(alpha * alpha_change(response, jnp.asarray(STARS))))
        flux = (flux / flux.max(axis=1, keepdims=True)).astype(np.float32)
        inputs = ArmInputs(flux, np.asarray(drawn.valid), np.full(len(STARS), np.nan))
        arms[arm] = predictor.predict_arm(arm, inputs)
    return predictor.combine(arms, [f"star {i}" for i in range(len(STARS))]).table


if __name__ == "__main__":
    cli.run(main, required=("workdir",))
