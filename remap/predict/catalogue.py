"""The catalogue: one row per input spectrum, with its PMFs and where everything came from.

A table with units, descriptions and UCDs; PMFs and the edges of their bins; provenance. It is written as FITS (one
file, see `remap.predict.fits_format`), or as ECSV, VOTable or Parquet (two files, NAME and NAME_pmf, see
`remap.predict.formats`); docs/catalogue.md says what every column means. Texts that a format cannot hold stand as
Python escapes in it ("\\x0a" for the end of a line, and "\\\\" for a backslash); `read_catalogue` undoes this.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy import units as u
from astropy.table import Column, QTable, Table

from remap import sharding
from remap._version import __version__
from remap.config import ConfigError
from remap.pmf import distributions
from remap.pmf.luminosity import dwarf_giant, dwarf_probability
from remap.predict.columns import SUMMARY, label_ucd, ucd
from remap.predict.fits_format import read_fits, write_fits
from remap.predict.formats import Parts, PmfKey, Writer, read_ecsv_parts, second, write_ecsv
from remap.predict.parquet_format import check_parquet, read_parquet, write_parquet
from remap.predict.votable_format import read_votable, write_votable
from remap.report.star import star_pmfs
from remap.store.atomic import check_writable, write_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Flag(enum.IntFlag):
    """Bits of the catalogue's int32 column `flags`; 0 means that nothing was noticed.

    A bit, once released, keeps its number and meaning; new ones are appended (30 is the last that fits).
    The thresholds are config fields and so part of the catalogue's provenance.
    """

    LOW_SNR = 1 << 0
    BAD_PIXELS = 1 << 1
    CONTINUUM = 1 << 2
    EDGE = 1 << 3
    MULTIMODAL = 1 << 4
    ARMS_DISAGREE = 1 << 5
    FAR = 1 << 6
    MISSING_ARM = 1 << 7
    UNREADABLE = 1 << 8
    RESOLUTION = 1 << 9
    VELOCITY = 1 << 10
    NOT_FINITE = 1 << 11
    UNCALIBRATED = 1 << 12


_MEANING = {
    Flag.LOW_SNR: "the signal-to-noise ratio is below the threshold",
    Flag.BAD_PIXELS: "more pixels are masked or unusable than the threshold allows",
    Flag.CONTINUUM: "the continuum fit hit a limit, lacked pixels, or is not positive everywhere",
    Flag.EDGE: "a label is at an edge of its bins or of the labels that were trained on; the truth may lie outside",
    Flag.MULTIMODAL: "the PMF of a label has several modes; its median may lie between them",
    Flag.ARMS_DISAGREE: "the arms give values of a label that differ by more than their widths allow",
    Flag.FAR: "neither labelled stars nor library explain the spectrum: it is unlike all that was trained on",
    Flag.MISSING_ARM: "an arm is not covered, or only in part; the other arms alone were used",
    Flag.UNREADABLE: "the spectrum could not be used; the row holds NaN and `message` says why",
    Flag.RESOLUTION: "the lines are wider than the networks know them, or very finely sampled and of unknown width",
    Flag.VELOCITY: "the radial velocity is poor, or the one used contradicts the one measured",
    Flag.NOT_FINITE: "the networks of an arm give no finite PMF, so that it was not used; `message` says which",
    Flag.UNCALIBRATED: "no labelled star of this kind told how wide the intervals must be; they may be too narrow",
}


def describe() -> dict[int, str]:
    """Bit value -> "NAME: meaning" for every flag, in the order of the bits, for table metadata."""
    return {int(flag): f"{flag.name}: {_MEANING[flag]}" for flag in Flag}


class _Format(NamedTuple):
    write: Callable[[Parts], list[Writer]]
    read: Callable[[Path], Parts]
    files: int


_FORMATS = {
    ".fits": _Format(write_fits, read_fits, 1),
    ".ecsv": _Format(write_ecsv, read_ecsv_parts, 2),
    ".vot": _Format(write_votable, read_votable, 2),
    ".xml": _Format(write_votable, read_votable, 2),
    ".parquet": _Format(write_parquet, read_parquet, 2),
}


class Catalogue(NamedTuple):
    """A catalogue as `read_catalogue` gives it and `write_catalogue` takes it.

    `embeddings` are the pooled features of the first network of each arm (the first of its folds, whose hash the
    provenance has), from which each of its heads makes PMF and embedding by one dense layer. They are comparable
    between spectra and between catalogues of the same networks, but not between arms or networks.
    """

    table: Table  # S rows; columns have units
    pmfs: dict[PmfKey, np.ndarray]  # float32[S, K]
    edges: dict[str, np.ndarray]  # label -> float64[K + 1], in the label's unit
    meta: dict[str, Any]  # provenance, JSON values
    embeddings: Mapping[str, np.ndarray] = MappingProxyType({})  # arm -> float32[S, F], where asked for

    @property
    def qtable(self) -> QTable:
        """The table with quantities in place of the columns that have units."""
        return QTable(self.table)

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the catalogue as `write_catalogue` does: the name's ending says in which format."""
        write_catalogue(path, *self, overwrite=overwrite)

    def plot(self, row: int, *, path: str | Path | None = None) -> Figure:
        """Draws the PMFs of one star: of each label, all arms combined and each arm.

        Args:
          row: of the table; negative ones count from its end.
          path: where to save it, if anywhere; the ending chooses the format (.png, .pdf, .svg).

        Returns:
          The figure, which notebooks show.

        Raises:
          IndexError: there is no such row.
          ImportError: matplotlib (the extra `plots`) is missing.
        """
        count = len(self.table)
        if not -count <= row < count:
            raise IndexError(f"expected a row of a catalogue of {count}, found {row}")
        pmfs: dict[str, dict[str, np.ndarray]] = {}
        for key, pmf in self.pmfs.items():
            label, arm = (key, "") if isinstance(key, str) else key
            pmfs.setdefault(label, {})[arm] = np.asarray(pmf[row])
        units = {label: str(self.table[label].unit or "") for label in pmfs if label in self.table.colnames}
        return star_pmfs(pmfs, self.edges, units=units, title=str(self.table["file"][row]), path=path)


