"""What the formats of a catalogue share, and ECSV.

FITS holds everything in one file. The other formats are for tables alone, so that the PMFs are in a second file,
NAME_pmf, whose rows are those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from astropy.table import Column, Table

from remap.config import ConfigError
from remap.store.tables import Writer, ecsv_writer, escape, read_ecsv, unescape, with_texts

# A label's combined PMF is keyed by its name, that of one arm by (label, arm).
PmfKey = str | tuple[str, str]
Unit = u.UnitBase | u.FunctionUnitBase


class Parts(NamedTuple):
    """The contents of a catalogue; see `remap.predict.catalogue.Catalogue`."""

    table: Table
    pmfs: Mapping[PmfKey, np.ndarray]
    edges: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    embeddings: Mapping[str, np.ndarray]


def second(path: Path) -> Path:
    """The file with the PMFs of a catalogue whose format keeps them in one of their own."""
    return path.with_name(f"{path.stem}_pmf{path.suffix}")


def vectors(parts: Parts) -> Table:
    """The second file's table: file, X_pmf, X_pmf_ARM for label X, features_ARM; `about` says which is what."""
    table = Table({"file": parts.table["file"]})
    for key, pmf in parts.pmfs.items():
        label, arm = (key, "") if isinstance(key, str) else key
        name = f"{label}_pmf_{arm}" if arm else f"{label}_pmf"
        table[name] = Column(pmf, description=describe_pmf(label, arm))
    for arm, features in parts.embeddings.items():
        table[f"features_{arm}"] = Column(features, description=describe_features(arm))
    return table


def describe_pmf(label: str, arm: str) -> str:
    """The description of a PMF; arm "" = all combined."""
    return f"PMF of {label}, " + (f"arm {arm}" if arm else "all arms combined")


def describe_features(arm: str) -> str:
    """The description of the embeddings of an arm."""
    return f"pooled features of the first network of arm {arm}"


def about(parts: Parts) -> dict[str, Any]:
    """What a second file says of itself, as JSON: edges of the bins, and label and arm of each column."""
    columns = []
    for key in parts.pmfs:
        label, arm = (key, "") if isinstance(key, str) else key
        columns.append([f"{label}_pmf_{arm}" if arm else f"{label}_pmf", label, arm])
    columns += [[f"features_{arm}", "", arm] for arm in parts.embeddings]
    # As lists: YAML sorts keys.
    return {"edges": [[label, value.tolist()] for label, value in parts.edges.items()], "columns": columns}


def from_vectors(
    table: Table, arrays: Table, said: Mapping[str, Any], meta: Mapping[str, Any], path: Path
) -> Parts:
    """The parts of a catalogue of two files.

    Args:
      table, arrays: of the first and the second file.
      said: what the second file says of itself (`about`).
      path: of the second file, for messages.

    Raises:
      ConfigError: the files do not belong together.
    """
    if arrays["file"].tolist() != table["file"].tolist():
        raise ConfigError(
            f"{path}: expected the PMFs of the {len(table)} rows beside it, found those of others"
        )
    edges = {label: np.asarray(value, np.float64) for label, value in said["edges"]}
    columns = said.get("columns") or _columns(arrays.colnames, edges)
    pmfs: dict[PmfKey, np.ndarray] = {}
    embeddings = {}
    for name, label, arm in columns:
        array = np.asarray(arrays[name])
        if label:
            pmfs[(label, arm) if arm else label] = array
        else:
            embeddings[arm] = array
    return Parts(table, pmfs, edges, dict(meta), embeddings)


def _columns(names: list[str], edges: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Label and arm of columns by their names alone, of files of before they said so."""
    out = []
    for name in names:
        for label in edges:
            if name == f"{label}_pmf":
                out.append([name, label, ""])
            elif name.startswith(f"{label}_pmf_"):
                out.append([name, label, name.removeprefix(f"{label}_pmf_")])
    return out


# ------------------------------------------------------------------------------------------------ ECSV


def write_ecsv(parts: Parts) -> list[Writer]:
    """Writers of the two files."""
    if not len(parts.table):
        raise ConfigError("expected at least one row for ECSV, found none; the other formats can hold none")
    first = with_texts(parts.table, escape)
    first.meta = dict(parts.meta)
    arrays = with_texts(vectors(parts), escape)
    arrays.meta = about(parts)
    return [ecsv_writer(first), ecsv_writer(arrays)]


def read_ecsv_parts(path: Path) -> Parts:
    """What `write_ecsv` wrote."""
    table, arrays = (with_texts(read_ecsv(p), unescape) for p in (path, second(path)))
    meta, table.meta = table.meta, {}
    if "edges" not in arrays.meta:
        raise ConfigError(f"{second(path)}: expected the PMFs of a catalogue, found another table")
    return from_vectors(table, arrays, arrays.meta, meta, second(path))
