"""Surveys whose spectra are tables, or many targets in one file."""

from __future__ import annotations

from remap.spectra import SPEED_OF_LIGHT
from remap.surveys.presets_image import LAMOST_WITHIN
from remap.surveys.record import Survey

_FITS = ("*.fits", "*.fits.gz", "*.fit", "*.FITS")
_REST = {"rv": {"value": 0.0}}

# Bits of SPPIXMASK, the masks of SDSS, that spoil a pixel: NOPLUG, BADTRACE, BADFLAT, BADARC, FULLREJECT, NOSKY,
# BRIGHTSKY, NODATA, COMBINEREJ, BADFLUXFACTOR. The others warn (LOWFLAT, SCATTEREDLIGHT, CROSSTALK, BADSKYCHI) or
# mark what is good all the same (NEARBADPIXEL, PARTIALREJECT).
_SDSS_BITS = sum(1 << bit for bit in (0, 1, 2, 3, 18, 22, 23, 24, 25, 26))
_STAR = {
    "column": "CLASS",
    "values": ("STAR",),
}  # SDSS-V measures quasars by cross-correlation with stars, too
_SURE = ({"column": "ZWARNING", "values": (0,)}, _STAR)

_LAMOST_MRS_TABLE = {
    "format": "table",
    "medium": "vacuum",
    "wave_unit": "Angstrom",
    "flux_column": "FLUX",
    "ivar_column": "IVAR",
    "mask_column": "ANDMASK",
    "mask_good": "zero",
    "segments": (
        {"hdus": r"COADD_(?P<segment>[BR])"},
        {"hdus": r"(?P<segment>[BR])-(?P<exposure>\d+)", "mask_column": "PIXMASK"},
    ),
    "line_spread": {"resolution": 7500.0},
    "facts": {
        "star_id": {"keyword": "DESIG", "within": LAMOST_WITHIN},  # a position, that changes between visits
        "ra": "RA",
        "dec": "DEC",
        "snr": {"keyword": "SNR", "missing": (-9999.0,)},
    },
}

_LAMOST_MRS = Survey(
    name="lamost_mrs",
    about=(
        "LAMOST at medium resolution (R 7,500): tables COADD_B and COADD_R, then one of each exposure and arm, whose "
        "red wavelengths decrease; rows of pixels with LOGLAM, or in later releases one row of arrays with "
        "WAVELENGTH. Every bit of ANDMASK (sums) and PIXMASK (exposures) counts. The S/N is that of the arm or "
        "exposure; the files hold no velocity. DESIG is a position: spectra within 1.5 arcsec are of one star."
    ),
    source={
        "format": "any",
        "options": tuple(
            {
                **_LAMOST_MRS_TABLE,
                "axis": axis,
                "wave_column": column,
                "when": {"columns": {"hdu": 1, "names": (column, "FLUX", "IVAR")}},
            }
            for column, axis in (("LOGLAM", "log10"), ("WAVELENGTH", "linear"))
        ),
    },
    patterns=_FITS,
    frame="heliocentric",
    reference="Liu et al. 2020, arXiv:2005.07210; LAMOST DR7 data description",
)

