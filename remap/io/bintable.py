"""Binary tables straight from the bytes of a FITS file: single columns, checked against the file, and no more.

Astropy makes an object of every column of a table before it hands over one, which for tables of hundreds of columns
(those of SDSS and DESI) takes longer than everything else there is to read.
"""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from remap.io.wave_units import is_absurd
from remap.spectra import SpectrumError

SIZES = {"L": 1, "B": 1, "A": 1, "I": 2, "J": 4, "E": 4, "K": 8, "D": 8, "C": 8, "M": 16}  # bytes
NUMBERS = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "C": ">c8", "M": ">c16"}
# Kind and TZERO that stand for integers with or without a sign, which FITS does not have.
OTHER_SIGN = {("B", -128): "i1", ("I", 2**15): "u2", ("J", 2**31): "u4", ("K", 2**63): "u8"}
FORM = re.compile(r"(\d*)([LXBAIJKEDCMPQ])([LXBAIJKEDCM]?).*")
TEXT = re.compile(r"\s*'((?:[^']|'')*)'")
NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[EDed][+-]?\d+)?)\s*(?:/|$)")
CARD = re.compile(r"(TTYPE|TFORM|TUNIT|TNULL|TSCAL|TZERO|TDIM)([1-9]\d{0,2}) *$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """A column as the header describes it.

    Attributes:
      name: TTYPE.
      kind: the letter of TFORM; of the elements of the heap, where cells have a length of their own.
      repeat: elements in a cell.
      offset: bytes before it in a row.
      pointer: "P" or "Q" where the cells are in the heap, else "".
      unit: TUNIT, or "".
      null: TNULL, or None.
      scale: TSCAL.
      zero: TZERO.
      shape: TDIM in the order of numpy, or ().
    """

    name: str
    kind: str
    repeat: int
    offset: int
    pointer: str
    unit: str
    null: int | None
    scale: float
    zero: float
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinTable:
    """A binary table: its columns, and its bytes.

    Attributes:
      fields: lower-case name -> column; the first of a name counts.
      rows: their number.
      width: bytes of a row.
      heap: where it begins in `content`.
      content: bytes of all rows and the heap.
      path: the file, for messages.
    """

    fields: dict[str, Field]
    rows: int
    width: int
    heap: int
    content: bytes
    path: Path

    def field(self, name: str) -> Field:
        """The column of a name, in upper or lower case; SpectrumError that tells which there are."""
        if name.lower() not in self.fields:
            there = ", ".join(f.name for f in self.fields.values())
            raise SpectrumError(f"{self.path}: expected a column {name!r}, found {there}")
        return self.fields[name.lower()]

    def cells(self, name: str, row: int | None = None) -> np.ma.MaskedArray:
        """A column in the machine's byte order, nulls masked.

        Args:
          name: of the column.
          row: one row alone.

        Returns:
          `[rows]`, or `[rows, ...]` where cells are arrays; one cell with `row`, or with the only row of a column of
          cells of different lengths. Texts are `str` without the blanks at their end.

        Raises:
          SpectrumError: no such column or row, cells of bits, or of different lengths where no row is chosen.
        """
        field = self.field(name)
        if row is not None and not 0 <= row < self.rows:
            raise SpectrumError(
                f"{self.path}: expected row {row} of the column {field.name!r}, found {self.rows} rows"
            )
        if field.kind == "X":
            raise SpectrumError(f"{self.path}: expected a column {field.name!r} of N numbers, found bits")
        if not field.pointer:
            raw = self._raw(field.kind, field.repeat, field.offset, self.rows, self.width)
            raw = raw if row is None else raw[row : row + 1]
        elif row is None and self.rows != 1:
            raise SpectrumError(
                f"{self.path}: expected a column {field.name!r} of N numbers, found {self.rows} cells of different "
                "lengths; row says which row is meant"
            )
        else:
            raw = self._from_heap(field, row or 0)
        if field.kind == "A":
            texts = [bytes(r).split(b"\0")[0].decode("latin-1").rstrip() for r in raw]
            values = np.ma.array(np.array(texts, dtype=object))
        else:
            values = _scale(raw, field)
            if not field.pointer and field.shape and np.prod(field.shape) == field.repeat:
                values = values.reshape(len(values), *field.shape)
            elif field.repeat == 1 and not field.pointer:
                values = values[:, 0]
        return np.ma.asarray(values[0]) if row is not None or field.pointer else values

    def _raw(self, kind: str, repeat: int, offset: int, rows: int, width: int) -> np.ndarray:
        dtype = np.dtype(NUMBERS.get(kind, "u1"))
        shape, strides = (rows, repeat), (width, dtype.itemsize)
        return np.ndarray(shape, dtype, self.content, offset, strides)

    def _from_heap(self, field: Field, row: int) -> np.ndarray:
        """`[1, n]`, the cell of a row that the table points to."""
        at = row * self.width + field.offset
        kind = ">i4" if field.pointer == "P" else ">i8"
        length, start = (int(v) for v in np.frombuffer(self.content, kind, 2, at))
        size = length * SIZES[field.kind]
        if length < 0 or start < 0 or self.heap + start + size > len(self.content):
            raise SpectrumError(
                f"{self.path}: expected a cell of the column {field.name!r} within the file, found {length} elements "
                f"from byte {start} of a heap of {len(self.content) - self.heap}"
            )
        return self._raw(field.kind, length, self.heap + start, 1, size)


def open_table(hdu: fits.hdu.base._BaseHDU, path: Path) -> BinTable:
    """The table of an HDU of an open file.

    Raises:
      SpectrumError: it is no binary table, or its header contradicts itself.
    """
    kept = hdu.__dict__.get("_remap_table")  # it is asked for by every fact of every segment
    if kept is None:
        try:
            kept = _open(hdu, path)
        except SpectrumError as error:
            kept = str(error)
        hdu.__dict__["_remap_table"] = kept
    if isinstance(kept, str):
        raise SpectrumError(kept)
    return kept


def _open(hdu: fits.hdu.base._BaseHDU, path: Path) -> BinTable:
    if isinstance(hdu, fits.TableHDU):  # of text: rare, and astropy knows how
        for column in hdu.columns:
            if column.unit and is_absurd(column.unit):
                raise SpectrumError(f"{path}: expected a unit of {column.name!r}, found {column.unit!r}")
        written = io.BytesIO()
        fits.BinTableHDU(Table.read(hdu)).writeto(written)
        written.seek(0)
        with fits.open(written) as hdus:
            return open_table(hdus[1], path)
    if not isinstance(hdu, fits.BinTableHDU):
        raise SpectrumError(f"{path}: expected a table in HDU {hdu.name!r}, found an image or nothing")
    place = hdu.fileinfo()
    file, start, data = place["file"], place["hdrLoc"], place["datLoc"]
    file.seek(start)
    cards = _cards(file.read(data - start))
    width, rows, count = (hdu.header[key] for key in ("NAXIS1", "NAXIS2", "TFIELDS"))
    fields: dict[str, Field] = {}
    offset = 0
    for number in range(1, count + 1):
        field, size = _field(cards, number, offset, path)
        fields.setdefault(field.name.lower(), field)
        offset += size
    if offset != width:  # or every number would be read from another place
        raise SpectrumError(
            f"{path}: expected rows of {width} bytes in HDU {hdu.name!r} as NAXIS1 says, found columns of {offset}"
        )
    extra = hdu.header.get("PCOUNT", 0)
    heap = hdu.header.get("THEAP", width * rows)
    file.seek(data)
    content = file.read(width * rows + extra)
    if len(content) < width * rows + extra or not width * rows <= heap <= len(content):
        raise SpectrumError(
            f"{path}: expected {rows} rows and a heap in HDU {hdu.name!r}, found a truncated file"
        )
    return BinTable(fields=fields, rows=rows, width=width, heap=heap, content=content, path=path)


def _cards(header: bytes) -> dict[tuple[str, int], str | float]:
    """Values of the cards that describe columns; the first of a key counts."""
    text = header.decode("latin-1")
    lines = [text[i : i + 80] for i in range(0, len(text), 80)]
    out: dict[tuple[str, int], str | float] = {}
    for i, line in enumerate(lines):
        match = CARD.match(line[:8]) if line[8:10] == "= " and line[0] == "T" else None
        if not match:
            continue
        key = (match[1], int(match[2]))
        if string := TEXT.match(line[10:]):
            value = string[1]
            while value.endswith("&") and i + 1 < len(lines) and lines[i + 1].startswith("CONTINUE"):
                i += 1
                more = TEXT.match(lines[i][8:])
                value = value[:-1] + (more[1] if more else "")
            out.setdefault(key, value.replace("''", "'").rstrip())
        elif number := NUMBER.match(line[10:]):
            out.setdefault(key, _number(number[1]))
    return out


def _number(text: str) -> float:
    """An integer as such, because a TNULL of 19 digits is none as a float64."""
    try:
        return int(text)
    except ValueError:
        return float(text.upper().replace("D", "E"))


def _field(
    cards: dict[tuple[str, int], str | float], number: int, offset: int, path: Path
) -> tuple[Field, int]:
    """A column, and its bytes in a row."""
    form = cards.get(("TFORM", number), "")
    match = FORM.fullmatch(str(form).strip())
    if not match or (match[2] in "PQ" and not match[3]):
        raise SpectrumError(f"{path}: expected the format of a column in TFORM{number}, found {form!r}")
    repeat, kind = int(match[1] or 1), match[2]
    pointer = kind if kind in "PQ" else ""
    if pointer:
        size = repeat * (8 if kind == "P" else 16)
        kind = match[3]
    else:
        size = -(-repeat // 8) if kind == "X" else repeat * SIZES[kind]
    shape = re.fullmatch(
        r"\s*\(\s*(\d{1,9}(?:\s*,\s*\d{1,9})*)\s*\)\s*", str(cards.get(("TDIM", number), ""))
    )
    null = cards.get(("TNULL", number))
    told = {key: cards.get((key, number), default) for key, default in (("TSCAL", 1), ("TZERO", 0))}
    for key, value in told.items():
        if isinstance(value, str):
            raise SpectrumError(f"{path}: expected a number for {key}{number}, found {value!r}")
    field = Field(
        name=str(cards.get(("TTYPE", number), f"col{number}")).strip(),
        kind=kind,
        repeat=repeat,
        offset=offset,
        pointer=pointer,
        unit=str(cards.get(("TUNIT", number), "")),
        null=null if isinstance(null, int) else None,
        scale=told["TSCAL"],
        zero=told["TZERO"],
        shape=tuple(int(n) for n in shape[1].split(","))[::-1] if shape else (),
    )
    return field, size


def _scale(raw: np.ndarray, field: Field) -> np.ma.MaskedArray:
    """What the numbers of a file stand for."""
    if field.kind == "L":
        return np.ma.array(raw == ord("T"), mask=(raw != ord("T")) & (raw != ord("F")))
    native = raw.astype(raw.dtype.newbyteorder("="))
    integers = native.dtype.kind in "iu"
    masked = native == field.null if integers and field.null is not None else np.zeros(raw.shape, bool)
    if field.scale == 1 and field.zero == 0:
        return np.ma.array(native, mask=masked)
    other = OTHER_SIGN.get((field.kind, field.zero)) if field.scale == 1 else None
    if other:  # adding half of the range turns the highest bit over
        bits = native.view(f"u{native.dtype.itemsize}") ^ (1 << (8 * native.dtype.itemsize - 1))
        return np.ma.array(bits.view(other), mask=masked)
    double = native.astype(np.complex128 if native.dtype.kind == "c" else np.float64)
    return np.ma.array(double * float(field.scale) + float(field.zero), mask=masked)
