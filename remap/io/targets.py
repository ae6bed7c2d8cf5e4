"""FITS files with many targets: an image [S, N] for each arm and quantity, a table with one row for each target."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.io import bintable, facts, places, segments, wave_units
from remap.io.content import is_packed, native_float, reading
from remap.io.declarations import check_choice, check_source, plain
from remap.io.fits_files import open_fits, pick_hdu
from remap.io.stars import asked
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
SAMPLE = 1024  # rows whose resolution matrices are looked at; in longer files they are spread over all rows
BLOCK = 64  # of them that are in memory


def read_target_spectra(
    path: Path,
    source: Section,
    *,
    within: tuple[float, float] | None = None,
    rows: tuple[int, int] | None = None,
    together: bool = True,
) -> tuple[Spectra, ...]:
    """Reads the targets of a FITS file that has, for each arm, HDUs of wavelengths [N], flux [S, N] and so on.

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
        the median over the spectra is taken (over 1,024 of them, evenly spread, where there are more).
      within: Å; pixels outside are dropped before any check.
      rows: which targets, the first and the last + 1 in the order in which the file has them first, each with all its
        rows; pixels of others are not read. None = all.

    Returns:
      One `Spectra` of S rows for each arm, in the order of the file, named "file[star_id]", or
      "file[star_id,exposure]" where a star has several rows.

    Raises:
      SpectrumError: the file is broken, an HDU is missing or has the wrong shape, or the tables disagree.
      ValueError: the declaration is wrong.
    """
    source, pattern = _check(source)
    with (
        reading(path, "a FITS file with many targets"),
        open_fits(path, pieces=rows is not None) as hdus,
    ):
        table, found, stars = _open(hdus, source, pattern, path)
        index = None if rows is None else _chosen(_numbered(stars, together=together), rows, path)
        count = table.rows if index is None else len(index)
        marked = _marked(table, source["no_target"])
        names = _names(path, stars, _exposures(hdus, found[0][1], source, table.rows, path))
        names = names if index is None else tuple(names[i] for i in index)
        out = []
        for number, segment in found:
            unit = hdus[number].header.get("BUNIT")
            wave_units.check(
                str(unit or ""),
                path,
                axis=source["axis"],
                wave_unit=source["wave_unit"],
                what=hdus[number].name,
            )
            places_of = _places(hdus, number, segment, source, table.rows, path)
            told = _gather(source["facts"], segment, source, hdus, table.rows, path, index)
            arrays = {key: _rows(hdu, index) for key, hdu in places_of.items() if key != "resolution_hdu"}
            valid, good = _good(arrays, marked if index is None else marked[index], segment, source, path)
            part = segments.Segment(
                coordinate=_wave(hdus[number], path).astype(np.float64),
                flux=native_float(arrays["flux_hdu"]),
                ivar=None if "ivar_hdu" not in arrays else native_float(arrays["ivar_hdu"]),
                error=None if "error_hdu" not in arrays else native_float(arrays["error_hdu"]),
                valid=valid,
                spread=_spread(places_of, marked, segment, source, path, good if index is None else None),
                names=names,
                facts=told | {"segment": np.full(count, segment, dtype=object)},
            )
            spread = source["line_spread"] or MATRIX  # which means None where there is no matrix
            out.append((part, {**source, "line_spread": spread}))
    return segments.build_all(out, path, within)


def split_targets(
    path: Path, source: Section, most: int, *, together: bool = True
) -> list[tuple[int, int, int]]:
    """A file of targets in pieces, for `rows` of `read_target_spectra`: first and last + 1 target, and their rows.

    An archive is one piece, since none of it can be unpacked without what is before.

    Args:
      path, source, together: as there.
      most: rows of a piece, if a single target does not have more.
    """
    source, pattern = _check(source)
    with (
        reading(path, "a FITS file with many targets"),
        open_fits(path, pieces=True) as hdus,
    ):
        _, _, stars = _open(hdus, source, pattern, path)
    counts = np.bincount(_numbered(stars, together=together))
    if is_packed(path):
        return [(0, len(counts), int(counts.sum()))]
    out, first = [], 0
    for i in range(len(counts)):
        total = int(counts[first : i + 1].sum())
        if i > first and total > most:
            out.append((first, i, total - int(counts[i])))
            first = i
    return [*out, (first, len(counts), int(counts[first:].sum()))]


def target_stars(
    path: Path, source: Section, rows: tuple[int, int] | None = None, *, together: bool = True
) -> dict[str, np.ndarray]:
    """The facts `stars.WHOSE` of the rows that `read_target_spectra` would read; reads no pixels."""
    source, pattern = _check(source)
    with (
        reading(path, "a FITS file with many targets"),
        open_fits(path, pieces=True) as hdus,
    ):
        table, found, stars = _open(hdus, source, pattern, path)
        only = {name: source["facts"][name] for name in asked(source["facts"])}
        told = _gather(only, found[0][1], source, hdus, table.rows, path, None)
        index = slice(None) if rows is None else _chosen(_numbered(stars, together=together), rows, path)
        return {name: values[index] for name, values in told.items()}


def _open(
    hdus: fits.HDUList, source: Mapping[str, Any], pattern: re.Pattern, path: Path
) -> tuple[bintable.BinTable, list[tuple[int, str]], list[str]]:
    """The table of targets, number and name of the arms' HDUs of wavelengths, and whose the rows are."""
    found = [(i, m.group("segment")) for i, hdu in enumerate(hdus) if (m := pattern.fullmatch(hdu.name))]
    if not found:
        raise SpectrumError(
            f"{path}: expected HDUs like {pattern.pattern!r}, found {segments.describe(hdus)}"
        )
    table = pick_hdu(hdus, source["targets_hdu"], path)
    if table.is_image:
        raise SpectrumError(f"{path}: expected a table in HDU {source['targets_hdu']!r}, found an image")
    table = bintable.open_table(table, path)
    if table.rows == 0:
        raise SpectrumError(f"{path}: expected targets in HDU {source['targets_hdu']!r}, found no rows")
    only = {name: source["facts"][name] for name in ("star_id",) if name in source["facts"]}
    told = _gather(only, found[0][1], source, hdus, table.rows, path, None)
    return table, found, [str(star) for star in told.get("star_id", [""] * table.rows)]


