"""Small files of every reader, of which damaged and hostile copies are made, and what each of them declares."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

from remap import io, surveys
from remap.io import write_bundle
from remap.spectra import make_spectra

N = 200  # pixels
RNG = np.random.default_rng(3)
FLUX = RNG.normal(1, 0.1, N).astype(np.float32)
WAVE = 5000 + 0.5 * np.arange(N)
BASE = {"medium": "air", "wave_unit": "Angstrom"}
ARRAYS = {
    "wave": WAVE,
    "flux": np.stack([FLUX] * 3),
    "ivar": np.ones((3, N), np.float32),
    "mask": np.zeros((3, N), np.int8),
    "ids": np.arange(3),
    "ra": np.linspace(0.0, 90.0, 3),
}
AXIS = {"CRVAL1": 5000.0, "CD1_1": 0.5, "CDELT1": 0.5, "CRPIX1": 1}
TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVE",
    "flux_column": "FLUX",
    "ivar_column": "IVAR",
    "mask_column": "MASK",
    "mask_good": "zero",
    "facts": {"star_id": "OBJECT", "snr": "SNR", "rv": {"column": "Z", "hdu": 2, "factor": 299792.458}},
    "line_spread": {"place": {"column": "W"}, "kind": "fwhm"},
}
TARGETS = {
    "format": "targets",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_hdu": r"(?P<segment>[A-Z]+)_WAVELENGTH",
    "flux_hdu": "{segment}_FLUX",
    "ivar_hdu": "{segment}_IVAR",
    "mask_hdu": "{segment}_MASK",
    "mask_good": "zero",
    "resolution_hdu": "{segment}_RESOLUTION",
    "targets_hdu": "FIBERMAP",
    "facts": {"star_id": {"column": "TARGETID"}, "ra": {"column": "RA"}},
}
LABELS = {
    "columns": {"teff": "TEFF", "logg": "LOGG"},
    "error_columns": {"teff": "E_TEFF"},
    "file_column": "FILE",
    "rv_column": "RV",
}


def image(path: Path) -> dict[str, Any]:
    """Rows of flux, inverse variance and mask; the axis in the header."""
    header = fits.Header(AXIS | {"OBJECT": "a star", "RA": 10.0})
    fits.writeto(path, np.stack([FLUX, FLUX**2, np.zeros(N, np.float32)]), header)
    source = {"format": "image", "axis": "linear", "flux": {"row": 0}, "ivar": {"row": 1}, "mask": {"row": 2}}
    return source | BASE | {"mask_good": "zero", "facts": {"star_id": "OBJECT", "ra": "RA"}}


def summed(path: Path) -> dict[str, Any]:
    """The same with CHECKSUM and DATASUM."""
    source = image(path)
    with fits.open(path) as hdus:
        hdus.writeto(path, overwrite=True, checksum=True)
    return source


def hdus(path: Path) -> dict[str, Any]:
    """Flux, errors and wavelengths, each in an HDU; the wavelengths fall."""
    parts = [("F", FLUX), ("E", np.abs(FLUX)), ("W", (6000 - 0.5 * np.arange(N)).astype(np.float64))]
    images = [fits.ImageHDU(data, name=name) for name, data in parts]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(path)
    places = {"hdu": "F", "error": {"hdu": "E"}, "wave": {"hdu": "W"}}
    return {"format": "image", "axis": "linear"} | places | BASE


def packed(path: Path) -> dict[str, Any]:
    """An image packed by tiles."""
    data = (1000 * FLUX).astype(np.int32)[None]
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(data, fits.Header(AXIS))]).writeto(path)
    return {"format": "image", "axis": "linear"} | BASE


def iraf(path: Path) -> dict[str, Any]:
    """Two orders, one linear and one of a polynomial."""
    specs = f"1 1 0 5000. 0.5 {N} 0. 0 0", f"2 2 2 0 0 {N} 0. 0 0 1. 0. 2 2 1 {N} 5200 50"
    words = f'wtype=multispec spec1 = "{specs[0]}" spec2 = "{specs[1]}"'
    header = fits.Header({"CTYPE1": "MULTISPE"})
    for i in range(0, len(words), 68):
        header[f"WAT2_{i // 68 + 1:03d}"] = words[i : i + 68]
    fits.writeto(path, np.stack([FLUX, FLUX]), header)
    return {"format": "iraf"} | BASE


def text(path: Path) -> dict[str, Any]:
    """Two columns."""
    np.savetxt(path, np.c_[WAVE, FLUX], fmt="%.6f", header="wave flux")
    return {"format": "text", "axis": "linear"} | BASE


def bundle(path: Path) -> dict[str, Any]:
    """Two spectra of a library."""
    spectra = make_spectra(WAVE, np.stack([FLUX, FLUX]), medium="air", labels={"teff": [5e3, 6e3]})
    write_bundle(path, spectra)
    return {"format": "bundle", "medium": "air", "absolute": False, "label_columns": ("teff",)}


def arrays_npz(path: Path) -> dict[str, Any]:
    """Three spectra as arrays."""
    np.savez(path, **ARRAYS)
    return {"format": "arrays", "medium": "air"}


def arrays_hdf5(path: Path) -> dict[str, Any]:
    """The same in HDF5, with checksums."""
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            packed = {"chunks": (2, N), "compression": "gzip", "fletcher32": True} if array.ndim == 2 else {}
            file.create_dataset(name, data=array, **packed)
    return {"format": "arrays", "medium": "air"}


def arrays_parquet(path: Path) -> dict[str, Any]:
    """The same in Parquet, with checksums."""
    import pyarrow
    import pyarrow.parquet

    columns = {name: list(array) for name, array in ARRAYS.items() if name != "wave"}
    table = pyarrow.table(columns, metadata={"wave": json.dumps(WAVE.tolist())})
    pyarrow.parquet.write_table(table, path, row_group_size=2, write_page_checksum=True)
    return {"format": "arrays", "medium": "air"}


def phoenix(path: Path) -> dict[str, Any]:
    """A model, whose wavelengths are in another file."""
    labels = {"PHXTEFF": 5000, "PHXLOGG": 4.5, "PHXM_H": 0.0, "PHXALPHA": 0.0}
    fits.writeto(path, FLUX, fits.Header(labels))
    fits.writeto(path.with_name("WAVE.fits"), WAVE, overwrite=True)
    return {"format": "phoenix_hires", "wave_path": "WAVE.fits"} | BASE


def phoenix_wave(path: Path) -> dict[str, Any]:
    """The wavelengths of a model."""
    fits.writeto(path, WAVE)
    fits.writeto(path.with_name("flux.fits"), FLUX, overwrite=True)
    return {"format": "phoenix_hires", "wave_path": path.name} | BASE


def pixels(path: Path) -> dict[str, Any]:
    """A table with a row for each pixel, and another of facts."""
    columns = {"WAVE": WAVE, "FLUX": FLUX, "IVAR": FLUX, "MASK": np.zeros(N, np.int16), "W": FLUX}
    table = fits.BinTableHDU(Table(columns), name="COADD")
    table.columns["WAVE"].unit = "Angstrom"
    facts = fits.BinTableHDU(Table({"Z": [1e-4], "CLASS": ["STAR"]}), name="SPALL")
    primary = fits.PrimaryHDU(header=fits.Header({"OBJECT": "A", "SNR": 20.0}))
    fits.HDUList([primary, table, facts]).writeto(path)
    return TABLE


def vectors(path: Path) -> dict[str, Any]:
    """A table whose cells are arrays, one of them in the heap."""
    columns = {"WAVE": WAVE, "FLUX": FLUX, "IVAR": FLUX, "W": FLUX, "MASK": np.zeros(N, np.int16)}
    kinds = {"WAVE": f"{N}D", "FLUX": f"{N}E", "IVAR": f"{N}E", "W": "PE()", "MASK": f"{N}I"}
    cells = {k: np.array([v, None], dtype=object)[:1] if k == "W" else v[None] for k, v in columns.items()}
    made = [fits.Column(k, kinds[k], array=v) for k, v in cells.items()]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(path)
    return TABLE


def letters(path: Path) -> dict[str, Any]:
    """A table of text, as FITS has them too."""
    wave = fits.Column("WAVE", "F12.4", array=WAVE, ascii=True)
    flux = fits.Column("FLUX", "E15.7", array=FLUX, ascii=True)
    fits.HDUList([fits.PrimaryHDU(), fits.TableHDU.from_columns([wave, flux])]).writeto(path)
    return {
        key: TABLE[key] for key in ("format", "medium", "axis", "wave_unit", "wave_column", "flux_column")
    }


def targets(path: Path) -> dict[str, Any]:
    """Three targets in two arms."""
    table = Table({"TARGETID": np.arange(3), "RA": np.arange(3.0)})
    parts = [fits.PrimaryHDU(), fits.BinTableHDU(table, name="FIBERMAP")]
    for arm in "BR":
        rows = np.stack([FLUX] * 3)
        images = {"WAVELENGTH": WAVE, "FLUX": rows, "IVAR": rows, "MASK": np.zeros((3, N), np.uint32)}
        images["RESOLUTION"] = np.ones((3, 5, N), np.float32)
        parts += [fits.ImageHDU(data, name=f"{arm}_{name}") for name, data in images.items()]
    fits.HDUList(parts).writeto(path)
    return TARGETS


def several(path: Path) -> dict[str, Any]:
    """A file of a survey whose files come in several layouts."""
    pixels(path)
    text = {"when": {"kind": "text"}, "format": "text", "axis": "linear", **BASE}
    rows = {"when": {"rises": {"hdu": 0, "row": 2}, "shape": {"hdu": 0, "shape": (5, None)}}}
    tables = {"when": {"columns": {"hdu": 1, "names": ("WAVE",)}, "keywords": {"OBJECT": "A"}}}
    return {
        "format": "any",
        "options": (text, rows | {"format": "image", "axis": "linear"} | BASE, tables | TABLE),
    }


def _labels() -> Table:
    table = Table({"FILE": [f"star{i}.fits" for i in range(20)], "TEFF": 5000.0 + np.arange(20)})
    table["LOGG"] = 4.0 + np.arange(20) / 100
    table["E_TEFF"], table["RV"] = 100.0, np.linspace(-20.0, 20.0, 20)
    table["TEFF"].unit = "K"
    return table


def labels_fits(path: Path) -> dict[str, Any]:
    """A table of labels."""
    table = fits.BinTableHDU(_labels())
    table.header["TUNIT3"] = "log(cm/s**2)"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return {"format": "fits"} | LABELS


def labels_csv(path: Path) -> dict[str, Any]:
    """The same as CSV."""
    _labels().write(path, format="ascii.csv")
    return {"format": "csv"} | LABELS


def labels_ecsv(path: Path) -> dict[str, Any]:
    """The same as ECSV, with some metadata."""
    table = _labels()
    table.meta = {"survey": "x", "limits": {"teff": [4000, 7000]}}
    table.write(path, format="ascii.ecsv")
    return {"format": "ecsv"} | LABELS


def _read_header(path: Path, source: dict[str, Any]) -> object:
    return io.labels_from_header(path, source["labels"])


def header_labels(path: Path) -> dict[str, Any]:
    """Labels in a header."""
    phoenix(path)
    return {"labels": {"teff": "PHXTEFF", "logg": {"keyword": "PHXLOGG", "missing": (-9,)}}}


def _identify(path: Path, source: dict[str, Any]) -> object:
    return surveys.identify(path), surveys.describe(path)


def _velocities(path: Path, source: dict[str, Any]) -> object:
    return io.read_velocities(path, column="RV", name_column="FILE")


def _read(path: Path, source: dict[str, Any]) -> object:
    return io.read_segments(path, source=source)


def _read_pieces(path: Path, source: dict[str, Any]) -> object:
    """All of a file, and all of it in pieces of two spectra."""
    pieces = [(piece.first, piece.last) for piece in io.split(path, source=source, most=2)]
    found = [io.read_segments(path, source=source, rows=rows) for rows in (None, *pieces)]
    return tuple(part for parts in found for part in parts)


def _read_wave(path: Path, source: dict[str, Any]) -> object:
    return io.read(path.with_name("flux.fits"), source=source)


def _read_labels(path: Path, source: dict[str, Any]) -> object:
    return io.read_labels(path, source=source)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A small file and its reader.

    Attributes:
      file: its name.
      write: writes it and gives its declaration.
      read: reads it, or what belongs to it, with a declaration.
      spectra: whether `read` gives spectra.
    """

    file: str
    write: Callable[[Path], dict[str, Any]]
    read: Callable[[Path, dict[str, Any]], object] = _read
    spectra: bool = True


