"""FITS files opened, once their structure is known to be sound: HDUs, images and cards."""

from __future__ import annotations

import contextlib
import contextvars
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.io.content import GZIP, is_packed, native_float, read_bytes, reading
from remap.io.fits_structure import START, check_fits, follow_file
from remap.io.limits import HINT, limits
from remap.spectra import SpectrumError

_OPENED: contextvars.ContextVar[tuple[Path, fits.HDUList] | None] = contextvars.ContextVar(
    "opened", default=None
)


def is_fits(path: Path) -> bool:
    """Whether a file begins as FITS does, gzipped or not; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(START))
        if start.startswith(GZIP):
            with gzip.open(path) as file:
                start = file.read(len(START))
    except (OSError, EOFError, zlib.error):
        return False
    return start == START


def open_fits(path: Path, *, pieces: bool = False) -> fits.HDUList:
    """Opens a plain or gzipped FITS file, whose sizes are checked against its headers before anything is read.

    Archives are decompressed whole, so that damage is noticed. A last block without its padding is padded. An image
    that `fpack` took from the primary HDU is HDU 0 again.

    Args:
      path: the file.
      pieces: leave on the disk what can be left there: sections of images are read when they are asked for.
    """
    before = _OPENED.get()
    if before is not None and before[0] == path:
        _OPENED.set(None)
        return before[1]
    if pieces and not is_packed(path):
        place = path.stat()
        if limits().largest is not None and place.st_size > limits().largest:
            raise SpectrumError(
                f"{path}: expected up to {limits().largest:.3g} bytes, found {place.st_size:.3g}{HINT}"
            )
        end, packed = follow_file(path, place.st_size, place.st_mtime_ns, limits())
        if end == place.st_size and not packed:
            return fits.open(path, memmap=False)
    content, packed = check_fits(read_bytes(path), path)
    hdus = fits.open(io.BytesIO(content), memmap=False)
    if packed:
        hdus = fits.HDUList(list(hdus)[1:])
    return hdus


@contextlib.contextmanager
def opened(path: Path, hdus: fits.HDUList | None) -> Iterator[None]:
    """Within it the first `open_fits` of a path gives what is open already, so that headers are parsed but once."""
    token = _OPENED.set(None if hdus is None else (path, hdus))
    try:
        yield
    finally:
        _OPENED.reset(token)
        if hdus is not None:
            hdus.close()


def pick_hdu(hdus: fits.HDUList, hdu: int | str, path: Path) -> fits.hdu.base._BaseHDU:
    """The HDU with a number or a name, or a SpectrumError that tells which there are.

    Where the primary HDU is empty and a compressed image the only other one, it is what HDU 0 means.
    """
    try:
        chosen = hdus[hdu]
    except (KeyError, IndexError) as error:
        there = ", ".join(f"{i} {h.name!r}" for i, h in enumerate(hdus))
        raise SpectrumError(f"{path}: expected HDU {hdu!r}, found {there}") from error
    if (
        hdu == 0
        and len(hdus) == 2
        and chosen.header.get("NAXIS") == 0
        and isinstance(hdus[1], fits.CompImageHDU)
    ):
        return hdus[1]
    return chosen


def read_image(path: Path, hdu: int | str) -> tuple[fits.Header, np.ndarray]:
    """Header and values float[N] of a one-dimensional FITS image; axes of length 1 are dropped."""
    with reading(path, f"a FITS file with a 1-D image in HDU {hdu!r}"), open_fits(path) as hdus:
        chosen = pick_hdu(hdus, hdu, path)
        if not chosen.is_image:
            raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found a table")
        if chosen.data is None or chosen.data.size == 0:
            raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found no data")
        header, shape, values = chosen.header, chosen.data.shape, native_float(chosen.data)
    if shape[-1] != values.size:
        raise SpectrumError(
            f"{path}: expected a 1-D image [N] or [1, N] in HDU {hdu!r}, found shape {list(shape)}"
        )
    return header, values.reshape(-1)


def card(header: fits.Header, key: str, path: Path, default: Any = None) -> Any:
    """Value of a header card, or the default; a SpectrumError where the card breaks the rules of FITS.

    Cards are parsed when they are asked for, so that a broken one that nobody needs does no harm.
    """
    try:
        return header.get(key, default)
    except fits.VerifyError as error:
        raise SpectrumError(
            f"{path}: expected a value of {key} in the header, found a broken card"
        ) from error
