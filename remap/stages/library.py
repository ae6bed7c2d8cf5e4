"""The libraries of a config, from their files onto the arms' grids, and what is odd about their nodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.table import Table

from remap import io
from remap.config import ConfigError, Section, record
from remap.labels import LabelBins, in_range
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import crop, library_on_grid, needed_range
from remap.preprocess.nodes import Finding, broken_pixels, check_nodes
from remap.preprocess.resample import LineSpread
from remap.preprocess.rotation import rotate
from remap.sampling.mixture import further_libraries
from remap.spectra import Spectra, SpectrumError, make_spectra
from remap.store.atomic import save_arrays, write_files
from remap.store.tables import ecsv_writer
from remap.store.workdir import library_path

logger = logging.getLogger(__name__)

# Nodes unlike their neighbours: the worst few are always in the table, those beyond this robust z in the log, too.
WORST, LIMIT = 5, 5.0
SAME_LABEL = 2e-3  # relative: labels of one node from two places may differ by rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class LibraryFiles:
    """Where the library is and how it is read (config section `library`).

    Labels come with the spectra (bundles, PHOENIX headers) or from where the fields below say; where two places
    give a label, they must agree, and the first of this list is taken: with the spectra, `labels`, `labels_table`,
    `labels_from_name`.

    Attributes:
      path: a file, or a folder in which the names of the files match `patterns`.
      source: how a file is read, see `remap.io.read`.
      native: line spread of the spectra: "kind" is "sharp", or a field of `LineSpread` whose value is "value".
      interpolate: draw spectra between the nodes too, which is for the stages after this one.
      select: limits of labels, any that the library has.
      exclude: nodes that are left out: names (of a spectrum or its file), tuples of all labels in the order of
        `label_names`, or mappings label -> value of some.
      labels: label -> where in the header it stands, see `remap.io.labels_from_header`.
      labels_path: a table of labels; "" = none.
      labels_table: how that is read, see `remap.io.read_labels`.
      labels_from_name: a pattern of the files' names, see `remap.io.labels_from_name`; "" = none.
    """

    path: str
    patterns: Sequence[str]
    source: Section
    native: Section
    interpolate: bool = True
    select: Section = dataclasses.field(default_factory=dict)
    exclude: Sequence[Any] = ()
    labels: Section = dataclasses.field(default_factory=dict)
    labels_path: str = ""
    labels_table: Section = dataclasses.field(default_factory=dict)
    labels_from_name: str = ""

    @property
    def line_spread(self) -> LineSpread | None:
        """The same as `native`, None for sharp lines."""
        kind, value = self.native["kind"], self.native["value"]
        return None if kind == "sharp" else record(LineSpread, {kind: value}, "library.native")


class Nodes(NamedTuple):
    """All spectra of a library that are trained on.

    Attributes:
      names: S names.
      labels: float64[S, L], in the order of the bins.
      groups: the spectra, those on one grid of wavelengths together.
      rows: of each group, int[K], which of the S they are.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    groups: tuple[Spectra, ...]
    rows: tuple[np.ndarray, ...]

    def on_grid(
        self, preprocessing: Preprocessing, arm: str, native: LineSpread | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`library_on_grid` of every group: log_flux float32[P, S, N], and valid bool[N], where all have flux."""
        parts = [library_on_grid(group, preprocessing, arm, native=native) for group in self.groups]
        if len(parts) == 1:
            return parts[0]
        valid = np.all([v for _, v in parts], axis=0)
        log_flux = np.empty((len(parts[0][0]), len(self.names), valid.size), np.float32)
        for rows, (part, _) in zip(self.rows, parts, strict=True):
            log_flux[:, rows] = part
        return np.where(valid, log_flux, np.float32(0.0)), valid


def prepare_libraries(
    config: Section, preprocessing: Preprocessing, data: Path, vsini: Sequence[float]
) -> None:
    """Writes every library of a config on every arm's grid, and `data`/library_check.ecsv.

    Args:
      data: the folder of prepared data.
      vsini: velocities [km/s] that a library without this label is rotated to, if it is one of the bins'.

    Raises:
      SpectrumError: a library cannot be read.
      ConfigError: the config contradicts itself or the data.
    """
    root = config["data_root"] or None
    sections = {"": config["library"], **further_libraries(config)}
    sigma = np.array([config["labels"][b.name]["library_sigma"] for b in preprocessing.labels], np.float32)
    covered = {arm: np.ones(len(preprocessing.wave(arm)), bool) for arm in preprocessing.arms}
    rows: list[dict[str, Any]] = []
    for name, section in sections.items():
        where = f"libraries.{name}" if name else "library"
        library = record(LibraryFiles, {k: v for k, v in section.items() if k != "weight"}, where)
        nodes = read_library(library, preprocessing, vsini, root, where=where)
        rows += [_row(name or "library", nodes, f, preprocessing) for f in _broken(nodes)]
        _write_check(data, rows, preprocessing)  # already here: what is broken may end the next step
        fluxes = {}
        for arm in preprocessing.arms:
            log_flux, valid = nodes.on_grid(preprocessing, arm, library.line_spread)
            fluxes[arm] = log_flux[len(log_flux) // 2][:, valid]
            covered[arm] &= valid
            path = library_path(data, arm, name)
            save_arrays(path, log_flux=log_flux, valid=valid, labels=nodes.labels, sigma=sigma)
            logger.info(
                "preprocess: %s, arm %s: %d nodes, %d pixels", where, arm, len(nodes.labels), valid.size
            )
        # Each arm about its own mean: a factor between the arms is no difference of lines.
        flux = np.concatenate([f - f.mean(axis=1, keepdims=True) for f in fluxes.values()], axis=1)
        found = check_nodes(flux, nodes.labels, nodes.names, worst=WORST, limit=LIMIT)
        rows += [_row(name or "library", nodes, f, preprocessing) for f in found]
        _write_check(data, rows, preprocessing)
    _tell(rows, data)
    for arm, valid in covered.items():
        if valid.mean() < 0.9:
            raise ConfigError(
                f"libraries: expected them to cover arm {arm} together, found {valid.mean():.0%} of its pixels "
                "in all of them; a pixel that one library lacks is used of none"
            )


def read_library(
    library: LibraryFiles,
    preprocessing: Preprocessing,
    vsini: Sequence[float],
    root: str | None,
    *,
    where: str = "library",
) -> Nodes:
    """All library spectra whose labels lie inside bins and `library.select`, but for `library.exclude`.

    Args:
      vsini: velocities [km/s] that a library without this label is rotated to, if it is one of the bins'.
      root: folder of the data, None = $REMAP_DATA.
      where: the config's section, for the messages.

    Raises:
      SpectrumError: a file cannot be read, or a label is missing or given twice and differently.
      ConfigError: the config contradicts itself or the data, or an entry of `exclude` fits no node.
    """
    bins = preprocessing.labels
    files = io.list_files(io.find_data(library.path, root=root), library.patterns)
    used: set[int] = set()  # entries of `exclude` that leave something out
    # Cropped file by file: a PHOENIX spectrum has 1.5 million pixels, of which an arm needs a few thousand.
    parts = list(_parts(library, preprocessing, vsini, root, files, used))
    for part in parts:
        missing = [b.name for b in bins if b.name not in part.labels]
        if missing:
            raise SpectrumError(
                f"{part.names[0]}: expected the labels {missing} with the library, found {sorted(part.labels)}"
            )
    names = [n for p in parts for n in p.names]
    columns = {b.name: np.concatenate([p.labels[b.name] for p in parts]) for b in bins}
    labels = np.stack(list(columns.values()), axis=1) if names else np.zeros((0, len(bins)))
    keep = ~_excluded_labels(library.exclude, labels, bins, used)
    for i, entry in enumerate(library.exclude):
        if i not in used:
            raise ConfigError(f"{where}.exclude: {entry!r} is no node of {library.path}")
    if len(library.exclude):
        logger.info("preprocess: %s.exclude leaves out %d spectra", where, len(used))
    unknown = keep & ~np.isfinite(labels).all(axis=1)
    if unknown.any():
        i = int(np.argmax(unknown))
        raise SpectrumError(
            f"{names[i]}: expected all labels of a library spectrum to be known, found "
            f"{dict(zip(columns, labels[i].tolist(), strict=True))} ({np.count_nonzero(unknown)} such spectra); "
            f"{where}.exclude leaves them out"
        )
    inside = in_range(labels, bins) if names else keep
    for name, (low, high) in library.select.items():
        if any(name not in p.labels for p in parts):
            raise ConfigError(f"{where}.select names {name!r}, which the library's spectra have no label of")
        value = np.concatenate([p.labels[name] for p in parts])
        inside &= (value >= low) & (value <= high)
    logger.info(
        "preprocess: %s of %d spectra, %d left out because their labels lie outside bins or limits",
        where,
        inside.size,
        np.count_nonzero(~inside),
    )
    inside &= keep
    if not inside.any():
        raise ConfigError(f"{where} {library.path}: none of {inside.size} spectra has labels inside the bins")
    groups, rows = _grouped(parts, inside)
    if len(groups) > 1:
        logger.info("preprocess: %s has %d grids of wavelengths", where, len(groups))
    kept = tuple(n for n, k in zip(names, inside, strict=True) if k)
    return Nodes(kept, labels[inside], groups, rows)


def _parts(
    library: LibraryFiles,
    preprocessing: Preprocessing,
    vsini: Sequence[float],
    root: str | None,
    files: Sequence[Path],
    used: set[int],
) -> Iterator[Spectra]:
    """The spectra of every file, cropped, with all their labels, without those whose names are excluded."""
    excluded = {entry: i for i, entry in enumerate(library.exclude) if isinstance(entry, str)}
    table = None
    if library.labels_path:
        path = io.find_data(library.labels_path, root=root)
        table = io.read_labels(path, source=library.labels_table, data_root=root)
    rows = {} if table is None else {name: i for i, name in enumerate(table.files)}
    for file in files:
        if file.name in excluded:
            used.add(excluded[file.name])
            continue
        within = needed_range(preprocessing)
        part = crop(io.read(file, source=library.source, data_root=root, within=within), preprocessing)
        if library.labels:
            hdu = library.source["hdu"] if "hdu" in library.source else _first_hdu(library.source)
            found = io.labels_from_header(file, library.labels, hdu, source=library.source)
            part = _with_labels(part, {k: np.full(len(part), v) for k, v in found.items()})
        if table is not None:
            row = np.array([rows.get(n, rows.get(file.name, -1)) for n in part.names])
            if (row < 0).any():
                name = part.names[int(np.argmax(row < 0))]
                raise SpectrumError(f"{library.labels_path}: expected a row of {name}, found none")
            part = _with_labels(part, {k: v[row] for k, v in table.values.items()})
        if library.labels_from_name:
            named = [io.labels_from_name(n, library.labels_from_name) for n in part.names]
            known = dict.fromkeys(k for one in named for k in one)
            values = {k: np.array([one.get(k, np.nan) for one in named]) for k in known}
            part = _with_labels(part, values)
        keep = np.array([n not in excluded for n in part.names], bool)
        used.update(excluded[n] for n in part.names if n in excluded)
        if not keep.all():
            part = part.rows(keep)
        if any(b.name == "vsini" for b in preprocessing.labels) and "vsini" not in part.labels:
            part = rotate(part, vsini)  # few libraries have it, and none needs to
        if len(part):
            yield part


def _first_hdu(source: Section) -> int:
    return 1 if source["format"] == "table" else 0


def _with_labels(part: Spectra, found: Mapping[str, np.ndarray]) -> Spectra:
    """Spectra with more labels; those that they have already must be the same.

    Raises:
      SpectrumError: they are not.
    """
    labels = dict(part.labels)
    for label, new in found.items():
        old = labels.get(label, np.full(len(part), np.nan))
        with np.errstate(invalid="ignore"):
            differ = np.abs(new - old) > SAME_LABEL * np.maximum(1.0, np.abs(old))
        if differ.any():
            i = int(np.argmax(differ))
            raise SpectrumError(
                f"{part.names[i]}: expected one value of {label}, found {old[i]:g} in one place and {new[i]:g} in "
                "another (with the spectrum, its header, the table, its name)"
            )
        labels[label] = np.where(np.isfinite(old), old, new)
    return dataclasses.replace(part, labels=labels)


def _excluded_labels(
    exclude: Sequence[Any], labels: np.ndarray, bins: Sequence[LabelBins], used: set[int]
) -> np.ndarray:
    """bool[S]: nodes that tuples or mappings of `library.exclude` fit; those of the entries that do go to `used`."""
    out = np.zeros(len(labels), bool)
    names = [b.name for b in bins]
    for i, entry in enumerate(exclude):
        if isinstance(entry, str):
            continue
        if isinstance(entry, Mapping) or hasattr(entry, "items"):
            wanted = dict(entry.items())
        elif isinstance(entry, Sequence) and len(entry) == len(names):
            wanted = dict(zip(names, entry, strict=True))
        else:
            wanted = {}
        if not wanted or set(wanted) - set(names):
            raise ConfigError(
                f"library.exclude: expected a name, the values of {names} or a mapping of some of them, found "
                f"{entry!r}"
            )
        fits = np.ones(len(labels), bool)
        for name, value in wanted.items():
            column = labels[:, names.index(name)]
            fits &= np.isclose(column, float(value), rtol=1e-6, atol=1e-6)
        if fits.any():
            used.add(i)
        out |= fits
    return out


def _grouped(
    parts: Sequence[Spectra], inside: np.ndarray
) -> tuple[tuple[Spectra, ...], tuple[np.ndarray, ...]]:
    """The spectra that are `inside`, those on one grid as one container, and which of them each has."""
    groups: list[list[int]] = []
    for i, part in enumerate(parts):
        for group in groups:
            if _same_grid(parts[group[0]].wave, part.wave):
                group.append(i)
                break
        else:
            groups.append([i])
    starts = np.cumsum([0, *(len(p) for p in parts)])
    order = np.cumsum(inside) - 1  # of a spectrum among those inside
    spectra, rows = [], []
    for group in groups:
        mine = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in group])
        keep = inside[mine]
        if not keep.any():
            continue
        names = np.array([n for i in group for n in parts[i].names], dtype=object)
        labels = {
            k: np.concatenate([parts[i].labels[k] for i in group])
            for k in parts[group[0]].labels
            if all(k in parts[i].labels for i in group)
        }
        spectra.append(
            make_spectra(
                parts[group[0]].wave,
                np.concatenate([parts[i].flux for i in group])[keep],
                medium=parts[group[0]].medium,
                valid=np.concatenate([parts[i].valid for i in group])[keep],
                names=names[keep],
                labels={k: v[keep] for k, v in labels.items()},
            )
        )
        rows.append(order[mine][keep])
    return tuple(spectra), tuple(rows)


def _same_grid(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or not np.isclose(one[0], other[0], rtol=1e-9):
        return False
    return bool(np.allclose(one, other, rtol=1e-9))


def _broken(nodes: Nodes) -> list[Finding]:
    """`broken_pixels` of all groups, by the nodes' own numbers."""
    found = []
    for group, rows in zip(nodes.groups, nodes.rows, strict=True):
        for finding in broken_pixels(group.flux, group.valid, group.names):
            found.append(finding._replace(node=int(rows[finding.node])))
    return sorted(found, key=lambda f: f.node)


def _row(library: str, nodes: Nodes, finding: Finding, preprocessing: Preprocessing) -> dict[str, Any]:
    """A finding as a row of the table."""
    labels = nodes.labels[finding.node]
    return {
        "library": library,
        "name": nodes.names[finding.node],
        **{b.name: float(v) for b, v in zip(preprocessing.labels, labels, strict=True)},
        "kind": finding.kind,
        "value": finding.value,
        "expected": finding.expected,
        "z": finding.z,
        "detail": finding.detail,
    }


def _write_check(data: Path, rows: Sequence[Mapping[str, Any]], preprocessing: Preprocessing) -> None:
    names = (
        "library",
        "name",
        *(b.name for b in preprocessing.labels),
        "kind",
        "value",
        "expected",
        "z",
        "detail",
    )
    texts = {"library", "name", "kind", "detail"}
    table = Table({n: np.array([r[n] for r in rows], dtype=str if n in texts else float) for n in names})
    for b in preprocessing.labels:
        table[b.name].unit = b.unit
    write_files({data / "library_check.ecsv": ecsv_writer(table)})


def _tell(rows: Sequence[Mapping[str, Any]], data: Path) -> None:
    """Warns of what needs a look; the rest is in the table."""
    serious = [
        r for r in rows if r["kind"] != "unchecked" and (r["kind"] != "unlike_neighbours" or r["z"] > LIMIT)
    ]
    for row in serious:
        logger.warning(
            "preprocess: %s: %s: %s (z %.1f)", *(row[k] for k in ("library", "kind", "detail", "z"))
        )
    unchecked = sum(row["kind"] == "unchecked" for row in rows)
    if unchecked:
        logger.info("preprocess: %d library nodes have no neighbours to be compared with", unchecked)
    if serious:
        logger.info(
            "preprocess: library nodes to look at: %s; `exclude` leaves nodes out",
            data / "library_check.ecsv",
        )