_Other = functools.partial(Sample, spectra=False)
SAMPLES = {
    "image": Sample("image.fits", image),
    "checksums": Sample("summed.fits", summed),
    "image_hdus": Sample("hdus.fits", hdus),
    "image_packed": Sample("packed.fits.fz", packed),
    "iraf": Sample("iraf.fits", iraf),
    "text": Sample("x.txt", text),
    "bundle": Sample("x.npz", bundle),
    "arrays": Sample("arrays.npz", arrays_npz, _read_pieces),
    "phoenix": Sample("lte.fits", phoenix),
    "phoenix_wave": Sample("wave.fits", phoenix_wave, _read_wave),
    "table": Sample("pixels.fits", pixels),
    "table_vectors": Sample("vectors.fits", vectors),
    "table_text": Sample("letters.fits", letters),
    "targets": Sample("targets.fits", targets),
    "targets_pieces": Sample("pieces.fits", targets, _read_pieces),
    "any": Sample("several.fits", several),
    "labels_fits": _Other("labels.fits", labels_fits, _read_labels),
    "labels_csv": _Other("labels.csv", labels_csv, _read_labels),
    "labels_ecsv": _Other("labels.ecsv", labels_ecsv, _read_labels),
    "labels_header": _Other("header.fits", header_labels, _read_header),
    "velocities": _Other("velocities.csv", labels_csv, _velocities),
    "identify": _Other("unknown.fits", targets, _identify),
}
if importlib.util.find_spec("h5py"):
    SAMPLES["arrays_hdf5"] = Sample("arrays.h5", arrays_hdf5, _read_pieces)
if importlib.util.find_spec("pyarrow"):
    SAMPLES["arrays_parquet"] = Sample("arrays.parquet", arrays_parquet, _read_pieces)