def provenance(
    *, config: Mapping[str, Any], checkpoint_step: Any, date: str, inputs: int, **more: Any
) -> dict[str, Any]:
    """What made a catalogue, as JSON values, for `write_catalogue`.

    Args:
      config: all settings, as JSON values.
      checkpoint_step: training steps of the network, or any JSON value that says them (arm -> steps).
      date: ISO 8601; an argument, so that the same run can give the same file.
      inputs: number of input spectra.
      more: JSON values under further keys. `Predictor` gives stage, folds (arm -> folds), weights (arm ->
        fold -> SHA-256 of the network), calibration and expert (SHA-256 of their files, or "none"), references,
        preprocessing_version, and for spectra that it was given survey, source, source_overrides and observe.

    Returns:
      software, version, date, inputs, checkpoint_step, config_sha256 (of the config as JSON with sorted keys
      and without blanks), config, flags (bit -> meaning), and `more`.

    Raises:
      TypeError: a config or checkpoint_step that JSON cannot hold.
      ValueError: a date that is not ISO 8601.
    """
    datetime.datetime.fromisoformat(date)
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return {
        "software": "deep-remap",
        "version": __version__,
        "date": date,
        "inputs": int(inputs),
        "checkpoint_step": json.loads(json.dumps(checkpoint_step)),
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "config": json.loads(text),
        "flags": {str(bit): meaning for bit, meaning in describe().items()},
        **json.loads(json.dumps(more)),
    }


