"""The page itself: tables, words and figures put into the templates of this package (Jinja2, the extra `report`).

One file that loads nothing: styles, script, figures and the table's data are in it, and a content policy in its
head forbids the browser to fetch anything. What comes from files (names, messages, provenance) is escaped: by Jinja2
in the page, by `_script_json` in the data of the table, which the script puts into the page as text only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.table import Table

from remap import sharding
from remap._version import __version__
from remap.config import ConfigError
from remap.pmf.distributions import pmf_summary
from remap.report.html import cards, figures, svg
from remap.report.html.records import ReportContent, StarCard
from remap.writing import check_writable, write_files

if TYPE_CHECKING:
    import jinja2

COLUMNS = 400  # of a curve; a spectrum has at most twice as many points
# Columns of the catalogue that the table shows besides the labels, in this order, where they are there.
SHOWN = ("snr", "rv", "luminosity_class", "dwarf_probability", "message")
TITLES = {"luminosity_class": "class", "dwarf_probability": "P(dwarf)"}  # of columns of the table
FACTS = {"luminosity_class": "class", "dwarf_probability": "probability of a dwarf"}
DISTRIBUTIONS = ("snr", "rv", "dwarf_probability")  # besides the labels


def check_templates() -> None:
    """Call it before long work whose end is a report.

    Raises:
      ConfigError: Jinja2 is missing; says how to install it.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise ConfigError("reports need Jinja2: pip install 'deep-remap[report]'") from error


def write_report(path: str | Path, content: ReportContent, *, overwrite: bool = False) -> Path:
    """Writes a report as one HTML file, whole or not at all; missing folders are made.

    Raises:
      ConfigError: the name does not end in .html or .htm, or Jinja2 is missing.
      FileExistsError: the file exists, and overwrite is False.
    """
    path = check_report(path, overwrite=overwrite)
    page = render(content).encode("utf-8", errors="replace")  # names of files may be no text
    write_files({path: lambda file: file.write(page)})
    return path


def check_report(path: str | Path, *, overwrite: bool) -> Path:
    """The path of a report that can be written; call it before long work to fail early.

    Raises:
      ConfigError: the name does not end in .html or .htm, or Jinja2 is missing.
      FileExistsError: the file exists, and overwrite is False.
      StorageError: it is a folder, or its own folder cannot be written to or is full.
    """
    path = Path(path)
    check_templates()
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path}: a report's name must end in .html, found {path.suffix!r}")
    if path.exists() and not path.is_dir() and not overwrite and sharding.writes():
        raise FileExistsError(
            f"{path}: exists already; choose another name or allow overwriting (--overwrite, overwrite=True)"
        )
    check_writable(path)
    return path


def render(content: ReportContent) -> str:
    """The report as the text of an HTML page.

    Raises:
      ConfigError: Jinja2 is missing.
    """
    units = _units(content.table, content.labels)
    flags = _column(content.table, "flags", 0).astype(np.int64)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=content.title,
            summary=summary(content),
            notes=content.notes,
            kiel=_kiel(content, flags, units),
            histograms=_histograms(content, flags),
            flags=_flag_rows(content, flags),
            known=_known(content, units),
            data=_script_json(table_data(content)),
            flag_names=[(bit, text.split(":")[0]) for bit, text in content.flags.items()],
            cards=[_card(content, star, units) for star in sorted(content.cards, key=lambda c: c.row)],
            count=len(content.table),
            provenance=_provenance(content.provenance),
            version=__version__,
        )
    )