def _exposures(
    hdus: fits.HDUList, segment: str, source: Mapping[str, Any], count: int, path: Path
) -> list[str]:
    """The names of the exposures of all rows, "" = none."""
    only = {name: source["facts"][name] for name in ("exposure",) if name in source["facts"]}
    told = _gather(only, segment, source, hdus, count, path, None)
    return [str(exposure) for exposure in told.get("exposure", [""] * count)]


def _numbered(stars: Sequence[str], *, together: bool) -> np.ndarray:
    """int[S]: the targets in the order in which rows have them first; a row without identifier is one of its own.

    The number of the row where targets are not kept together.
    """
    known: dict[object, int] = {}
    wanted = [(star if together else "") or i for i, star in enumerate(stars)]
    return np.array([known.setdefault(star, len(known)) for star in wanted])


def _chosen(numbers: np.ndarray, rows: tuple[int, int], path: Path) -> np.ndarray:
    """int[K]: the rows of some targets."""
    if not 0 <= rows[0] < rows[1] <= numbers.max() + 1:
        raise SpectrumError(f"{path}: expected targets {rows[0]} to {rows[1]}, found {numbers.max() + 1}")
    return np.flatnonzero((numbers >= rows[0]) & (numbers < rows[1]))


def _check(source: Section) -> tuple[dict[str, Any], re.Pattern]:
    """The declaration, and what the names of the HDUs of wavelengths match."""
    source = check_source(source, kind="targets", required=REQUIRED, optional=OPTIONAL)
    source = {key: plain(value) for key, value in source.items()}
    if source["ivar_hdu"] and source["error_hdu"]:
        raise ConfigError("source of targets: give ivar_hdu or error_hdu, not both")
    if source["segments"] is not None:
        raise ConfigError("source of targets: segments are what wave_hdu matches; leave segments out")
    if source["mask_hdu"]:
        check_choice(source, "mask_good", ("zero", "nonzero"), "targets")
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
    source["facts"] = facts.check_facts(source["facts"], "targets")
    source["line_spread"] = facts.check_spread(source["line_spread"], "targets")
    if source["line_spread"] and "place" in source["line_spread"]:
        raise ConfigError("source of targets: a line_spread of the file is that of resolution_hdu")
    return source, pattern


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


def _places(
    hdus: fits.HDUList, number: int, segment: str, source: Mapping[str, Any], count: int, path: Path
) -> dict[str, Any]:
    """The HDU of each quantity that is declared: an image `[S, N]` (the resolution matrix `[S, D, N]`)."""
    pixels = _wave(hdus[number], path).size
    out = {}
    for key in QUANTITIES:
        if not source[key] or (key == "resolution_hdu" and source["line_spread"]):
            continue
        name = source[key].replace("{segment}", segment)
        if (
            key == "resolution_hdu" and name not in hdus
        ):  # as in files of one target; the line spread is unknown then
            continue
        hdu = _image(pick_hdu(hdus, name, path), path)
        shape = hdu.shape[::2] if key == "resolution_hdu" and len(hdu.shape) == 3 else hdu.shape
        if shape != (count, pixels) or (key == "resolution_hdu" and len(hdu.shape) != 3):
            wanted = f"[{count}, {'D, ' if key == 'resolution_hdu' else ''}{pixels}]"
            raise SpectrumError(
                f"{path}: expected an image {wanted} in HDU {name!r}, as many as targets and wavelengths, found "
                f"{list(hdu.shape)}"
            )
        out[key] = hdu
    return out


