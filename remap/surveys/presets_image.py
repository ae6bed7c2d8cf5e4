"""Surveys whose spectra are images, text or IRAF's."""

from __future__ import annotations

from typing import Any

from remap.spectra import SPEED_OF_LIGHT
from remap.surveys.record import Survey

_FITS = ("*.fits", "*.fits.gz", "*.fits.fz", "*.fit", "*.FITS")
_LOG10 = {"format": "image", "medium": "vacuum", "axis": "log10", "wave_unit": "Angstrom"}
_LINEAR_AIR = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
_REDSHIFT = {"keyword": "Z", "factor": SPEED_OF_LIGHT, "missing": (-9999, 0)}
_REDSHIFT_ERROR = {"keyword": "Z_ERR", "factor": SPEED_OF_LIGHT, "missing": (-9999, -1, 0)}

# arcsec. Positions of one star come from several catalogues and epochs: in 36 stars of DR8 they agree to 0.1 on the
# average, in one case to 0.96 alone. Of two stars that are nearer than this a fibre of 3.3 arcsec sees both.
LAMOST_WITHIN = 1.5
_LAMOST_FACTS = {
    # DESIG is a position, OBJNAME the number of the entry that was the target: both change between visits of a star.
    "star_id": (
        "UID",
        {"keyword": "DESIG", "within": LAMOST_WITHIN},
        {"keyword": "OBJNAME", "within": LAMOST_WITHIN},
    ),
    "ra": "RA",
    "dec": "DEC",
    "snr": ({"keyword": "SNRG", "missing": (-9999,)}, {"keyword": "SN_G", "missing": (-9999,)}),
    "rv": _REDSHIFT,
    "rv_err": _REDSHIFT_ERROR,
}
_LAMOST = {
    **_LOG10,
    "flux": {"row": 0},
    "ivar": {"row": 1},
    "mask": {"row": 3},
    "mask_good": "zero",
    "line_spread": {"resolution": 1800.0},
    "facts": _LAMOST_FACTS,
}

# Bits of SPPIXMASK that spoil a pixel of a sum: NOPLUG, BADTRACE, BADFLAT, BADARC (0-3), FULLREJECT (18), NOSKY (22),
# BRIGHTSKY (23), NODATA (24), COMBINEREJ (25), BADFLUXFACTOR (26).
SDSS_BITS = 0b1111 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26
# Bits of APOGEE_PIXMASK: BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT, BADERR, NOSKY (0-7), SIG_SKYLINE (12),
# NOT_ENOUGH_PSF (14).
APOGEE_BITS = 0xFF | 1 << 12 | 1 << 14

_APOGEE = {
    **_LOG10,
    "hdu": 1,
    "error": {"hdu": 2},
    "bad_error": 1e9,
    "line_spread": {"resolution": 22500.0},
}
_APSTAR_FACTS = {
    "star_id": ("OBJID", "APOGEE_ID", {"name": r"Star-[^-]+-(?:[^-]+-)?(2M[0-9+-]+|AP[0-9+-]+)"}),
    "ra": "RA",
    "dec": "DEC",
    "snr": {"keyword": "SNR", "missing": (-9999, 0)},
    "rv": {"value": 0.0},
}
_VISIT = {"exposure": "visit{n}", "rows": (2, None)}


def _apvisit() -> dict[str, Any]:
    """Three chips, each a row with wavelengths of its own."""
    return {
        **_APOGEE,
        "axis": "linear",
        "mask": {"hdu": 3},
        "mask_good": "zero",
        "mask_bits": APOGEE_BITS,
        "wave": {"hdu": 4},
        "segments": tuple({"segment": chip, "row": row} for row, chip in enumerate(("red", "green", "blue"))),
        "facts": {
            "star_id": ("OBJID", {"hdu": 11, "column": "APOGEE_ID"}),
            "ra": "RA",
            "dec": "DEC",
            "snr": {"keyword": "SNR", "missing": (-9999,)},
            "rv": (
                {"keyword": "VREL", "missing": (-9999, 999999)},
                {"keyword": "VRAD", "missing": (-9999, 999999)},
            ),
            "rv_err": (
                {"keyword": "VRELERR", "missing": (-9999, 999999)},
                {"keyword": "VRADERR", "missing": (-9999, 999999)},
            ),
        },
        "when": {"shape": ({"hdu": 1, "shape": (3, None)}, {"hdu": 4, "shape": (3, None)})},
    }


