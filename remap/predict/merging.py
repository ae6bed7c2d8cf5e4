"""Parts of a catalogue as one FITS file, byte for byte what one run would have written, in the memory of one part."""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyUserWarning

from remap.config import ConfigError
from remap.predict import fits_sums
from remap.predict.fits_format import bintable, from_bintable, provenance_image
from remap.predict.parquet_format import look_at_parquet

STREAM = "stream"  # the provenance's key that a part has and a catalogue does not
BLOCK = 2880  # bytes
# Columns that a catalogue has where one of its rows has a value, in their order, and what the others have then.
SOMETIMES = {"ra": np.nan, "dec": np.nan, "exposures": 1}


class Part(NamedTuple):
    """A catalogue that is part of one."""

    path: Path
    rows: int
    stream: dict[str, Any]  # what it says of itself: run, shard, order


def open_part(path: Path) -> Part:
    """A part without its rows.

    Raises:
      ConfigError: it is no catalogue, was cut short, or is not what was written, by its sums.
    """
    if path.suffix == ".parquet":
        rows, told = look_at_parquet(path)
        return Part(path, rows, told.get(STREAM, {}))
    if wrong := fits_sums.fault(path):
        raise ConfigError(f"{path}: damaged: {wrong}")
    with _opened(path) as hdus:
        try:
            rows = int(hdus["CATALOG"].header["NAXIS2"])
            told = json.loads(np.asarray(hdus["PROVENANCE"].data).tobytes())
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: expected a part of a catalogue ({error})") from error
    return Part(path, rows, told.get(STREAM, {}))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[fits.HDUList]:
    """A FITS file, whose errors are told as those of a catalogue."""
    with contextlib.ExitStack() as stack:
        try:
            # Opened here: where astropy stops in the middle of opening, it leaves the file open.
            file = stack.enter_context(path.open("rb"))
            with warnings.catch_warnings():
                warnings.simplefilter("error", AstropyUserWarning)  # that it is truncated
                hdus = stack.enter_context(fits.open(file, memmap=False))
                len(hdus)  # all headers are read, and the last one's end is looked at
        except Exception as error:  # there is no end to what damaged headers raise
            raise ConfigError(f"{path}: expected a part of a catalogue ({error})") from error
        yield hdus


def write_merged(file: BinaryIO, parts: Sequence[Part], places: Sequence[np.ndarray], date: str) -> None:
    """Writes the whole into an open file; for `remap.writing.write_files`.

    Args:
      places: int64[S] of every part: in which rows of the whole its rows belong.
      date: of the catalogue.
    """
    total = sum(part.rows for part in parts)
    with _opened(parts[0].path) as hdus:
        names = [hdu.name for hdu in hdus[1:]]
        primary = hdus[0].header.copy()
        edges = {hdu.name: hdu.copy() for hdu in hdus if hdu.name.startswith("EDGES_")}
        meta = json.loads(np.asarray(hdus["PROVENANCE"].data).tobytes())
    primary["NINPUT"], primary["DATE"] = total, date
    meta.pop(STREAM, None)
    meta |= {"inputs": total, "date": date}
    _header(file, primary)
    for name in names:
        if name == "CATALOG":
            _table(file, name, parts, places, total)
        elif name in edges:
            _small(file, edges[name])
        elif name == "PROVENANCE":
            _small(file, provenance_image(meta))
        else:
            _image(file, name, parts, places, total)
    fits_sums.sign(file)


def _small(file: BinaryIO, hdu: fits.ImageHDU) -> None:
    """An image that does not grow with the rows."""
    content = _pixels(hdu).tobytes()
    _header(file, hdu.header)
    file.write(content)
    _pad(file, len(content))


def _image(
    file: BinaryIO, name: str, parts: Sequence[Part], places: Sequence[np.ndarray], total: int
) -> None:
    """An image with a row for each spectrum, part by part, each row in its place."""
    with _opened(parts[0].path) as hdus:
        header = hdus[name].header.copy()
        width = header["NAXIS1"] * abs(header["BITPIX"]) // 8
    header["NAXIS2"] = total
    _header(file, header)
    begin = file.tell()
    for part, place in zip(parts, places, strict=True):
        with _opened(part.path) as hdus:
            rows = _pixels(hdus[name])
        for run in _runs(place):
            file.seek(begin + int(place[run.start]) * width)
            file.write(rows[run].tobytes())
    file.seek(0, 2)
    _pad(file, total * width)