_SDSS = Survey(
    name="sdss",
    about=(
        "Files spec-*.fits of SDSS-II, BOSS, eBOSS and SDSS-V: the sum of all exposures in HDU 1, single exposures "
        "in further HDUs: of each camera until eBOSS, of both arms in SDSS-V. Of and_mask (mask in exposures until "
        "eBOSS) the bits NOPLUG, BADTRACE, BADFLAT, BADARC, FULLREJECT, NOSKY, BRIGHTSKY, NODATA, COMBINEREJ and "
        "BADFLUXFACTOR count. Line spread: wdisp, a standard deviation in units of 1e-4 of log10 of the wavelength. "
        "The velocity is that of the redshift, or of SDSS-V's cross-correlation, where the pipeline found a star "
        "without a warning. The identifier is that of the object, not of the observation: SDSS_ID, CATALOGID, "
        "THING_ID or BESTOBJID."
    ),
    source={
        "format": "table",
        "medium": "vacuum",
        "axis": "log10",
        "wave_unit": "Angstrom",
        "wave_column": "loglam",
        "flux_column": "flux",
        "ivar_column": "ivar",
        "mask_column": "and_mask",
        "mask_good": "zero",
        "mask_bits": _SDSS_BITS,
        "segments": (
            {"hdu": 1},
            {
                "hdus": r"(?P<segment>[BR]\d)-(?P<exposure>\d+)(-.*)?",
                "mask_column": "mask",
                "facts": {"snr": None},
            },
            {"hdus": r"MJD_EXP_(?P<exposure>.+)", "facts": {"snr": None}},
        ),
        "line_spread": {"place": {"column": "wdisp"}, "kind": "sigma_log10", "factor": 1e-4},
        "facts": {
            "star_id": (
                {"column": "SDSS_ID", "hdu": 2, "missing": (0, -1, -999, -9999)},
                {"column": "CATALOGID", "hdu": 2, "missing": (0, -1, -999, -9999)},
                {"keyword": "THING_ID", "missing": (0, -1, -9999)},
                {"column": "THING_ID", "hdu": 2, "missing": (0, -1, -9999)},
                {"column": "BESTOBJID", "hdu": 2, "missing": (0, -1, -9999)},
            ),
            "ra": ("PLUG_RA", {"column": "PLUG_RA", "hdu": 2}, {"column": "RACAT", "hdu": 2}),
            "dec": ("PLUG_DEC", {"column": "PLUG_DEC", "hdu": 2}, {"column": "DECCAT", "hdu": 2}),
            "snr": {"column": "SN_MEDIAN_ALL", "hdu": 2, "missing": (0.0,)},
            "rv": (
                {"column": "XCSAO_RV", "hdu": 2, "missing": (-9999.0, -999.0, 0.0), "where": _STAR},
                {"column": "Z", "hdu": 2, "factor": SPEED_OF_LIGHT, "where": _SURE},
            ),
            "rv_err": (
                {"column": "XCSAO_ERV", "hdu": 2, "missing": (-9999.0, -999.0, 0.0), "where": _STAR},
                {"column": "Z_ERR", "hdu": 2, "factor": SPEED_OF_LIGHT, "where": _SURE},
            ),
        },
    },
    patterns=("spec-*.fits", "spec-*.fits.gz"),
    frame="heliocentric",
    reference="Dawson et al. 2013, AJ 145, 10; SDSS data model, spec; bit masks SPPIXMASK",
)

_DESI = Survey(
    name="desi",
    about=(
        "DESI's coadd and spectra files: the arms B, R and Z, each with all targets of the file; in spectra files "
        "each exposure of a target is a row. Every bit of the masks counts; rows that the pipeline blanked, and "
        "those whose OBJTYPE is SKY or BAD, have no good pixel. Line spread: from the resolution matrices, the "
        "median over the targets (fibres differ by a few per cent). Barycentric. The files hold no velocity."
    ),
    source={
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
        "no_target": {"column": "OBJTYPE", "values": ("SKY", "BAD")},
        "facts": {
            "star_id": {"column": "TARGETID"},
            "exposure": {"column": "EXPID"},
            "ra": {"column": "TARGET_RA"},
            "dec": {"column": "TARGET_DEC"},
            "snr": (
                {"column": "MEDIAN_COADD_SNR_{segment}", "hdu": "SCORES"},
                {"column": "MEDIAN_CALIB_SNR_{segment}", "hdu": "SCORES"},
            ),
        },
    },
    patterns=("coadd-*.fits", "coadd-*.fits.gz", "spectra-*.fits", "spectra-*.fits.gz"),
    frame="heliocentric",
    reference="Guy et al. 2023, AJ 165, 144; DESI data model, coadd and spectra",
)


def _eso(frames: str) -> dict:
    """Options of phase-3 tables in some frames (of SPECSYS): medium, calibrated or reduced flux, quality or none."""
    media = (
        ("air", {"TUCD1": r"em\.wl;obs\.atmos\b"}),
        ("vacuum", {"TUCD1": r"em\.wl$"}),
        # whose descriptions say that wavelengths are in air
        ("air", {"TUCD1": r"$", "INSTRUME": r"(HARPS|FEROS|UVES|GIRAFFE)$"}),
        ("air", {"INSTRUME": r"(HARPS|FEROS|UVES|GIRAFFE)$"}),
    )
    options = []
    for medium, told in media:
        for end in ("", "_REDUCED"):
            for mask in ("QUAL", None):
                needed = ("WAVE", f"FLUX{end}", *([mask] if mask else []))
                option = {
                    "format": "table",
                    "medium": medium,
                    "axis": "linear",
                    "wave_unit": "column",
                    "wave_column": "WAVE",
                    "flux_column": f"FLUX{end}",
                    "error_column": f"ERR{end}",
                    "error_optional": True,
                    "line_spread": {"place": "SPEC_RES", "kind": "resolution"},
                    "facts": {
                        "star_id": "OBJECT",
                        "ra": "RA",
                        "dec": "DEC",
                        "snr": "SNR",
                    }
                    # barycentric, whatever the frame of the wavelengths
                    | (
                        {"rv": {"keyword": "ESO DRS CCF RVC", "missing": (-99999.0,)}}
                        if "BARY" in frames
                        else {}
                    ),
                    "when": {"keywords": {"SPECSYS": frames, **told}, "columns": {"hdu": 1, "names": needed}},
                }
                options.append(option | ({"mask_column": mask, "mask_good": "zero"} if mask else {}))
    return {"format": "any", "options": tuple(options)}