def summary(content: ReportContent) -> list[str]:
    """What the catalogue says as a whole, one sentence each."""
    table, count = content.table, len(content.table)
    flags = _column(table, "flags", 0).astype(np.int64)
    if not count:
        return ["The catalogue is empty."]
    values = {label: _column(table, label, np.nan).astype(float) for label in content.labels}
    some = np.any([np.isfinite(v) for v in values.values()], axis=0) if values else np.zeros(count, bool)
    out = [f"{_stars(count)} in the catalogue; {_share(int(some.sum()), count)} with values."]
    if not some.all():
        out.append(f"{_share(int((~some).sum()), count)} could not be used{_reason(table, ~some)}.")
    if "flags" in table.colnames:
        clean = int((some & (flags == 0)).sum())
        out.append(f"{_share(clean, count)} without any flag{_commonest(flags, content.flags)}.")
    if "snr" in table.colnames and np.isfinite(snr := _column(table, "snr", np.nan).astype(float)).any():
        low, middle, high = np.nanpercentile(snr, [16, 50, 84])
        out.append(
            f"The signal-to-noise ratio per pixel is {middle:.3g} in the middle, {low:.3g} to {high:.3g} for most."
        )
    for label, value in values.items():
        good = np.isfinite(value)
        if not good.any():
            continue
        low, middle, high = np.percentile(value[good], [16, 50, 84])
        width, digits = _widths(table, label), _digits(table, label)
        unit = f" {u}" if (u := _units(table, [label])[label]) else ""
        sure = (
            f"; a typical half width of the 68 % interval is {_fixed(float(np.nanmedian(width)), digits)}{unit}"
            if (np.isfinite(width).any())
            else ""
        )
        out.append(
            f"{figures.in_words(label)}: median {_fixed(middle, digits)}{unit}, most between "
            f"{_fixed(low, digits)} and {_fixed(high, digits)}{unit}{sure}."
        )
    return out


def table_data(content: ReportContent) -> dict[str, Any]:
    """The table of stars as the page's script reads it: columns of numbers and texts, JSON values.

    Returns:
      columns: name, title, kind ("text", "number" or "value", which has ends of its interval), description and
      decimals; data: one list per column; low, high: of the columns of kind "value"; flags: int per star; names:
      bit -> name; cards: rows that have a card.
    """
    table, units = content.table, _units(content.table, content.labels)
    columns, data, low, high = [], [], {}, {}

    def add(name: str, title: str, kind: str, values: list[Any], digits: int = 0) -> None:
        description = str(table[name].description or "") if name in table.colnames else ""
        columns.append({"name": name, "title": title, "kind": kind, "about": description, "digits": digits})
        data.append(values)

    for name, title in (("file", "file"), ("star_id", "star")):
        if name in table.colnames:
            add(name, title, "text", _texts(table[name]))
    for label in content.labels:
        if label not in table.colnames:
            continue
        digits = _digits(table, label)
        add(label, figures.in_words(label, units[label]), "value", _numbers(table[label], digits), digits)
        for side, suffix in ((low, "_p16"), (high, "_p84")):
            if label + suffix in table.colnames:
                side[label] = _numbers(table[label + suffix], digits)
    for name in SHOWN:
        if name not in table.colnames or not len(table):
            continue
        if table[name].dtype.kind in "fiu":
            digits = 2 if name == "dwarf_probability" else 1
            title = TITLES.get(name) or _title(table, name)
            add(name, title, "number", _numbers(table[name], digits), digits)
        elif any(texts := _texts(table[name])):
            add(name, TITLES.get(name, name), "text", texts)
    return {
        "columns": columns,
        "data": data,
        "low": low,
        "high": high,
        "flags": _column(table, "flags", 0).astype(int).tolist(),
        "names": {str(bit): text.split(":")[0] for bit, text in content.flags.items()},
        "cards": sorted(card.row for card in content.cards),
    }


