"""What is taken for spectra: arrays, containers and specutils' objects give the same, and the rest is refused."""

import types

import numpy as np
import pytest
from astropy import units as u

from remap import make_spectra
from remap.predict.given import spectra_of
from remap.spectra import SpectrumError

WAVE = np.arange(5000.0, 5006.0)
FLUX = np.arange(12.0).reshape(2, 6) + 1


def like(flux=FLUX[0], wave=WAVE, **more):
    """As specutils has it, as far as it is used."""
    values = {"spectral_axis": wave * u.AA, "flux": flux * u.Jy, "mask": None, "uncertainty": None}
    return types.SimpleNamespace(**(values | more))


def told(files):
    return [[(part.names, part.flux.tolist(), part.wave.tolist(), part.medium) for part in f] for f in files]


def test_arrays_and_containers_are_the_same():
    made = make_spectra(WAVE, FLUX, medium="air", ivar=np.full((2, 6), 4.0))
    for found in (
        spectra_of(made),
        spectra_of([made]),
        spectra_of(WAVE, FLUX, medium="air", ivar=np.full((2, 6), 4.0)),
        spectra_of(0.1 * WAVE * u.nm, FLUX, medium="air", ivar=np.full((2, 6), 4.0)),
    ):
        ((one,),) = found
        np.testing.assert_allclose(one.wave, WAVE)
        np.testing.assert_array_equal(one.flux, FLUX)
        np.testing.assert_array_equal(one.ivar, 4.0)
        assert (one.names, one.medium) == (("0", "1"), "air")
    assert spectra_of(made, names=["a", "b"])[0][0].names == ("a", "b")
    other = make_spectra(WAVE + 10, FLUX[:1], medium="air")
    assert [file[0].names for file in spectra_of([made, other])] == [("0/0", "1"), ("1/0",)]
    assert [part.names for part in spectra_of([[made, other]])[0]] == [
        ("0", "1"),
        ("0",),
    ]  # parts of one spectrum


def test_several_spectra_have_numbers_or_names():
    several = [like(), like(FLUX[1]), [like(), like(FLUX[1], WAVE + 10)]]
    found = spectra_of(several, medium="vacuum")
    assert [[part.names for part in file] for file in found] == [[("0",)], [("1",)], [("2",), ("2",)]]
    assert told(found)[2][1] == (("2",), [FLUX[1].tolist()], (WAVE + 10).tolist(), "vacuum")
    found = spectra_of(several, medium="vacuum", names=["x", "y", "z"])
    assert [[part.names for part in file] for file in found] == [[("x",)], [("y",)], [("z",), ("z",)]]
    assert spectra_of([like(FLUX)], medium="air")[0][0].names == ("0[0]", "0[1]")
    assert spectra_of([like(FLUX)], medium="air", names=["x"])[0][0].names == ("x[0]", "x[1]")


def test_what_specutils_has_is_accepted():
    specutils = pytest.importorskip("specutils", reason="needs specutils")
    one = specutils.Spectrum(flux=FLUX[0] * u.Jy, spectral_axis=WAVE * u.AA)
    moved = specutils.Spectrum(
        flux=FLUX[1] * u.Jy, spectral_axis=WAVE * u.AA, radial_velocity=30 * u.km / u.s
    )
    assert told(spectra_of(one, medium="air")) == [[(("0",), [FLUX[0].tolist()], WAVE.tolist(), "air")]]
    both = spectra_of(specutils.SpectrumList([one, moved]), medium="air")
    assert [file[0].names for file in both] == [("0",), ("1",)]
    assert [file[0].fact("rv")[0] for file in both] == [pytest.approx(np.nan, nan_ok=True), 30.0]
    ((table,),) = spectra_of(specutils.Spectrum(flux=FLUX * u.Jy, spectral_axis=WAVE * u.AA), medium="air")
    assert table.flux.shape == (2, 6)
    axes = np.stack([WAVE, WAVE + 10]) * u.AA
    collection = specutils.SpectrumCollection(flux=FLUX * u.Jy, spectral_axis=axes)
    ((first, second),) = spectra_of(collection, medium="air")
    assert (first.names, second.names) == (("0",), ("1",))
    np.testing.assert_array_equal(second.flux, FLUX[1:])
    np.testing.assert_array_equal(second.wave, WAVE + 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((WAVE, FLUX), {}), "expected medium='air' or medium='vacuum'"),
        (((like(),), {}), "expected medium='air' or medium='vacuum'"),
        (((FLUX,), {"medium": "air"}), "or wavelengths and flux, found ndarray"),
        ((("a.fits",), {}), "or wavelengths and flux, found str"),
        ((([like(), 3.0],), {"medium": "air"}), "spectrum 1: expected Spectra .* found float"),
        ((([[like(), 3.0]],), {"medium": "air"}), "spectrum 0: expected Spectra .* found float"),
        (((like(), FLUX), {"medium": "air"}), "found a spectrum and flux"),
        (
            ((make_spectra(WAVE, FLUX, medium="air"),), {"medium": "vacuum"}),
            "expected spectra in vacuum, found air",
        ),
        (((make_spectra(WAVE, FLUX, medium="air"),), {"ivar": FLUX}), "expected flux beside ivar"),
        ((([like(), like()],), {"medium": "air", "names": ["x"]}), "expected 2 names, found 1"),
        (((make_spectra(WAVE, FLUX, medium="air"),), {"names": "abc"}), "expected 2 names, found 3"),
        ((([],), {}), "expected at least one spectrum, found none"),
    ],
)
def test_the_rest_is_refused(given, message):
    args, more = given
    with pytest.raises(ValueError, match=message):
        spectra_of(*args, **more)
    assert issubclass(SpectrumError, ValueError)
