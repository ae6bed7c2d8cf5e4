"""What the settings of `augment` that are for library spectra alone draw from, for the stages that draw from one."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from remap.config import ConfigError
from remap.continuum.common import NormalizeFn
from remap.preprocess.description import Preprocessing
from remap.sampling.augment import AugmentSettings
from remap.sampling.nuisances import AlphaResponse, Nuisances, fit_line_errors
from remap.sampling.sources import Library
from remap.store.atomic import save_arrays
from remap.synth.alpha import alpha_response, response_axes

logger = logging.getLogger(__name__)

# Points of the response, which is smooth in Teff and log g; with [Fe/H] lines saturate.
POINTS = {"teff": 5, "logg": 3, "feh": 5}


def library_nuisances(
    settings: AugmentSettings,
    library: Library,
    workdir: Path,
    preprocessing: Preprocessing,
    arm: str,
    normalize: NormalizeFn,
) -> Nuisances | None:
    """What library spectra of an arm are varied with; None where the settings ask for nothing of it.

    Args:
      library: all its cells, those of every library that is mixed in it.
      workdir: its folder data keeps the response to [α/Fe], which takes some 20 s to find.
      normalize: the arm's normaliser.

    Raises:
      ConfigError: one library alone, labels that are not there, or an arm that the model of [α/Fe] does not know.
    """
    lines = alpha = None
    if settings.lines > 0 or settings.lines_each > 0:
        lines = fit_line_errors(library, normalize, components=settings.lines_components)
        logger.info("arm %s: libraries differ by %.4f rms", arm, float(np.exp(0.5 * lines.scale[0])))
    if settings.alpha:
        alpha = read_response(workdir, preprocessing, arm)
    if lines is None and alpha is None:
        return None
    return jax.tree.map(jnp.asarray, Nuisances(lines, alpha))


def read_response(workdir: Path, preprocessing: Preprocessing, arm: str) -> AlphaResponse:
    """The response of an arm to [α/Fe], from `workdir`/data or, where that has none for this arm, made and kept.

    Raises:
      ConfigError: the labels lack Teff, log g or [Fe/H], or the model does not know the arm.
    """
    names = [b.name for b in preprocessing.labels]
    if missing := sorted(set(POINTS) - set(names)):
        raise ConfigError(
            f"augment.alpha: expected the labels {sorted(POINTS)}, found {names} without {missing}"
        )
    ranges = {b.name: (b.low, b.high) for b in preprocessing.labels if b.name in POINTS}
    axes = {name: response_axes(ranges, POINTS)[name].astype(np.float32) for name in POINTS}
    wave, fwhm = preprocessing.wave(arm), preprocessing.fwhm(arm)
    path = workdir / "data" / f"alpha_{arm}.npz"
    of = {"wave": wave, "fwhm": fwhm, "medium": np.array(preprocessing.medium), **axes}
    response = None
    if path.is_file():
        with np.load(path, allow_pickle=False) as found:
            if all(np.array_equal(found[name], value) for name, value in of.items()):
                response = found["response"]
    if response is None:
        points = np.array(list(itertools.product(*axes.values())), float)
        logger.info("arm %s: response to [α/Fe] at %d points", arm, len(points))
        response = alpha_response(points, wave, medium=preprocessing.medium, fwhm=fwhm).astype(np.float32)
        save_arrays(path, response=response, **of)
    columns = np.array([names.index(name) for name in POINTS], np.int32)
    return AlphaResponse(*axes.values(), columns, response)