def build_catalogue(
    files: Sequence[str],
    pmfs: Mapping[PmfKey, np.ndarray],
    edges: Mapping[str, np.ndarray],
    *,
    units: Mapping[str, str],
    flags: np.ndarray,
    snr: np.ndarray,
    arms: Mapping[str, np.ndarray],
    messages: Sequence[str] | None = None,
    star_ids: Sequence[str] | None = None,
    more: Mapping[str, tuple[np.ndarray, str, str]] | None = None,
) -> Table:
    """The catalogue's table: one row per input, in the order given.

    Args:
      files: S names of inputs; they may repeat.
      pmfs: label -> float[S, K], the combined PMFs, NaN rows where there is none; the order of the labels is
        that of the columns. Of single arms (keys (label, arm)) there are the medians alone.
      edges: label -> float[K + 1].
      units: label -> unit as astropy spells it ("K", "dex", "km/s"; "" for none).
      flags: int[S], bits of `remap.predict.catalogue.Flag`; a row without a finite PMF that does not say so gets
        UNREADABLE and NOT_FINITE.
      snr: float[S], per pixel; NaN = unknown.
      arms: arm -> bool[S], whether the row used it.
      messages: S reasons why rows, or arms of them, are NaN, "" elsewhere; None = none.
      star_ids: S identifiers, if known.
      more: name -> S values, unit and description of further columns.

    Returns:
      file, star_id (if given), ra and dec (if in `more`), for each label X: X (median), X_p16, X_p84, X_mean, X_std,
      X_mode, X_entropy, and X_ARM (median) of each arm; flags (int32), snr, the columns of `more`, arms ("A,B"),
      dwarf_probability and luminosity_class (if there are labels teff and logg), message. Every column has a
      description and, where it has one, a unit, and a UCD in its `meta`.

    Raises:
      ValueError: arrays that do not agree, a label without edges or unit, or with a reserved name, and what
        `distributions.pmf_summary` raises; the message names the label.
    """
    files = [str(f) for f in files]
    count = len(files)
    labels = [key for key in pmfs if isinstance(key, str)]
    more = dict(more or {})
    names = ", ".join(f"{int(flag)} {flag.name}" for flag in Flag)
    table = Table()
    first = {"file": (_strings(files, count, "files"), "", "input file")}
    if star_ids is not None:
        first["star_id"] = (_strings(star_ids, count, "star_ids"), "", "identifier of the star")
    first |= {name: more.pop(name) for name in ("ra", "dec") if name in more}
    for name, (values, unit, description) in first.items():
        _add(table, name, values, unit, description, ucd(name))
    for label in labels:
        if label not in edges or label not in units:
            raise ValueError(
                f"label {label}: expected edges and a unit, found edges for {list(edges)} "
                f"and units for {list(units)}"
            )
        summary = _summary(pmfs[label], edges[label], count, f"label {label}")
        for suffix, description in SUMMARY.items():
            unit = "" if suffix == "_entropy" else units[label]
            values = summary[suffix[1:] or "median"]
            text = f"{label}: {description}"
            _add(table, label + suffix, values, unit, text, label_ucd(label, suffix), f"label {label}")
        for arm in [key[1] for key in pmfs if not isinstance(key, str) and key[0] == label]:
            where = f"label {label}, arm {arm}"
            values = _summary(pmfs[label, arm], edges[label], count, where)["median"]
            text = f"{label}: median of the PMF of arm {arm} alone, before any calibration"
            _add(table, f"{label}_{arm}", values, units[label], text, label_ucd(label), where)
    flags = _numbers(flags, np.int32, count, "flags")
    finite = [np.isfinite(np.asarray(pmfs[label])).all(axis=1) for label in labels]
    bare = ~np.all(finite, axis=0) & (flags & Flag.UNREADABLE == 0)
    flags[bare] |= Flag.UNREADABLE | Flag.NOT_FINITE
    rest = {
        "flags": (flags, "", f"bit mask: {names}"),
        "snr": (_numbers(snr, np.float64, count, "snr"), "", "signal-to-noise ratio per pixel"),
        **{
            name: (_numbers(values, values.dtype.type, count, name), unit, description)
            for name, (values, unit, description) in more.items()
        },
        "arms": (_used(arms, count), "", "arms that were used"),
    }
    if "teff" in labels and "logg" in labels:
        chance = dwarf_probability(pmfs["teff"], edges["teff"], pmfs["logg"], edges["logg"])
        luminosity = dwarf_giant(table["teff"].data, table["logg"].data)
        told = "probability that the star is a dwarf by Ciardi et al. (2011), Teff and log g taken as independent"
        rest["dwarf_probability"] = (chance, "", told)
        told = "dwarf or giant by Ciardi et al. (2011), from the medians"
        rest["luminosity_class"] = (luminosity, "", told)
    messages = [""] * count if messages is None else [" ".join(str(m).split()) for m in messages]
    messages = _strings(messages, count, "messages").astype(object)
    messages[bare & (messages == "")] = "the PMF is not finite"
    rest["message"] = (messages.astype(str), "", "why the row, or an arm of it, has no values")
    for name, (values, unit, description) in rest.items():
        _add(table, name, values, unit, description, ucd(name))
    return table


def _add(
    table: Table, name: str, values: np.ndarray, unit: str, description: str, word: str, where: str = ""
) -> None:
    """Adds a column; `word` is its UCD, "" = none, and `where` says of what it is."""
    if name in table.colnames:
        raise ValueError(f"{where or f'label {name}'}: there is a column {name} already")
    table[name] = Column(
        values,
        unit=u.Unit(unit) if unit else None,
        description=description,
        meta={"ucd": word} if word else None,
    )


def _summary(pmf: np.ndarray, edges: np.ndarray, count: int, where: str) -> dict[str, Any]:
    """`distributions.pmf_summary`, whose errors say of what they are."""
    pmf = np.asarray(pmf)
    if pmf.ndim != 2 or len(pmf) != count:
        raise ValueError(f"{where}: expected PMFs [{count}, K], found shape {pmf.shape}")
    try:
        return distributions.pmf_summary(pmf, edges)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_output(path: str | Path, *, overwrite: bool) -> tuple[Path, ...]:
    """The files that `write_catalogue` would write; call it before long work to fail early.

    Raises:
      ConfigError: the name ends in none of .fits, .ecsv, .vot, .xml and .parquet, or pyarrow is missing for the last.
      FileExistsError: one of them exists, and overwrite is False.
      StorageError: one of them is a folder, or its folder cannot be written to or is full.
    """
    path = Path(path)
    files = _format(path).files
    if path.suffix == ".parquet":
        check_parquet()
    paths = (path,) if files == 1 else (path, second(path))
    for each in paths:
        if each.exists() and not each.is_dir() and not overwrite and sharding.writes():
            raise FileExistsError(
                f"{each}: exists already; choose another name or allow overwriting (--overwrite, overwrite=True)"
            )
        check_writable(each)
    return paths


