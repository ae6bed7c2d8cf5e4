"""Tables in the two formats of a catalogue, FITS and ECSV."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Column, Table

from remap.config import ConfigError

_FORMATS = {"f8": "D", "f4": "E", "i4": "J", "i8": "K"}


def bintable(table: Table, name: str) -> fits.BinTableHDU:
    """A table with its units and descriptions as a binary table extension; texts are escaped to ASCII.

    By hand, since astropy's own conversion warns about `dex`, and FITS has no other name for it.
    """
    columns = []
    for column in table.itercols():
        array, unit = np.asarray(column), None
        if array.dtype.kind == "U":
            array = np.array([text.encode("unicode_escape") for text in array.tolist()], dtype=bytes)
            form = f"{max(1, array.dtype.itemsize)}A"
        else:
            repeat = array.shape[1] if array.ndim == 2 else 1
            form = f"{repeat}{_FORMATS[array.dtype.str[1:]]}"
        if column.unit is not None:
            try:
                unit = column.unit.to_string("fits")
            except ValueError:
                unit = column.unit.to_string()
        columns.append(fits.Column(column.name, form, unit, array=array))
    hdu = fits.BinTableHDU.from_columns(columns, name=name)
    for n, column in enumerate(table.itercols(), start=1):
        if column.description:
            hdu.header[f"TCOMM{n}"] = column.description
    return hdu


def from_bintable(hdu: fits.BinTableHDU) -> Table:
    """The inverse of `bintable`."""
    table = Table()
    for n, column in enumerate(hdu.columns, start=1):
        array = np.asarray(hdu.data[column.name])
        if array.dtype.kind in "SU":
            escaped = array.astype(str).tolist()
            array = np.array([text.encode("ascii").decode("unicode_escape") for text in escaped], dtype=str)
        else:
            array = array.astype(array.dtype.newbyteorder("="))
        unit = u.Unit(column.unit) if column.unit else None
        table[column.name] = Column(array, unit=unit, description=hdu.header.get(f"TCOMM{n}"))
    return table


def ecsv_writer(table: Table) -> Callable[[BinaryIO], None]:
    """Writes a table as ECSV into an open file; for `store.atomic.write_files`."""

    def write(file: BinaryIO) -> None:
        text = io.StringIO()
        table.write(text, format="ascii.ecsv")
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))  # file names may be any bytes

    return write


def read_ecsv(path: Path) -> Table:
    """A table that `ecsv_writer` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no ECSV, or was cut short.
    """
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    try:
        table = Table.read(text, format="ascii.ecsv")
    except ValueError as error:
        raise ConfigError(
            f"{path}: expected a catalogue in ECSV, found no readable ECSV file ({error})"
        ) from error
    # Empty strings come back as masked; nothing else in a catalogue can be.
    return table.filled("") if table.has_masked_values else table
