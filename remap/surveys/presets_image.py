"""Surveys whose spectra are images, text or IRAF's."""

from __future__ import annotations

from remap.surveys.record import Survey

_FITS = ("*.fits", "*.fits.gz", "*.fits.fz", "*.fit", "*.FITS")

IMAGES: tuple[Survey, ...] = (
    Survey(
        name="miles",
        about="The MILES library: a linear axis in air, no errors and no masks, FWHM 2.5 Å throughout.",
        source={
            "format": "image",
            "medium": "air",
            "axis": "linear",
            "wave_unit": "Angstrom",
            "line_spread": {"fwhm": 2.5},
            "facts": {"star_id": {"name": r"star_(m\d+[A-Z]?)"}, "rv": {"value": 0.0}},
        },
        patterns=_FITS,
        frame="rest",
        reference="Sánchez-Blázquez et al. 2006, MNRAS 371, 703; Falcón-Barroso et al. 2011, A&A 532, A95",
    ),
)
