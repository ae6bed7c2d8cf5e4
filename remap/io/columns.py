"""Columns of tables about stars, from CSV, ECSV and FITS: names to the digit, numbers, and which cells are empty.

Text tables are taken apart here and not by a general parser, because that guesses the type of a column: it makes
one star of `0001` and `1`, infinity of `1E999` and ten thousand million of the name `1E10`.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import gzip
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.io.misc import yaml
from astropy.table import Table

from remap.io.content import read_bytes, reading
from remap.io.fits_files import card, open_fits, pick_hdu
from remap.io.wave_units import is_absurd
from remap.spectra import SpectrumError

logger = logging.getLogger(__name__)

FORMATS = ("csv", "ecsv", "fits")
SEPARATORS = (",", ";", "\t", "|", " ")  # " " = any number of blanks and tabs
LONGEST_YAML = 2**18  # characters, which take seconds to parse
MOST_FIELDS = 999  # of a FITS table, by the standard
EXACT = {"f": 2**53, "float16": 2**11, "float32": 2**24}  # from there on floating-point numbers skip integers

# Ways to write that a number is not known, in lower case.
NOTHING = (
    frozenset(
        ("", "-", "--", "---", "–", "—", "...", "…", "?", "\\n", "n/a", "#n/a", "<na>", "na", "nan", "null")
    )
    | frozenset(("none", "nil", "masked", "missing", "unknown", "undefined"))
    | frozenset(("inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"))
)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eEdD][+-]?[0-9]{1,4})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WHOLE = re.compile(r"[+-]?([0-9]+)\.0*")
_POWER_OF_TEN = re.compile(r"[0-9](?:\.([0-9]*))?[eE](\+?)([0-9]{1,3})")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Some columns of a table with S rows.

    Attributes:
      path: the table, for messages.
      there: the names of all columns of the table.
      cells: column -> [S]: str as they are written, or numbers, bool or bytes where the table has types.
      empty: column -> bool[S], True where the table itself marks a cell as not known.
      units: column -> the unit as it is written, "" = none.
      inexact: columns that the table declares as floating-point numbers -> where these begin to skip integers.
    """

    path: Path
    there: tuple[str, ...]
    cells: Mapping[str, np.ndarray]
    empty: Mapping[str, np.ndarray]
    units: Mapping[str, str]
    inexact: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))


def read_columns(
    path: Path,
    wanted: Iterable[str],
    *,
    format: str,
    separator: str | None = None,
    encoding: str | None = None,
    hdu: int | str = 1,
) -> Columns:
    """Reads some columns of a table.

    Args:
      path: the table.
      wanted: names of columns, composed.
      format: one of `FORMATS`.
      separator: between the cells of a CSV table, one of `SEPARATORS`; None = the first of them by which the
        header has all columns that are wanted.
      encoding: of a text table; None = UTF-8, or UTF-16 where it begins with a byte-order mark, or else Windows-1252
        (of which Latin-1 is a part) with a warning.
      hdu: of a FITS table.

    Raises:
      SpectrumError: the file is broken, has no rows, lacks a column or has it twice, or a row has more or fewer cells
        than the header.
    """
    wanted = tuple(dict.fromkeys(wanted))
    with reading(path, f"a label table of format {format!r}"):
        if format == "fits":
            found = _read_fits(path, wanted, hdu)
        else:
            text = _decode(path, encoding)
            found = (
                _read_ecsv(text, path, wanted)
                if format == "ecsv"
                else _read_csv(text, path, wanted, separator)
            )
        if len(found) == 0:
            raise SpectrumError(f"{path}: expected a label table with rows, found none")
    return found


def composed(text: str) -> str:
    """A text with its accents composed (Unicode's form C), so that texts that look the same are the same."""
    return unicodedata.normalize("NFC", str(text))


def guess_format(path: Path) -> str:
    """One of `FORMATS`, by the first bytes of a file."""
    with reading(path, "a table"), path.open("rb") as file:
        start = file.read(80)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as archive:
                start = archive.read(80)
    if start.startswith(b"SIMPLE"):
        return "fits"
    return "ecsv" if b"%ECSV" in start else "csv"


