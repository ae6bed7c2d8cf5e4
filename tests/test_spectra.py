"""The container, air and vacuum wavelengths, Doppler shifts."""

from types import SimpleNamespace

import numpy as np
import pytest
from astropy import units
from astropy.nddata import InverseVariance, NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import Table
from astropy.utils.masked import Masked
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from remap import spectra
from remap.io import find_data
from remap.spectra import SpectrumError, make_spectra

WAVE = np.linspace(5000.0, 5010.0, 11)


def shared(path):
    try:
        return find_data(path)
    except SpectrumError as error:
        pytest.skip(str(error))


def test_make_spectra_marks_pixels_that_are_not_finite_or_have_no_weight():
    flux = np.ones((2, 11), np.float32)
    flux[0, [2, 3]] = np.nan, np.inf
    flux[1, 4] = -1.0  # low flux is the normaliser's business
    ivar = np.ones((2, 11))
    ivar[1, [5, 6, 7]] = 0.0, -1.0, np.nan
    mask = np.ones((2, 11), bool)
    mask[0, 10] = False
    made = make_spectra(
        WAVE, flux, medium="air", ivar=ivar, valid=mask, names=["a", "b"], labels={"teff": [5e3, 6e3]}
    )
    assert np.flatnonzero(~made.valid[0]).tolist() == [2, 3, 10]
    assert np.flatnonzero(~made.valid[1]).tolist() == [5, 6, 7]
    assert len(made) == 2
    assert made.flux.dtype == np.float32
    assert made.labels["teff"].tolist() == [5000.0, 6000.0]


def test_make_spectra_accepts_one_spectrum_and_integers():
    made = make_spectra(WAVE, np.arange(11), medium="vacuum")
    assert made.flux.shape == made.valid.shape == (1, 11)
    assert made.flux.dtype == np.float64
    assert made.names == ("0",)


def test_make_spectra_keeps_inverse_variances_that_float32_cannot_hold():
    made = make_spectra(WAVE, np.full(11, 1e-20, np.float32), medium="air", ivar=np.full(11, 1e42))
    assert made.valid.all()
    np.testing.assert_array_equal(made.ivar, 1e42)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"wave": WAVE[::-1]},
            "star.fits: wavelengths must increase strictly, found 5010 then 5009 Å at pixel 0",
        ),
        ({"wave": np.repeat(WAVE[:1], 11)}, "increase strictly"),
        ({"wave": np.where(WAVE == 5003, np.nan, WAVE)}, "1 wavelengths are not finite"),
        ({"wave": WAVE - 5000}, "must be positive, found 0"),
        ({"wave": WAVE[:5]}, "expected 11 wavelengths"),
        ({"flux": np.ones((2, 2, 11))}, "flux must have shape"),
        ({"flux": np.ones((1, 0))}, "flux must have shape"),
        ({"medium": "water"}, "medium must be one of .* found 'water'"),
        ({"names": ["star.fits", "more"]}, "expected 1 names, found 2"),
        ({"valid": np.ones(5, bool)}, "mask of shape"),
        ({"ivar": np.ones(5)}, "inverse variances of shape"),
        ({"labels": {"teff": [1.0, 2.0]}}, "expected 1 values of teff"),
    ],
)
def test_make_spectra_says_what_is_wrong(changes, message):
    arguments = {"wave": WAVE, "flux": np.ones(11), "medium": "air", "names": ["star.fits"]} | changes
    with pytest.raises(SpectrumError, match=message):
        make_spectra(arguments.pop("wave"), arguments.pop("flux"), **arguments)


def test_air_and_vacuum_are_inverse():
    wave = np.geomspace(2500, 25000, 1000)
    np.testing.assert_allclose(spectra.air_to_vacuum(spectra.vacuum_to_air(wave)), wave, rtol=1e-14)
    np.testing.assert_allclose(spectra.vacuum_to_air(spectra.air_to_vacuum(wave)), wave, rtol=1e-14)


def test_air_of_known_lines():
    # H-alpha and Na D2, vacuum and air wavelengths of the NIST Atomic Spectra Database, given to 0.001 Å
    np.testing.assert_allclose(spectra.vacuum_to_air([6564.614, 5891.583]), [6562.801, 5889.951], atol=1e-3)


