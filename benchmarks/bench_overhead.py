"""Prediction of spectra in memory: what cleaning, checks and resampling add to normaliser and networks.

    python -m benchmarks.bench_overhead --network=fgk_r1800

Spectra are those that the network measures velocities with, drawn again and again, at S/N 50 on pixels of 1.2 Å.
Prints Markdown: medians of three, by the clock and of processor time, which is long where work is on several threads.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags

from launch import cli
from remap.predict.predictor import Predictor
from remap.preprocess.observe import observe
from remap.spectra import Spectra, make_spectra

NETWORK = cli.define_network()
COUNT = flags.DEFINE_integer("count", 2048, "Spectra.")
WAYS = (
    ("as it is", {}),
    ("without the check of velocities", {"check": False}),
    ("nor cosmic rays", {"check": False, "cosmic_rays": False}),
)


def spectra(predictor: Predictor, count: int) -> Spectra:
    """So many spectra of the library with noise."""
    templates = predictor.templates
    known = np.concatenate([templates.wave[arm] for arm in templates.wave])
    flux = 1 + np.concatenate([templates.flux[arm] for arm in templates.wave], axis=1)
    wave = np.arange(known[0], known[-1], 1.2)
    drawn = np.asarray(jax.random.randint(jax.random.key(0), (count,), 0, len(flux)))
    noise = np.asarray(jax.random.normal(jax.random.key(1), (count, wave.size)))
    seen = np.stack([np.interp(wave, known, one) for one in flux])[drawn] * (1 + 0.02 * noise)
    ivar = np.full(seen.shape, 2500.0)
    return make_spectra(wave, seen, medium=templates.medium, ivar=ivar, fwhm=wave / 1800)


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of processor time: medians of three, after one that compiles."""
    run()
    clock, processor = [], []
    for _ in range(3):
        begin, worked = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - begin)
        processor.append(time.process_time() - worked)
    return statistics.median(clock), statistics.median(processor)


def main() -> None:
    predictor = NETWORK.load(references=False)
    given = spectra(predictor, COUNT.value)
    ready = observe(
        [[given]], predictor.preprocessing, settings=predictor.observe_settings, templates=predictor.templates
    )
    networks = seconds(lambda: predictor.predict_arms(ready))
    arms = predictor.predict_arms(ready)
    rest = seconds(lambda: predictor.combine_observed(arms, ready))
    print(
        "| from arrays to the grids | ms a spectrum | over normaliser and networks | processor time | over theirs |"
    )
    print("|---|---|---|---|---|")
    for name, changes in WAYS:
        settings = dataclasses.replace(predictor.observe_settings, **changes)
        taken = seconds(
            lambda settings=settings: observe(
                [[given]], predictor.preprocessing, settings=settings, templates=predictor.templates
            )
        )
        cells = [f"{1000 * t / COUNT.value:.2f} | {t / n:.2f}" for t, n in zip(taken, networks, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    own, worked = (1000 * n / COUNT.value for n in networks)
    print(
        f"\nNormaliser and networks: {own:.2f} ms, {worked:.2f} of processor time; the catalogue: "
        f"{rest[0] / networks[0]:.2f} of it, {rest[1] / networks[1]:.2f} in processor time"
    )


if __name__ == "__main__":
    cli.run(main, required=())