def numbers(
    columns: Columns, name: str, missing: Sequence[float | str] = (), *, decimal: str = "."
) -> np.ndarray:
    """A column as float64[S], NaN where nothing is known: empty, infinite, a word of `NOTHING` or one of `missing`.

    Args:
      columns: they have this one.
      name: of the column.
      missing: numbers or texts that stand for "not known".
      decimal: what parts the decimals of a number in a text, "." or ",".

    Raises:
      SpectrumError: a cell holds no number.
    """
    cells, empty, path = columns.cells[name], columns.empty[name], columns.path
    if cells.dtype.kind in "OSU":
        words = {str(word).strip() for word in missing}
        values = np.full(len(cells), np.nan)
        for i in np.flatnonzero(~empty):
            text = _text(cells[i])
            if text.lower() in NOTHING or text in words:
                continue
            plain = text.replace("\N{MINUS SIGN}", "-")
            plain = plain.replace(",", ".") if decimal == "," and "." not in plain else plain
            if not _NUMBER.fullmatch(plain):
                hint = ""
                if "," in plain and _NUMBER.fullmatch(plain.replace(",", ".", 1)):
                    hint = '; where this is a decimal comma, set decimal to ","'
                raise SpectrumError(f"{path}: expected numbers in {name!r}, found {text!r} in row {i}{hint}")
            values[i] = float(plain.lower().replace("d", "e"))
    elif cells.dtype.kind in "iuf":
        values = np.where(empty, np.nan, cells.astype(np.float64))
    else:
        raise SpectrumError(f"{path}: expected numbers in {name!r}, found {cells[0]!r} ({cells.dtype})")
    declared = np.array(
        [float(m) for m in missing if not isinstance(m, str) or _NUMBER.fullmatch(m.strip())], np.float64
    )
    # 99.99 of single precision is not 99.99 of double, also where it is written out, as 99.98999786376953
    with np.errstate(over="ignore"):
        unknown = np.isin(values.astype(np.float32), declared.astype(np.float32))
    return np.where(np.isfinite(values) & ~unknown, values, np.nan)


def texts(columns: Columns, name: str) -> tuple[str, ...]:
    """A column of names as S strings, to the digit; accents are composed (Unicode's form C).

    A whole number of a floating-point column is written without decimals.

    Raises:
      SpectrumError: a name is empty, stands for nothing, has a line break, or has been a floating-point number that
        cannot hold its digits.
    """
    cells, empty, path = columns.cells[name], columns.empty[name], columns.path
    lost = (
        "which was made a floating-point number: these hold 15 digits, so that several stars may have become one; "
        "write identifiers as text or as integers"
    )
    found = []
    for i, cell in enumerate(cells.tolist()):
        text = "" if empty[i] else _text(cell)
        if text.lower() in NOTHING:
            told = f"found {text!r} in" if text else "found none in"
            raise SpectrumError(f"{path}: expected a name in every row of {name!r}, {told} row {i}")
        if _CONTROL.search(text):
            raise SpectrumError(f"{path}: expected names in {name!r}, found {text!r} in row {i}")
        if name in columns.inexact:
            value = float(text) if _NUMBER.fullmatch(text) else np.nan
            if not value.is_integer():
                raise SpectrumError(f"{path}: expected names in {name!r}, found the number {text} in row {i}")
            if abs(value) >= columns.inexact[name]:
                raise SpectrumError(f"{path}: expected names in {name!r}, found {text} in row {i}, {lost}")
            text = str(int(value))
        elif _is_rounded(text):
            raise SpectrumError(f"{path}: expected names in {name!r}, found {text} in row {i}, {lost}")
        found.append(text)
    # 1234567890123456789.0 may have all its digits, as text has, or be what a float has made of several stars.
    doubtful = [t for t in found if (whole := _WHOLE.fullmatch(t)) and int(whole[1]) >= EXACT["f"]]
    twice = [t for t, times in collections.Counter(doubtful).items() if times > 1]
    if twice:
        raise SpectrumError(f"{path}: expected names in {name!r}, found {twice[0]} in several rows, {lost}")
    if doubtful:
        logger.warning(
            "%s: %d names in %r look like floating-point numbers, which hold 15 digits: the first is %s",
            *(path, len(doubtful), name, doubtful[0]),
        )
    return tuple(found)


def _is_rounded(text: str) -> bool:
    """True for what programs and spreadsheets make of long numbers, as 1.23457E+18, but not for the name 1E10."""
    found = _POWER_OF_TEN.fullmatch(text)
    if not found:
        return False
    decimals, plus, power = len(found[1] or ""), found[2], int(found[3])
    return decimals < power and (plus != "" or decimals >= 10)


def _text(cell: str | bytes | float) -> str:
    if isinstance(cell, bytes):
        try:
            cell = cell.decode("utf-8")
        except UnicodeDecodeError:
            cell = cell.decode("latin-1")  # never fails, and keeps apart what is different
    return composed(str(cell)).strip()


