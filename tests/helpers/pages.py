"""Reports of made-up stars, for the tests of the page and of its script in a browser."""

import dataclasses

import numpy as np
from astropy.table import Column, Table

from remap.predict.catalogue import describe
from remap.report.html import ArmCard, KnownLabels, LineMark, Neighbour, ReportContent, StarCard

LABELS = {
    "teff": ("K", 4000.0, 7000.0, 60.0),
    "logg": ("dex", 0.5, 5.0, 0.1),
    "feh": ("dex", -2.0, 0.5, 0.07),
}
EDGES = {name: np.linspace(low, high, 61) for name, (_, low, high, _) in LABELS.items()}
replace = dataclasses.replace


def content(count: int, *, cards: int = 0, pixels: int = 30, evil: str = "") -> ReportContent:
    """A report of `count` stars, the last of which could not be used where there are more than five.

    Args:
      cards: how many of them, from the first, have a card.
      pixels: of each of the two arms.
      evil: a text to put wherever files have a say.
    """
    rng = np.random.default_rng(1)
    table = Table()
    table["file"] = [evil or f"star_{i:05d}.fits" for i in range(count)]
    table["star_id"] = [evil or f"S{(7 * i) % count}" for i in range(count)]
    for name, (unit, low, high, width) in LABELS.items():
        value = rng.uniform(low, high, count)
        ends = {"": value, "_p16": value - width, "_p84": value + width, "_mean": value, "_mode": value}
        for suffix, values in ends.items():
            table[name + suffix] = Column(values, unit=unit, description=f"{name}{suffix}")
        table[name + "_std"] = Column(np.full(count, width), unit=unit)
    table["flags"] = np.where(rng.random(count) < 0.3, 1 << rng.integers(0, 11, count), 0).astype(np.int32)
    table["flags"][0] = 64
    table["snr"] = rng.uniform(10, 200, count)
    table["dwarf_probability"] = rng.random(count)
    table["arms"] = ["A,B"] * count
    table["luminosity_class"] = np.where(np.asarray(table["logg"]) > 3.5, "dwarf", "giant")
    table["message"] = np.array([evil] * count, dtype=object) if evil else np.array([""] * count, dtype="U80")
    if count > 5:
        table["flags"][-1] = 256
        table["message"][-1] = "gone.fits: expected a spectrum, found none"
        for name in table.colnames:
            if name.startswith(tuple(LABELS)):
                table[name][-1] = np.nan
    flags = describe()
    if evil:
        flags[64] = f"FAR: {evil}"
    known = {k: np.asarray(table[k]) + rng.normal(0, w, count) for k, (_, _, _, w) in LABELS.items()}
    columns = [{k: np.asarray(table[k + s]) for k in LABELS} for s in ("", "_p16", "_p84")]
    return ReportContent(
        title=evil or "Stars that are made up",
        table=table,
        labels=list(LABELS),
        edges=EDGES,
        flags=flags,
        cards=[star(i, table, pixels, evil) for i in range(cards)],
        known=KnownLabels(
            known=known,
            predicted=columns[0],
            p16=columns[1],
            p84=columns[2],
            groups=np.where(np.asarray(table["logg"]) > 3.5, evil or "dwarfs", "giants").tolist(),
            note=evil or "Made up, too.",
        ),
        lines=[LineMark(wave=5167.3, name=evil or "Mg b"), LineMark(wave=5269.5, name="Fe I")],
        medium="air",
        notes=[evil] if evil else [],
        provenance={"version": "1", evil or "config": {"name": evil or "made up", "long": list(range(80))}},
    )


def star(row: int, table: Table, pixels: int, evil: str) -> StarCard:
    """A card with two arms, the second without flux before normalisation, and two neighbours."""
    rng = np.random.default_rng(row)
    arms = []
    for name, start in (("A", 4860.0), ("B", 5240.0)):
        wave = start + 380.0 * np.arange(pixels) / pixels
        normalized = 1 - 0.3 * rng.random(pixels) ** 3
        normalized[pixels // 2] = np.nan
        continuum = 2.0 + 0.001 * (wave - start)
        arms.append(
            ArmCard(
                name=name,
                wave=wave,
                flux=normalized * continuum if name == "A" else None,
                continuum=continuum if name == "A" else None,
                normalized=normalized,
                library=1 - 0.3 * rng.random(pixels) ** 3,
                saliency={label: rng.normal(0, 1, pixels) for label in LABELS},
            )
        )
    pmfs = {}
    for label, (_, _, _, width) in LABELS.items():
        middle = (EDGES[label][1:] + EDGES[label][:-1]) / 2
        pmf = np.exp(-0.5 * ((middle - table[label][row]) / width) ** 2) + 1e-12
        pmfs[label] = {"": pmf / pmf.sum(), "A": pmf / pmf.sum(), "B": np.roll(pmf, 1) / pmf.sum()}
    labels = {label: float(table[label][row]) for label in LABELS}
    near = Neighbour(name=evil or f"near {row}", distance=0.5, labels=labels, spectra={"A": arms[0].library})
    far = Neighbour(name=evil or f"far {row}", distance=1.5, labels=labels)
    return StarCard(
        row=row,
        arms=arms,
        pmfs=pmfs,
        library=evil or "Teff 5500 K, log g 4.5, [Fe/H] −0.5",
        library_rms=0.02,
        neighbours=[near, far],
    )
