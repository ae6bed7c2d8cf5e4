"""Reading spectra and labels: the only place that touches input files.

A *source* declares what a file is: its format, its medium, the unit and kind of its wavelength axis, its
columns. Nothing of that is guessed from headers, which are wrong about it too often. It is a plain dict or
an `ml_collections.ConfigDict`; the keys of each format are in the docstring of its reader. `remap.surveys` has
the sources of many surveys by name.

Files that cannot be used raise `remap.spectra.SpectrumError`, which names the file, what was expected and
what was found; a batch may catch it, flag the row and go on. Declarations that cannot be right raise a plain
ValueError that names the key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from remap.config import ConfigError, Section
from remap.io import axis, segments
from remap.io.arrays import array_stars, count_arrays, read_arrays
from remap.io.axis import OutsideError
from remap.io.bundle import count_bundle, read_bundle, write_bundle
from remap.io.content import reading
from remap.io.declarations import check_source
from remap.io.files import find_data, list_files, resolve
from remap.io.fits_files import opened
from remap.io.image import read_image_spectra
from remap.io.iraf import read_iraf_spectra
from remap.io.labels import LabelTable, read_labels, read_velocities
from remap.io.limits import limited
from remap.io.matching import distinct_names, match_rows
from remap.io.node_labels import labels_from_header, labels_from_name
from remap.io.phoenix import read_phoenix_hires
from remap.io.stars import Star, stars_of_rows, stars_of_segments
from remap.io.table import read_table_spectra
from remap.io.targets import read_target_spectra, split_targets, target_stars
from remap.io.text import read_text_spectrum
from remap.spectra import Spectra, SpectrumError

__all__ = [
    "FORMATS",
    "MANY",
    "LabelTable",
    "OutsideError",
    "Piece",
    "Star",
    "distinct_names",
    "download",
    "find_data",
    "labels_from_header",
    "labels_from_name",
    "list_files",
    "match_rows",
    "phoenix_server",
    "read",
    "read_labels",
    "read_segments",
    "read_velocities",
    "split",
    "stars",
    "write_bundle",
]

FORMATS = ("image", "phoenix_hires", "table", "targets", "bundle", "arrays", "text", "iraf", "any")
MANY = ("targets", "bundle", "arrays")  # formats of many spectra in a file, of which some can be read


def read(
    path: str | os.PathLike,
    *,
    source: Section,
    data_root: str | os.PathLike | None = None,
    within: tuple[float, float] | None = None,
) -> Spectra:
    """Reads one file, in the medium, unit and order in which its source declares it.

    Args:
      path: the file, as it is or under the data root (see `find_data`).
      source: the declaration; its "format" is one of `FORMATS`, and the other keys are documented at
        `read_image_spectra`, `read_iraf_spectra`, `read_text_spectrum`, `read_phoenix_hires`, `read_table_spectra`,
        `read_target_spectra`, `read_bundle` and `read_arrays`. A source of format "any" has `options`, sources of
        which the first whose test `when` holds is used (see `remap.io.segments.choose`). Every source may have
        `largest` and `checksums`, see `remap.io.limits.Limits`.
      data_root: folder of relative paths; None means $REMAP_DATA.
      within: Å, in the medium of the source: pixels outside are dropped before anything there is checked.

    Returns:
      The spectra: one, or as many as a file of arrays or of targets holds. Names are file names without the folder.

    Raises:
      SpectrumError: the file cannot be used, or has several segments (arms, orders, ...) besides single exposures.
      ValueError: the declaration cannot be right.
    """
    found = _read(path, source, data_root, within, exposures=False)
    if len(found) > 1:
        names = ", ".join(
            dict.fromkeys(f"{s.fact('segment')[0]} {s.fact('exposure')[0]}".strip() for s in found)
        )
        raise SpectrumError(
            f"{path}: expected one segment, found {len(found)} ({names}): read_segments reads them all"
        )
    return found[0]


def read_segments(
    path: str | os.PathLike,
    *,
    source: Section,
    data_root: str | os.PathLike | None = None,
    within: tuple[float, float] | None = None,
    exposures: bool = True,
    rows: tuple[int, int] | None = None,
    together: bool = True,
) -> tuple[Spectra, ...]:
    """Reads every segment of a file: arms, chips, orders and single exposures, each on a grid of its own.

    Args:
      path: as for `read`.
      source: as for `read`.
      data_root: as for `read`.
      within: as for `read`; segments without a pixel in it are left out.
      exposures: False leaves out single exposures of what the file has summed up.
      rows: of a file of one of the formats `MANY`, a piece as `split` gives it; memory is for these alone.
      together: of `split`.

    Returns:
      The segments in the order in which the source declares them, told apart by their facts "segment" and, for single
      exposures, "exposure".

    Raises:
      SpectrumError: the file cannot be used, or has no pixel within the range.
      ValueError: the declaration cannot be right.
    """
    return _read(path, source, data_root, within, exposures=exposures, rows=rows, together=together)


class Piece(NamedTuple):
    """Spectra of a file with many, that are read together."""

    first: int
    last: int  # + 1
    spectra: int


def split(
    path: str | os.PathLike,
    *,
    source: Section,
    data_root: str | os.PathLike | None = None,
    most: int,
    together: bool = True,
) -> tuple[Piece, ...]:
    """A file of one of the formats `MANY` in pieces, each of which `read_segments` reads without the others.

    Args:
      path, source, data_root: as for `read`.
      most: spectra of a piece.
      together: all rows of a target are in one piece, in files of targets; pieces are in the order in which the file
        has their targets first then. False: pieces are rows that follow each other.

    Returns:
      The pieces.

    Raises:
      SpectrumError: the file cannot be used.
      ValueError: the declaration cannot be right.
    """
    if source["format"] not in MANY:
        raise ConfigError(f"source: only files of the formats {MANY} are split, found {source['format']!r}")
    path = resolve(path, data_root)
    with limited(source, source["format"]) as plain, reading(path, "spectra"):
        if plain["format"] == "targets":
            return tuple(Piece(*found) for found in split_targets(path, plain, most, together=together))
        count = count_bundle(path) if plain["format"] == "bundle" else count_arrays(path, plain)
        ends = [(i, min(i + most, count)) for i in range(0, count, most)]
        return tuple(Piece(first, last, last - first) for first, last in ends)


def stars(
    path: str | os.PathLike,
    *,
    source: Section,
    data_root: str | os.PathLike | None = None,
    rows: tuple[int, int] | None = None,
    together: bool = True,
) -> tuple[Star, ...]:
    """Whose the spectra of a file are, or of a piece of one, each once and sorted; as far as they say so.

    Args:
      path, source, data_root, rows, together: as for `read_segments`. Of files of the formats `MANY` no pixels are
        read.

    Raises:
      SpectrumError: the file cannot be used.
      ValueError: the declaration cannot be right.
    """
    if source["format"] in ("targets", "arrays"):
        path = resolve(path, data_root)
        with limited(source, source["format"]) as plain, reading(path, "spectra"):
            if plain["format"] == "targets":
                return stars_of_rows(target_stars(path, plain, rows, together=together))
            return stars_of_rows(array_stars(path, plain, rows))
    parts = read_segments(path, source=source, data_root=data_root, rows=rows, together=together)
    return stars_of_segments(parts)


def _read(
    path: str | os.PathLike,
    source: Section,
    data_root: str | os.PathLike | None,
    within: tuple[float, float] | None,
    *,
    exposures: bool,
    rows: tuple[int, int] | None = None,
    together: bool = True,
) -> tuple[Spectra, ...]:
    if "format" not in source:
        raise ConfigError(f"source: missing 'format', one of {FORMATS}")
    if source["format"] not in FORMATS:
        raise ConfigError(f"source: format must be one of {FORMATS}, found {source['format']!r}")
    if rows is not None and source["format"] not in MANY:
        raise ConfigError(f"source: rows need one of the formats {MANY}, found {source['format']!r}")
    within = axis.check_within(within)
    path = resolve(path, data_root)
    # What happens to hostile numbers after a file is closed ends in the same error as what happens before.
    with limited(source, source["format"]) as plain, reading(path, "a spectrum"):
        return _dispatch(path, plain, data_root, within, exposures=exposures, rows=rows, together=together)


def _dispatch(
    path: Path,
    source: Section,
    data_root: str | os.PathLike | None,
    within: tuple[float, float] | None,
    *,
    exposures: bool,
    rows: tuple[int, int] | None = None,
    together: bool = True,
) -> tuple[Spectra, ...]:
    if source["format"] == "any":
        source = check_source(source, kind="any", required=("format", "options"), optional={})
        chosen, hdus = segments.choose(source["options"], path)
        if chosen.get("format") not in FORMATS:
            raise ConfigError(
                f"source of any: format must be one of {FORMATS}, found {chosen.get('format')!r}"
            )
        with opened(path, hdus):
            return _dispatch(path, chosen, data_root, within, exposures=exposures)
    if source["format"] == "image":
        return read_image_spectra(path, source, within=within, exposures=exposures)
    if source["format"] == "text":
        return read_text_spectrum(path, source, within=within)
    if source["format"] == "iraf":
        return read_iraf_spectra(path, source, within=within)
    if source["format"] == "phoenix_hires":
        return (_crop(read_phoenix_hires(path, source, data_root), path, within),)
    if source["format"] == "table":
        return read_table_spectra(path, source, within=within, exposures=exposures)
    if source["format"] == "targets":
        return read_target_spectra(path, source, within=within, rows=rows, together=together)
    if source["format"] == "arrays":
        return read_arrays(path, source, within=within, rows=rows)
    return (_crop(read_bundle(path, source, within, rows), path, within),)


def _crop(spectra: Spectra, path: Path, within: tuple[float, float] | None) -> Spectra:
    """The pixels within the range."""
    if within is None:
        return spectra
    wave = spectra.wave
    inside = (wave >= within[0]) & (wave <= within[1])
    if not inside.any():
        raise axis.OutsideError(
            f"{path}: expected pixels within {within[0]:g} to {within[1]:g} Å, found {wave[0]:.6g} to "
            f"{wave[-1]:.6g} Å"
        )
    return spectra if inside.all() else spectra.pixels(inside)
