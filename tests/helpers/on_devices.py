"""One small training and one small prediction, as a process by itself does them on some devices, or with others.

    python tests/helpers/on_devices.py OUTPUT CACHE --devices=8
    python tests/helpers/on_devices.py OUTPUT CACHE --coordinator=localhost:PORT --process_count=2 --process_index=0

Writes OUTPUT/run (of `fit`) and OUTPUT/found.npz; of several processes the last is told to stop in its third epoch.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from remap import sharding
from remap.labels import LabelBins
from remap.network.losses import LossSettings
from remap.network.resnet import ModelSettings, init_variables, make_model
from remap.predict.arms import ArmInputs
from remap.predict.ensemble import Network, member_pmf
from remap.predict.predictor import Predictor
from remap.preprocess.description import PREPROCESSING_VERSION, Preprocessing
from remap.sampling.augment import AugmentSettings
from remap.sampling.batches import FinishedSource, StarSource, padded_rows
from remap.sampling.sources import Stars
from remap.train.loop import FitSettings, Fitted, Preempted, Run, fit
from remap.train.objectives import NetworkObjective, Task

PIXELS, STARS, BATCH = 64, 24, 16
BINS = (LabelBins("teff", 4000.0, 6000.0, 5, "K"), LabelBins("feh", -1.0, 0.0, 4, "dex"))
CONTINUUM = {"name": "chebyshev", "degree": 2, "low": 1.2, "high": 3.0, "iterations": 2}
PREPROCESSING = Preprocessing(
    {"A": (5000.0, 5000.0 + PIXELS, 1.0)}, "air", ("fwhm", (2.5,)), CONTINUUM, BINS, PREPROCESSING_VERSION
)
MASK = np.array([[True] * 5, [True] * 4 + [False]])
MODEL = make_model(
    ModelSettings(stem_filters=2, stem_kernel=3, stem_stride=2, filters=(2, 3), kernel=3, embedding=3), MASK
)
SETTINGS = FitSettings(cycles=2, epochs_per_cycle=15, checkpoint_epochs=100, rate_high=1e-2, stats_batches=2)
PREDICT = {"batch_size": 4, "small_batch_size": 4, "min_coverage": 0.5}


def spectra() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux float32[S, N], validity bool[S, N] and labels float32[S, L] of stars from a formula."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.uniform(4000, 6000, STARS), rng.uniform(-1, 0, STARS)], axis=1).astype(np.float32)
    pixel = np.arange(PIXELS)
    depth = (
        0.3 + 0.2 * (labels[:, :1] - 5000) / 1000 * np.cos(pixel) + 0.1 * labels[:, 1:] * np.sin(pixel / 2)
    )
    flux = (1 + 0.002 * pixel) * (1 - depth * (pixel % 8 == 0))
    flux = flux * (1 + 0.01 * rng.standard_normal(flux.shape))
    return flux.astype(np.float32), rng.uniform(size=flux.shape) > 0.02, labels


def train(folder: Path, *, batch: int = BATCH, on_epoch=None) -> Fitted:
    """A network trained on noisy draws of the stars, with dropout and a validation batch."""
    flux, valid, labels = spectra()
    edges = jnp.asarray(np.stack([b.edges if b.bins == 5 else np.append(b.edges, b.edges[-1]) for b in BINS]))
    edges = edges.astype(jnp.float32)
    errors = np.full_like(labels, [100.0, 0.1])
    stars = Stars(*map(jnp.asarray, (flux, valid, labels, errors)))
    rows, count = padded_rows(np.ones(STARS, bool))
    wave = jnp.asarray(PREPROCESSING.wave("A"), jnp.float32)
    drawn = StarSource(stars, rows, count, wave, None, batch, AugmentSettings(tilt=0.1))
    source = FinishedSource(drawn, edges, PREPROCESSING.normalizer("A"))
    variables = init_variables(MODEL, jax.random.key(1), PIXELS)
    held = jax.jit(lambda source: source.draw(jax.random.key(2), jnp.zeros((), jnp.int32)))(source)
    task = Task(
        NetworkObjective(MODEL, LossSettings()), variables["params"], variables["batch_stats"], source, held
    )
    run = Run(SETTINGS, 1, jax.random.key(3), folder, {}, "small", on_epoch)
    return fit(task, run.optimizer(), run)


def trained_pmfs(fitted: Fitted) -> np.ndarray:
    """float32[L, S, K]: what a trained network says of the stars.

    Parameters may differ where nothing depends on them: of what batch normalisation takes out the gradient is
    rounding, and Adam makes whole steps of it.
    """
    flux, valid, _ = spectra()
    variables = {"params": fitted.params, "batch_stats": fitted.model_state}
    return np.asarray(member_pmf(variables, jnp.asarray(flux), jnp.asarray(valid), model=MODEL))


def predict() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised flux, PMFs and the normaliser's flags of two networks without training."""
    flux, valid, _ = spectra()
    members = tuple(init_variables(MODEL, jax.random.key(i), PIXELS) for i in (4, 5))
    predictor = Predictor(PREPROCESSING, {"A": Network(MODEL, members, (0, 1), (0, 0))}, {"predict": PREDICT})
    inputs = ArmInputs(flux[:7], valid[:7], np.full(7, 100.0))
    found = predictor.predict_arm("A", inputs)
    return predictor.normalize_arm("A", inputs).flux, found.pmf, found.trouble


def main(output: str, cache: str, *arguments: str) -> None:
    given = dict(each.removeprefix("--").split("=") for each in arguments)
    numbers = {name: int(given.pop(name)) for name in list(given) if name != "coordinator"}
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    sharding.start(**given, **numbers)

    def stop(epoch: int, _: object) -> None:
        """In the last process alone; the others hear of it a little later, so that there must be epochs left."""
        if epoch == 3 and jax.process_index() == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if epoch >= 3:
            time.sleep(0.2)

    flux, pmf, trouble = predict()
    told, trained = "", np.zeros(0)
    try:
        trained = trained_pmfs(train(Path(output) / "run", on_epoch=stop if sharding.several() else None))
    except Preempted as stopped:
        told = str(stopped)
    print(f"{jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices: {told}")
    if sharding.writes():
        np.savez(Path(output) / "found.npz", flux=flux, pmf=pmf, trouble=trouble, trained=trained)


if __name__ == "__main__":
    main(*sys.argv[1:])
