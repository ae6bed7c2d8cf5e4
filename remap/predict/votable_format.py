"""A catalogue as two VOTables, of version 1.3: its units are in CDS's spelling, which alone has one for `dex`: `[-]`.

`[cm/s2]` would say more of log g, but astropy cannot make masked quantities of it, and masks every NaN of a VOTable.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import votable
from astropy.io.votable.tree import Info, Resource, TableElement, VOTableFile
from astropy.table import Column, Table

from remap._version import __version__
from remap.config import ConfigError
from remap.predict.formats import (
    Parts,
    Unit,
    Writer,
    about,
    escape,
    from_vectors,
    second,
    unescape,
    vectors,
    with_texts,
)

_DEX = u.Unit("[-]", format="cds")


def write_votable(parts: Parts) -> list[Writer]:
    """Writers of the two files. The second one is in base 64: text would take several times the room and time."""
    units = {c.name: str(c.unit) for c in parts.table.itercols() if c.unit is not None}
    first = _document(parts.table, "catalogue", {"provenance": dict(parts.meta), "units": units})
    return [
        _writer(first, "tabledata"),
        _writer(_document(vectors(parts), "pmfs", {"about": about(parts)}), "binary2"),
    ]


def _document(table: Table, name: str, infos: dict[str, Any]) -> VOTableFile:
    whole, resource = VOTableFile(version="1.3"), Resource()
    whole.resources.append(resource)
    resource.infos.append(Info(name="software", value=f"deep-remap {__version__}"))
    resource.infos.extend(Info(name=key, value=json.dumps(value)) for key, value in infos.items())
    element = TableElement.from_table(whole, _spelled(table))
    element.name = name
    resource.tables.append(element)
    return whole


def _spelled(table: Table) -> Table:
    """The table with units and texts as a VOTable can have them."""
    out = Table()
    for column in with_texts(table, escape).itercols():
        ucd = column.meta.get("ucd", "")
        array = np.asarray(column)
        out[column.name] = Column(
            array, unit=_unit(column.unit), description=column.description, meta={"ucd": ucd} if ucd else None
        )
    return out


def _unit(unit: Unit | None) -> Unit | None:
    if unit is None:
        return None
    if unit == u.dex:
        return _DEX
    try:
        unit.to_string("cds")
    except ValueError:
        return None
    return unit


def _writer(document: VOTableFile, form: str) -> Writer:
    return lambda file: document.to_xml(file, tabledata_format=form)


def read_votable(path: Path) -> Parts:
    """What `write_votable` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: one of the files is no catalogue, or was cut short, or they do not belong together.
    """
    table, infos = _read(path, ("provenance", "units"))
    arrays, said = _read(second(path), ("about",))
    for name, unit in infos["units"].items():
        if name in table.colnames:
            table[name].unit = u.Unit(unit)
    return from_vectors(table, arrays, said["about"], infos["provenance"], second(path))


def _read(path: Path, wanted: tuple[str, ...]) -> tuple[Table, dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # that something is odd about the file
            resource = votable.parse(path).resources[0]
            found = resource.tables[0].to_table(use_names_over_ids=True)
            infos = {info.name: info.value for info in resource.infos}
            told = {name: json.loads(infos[name]) for name in wanted}
    except Exception as error:  # of a broken file the parser raises whatever it comes upon
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: expected a catalogue in VOTable, found no readable one ({type(error).__name__}: {reason})"
        ) from error
    out = Table()
    for column in found.itercols():
        array = np.ma.getdata(np.ma.asarray(column))
        if array.dtype.kind == "O":  # texts of any length, and only texts have one
            array = np.array([str(text) for text in array], dtype=str)
        ucd = column.meta.get("ucd")
        plain = Column(
            array,
            unit=column.unit,
            description=" ".join(column.description.split())
            if column.description
            else None,  # lines were broken
            meta={"ucd": ucd} if ucd else None,
        )
        out[column.name] = plain.astype(array.dtype.newbyteorder("=")) if array.dtype.kind in "fi" else plain
    return with_texts(out, unescape), told
