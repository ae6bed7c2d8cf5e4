"""Spectra as text: columns of numbers, with or without a header."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remap.config import ConfigError, Section
from remap.io import axis, facts, places, segments
from remap.io.content import read_bytes, reading
from remap.io.declarations import check_choice, check_source
from remap.io.limits import HINT, limits
from remap.spectra import Spectra, SpectrumError

COLUMNS = ("wave_column", "flux_column", "ivar_column", "error_column", "mask_column")
OPTIONAL = {
    "wave_column": 0,
    "flux_column": 1,
    "ivar_column": None,
    "error_column": None,
    "mask_column": None,
    "mask_good": None,
    "mask_bits": None,
    "comments": ("#", "!", "%", "//"),
    "facts": None,
    "line_spread": None,
}
MOST_HEADER = 1000  # lines
MOST_LINES = 5_000_000
MOST_BYTES = 2**28  # of a text; MOST_LINES of 50
MOST_LINE = 2**22  # characters of a line
BLOCK = 2**20  # characters that are parsed together
CHUNK = 500  # lines that are, where some of a block are not so simple
MISSING = {"", "nan", "--", "-", "null", "none", "n/a", "na", "indef", "inf", "-inf", "+inf", "infinity"}
# With an exponent after e or d, or after nothing but its sign, as Fortran writes one of three digits.
NUMBER = re.compile(r"([+-]?(\d+\.?\d*|\.\d+))([eEdD][+-]?\d+|[+-]\d{3})?")
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text_spectrum(
    path: Path, source: Section, *, within: tuple[float, float] | None = None
) -> tuple[Spectra, ...]:
    """Reads one spectrum from a text file of two or more columns, one line per pixel.

    Columns are parted by commas, semicolons, tabs or blanks; a comma may be the decimal point where it parts nothing.
    Lines that are empty or begin with a comment are skipped, and those before the first line of numbers are the
    header, whose last line may name the columns. After it every line must have as many numbers as the first. A last
    line without an end is left out: it may have been cut within a number.

    Args:
      path: the file, plain or gzipped.
      source: format "text"; medium; axis "linear", "ln" or "log10"; wave_unit; wave_column and flux_column (default 0
        and 1), at most one of ivar_column and error_column, and mask_column with mask_good and mask_bits as in
        tables: each a number from 0 or a name in the header. Further columns are not read: a third one may be an
        error, a normalised flux or a continuum. comments, the texts with which a comment begins; facts (from the
        file's name alone) and line_spread (see `remap.io.facts`).
      within: Å, in the medium of the source.

    Raises:
      SpectrumError: the file is broken, binary, or not what is declared.
      ValueError: the declaration is wrong.
    """
    required = ("format", "medium", "axis", "wave_unit")
    source = check_source(source, kind="text", required=required, optional=OPTIONAL)
    if source["ivar_column"] is not None and source["error_column"] is not None:
        raise ConfigError("source of text: give ivar_column or error_column, not both")
    if source["mask_column"] is not None:
        check_choice(source, "mask_good", ("zero", "nonzero"), "text")
    elif source["mask_good"] is not None or source["mask_bits"] is not None:
        raise ConfigError("source of text: mask_good and mask_bits need a mask_column")
    source["facts"] = facts.check_facts(source["facts"], "text")
    source["line_spread"] = facts.check_spread(source["line_spread"], "text")
    with reading(path, "a text file with columns of numbers"):
        wanted = {key: source[key] for key in COLUMNS if source[key] is not None}
        columns = _parse(_blocks(path), path, tuple(source["comments"]), wanted)
    valid = None
    if "mask_column" in columns:
        valid = places.good_pixels(
            columns["mask_column"],
            path,
            good=source["mask_good"],
            bits=source["mask_bits"],
            what="the mask column",
        )
    segment = segments.Segment(
        coordinate=columns["wave_column"],
        flux=columns["flux_column"],
        ivar=columns.get("ivar_column"),
        error=columns.get("error_column"),
        valid=valid,
        names=(path.name,),
        facts=facts.gather(source["facts"], path),
    )
    return segments.build_all([(segment, source)], path, axis.check_within(within))


def _blocks(path: Path) -> Iterator[tuple[list[str], bool]]:
    """Lines of a text without their ends, many at a time, and whether the last one has an end."""
    content = read_bytes(path, text=True, most=MOST_BYTES)
    too_many = f"{path}: expected a spectrum of up to {MOST_LINES} lines, found more"
    if max(content.count(b"\n"), content.count(b"\r")) > MOST_LINES:
        raise SpectrumError(too_many)
    count, longest = 0, max(MOST_LINE, limits().largest or 0)
    with io.TextIOWrapper(io.BytesIO(content), _encoding(content, path)) as text:
        while block := text.read(BLOCK):
            rest = "" if block.endswith("\n") else text.readline(longest + 1)
            lines = (block + rest).splitlines()  # by whatever else Unicode has to end a line, too
            count += len(lines)
            if len(rest) > longest or count > MOST_LINES:
                raise SpectrumError(
                    too_many
                    if count > MOST_LINES
                    else f"{path}: expected lines of up to {longest} characters, found more in line {count}{HINT}"
                )
            yield lines, (rest or block).endswith("\n")


def _encoding(content: bytes, path: Path) -> str:
    for mark, encoding in BOMS.items():
        if content.startswith(mark):
            return encoding
    if b"\0" in content[:65536] or b"\0" in content:
        raise SpectrumError(f"{path}: expected a text file, found a binary one")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(content), MOST_LINE):
            decoder.decode(content[at : at + MOST_LINE], final=at + MOST_LINE >= len(content))
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


class _Layout(NamedTuple):
    """How the lines of numbers of a text are written."""

    separator: str | None
    decimal: bool  # a comma is the decimal point
    quoted: bool
    width: int  # cells
    columns: list[int]  # those that are wanted

    def plain(self, line: str) -> str:
        """The line with a decimal point and without quotation marks."""
        line = line.replace(",", ".") if self.decimal else line
        return line.replace('"', "") if self.quoted else line


def _parse(
    blocks: Iterable[tuple[list[str], bool]], path: Path, comments: tuple[str, ...], wanted: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The wanted columns float64[rows] of a text, NaN where a number is missing.

    Args:
      blocks: of `_blocks`; each is parsed by itself, so that long texts take little memory.
      wanted: what it is called here -> number of a column from 0, or its name in the header.
    """
    header, layout, parts, count, before = "", None, [], 0, 0
    for lines, ended in blocks:
        begin = 0
        while layout is None and begin < len(lines):
            stripped = lines[begin].strip()
            if stripped.startswith(comments):
                header = stripped.lstrip("".join(comments)).strip() or header
            elif stripped and (first := _separator(stripped)):
                layout = _layout(lines[begin], *first, header, wanted, path)
                break
            elif stripped:
                header = stripped
                if before + begin >= MOST_HEADER:
                    raise SpectrumError(f"{path}: expected numbers within {MOST_HEADER} lines, found none")
            begin += 1
        used = [
            i
            for i in range(begin, len(lines))
            if (stripped := lines[i].strip()) and not stripped.startswith(comments)
        ]
        if not ended and used and used[-1] == len(lines) - 1 and count + len(used) > 2:
            used.pop()
        if layout is not None and used:
            # A tab at the end parts an empty cell.
            plain = [layout.plain(lines[i].strip(" \r\n")) for i in used]
            parts.append(_numbers(plain, [before + 1 + i for i in used], layout, path))
        count += len(used)
        before += len(lines)
    if layout is None:
        raise SpectrumError(
            f"{path}: expected lines with two or more numbers, found none (header: {header[:60]!r})"
        )
    return dict(zip(wanted, np.concatenate(parts).T, strict=True))


def _layout(
    line: str, separator: str | None, decimal: bool, header: str, wanted: Mapping[str, Any], path: Path
) -> _Layout:
    """The layout by the first line of numbers and the line before it, which may name the columns."""
    found = _Layout(separator, decimal, '"' in line, 0, [])
    width = len(split(found.plain(line.strip(" \r\n")), separator))
    names = [n.strip().strip('"').strip("'") for n in split(header, separator)] if header else []
    names = names if len(names) == width else []
    columns = [_position(column, names, width, path) for column in wanted.values()]
    return found._replace(width=width, columns=columns)


def _numbers(lines: list[str], numbers: list[int], layout: _Layout, path: Path) -> np.ndarray:
    """The wanted columns float64[rows, columns] of some lines.

    Args:
      lines: plain.
      numbers: of the lines in the file, for messages.
    """
    separator, width = layout.separator, layout.width
    table = _fast(lines, separator, width)
    if table is None and separator is None and width == 2:  # a pixel without a flux
        whole = [line if len(line.split()) != 1 else f"{line} nan" for line in lines]
        table = _fast(whole, separator, width)
    if table is None:
        table = np.concatenate(
            [
                _rows(lines[i : i + CHUNK], numbers[i : i + CHUNK], separator, width, path)
                for i in range(0, len(lines), CHUNK)
            ]
        )
    return table[:, layout.columns]


def split(line: str, separator: str | None) -> list[str]:
    """The cells of a line; an empty last one, after a separator at the end, is none."""
    cells = line.split() if separator is None else [c.strip() for c in line.split(separator)]
    return cells[:-1] if separator is not None and cells and not cells[-1] else cells


def _separator(line: str) -> tuple[str | None, bool] | None:
    """What parts the cells of a line of numbers, and whether a comma is its decimal point; None for other lines."""
    for separator, decimal in (
        (";", False),
        (";", True),
        (",", False),
        ("\t", False),
        (None, False),
        ("\t", True),
        (None, True),
    ):
        if separator is not None and separator not in line:
            continue
        cells = [c.strip('"') for c in split(line.replace(",", ".") if decimal else line, separator)]
        if len(cells) > 1 and all(_is_number(c) for c in cells[:2]):
            return separator, decimal
    return None


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None or cell.lower() == "nan"


def _number(cell: str) -> float:
    mantissa, exponent = NUMBER.fullmatch(cell).groups()[::2] if cell.lower() != "nan" else ("nan", None)
    return float(mantissa if exponent is None else f"{mantissa}e{exponent.lstrip('eEdD')}")


def _fast(lines: list[str], separator: str | None, width: int) -> np.ndarray | None:
    """All numbers at once; None where a line is not so simple."""
    try:
        table = np.loadtxt(lines, delimiter=separator, ndmin=2, comments=None)
    except ValueError:
        return None
    return table if table.shape == (len(lines), width) else None


def _rows(lines: list[str], numbers: list[int], separator: str | None, width: int, path: Path) -> np.ndarray:
    """Some lines at once if they are simple, else one by one."""
    table = _fast(lines, separator, width)
    if table is None:
        pairs = zip(lines, numbers, strict=True)
        table = np.array([_row(line, separator, width, path, i) for line, i in pairs])
    return table


def _row(line: str, separator: str | None, width: int, path: Path, number: int) -> list[float]:
    cells = split(line, separator)
    if len(cells) < width and (line.count(separator) == width - 1 if separator else width == 2):
        cells += [""] * (width - len(cells))  # a pixel without a flux
    if len(cells) != width:
        raise SpectrumError(
            f"{path}: expected {width} columns as in the first line of numbers, found {len(cells)} in line {number}"
        )
    out = []
    for at, cell in enumerate(cells):
        cell = cell.strip('"')
        if cell.lower() in MISSING:
            out.append(np.nan)
        elif _is_number(cell):
            out.append(_number(cell))
        elif at > 1:
            out.append(np.nan)  # a remark in a column that need not be read
        else:
            raise SpectrumError(f"{path}: expected a number in line {number}, found {cell[:40]!r}")
    return out


def _position(column: Any, names: list[str], width: int, path: Path) -> int:
    if isinstance(column, str):
        there = [n.lower() for n in names]
        if column.lower() not in there:
            raise SpectrumError(
                f"{path}: expected a column {column!r}, found {', '.join(names) or 'a file without names of columns'}"
            )
        return there.index(column.lower())
    if not 0 <= column < width:
        raise SpectrumError(f"{path}: expected a column {column}, found {width} columns")
    return column
