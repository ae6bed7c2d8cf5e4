"""PHOENIX-ACES HiRes as it is published: its models, the names of their files, and what a file must be.

Husser et al. 2013, A&A 553, A6. Under the folder of the server lie the WAVE file and
`PHOENIX-ACES-AGSS-COND-2011/Z-0.0/lte05800-4.50-0.0.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits`, and so on.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from remap.io import fits_files
from remap.io.axis import wavelengths
from remap.io.content import reading
from remap.io.fits_files import open_fits
from remap.io.fits_structure import BLOCK
from remap.io.phoenix import phoenix_labels
from remap.spectra import SpectrumError

GRID = "PHOENIX-ACES-AGSS-COND-2011"
WAVE_NAME = f"WAVE_{GRID}.fits"
# Of a file, for a plan: 1,569,128 pixels of 4 bytes and the headers; wavelengths have 8 bytes.
FLUX_BYTES, WAVE_BYTES = 6_300_000, 12_560_000
TEFF = (*range(2300, 7000, 100), *range(7000, 12001, 200))  # K
LOGG = tuple(0.5 * i for i in range(13))
FEH = (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
ALPHA = (-0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
# [α/M] other than 0 was computed for these alone (both ends included).
ALPHA_TEFF, ALPHA_FEH = (3500, 8000), (-3.0, 0.0)
_NAME = re.compile(
    r"lte(?P<teff>\d{5})(?P<logg>[+-]\d\.\d\d)(?P<feh>[+-]\d\.\d)(?:\.Alpha=(?P<alpha>[+-]\d\.\d\d))?"
    rf"\.{GRID}-HiRes\.fits"
)
GZIP = b"\x1f\x8b"  # such files are whole or cannot be unpacked
# Headers round otherwise than names, but not by as much as this.
_TOLERANCE = {"teff": 0.5, "logg": 0.005, "feh": 0.005, "alpha": 0.005}


class Node(NamedTuple):
    """Labels of one model: Teff in K, log g, [M/H] and [α/M] in dex."""

    teff: int
    logg: float
    feh: float
    alpha: float = 0.0


def grid_nodes(limits: Mapping[str, tuple[float, float]]) -> list[Node]:
    """The published nodes whose labels lie within limits, in order; the server lacks some of them.

    Args:
      limits: (low, high), both included, of any of teff [K], logg, feh, alpha.

    Examples:
      >>> grid_nodes({"teff": (5750, 5900), "logg": (4.5, 4.5), "feh": (-0.2, 0.2), "alpha": (0, 0)})
      [Node(teff=5800, logg=4.5, feh=0.0, alpha=0.0), Node(teff=5900, logg=4.5, feh=0.0, alpha=0.0)]
    """
    unknown = sorted(set(limits) - set(Node._fields))
    if unknown:
        raise ValueError(f"limits: unknown labels {unknown}; PHOENIX has {list(Node._fields)}")
    axes = []
    for name, values in zip(Node._fields, (TEFF, LOGG, FEH, ALPHA), strict=True):
        low, high = limits.get(name, (-np.inf, np.inf))
        axes.append([v for v in values if low <= v <= high])
    return [node for node in itertools.starmap(Node, itertools.product(*axes)) if _published(node)]


def _published(node: Node) -> bool:
    inside = ALPHA_TEFF[0] <= node.teff <= ALPHA_TEFF[1] and ALPHA_FEH[0] <= node.feh <= ALPHA_FEH[1]
    return inside or node.alpha == 0


def file_name(node: Node) -> str:
    """The name of a model's file. The sign before log g is a dash or, for negative ones, a plus; zeros have a minus.

    Examples:
      >>> file_name(Node(5800, 4.5, 0.0))
      'lte05800-4.50-0.0.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits'
      >>> file_name(Node(11000, 0.0, 0.5))
      'lte11000-0.00+0.5.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits'
      >>> file_name(Node(4000, 2.0, -1.5, -0.2))
      'lte04000-2.00-1.5.Alpha=-0.20.PHOENIX-ACES-AGSS-COND-2011-HiRes.fits'
    """
    return f"lte{node.teff:05d}{_signed(-node.logg, 2)}{_abundances(node)}.{GRID}-HiRes.fits"


def remote_path(node: Node) -> str:
    """Where the file is under the server's folder.

    Examples:
      >>> remote_path(Node(4000, 2.0, -1.5, 0.2)).split("/")[:2]
      ['PHOENIX-ACES-AGSS-COND-2011', 'Z-1.5.Alpha=+0.20']
    """
    return f"{GRID}/Z{_abundances(node)}/{file_name(node)}"


def node_of(name: str) -> Node:
    """The inverse of `file_name`.

    Raises:
      SpectrumError: it is no name of a HiRes file.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise SpectrumError(f"{name}: expected a name like {file_name(Node(5800, 4.5, 0.0))}")
    logg = 0.0 - float(found["logg"])
    return Node(int(found["teff"]), logg, float(found["feh"]) + 0.0, float(found["alpha"] or 0.0))


