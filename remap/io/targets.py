"""FITS files with many targets: an image [S, N] for each arm and quantity, a table with one row for each target."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import bintable, facts, files, places, segments, wave_units
from remap.spectra import Spectra, SpectrumError

QUANTITIES = ("flux_hdu", "ivar_hdu", "error_hdu", "mask_hdu", "resolution_hdu")
REQUIRED = ("format", "medium", "axis", "wave_unit", "wave_hdu", "flux_hdu", "targets_hdu")
OPTIONAL = {
    "ivar_hdu": None,
    "error_hdu": None,
    "mask_hdu": None,
    "mask_good": None,
    "mask_bits": None,
    "resolution_hdu": None,
    "no_target": None,
    **segments.COMMON,
}
MATRIX = {"place": {}, "kind": "fwhm_pixels"}  # what `_segment` hands over


def read_target_spectra(
    path: Path, source: Section, *, within: tuple[float, float] | None = None
) -> tuple[Spectra, ...]:
    """Reads all targets of a FITS file that has, for each arm, HDUs of wavelengths [N], flux [S, N] and so on.

    A row without a good pixel (no target, or blanked by the pipeline) is a row of invalid pixels.

    Args:
      path: the file, `.fits` or `.fits.gz`.
      source: format "targets"; medium; axis; wave_unit; wave_hdu, a regular expression that the names of the HDUs
        with wavelengths match and whose group `segment` is the name of the arm; flux_hdu and, if there are any, one
        of ivar_hdu and error_hdu, and mask_hdu with mask_good ("zero" or "nonzero") and mask_bits, and
        resolution_hdu, all of them names in which `{segment}` stands for the arm; targets_hdu, the name of the table
        with a row for each spectrum, where the columns of facts are looked for if they name no other table;
        no_target, {"column": ..., "values": (...)}: rows that are marked so have no target, and no good pixel;
        line_spread, as elsewhere, which goes before resolution_hdu. That HDU holds the resolution matrix of every
        spectrum [S, D, N]: element k of pixel j is the response of the pixel D//2 - k further (see `matrix_fwhm`);
        the median over the spectra is taken.
      within: Å; pixels outside are dropped before any check.

    Returns:
      One `Spectra` of S rows for each arm, in the order of the file, named "file[star_id]", or
      "file[star_id,exposure]" where a star has several rows.

    Raises:
      SpectrumError: the file is broken, an HDU is missing or has the wrong shape, or the tables disagree.
      ValueError: the declaration is wrong.
    """
    source = files.check_source(source, kind="targets", required=REQUIRED, optional=OPTIONAL)
    source = {key: files.plain(value) for key, value in source.items()}
    if source["ivar_hdu"] and source["error_hdu"]:
        raise ConfigError("source of targets: give ivar_hdu or error_hdu, not both")
    if source["segments"] is not None:
        raise ConfigError("source of targets: segments are what wave_hdu matches; leave segments out")
    if source["mask_hdu"]:
        files.check_choice(source, "mask_good", ("zero", "nonzero"), "targets")
    elif source["mask_good"] is not None or source["mask_bits"] is not None:
        raise ConfigError("source of targets: mask_good and mask_bits need a mask_hdu")
    try:
        pattern = re.compile(source["wave_hdu"], re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"source of targets: {error} in wave_hdu {source['wave_hdu']!r}") from error
    if "segment" not in pattern.groupindex:
        raise ConfigError(
            f"source of targets: wave_hdu needs a group (?P<segment>...), found {pattern.pattern!r}"
        )
    _check_no_target(source["no_target"])
    declared = facts.check_facts(source["facts"], "targets")
    source["line_spread"] = facts.check_spread(source["line_spread"], "targets")
    if source["line_spread"] and "place" in source["line_spread"]:
        raise ConfigError("source of targets: a line_spread of the file is that of resolution_hdu")

    with files.reading(path, "a FITS file with many targets"), files.open_fits(path) as hdus:
        found = [(i, m.group("segment")) for i, hdu in enumerate(hdus) if (m := pattern.fullmatch(hdu.name))]
        if not found:
            raise SpectrumError(
                f"{path}: expected HDUs like {pattern.pattern!r}, found {segments.describe(hdus)}"
            )
        table = files.pick_hdu(hdus, source["targets_hdu"], path)
        if table.is_image:
            raise SpectrumError(f"{path}: expected a table in HDU {source['targets_hdu']!r}, found an image")
        table = bintable.open_table(table, path)
        count = table.rows
        if count == 0:
            raise SpectrumError(f"{path}: expected targets in HDU {source['targets_hdu']!r}, found no rows")
        marked = _marked(table, source["no_target"])
        names = None
        out = []
        for index, segment in found:
            unit = hdus[index].header.get("BUNIT")
            wave_units.check(
                str(unit or ""),
                path,
                axis=source["axis"],
                wave_unit=source["wave_unit"],
                what=hdus[index].name,
            )
            arrays = _arrays(hdus, index, segment, source, count, path)
            told = _gather(declared, segment, source, hdus, count, path)
            if names is None:
                names = _names(path, told, count)
            spread = source["line_spread"] or MATRIX  # which means None where there is no matrix
            out.append(
                (
                    _segment(arrays, marked, names, told, segment, source, path),
                    {**source, "line_spread": spread},
                )
            )
    return segments.build_all(out, path, within)


def _check_no_target(mark: Any) -> None:
    if mark is not None and (
        not isinstance(mark, Mapping)
        or set(mark) != {"column", "values"}
        or not isinstance(mark["column"], str)
        or not isinstance(mark["values"], tuple)
    ):
        raise ConfigError(f"source of targets: no_target must have a column and values, found {mark!r}")


def _marked(table: bintable.BinTable, mark: Mapping[str, Any] | None) -> np.ndarray:
    """True for the rows `[S]` that have no target; none where the table does not say."""
    if mark is None or mark["column"].lower() not in table.fields:
        return np.zeros(table.rows, bool)
    values = [facts.as_text(value) for value in table.cells(mark["column"])]
    return np.isin(values, [facts.as_text(value) for value in mark["values"]])


def _arrays(
    hdus: fits.HDUList, index: int, segment: str, source: Mapping[str, Any], count: int, path: Path
) -> dict[str, np.ndarray]:
    """Wavelengths `[N]`, and each quantity that is declared `[S, N]` (the resolution matrix `[S, D, N]`)."""
    wave = places.native(
        places.image_row(_image(hdus[index], path), None, path, where=f"HDU {hdus[index].name!r}")
    )
    out = {"wave_hdu": wave}
    for key in QUANTITIES:
        if not source[key] or (key == "resolution_hdu" and source["line_spread"]):
            continue
        name = source[key].replace("{segment}", segment)
        if (
            key == "resolution_hdu" and name not in hdus
        ):  # as in files of one target; the line spread is unknown then
            continue
        data = _image(files.pick_hdu(hdus, name, path), path)
        shape = data.shape[::2] if key == "resolution_hdu" and data.ndim == 3 else data.shape
        if shape != (count, wave.size) or (key == "resolution_hdu" and data.ndim != 3):
            wanted = f"[{count}, {'D, ' if key == 'resolution_hdu' else ''}{wave.size}]"
            raise SpectrumError(
                f"{path}: expected an image {wanted} in HDU {name!r}, as many as targets and wavelengths, found "
                f"{list(data.shape)}"
            )
        out[key] = data
    return out


def _image(hdu: Any, path: Path) -> np.ndarray:
    if not hdu.is_image or hdu.data is None or hdu.data.size == 0:
        raise SpectrumError(f"{path}: expected an image in HDU {hdu.name!r}, found a table or nothing")
    return hdu.data


def _gather(
    declared: Mapping[str, Any],
    segment: str,
    source: Mapping[str, Any],
    hdus: fits.HDUList,
    count: int,
    path: Path,
) -> dict[str, np.ndarray]:
    """The facts of the rows; `{segment}` in the name of a column or HDU stands for the arm.

    A table beside that of the targets counts only if it has as many rows, of the same targets.
    """
    filled = {
        fact: tuple(
            {
                k: v.replace("{segment}", segment) if k in ("column", "hdu") and isinstance(v, str) else v
                for k, v in p.items()
            }
            for p in options
            if "column" not in p or _agrees(hdus, p.get("hdu"), source, declared, count, path)
        )
        for fact, options in declared.items()
    }
    told = facts.gather(filled, path, hdus=hdus, hdu=source["targets_hdu"], rows=range(count), count=count)
    return told | {"segment": np.full(count, segment, dtype=object)}


def _agrees(
    hdus: fits.HDUList,
    hdu: int | str | None,
    source: Mapping[str, Any],
    declared: Mapping[str, Any],
    count: int,
    path: Path,
) -> bool:
    """Whether the rows of a table are those of the table of targets."""
    if hdu is None or hdu == source["targets_hdu"]:
        return True
    try:
        table = bintable.open_table(hdus[hdu], path)
    except (KeyError, IndexError, SpectrumError):
        return False
    targets = bintable.open_table(hdus[source["targets_hdu"]], path)
    for place in declared.get("star_id", ()):
        column = (place.get("column") or "").lower()
        if place.get("hdu") is None and column in table.fields and column in targets.fields:
            return np.array_equal(table.cells(column), targets.cells(column))
    return table.rows == count


def _names(path: Path, told: Mapping[str, np.ndarray], count: int) -> tuple[str, ...]:
    """S names that differ: of the target, and the exposure or the row where a target has several."""
    targets = [str(t) for t in told.get("star_id", [""] * count)]
    if Counter(targets).most_common(1)[0][1] > 1:
        exposures = [str(e) for e in told.get("exposure", [""] * count)]
        targets = [f"{t},{e}" if e else t for t, e in zip(targets, exposures, strict=True)]
    often = Counter(targets)
    return tuple(
        f"{path.name}[{t}]" if t and often[t] == 1 else f"{path.name}[{t}#{i}]" for i, t in enumerate(targets)
    )


def _segment(
    arrays: Mapping[str, np.ndarray],
    marked: np.ndarray,
    names: tuple[str, ...],
    told: Mapping[str, np.ndarray],
    segment: str,
    source: Mapping[str, Any],
    path: Path,
) -> segments.Segment:
    flux = files.native_float(arrays["flux_hdu"])
    ivar, error = (files.native_float(arrays[k]) if k in arrays else None for k in ("ivar_hdu", "error_hdu"))
    valid = np.ones(flux.shape, bool)
    if "mask_hdu" in arrays:
        valid = places.good_pixels(
            places.native(arrays["mask_hdu"]),
            path,
            good=source["mask_good"],
            bits=source["mask_bits"],
            what=source["mask_hdu"].replace("{segment}", segment),
        )
    valid &= ~marked[:, None]
    good = valid & np.isfinite(flux)
    for sizes in (ivar, error):
        if sizes is not None:
            good &= np.isfinite(sizes) & (sizes > 0)
    spread = None
    if "resolution_hdu" in arrays and good.any():
        rows = np.flatnonzero(good.any(1))
        spread = np.stack([matrix_fwhm(arrays["resolution_hdu"][row]) for row in rows])
        spread = np.where(good[rows], spread, np.nan)
    return segments.Segment(
        coordinate=np.asarray(arrays["wave_hdu"], np.float64),
        flux=flux,
        ivar=ivar,
        error=error,
        valid=valid,
        spread=spread,
        names=names,
        facts=told,
    )


def matrix_fwhm(diagonals: np.ndarray) -> np.ndarray:
    """FWHM of the line spread at every pixel, in pixels, of a resolution matrix stored by its diagonals.

    Element [k, j] is the response of pixel j + k - D//2 to light of pixel j, or its mirror image. The width is that
    of the Gaussian of the same variance, Σ c x² / Σ c - (Σ c x / Σ c)², because variances are what adds up when the
    spectrum is degraded further.

    Args:
      diagonals: float[D, N], D odd.

    Returns:
      float64[N]; NaN where the matrix is empty or has no positive variance.

    Examples:
      >>> import numpy as np
      >>> x = np.arange(-5, 6)
      >>> gauss = np.exp(-0.5 * (x / 0.9) ** 2)
      >>> print((matrix_fwhm(gauss[:, None]) / 0.9).round(3))
      [2.355]
    """
    values = np.asarray(diagonals, np.float64)
    x = (np.arange(values.shape[0]) - values.shape[0] // 2)[:, None]
    with np.errstate(all="ignore"):  # empty columns, and whatever a damaged file may hold
        total = values.sum(0)
        mean = (values * x).sum(0) / total
        variance = (values * x**2).sum(0) / total - mean**2
        width = facts.SIGMA * np.sqrt(variance)
    return np.where(np.isfinite(width) & (width > 0) & (total > 0), width, np.nan)