def _environment() -> jinja2.Environment:
    check_templates()
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("remap.report.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _drawn(drawing: str) -> Any:
    """A drawing of `svg`, which has escaped its texts, as what Jinja2 does not escape again."""
    from markupsafe import Markup  # comes with Jinja2

    return Markup(drawing)


def _script_json(value: Any) -> Any:
    """JSON that can stand in a script element, whatever its texts are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: other characters are escapes
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _drawn(text)


def _kiel(content: ReportContent, flags: np.ndarray, units: Mapping[str, str]) -> dict[str, Any] | None:
    if not {"teff", "logg"} <= set(content.table.colnames):
        return None
    teff, logg = (_column(content.table, label, np.nan).astype(float) for label in ("teff", "logg"))
    kinds = figures.kinds_by_flag(flags, content.flags, np.isfinite(teff) & np.isfinite(logg))
    if not kinds:
        return None
    legend = [
        {"mark": _drawn(figures.legend_mark(k)), "name": k.name, "count": int(k.members.sum())} for k in kinds
    ]
    return {"svg": _drawn(figures.kiel(teff, logg, kinds, units)), "legend": legend}


def _histograms(content: ReportContent, flags: np.ndarray) -> list[Any]:
    table, out = content.table, []
    for name in dict.fromkeys([*content.labels, *DISTRIBUTIONS]):
        if name not in table.colnames or table[name].dtype.kind not in "fiu":
            continue
        values = _column(table, name, np.nan).astype(float)
        if name == "rv" and not np.any(values[np.isfinite(values)]):
            continue  # all taken to be at rest
        out.append(_drawn(figures.histogram(values, flags != 0, _title(table, name))))
    return [drawing for drawing in out if drawing]


def _flag_rows(content: ReportContent, flags: np.ndarray) -> list[dict[str, Any]]:
    count = max(len(flags), 1)
    rows = []
    for bit, text in content.flags.items():
        name, _, meaning = text.partition(": ")
        found = int(np.count_nonzero(flags & bit))
        share = 100 * found / count
        rows.append(
            {
                "bit": bit,
                "name": name,
                "meaning": meaning,
                "count": found,
                "share": f"{share:.1f}",
                "bar": share,
            }
        )
    return rows


def _known(content: ReportContent, units: Mapping[str, str]) -> dict[str, Any] | None:
    known = content.known
    if known is None:
        return None
    drawings, numbers = [], []
    for label in content.labels:
        if label not in known.known:
            continue
        drawing, found = figures.one_to_one(known, label, units.get(label, ""))
        if drawing:
            drawings.append(_drawn(drawing))
            numbers += [{**row, "mark": _drawn(row["mark"])} for row in found]
    return {"svgs": drawings, "numbers": numbers, "note": known.note} if drawings else None


def _card(content: ReportContent, star: StarCard, units: Mapping[str, str]) -> dict[str, Any]:
    """What the template says of one star."""
    table, row = content.table, star.row
    flags = int(_column(table, "flags", 0)[row])
    arms = list(dict.fromkeys(whose for pmf in star.pmfs.values() for whose in pmf if whose))
    out = {
        "row": row,
        "name": _text(table, "file", row) or f"row {row + 1}",
        "star": _text(table, "star_id", row),
        "flags": [t.partition(": ")[::2] for b, t in content.flags.items() if flags & b],
        "message": _text(table, "message", row),
        "labels": [_label_row(content, star, label, units, arms) for label in content.labels],
        "arm_names": arms,
        "facts": [
            (FACTS.get(name) or _title(table, name), _fact(table, name, row))
            for name in (
                "snr",
                "rv",
                "rv_err",
                "ra",
                "dec",
                "exposures",
                "arms",
                "luminosity_class",
                "dwarf_probability",
            )
            if _fact(table, name, row)
        ],
        "library": star.library,
        "rms": _plain(star.library_rms) if np.isfinite(star.library_rms) else "",
        "spectra": [
            _drawn(cards.arm(arm, content.lines, units, columns=COLUMNS, medium=content.medium))
            for arm in star.arms
        ],
        "pmfs": [
            _drawn(drawing)
            for label in content.labels
            if label in content.edges
            and (drawing := cards.pmfs(star, label, content.edges[label], units.get(label, ""), arms))
        ],
        "near": [
            {
                "name": n.name,
                "distance": _plain(n.distance) if np.isfinite(n.distance) else "",
                "labels": [
                    _fixed(n.labels[k], _digits(table, k)) if k in n.labels else "" for k in content.labels
                ],
            }
            for n in star.neighbours
        ],
        "near_spectra": [
            _drawn(d) for arm in star.arms if (d := cards.neighbours(star, arm, columns=COLUMNS // 2))
        ],
        "names": [figures.in_words(label, units.get(label, "")) for label in content.labels],
    }
    out["spectra"] = [drawing for drawing in out["spectra"] if drawing]
    out["brief"] = ", ".join(f"{r['name']} {r['value']}" for r in out["labels"] if r["value"])
    return out


def _label_row(
    content: ReportContent, star: StarCard, label: str, units: Mapping[str, str], arms: Sequence[str]
) -> dict[str, Any]:
    table, row = content.table, star.row
    digits = _digits(table, label)

    def value(name: str) -> str:
        return _fixed(float(_column(table, name, np.nan)[row]), digits)

    singles = {w: np.asarray(p, float) for w, p in star.pmfs.get(label, {}).items() if w}
    medians = {
        w: float(pmf_summary(p[None], content.edges[label])["median"][0])
        for w, p in singles.items()
        if label in content.edges and np.isfinite(p).all()
    }
    return {
        "name": figures.in_words(label, units.get(label, "")),
        "value": value(label),
        "low": value(f"{label}_p16"),
        "high": value(f"{label}_p84"),
        "mean": value(f"{label}_mean"),
        "std": value(f"{label}_std"),
        "mode": value(f"{label}_mode"),
        "arms": [_fixed(medians.get(arm, np.nan), digits) for arm in arms],
    }


def _provenance(values: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Name, value as text, and whether it is long."""
    out = []
    for name, value in values.items():
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
        )
        out.append((str(name), text, len(text) > 120))
    return out


