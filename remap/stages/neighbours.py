"""The neighbours that a catalogue names, for its report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from astropy.table import Table

from remap.predict.catalogue import Catalogue
from remap.predict.predictor import Predictor
from remap.report.html import Neighbour


def catalogue_neighbours(
    catalogue: Catalogue, rows: Iterable[int], predictor: Predictor | None = None
) -> dict[int, list[Neighbour]]:
    """Row -> its neighbours over all labels, nearest first; {} for a catalogue without these columns.

    Args:
      rows: of the catalogue.
      predictor: the networks that made it, whose references have spectra; None = none are shown.
    """
    table, labels = catalogue.table, list(catalogue.edges)
    count = 0
    while f"near{count + 1}" in table.colnames:
        count += 1
    known = None if predictor is None else predictor.known
    sizes = {} if predictor is None else {a: len(predictor.preprocessing.wave(a)) for a in predictor.networks}
    place = {} if known is None else {str(name): i for i, name in enumerate(known.names)}
    out: dict[int, list[Neighbour]] = {}
    for row in rows if count else ():
        found = []
        for i in range(1, count + 1):
            name = str(table[f"near{i}"][row])
            if not name:
                continue
            values = {k: _number(table, f"near{i}_{k}", row) for k in labels}
            spectra: dict[str, Any] = {}
            if known is not None and name in place:
                spectra = known.spectra(place[name], sizes)
            found.append(
                Neighbour(
                    name=name,
                    distance=_number(table, f"near{i}_distance", row),
                    labels={k: v for k, v in values.items() if np.isfinite(v)},
                    spectra=spectra,
                )
            )
        out[row] = found
    return out


def _number(table: Table, name: str, row: int) -> float:
    return float(table[name][row]) if name in table.colnames else float("nan")