_ESO_ABOUT = (
    "ESO's phase-3 tables (ADP.*.fits of UVES, HARPS, FEROS, GIRAFFE, X-shooter, ESPRESSO): one row of arrays WAVE, "
    "FLUX and ERR, or FLUX_REDUCED and ERR_REDUCED where the flux is not calibrated; the unit of WAVE is the one "
    "that the column states. Air or vacuum is what TUCD1 says (em.wl;obs.atmos is air), air where HARPS, FEROS, UVES "
    "or GIRAFFE do not say. Pixels with a QUAL other than 0 are bad. An ERR without a positive number (HARPS, FEROS) "
    "means that errors are not known. Line spread: SPEC_RES. "
)

_ESO = Survey(
    name="eso",
    about=(
        _ESO_ABOUT
        + "Of these files, those whose SPECSYS says that wavelengths are barycentric or heliocentric; "
        "eso_observed has the others."
    ),
    source=_eso(r"(BARY|HELIO)"),
    patterns=_FITS,
    frame="heliocentric",
    reference="ESO Science Data Products Standard, ESO-044286, issue 6",
)

_ESO_OBSERVED = Survey(
    name="eso_observed",
    about=_ESO_ABOUT
    + "Of these files, those whose SPECSYS is TOPOCENT or GEOCENTR (UVES); eso has the others.",
    source=_eso(r"(TOPO|GEO)CENT"),
    patterns=_FITS,
    frame="observed",
    reference="ESO Science Data Products Standard, ESO-044286, issue 6",
)

_CALSPEC_TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVELENGTH",
    "flux_column": "FLUX",
    "error_column": "STATERROR",
    "systematic_column": "SYSERROR",
    "error_optional": True,
    "line_spread": {"place": {"column": "FWHM"}, "kind": "fwhm"},
    "facts": {"star_id": "TARGETID"},
}

_CALSPEC = Survey(
    name="calspec",
    about=(
        "HST's flux standards: wavelengths from the far UV (a range that is needed should be given) to the infrared, "
        "the statistical and the systematic error added in quadrature, unknown where neither is given; pixels of "
        "DATAQUAL 0 are bad. Parts of a spectrum may be a model, which its history says; they have the systematic "
        "error alone. Line spread: FWHM, where there is such a column. Wavelengths are those of the instrument, "
        "nearly heliocentric."
    ),
    source={
        "format": "any",
        "options": (
            {
                **_CALSPEC_TABLE,
                "mask_column": "DATAQUAL",
                "mask_good": "nonzero",
                "when": {"columns": {"hdu": 1, "names": ("WAVELENGTH", "FLUX", "DATAQUAL")}},
            },
            {**_CALSPEC_TABLE, "when": {"columns": {"hdu": 1, "names": ("WAVELENGTH", "FLUX")}}},
        ),
    },
    patterns=_FITS,
    frame="heliocentric",
    reference="Bohlin, Gordon & Tremblay 2014, PASP 126, 711",
)

_HIRES = Survey(
    name="hires",
    about=(
        "Keck/HIRES spectra as the SpecMatch-Emp library has them: a table of s, w and serr, normalised, R 60,000, "
        "moved to the rest frame of the star. Nothing else is in the file."
    ),
    source={
        "format": "table",
        "medium": "air",
        "axis": "linear",
        "wave_unit": "Angstrom",
        "wave_column": "w",
        "flux_column": "s",
        "error_column": "serr",
        "line_spread": {"resolution": 60000.0},
        "facts": _REST,
    },
    patterns=_FITS,
    frame="rest",
    reference="Yee, Petigura & von Braun 2017, ApJ 836, 77",
)

_FERRE = Survey(
    name="ferre",
    about=(
        "Synthetic spectra for FERRE: a table of wave and flux, without errors; the labels are in the name of the "
        "file alone and the line spread is not known (three pixels at least)."
    ),
    source={
        "format": "table",
        "medium": "air",
        "axis": "linear",
        "wave_unit": "Angstrom",
        "wave_column": "wave",
        "flux_column": "flux",
        "facts": _REST,
    },
    patterns=_FITS,
    frame="rest",
    reference="Allende Prieto et al. 2018, A&A 618, A25",
)

TABLES: tuple[Survey, ...] = (_LAMOST_MRS, _SDSS, _DESI, _ESO, _ESO_OBSERVED, _CALSPEC, _HIRES, _FERRE)