def _apstar() -> tuple[dict[str, Any], ...]:
    """The sum and its visits, or a single visit without a second axis."""
    both = {
        **_APOGEE,
        "mask": {"hdu": 3},
        "mask_good": "zero",
        "mask_bits": APOGEE_BITS,
        "facts": _APSTAR_FACTS,
    }
    integers = {"hdu": 3, "integer": True}
    many = {
        **both,
        "segments": ({"row": 0}, _VISIT),
        "when": {"shape": ({"hdu": 1, "shape": (None, None)}, {**integers, "shape": (None, None)})},
    }
    one = {
        **both,
        "when": {"shape": ({"hdu": 1, "shape": (None,)}, {**integers, "shape": (None,)})},
    }
    return many, one


IMAGES: tuple[Survey, ...] = (
    Survey(
        name="lamost_lrs",
        about=(
            "LAMOST, low resolution. In the image of five rows the third is the flux over a continuum (DR1 "
            "to DR5) or the wavelength (later), told apart by whether it rises; from DR8 v2 on there is a "
            "table of one row. Any bit of the andmask spoils a pixel; the ormask is not used. R about "
            "1,800; the velocity is the pipeline's redshift; the S/N is that in g. DESIG is a "
            "position and moves by up to 1 arcsec between visits of one star: spectra within 1.5 arcsec "
            "are of one star, unless they have a UID."
        ),
        source={
            "format": "any",
            "options": (
                {
                    **_LAMOST,
                    "axis": "linear",
                    "wave": {"row": 2},
                    "when": {"shape": {"hdu": 0, "shape": (5, None)}, "rises": {"hdu": 0, "row": 2}},
                },
                {**_LAMOST, "when": {"shape": {"hdu": 0, "shape": (5, None)}}},
                {
                    "format": "table",
                    "hdu": 1,
                    "medium": "vacuum",
                    "axis": "linear",
                    "wave_unit": "Angstrom",
                    "wave_column": "WAVELENGTH",
                    "flux_column": "FLUX",
                    "ivar_column": "IVAR",
                    "mask_column": "ANDMASK",
                    "mask_good": "zero",
                    "line_spread": {"resolution": 1800.0},
                    "facts": _LAMOST_FACTS,
                    "when": {
                        "columns": {"hdu": 1, "names": ("FLUX", "IVAR", "WAVELENGTH", "ANDMASK", "ORMASK")}
                    },
                },
            ),
        },
        patterns=_FITS,
        frame="heliocentric",
        reference="Luo et al. 2015, RAA 15, 1095; http://www.lamost.org/lmusers",
    ),
    Survey(
        name="sdss_spspec",
        about=(
            "SDSS DR1 to DR7, spSpec: rows of flux, flux less continuum, error, mask. Of the mask count "
            "NOPLUG, BADTRACE, BADFLAT, BADARC, FULLREJECT, NOSKY, BRIGHTSKY, NODATA, COMBINEREJ and "
            "BADFLUXFACTOR; not EMLINE, an emission line. The line spread is the column dispersion of HDU 6, σ "
            "in pixels. The velocity is the pipeline's redshift."
        ),
        source={
            **_LOG10,
            "flux": {"row": 0},
            "error": {"row": 2},
            "mask": {"row": 3},
            "mask_good": "zero",
            "mask_bits": SDSS_BITS,
            "line_spread": {"place": {"hdu": 6, "column": "dispersion"}, "kind": "sigma_pixels"},
            "facts": {
                "star_id": (
                    {"name": r"spSpec-(\d+-\d+-\d+)"},
                    "OBJID",
                ),
                "ra": ("RAOBJ", "RA"),
                "dec": ("DECOBJ", "DEC"),
                "snr": {"keyword": "SN_G", "missing": (-9999,)},
                "rv": _REDSHIFT,
                "rv_err": _REDSHIFT_ERROR,
            },
        },
        patterns=("spSpec*.fit", *_FITS),
        frame="heliocentric",
        reference="Abazajian et al. 2009, ApJS 182, 543; http://classic.sdss.org/dr7/dm/flatFiles/spSpec.html",
    ),
    Survey(
        name="apogee",
        about=(
            "APOGEE, H band. apStar: the sum of all visits, pixels weighted singly, and the visits as "
            "exposures, all at rest. aspcapStar: normalised, at rest. Their velocity is therefore 0. "
            "apVisit: three chips of decreasing wavelength, as observed, with the velocity of its header; "
            "for its sake the frame is 'observed'. Of the mask count BADPIX to NOSKY (bits 0 to 7), "
            "SIG_SKYLINE (12) and NOT_ENOUGH_PSF (14), of any visit; an error from 1e9 on means no "
            "measurement. R about 22,500."
        ),
        source={
            "format": "any",
            "options": (
                _apvisit(),
                *_apstar(),
                {
                    **_APOGEE,
                    "facts": _APSTAR_FACTS,
                    "when": {
                        "shape": tuple({"hdu": h, "shape": (None,)} for h in (1, 2, 3)),
                        "keywords": {"CRVAL1": r"4\.1[789]"},
                    },
                },
            ),
        },
        patterns=(
            "apStar*.fits",
            "asStar*.fits",
            "aspcapStar*.fits",
            "apVisit*.fits",
            "asVisit*.fits",
            "ap*.fits.gz",
        ),
        frame="observed",
        reference="Nidever et al. 2015, AJ 150, 173; Holtzman et al. 2015, AJ 150, 148",
    ),
    Survey(
        name="harps",
        about=(
            "HARPS s1d (pipeline 3.x): linear, without errors; exact zeros at the ends and between the two "
            "chips. R = 115,000. The S/N is that of order 50, near 5500 Å. The observer's velocity (TARG "
            "RADVEL) is not taken."
        ),
        source={
            **_LINEAR_AIR,
            "line_spread": {"resolution": 115000.0},
            "facts": {
                "star_id": ("OBJECT", "ESO OBS TARG NAME"),
                "ra": "RA",
                "dec": "DEC",
                "snr": "ESO DRS SPE EXT SN50",
            },
        },
        patterns=("*s1d*.fits", *_FITS),
        frame="heliocentric",
        reference="Mayor et al. 2003, Msngr 114, 20; HARPS DRS user manual",
    ),
    Survey(
        name="uves",
        about=(
            "Merged spectra of the UVES pipeline: linear, without errors, zeros at the ends. R is about "
            "40,000 with a slit of 1 arcsec; give line_spread where another was used."
        ),
        source={
            **_LINEAR_AIR,
            "line_spread": {"resolution": 40000.0},
            "facts": {"star_id": ("ESO OBS TARG NAME", "OBJECT"), "ra": "RA", "dec": "DEC"},
        },
        patterns=_FITS,
        frame="observed",
        reference="Dekker et al. 2000, SPIE 4008, 534; UVES pipeline user manual",
    ),
    Survey(
        name="elodie",
        about=("The ELODIE archive: linear, errors in HDU NOISE, the line spread (FWHM in Å) in H_WRESOL."),
        source={
            "format": "any",
            "options": (
                {
                    **_LINEAR_AIR,
                    "error": {"hdu": "NOISE"},
                    "line_spread": {"place": "H_WRESOL", "kind": "fwhm"},
                    "facts": {"star_id": "OBJECT", "ra": "ALPHA", "dec": "DELTA", "snr": "SN"},
                    "when": {"hdus": ("NOISE",)},
                },
                {
                    **_LINEAR_AIR,
                    "line_spread": {"resolution": 42000.0},
                    "facts": {"star_id": "OBJECT", "ra": "ALPHA", "dec": "DELTA", "snr": "SN"},
                    "when": {"keywords": {"INSTRUME": "(?i)elodie"}},
                },
            ),
        },
        patterns=_FITS,
        frame="observed",
        reference="Moultaka et al. 2004, PASP 116, 693",
    ),
    Survey(
        name="galah",
        about=(
            "GALAH DR2 and DR3, one file for each of the four arms: the reduced flux in HDU 0, its "
            "relative error in HDU 1, the reference pixel 1 even where the header says 0. R = 28,000. The "
            "normalised flux of HDU 4 is at rest and has an axis of its own. Declared from the documents "
            "of the release, without a file to try it on."
        ),
        source={
            **_LINEAR_AIR,
            "error": {"hdu": 1},
            "error_kind": "relative",
            "reference_pixel": 1,
            "line_spread": {"resolution": 28000.0},
            "facts": {
                "star_id": {"name": r"^(\d{15})[1-4]"},
                "segment": {"name": r"^\d{15}([1-4])"},
                "ra": ("RA", "MEANRA"),
                "dec": ("DEC", "MEANDEC"),
            },
        },
        patterns=_FITS,
        frame="heliocentric",
        reference="Buder et al. 2021, MNRAS 506, 150; Kos et al. 2017, MNRAS 464, 1259",
    ),
    Survey(
        name="miles",
        about=("The MILES library: a linear axis in air, no errors and no masks, FWHM 2.5 Å throughout."),
        source={
            **_LINEAR_AIR,
            "line_spread": {"fwhm": 2.5},
            # "Typically above 100 per Å" (Sánchez-Blázquez et al., section 4); the files have no errors.
            "facts": {
                "star_id": {"name": r"star_(m\d+[A-Z]?)"},
                "rv": {"value": 0.0},
                "snr": {"value": 100.0},
            },
        },
        patterns=_FITS,
        frame="rest",
        reference="Sánchez-Blázquez et al. 2006, MNRAS 371, 703; Falcón-Barroso et al. 2011, A&A 532, A95",
    ),
    Survey(
        name="mike",
        about=(
            "Spectra merged from the orders of MIKE, normalised, a linear axis in air and nothing else in "
            "the header; NaN and zeros at the ends. R about 30,000."
        ),
        source={**_LINEAR_AIR, "line_spread": {"resolution": 30000.0}, "facts": {"rv": {"value": 0.0}}},
        patterns=_FITS,
        frame="rest",
        reference="Bernstein et al. 2003, SPIE 4841, 1694",
    ),
    Survey(
        name="linear_image",
        about=(
            "Any image of one spectrum with a linear axis in Å in air: the header has CRVAL1, CDELT1 and "
            "CRPIX1. Medium, frame and line spread are to be overridden with what the file is."
        ),
        source=_LINEAR_AIR,
        patterns=_FITS,
        frame="rest",
        reference="FITS standard 4.0, section 8",
    ),
    Survey(
        name="marvels",
        about=(
            "MARVELS as extracted: tables of wavelength (Å in air), flux and inverse variance; two beams "
            "of a star in two files. R about 11,000."
        ),
        source={
            "format": "table",
            "medium": "air",
            "axis": "linear",
            "wave_unit": "Angstrom",
            "wave_column": "wavelength",
            "flux_column": "flux",
            "ivar_column": "ivar",
        },
        patterns=_FITS,
        frame="observed",
        reference="Ge et al. 2008, ASPC 398, 449; Alam et al. 2015, ApJS 219, 12",
    ),
    Survey(
        name="phoenix",
        about=(
            "PHOENIX-ACES models: HiRes files with their WAVE file beside them, and MedRes files, whose "
            "axis is ln λ in vacuum although CTYPE1 says AWAV-LOG. Labels are in the header."
        ),
        source={
            "format": "any",
            "options": (
                {
                    **_LOG10,
                    "axis": "ln",
                    "line_spread": {"resolution": 10000.0},
                    "facts": {"rv": {"value": 0.0}},
                    "when": {"keywords": {"PHXTEFF": "", "CRVAL1": ""}},
                },
                {
                    "format": "phoenix_hires",
                    "medium": "vacuum",
                    "wave_unit": "Angstrom",
                    "wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits",
                    "when": {"keywords": {"PHXTEFF": ""}},
                },
            ),
        },
        patterns=("lte*.fits",),
        frame="rest",
        reference="Husser et al. 2013, A&A 553, A6",
    ),
    Survey(
        name="text",
        about=(
            "Text of two columns, wavelength in Å in air and flux; set error_column where there is a third "
            "with errors, and override medium, frame and line spread with what the file is."
        ),
        source={"format": "text", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"},
        patterns=("*.txt", "*.dat", "*.csv", "*.ascii", "*.asc", "*.tsv"),
        frame="observed",
        reference="-",
    ),
    Survey(
        name="iraf_multispec",
        about=(
            "IRAF's multispec and equispec: each order a segment, its axis in the header, of any kind that "
            "IRAF has. Medium and frame are to be overridden with what the file is; wavelength solutions "
            "of ThAr lamps are in air."
        ),
        source={
            "format": "iraf",
            "medium": "air",
            "wave_unit": "Angstrom",
            "facts": {"star_id": "OBJECT", "ra": "RA", "dec": "DEC"},
        },
        patterns=_FITS,
        frame="observed",
        reference="Valdes 1993, ASPC 52, 467",
    ),
)
