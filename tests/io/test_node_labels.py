"""Labels of library spectra from their names and headers."""

import numpy as np
import pytest
from astropy.io import fits

from remap import io
from remap.config import ConfigError
from remap.spectra import SpectrumError

FERRE = "FERRE_FEH+0.00_AFE+0.00_VMIC+0.00_TEFF+5750_LOGG+4.50.fits"


@pytest.mark.parametrize(
    ("name", "pattern", "labels"),
    [
        (
            FERRE,
            r"FEH(?P<feh>[+-][\d.]+)_.*TEFF(?P<teff>[+-]\d+)_LOGG(?P<logg>[+-]\d+\.\d+)",
            {"feh": 0.0, "teff": 5750.0, "logg": 4.5},
        ),
        (
            "lte05800-4.50-0.5.PHOENIX.fits",
            r"lte(?P<teff>\d{5})-(?P<logg>\d\.\d\d)(?P<feh>[+-]\d\.\d)",
            {"teff": 5800.0, "logg": 4.5, "feh": -0.5},
        ),
        ("t5750_p05", r"_(?P<feh>[pm]\d+)", {"feh": 0.5}),
        ("t5750_m15", r"_(?P<feh>[pm]\d+)", {"feh": -1.5}),
        ("t5750_m00", r"_(?P<feh>[pm]\d+)", {"feh": 0.0}),
        ("t5750_m1.25", r"_(?P<feh>[pm][\d.]+)", {"feh": -1.25}),
        ("am25k2g45", r"(?P<feh>[pm]\d\d)k\dg(?P<logg_x10>\d\d)", {"feh": -2.5, "logg": 4.5}),
        ("g4p5", r"g(?P<logg>\dp\d)", {"logg": 4.5}),
        ("k93_4500_0_5_rn", r"k93_(?P<teff>\d+)_(?P<logg>\d_\d)", {"teff": 4500.0, "logg": 0.5}),
        ("feh\N{MINUS SIGN}1.0", r"feh(?P<feh>.\d\.\d)", {"feh": -1.0}),
        ("t5000", r"t(?P<teff>\d+)(a(?P<alpha>[+-]\d\.\d))?", {"teff": 5000.0}),
    ],
)
def test_labels_stand_in_names(name, pattern, labels):
    assert io.labels_from_name(name, pattern) == labels


@pytest.mark.parametrize(
    ("name", "pattern", "error", "message"),
    [
        ("x.fits", r"t(?P<teff>\d+)", SpectrumError, "x.fits: expected a name like"),
        ("a_m5", r"_(?P<feh>[pm]\d+)", SpectrumError, "expected two digits .* found 'm5'"),
        ("a_m105", r"_(?P<feh>[pm]\d+)", SpectrumError, "expected two digits .* found 'm105'"),
        ("a_abc", r"_(?P<feh>\w+)", SpectrumError, "expected a number for feh, found 'abc'"),
        ("a_nan", r"_(?P<feh>\w+)", SpectrumError, "expected a number for feh, found 'nan'"),
        ("a", r"(?P<teff", ConfigError, "expected a regular expression"),
        ("a5", r"(\d)", ConfigError, "expected named groups"),
        ("g45l4.5", r"g(?P<logg_x10>\d\d)l(?P<logg>\d\.\d)", ConfigError, "two groups of .* hold logg"),
    ],
)
def test_names_that_hold_no_number_are_refused(name, pattern, error, message):
    with pytest.raises(error, match=message):
        io.labels_from_name(name, pattern)


def write(path, primary, **table):
    header = fits.Header(primary)
    extension = fits.BinTableHDU.from_columns(
        [fits.Column("flux", "D", array=np.ones(3))], header=fits.Header(table)
    )
    fits.HDUList([fits.PrimaryHDU(header=header), extension]).writeto(path)
    return path


def test_labels_stand_in_headers_of_the_spectrum_or_the_file(tmp_path):
    path = write(tmp_path / "a.fits", {"TEFF": 5000, "LOGG": 4.0, "MH": -9999.0}, LOGG=4.5, AM10=2)
    places = {
        "teff": "TEFF",
        "logg": "LOGG",
        "feh": {"keyword": "MH", "missing": (-9999.0,)},
        "alpha": {"keyword": "AM10", "factor": 0.1},
    }
    found = io.labels_from_header(path, places, 1)
    assert (found["teff"], found["logg"]) == (5000.0, 4.5)
    assert np.isnan(found["feh"])
    assert found["alpha"] == pytest.approx(0.2)
    assert io.labels_from_header(path, {"logg": {"keyword": "LOGG", "hdu": 0}}, 1) == {"logg": 4.0}


def test_cards_that_are_not_there_or_no_numbers_are_refused(tmp_path):
    path = write(tmp_path / "a.fits", {"TEFF": "hot", "FLAG": True})
    for key in ("TEFF", "FLAG"):
        with pytest.raises(SpectrumError, match=rf"a\.fits: expected a number for {key} in the header"):
            io.labels_from_header(path, {"teff": key}, 1)
    with pytest.raises(SpectrumError, match="expected LOGG in the header of HDU 1 or the primary one"):
        io.labels_from_header(path, {"logg": "LOGG"}, 1)
    with pytest.raises(ConfigError, match=r"library\.labels\.logg: expected a keyword"):
        io.labels_from_header(path, {"logg": {"column": "LOGG"}}, 1)
