"""Places in a file: which HDU, row or column holds a quantity, and which pixels a mask calls good.

A place is a mapping with some of the keys hdu (number or name), row (of an image or of a column whose cells are
arrays; a tuple of two for cubes) and column (of a table). What it leaves out has the values of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError
from remap.io import bintable
from remap.io.declarations import plain
from remap.io.fits_files import pick_hdu
from remap.spectra import SpectrumError

KEYS = ("hdu", "row", "column")


def check(place: Any, what: str, kind: str) -> dict[str, Any]:
    """A place as a dict: a number or text alone is an HDU; ConfigError where it has unknown keys."""
    place = plain(place)
    if isinstance(place, int | str):
        return {"hdu": place}
    if not isinstance(place, Mapping) or set(place) - set(KEYS):
        raise ConfigError(f"source of {kind}: {what} must be a place with the keys {KEYS}, found {place!r}")
    return dict(place)


def fetch(hdus: fits.HDUList, place: Mapping[str, Any], path: Path, *, what: str) -> np.ma.MaskedArray:
    """The numbers at a place, in the machine's byte order, nulls masked.

    Args:
      hdus: the open file.
      place: hdu, and row or column where needed.
      path: the file, for messages.
      what: is looked for, for messages.

    Returns:
      `[N]` of an image of one dimension or of a row; of a column as it is, `[rows]` or `[rows, N]`, or its `row`.

    Raises:
      SpectrumError: there is no such HDU, row or column, or it holds no numbers.
    """
    hdu, row = place.get("hdu", 0), place.get("row")
    found = pick_hdu(hdus, hdu, path)
    if place.get("column") is not None:
        values = column(found, place["column"], path)
        if row is None:
            return values
        if not 0 <= row < len(values):
            raise SpectrumError(
                f"{path}: expected row {row} of the column {place['column']!r} for {what}, found {len(values)} rows"
            )
        return np.ma.atleast_1d(values[row])
    if not found.is_image:
        raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found a table")
    data = found.data
    if data is None or data.size == 0:
        raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found no data")
    return np.ma.array(image_row(data, row, path, where=f"HDU {hdu!r}"))


def image_row(data: np.ndarray, row: int | tuple | None, path: Path, *, where: str) -> np.ndarray:
    """One row `[N]` of an image, in native byte order; without `row` the image must have but one.

    An image of one dimension is its own row 0, because writers drop an axis of length one.
    """
    rows = (row,) if isinstance(row, int) else tuple(row or ())
    if row is None:
        if data.shape[-1] != data.size:
            raise SpectrumError(
                f"{path}: expected a 1-D image [N] or [1, N] in {where}, found shape {list(data.shape)}; "
                "row says which row is meant"
            )
        return native(data.reshape(-1))
    shape = list(data.shape)
    while data.ndim - 1 > len(rows) and data.shape[0] == 1:
        data = data[0]
    while data.ndim - 1 < len(rows):
        data = data[None]
    if len(rows) != data.ndim - 1 or not all(0 <= r < n for r, n in zip(rows, data.shape, strict=False)):
        raise SpectrumError(f"{path}: expected a row {row} of an image in {where}, found shape {shape}")
    return native(data[rows])


def column(table: fits.BinTableHDU, name: str, path: Path) -> np.ma.MaskedArray:
    """A column of numbers as it stands, nulls masked. FITS does not tell upper from lower case in column names."""
    if table.is_image:
        raise SpectrumError(f"{path}: expected a table in HDU {table.name!r}, found an image or nothing")
    values = bintable.open_table(table, path).cells(name)
    if values.size == 0 or values.dtype.kind not in "biuf":
        kind = "text" if values.dtype.kind == "O" else values.dtype
        raise SpectrumError(
            f"{path}: expected a column {name!r} of N numbers, found {kind} of shape {list(values.shape)}"
        )
    return values


def native(values: np.ndarray) -> np.ndarray:
    """The same numbers in the machine's byte order."""
    return values.astype(values.dtype.newbyteorder("="))


def filled(values: np.ma.MaskedArray) -> np.ndarray:
    """The same numbers, NaN where masked; of the type of the file where nothing is."""
    return numbers(values) if np.ma.is_masked(values) else np.ma.getdata(values)


def numbers(values: np.ma.MaskedArray) -> np.ndarray:
    """float64 of the same shape, NaN where masked."""
    return values.astype(np.float64).filled(np.nan)


def good_pixels(
    mask: np.ma.MaskedArray | np.ndarray, path: Path, *, good: str, bits: int | None, what: str
) -> np.ndarray:
    """True for the pixels that a mask calls good.

    Bits that the type of the mask cannot hold are set nowhere. Masks stored as floating point (rows of an image)
    are taken as the integers that they are.

    Args:
      mask: of any shape.
      path: the file, for messages.
      good: "zero" or "nonzero": the values of a good pixel.
      bits: those of the mask that count; None = all.
      what: the name of the mask, for messages.

    Raises:
      SpectrumError: bits are asked for and the mask does not hold integers.
    """
    masked = np.ma.getmaskarray(mask)
    values = np.ma.getdata(mask)
    if values.dtype.kind == "f":
        known = np.isfinite(values)
        masked = masked | ~known
        values = np.where(known, values, 0)
        if bits is not None:
            if np.any(values != np.rint(values)) or np.any(np.abs(values) >= 2.0**53):
                raise SpectrumError(f"{path}: expected integers in {what} for mask_bits, found {mask.dtype}")
            values = values.astype(np.int64)
    if bits is not None and values.dtype.kind != "b":
        # As unsigned of the same width: the sign of an int16 is its bit 15 and of no other.
        unsigned = values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "i" else values
        width = 8 * unsigned.dtype.itemsize
        values = unsigned & unsigned.dtype.type(bits & ((1 << width) - 1))
    elif bits is not None:
        values = values & bool(bits & 1)
    return ((values == 0) == (good == "zero")) & ~masked