def _decode(path: Path, encoding: str | None) -> str:
    """The text of a file, without a byte-order mark; line ends are as Python has them."""
    content = read_bytes(path, text=True)
    if encoding is None:
        encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            if encoding == "utf-16":
                raise
            encoding, line = "windows-1252", content[: error.start].count(b"\n") + 1
            text = content.decode(encoding)
            logger.warning(
                "%s: no UTF-8 (line %d); read as %s, set encoding where it is another", path, line, encoding
            )
    else:
        text = content.decode(encoding)
    if odd := re.search(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]", text):
        raise SpectrumError(f"{path}: expected a text table, found the character {odd[0]!r} ({encoding})")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _split(lines: Sequence[str], separator: str, *, strict: bool = True) -> Iterator[list[str]]:
    """The cells of every line that is not empty; an opened quote goes over line ends, and is closed if `strict`."""
    if separator == " ":
        lines = [line.replace("\t", " ").strip(" \n") for line in lines]
    reader = csv.reader(
        (line if line.endswith("\n") else line + "\n" for line in lines),
        delimiter=separator,
        skipinitialspace=True,
        strict=strict,
    )
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield [cell.strip() for cell in cells]


def _rows(
    lines: Sequence[str], there: Sequence[str], wanted: Sequence[str], separator: str, path: Path
) -> dict[str, np.ndarray]:
    """The wanted columns of the lines below the header, as object[S] of str."""
    index = {name: there.index(name) for name in wanted}
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for i, cells in enumerate(_split(lines, separator)):
        # Spreadsheets leave separators at the end; what is shorter was cut, or has a separator of another kind.
        if len(cells) < len(there) or any(cells[len(there) :]):
            if cells[0].startswith("#"):
                continue
            raise SpectrumError(
                f"{path}: expected {len(there)} cells in every row, found {len(cells)} in row {i} "
                f"({separator.join(cells)[:60]!r})"
            )
        for name, at in index.items():
            found[name].append(cells[at])
    return {name: np.array(values, dtype=object) for name, values in found.items()}


def _check_there(there: Sequence[str], wanted: Iterable[str], path: Path) -> None:
    for name in wanted:
        if name not in there:
            raise SpectrumError(f"{path}: expected a column {name!r}, found {', '.join(there)}")
        if there.count(name) > 1:
            raise SpectrumError(
                f"{path}: expected one column {name!r}, found {there.count(name)} of this name"
            )


def _read_csv(text: str, path: Path, wanted: tuple[str, ...], separator: str | None) -> Columns:
    lines = text.split("\n")
    filled = [i for i, line in enumerate(lines) if line.strip()]
    first = next((i for i in filled if not lines[i].lstrip().startswith("#")), None)
    comments = [i for i in filled if first is None or i < first]
    # The header is the first line; or the last comment above the rows, as some write it.
    headers = ([] if first is None else [(first, lines[first])]) + [
        (i, lines[i].lstrip().removeprefix("#")) for i in comments[-1:]
    ]
    if not headers:
        raise SpectrumError(f"{path}: expected a label table with rows, found none")
    choices = []
    for at, line in headers:
        for s in SEPARATORS if separator is None else (separator,):
            there = [composed(cell) for cell in next(_split([line], s, strict=False), [])]
            choices.append((sum(name in there for name in wanted), len(there), -len(choices), at, s, there))
    complete = [choice for choice in choices if choice[0] == len(wanted)]
    *_, at, separator, there = complete[0] if complete else max(choices, key=lambda c: c[:3])
    while there and there[-1] == "":
        there.pop()
    _check_there(there, wanted, path)
    cells = _rows(lines[at + 1 :], there, wanted, separator, path)
    empty = {name: np.array([c == "" for c in values], bool) for name, values in cells.items()}
    return Columns(path, tuple(there), cells, empty, dict.fromkeys(wanted, ""))