def test_air_equals_specutils():
    wcs_utils = pytest.importorskip("specutils.utils.wcs_utils")
    units = pytest.importorskip("astropy.units")
    wave = np.linspace(3000, 10000, 500)
    theirs = wcs_utils.vac_to_air(wave * units.AA, method="Ciddor1996").to_value(units.AA)
    np.testing.assert_allclose(spectra.vacuum_to_air(wave), theirs, rtol=1e-12)


def test_air_equals_the_library_grid():
    with np.load(shared("lte_grid.npz")) as bundle:
        air, vacuum = bundle["wave_air"], bundle["wave_vac"]
    # Its maker used another formula for the index; formulae differ by 5e-10, which is 0.15 m/s.
    np.testing.assert_allclose(spectra.air_to_vacuum(air), vacuum, rtol=1e-9)
    np.testing.assert_allclose(spectra.vacuum_to_air(vacuum), air, rtol=1e-9)


def test_to_medium():
    np.testing.assert_array_equal(spectra.to_medium(WAVE, source="air", target="air"), WAVE)
    vacuum = spectra.to_medium(WAVE, source="air", target="vacuum")
    assert np.all((vacuum - WAVE > 1.3) & (vacuum - WAVE < 1.5))
    np.testing.assert_allclose(spectra.to_medium(vacuum, source="vacuum", target="air"), WAVE, rtol=1e-14)
    with pytest.raises(ValueError, match="found 'glass'"):
        spectra.to_medium(WAVE, source="air", target="glass")


def test_doppler_shift():
    # λ' = λ sqrt((1 + β)/(1 - β)): twice the wavelength at β = 0.6
    np.testing.assert_allclose(spectra.doppler_shift(WAVE, 0.6 * 299792.458), 2 * WAVE, rtol=1e-14)
    # 30 km/s at 5000 Å: the classical shift 0.50035 Å, and half of β² more
    shift = spectra.doppler_shift(np.array([5000.0]), 30.0)[0] - 5000.0
    beta = 30.0 / 299792.458
    np.testing.assert_allclose(shift, 5000 * (beta + beta**2 / 2), rtol=1e-8)
    there_and_back = spectra.doppler_shift(spectra.doppler_shift(WAVE, 250.0), -250.0)
    np.testing.assert_allclose(there_and_back, WAVE, rtol=1e-14)
    for velocity in (np.nan, np.inf, 3e5, -3e5):
        with pytest.raises(ValueError, match="below the speed of light"):
            spectra.doppler_shift(WAVE, velocity)


def test_facts_and_line_spread_go_with_rows_and_pixels():
    spectra = make_spectra(
        [5000.0, 5001.0, 5002.0],
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
        medium="air",
        names=["a", "b"],
        fwhm=[1.0, 1.1, 1.2],
        facts={"star_id": ["00123", "1E10"], "rv": 12.5, "segment": "blue"},
    )
    part = spectra.rows(np.array([False, True])).pixels(slice(1, 3))
    assert part.names == ("b",)
    assert part.flux.tolist() == [[5.0, 6.0]]
    assert part.fwhm.tolist() == [1.1, 1.2]
    assert part.fact("star_id").tolist() == ["1E10"]
    assert part.fact("segment").tolist() == ["blue"]
    assert part.fact("rv").tolist() == [12.5]
    assert part.fact("exposure").tolist() == [""]
    assert np.isnan(part.fact("ra")).all()
    with pytest.raises(KeyError, match="expected one of"):
        part.fact("colour")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fwhm": 0.0}, "positive FWHM"),
        ({"fwhm": [1.0, 2.0]}, r"one or 3, found shape \(2,\)"),
        ({"facts": {"colour": 1.0}}, "found 'colour'"),
        ({"facts": {"rv": [1.0, 2.0]}}, "expected 1 values of rv"),
        ({"facts": {"star_id": ["a", "b"]}}, "expected 1 values of star_id"),
    ],
)
def test_facts_and_line_spread_are_checked(wrong, message):
    with pytest.raises(SpectrumError, match=message):
        make_spectra([5000.0, 5001.0, 5002.0], [1.0, 2.0, 3.0], medium="air", **wrong)


# What comes with an array: units, masks, byte order, uncertainties

LINEAR = np.array([5000.0, 5002.5, 5005.0, 5007.5, 5010.0])
LIGHT = np.arange(1.0, 6.0)


