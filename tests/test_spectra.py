"""The container, air and vacuum wavelengths, Doppler shifts."""

import numpy as np
import pytest

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