def _read_ecsv(text: str, path: Path, wanted: tuple[str, ...]) -> Columns:
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if not lines[0].startswith("# %ECSV"):
        raise SpectrumError(f"{path}: expected a first line '# %ECSV', found {lines[0][:40]!r}")
    text = "\n".join(line[2:] for line in lines[1:start])
    if len(text) > LONGEST_YAML:
        raise SpectrumError(
            f"{path}: expected a header of up to {LONGEST_YAML} characters, found {len(text)}"
        )
    header = yaml.load(text)
    declared = {}
    for column in header["datatype"]:
        # What holds aliases of aliases of aliases is small until it is written out.
        if not all(isinstance(value, str | int | float | bool | None) for value in _flat(column)):
            raise SpectrumError(
                f"{path}: expected names and types of columns in the header, found something else"
            )
        declared[composed(str(column["name"]))] = column
    separator = header.get("delimiter", " ")
    there = next(_split(lines[start : start + 1], separator), [])
    there = [composed(name) for name in there]
    if there != list(declared):
        raise SpectrumError(
            f"{path}: expected the columns {', '.join(declared)} as declared, found {', '.join(there)}"
        )
    _check_there(there, wanted, path)
    for name in wanted:
        if str(declared[name].get("subtype", "")).endswith("]"):
            raise SpectrumError(
                f"{path}: expected one value per row in {name!r}, found {declared[name]['subtype']}"
            )
    masks = {name: f"{name}.mask" for name in wanted if f"{name}.mask" in declared}
    cells = _rows(lines[start + 1 :], there, (*wanted, *masks.values()), separator, path)
    empty = {name: np.array([c == "" for c in cells[name]], bool) for name in wanted}
    for name, mask in masks.items():
        empty[name] |= np.array([c == "True" for c in cells[mask]], bool)
    return Columns(
        path,
        tuple(there),
        {name: cells[name] for name in wanted},
        empty,
        {name: str(declared[name].get("unit") or "") for name in wanted},
        {
            name: EXACT.get(declared[name]["datatype"], EXACT["f"])
            for name in wanted
            if str(declared[name]["datatype"]).startswith("float")
        },
    )


def _flat(column: Mapping[str, object]) -> list[object]:
    """What is used of a column's declaration."""
    return [column.get(key) for key in ("name", "datatype", "subtype", "unit")]


def _read_fits(path: Path, wanted: tuple[str, ...], hdu: int | str) -> Columns:
    with open_fits(path) as hdus:
        chosen = pick_hdu(hdus, hdu, path)
        _check_size(chosen, path)
        # Astropy would work for minutes on them.
        absurd = {c.name: c.unit for c in chosen.columns if c.unit and is_absurd(c.unit)}
        for name in absurd:
            chosen.columns[name].unit = None
        table = Table.read(hdus, format="fits", hdu=hdu)
        _check_there(table.colnames, wanted, path)
        cells, empty = {}, {}
        for name in wanted:
            column = table[name]
            if column.ndim != 1 or column.dtype.kind == "O":
                raise SpectrumError(
                    f"{path}: expected one value per row in {name!r}, found shape {list(column.shape)} of "
                    f"{column.dtype}"
                )
            values = np.ma.asarray(column)
            data = np.array(np.ma.getdata(values), subok=False)  # a Column decodes, and not all bytes can be
            empty[name] = np.ma.getmaskarray(values).copy()
            cells[name] = data.astype(data.dtype.newbyteorder("="))
    return Columns(
        path,
        tuple(table.colnames),
        cells,
        empty,
        {name: absurd.get(name, str(table[name].unit or "")) for name in wanted},
        {
            name: EXACT.get(str(cells[name].dtype), EXACT["f"])
            for name in wanted
            if cells[name].dtype.kind == "f"
        },
    )


def _check_size(hdu: fits.hdu.base._BaseHDU, path: Path) -> None:
    """Refuses a header whose table cannot be in the file, before anything is made to its measure."""
    header, place = hdu.header, hdu.fileinfo()
    if header.get("XTENSION") not in ("BINTABLE", "TABLE"):
        raise SpectrumError(f"{path}: expected a table in the HDU, found {hdu.name!r}, which is none")
    size = {}
    for key in ("NAXIS1", "NAXIS2", "PCOUNT", "TFIELDS"):
        size[key] = card(header, key, path, 0)
        if type(size[key]) is not int or size[key] < 0:
            raise SpectrumError(f"{path}: expected a number of {key} in the header, found {size[key]!r}")
    if size["TFIELDS"] > MOST_FIELDS:
        raise SpectrumError(
            f"{path}: expected up to {MOST_FIELDS} columns, found TFIELDS = {size['TFIELDS']}"
        )
    needed = size["NAXIS1"] * size["NAXIS2"] + size["PCOUNT"]
    stream = place["file"]
    stream.seek(0, 2)
    there = stream.tell() - place["datLoc"]
    if needed > there:
        raise SpectrumError(
            f"{path}: expected {size['NAXIS2']} rows of {size['NAXIS1']} bytes, found a truncated file "
            f"of {there} bytes"
        )
    width = hdu.columns.dtype.itemsize
    if header["XTENSION"] == "BINTABLE" and width != size["NAXIS1"]:
        raise SpectrumError(
            f"{path}: expected rows of {size['NAXIS1']} bytes, found columns of {width} bytes"
        )
