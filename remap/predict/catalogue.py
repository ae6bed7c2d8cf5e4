"""The catalogue: one row per input spectrum, with its PMFs and where everything came from, in one FITS file.

    HDU 0              VERSION, DATE, NINPUT, CONFHASH
    HDU 1  CATALOG     one row per input: file, values per label, flags, ...; TCOMMn describes column n
    HDU 2  PMF         the same rows: file, teff_pmf [K], ..., and per arm teff_pmf_ARM. For the vector column
                       n the header gives the bins: BLOWn, BHIGHn (outer edges), BNUMn (number of equal bins);
                       where bins are not equal, the edges are a column teff_edges, the same in every row
    HDU 3  EDGES       one row: teff_edges [K + 1], ..., the edges in full
    HDU 4  PROVENANCE  key, value: what made the catalogue, every value as JSON

FITS strings are ASCII, so other characters stand as Python escapes there ("\\xc5" for Å, and "\\\\" for a
backslash); `read_catalogue` undoes this. The unit `dex` is common but not in the FITS standard: astropy's own
reader keeps it, with a warning. As ECSV (UTF-8) the PMFs are in a second file, NAME_pmf.ecsv. Neither format
keeps blanks at the end of a text, ECSV none at its start.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyUserWarning

from remap import sharding
from remap._version import __version__
from remap.config import ConfigError
from remap.pmf import distributions
from remap.predict.formats import bintable, ecsv_writer, from_bintable, read_ecsv
from remap.store.atomic import check_writable, write_files


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


_MEANING = {
    Flag.LOW_SNR: "the signal-to-noise ratio is below the threshold",
    Flag.BAD_PIXELS: "more pixels are masked or unusable than the threshold allows",
    Flag.CONTINUUM: "the continuum fit hit a limit, lacked pixels, or is not positive everywhere",
    Flag.EDGE: "the PMF of a label piles up on an edge of its range; the truth may lie outside",
    Flag.MULTIMODAL: "the PMF of a label has several modes; its median may lie between them",
    Flag.ARMS_DISAGREE: "the arms give values of a label that differ by more than their widths allow",
    Flag.FAR: "the spectrum lies far from all training spectra in embedding space",
    Flag.MISSING_ARM: "an arm is not covered, or only in part; the other arms alone were used",
    Flag.UNREADABLE: "the spectrum could not be used; the row holds NaN and `message` says why",
    Flag.RESOLUTION: "the lines are wider than the networks know them, or very finely sampled and of unknown width",
    Flag.VELOCITY: "the radial velocity is poor, or the one used contradicts the one measured",
    Flag.NOT_FINITE: "the networks give no finite PMF; the row holds NaN and `message` says of which arm",
}


def describe() -> dict[int, str]:
    """Bit value -> "NAME: meaning" for every flag, in the order of the bits, for table metadata."""
    return {int(flag): f"{flag.name}: {_MEANING[flag]}" for flag in Flag}


# A label's combined PMF is keyed by its name, that of one arm by (label, arm).
PmfKey = str | tuple[str, str]

_SUMMARY = {  # suffix of the column -> description; entropy alone does not have the label's unit
    "": "median of the PMF",
    "_p16": "16th percentile of the PMF",
    "_p84": "84th percentile of the PMF",
    "_mean": "mean of the PMF",
    "_std": "standard deviation of the PMF",
    "_mode": "centre of the most probable bin",
    "_entropy": "entropy of the PMF in nats",
}
_CARDS = {"version": "VERSION", "date": "DATE", "inputs": "NINPUT", "config_sha256": "CONFHASH"}
_HDUS = ("CATALOG", "PMF", "EDGES", "PROVENANCE")


class Catalogue(NamedTuple):
    """A catalogue as `read_catalogue` gives it and `write_catalogue` takes it."""

    table: Table  # S rows
    pmfs: dict[PmfKey, np.ndarray]  # float32[S, K]
    edges: dict[str, np.ndarray]  # label -> float64[K + 1], in the label's unit
    meta: dict[str, Any]  # provenance, JSON values

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Writes the catalogue as `write_catalogue` does: FITS or ECSV by the name's ending."""
        write_catalogue(path, self.table, self.pmfs, self.edges, self.meta, overwrite=overwrite)


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
        fold -> SHA-256 of the network), calibration and expert (SHA-256 of their files, or "none"),
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
        that of the columns. PMFs of single arms (keys (label, arm)) are left to `write_catalogue`.
      edges: label -> float[K + 1].
      units: label -> unit as astropy spells it ("K", "dex", "km/s"; "" for none).
      flags: int[S], bits of `remap.predict.catalogue.Flag`.
      snr: float[S], per pixel; NaN = unknown.
      arms: arm -> bool[S], whether the row used it.
      messages: S reasons why rows are NaN, "" elsewhere; None = none.
      star_ids: S identifiers, if known.
      more: name -> S values, unit and description of further columns.

    Returns:
      file, star_id (if given), for each label X: X (median), X_p16, X_p84, X_mean, X_std, X_mode, X_entropy; flags
      (int32), snr, the columns of `more`, arms ("A,B"), luminosity_class (if there are labels teff and logg),
      message. Every column has a description and, where it has one, a unit.

    Raises:
      ValueError: arrays that do not agree, a label without edges or unit, or with a reserved name, and what
        `distributions.pmf_summary` raises; the message names the label.
    """
    files = [str(f) for f in files]
    count = len(files)
    labels = [key for key in pmfs if isinstance(key, str)]
    names = ", ".join(f"{int(flag)} {flag.name}" for flag in Flag)
    table = Table()
    table["file"] = Column(_strings(files, count, "files"), description="input file")
    if star_ids is not None:
        table["star_id"] = Column(_strings(star_ids, count, "star_ids"), description="identifier of the star")
    for label in labels:
        if label not in edges or label not in units:
            raise ValueError(
                f"label {label}: expected edges and a unit, found edges for {list(edges)} "
                f"and units for {list(units)}"
            )
        pmf = np.asarray(pmfs[label])
        if pmf.ndim != 2 or len(pmf) != count:
            raise ValueError(f"label {label}: expected PMFs [{count}, K], found shape {pmf.shape}")
        try:
            summary = distributions.pmf_summary(pmf, edges[label])
        except ValueError as error:
            raise ValueError(f"label {label}: {error}") from error
        for suffix, description in _SUMMARY.items():
            if label + suffix in table.colnames:
                raise ValueError(f"label {label}: there is a column {label + suffix} already")
            unit = None if suffix == "_entropy" or not units[label] else u.Unit(units[label])
            values = summary[suffix[1:] or "median"]
            table[label + suffix] = Column(values, unit=unit, description=f"{label}: {description}")
    rest = {
        "flags": (_numbers(flags, np.int32, count, "flags"), f"bit mask: {names}"),
        "snr": (_numbers(snr, np.float64, count, "snr"), "signal-to-noise ratio per pixel"),
        **{
            name: (_numbers(values, values.dtype.type, count, name), description)
            for name, (values, _, description) in (more or {}).items()
        },
        "arms": (_used(arms, count), "arms that were used"),
    }
    if "teff" in labels and "logg" in labels:
        luminosity = distributions.dwarf_giant(table["teff"].data, table["logg"].data)
        rest["luminosity_class"] = (luminosity, "dwarf or giant by Ciardi et al. (2011), from the medians")
    messages = [""] * count if messages is None else [" ".join(str(m).split()) for m in messages]
    rest["message"] = (_strings(messages, count, "messages"), "why the row has no values")
    for name, (values, description) in rest.items():
        if name in table.colnames:
            raise ValueError(f"label {name}: there is a column {name} already")
        unit = (more or {}).get(name, (None, "", ""))[1]
        table[name] = Column(values, unit=u.Unit(unit) if unit else None, description=description)
    return table


def check_output(path: str | Path, *, overwrite: bool) -> tuple[Path, ...]:
    """The files that `write_catalogue` would write; call it before long work to fail early.

    Raises:
      ValueError: the name ends neither in .fits nor in .ecsv.
      FileExistsError: one of them exists, and overwrite is False.
      StorageError: one of them is a folder, or its folder cannot be written to or is full.
    """
    path = Path(path)
    if path.suffix == ".fits":
        paths = (path,)
    elif path.suffix == ".ecsv":
        paths = (path, path.with_name(f"{path.stem}_pmf.ecsv"))
    else:
        raise ConfigError(f"{path}: a catalogue's name must end in .fits or .ecsv, found {path.suffix!r}")
    for each in paths:
        if each.exists() and not each.is_dir() and not overwrite and sharding.writes():
            raise FileExistsError(f"{each}: exists already; choose another name or allow overwriting")
        check_writable(each)
    return paths


def write_catalogue(
    path: str | Path,
    table: Table,
    pmfs: Mapping[PmfKey, np.ndarray],
    edges: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Writes a catalogue as FITS or ECSV, by the name's ending; whole or not at all.

    Args:
      path: ends in .fits, or in .ecsv (then NAME_pmf.ecsv is written too); missing folders are made.
      table: from `build_catalogue`, S rows.
      pmfs: label -> float[S, K], and (label, arm) -> float[S, K] if single arms are wanted too; stored
        as float32.
      edges: label -> float[K + 1], for every label of `pmfs`.
      meta: JSON values, from `provenance`.
      overwrite: replace an older file.

    Raises:
      ValueError: an unknown ending, arrays that do not agree, or a table without rows as ECSV, which cannot
        hold PMFs then.
      FileExistsError: the file exists, and overwrite is False.
      TypeError: meta that JSON cannot hold.
    """
    paths = check_output(path, overwrite=overwrite)
    meta = json.loads(json.dumps(meta))
    edges = {label: np.asarray(value, np.float64) for label, value in edges.items()}
    vectors, label_of = _vectors(table, pmfs, edges)
    if len(paths) == 1:
        write_files({paths[0]: _fits(table, vectors, label_of, edges, meta).writeto})
        return
    if not len(table):
        raise ConfigError(f"{path}: expected at least one row for ECSV, found none; FITS can hold none")
    catalogue = Table(table, meta=meta)
    # As a list: YAML sorts keys.
    vectors.meta = {"edges": [[label, value.tolist()] for label, value in edges.items()]}
    # The PMFs first: a catalogue that exists has them.
    write_files({paths[1]: ecsv_writer(vectors), paths[0]: ecsv_writer(catalogue)})


