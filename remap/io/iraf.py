"""IRAF's spectra: `multispec` (every row of an image has an axis of its own) and `equispec` (all have the header's).

The format is that of `specwcs` (Valdes 1993, "The IRAF Spectral World Coordinate Systems", ASP Conf. Ser. 52, 467).
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.polynomial import chebyshev, legendre

from remap.config import ConfigError, Section
from remap.io import facts, image, segments
from remap.io.content import native_float, reading
from remap.io.declarations import check_source
from remap.io.fits_files import card, open_fits, pick_hdu
from remap.spectra import Spectra, SpectrumError

logger = logging.getLogger(__name__)

OPTIONAL = {"hdu": 0, "band": 0, "error_band": None, "facts": None, "line_spread": None}
CARD_TEXT = 68  # characters of a text in a FITS card
SAME = 0.9  # share of its wavelengths that a row has in common with another if they are fibres and not orders
MOST_TERMS = 1000


def read_iraf_spectra(
    path: Path, source: Section, *, within: tuple[float, float] | None = None
) -> tuple[Spectra, ...]:
    """Reads the spectra of an IRAF image `[N]`, `[orders, N]` or `[bands, orders, N]`: each order is a segment.

    What the header says of the axis is structure and not a guess here: `specN` of the cards WAT2_* holds the kind of
    the axis (linear, log10, or Chebyshev, Legendre, linear and cubic spline functions, pixel and sampled arrays), the
    number of its pixels and a Doppler factor, by which wavelengths are divided by 1 + z. Orders without a dispersion
    are left out.

    Rows that have more than nine tenths of their wavelengths in common, or whose names in APID1, APID2, ... differ,
    are no orders of one spectrum but spectra of their own, of the fibres of a field or of star and sky. Their names
    are "file[order1]", and the identifiers are those of APID, because OBJECT and the coordinates are the field's.

    Args:
      path: the file.
      source: format "iraf"; medium; wave_unit; hdu (default 0); band (default 0), and error_band, that of standard
        deviations, if any; facts and line_spread (see `remap.io.facts`).
      within: Å, in the medium of the source; orders outside are left out.

    Returns:
      One spectrum for each order or fibre, whose fact "segment" is "order" and the number of its aperture.

    Raises:
      SpectrumError: the file is broken, has no such axis, or one that makes no sense.
      ValueError: the declaration is wrong.
    """
    source = check_source(source, kind="iraf", required=("format", "medium", "wave_unit"), optional=OPTIONAL)
    for key in ("band", "error_band"):
        if source[key] is not None and (not isinstance(source[key], int) or source[key] < 0):
            raise ConfigError(f"source of iraf: {key} must be a number from 0, found {source[key]!r}")
    source["facts"] = facts.check_facts(source["facts"], "iraf")
    source["line_spread"] = facts.check_spread(source["line_spread"], "iraf")
    source["axis"] = "linear"
    with reading(path, "an IRAF spectrum"), open_fits(path) as hdus:
        found = list(_read(hdus, source, path))
    if not found:
        raise SpectrumError(f"{path}: expected orders with a dispersion, found none")
    if _are_fibres(found):
        logger.warning(
            "%s: its %d rows are not orders of one spectrum; each is taken by itself", path, len(found)
        )
        found = _apart(found, path)
    return segments.build_all([(segment, source) for segment, _ in found], path, within)


def _are_fibres(found: list[tuple[segments.Segment, str]]) -> bool:
    """Whether the rows of an image, with their APID, are several spectra and not the orders of one."""
    if len({name for _, name in found if name}) > 1:
        return True
    ends = np.sort([segment.coordinate[[0, -1]] for segment, _ in found], axis=1)
    low, high = ends[np.argsort(ends[:, 0])].T  # neighbours have the most in common
    with np.errstate(invalid="ignore"):
        common = np.minimum(high[:-1], high[1:]) - low[1:]
        return bool(np.any(common > SAME * np.minimum(high[:-1] - low[:-1], high[1:] - low[1:])))


def _apart(found: list[tuple[segments.Segment, str]], path: Path) -> list[tuple[segments.Segment, str]]:
    """The same as spectra of different names and stars."""
    often = collections.Counter(segment.facts["segment"][0] for segment, _ in found)
    out = []
    for row, (segment, star) in enumerate(found, 1):
        order = segment.facts["segment"][0]
        name = f"{path.name}[{order if often[order] == 1 else f'{order}#{row}'}]"
        told = segment.facts | {"star_id": np.array([star], dtype=object)}
        told |= {key: np.full(1, np.nan) for key in ("ra", "dec", "star_within")}
        out.append((dataclasses.replace(segment, names=(name,), facts=told), star))
    return out


def _read(
    hdus: fits.HDUList, source: Mapping[str, Any], path: Path
) -> Iterator[tuple[segments.Segment, str]]:
    """Every row with a dispersion, and its name in APID, "" where it has none."""
    hdu = pick_hdu(hdus, source["hdu"], path)
    if not hdu.is_image or hdu.data is None or hdu.data.size == 0 or hdu.data.ndim > 3:
        raise SpectrumError(f"{path}: expected an image of one to three dimensions in HDU {source['hdu']!r}")
    bands = hdu.data.reshape((1,) * (3 - hdu.data.ndim) + hdu.data.shape)
    for key in ("band", "error_band"):
        if source[key] is not None and source[key] >= len(bands):
            raise SpectrumError(f"{path}: expected a {key} {source[key]}, found {len(bands)} bands")
    orders, pixels = bands.shape[1:]
    for row, (name, wave) in enumerate(axes(hdu.header, orders, pixels, path)):
        if wave is None:
            continue
        used = slice(0, wave.size)
        error = None
        if source["error_band"] is not None:
            error = np.asarray(bands[source["error_band"], row, used], np.float64)
        told = facts.gather(source["facts"], path, hdus=hdus, hdu=source["hdu"], number=row + 1)
        segment = segments.Segment(
            coordinate=wave,
            flux=native_float(bands[source["band"], row, used]),
            error=error,
            spread=facts.fetch_spread(source["line_spread"], path, hdus, source["hdu"]),
            names=(path.name,),
            facts=segments.name_facts(told, {"segment": name if orders > 1 else ""}),
        )
        yield segment, str(hdu.header.get(f"APID{row + 1}", "")).strip()


def axes(
    header: fits.Header, orders: int, pixels: int, path: Path
) -> Iterator[tuple[str, np.ndarray | None]]:
    """The name of each order and its wavelengths, up to `[N]`; None where it has no dispersion."""
    scale = _number(header, "LTM1_1", path, 1.0)
    if not scale:
        raise SpectrumError(f"{path}: expected a step of pixels LTM1_1 in the header, found 0")
    pixel = (np.arange(1, pixels + 1) - _number(header, "LTV1", path, 0.0)) / scale
    kinds = f"{header.get('CTYPE1', '')} {_joined(header, 'WAT0')}".lower()
    if "multispe" not in kinds:
        yield from _equal(header, orders, pixels, path)
        return
    text = _joined(header, "WAT2")
    specs = {int(n): words for n, words in re.findall(r'spec(\d{1,6})\s*=\s*"([^"]*)"', text)}
    for row in range(1, orders + 1):
        if row not in specs:
            raise SpectrumError(
                f"{path}: expected spec{row} in the cards WAT2 of the header, found {len(specs)} of {orders}"
            )
        yield _order(specs[row].split(), pixel, path, row)


def _equal(
    header: fits.Header, orders: int, pixels: int, path: Path
) -> Iterator[tuple[str, np.ndarray | None]]:
    """All orders on the axis of the header; its DC-FLAG says whether that is log10."""
    # Whether it is log10 is DC-FLAG's to say, here alone.
    wave = image.header_axis(
        header, pixels, path, {"axis": "linear", "step_keyword": None, "reference_pixel": None}
    )
    if _number(header, "DC-FLAG", path, 0) == 1:
        with np.errstate(over="ignore"):
            wave = 10.0**wave
    for row in range(1, orders + 1):
        words = str(header.get(f"APNUM{row}", row)).split()
        yield f"order{words[0] if words else row}", wave


def _order(words: list[str], pixel: np.ndarray, path: Path, row: int) -> tuple[str, np.ndarray | None]:
    """One `specN`: aperture, beam, kind, first wavelength, step, pixels, Doppler factor, limits, and functions."""
    try:
        values = [float(w) for w in words[2:]]
        kind, start, step, count, doppler = int(values[0]), *values[1:5]
    except (ValueError, OverflowError, TypeError) as error:
        raise SpectrumError(
            f"{path}: expected numbers in spec{row} of the header, found {words[:8]}"
        ) from error
    name = f"order{words[0]}"
    if kind == -1:
        return name, None
    if not (1 <= count <= pixel.size) or not doppler > -1 or kind not in (0, 1, 2):
        raise SpectrumError(
            f"{path}: expected an axis of up to {pixel.size} pixels in spec{row} of the header, found kind {kind}, "
            f"{count:g} pixels and a Doppler factor {doppler:g}"
        )
    pixel = pixel[: int(count)]
    wave = start + step * (pixel - 1)
    if kind == 1:
        with np.errstate(over="ignore"):
            wave = 10.0**wave
    if kind == 2:
        wave = _functions(values[7:], pixel, path, row)
    return name, wave / (1 + doppler)


def _functions(values: list[float], pixel: np.ndarray, path: Path, row: int) -> np.ndarray:
    """The weighted sum of the functions of an axis that is not linear."""
    wave, at = np.zeros(pixel.size), 0

    def take(count: int) -> list[float]:
        nonlocal at
        if count < 0 or at + count > len(values):
            raise SpectrumError(
                f"{path}: expected the functions of spec{row} in the header, found them cut after {len(values)} "
                "numbers"
            )
        at += count
        return values[at - count : at]

    while at < len(values):
        weight, offset, kind = take(3)
        if kind in (1, 2, 3, 4):
            order, low, high = take(3)
            terms = int(order) + {3: 3, 4: 1}.get(int(kind), 0)
            if not 1 <= order <= MOST_TERMS or not high > low:
                raise SpectrumError(
                    f"{path}: expected a function in spec{row}, found {order:g} terms over {low:g}-{high:g}"
                )
            coefficients = np.array(take(terms))
            if kind in (1, 2):
                x = (2 * pixel - (high + low)) / (high - low)
                value = (chebyshev.chebval if kind == 1 else legendre.legval)(x, coefficients)
            else:
                value = _spline(pixel, low, high, int(order), coefficients, cubic=kind == 3)
        elif kind == 5:
            (count,) = take(1)
            value = np.interp(pixel, np.arange(1, int(count) + 1), take(int(count)))
        elif kind == 6:
            (count,) = take(1)
            pairs = np.array(take(2 * int(count))).reshape(-1, 2)
            if len(pairs) < 2 or np.any(np.diff(pairs[:, 0]) <= 0):
                raise SpectrumError(f"{path}: expected increasing pixels in spec{row}, found {pairs[:3, 0]}")
            value = np.interp(pixel, pairs[:, 0], pairs[:, 1])
        else:
            raise SpectrumError(f"{path}: expected a function of kind 1 to 6 in spec{row}, found {kind:g}")
        wave += weight * (offset + value)
    return wave


def _spline(
    pixel: np.ndarray, low: float, high: float, pieces: int, coefficients: np.ndarray, *, cubic: bool
) -> np.ndarray:
    """IRAF's splines: s = pieces · (p - low) / (high - low) from one knot to the next, with a = 1 - b there."""
    s = np.clip((pixel - low) / (high - low) * pieces, 0, pieces)
    j = np.minimum(s.astype(int), pieces - 1)
    b = s - j
    a = 1 - b
    if not cubic:
        return a * coefficients[j] + b * coefficients[j + 1]
    basis = (a**3, 1 + 3 * a * (1 + a * b), 1 + 3 * b * (1 + a * b), b**3)
    return sum(c * coefficients[j + i] for i, c in enumerate(basis))


def _joined(header: fits.Header, name: str) -> str:
    """The text that IRAF has cut into cards NAME_001 and so on; blanks at the end of a card belong to it."""
    parts, i = [], 1
    while f"{name}_{i:03d}" in header:
        parts.append(str(header[f"{name}_{i:03d}"]).ljust(CARD_TEXT))
        i += 1
    return "".join(parts)


def _number(header: fits.Header, key: str, path: Path, default: float | None = None) -> float:
    value = card(header, key, path, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise SpectrumError(f"{path}: expected a number for {key} in the header, found {value!r}")
    return value
