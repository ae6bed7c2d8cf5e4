"""A catalogue as one FITS file.

    HDU 0                    VERSION, DATE, NINPUT, CONFHASH
    HDU 1  CATALOG           the table. TCOMMn describes column n, TUCDn is its UCD, XUNITn a unit not known to FITS
    PMF_label, PMF_label_ARM images float32[S, K], a row per row of the table: PMFs, all arms combined and of each;
                             for equal bins CRPIX1, CRVAL1 and CDELT1 place them on the label's axis
    EDGES_label              images float64[K + 1]: the edges of the bins
    FEATURES_ARM             images float32[S, F]: embeddings, where they were asked for
    PROVENANCE               the bytes of a JSON object: what made the catalogue

Every HDU has CHECKSUM and DATASUM, which `read_fits` compares.
There is one table alone, because astropy's `Table.read` warns of every file that has several. FITS strings are
ASCII, so other characters stand as Python escapes there ("\\xc5" for Å, and "\\\\" for a backslash); `read_fits`
undoes this. FITS has no word for `dex`: such columns have no TUNITn, which readers would warn of.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import Column, Table
from astropy.utils.exceptions import AstropyUserWarning

from remap.config import ConfigError
from remap.predict import fits_sums
from remap.predict.formats import (
    Parts,
    PmfKey,
    Unit,
    Writer,
    describe_features,
    describe_pmf,
    escape,
    from_vectors,
    unescape,
)

logger = logging.getLogger(__name__)

_FORMATS = {"f8": "D", "f4": "E", "i4": "J", "i8": "K", "b1": "L"}
_CARDS = {"version": "VERSION", "date": "DATE", "inputs": "NINPUT", "config_sha256": "CONFHASH"}
_BEFORE = ["CATALOG", "PMF", "EDGES", "PROVENANCE"]  # all of them tables, as they once were


def write_fits(parts: Parts) -> list[Writer]:
    """The writer of the file."""
    primary = fits.PrimaryHDU()
    primary.header.update({card: parts.meta[key] for key, card in _CARDS.items() if key in parts.meta})
    fits_sums.reserve(primary.header)
    hdus = [primary, bintable(parts.table, "CATALOG")]
    for key, pmf in parts.pmfs.items():
        label, arm = (key, "") if isinstance(key, str) else key
        hdus.append(_pmf_image(pmf, parts.edges[label], label, arm, _unit(parts.table, label)))
    for label, value in parts.edges.items():
        hdus.append(_image(value, f"EDGES_{label}", f"edges of the bins of {label}", LABEL=label))
        if unit := _fits_unit(_unit(parts.table, label)):
            hdus[-1].header["BUNIT"] = unit
    for arm, features in parts.embeddings.items():
        hdus.append(_image(features, f"FEATURES_{arm}", describe_features(arm), ARM=arm))
    hdus.append(provenance_image(parts.meta))

    def write(file: BinaryIO) -> None:
        fits.HDUList(hdus).writeto(file)
        fits_sums.sign(file)

    return [write]


def provenance_image(meta: Mapping[str, Any]) -> fits.ImageHDU:
    """JSON values as the bytes of an image."""
    told = np.frombuffer(json.dumps(dict(meta)).encode("ascii"), np.uint8)
    return _image(told, "PROVENANCE", "bytes of a JSON object")


def _image(array: np.ndarray, name: str, comment: str, **cards: str) -> fits.ImageHDU:
    hdu = fits.ImageHDU(array)
    hdu.header["EXTNAME"] = _ascii(name)
    for key, value in cards.items():
        hdu.header[key] = _ascii(value)
    hdu.header["COMMENT"] = _ascii(comment)
    fits_sums.reserve(hdu.header)
    return hdu


def _pmf_image(pmf: np.ndarray, edges: np.ndarray, label: str, arm: str, unit: Unit | None) -> fits.ImageHDU:
    name = f"PMF_{label}_{arm}" if arm else f"PMF_{label}"
    hdu = _image(pmf, name, describe_pmf(label, arm), LABEL=label, ARM=arm)
    if is_uniform(edges):
        hdu.header["CTYPE1"] = _ascii(label.upper())
        hdu.header["CRPIX1"] = (0.5, "the lower edge of the first bin")
        hdu.header["CRVAL1"] = (float(edges[0]), "its value")
        hdu.header["CDELT1"] = (float(edges[-1] - edges[0]) / (edges.size - 1), "width of a bin")
        if known := _fits_unit(unit):
            hdu.header["CUNIT1"] = known
    return hdu


def is_uniform(edges: np.ndarray) -> bool:
    """Whether bins are equal."""
    return np.allclose(edges, np.linspace(edges[0], edges[-1], edges.size), rtol=0, atol=1e-9 * np.ptp(edges))


def _unit(table: Table, label: str) -> Unit | None:
    return table[label].unit if label in table.colnames else None


def _fits_unit(unit: Unit | None) -> str | None:
    """A unit as FITS spells it; None where FITS has no word for it."""
    try:
        return None if unit is None else unit.to_string("fits")
    except ValueError:
        return None


def _ascii(text: str) -> str:
    return escape(text).encode("ascii", "backslashreplace").decode("ascii")


def bintable(table: Table, name: str) -> fits.BinTableHDU:
    """A table with its units, descriptions and UCDs as a binary table extension; texts are escaped to ASCII.

    By hand, since astropy's own conversion warns about `dex`, and drops descriptions and UCDs.
    """
    columns = []
    for column in table.itercols():
        array = np.asarray(column)
        if array.dtype.kind == "U":
            array = np.array([_ascii(text).encode("ascii") for text in array.tolist()], dtype=bytes)
            form = f"{max(1, array.dtype.itemsize)}A"
        else:
            repeat = array.shape[1] if array.ndim == 2 else 1
            form = f"{repeat}{_FORMATS[array.dtype.str[1:]]}"
        columns.append(fits.Column(column.name, form, _fits_unit(column.unit), array=array))
    hdu = fits.BinTableHDU.from_columns(columns, name=name)
    for n, column in enumerate(table.itercols(), start=1):
        description = column.description or ""
        if column.unit is not None and _fits_unit(column.unit) is None:
            hdu.header[f"XUNIT{n}"] = (str(column.unit), "for which FITS has no word")
            description += f" [{column.unit}]"
        if description:
            hdu.header[f"TCOMM{n}"] = _ascii(description)
        if ucd := column.meta.get("ucd"):
            hdu.header[f"TUCD{n}"] = ucd
    fits_sums.reserve(hdu.header)
    return hdu


def from_bintable(hdu: fits.BinTableHDU) -> Table:
    """The inverse of `bintable`."""
    table, header = Table(), hdu.header
    for n, column in enumerate(hdu.columns, start=1):
        array = np.asarray(hdu.data[column.name])
        if array.dtype.kind in "SU":
            array = np.array([unescape(text) for text in array.astype(str).tolist()], dtype=str)
        else:
            array = array.astype(array.dtype.newbyteorder("="))
        description, unit = header.get(f"TCOMM{n}"), column.unit
        if f"XUNIT{n}" in header:
            unit = header[f"XUNIT{n}"]
            description = description.removesuffix(f"[{unit}]").rstrip(" ")
        table[column.name] = Column(
            array,
            unit=u.Unit(unit) if unit else None,
            description=None if description is None else unescape(description),
            meta={"ucd": header[f"TUCD{n}"]} if f"TUCD{n}" in header else None,
        )
    return table


def read_fits(path: Path) -> Parts:
    """What `write_fits` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: the file is no catalogue, was cut short, or its data are not what was written, by their sums. A
        header that was changed is told of in a warning.
    """
    try:
        # Opened here: where astropy stops in the middle of opening, it leaves the file open.
        with warnings.catch_warnings(), path.open("rb") as file, fits.open(file, memmap=False) as hdus:
            warnings.simplefilter("error", AstropyUserWarning)  # that the file is truncated
            found = [hdu.name for hdu in hdus[1:]]
            if found == _BEFORE:
                return _read_before(hdus, path)
            if wrong := fits_sums.fault(path, headers=False):
                raise ConfigError(f"{path}: damaged: {wrong}; bring back a copy, or predict again")
            if told := fits_sums.fault(path):
                logger.warning("%s: %s: it was edited, or is damaged", path, told)
            if found[:1] != ["CATALOG"] or found[-1] != "PROVENANCE":
                raise ConfigError(
                    f"{path}: expected the table CATALOG and, last, PROVENANCE of a catalogue, found {found}"
                )
            return _read(hdus)
    except FileNotFoundError:
        raise
    except (OSError, AstropyUserWarning) as error:
        raise ConfigError(
            f"{path}: expected a catalogue in FITS, found no readable FITS file ({error})"
        ) from error


def _read(hdus: fits.HDUList) -> Parts:
    pmfs: dict[PmfKey, np.ndarray] = {}
    edges, embeddings = {}, {}
    for hdu in hdus[2:-1]:
        label, arm = (unescape(hdu.header.get(card, "")) for card in ("LABEL", "ARM"))
        kind = hdu.name.partition("_")[0]
        if kind == "PMF":
            pmfs[(label, arm) if arm else label] = _array(hdu)
        elif kind == "EDGES":
            edges[label] = _array(hdu)
        elif kind == "FEATURES":
            embeddings[arm] = _array(hdu)
    told = json.loads(_array(hdus[-1]).tobytes())
    return Parts(from_bintable(hdus[1]), pmfs, edges, told, embeddings)


def _array(hdu: fits.ImageHDU) -> np.ndarray:
    """An image in the machine's byte order; one without rows is no data for astropy."""
    if hdu.data is None:
        shape = tuple(hdu.header[f"NAXIS{n}"] for n in range(hdu.header["NAXIS"], 0, -1))
        return np.zeros(shape, np.float32 if hdu.header["BITPIX"] == -32 else np.float64)
    return hdu.data.astype(hdu.data.dtype.newbyteorder("="))


def _read_before(hdus: fits.HDUList, path: Path) -> Parts:
    """A catalogue whose PMFs, edges and provenance are tables."""
    table, arrays, edge_table, record = (from_bintable(hdus[name]) for name in _BEFORE)
    edges = [[name.removesuffix("_edges"), edge_table[name][0]] for name in edge_table.colnames]
    meta: dict[str, Any] = {
        key: json.loads(value) for key, value in zip(record["key"], record["value"], strict=True)
    }
    said: Mapping[str, Any] = {"edges": edges}
    return from_vectors(table, arrays, said, meta, path)