def _wave(hdu: Any, path: Path) -> np.ndarray:
    """The wavelengths `[N]` of an arm."""
    return places.native(places.image_row(_image(hdu, path).data, None, path, where=f"HDU {hdu.name!r}"))


def _image(hdu: Any, path: Path) -> Any:
    """An HDU that has an image."""
    if not hdu.is_image or not hdu.shape or 0 in hdu.shape:
        raise SpectrumError(f"{path}: expected an image in HDU {hdu.name!r}, found a table or nothing")
    return hdu


def _rows(hdu: Any, index: np.ndarray | None) -> np.ndarray:
    """Rows of an image, read run by run; all with None."""
    if index is None:
        return hdu.data
    ends = np.flatnonzero(np.diff(index) != 1) + 1
    return np.concatenate([hdu.section[int(run[0]) : int(run[-1]) + 1] for run in np.split(index, ends)])


def _gather(
    declared: Mapping[str, Any],
    segment: str,
    source: Mapping[str, Any],
    hdus: fits.HDUList,
    count: int,
    path: Path,
    index: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """The facts of some rows (None = all); `{segment}` in the name of a column or HDU stands for the arm.

    A table beside that of the targets counts only if it has as many rows, of the same targets.
    """
    filled = {
        fact: tuple(
            {
                k: v.replace("{segment}", segment) if k in ("column", "hdu") and isinstance(v, str) else v
                for k, v in p.items()
            }
            for p in options
            if "column" not in p or _agrees(hdus, p.get("hdu"), source, count, path)
        )
        for fact, options in declared.items()
    }
    rows = range(count) if index is None else index.tolist()
    return facts.gather(filled, path, hdus=hdus, hdu=source["targets_hdu"], rows=rows, count=len(rows))


def _agrees(
    hdus: fits.HDUList,
    hdu: int | str | None,
    source: Mapping[str, Any],
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
    for place in source["facts"].get("star_id", ()):
        column = (place.get("column") or "").lower()
        if place.get("hdu") is None and column in table.fields and column in targets.fields:
            return np.array_equal(table.cells(column), targets.cells(column))
    return table.rows == count


def _names(path: Path, targets: Sequence[str], exposures: Sequence[str]) -> tuple[str, ...]:
    """S names that differ: of the target, and the exposure or the row where a target has several."""
    if Counter(targets).most_common(1)[0][1] > 1:
        targets = [f"{t},{e}" if e else t for t, e in zip(targets, exposures, strict=True)]
    often = Counter(targets)
    return tuple(
        f"{path.name}[{t}]" if t and often[t] == 1 else f"{path.name}[{t}#{i}]" for i, t in enumerate(targets)
    )


def _good(
    arrays: Mapping[str, np.ndarray],
    marked: np.ndarray,
    segment: str,
    source: Mapping[str, Any],
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """bool[S, N] twice: the pixels that the mask calls good, of targets; those that have a flux and an error, too."""
    flux = arrays["flux_hdu"]
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
    for key in ("ivar_hdu", "error_hdu"):
        if key in arrays:
            good &= np.isfinite(arrays[key]) & (arrays[key] > 0)
    return valid, good


def _spread(
    hdus: Mapping[str, Any],
    marked: np.ndarray,
    segment: str,
    source: Mapping[str, Any],
    path: Path,
    good: np.ndarray | None,
) -> np.ndarray | None:
    """Line spreads float64[K, N] of rows of the file, the same whichever of them are read; None = not known.

    Args:
      hdus: of the arm's quantities.
      marked: bool[S], rows without a target.
      good: bool[S, N] of `_good`, where it is known of all rows.
    """
    if "resolution_hdu" not in hdus:
        return None
    rows = np.unique(np.linspace(0, len(marked) - 1, min(SAMPLE, len(marked))).astype(int))
    out = []
    for some in np.split(rows, range(BLOCK, len(rows), BLOCK)):
        if good is None:
            arrays = {key: _rows(hdu, some) for key, hdu in hdus.items() if key != "resolution_hdu"}
            usable = _good(arrays, marked[some], segment, source, path)[1]
        else:
            usable = good[some]
        hdu = hdus["resolution_hdu"]
        matrices = hdu.data[some] if good is not None else _rows(hdu, some)
        for matrix, pixels in zip(matrices, usable, strict=True):
            if pixels.any():
                out.append(np.where(pixels, matrix_fwhm(matrix), np.nan))
    return np.stack(out) if out else None


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