@pytest.mark.parametrize(
    "wave",
    [
        LINEAR * units.AA,
        (LINEAR / 10) * units.nm,
        (LINEAR / 1e4) * units.um,
        [w * units.nm for w in LINEAR / 10],
        Masked((LINEAR / 10) * units.nm),
        Table({"w": (LINEAR / 10) * units.nm})["w"],
        LINEAR.astype(">f8"),
        LINEAR.astype(np.longdouble),
        np.ma.array(LINEAR),
        LINEAR.tolist(),
    ],
    ids=lambda w: f"{type(w).__name__} {getattr(w, 'unit', '')}",
)
def test_wavelengths_of_any_kind_are_in_angstrom(wave):
    made = make_spectra(wave, LIGHT, medium="air")
    np.testing.assert_allclose(made.wave, LINEAR, rtol=1e-15)
    assert made.wave.dtype == np.float64
    assert made.wave.dtype.isnative


@pytest.mark.parametrize("given", [">f4", "<f4", "f2", ">f8", ">i4", "u2", np.longdouble])
def test_arrays_become_native_and_keep_their_values(given):
    made = make_spectra(LINEAR, LIGHT.astype(given), medium="air", ivar=LIGHT.astype(given))
    for values in (made.flux, made.ivar):
        assert type(values) is np.ndarray
        assert values.dtype in (np.float32, np.float64)
        assert values.dtype.isnative
        assert values.tolist() == [LIGHT.tolist()]
    assert (made.flux.dtype == np.float32) == (np.dtype(given).kind == "f" and np.dtype(given).itemsize <= 4)


@pytest.mark.parametrize(
    ("flux", "more"),
    [
        (np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0]), {}),
        (np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0]).astype(">f4"), {}),
        ([np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0])], {}),
        ([1.0, np.ma.masked, 3.0, 4.0, 5.0], {}),
        (Masked(LIGHT, mask=[False, True, False, False, False]), {}),
        (Masked(LIGHT * units.Jy, mask=[False, True, False, False, False]), {}),
        (Table({"f": np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0])})["f"], {}),
        (NDData(LIGHT, mask=[False, True, False, False, False]), {}),
        (NDData(np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0])), {}),
        (NDData(LIGHT, mask=np.array([0, 4, 0, 0, 0])), {}),
        (LIGHT, {"ivar": np.ma.array(LIGHT, mask=[0, 1, 0, 0, 0])}),
        (LIGHT, {"valid": np.ma.array([True] * 5, mask=[0, 1, 0, 0, 0])}),
        (LIGHT, {"valid": [1, 0, 1, 1, 1]}),
        (NDData(LIGHT, uncertainty=StdDevUncertainty([1, np.nan, 1, 1, 1])), {}),
        (NDData(LIGHT, uncertainty=VarianceUncertainty([1, 0, 1, 1, 1])), {}),
        (NDData(LIGHT, uncertainty=InverseVariance(np.array([1, 0, 1, 1, 1]))), {}),
    ],
)
def test_masks_are_honoured(flux, more):
    made = make_spectra(LINEAR, flux, medium="air", **more)
    assert made.valid.tolist() == [[True, False, True, True, True]]
    assert made.flux[made.valid].tolist() == [1.0, 3.0, 4.0, 5.0]
    assert type(made.flux) is np.ndarray


def test_masked_wavelengths_are_cut_or_lie_between_their_neighbours():
    wave = np.ma.array([0.0, 5000.0, -1.0, 5005.0, np.nan], mask=[1, 0, 1, 0, 1])
    made = make_spectra(wave, LIGHT, medium="air", ivar=2 * LIGHT, fwhm=LIGHT)
    assert made.wave.tolist() == [5000.0, 5002.5, 5005.0]
    assert made.flux.tolist() == [[2.0, 3.0, 4.0]]
    assert made.ivar.tolist() == [[4.0, 6.0, 8.0]]
    assert made.fwhm.tolist() == [2.0, 3.0, 4.0]
    assert made.valid.tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(2 * LIGHT),
        VarianceUncertainty((2 * LIGHT) ** 2),
        InverseVariance((2 * LIGHT) ** -2),
        StdDevUncertainty(2000 * LIGHT, unit="mJy"),
        InverseVariance((2000 * LIGHT) ** -2, unit="mJy-2"),
    ],
)
def test_uncertainties_of_all_kinds_become_inverse_variances(uncertainty):
    flux = NDData(LIGHT, unit="Jy", uncertainty=uncertainty)
    np.testing.assert_allclose(make_spectra(LINEAR, flux, medium="air").ivar, [(2 * LIGHT) ** -2], rtol=1e-14)


