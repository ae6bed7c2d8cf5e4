"""What is this file? Which surveys could read it, and why; from headers and shapes, without reading its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astropy.io import fits

from remap.io import segments
from remap.io.content import GZIP, reading
from remap.io.fits_files import is_fits, open_fits
from remap.spectra import SpectrumError

# Signs of a survey: (test as of `remap.io.segments.choose`, weight, reason). A weight of None: without it the file is
# none of that survey. What only one survey writes weighs 3 and more, what many write 1.
_IMAGE5 = {"shape": {"hdu": 0, "shape": (5, None)}}
_ONE_IMAGE = {"shape": {"hdu": 0, "shape": (None,)}, "keywords": {"CRVAL1": ""}}
Sign = tuple[Mapping[str, Any], float | None, str]
SIGNS: dict[str, tuple[Sign, ...]] = {
    "lamost_lrs": (
        ({"keywords": {"TELESCOP": "LAMOST"}}, None, "TELESCOP is LAMOST"),
        ({"shape": {"hdu": 0, "shape": (5, None)}}, 4, "one image of five rows"),
        (
            {"columns": {"hdu": 1, "names": ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK")}},
            4,
            "a table of FLUX, IVAR, WAVELENGTH and ANDMASK",
        ),
    ),
    "lamost_mrs": (
        ({"keywords": {"TELESCOP": "LAMOST"}}, None, "TELESCOP is LAMOST"),
        ({"hdus": ("COADD_B",)}, 4, "an HDU COADD_B"),
        ({"hdus": ("COADD_R",)}, 4, "an HDU COADD_R"),
    ),
    "sdss": (
        (
            {"columns": {"hdu": 1, "names": ("flux", "loglam", "ivar", "and_mask")}},
            None,
            "a table of flux, loglam, ivar and and_mask in HDU 1",
        ),
        ({"keywords": {"TELESCOP": "(?i)sdss|apo|lco"}}, 3, "TELESCOP is that of SDSS"),
        ({"hdus": ("COADD",)}, 3, "an HDU COADD"),
        ({"columns": {"hdu": 1, "names": ("wdisp",)}}, 1, "a column wdisp"),
    ),
    "sdss_spspec": (
        (_IMAGE5, None, "one image of five rows"),
        ({"keywords": {"TELESCOP": "(?i)sdss"}}, 4, "TELESCOP is SDSS"),
        ({"keywords": {"ARRAY1": "SPECTRUM"}}, 4, "ARRAY1 is SPECTRUM"),
        ({"keywords": {"COEFF0": ""}}, 1, "COEFF0 in the header"),
    ),
    "apogee": (
        ({"shape": {"hdu": 1, "shape": (None, None)}}, 1, "an image of rows in HDU 1"),
        ({"shape": {"hdu": 1, "shape": (8575,)}}, 3, "8575 pixels"),
        ({"shape": {"hdu": 1, "shape": (None, 8575)}}, 3, "8575 pixels"),
        (
            {"shape": ({"hdu": 1, "shape": (3, None)}, {"hdu": 4, "shape": (3, None)})},
            3,
            "three chips, and their wavelengths in HDU 4",
        ),
        ({"keywords": {"TELESCOP": "(?i)apo|lco"}}, 1, "TELESCOP is that of SDSS"),
        ({"keywords": {"SURVEY": "(?i)apogee|mwm"}}, 3, "SURVEY is APOGEE"),
        ({"keywords": {"CRVAL1": "4.179"}}, 3, "CRVAL1 is 4.179"),
        ({"name": r"^(ap|as)(Star|Visit)|^aspcapStar"}, 3, "the name of the file"),
    ),
    "desi": (
        ({"hdus": ("FIBERMAP",)}, None, "an HDU FIBERMAP"),
        ({"hdus": ("B_WAVELENGTH", "B_FLUX", "B_IVAR")}, 4, "HDUs B_WAVELENGTH, B_FLUX and B_IVAR"),
        ({"hdus": ("R_RESOLUTION",)}, 2, "an HDU R_RESOLUTION"),
    ),
    "harps": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"keywords": {"INSTRUME": "HARPS"}}, 4, "INSTRUME is HARPS"),
        ({"name": "(?i)s1d"}, 1, "the name of the file"),
    ),
    "uves": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"keywords": {"INSTRUME": "UVES"}}, 4, "INSTRUME is UVES"),
    ),
    "eso": (
        (
            {"columns": {"hdu": 1, "names": ("WAVE",)}},
            None,
            "a table with WAVE in HDU 1",
        ),
        (
            {"keywords": {"SPECSYS": "(BARY|HELIO)"}},
            None,
            "SPECSYS is barycentric or heliocentric",
        ),
        ({"keywords": {"PRODCATG": "SCIENCE.SPECTRUM"}}, 4, "PRODCATG is SCIENCE.SPECTRUM"),
        ({"keywords": {"ORIGIN": "(?i)eso"}}, 2, "ORIGIN is ESO"),
    ),
    "eso_observed": (
        (
            {"columns": {"hdu": 1, "names": ("WAVE",)}},
            None,
            "a table with WAVE in HDU 1",
        ),
        (
            {"keywords": {"SPECSYS": "(TOPO|GEO)CENT"}},
            None,
            "SPECSYS is topocentric or geocentric",
        ),
        ({"keywords": {"PRODCATG": "SCIENCE.SPECTRUM"}}, 4, "PRODCATG is SCIENCE.SPECTRUM"),
        ({"keywords": {"ORIGIN": "(?i)eso"}}, 2, "ORIGIN is ESO"),
    ),
    "calspec": (
        (
            {"columns": {"hdu": 1, "names": ("WAVELENGTH", "FLUX")}},
            None,
            "a table of WAVELENGTH and FLUX in HDU 1",
        ),
        ({"keywords": {"DBTABLE": "(?i)crspectrum"}}, 4, "DBTABLE is CRSPECTRUM"),
        ({"columns": {"hdu": 1, "names": ("STATERROR", "SYSERROR")}}, 3, "columns STATERROR and SYSERROR"),
        ({"keywords": {"ORIGIN": "synphot"}}, 1, "ORIGIN is synphot"),
    ),
    "hires": (
        ({"columns": {"hdu": 1, "names": ("s", "w", "serr")}}, None, "a table of s, w and serr in HDU 1"),
        ({"columns": {"hdu": 1, "names": ("s", "w", "serr")}}, 4, "a table of s, w and serr in HDU 1"),
    ),
    "ferre": (
        ({"columns": {"hdu": 1, "names": ("wave", "flux")}}, None, "a table of wave and flux in HDU 1"),
        ({"name": "(?i)ferre"}, 4, "the name of the file"),
    ),
    "elodie": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"keywords": {"INSTRUME": "(?i)elodie"}}, 4, "INSTRUME is ELODIE"),
        ({"hdus": ("NOISE",)}, 1, "an HDU NOISE"),
    ),
    "galah": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"keywords": {"ORIGIN": "(?i).*galah"}}, 4, "ORIGIN is GALAH"),
        ({"keywords": {"INSTRUME": "(?i)hermes"}}, 3, "INSTRUME is HERMES"),
        ({"name": r"^\d{15}[1-4]\."}, 3, "the name of the file: 15 digits and the arm"),
    ),
    "miles": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"name": "(?i)miles"}, 3, "the name of the file"),
        ({"keywords": {"CRVAL1": r"3(500|525|54\d)"}}, 1, "the axis begins near 3540"),
    ),
    "marvels": (
        (
            {"columns": {"hdu": 1, "names": ("wavelength", "flux", "ivar")}},
            None,
            "a table of wavelength, flux and ivar in HDU 1",
        ),
        (
            {"columns": {"hdu": 1, "names": ("wavelength", "flux", "ivar")}},
            1.5,
            "what it reads, and others too",
        ),
        ({"keywords": {"INSTRUME": "(?i)marvels|ket"}}, 4, "INSTRUME is MARVELS"),
        ({"name": "(?i)marvels"}, 2, "the name of the file"),
    ),
    "phoenix": (
        ({"keywords": {"PHXTEFF": ""}}, None, "PHXTEFF in the header"),
        ({"keywords": {"PHXLOGG": "", "PHXM_H": ""}}, 5, "PHXLOGG and PHXM_H in the header"),
    ),
    "iraf_multispec": (
        ({"kind": "fits"}, None, "a FITS file"),
        ({"keywords": {"CTYPE1": "MULTISPE"}}, 5, "CTYPE1 is MULTISPE"),
        ({"keywords": {"WAT0_001": "system=(multi|equi)spec"}}, 4, "WAT0_001 says multispec or equispec"),
    ),
    "text": (
        ({"kind": "text"}, None, "a text file"),
        ({"kind": "text"}, 2, "lines of numbers"),
    ),
    "linear_image": (
        (_ONE_IMAGE, None, "an image of one row with an axis"),
        ({"keywords": {"CDELT1": ""}}, 0.5, "CDELT1 in the header"),
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A survey that could read a file.

    Attributes:
      name: of the survey.
      score: the sum of the weights of what was found; comparable within one file only.
      reasons: what speaks for it, in words.
      lacks: what would be expected and is not there.
    """

    name: str
    score: float
    reasons: tuple[str, ...]
    lacks: tuple[str, ...]