def _format(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        *others, last = _FORMATS
        raise ConfigError(
            f"{path}: a catalogue's name must end in {', '.join(others)} or {last}, found {path.suffix!r}"
        )
    return _FORMATS[path.suffix]


def write_catalogue(
    path: str | Path,
    table: Table,
    pmfs: Mapping[PmfKey, np.ndarray],
    edges: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    embeddings: Mapping[str, np.ndarray] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Writes a catalogue in the format that the name's ending says; whole or not at all.

    Args:
      path: ends in .fits; or in .ecsv, .vot or .xml (VOTable) or .parquet, and then NAME_pmf with the same ending is
        written too, with the PMFs. Missing folders are made.
      table: from `build_catalogue`, S rows.
      pmfs: label -> float[S, K], and (label, arm) -> float[S, K] if single arms are wanted too; stored
        as float32.
      edges: label -> float[K + 1], for every label of `pmfs`.
      meta: JSON values, from `provenance`.
      embeddings: arm -> float[S, F], stored as float32.
      overwrite: replace an older file.

    Raises:
      ConfigError: an unknown ending, a table without rows as ECSV, which cannot hold PMFs then, or Parquet without
        pyarrow (the extra `parquet`).
      ValueError: arrays that do not agree.
      FileExistsError: the file exists, and overwrite is False.
      TypeError: meta that JSON cannot hold.
    """
    paths = check_output(path, overwrite=overwrite)
    edges = {label: np.asarray(value, np.float64) for label, value in edges.items()}
    arrays: dict[PmfKey, np.ndarray] = {}
    for key, pmf in pmfs.items():
        label, arm = (key, "") if isinstance(key, str) else key
        expected = (len(table), edges[label].size - 1) if label in edges else None
        if np.shape(pmf) != expected:
            name = f"{label}_pmf_{arm}" if arm else f"{label}_pmf"
            raise ValueError(f"{name}: expected PMFs of shape {expected}, found {np.shape(pmf)}")
        arrays[key] = np.asarray(pmf, np.float32)
    features = {arm: np.asarray(array, np.float32) for arm, array in (embeddings or {}).items()}
    for arm, array in features.items():
        if array.ndim != 2 or len(array) != len(table):
            raise ValueError(f"arm {arm}: expected embeddings [{len(table)}, F], found {array.shape}")
    parts = Parts(table, arrays, edges, json.loads(json.dumps(meta)), features)
    try:
        writers = _format(paths[0]).write(parts)
    except ConfigError as error:
        raise ConfigError(f"{paths[0]}: {error}") from error
    # The PMFs first: a catalogue that exists has them.
    write_files(dict(reversed(list(zip(paths, writers, strict=True)))))


def read_catalogue(path: str | Path) -> Catalogue:
    """Reads what `write_catalogue` wrote, by the name's ending; any other ending is taken for FITS.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: the file is not a catalogue, was cut short or is damaged; the second file of one is missing or
        that of another; or pyarrow is missing for Parquet.
    """
    path = Path(path)
    try:
        found = _FORMATS.get(path.suffix, _FORMATS[".fits"]).read(path)
    except ConfigError:
        raise
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise ConfigError(
            f"{path}: expected a catalogue, whose PMFs are in {second(path).name} beside it, found no such file"
        ) from error
    except Exception as error:  # there is no end to what damaged files raise
        told = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise ConfigError(f"{path}: cannot be read as a catalogue ({told})") from error
    return Catalogue(
        found.table, dict(found.pmfs), dict(found.edges), dict(found.meta), dict(found.embeddings)
    )


def _strings(values: Sequence[Any], count: int, what: str) -> np.ndarray:
    if len(values) != count:
        raise ValueError(f"{what}: expected {count} values, found {len(values)}")
    return np.array([str(v) for v in values], dtype=str)


def _numbers(values: np.ndarray, dtype: type, count: int, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,) or (dtype is np.int32 and not np.issubdtype(values.dtype, np.integer)):
        raise ValueError(
            f"{what}: expected {np.dtype(dtype)}[{count}], found {values.dtype}{list(values.shape)}"
        )
    return values.astype(dtype)


def _used(arms: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    used = {arm: np.asarray(value, bool) for arm, value in arms.items()}
    for arm, value in used.items():
        if value.shape != (count,):
            raise ValueError(f"arm {arm}: expected bool[{count}], found shape {value.shape}")
    return _strings([",".join(arm for arm in used if used[arm][i]) for i in range(count)], count, "arms")
