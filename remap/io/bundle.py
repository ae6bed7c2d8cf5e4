"""Library bundles: many spectra on one grid in one `.npz` file.

Arrays: `wave_air` and `wave_vac` [N] in Å, `flux` [S, N] (divided by the continuum), `labels` [S, L].
Optional: `label_names` [L], `names` [S], `ivar` [S, N], and the true continuum as `cont_wave_air` [C] in Å
with `continuum` [S, C], to be interpolated linearly. Nothing in it is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from remap.config import ConfigError, Section
from remap.io import containers, npz
from remap.io.axis import wavelengths
from remap.io.content import native_float, reading
from remap.io.declarations import check_choice, check_source
from remap.spectra import Spectra, SpectrumError, make_spectra, to_medium
from remap.writing import write_files

WAVE = {"air": "wave_air", "vacuum": "wave_vac"}
ARRAYS = (
    *WAVE.values(),
    *("flux", "labels", "label_names", "names", "ivar", "cont_wave_air", "continuum"),
)
SHARED = (*WAVE.values(), "label_names", "cont_wave_air")  # by all rows
RENAMED = {"m_h": "feh"}  # the scaled-solar libraries' [M/H] is what the package calls feh


def read_bundle(
    path: Path,
    source: Section,
    within: tuple[float, float] | None = None,
    rows: tuple[int, int] | None = None,
) -> Spectra:
    """Reads the spectra of a bundle, or some of them.

    Args:
      path: the `.npz` file.
      source: format "bundle"; medium, which chooses wave_air or wave_vac; absolute, True for
        flux × interp(wave_air, cont_wave_air, continuum) (erg/s/cm²/Å) and False for flux as stored;
        label_columns, the names of the columns of `labels` in order, where m_h becomes feh; wave_unit,
        which can only be Angstrom and need not be given.
      within: Å, in the medium of the source: pixels outside are dropped before anything there is checked; where
        there are no others, all are kept.
      rows: first and last + 1, of which alone there must be room in memory; None = all.

    Returns:
      The spectra, named `names` or "file.npz[0]" and so on, in the precision of the file.

    Raises:
      SpectrumError: the file is broken, an array is missing or has the wrong shape, or `label_names` there
        contradicts label_columns.
      ValueError: the declaration is wrong.
    """
    required = ("format", "medium", "absolute", "label_columns")
    source = check_source(source, kind="bundle", required=required, optional={"wave_unit": "Angstrom"})
    check_choice(source, "absolute", (True, False), "bundle")
    check_choice(source, "wave_unit", ("Angstrom", "angstrom", "AA", "Å"), "bundle")
    wave_key = WAVE[source["medium"]]
    needed = [wave_key, "flux", "labels"]
    if source["absolute"]:
        needed += ["wave_air", "cont_wave_air", "continuum"]
    first = 0 if rows is None else rows[0]
    with reading(path, "an .npz bundle"):
        arrays = _whole(path, needed) if rows is None else _some(path, needed, rows)

    flux = native_float(arrays["flux"])
    if flux.ndim != 2 or flux.size == 0:
        raise SpectrumError(f"{path}: expected flux of shape [S, N], found {list(flux.shape)}")
    count, pixels = flux.shape
    columns = tuple(str(c) for c in source["label_columns"])
    shapes = {wave_key: (pixels,), "labels": (count, len(columns))}
    if source["absolute"]:
        shapes |= {"wave_air": (pixels,), "continuum": (count, arrays["cont_wave_air"].size)}
    if "ivar" in arrays:
        shapes["ivar"] = (count, pixels)
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise SpectrumError(
                f"{path}: expected {key} of shape {list(shape)}, found {list(arrays[key].shape)}"
            )
    there = tuple(str(n) for n in arrays["label_names"]) if "label_names" in arrays else columns
    if there != columns:
        raise SpectrumError(f"{path}: expected the label columns {list(columns)}, found {list(there)}")
    if within is not None:
        inside = np.flatnonzero((arrays[wave_key] >= within[0]) & (arrays[wave_key] <= within[1]))
        if inside.size:  # from the first to the last, so that a wavelength missing between them is found out
            keep = slice(int(inside[0]), int(inside[-1]) + 1)
            cut = {key: arrays[key][..., keep] for key in ("wave_air", "wave_vac", "ivar") if key in arrays}
            arrays, flux = arrays | cut, flux[:, keep]
    wave = wavelengths(arrays[wave_key], path, axis="linear", wave_unit="Angstrom")

    ivar = arrays.get("ivar")
    if source["absolute"]:
        air = wavelengths(arrays["wave_air"], path, axis="linear", wave_unit="Angstrom")
        nodes = wavelengths(arrays["cont_wave_air"], path, axis="linear", wave_unit="Angstrom")
        if nodes[0] > air[0] or nodes[-1] < air[-1]:
            raise SpectrumError(
                f"{path}: expected a continuum over {air[0]:.6g} to {air[-1]:.6g} Å, found {nodes[0]:.6g} to "
                f"{nodes[-1]:.6g} Å"
            )
        ivar = None if ivar is None else ivar.astype(np.float64)
        for i in range(count):  # row by row: the interpolated continuum is as large as the library
            continuum = np.interp(air, nodes, arrays["continuum"][i])
            flux[i] *= continuum.astype(flux.dtype)
            if ivar is not None:
                ivar[i] /= continuum**2
    names = arrays["names"] if "names" in arrays else [f"{path.name}[{first + i}]" for i in range(count)]
    labels = {RENAMED.get(c, c): arrays["labels"][:, i] for i, c in enumerate(columns)}
    return make_spectra(wave, flux, medium=source["medium"], ivar=ivar, names=names, labels=labels)


def _whole(path: Path, needed: list[str]) -> dict[str, np.ndarray]:
    """The arrays that are needed, and of those that need not be there what is."""
    # np.load leaves a file that it opened itself open when it fails
    with path.open("rb") as file:
        npz.check_archive(file, path, ARRAYS)
        with np.load(file, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in _wanted(loaded.files, needed, path)}


def _some(path: Path, needed: list[str], rows: tuple[int, int]) -> dict[str, np.ndarray]:
    """As `_whole`, of arrays with a row for each spectrum some rows alone."""
    with npz.open_npz(path) as found:
        count = _count(found, path)
        if not 0 <= rows[0] < rows[1] <= count:
            raise SpectrumError(f"{path}: expected rows {rows[0]} to {rows[1]}, found {count}")
        out = {}
        for key in _wanted(found.names, needed, path):
            shape = found.shape(key)
            if key in SHARED:
                out[key] = found.whole(key)
                continue
            if shape[:1] != (count,):
                raise SpectrumError(f"{path}: expected {count} rows of {key}, found shape {list(shape)}")
            containers.check_piece(
                path, 8 * (rows[1] - rows[0]) * int(np.prod(shape[1:])), f"{rows[1] - rows[0]} rows of {key}"
            )
            out[key] = found.rows(key, *rows)
        return out


def _wanted(there: Sequence[str], needed: Sequence[str], path: Path) -> set[str]:
    """The arrays that are read; SpectrumError where one of those needed is missing."""
    missing = [key for key in needed if key not in there]
    if missing:
        raise SpectrumError(f"{path}: expected an array {missing[0]!r}, found {', '.join(sorted(there))}")
    return {*needed, *(key for key in ("label_names", "names", "ivar") if key in there)}


def _count(found: npz.Npz, path: Path) -> int:
    shape = found.shape("flux") if "flux" in found.names else ()
    if len(shape) != 2:
        raise SpectrumError(f"{path}: expected flux of shape [S, N], found {list(shape)}")
    return int(shape[0])


def count_bundle(path: Path) -> int:
    """How many spectra a bundle says that it has.

    Raises:
      SpectrumError: it is damaged.
    """
    with reading(path, "an .npz bundle"), npz.open_npz(path) as found:
        return _count(found, path)


def write_bundle(
    path: str | os.PathLike,
    spectra: Spectra,
    *,
    cont_wave_air: np.ndarray | None = None,
    continuum: np.ndarray | None = None,
) -> None:
    """Writes a bundle that `read_bundle` reads, whole or not at all.

    Invalid pixels are stored as NaN, and the labels under their own names in their own order.

    Args:
      path: the `.npz` file to write or replace.
      spectra: the spectra; `flux` is divided by the continuum where one is given.
      cont_wave_air: float[C], Å in air, covering the spectra; needs `continuum`.
      continuum: float[S, C], the true continuum there.

    Raises:
      ValueError: one of the continuum's arrays is given without the other, or the shapes differ.
    """
    if (cont_wave_air is None) != (continuum is None):
        raise ConfigError("cont_wave_air and continuum go together")
    arrays = {
        key: to_medium(spectra.wave, source=spectra.medium, target=medium) for medium, key in WAVE.items()
    }
    arrays["flux"] = np.where(spectra.valid, spectra.flux, np.nan).astype(spectra.flux.dtype)
    arrays["labels"] = np.array(list(spectra.labels.values()), np.float64).reshape(-1, len(spectra)).T
    arrays["label_names"] = np.array(list(spectra.labels), np.str_)
    arrays["names"] = np.array(spectra.names, np.str_)
    if spectra.ivar is not None:
        arrays["ivar"] = spectra.ivar
    if continuum is not None:
        arrays["cont_wave_air"], arrays["continuum"] = np.asarray(cont_wave_air), np.asarray(continuum)
        expected = (len(spectra), arrays["cont_wave_air"].size)
        if arrays["continuum"].shape != expected:
            raise ConfigError(f"continuum must have shape {expected}, found {arrays['continuum'].shape}")
    write_files({Path(path): lambda file: np.savez_compressed(file, **arrays)})