def test_the_unit_of_the_inverse_variance_is_that_of_the_flux():
    made = make_spectra(LINEAR, LIGHT * units.Jy, medium="air", ivar=LIGHT.astype("f4") * units.mJy**-2)
    np.testing.assert_allclose(made.ivar, [1e6 * LIGHT], rtol=1e-7)
    assert make_spectra(LINEAR, LIGHT * units.Jy, medium="air", ivar=LIGHT).ivar.tolist() == [LIGHT.tolist()]


def specutils_like(**changes):
    parts = {
        "mask": np.array([False, True, False, False, False]),
        "uncertainty": StdDevUncertainty(2 * LIGHT),
    }
    parts |= {"spectral_axis": (LINEAR / 10) * units.nm, "flux": LIGHT * units.Jy, "unit": units.Jy}
    return SimpleNamespace(**parts | {"radial_velocity": 12e3 * units.m / units.s} | changes)


def test_a_spectrum_of_specutils_is_accepted():
    check_specutils(specutils_like())


def test_a_spectrum_of_the_real_specutils_is_accepted():
    made = pytest.importorskip("specutils").Spectrum
    like = vars(specutils_like())
    check_specutils(
        made(**{k: like[k] for k in ("flux", "spectral_axis", "mask", "uncertainty", "radial_velocity")})
    )


def check_specutils(given):
    made = make_spectra(given, medium="vacuum", names=["HD 1"])
    np.testing.assert_allclose(made.wave, LINEAR, rtol=1e-15)
    assert made.flux.tolist() == [LIGHT.tolist()]
    assert made.valid.tolist() == [[True, False, True, True, True]]
    np.testing.assert_allclose(made.ivar, [(2 * LIGHT) ** -2], rtol=1e-15)
    assert made.fact("rv").tolist() == [12.0]
    assert make_spectra(given, medium="air", facts={"rv": 3.0}).fact("rv").tolist() == [3.0]