def identify(path: str | Path) -> tuple[Match, ...]:
    """Which surveys could read a file, best first; () where none could.

    A proposal: the declaration stays the authority, and neither medium nor frame can be seen in this way.

    Args:
      path: the file.

    Returns:
      Matches by falling score. `linear_image` and `text`, which fit much, come last among equals.

    Raises:
      SpectrumError: the file is missing or broken.
    """
    path = Path(path)
    with reading(path, "a spectrum"):
        if not is_fits(path):
            _check_text(path)
            return _rank(path, None)
        with open_fits(path) as hdus:
            return _rank(path, hdus)


def describe(path: str | Path) -> str:
    """The HDUs of a file in a line: number, name, shape or columns; "text" for a text file.

    Raises:
      SpectrumError: the file is missing or broken.
    """
    path = Path(path)
    with reading(path, "a spectrum"):
        if not is_fits(path):
            _check_text(path)
            return "text"
        with open_fits(path) as hdus:
            return segments.describe(hdus)


def _rank(path: Path, hdus: fits.HDUList | None) -> tuple[Match, ...]:
    found = []
    for name, signs in SIGNS.items():
        reasons, lacks, score = [], [], 0.0
        for test, weight, reason in signs:
            holds = segments.failing(test, path, hdus) is None
            if not holds and weight is None:
                break
            (reasons if holds else lacks).append(reason)
            score += (weight or 0.0) if holds else 0.0
        else:
            if score > 0:
                found.append(Match(name=name, score=score, reasons=tuple(reasons), lacks=tuple(lacks)))
    # The sort is stable: among equals the order of SIGNS holds.
    return tuple(sorted(found, key=lambda m: -m.score))


def _check_text(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4096)
    binary = b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff"))
    if binary and not start.startswith(GZIP):
        raise SpectrumError(f"{path}: expected a FITS or text file, found another binary one")