def _pixels(hdu: fits.ImageHDU) -> np.ndarray:
    """An image as it is in the file, big-endian."""
    data = np.asarray(hdu.data)
    return data.astype(data.dtype.newbyteorder(">"))


def _table(
    file: BinaryIO, name: str, parts: Sequence[Part], places: Sequence[np.ndarray], total: int
) -> None:
    """A table with a row for each spectrum, part by part, each row in its place."""
    header, dtype = _layout(name, parts)
    header["NAXIS1"], header["NAXIS2"] = dtype.itemsize, total
    _header(file, header)
    begin = file.tell()
    for part, place in zip(parts, places, strict=True):
        with _opened(part.path) as hdus:
            own = _raw(hdus[name])
        rows = np.zeros(len(own), dtype)
        for column in dtype.names:
            rows[column] = own[column] if column in own.dtype.names else missing(dtype[column], column)
        for run in _runs(place):
            file.seek(begin + int(place[run.start]) * dtype.itemsize)
            file.write(rows[run].tobytes())
    file.seek(0, 2)
    _pad(file, total * dtype.itemsize)


def _raw(hdu: fits.BinTableHDU) -> np.ndarray:
    """The rows as they are in the file: numbers big-endian, texts as bytes."""
    data = hdu.data
    return np.asarray(data.view(np.ndarray)) if len(data) else np.zeros(0, data.dtype)


def _runs(place: np.ndarray) -> Iterator[slice]:
    """Rows that follow each other in the whole as well."""
    starts = [0, *(np.flatnonzero(np.diff(place) != 1) + 1).tolist(), len(place)]
    for first, last in itertools.pairwise(starts):
        if last > first:
            yield slice(first, last)


def _layout(name: str, parts: Sequence[Part]) -> tuple[fits.Header, np.dtype]:
    """Header and columns that hold the rows of all parts."""
    columns = []
    owner: dict[str, Path] = {}  # of a column, a part that has it
    for part in parts:
        with _opened(part.path) as hdus:
            columns.append({c: hdus[name].columns.dtype[c] for c in hdus[name].columns.names})
            owner = {column: part.path for column in columns[-1]} | owner
    names = merged_names([list(one) for one in columns])
    fields = []
    for column in names:
        widest = max((one[column] for one in columns if column in one), key=lambda dtype: dtype.itemsize)
        fields.append((column, widest.newbyteorder(">") if widest.kind not in "SU" else widest))
    dtype = np.dtype(fields)
    with _opened(parts[0].path) as hdus:
        header = hdus[name].header.copy()
    if list(columns[0]) != names:
        header = bintable(Table([_column(owner[column], name, column) for column in names]), name).header
    for n, column in enumerate(names, start=1):
        if dtype[column].kind == "S":
            header[f"TFORM{n}"] = f"{dtype[column].itemsize}A"
    return header, dtype


def _column(path: Path, name: str, column: str) -> Column:
    """The first row of a column of a part."""
    with _opened(path) as hdus:
        return from_bintable(hdus[name])[column][:1]


def merged_names(several: Sequence[Sequence[str]]) -> list[str]:
    """Names of columns that any of some tables has, in the order that the catalogue has them in."""
    out = list(several[0])
    for names in several[1:]:
        for i in reversed(range(len(names))):
            if names[i] not in out:  # before what comes after it there
                at = out.index(names[i + 1]) if i + 1 < len(names) else len(out)
                out.insert(at, names[i])
    there = [i for i, name in enumerate(out) if name in SOMETIMES]
    for i, name in zip(there, [name for name in SOMETIMES if name in out], strict=True):
        out[i] = name
    return out


def missing(dtype: np.dtype, name: str) -> Any:
    """What rows have in a column that their part lacks."""
    if name in SOMETIMES:
        return SOMETIMES[name]
    return {"f": np.nan, "S": b"", "U": ""}.get(dtype.kind, 0)


def _header(file: BinaryIO, header: fits.Header) -> None:
    file.write(header.tostring(sep="", endcard=True, padding=True).encode("ascii"))


def _pad(file: BinaryIO, size: int) -> None:
    file.write(bytes(-size % BLOCK))
