"""Parquet files as arrays, by pyarrow (the extra `parquet`): a row for each spectrum, a list in each cell.

What all spectra share (the wavelengths) may stand in the schema's metadata as a list in JSON, or as a column whose
rows are all the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from remap.config import ConfigError
from remap.io import containers
from remap.spectra import SpectrumError

BATCH = 128  # rows that are unpacked together
WIDTH = 8  # bytes of a number, at most


def pyarrow() -> Any:
    """The package, with its readers of Parquet.

    Raises:
      ConfigError: it is not there; names the extra that brings it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("spectra in Parquet need pyarrow: pip install 'deep-remap[parquet]'") from error
    return pyarrow


class Parquet:
    """An open file. See `containers.Container`."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path
        told = file.metadata
        self._ends = np.cumsum([0, *(told.row_group(i).num_rows for i in range(told.num_row_groups))])
        if self._ends[-1] != told.num_rows or np.any(np.diff(self._ends) < 0):
            raise SpectrumError(
                f"{path}: expected {told.num_rows} rows, found {self._ends[-1]} in its row groups"
            )
        self._leaves: dict[str, list[int]] = {}  # column -> values of it in every row group
        for i in range(told.num_row_groups):
            group = told.row_group(i)
            for k in range(group.num_columns):
                column = group.column(k)
                self._leaves.setdefault(column.path_in_schema.split(".")[0], []).append(column.num_values)
        for name, counts in self._leaves.items():
            if min(counts) < 0:
                raise SpectrumError(f"{path}: expected a number of values in {name!r}, found {min(counts)}")
            containers.check_size(path, WIDTH * sum(counts), repr(name))

    @functools.cached_property
    def _shared(self) -> dict[str, np.ndarray]:
        """Arrays of the schema's metadata."""
        out = {}
        for key, value in (self._file.schema_arrow.metadata or {}).items():
            if value[:1] != b"[":
                continue
            with contextlib.suppress(ValueError, TypeError):
                array = np.asarray(json.loads(value), np.float64)
                if array.ndim == 1:
                    out[key.decode("utf-8", "replace")] = array
        return out

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, and what the metadata hold."""
        return (*self._file.schema_arrow.names, *self._shared)

    def _column(self, name: str) -> Any:
        schema = self._file.schema_arrow
        if schema.names.count(name) != 1:
            raise SpectrumError(
                f"{self._path}: expected a column {name!r}, found {', '.join(schema.names[:20])}"
            )
        return schema.field(name).type

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a column, by its first row; of what the metadata hold."""
        if name in self._shared and name not in self._file.schema_arrow.names:
            return self._shared[name].shape
        kind, count = self._column(name), int(self._ends[-1])
        if not _is_list(kind) or count == 0:
            return (count,)
        return (count, self.rows(name, 0, 1).shape[1])

    def whole(self, name: str) -> np.ndarray:
        """What all rows share: of the metadata, or of the first row of a column."""
        if name in self._shared and name not in self._file.schema_arrow.names:
            return self._shared[name]
        return self.rows(name, 0, 1)[0]

    def rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows of a column: `[last - first]`, or `[last - first, N]` where cells are lists."""
        kind = self._column(name)
        groups = [i for i in range(len(self._ends) - 1) if self._ends[i] < last and first < self._ends[i + 1]]
        at, found = int(self._ends[groups[0]]) if groups else 0, []
        for batch in self._file.iter_batches(
            batch_size=BATCH, row_groups=groups, columns=[name], use_threads=False
        ):
            low, high = max(first - at, 0), min(last - at, len(batch))
            at += len(batch)
            if low < high:
                found.append(self._values(batch.column(0).slice(low, high - low), kind, name))
            if at >= last:
                break
        if sum(map(len, found)) != last - first:
            raise SpectrumError(f"{self._path}: expected rows {first} to {last} of {name!r}, found fewer")
        if len({part.shape[1:] for part in found}) != 1:
            raise SpectrumError(
                f"{self._path}: expected as many values in each row of {name!r}, found others"
            )
        return np.concatenate(found)

    def _values(self, array: Any, kind: Any, name: str) -> np.ndarray:
        """A piece of a column as numbers, NaN where null; texts as objects, "" where null."""
        types = pyarrow().types
        if not _is_list(kind):
            if types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind):
                return np.array([value or "" for value in array.to_pylist()], dtype=object)
            return self._numbers(array, kind, name)
        if array.null_count:
            raise SpectrumError(f"{self._path}: expected a list in each row of {name!r}, found none in some")
        flat = self._numbers(array.flatten(), kind.value_type, name)
        lengths = {len(flat) // len(array)} if types.is_fixed_size_list(kind) else _lengths(array)
        if len(lengths) != 1 or lengths == {0}:
            raise SpectrumError(
                f"{self._path}: expected as many values in each row of {name!r}, found {sorted(lengths)[:5]}"
            )
        return flat.reshape(len(array), -1)

    def _numbers(self, array: Any, kind: Any, name: str) -> np.ndarray:
        types = pyarrow().types
        if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
            raise SpectrumError(f"{self._path}: expected numbers in {name!r}, found {kind}")
        if types.is_boolean(kind) and array.null_count:
            raise SpectrumError(f"{self._path}: expected True or False in {name!r}, found nulls")
        return array.to_numpy(zero_copy_only=False)


def _is_list(kind: Any) -> bool:
    types = pyarrow().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _lengths(array: Any) -> set[int]:
    return set(array.value_lengths().to_pylist())


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Parquet]:
    """A Parquet file; checksums of its pages are compared where it has some.

    Raises:
      ConfigError: pyarrow is missing.
      SpectrumError: its columns are larger than they may be.
    """
    package = pyarrow()
    with package.parquet.ParquetFile(
        path, memory_map=False, pre_buffer=False, buffer_size=2**16, page_checksum_verification=True
    ) as file:
        yield Parquet(file, path)
