"""The first answer: a network that comes with the package, on spectra that come with it; nothing is trained."""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np
from astropy.table import Table

from remap.config import ConfigError
from remap.pmf.metrics import residual_table
from remap.predict.catalogue import Catalogue
from remap.predict.release import load
from remap.preprocess.resample import line_fwhm
from remap.spectra import SPEED_OF_LIGHT, Spectra, make_spectra
from remap.train.keys import root_key

logger = logging.getLogger(__name__)

SNR, FASTEST = 50.0, 150.0  # per pixel; km/s


@dataclasses.dataclass(frozen=True)
class FirstAnswer:
    """What came of it.

    Attributes:
      catalogue: one row per spectrum.
      known: their labels and velocities, columns as in the catalogue.
      summary: one row per label and for the velocity: n, bias and robust scatter.
    """

    catalogue: Catalogue
    known: Table
    summary: Table


def first_answer(network: str, *, seed: int = 0) -> FirstAnswer:
    """Predicts the synthetic spectra that a network measures velocities with, given noise and velocities.

    They are of a library that the network began with; it was then trained on stars, so that what it says of them
    differs by what is wrong with the library.

    Args:
      network: a name of `remap.networks()`, or a folder.
      seed: of noise and velocities.

    Raises:
      FileNotFoundError: there is no such network.
      ConfigError: it has no such spectra.
    """
    predictor = load(network)
    templates = predictor.templates
    if templates is None:
        raise ConfigError(f"{network}: expected spectra of its library, found none")
    count, spreads = len(templates.labels), predictor.preprocessing.line_spreads()
    middle = spreads[len(spreads) // 2]
    speed = np.asarray(
        jax.random.uniform(root_key(seed, "first", "velocity"), (count,), minval=-FASTEST, maxval=FASTEST)
    ).astype(float)
    names = [f"synthetic {i:02d}" for i in range(count)]
    spectra = [
        [
            _spectrum(
                templates.wave[arm] * (1 + speed[i] / SPEED_OF_LIGHT),
                1.0 + np.asarray(templates.flux[arm][i], float),
                templates.medium,
                line_fwhm(middle, templates.wave[arm]),
                root_key(seed, "first", arm, i),
                names[i],
            )
            for arm in templates.wave
        ]
        for i in range(count)
    ]
    found = predictor.predict(spectra, velocities="measure")
    known = Table({"file": names, "rv": speed})
    for j, label in enumerate(predictor.labels):
        known[label] = np.asarray(templates.labels[:, j], float)
    rows = [
        {"label": name}
        | {k: residual_table(found.table[name], known[name])[k] for k in ("n", "bias", "robust")}
        for name in (*predictor.labels, "rv")
    ]
    summary = Table(rows=rows)
    for name in ("bias", "robust"):
        summary[name].info.format = ".2f"
    logger.info("first answer: %d spectra by the network %s", count, network)
    return FirstAnswer(found, known, summary)


def _spectrum(
    wave: np.ndarray, flux: np.ndarray, medium: str, fwhm: np.ndarray, key: jax.Array, name: str
) -> Spectra:
    noise = np.asarray(jax.random.normal(key, flux.shape)) / SNR
    ivar = np.full(flux.shape, SNR**2)
    return make_spectra(wave, flux + noise, medium=medium, ivar=ivar, names=[name], fwhm=fwhm)
