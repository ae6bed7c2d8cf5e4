"""A catalogue as two Parquet files, by pyarrow (the extra `parquet`).

The schema's metadata have all that other programs look for: astropy's description of the columns with their units,
and the catalogue's own record (key `remap`). pandas, polars, DuckDB and TOPCAT need neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.table import Column, Table, meta

from remap.config import ConfigError
from remap.predict.formats import (
    Parts,
    Writer,
    about,
    escape,
    from_vectors,
    second,
    unescape,
    vectors,
    with_texts,
)


def _pyarrow() -> Any:
    """pyarrow.

    Raises:
      ConfigError: it is not there; names the extra that brings it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "catalogues in Parquet need pyarrow: pip install 'deep-remap[parquet]', or choose .fits, .ecsv or .vot"
        ) from error
    return pyarrow


def check_parquet() -> None:
    """Raises ConfigError where pyarrow is missing."""
    _pyarrow()


def write_parquet(parts: Parts) -> list[Writer]:
    """Writers of the two files."""
    return [
        _writer(parts.table, {"provenance": dict(parts.meta)}),
        _writer(vectors(parts), {"about": about(parts)}),
    ]


def _writer(table: Table, told: dict[str, Any]) -> Writer:
    pa = _pyarrow()
    table = with_texts(table, escape)
    table.meta = {}
    arrays, columns = [], {}
    for column in table.itercols():
        array = np.asarray(column)
        if array.ndim == 2:
            flat = pa.array(np.ascontiguousarray(array).ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, array.shape[1]))
        else:
            arrays.append(
                pa.array(array.tolist(), pa.string()) if array.dtype.kind == "U" else pa.array(array)
            )
        columns[column.name] = {
            "unit": "" if column.unit is None else str(column.unit),
            "description": column.description or "",
            "ucd": column.meta.get("ucd", ""),
        }
    known = {"remap": json.dumps({**told, "columns": columns}), **_for_astropy(table)}
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip(table.colnames, arrays, strict=True)],
        metadata=known,
    )
    content = pa.Table.from_arrays(arrays, schema=schema)
    return lambda file: pa.parquet.write_table(content, file, write_page_checksum=True)


def _for_astropy(table: Table) -> dict[str, str]:
    """Metadata by which `Table.read` gives units, descriptions and UCDs."""
    lengths = {
        f"table::len::{c.name}": str(max(1, c.dtype.itemsize // 4))
        for c in table.itercols()
        if c.dtype.kind == "U"
    }
    return {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(table)), **lengths}


def read_parquet(path: Path) -> Parts:
    """What `write_parquet` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: pyarrow is missing; one of the files is no catalogue, or was cut short, or they do not belong
        together.
    """
    table, told = _read(path)
    arrays, said = _read(second(path))
    if "provenance" not in told or "about" not in said:
        raise ConfigError(f"{path}: expected the two files of a catalogue in Parquet, found others")
    return from_vectors(table, arrays, said["about"], told["provenance"], second(path))


def look_at_parquet(path: Path) -> tuple[int, dict[str, Any]]:
    """Number of rows and provenance of what `write_parquet` wrote; the checksums of both files' pages are compared.

    Raises:
      ConfigError: pyarrow is missing; one of the files is no catalogue, was cut short, is damaged or is gone.
    """
    pa = _pyarrow()
    counts, told = [], {}
    for each in (path, second(path)):
        try:
            found = pa.parquet.read_metadata(each)
            told |= json.loads(found.metadata[b"remap"])
            pa.parquet.read_table(each, page_checksum_verification=True)
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"{each}: expected a part of a catalogue ({error})") from error
        counts.append(found.num_rows)
    if counts[0] != counts[1] or "provenance" not in told:
        raise ConfigError(f"{path}: expected as many rows as in {second(path).name}, found {counts}")
    return counts[0], told["provenance"]


def _read(path: Path) -> tuple[Table, dict[str, Any]]:
    pa = _pyarrow()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        found = pa.parquet.read_table(path, page_checksum_verification=True)
        told = json.loads(found.schema.metadata[b"remap"])
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected a catalogue in Parquet, found no readable one ({type(error).__name__}: {error})"
        ) from error
    out = Table()
    for name in found.column_names:
        column, says = found[name].combine_chunks(), told["columns"][name]
        if pa.types.is_fixed_size_list(column.type):
            array = np.array(column.flatten().to_numpy()).reshape(len(column), column.type.list_size)
        elif pa.types.is_string(column.type):
            array = np.array(column.to_pylist(), dtype=str)
        else:
            array = np.array(column.to_numpy(zero_copy_only=False))
        out[name] = Column(
            array,
            unit=u.Unit(says["unit"]) if says["unit"] else None,
            description=says["description"] or None,
            meta={"ucd": says["ucd"]} if says["ucd"] else None,
        )
    return with_texts(out, unescape), told
