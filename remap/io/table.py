"""FITS binary tables with wavelength, flux and inverse variance or error columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy import units
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import files
from remap.spectra import Spectra, SpectrumError, make_spectra

OPTIONAL = {
    "hdu": 1,
    "ivar_column": None,
    "error_column": None,
    "mask_column": None,
    "mask_good": None,
    "mask_bits": None,
}


def read_table_spectrum(path: Path, source: Section, within: tuple[float, float] | None = None) -> Spectra:
    """Reads one spectrum from a FITS binary table: one row per pixel, or one row with an array per column.

    Args:
      path: the file, `.fits` or `.fits.gz`.
      source: format "table"; medium; axis, the meaning of the wavelength column ("linear", "ln", "log10");
        wave_unit; wave_column; flux_column; at most one of ivar_column and error_column (standard
        deviation); mask_column together with mask_good, "zero" or "nonzero": which of its values mean a
        good pixel; mask_bits, an integer that selects the bits of the mask that count (default all);
        hdu (default 1).
      within: wavelengths that are wanted [Å, in the source's medium]; the others are dropped before any check.

    Returns:
      One spectrum; a pixel with a null, non-finite or not positive error or inverse variance is invalid.

    Raises:
      SpectrumError: the file is broken, a column is missing (the message lists those there are) or is no
        column of N numbers, its unit contradicts the declared one, or the wavelengths do not increase.
      ValueError: the declaration is wrong.
    """
    required = ("format", "medium", "axis", "wave_unit", "wave_column", "flux_column")
    source = files.check_source(source, kind="table", required=required, optional=OPTIONAL)
    if source["ivar_column"] and source["error_column"]:
        raise ConfigError("source of table: give ivar_column or error_column, not both")
    if source["mask_column"]:
        files.check_choice(source, "mask_good", ("zero", "nonzero"), "table")
    elif source["mask_good"] is not None or source["mask_bits"] is not None:
        raise ConfigError("source of table: mask_good and mask_bits need a mask_column")

    hdu = source["hdu"]
    with (
        files.reading(path, f"a FITS file with a table in HDU {hdu!r}"),
        files.open_fits(path) as hdus,
    ):
        table = files.pick_hdu(hdus, hdu, path)
        if table.is_image:
            raise SpectrumError(f"{path}: expected a table in HDU {hdu!r}, found an image or nothing")
        columns = {
            key: _column(table, source[key], path)
            for key in ("wave_column", "flux_column", "ivar_column", "error_column", "mask_column")
            if source[key]
        }
        unit = table.columns[source["wave_column"]].unit
    if len({len(c) for c in columns.values()}) > 1:
        found = ", ".join(f"{source[key]} {len(c)}" for key, c in columns.items())
        raise SpectrumError(f"{path}: expected columns of one length, found {found}")
    _check_unit(unit, source, path)
    axis_of = {"axis": source["axis"], "wave_unit": source["wave_unit"]}
    keep = files.pixels_within(_numbers(columns["wave_column"]), path, **axis_of, within=within)
    columns = {key: column[keep] for key, column in columns.items()}
    wave = files.wavelengths(_numbers(columns["wave_column"]), path, **axis_of)

    ivar, valid = None, None
    if source["ivar_column"]:
        ivar = _numbers(columns["ivar_column"])
    elif source["error_column"]:
        error = _numbers(columns["error_column"])
        known = np.isfinite(error) & (error > 0)
        ivar = np.where(known, 1 / np.where(known, error, 1) ** 2, 0)
    if source["mask_column"]:
        mask = columns["mask_column"].data
        if source["mask_bits"] is not None:
            if mask.dtype.kind not in "iu":
                raise SpectrumError(
                    f"{path}: expected integers in {source['mask_column']} for mask_bits, found {mask.dtype}"
                )
            mask = mask & source["mask_bits"]
        valid = (mask == 0) == (source["mask_good"] == "zero")
        valid &= ~columns["mask_column"].mask
    # float64, because inverse variances of fluxes in physical units overflow float32
    return make_spectra(
        wave,
        _numbers(columns["flux_column"]),
        medium=source["medium"],
        valid=valid,
        ivar=ivar,
        names=[path.name],
    )


def _column(table: fits.BinTableHDU, name: str, path: Path) -> np.ma.MaskedArray:
    """A numeric column as [N], nulls masked. FITS does not tell upper from lower case in column names."""
    names = table.columns.names
    if name.lower() not in (n.lower() for n in names):
        raise SpectrumError(f"{path}: expected a column {name!r}, found {', '.join(names)}")
    values = np.asarray(table.data[name])
    if values.ndim == 2 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "biuf":
        raise SpectrumError(
            f"{path}: expected a column {name!r} of N numbers, found {values.dtype} of shape "
            f"{list(values.shape)}"
        )
    null = table.columns[name].null
    masked = values == null if null is not None else np.zeros(values.shape, bool)
    return np.ma.array(values.astype(values.dtype.newbyteorder("=")), mask=masked)


def _numbers(column: np.ma.MaskedArray) -> np.ndarray:
    """float64[N], NaN where masked."""
    return column.astype(np.float64).filled(np.nan)


def _check_unit(unit: str | None, source: Section, path: Path) -> None:
    """Refuses a wavelength column whose own unit is a length other than the declared one."""
    found = units.Unit(unit, parse_strict="silent") if unit else None
    if source["axis"] == "linear" and found is not None and found.physical_type == "length":
        declared = units.Unit(source["wave_unit"])
        if not np.isclose(found.to(declared), 1, rtol=1e-6):
            raise SpectrumError(
                f"{path}: expected {source['wave_column']} in {declared} as declared, found {unit!r}"
            )
