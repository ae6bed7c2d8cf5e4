"""What a report is made from. Whoever has more to say of a star (neighbours, say) fills in a field here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineMark:
    """A spectral line that is labelled in the spectra.

    Attributes:
      wave: Å, in the medium of the arms' grids.
      name: "Mg b", say.
    """

    wave: float
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArmCard:
    """One arm of one star, on the arm's grid; None = not known, NaN = a pixel that was not used.

    Attributes:
      name: of the arm.
      wave: float[N], Å.
      flux: float[N], before normalisation, in any unit.
      continuum: float[N], in the unit of `flux`.
      normalized: float[N], as the networks saw it.
      library: float[N], the normalised library spectrum that is shown beside it.
      saliency: label -> float[N], by how much the arm's median of the label changes, in the label's unit, when the
        normalised flux rises by 1 % of the continuum over 1 Å.
    """

    name: str
    wave: np.ndarray
    flux: np.ndarray | None = None
    continuum: np.ndarray | None = None
    normalized: np.ndarray | None = None
    library: np.ndarray | None = None
    saliency: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbour:
    """A reference spectrum that the networks find like the star's.

    Attributes:
      name: identifier of the reference.
      distance: in the space of the embeddings; NaN = not known.
      labels: label -> value.
      spectra: arm -> float[N], normalised flux on the arm's grid; {} = not at hand.
    """

    name: str
    distance: float = float("nan")
    labels: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spectra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StarCard:
    """All that is shown of one star, besides its row of the catalogue.

    Attributes:
      row: in the catalogue.
      arms: its spectra; () = not at hand.
      pmfs: label -> whose ("" = combined, else the arm) -> float[K].
      library: which library spectrum is shown, in words; "" = none.
      library_rms: root mean square of the difference from it, in units of the continuum; NaN = none.
      neighbours: nearest first.
    """

    row: int
    arms: Sequence[ArmCard] = ()
    pmfs: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    library: str = ""
    library_rms: float = float("nan")
    neighbours: Sequence[Neighbour] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KnownLabels:
    """Labels that are known from elsewhere, beside what the networks say of the same stars.

    Attributes:
      known: label -> float[M], NaN = not known.
      predicted, p16, p84: label -> float[M].
      groups: M names of kinds of stars, "" = none.
      note: where both are from, and whether the networks trained on these stars.
    """

    known: Mapping[str, np.ndarray]
    predicted: Mapping[str, np.ndarray]
    p16: Mapping[str, np.ndarray]
    p84: Mapping[str, np.ndarray]
    groups: Sequence[str] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ReportContent:
    """A whole report.

    Attributes:
      title: of the page.
      table: S rows of a catalogue. Columns that are not there are left out of the report.
      labels: names of the labels, whose columns are LABEL, LABEL_p16, LABEL_p84.
      edges: label -> float[K + 1].
      flags: bit -> "NAME: meaning".
      cards: of stars, at most one per row.
      known: labels known from elsewhere; None = none.
      lines: that are labelled in the spectra.
      medium: of the wavelengths, "air" or "vacuum"; "" = not known.
      notes: what a reader should know besides, one sentence each.
      provenance: what made the catalogue; values are JSON or text.
    """

    title: str
    table: Table
    labels: Sequence[str]
    edges: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    flags: Mapping[int, str] = dataclasses.field(default_factory=dict)
    cards: Sequence[StarCard] = ()
    known: KnownLabels | None = None
    lines: Sequence[LineMark] = ()
    medium: str = ""
    notes: Sequence[str] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