def _units(table: Table, labels: Sequence[str]) -> dict[str, str]:
    return {k: str(table[k].unit or "") if k in table.colnames else "" for k in labels}


def _title(table: Table, name: str) -> str:
    return figures.in_words(name, str(table[name].unit or ""))


def _column(table: Table, name: str, default: float) -> np.ndarray:
    """A column as an array, masked values and columns that are not there as the default."""
    if name not in table.colnames:
        return np.full(len(table), default)
    return (
        np.ma.filled(np.ma.asarray(table[name]), default)
        if table[name].dtype.kind in "fiu"
        else np.asarray(table[name])
    )


def _widths(table: Table, label: str) -> np.ndarray:
    """float[S]: half of the 68 % interval."""
    low, high = (_column(table, label + suffix, np.nan).astype(float) for suffix in ("_p16", "_p84"))
    return (high - low) / 2


def _digits(table: Table, label: str) -> int:
    """Decimals that a label's values are written with: a tenth of its typical width, or of its scatter."""
    width, values = _widths(table, label), _column(table, label, np.nan).astype(float)
    some = width[np.isfinite(width)]
    scale = float(np.median(some)) if some.size else 0.0
    if not scale > 0 and np.isfinite(values).any():
        scale = float(np.std(values[np.isfinite(values)]))
    return int(np.clip(np.ceil(-np.log10(scale)) + 1, 0, 6)) if scale > 0 else 2


def _numbers(column: Any, digits: int) -> list[float | int | None]:
    values = np.round(np.ma.filled(np.ma.asarray(column, float), np.nan), digits)
    whole = digits == 0
    return [None if not np.isfinite(v) else int(v) if whole else v for v in values.tolist()]


def _texts(column: Any) -> list[str]:
    return ["" if v is np.ma.masked else str(v) for v in column]


def _text(table: Table, name: str, row: int) -> str:
    return _texts(table[name][row : row + 1])[0] if name in table.colnames else ""


def _fact(table: Table, name: str, row: int) -> str:
    if name not in table.colnames:
        return ""
    if table[name].dtype.kind not in "fiu":
        return _text(table, name, row)
    value = float(_column(table, name, np.nan).astype(float)[row])
    return svg.number(value) if name in ("ra", "dec") else _plain(value) if np.isfinite(value) else ""


def _fixed(value: float, digits: int) -> str:
    return f"{value:z.{digits}f}".replace("-", "−") if np.isfinite(value) else ""


def _plain(value: float) -> str:
    """A number to three digits, or to the unit where it has more."""
    value = float(value)
    return svg.number(round(value) if abs(value) >= 1000 else float(f"{value:.3g}"))


def _stars(count: int) -> str:
    return f"{count:,} star" + "s" * (count != 1)


def _share(part: int, count: int) -> str:
    return f"{part:,} ({100 * part / count:.3g} %)"


def _reason(table: Table, rows: np.ndarray) -> str:
    """The commonest message of rows, shortened."""
    if "message" not in table.colnames:
        return ""
    texts, counts = np.unique(
        [t for t, r in zip(_texts(table["message"]), rows, strict=True) if r and t] or [""],
        return_counts=True,
    )
    first = str(texts[np.argmax(counts)])
    return (
        f"; of {_share(int(counts.max()), int(rows.sum()))} of them it is said: “{first[:160]}”"
        if first
        else ""
    )


def _commonest(flags: np.ndarray, meanings: Mapping[int, str]) -> str:
    counts = {bit: int(np.count_nonzero(flags & bit)) for bit in meanings}
    top = sorted((b for b in counts if counts[b]), key=lambda b: -counts[b])[:3]
    named = ", ".join(f"{meanings[b].split(':')[0]} ({counts[b]:,})" for b in top)
    return f"; the commonest flags are {named}" if named else ""
