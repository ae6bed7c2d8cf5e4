"""Reading spectra and labels: the only place that touches input files.

A *source* declares what a file is: its format, its medium, the unit and kind of its wavelength axis, its
columns. Nothing of that is guessed from headers, which are wrong about it too often. It is a plain dict or
an `ml_collections.ConfigDict`; the keys of each format are in the docstring of its reader.

Files that cannot be used raise `remap.spectra.SpectrumError`, which names the file, what was expected and
what was found; a batch may catch it, flag the row and go on. Declarations that cannot be right raise a plain
ValueError that names the key.
"""

from __future__ import annotations

import os

from remap.config import ConfigError, Section
from remap.io import files
from remap.io.bundle import read_bundle, write_bundle
from remap.io.files import find_data, list_files
from remap.io.image import read_image_spectrum
from remap.io.labels import LabelTable, read_labels
from remap.io.node_labels import labels_from_header, labels_from_name
from remap.io.phoenix import read_phoenix_hires
from remap.io.table import read_table_spectrum
from remap.spectra import Spectra

__all__ = [
    "FORMATS",
    "LabelTable",
    "find_data",
    "labels_from_header",
    "labels_from_name",
    "list_files",
    "read",
    "read_labels",
    "write_bundle",
]

FORMATS = ("image", "phoenix_hires", "table", "bundle")


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
        `read_image_spectrum`, `read_phoenix_hires`, `read_table_spectrum` and `read_bundle`.
      data_root: folder of relative paths; None means $REMAP_DATA.
      within: lowest and highest wavelength wanted [Å, in the source's medium]; the others are dropped before any
        check of wavelengths or flux. None = all.

    Returns:
      The spectra: one, or as many as a bundle holds. Names are file names without the folder.

    Raises:
      SpectrumError: the file cannot be used.
      ValueError: the declaration cannot be right.
    """
    if "format" not in source:
        raise ConfigError(f"source: missing 'format', one of {FORMATS}")
    if source["format"] not in FORMATS:
        raise ConfigError(f"source: format must be one of {FORMATS}, found {source['format']!r}")
    path = files.resolve(path, data_root)
    if source["format"] == "image":
        return read_image_spectrum(path, source, within)
    if source["format"] == "phoenix_hires":
        return read_phoenix_hires(path, source, data_root, within)
    if source["format"] == "table":
        return read_table_spectrum(path, source, within)
    return read_bundle(path, source, within)
