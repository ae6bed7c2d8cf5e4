"""Synthetic libraries over a grid of labels, in the arrays of an `.npz` library bundle."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from remap.config import ConfigError
from remap.spectra import air_to_vacuum
from remap.synth.atoms import ALPHA_ELEMENTS, ELEMENTS, LABELS
from remap.synth.blanketing import default_lines
from remap.synth.lines import LineList
from remap.synth.model import synthesize_batch
from remap.writing import check_writable, write_files

_CONTINUUM_STEP = 2.0  # Å: linear interpolation between such points is good to 1e-5


def grid_nodes(
    *,
    teff: Sequence[float],
    logg: Sequence[float],
    m_h: Sequence[float],
    vmic: tuple[float, float],
    logg_floor: Sequence[tuple[float, float]],
    alpha: Sequence[float] | None = None,
) -> Float[np.ndarray, "nodes labels"]:
    """Labels of all nodes where stars exist.

    Args:
      teff: effective temperatures, K.
      logg: surface gravities, dex of cm/s².
      m_h: metallicities, dex.
      vmic: (a, b): the microturbulence is a + b·log g, km/s.
      logg_floor: (T, g) pairs: from Teff = T up, nodes with log g < g are left out; for example
        ((5750, 2), (6500, 3)).
      alpha: [α/M], dex; None = no such axis.

    Returns:
      Columns teff, logg, m_h, vmic, and alpha as a fifth if given; teff varies slowest.

    Raises:
      ValueError: no node is left.
    """
    kept = [
        (t, g, m, vmic[0] + vmic[1] * g, *a)
        for t, g, m, a in itertools.product(teff, logg, m_h, [()] if alpha is None else [(a,) for a in alpha])
        if all(g >= floor for start, floor in logg_floor if t >= start)
    ]
    if not kept:
        raise ConfigError(
            f"no node is left of {len(teff)} teff x {len(logg)} logg x {len(m_h)} m_h above {logg_floor}"
        )
    return np.array(kept, np.float64)


def make_library(
    *,
    teff: Sequence[float],
    logg: Sequence[float],
    m_h: Sequence[float],
    vmic: tuple[float, float],
    logg_floor: Sequence[tuple[float, float]],
    wave_range: tuple[float, float],
    wave_step: float,
    oversample: int,
    chunk: int,
    lines: LineList | None = None,
    alpha: Sequence[float] | None = None,
) -> dict[str, np.ndarray]:
    """A synthetic library on a grid of labels; write it with `write_library`.

    Args:
      teff, logg, m_h, vmic, logg_floor: the nodes, see `grid_nodes`.
      wave_range: first and last pixel centre, Å in air.
      wave_step: pixel width, Å.
      oversample: monochromatic points per pixel, averaged; wave_step / oversample <= 0.03 Å is enough.
      chunk: spectra under way at a time; bounds the memory, see `synthesize_batch`.
      lines: None takes `default_lines()`.
      alpha: [α/M] of a fifth axis, dex, of the elements `ALPHA_ELEMENTS`; None = no such axis.

    Returns:
      wave_air, wave_vac: float64[N], Å.
      flux: float32[S, N], divided by the true continuum. With weak lines (`default_lines`) it stays below 1
        between the lines too, by about 4 % in the Sun and by more in cool stars rich in metals.
      cont_wave_air, continuum: float64[C] in Å, float32[S, C] in erg/s/cm²/Å; interpolate linearly.
      labels, label_names: float32[S, L], str[L]: teff, logg, m_h, vmic and, if asked for, alpha.

    Raises:
      ValueError: no node, labels or wavelengths outside the model's range, a range of fewer than two pixels.
    """
    nodes = grid_nodes(teff=teff, logg=logg, m_h=m_h, vmic=vmic, logg_floor=logg_floor, alpha=alpha)
    wave = pixel_grid(wave_range, wave_step)
    lines = default_lines() if lines is None else lines
    main, rest = np.split(nodes, [len(LABELS)], axis=1)
    flux, continuum = synthesize_batch(
        main,
        lines=lines,
        wave=wave,
        oversample=oversample,
        chunk=chunk,
        offsets=rest.sum(axis=1, keepdims=True) * np.isin(ELEMENTS, ALPHA_ELEMENTS),
    )
    stride = max(int(_CONTINUUM_STEP / wave_step), 1)
    at = np.unique(np.append(np.arange(0, wave.size, stride), wave.size - 1))
    return {
        "wave_air": wave,
        "wave_vac": air_to_vacuum(wave),
        "flux": flux,
        "cont_wave_air": wave[at],
        "continuum": continuum[:, at],
        "labels": nodes.astype(np.float32),
        "label_names": np.array(LABELS if alpha is None else (*LABELS, "alpha")),
    }


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuses a path that `write_library` would refuse, before the work is done.

    Raises:
      FileExistsError: it exists already.
      FileNotFoundError: its folder does not exist.
      ValueError: its name does not end in .npz.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"{path}: expected a name ending in .npz for the library")
    if path.exists():
        raise FileExistsError(f"{path}: exists already; a library is never overwritten")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder for {path.name}")
    check_writable(path)


def write_library(path: str | os.PathLike[str], library: Mapping[str, np.ndarray]) -> None:
    """Writes what `make_library` returns as an `.npz` bundle, whole or not at all; reads as any library.

    Raises:
      FileExistsError, FileNotFoundError, ValueError: see `check_output`.
    """
    check_output(path)
    write_files({Path(path): lambda file: np.savez(file, **library)})


def pixel_grid(wave_range: tuple[float, float], wave_step: float) -> Float[np.ndarray, " N"]:
    """Evenly spaced pixel centres, Å, from the first to the last wavelength, inclusive."""
    low, high = wave_range
    if not (wave_step > 0 and high - low >= wave_step):
        raise ConfigError(
            f"expected at least two pixels, found the range {low:g}-{high:g} Å in steps of {wave_step:g} Å"
        )
    return low + wave_step * np.arange(round((high - low) / wave_step) + 1)
