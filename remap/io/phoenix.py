"""PHOENIX-ACES HiRes spectra, whose wavelengths are in a file of their own (Husser 2013, A&A 553, A6)."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
from astropy.io import fits

from remap.config import Section
from remap.io import fits_files
from remap.io.axis import wavelengths
from remap.io.declarations import check_source
from remap.io.files import find_data
from remap.io.fits_files import card
from remap.spectra import Spectra, SpectrumError, make_spectra

# Keys of the declaration.
REQUIRED = ("format", "medium", "wave_unit", "wave_path")
OPTIONAL = {"hdu": 0}
LABEL_KEYS = {"teff": "PHXTEFF", "logg": "PHXLOGG", "feh": "PHXM_H", "alpha": "PHXALPHA"}


def read_phoenix_hires(path: Path, source: Section, data_root: str | os.PathLike | None = None) -> Spectra:
    """Reads one HiRes spectrum and the WAVE file that goes with it, which is read once and kept.

    Args:
      path: the flux file.
      source: format "phoenix_hires"; medium; wave_unit; wave_path, absolute, beside the flux file, or under
        the data root (see `find_data`); hdu (default 0).
      data_root: the data root.

    Returns:
      One spectrum in the unit of the file (erg/s/cm²/cm), with the labels of `phoenix_labels`.

    Raises:
      SpectrumError: a file is broken or missing, or the two differ in length.
      ValueError: the declaration is wrong.
    """
    source = check_source(source, kind="phoenix_hires", required=REQUIRED, optional=OPTIONAL)
    header, flux = fits_files.read_image(path, source["hdu"])
    beside = path.parent / source["wave_path"]
    try:
        wave_path = beside if beside.is_file() else find_data(source["wave_path"], root=data_root)
    except SpectrumError as error:
        raise SpectrumError(f"{path}: expected its wavelengths in a file of their own: {error}") from error
    if not wave_path.is_file():
        raise SpectrumError(f"{wave_path}: expected the wavelengths of {path.name}, found a folder")
    stat = wave_path.stat()
    wave = _read_wave(wave_path, stat.st_mtime_ns, stat.st_size, source["wave_unit"])
    if wave.size != flux.size:
        raise SpectrumError(f"{path}: expected {wave.size} pixels as in {wave_path}, found {flux.size}")
    return make_spectra(
        wave, flux, medium=source["medium"], names=[path.name], labels=phoenix_labels(header, path)
    )


def phoenix_labels(header: fits.Header, path: Path) -> dict[str, np.ndarray]:
    """The labels of a PHOENIX header, each float64[1]; no labels where it has none of the keywords.

    Teff in K, log g and [M/H] (called feh) and [α/M] in dex. The name of a file is no authority: those of
    the MedRes set say HiRes.
    """
    labels = {}
    for label, key in LABEL_KEYS.items():
        if key in header:
            value = card(header, key, path)
            if not isinstance(value, int | float) or not np.isfinite(float(value)):
                raise SpectrumError(f"{path}: expected a number for {key} in the header, found {value!r}")
            labels[label] = np.array([value], np.float64)
    return labels


@functools.lru_cache(maxsize=2)
def _read_wave(path: Path, mtime_ns: int, size: int, wave_unit: str) -> np.ndarray:
    """Wavelengths float64[N] in Å, read-only; time and size are there so that a changed file is read anew."""
    del mtime_ns, size
    _, values = fits_files.read_image(path, 0)
    wave = wavelengths(values, path, axis="linear", wave_unit=wave_unit)
    wave.flags.writeable = False
    return wave
