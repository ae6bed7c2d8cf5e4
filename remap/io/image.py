"""One-dimensional FITS images whose wavelengths follow from the header (MILES, PHOENIX MedRes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from remap.config import Section
from remap.io import files
from remap.io.phoenix import phoenix_labels
from remap.spectra import Spectra, SpectrumError, make_spectra


def read_image_spectrum(path: Path, source: Section, within: tuple[float, float] | None = None) -> Spectra:
    """Reads one spectrum from a FITS image of shape [N] or [1, N].

    The coordinate of pixel i (from 0) is CRVAL1 + CD1_1 · (i + 1 - CRPIX1), with CDELT1 where there is no
    CD1_1, and the declared axis says whether it is λ, ln λ or log10 λ. CTYPE1, CUNIT1 and DC-FLAG are not
    consulted: they are wrong too often (PHOENIX MedRes is in vacuum and says AWAV-LOG). A missing CRPIX1
    means the first pixel, as in IRAF and in PHOENIX, whose files lack it, and not the 0 of the standard.

    Args:
      path: the file, `.fits` or `.fits.gz`.
      source: format "image"; medium; axis "linear", "ln" or "log10"; wave_unit; hdu (default 0).
      within: wavelengths that are wanted [Å, in the source's medium]; the others are dropped before any check.

    Returns:
      One spectrum in the medium declared; with labels where the header has PHOENIX's.

    Raises:
      SpectrumError: the file is broken, is no 1-D image, has no wavelength axis or contradicts the source.
      ValueError: the declaration is wrong.
    """
    source = files.check_source(
        source, kind="image", required=("format", "medium", "axis", "wave_unit"), optional={"hdu": 0}
    )
    header, flux = files.read_image(path, source["hdu"])
    step = files.card(header, "CD1_1", path)
    axis = {
        "CRVAL1": files.card(header, "CRVAL1", path),
        "CDELT1 or CD1_1": files.card(header, "CDELT1", path) if step is None else step,
        "CRPIX1": files.card(header, "CRPIX1", path, 1.0),
    }
    for key, value in axis.items():
        if not isinstance(value, int | float):
            raise SpectrumError(f"{path}: expected a number for {key} in the header, found {value!r}")
    start, step, reference = axis.values()
    values = start + step * (np.arange(flux.size) + 1 - reference)
    axis_of = {"axis": source["axis"], "wave_unit": source["wave_unit"]}
    keep = files.pixels_within(values, path, **axis_of, within=within)
    wave, flux = files.wavelengths(values[keep], path, **axis_of), flux[keep]
    return make_spectra(
        wave, flux, medium=source["medium"], names=[path.name], labels=phoenix_labels(header, path)
    )