def _vectors(
    table: Table, pmfs: Mapping[PmfKey, np.ndarray], edges: Mapping[str, np.ndarray]
) -> tuple[Table, dict[str, str]]:
    """The table of PMFs, and the label of each of its columns."""
    vectors, label_of = Table({"file": table["file"]}), {}
    for key, pmf in pmfs.items():
        label, arm = (key, "") if isinstance(key, str) else key
        name = f"{label}_pmf_{arm}" if arm else f"{label}_pmf"
        expected = (len(table), edges[label].size - 1) if label in edges else None
        if np.shape(pmf) != expected:
            raise ValueError(f"{name}: expected PMFs of shape {expected}, found {np.shape(pmf)}")
        what = f"PMF of {label}, " + (f"arm {arm}" if arm else "all arms combined")
        vectors[name] = Column(np.asarray(pmf, np.float32), description=what)
        label_of[name] = label
    return vectors, label_of


def _fits(
    table: Table,
    vectors: Table,
    label_of: Mapping[str, str],
    edges: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> fits.HDUList:
    """The whole file; `vectors` may gain columns of edges."""
    primary = fits.PrimaryHDU()
    primary.header.update({card: meta[key] for key, card in _CARDS.items() if key in meta})
    uneven = {label: value for label, value in edges.items() if not _is_uniform(value)}
    for label, value in uneven.items():
        vectors[f"{label}_edges"] = Column(
            np.tile(value, (len(table), 1)), description=f"edges of {label}'s bins"
        )
    pmf_hdu = bintable(vectors, "PMF")
    for n, name in enumerate(vectors.colnames, start=1):
        if name in label_of and label_of[name] not in uneven:
            value = edges[label_of[name]]
            pmf_hdu.header[f"BLOW{n}"] = (float(value[0]), "lower edge of the first bin")
            pmf_hdu.header[f"BHIGH{n}"] = (float(value[-1]), "upper edge of the last bin")
            pmf_hdu.header[f"BNUM{n}"] = (value.size - 1, "number of equal bins")
    edge_table = Table()
    for label, value in edges.items():
        unit = table[label].unit if label in table.colnames else None
        edge_table[f"{label}_edges"] = Column(value[None], unit=unit, description=f"edges of {label}'s bins")
    encoded = [json.dumps(value) for value in meta.values()]
    record = (
        Table({"key": list(meta), "value": encoded})
        if meta
        else Table(names=("key", "value"), dtype=("U1", "U1"))
    )
    hdus = [primary, bintable(table, "CATALOG"), pmf_hdu]
    return fits.HDUList([*hdus, bintable(edge_table, "EDGES"), bintable(record, "PROVENANCE")])


def read_catalogue(path: str | Path) -> Catalogue:
    """Reads what `write_catalogue` wrote: ECSV if the name ends so, else FITS.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a catalogue, or was cut short.
    """
    path = Path(path)
    if path.suffix == ".ecsv":
        table, vectors = (read_ecsv(p) for p in check_output(path, overwrite=True))
        edges = {label: np.asarray(value) for label, value in vectors.meta["edges"]}
        return Catalogue(table, _keyed(vectors, edges), edges, dict(table.meta))
    try:
        with warnings.catch_warnings(), fits.open(path, memmap=False) as hdus:
            warnings.simplefilter("error", AstropyUserWarning)  # that the file is truncated
            found = [hdu.name for hdu in hdus[1:]]
            if found != list(_HDUS):
                raise ConfigError(f"{path}: expected the tables {_HDUS} of a catalogue, found {found}")
            table, vectors, edge_table, record = (from_bintable(hdus[name]) for name in _HDUS)
    except FileNotFoundError:
        raise
    except (OSError, AstropyUserWarning) as error:
        raise ConfigError(
            f"{path}: expected a catalogue in FITS, found no readable FITS file ({error})"
        ) from error
    edges = {name.removesuffix("_edges"): np.array(edge_table[name][0]) for name in edge_table.colnames}
    meta = {key: json.loads(value) for key, value in zip(record["key"], record["value"], strict=True)}
    return Catalogue(table, _keyed(vectors, edges), edges, meta)


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


def _is_uniform(edges: np.ndarray) -> bool:
    return np.allclose(edges, np.linspace(edges[0], edges[-1], edges.size), rtol=0, atol=1e-9 * np.ptp(edges))


def _keyed(vectors: Table, edges: Mapping[str, np.ndarray]) -> dict[PmfKey, np.ndarray]:
    pmfs = {}
    for name in vectors.colnames:
        for label in edges:
            if name == f"{label}_pmf":
                pmfs[label] = np.asarray(vectors[name])
            elif name.startswith(f"{label}_pmf_"):
                pmfs[label, name.removeprefix(f"{label}_pmf_")] = np.asarray(vectors[name])
    return pmfs