def check_wave(path: Path, *, wave_unit: str = "Angstrom") -> int:
    """The number of pixels of a WAVE file.

    Raises:
      SpectrumError: it cannot be read, or is not what wavelengths are.
    """
    _check_whole(path)
    _, values = fits_files.read_image(path, 0)
    return wavelengths(values, path, axis="linear", wave_unit=wave_unit).size


def check_flux(path: Path, node: Node, *, pixels: int) -> int:
    """Whether a file is the model with these labels, with as many pixels as there are wavelengths.

    Args:
      path: the file, under whatever name.
      node: the labels that it should have.
      pixels: see `check_wave`.

    Returns:
      How many pixels are negative or not finite: none in a good file, and for the user to judge in others.

    Raises:
      SpectrumError: it cannot be read, differs in length or labels, or has no flux at all.
    """
    _check_whole(path)
    header, flux = fits_files.read_image(path, 0)
    if flux.size != pixels:
        raise SpectrumError(f"{path}: expected {pixels} pixels as in {WAVE_NAME}, found {flux.size}")
    found = {name: float(value[0]) for name, value in phoenix_labels(header, path).items()}
    expected = {name: float(value) for name, value in node._asdict().items()}
    wrong = [
        name
        for name, value in expected.items()
        # Not "more than", which is False of NaN.
        if not abs(found.get(name, np.nan) - value) <= _TOLERANCE[name]
    ]
    if wrong:
        raise SpectrumError(
            f"{path}: expected the labels of its name, {_told(expected)}, found {_told(found)} in its header"
        )
    good = np.isfinite(flux) & (flux >= 0)
    if not flux[good].any():
        raise SpectrumError(f"{path}: expected the flux of a model, found no positive pixel")
    return int(np.count_nonzero(~good))


def _check_whole(path: Path) -> None:
    """Raises SpectrumError unless every HDU is there to its last byte, those that nobody reads too."""
    with reading(path, "a whole FITS file"), open_fits(path) as hdus:
        for hdu in hdus:
            if hdu.size and hdu.data is None:
                raise SpectrumError(f"{path}: expected data in HDU {hdu.name!r}, found none")
        place = hdus[-1].fileinfo()
        # A header that is cut off is no HDU to Astropy, and passed over.
        content = path.read_bytes()
        # The readers bear a last block without its padding, which a download that broke off there would look like.
        if len(content) % BLOCK and not content.startswith(GZIP):
            raise SpectrumError(
                f"{path}: expected whole FITS blocks of {BLOCK} bytes, found {len(content)} bytes: cut short"
            )
        rest = content[place["datLoc"] + place["datSpan"] :].strip(b"\0")
        if rest and not content.startswith(GZIP):
            raise SpectrumError(f"{path}: found {len(rest)} bytes of something after the last HDU")


def _signed(value: float, digits: int) -> str:
    """With a sign; zero has a minus."""
    return f"{value if value else -0.0:+.{digits}f}"


def _abundances(node: Node) -> str:
    alpha = f".Alpha={node.alpha:+.2f}" if node.alpha else ""
    return _signed(node.feh, 1) + alpha


def _told(labels: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in labels.items()) or "none"