def test_facts_and_labels_with_units():
    made = make_spectra(
        LINEAR,
        LIGHT,
        medium="air",
        labels={"teff": [5772.0] * units.K, "feh": np.ma.array([0.0], mask=[1])},
        facts={
            "rv": 5.0 * units.m / units.s,
            "ra": [1.0] * units.hourangle,
            "snr": np.ma.array([7], mask=[1]),
        },
        fwhm=0.1 * units.nm,
    )
    assert made.labels["teff"].tolist() == [5772.0]
    assert np.isnan(made.labels["feh"]).all()
    np.testing.assert_allclose([made.fact("rv")[0], made.fact("ra")[0], made.fwhm[0]], [0.005, 15.0, 1.0])
    assert np.isnan(made.fact("snr")).all()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (np.array([1234567890123456789]), "1234567890123456789"),
        (17.0, "17"),
        (17, "17"),
        (b"0001", "0001"),
        ([None], ""),
        (np.ma.array(["x"], mask=[True]), ""),
        ([np.nan], ""),
    ],
)
def test_names_among_the_facts_are_text_to_the_digit(given, found):
    assert make_spectra(LINEAR, LIGHT, medium="air", facts={"star_id": given}).fact("star_id").tolist() == [
        found
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"wave": np.linspace(6e14, 5e14, 5) * units.Hz},
            r"wavelengths in a unit of length, found 'Hz'; .*spectral",
        ),
        ({"wave": LINEAR / units.cm}, "found '1 / cm'"),
        ({"wave": LINEAR * units.km / units.s}, "found 'km / s'"),
        ({"wave": LINEAR * units.one}, "a unit of length, found ''"),
        ({"wave": [1 * units.nm, 2 * units.Hz]}, "real numbers as wavelengths, found .* not convertible"),
        ({"wave": LINEAR + 0j}, "real numbers as wavelengths, found complex128"),
        ({"wave": np.ma.array(LINEAR, mask=True)}, "wavelengths, found 5 that are masked"),
        ({"flux": LIGHT + 0j}, "real numbers as flux, found complex128"),
        ({"flux": LIGHT.astype(object)}, "real numbers as flux, found object"),
        ({"flux": ["1", "2", "3", "4", "5"]}, "real numbers as flux, found <U1"),
        ({"flux": LIGHT > 2}, "real numbers as flux, found bool"),
        ({"flux": [[1.0, 2.0], [3.0]]}, "real numbers as flux, found setting an array element"),
        ({"flux": None}, "found no flux"),
        ({"flux": units.Magnitude(LIGHT)}, r"expected a flux, found its logarithm \(mag\)"),
        ({"flux": LIGHT * units.mag}, "expected a flux, found its logarithm"),
        ({"flux": SimpleNamespace(magnitude=LIGHT, units="Jy")}, "as an array or an astropy Quantity"),
        ({"ivar": LIGHT + 0j}, "real numbers as inverse variances"),
        ({"ivar": LIGHT / units.s}, "flux's unit to the power -2, found '1 / s' with flux in 'None'"),
        ({"flux": LIGHT * units.Jy, "ivar": LIGHT * units.Jy}, "found 'Jy' with flux in 'Jy'"),
        (
            {"flux": NDData(LIGHT, uncertainty=UnknownUncertainty(LIGHT))},
            "an uncertainty of a kind in .* 'unknown'",
        ),
        (
            {"wave": specutils_like(uncertainty=StdDevUncertainty(LIGHT, unit="K")), "flux": None},
            "power 1, found 'K'",
        ),
        ({"flux": NDData(LIGHT, uncertainty=StdDevUncertainty(LIGHT)), "ivar": LIGHT}, "one uncertainty"),
        ({"flux": NDData(LIGHT, mask=np.ones(4, bool))}, "expected a mask of shape"),
        ({"valid": [0, 4, 0, 0, 0]}, "a mask of True .good. and False, found int64; bits go as `mask == 0`"),
        ({"valid": [1.0, 0.0, np.nan, 1.0, 1.0]}, "found float64"),
        ({"labels": {"teff": [5.0] * units.kK}}, "teff in K, dex or km/s, found the unit 'kK'"),
        ({"labels": {"teff": ["hot"]}}, "real numbers as values of teff"),
        ({"facts": {"rv": 5 * units.K}}, "rv in km / s, found the unit 'K'"),
        ({"facts": {"star_id": 1.234567890123456789e18}}, "star_id as text, found the floating-point number"),
        ({"facts": {"star_id": 1.5}}, "star_id as text, found the floating-point number"),
        ({"fwhm": 5 * units.km / units.s}, "the line spread in a unit of length"),
        ({"wave": specutils_like()}, "a spectrum or wavelengths and flux"),
        (
            {"wave": specutils_like(flux=np.ones((5, 2)) * units.Jy, spectral_axis_index=0), "flux": None},
            "along the last axis",
        ),
        ({"wave": specutils_like(spectral_axis=LINEAR * units.eV), "flux": None}, "found 'eV'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, message):
    arguments = {"wave": LINEAR, "flux": LIGHT, "medium": "air", "names": ["HD 1"]} | changes
    wave, flux = arguments.pop("wave"), arguments.pop("flux")
    with pytest.raises(SpectrumError, match=message):
        make_spectra(wave, flux, **arguments)


@given(
    arrays(np.float64, (2, 5), elements=st.floats(-1e6, 1e6)),
    arrays(np.bool_, (2, 5)),
    st.sampled_from([units.AA, units.nm, units.um, units.m]),
    st.sampled_from([">f8", "<f8", ">f4"]),
)
def test_no_way_to_say_it_changes_what_is_said(flux, bad, unit, dtype):
    """Plain arrays in Å and a mask of good pixels, or the same with units, NumPy's mask and another byte order."""
    flux = flux.astype(dtype)
    plain = make_spectra(LINEAR, flux, medium="air", valid=~bad)
    wave = (LINEAR * units.AA).to(unit)
    for said in (np.ma.array(flux, mask=bad), Masked(flux * units.Jy, mask=bad), NDData(flux, mask=bad)):
        made = make_spectra(wave, said, medium="air")
        np.testing.assert_allclose(made.wave, plain.wave, rtol=1e-14)
        np.testing.assert_array_equal(made.flux, plain.flux)
        np.testing.assert_array_equal(made.valid, plain.valid)
