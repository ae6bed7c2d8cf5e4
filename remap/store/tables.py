"""Tables as ECSV, with texts of any kind: names of files may be any bytes."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.table import Column, Table

from remap.config import ConfigError

Writer = Callable[[BinaryIO], Any]  # writes into an open file

# What one format or another changes or cannot hold: backslashes (they begin an escape), control characters, line
# ends, lone surrogates (bytes of a file name that are no UTF-8), and blanks at either end.
_ODD = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|\A\s|\s\Z")
_ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def escape(text: str) -> str:
    """A text that every format keeps as it is: Python's escapes for what some would change, all else untouched.

    Examples:
      >>> print(escape("café 1.fits"), escape("a\\nb "))
      café 1.fits a\\x0ab\\x20
    """
    return _ODD.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\\":
        return "\\\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    return _ESCAPE.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), text)


def with_texts(table: Table, change: Callable[[str], str]) -> Table:
    """A table with `change` applied to all its texts; the other columns are those of `table`."""
    out = Table(meta=table.meta)
    for column in table.itercols():
        if column.dtype.kind == "U":
            array = np.array([change(text) for text in column.tolist()], dtype=str)
            column = Column(
                array, name=column.name, unit=column.unit, description=column.description, meta=column.meta
            )
        out.add_column(column, copy=False)
    return out


def ecsv_writer(table: Table) -> Writer:
    """Writes a table as ECSV into an open file; for `remap.writing.write_files`."""

    return lambda file: file.write(_ecsv(table).encode("utf-8", "surrogateescape"))  # names may be any bytes


def _ecsv(table: Table) -> str:
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    return _quoted(text.getvalue())


def _quoted(text: str) -> str:
    """ECSV whose rows cannot be taken for comments: astropy does not quote a first cell that begins with #."""
    lines = text.split("\n")
    rows = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines)) + 1
    for i in range(rows, len(lines)):
        if lines[i].startswith("#"):
            cell, _, rest = lines[i].partition(" ")
            lines[i] = f'"{cell}" {rest}'
    return "\n".join(lines)


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


def signed(table: Table) -> Table:
    """A table whose texts are escaped, with a hash of what it is read as; both are told in its `meta`."""
    out = with_texts(table, escape)
    out.meta = {**table.meta, "texts": "escaped"}
    out.meta["sha256"] = _hash(Table.read(_ecsv(out), format="ascii.ecsv"))
    return out


def read_signed(path: Path) -> Table:
    """What `ecsv_writer` wrote of a `signed` table, or of one that never was; empty texts are masked.

    Raises:
      ValueError: it is not what was written, by its hash.
    """
    table = Table.read(path.read_bytes().decode("utf-8", "surrogateescape"), format="ascii.ecsv")
    known, texts = table.meta.pop("sha256", None), table.meta.pop("texts", "")
    if known not in (None, _hash(table)):
        raise ValueError("not what was written, by its hash; if you have edited it, delete its sha256")
    if texts == "escaped":
        for name in table.colnames:
            column = table[name]
            if column.dtype.kind != "U":
                continue
            values = column.tolist()  # None where masked
            if any("\\" in value for value in values if value is not None):
                table[name] = column.astype(object)
                table[name] = [value if value is None else unescape(value) for value in values]
    return table


def _hash(table: Table) -> str:
    told = [[name, [str(value) for value in table[name]]] for name in table.colnames]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
