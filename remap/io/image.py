"""FITS images: one spectrum in a row, or rows and HDUs of flux, errors, masks and wavelengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import facts, places, segments
from remap.io.content import native_float, reading
from remap.io.declarations import check_choice, check_source
from remap.io.fits_files import card, open_fits, pick_hdu
from remap.io.phoenix import phoenix_labels
from remap.spectra import Spectra, SpectrumError

ARRAYS = ("flux", "ivar", "error", "mask", "wave")
OPTIONAL = {
    "hdu": 0,
    "row": None,
    **dict.fromkeys(ARRAYS),
    "mask_good": None,
    "mask_bits": None,
    "step_keyword": None,
    "reference_pixel": None,
    "error_kind": "absolute",
    "bad_error": None,
    **segments.COMMON,
}
STEPS = ("CD1_1", "CDELT1")


def read_image_spectra(
    path: Path, source: Section, *, within: tuple[float, float] | None = None, exposures: bool = True
) -> tuple[Spectra, ...]:
    """Reads the spectra of a FITS file of images, each a row.

    The coordinate of pixel i (from 0) is CRVAL1 + step · (i + 1 - CRPIX1), and the declared axis says whether it is
    λ, ln λ or log10 λ. The step is CD1_1, or CDELT1 · PC1_1, and where a header has both they must agree; a zero
    yields to the other. CTYPE1, CUNIT1 and DC-FLAG are not consulted: they are wrong too often (PHOENIX MedRes is in
    vacuum and says AWAV-LOG). A missing CRPIX1 means the first pixel, as in IRAF and in PHOENIX, whose files lack it,
    and not the 0 of the standard.

    Args:
      path: the file, plain, gzipped or packed by `fpack`.
      source: format "image"; medium; axis "linear", "ln" or "log10"; wave_unit; hdu (default 0) and row, those of the
        flux and the default of all other places; flux, ivar or error (standard deviation), mask, wave (coordinates in
        place of the header's), each a place (see `remap.io.places`); mask_good, "zero" or "nonzero": which values of
        the mask mean a good pixel; mask_bits, an integer that selects the bits that count (default all);
        step_keyword, "CD1_1" or "CDELT1", which of two that contradict each other is right; reference_pixel, in place
        of CRPIX1; error_kind, "absolute" or "relative" to the flux; bad_error, from which on an error means that
        nothing was measured; segments (see `remap.io.segments.expand`); facts and line_spread (see `remap.io.facts`).
      within: Å, in the medium of the source; pixels outside are dropped before anything is checked.
      exposures: False leaves out segments that are single exposures.

    Returns:
      The segments, each one spectrum, in the medium declared; with labels where the header has PHOENIX's.

    Raises:
      SpectrumError: the file is broken, has no such image or row, has no wavelength axis or contradicts the source.
      ValueError: the declaration is wrong.
    """
    source = check_source(
        source, kind="image", required=("format", "medium", "axis", "wave_unit"), optional=OPTIONAL
    )
    source = _check(source)
    hdu = source["hdu"]
    with (
        reading(path, f"a FITS file with a 1-D image in HDU {hdu!r}"),
        open_fits(path) as hdus,
    ):
        found = list(_read(hdus, source, path, exposures))
    return segments.build_all(found, path, within)


def _check(source: dict[str, Any]) -> dict[str, Any]:
    for name in ARRAYS:
        if source[name] is not None:
            source[name] = places.check(source[name], name, "image")
    if source["ivar"] is not None and source["error"] is not None:
        raise ConfigError("source of image: give ivar or error, not both")
    if source["mask"] is not None:
        check_choice(source, "mask_good", ("zero", "nonzero"), "image")
    elif source["mask_good"] is not None or source["mask_bits"] is not None:
        raise ConfigError("source of image: mask_good and mask_bits need a mask")
    if source["step_keyword"] is not None:
        check_choice(source, "step_keyword", STEPS, "image")
    check_choice(source, "error_kind", ("absolute", "relative"), "image")
    for name in ("reference_pixel", "bad_error"):
        if source[name] is not None and not isinstance(source[name], int | float):
            raise ConfigError(f"source of image: {name} must be a number, found {source[name]!r}")
    source["facts"] = facts.check_facts(source["facts"], "image")
    source["line_spread"] = facts.check_spread(source["line_spread"], "image")
    source["segments"] = segments.check_segments(source["segments"], (*ARRAYS, "row"), "image")
    return source


def _read(
    hdus: fits.HDUList, source: Mapping[str, Any], path: Path, exposures: bool
) -> Iterator[tuple[segments.Segment, Mapping[str, Any]]]:
    for one in segments.expand(source, hdus, path, exposures=exposures):
        hdu, row = one["hdu"], one["row"]
        arrays = {
            name: places.fetch(hdus, {"hdu": hdu, "row": row, **(one[name] or {})}, path, what=name)
            for name in ARRAYS
            if one[name] is not None or name == "flux"
        }
        flux = native_float(places.filled(arrays["flux"]))
        for name, values in arrays.items():
            if values.shape != flux.shape:
                raise SpectrumError(
                    f"{path}: expected {flux.size} values of {name}, found shape {list(values.shape)}"
                )
        chosen = {"hdu": hdu, **(one["flux"] or {})}["hdu"]
        header = pick_hdu(hdus, chosen, path).header
        if "wave" in arrays:
            coordinate = places.numbers(arrays["wave"])
        else:  # an axis for all images of a file may stand in its primary header
            where = hdus[0].header if "CRVAL1" in hdus[0].header and "CRVAL1" not in header else header
            coordinate = header_axis(where, flux.size, path, one)
        valid = None
        if "mask" in arrays:
            valid = places.good_pixels(
                arrays["mask"], path, good=one["mask_good"], bits=one["mask_bits"], what="the mask"
            )
        error = places.numbers(arrays["error"]) if "error" in arrays else None
        if error is not None and one["error_kind"] == "relative":
            error = error * np.abs(flux)
        told = facts.gather(one["facts"], path, hdus=hdus, hdu=chosen, number=one["number"])
        segment = segments.Segment(
            coordinate=coordinate,
            flux=flux,
            ivar=places.numbers(arrays["ivar"]) if "ivar" in arrays else None,
            error=error,
            valid=valid,
            spread=facts.fetch_spread(one["line_spread"], path, hdus, chosen, row, one["number"]),
            names=(path.name,),
            facts=segments.name_facts(told, one),
            labels=phoenix_labels(header, path),
        )
        yield segment, one


def header_axis(header: fits.Header, pixels: int, path: Path, source: Mapping[str, Any]) -> np.ndarray:
    """Coordinates float64[N] along the first axis of an image, as its header has them (see `read_image_spectra`)."""
    start = _number(header, "CRVAL1", path)
    reference = source["reference_pixel"]
    if reference is None:
        reference = _number(header, "CRPIX1", path, 1.0)
    steps = {key: _number(header, key, path, None) for key in STEPS}
    if steps["CDELT1"] is not None:
        rotation = _number(header, "PC1_1", path, 1.0)
        if steps["CD1_1"] is None or rotation:
            steps["CDELT1"] *= rotation
    there = {key: value for key, value in steps.items() if value is not None}
    told = {key: value for key, value in there.items() if value} or there
    if source["step_keyword"] is not None:
        told = {source["step_keyword"]: steps[source["step_keyword"]]}
    if not told or None in told.values():
        raise SpectrumError(f"{path}: expected a number for CDELT1 or CD1_1 in the header, found None")
    step = next(iter(told.values()))
    # What the two may differ by is what moves the last pixel by a tenth of one.
    if len(told) == 2 and abs(told["CD1_1"] - told["CDELT1"]) * pixels > 0.1 * abs(step):
        raise SpectrumError(
            f"{path}: expected one step along the axis, found CD1_1 = {told['CD1_1']:g} and CDELT1 = "
            f"{told['CDELT1']:g}; step_keyword says which is right"
        )
    coordinate = start + step * (np.arange(pixels) + 1 - reference)
    if source["axis"] == "log10" and source["step_keyword"] is None:
        _check_coefficients(header, coordinate, step, path)
    return coordinate


def _check_coefficients(header: fits.Header, coordinate: np.ndarray, step: float, path: Path) -> None:
    """SDSS and LAMOST write the axis twice: log10 λ of the first pixel and its step are COEFF0 and COEFF1 as well."""
    first, width = header.get("COEFF0"), header.get("COEFF1")
    if not all(isinstance(v, int | float) for v in (first, width)):
        return
    if (
        abs(first - coordinate[0]) > 0.1 * abs(step)
        or abs(width - step) * coordinate.size > 0.1 * abs(step)
        or not step
    ):
        raise SpectrumError(
            f"{path}: expected one axis in the header, found {coordinate[0]:.7g} with steps of {step:.7g} from "
            f"CRVAL1, and COEFF0 = {first:.7g} with COEFF1 = {width:.7g}; step_keyword says that the first is right"
        )


def _number(header: fits.Header, key: str, path: Path, *default: Any) -> Any:
    value = card(header, key, path, *default)
    if default and value is default[0]:
        return value
    shown = key if key not in STEPS else "CDELT1 or CD1_1"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpectrumError(f"{path}: expected a number for {shown} in the header, found {value!r}")
    if not np.isfinite(value):
        raise SpectrumError(f"{path}: expected a finite number for {shown} in the header, found {value!r}")
    return value
