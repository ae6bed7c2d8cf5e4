"""IRAF's axes, against sums written out term by term."""

import numpy as np
import pytest
from astropy.io import fits

from remap import io
from remap.spectra import SpectrumError

SOURCE = {"format": "iraf", "medium": "air", "wave_unit": "Angstrom"}
N = 64
PIXEL = np.arange(1.0, N + 1)


def multispec(path, *specs, cards=None):
    text = "wtype=multispec " + " ".join(f'spec{i} = "{s}"' for i, s in enumerate(specs, 1))
    header = fits.Header({"WAT0_001": "system=multispec", "CTYPE1": "MULTISPE"} | (cards or {}))
    for i in range(0, len(text), 68):
        header[f"WAT2_{i // 68 + 1:03d}"] = text[i : i + 68]
    data = np.arange(1.0, len(specs) * N + 1).reshape(len(specs), N)
    fits.writeto(path, data, header, overwrite=True)
    return path


def legendre(x, terms):
    basis = [np.ones_like(x), x]
    for n in range(2, len(terms)):
        basis.append(((2 * n - 1) * x * basis[-1] - (n - 1) * basis[-2]) / n)
    return sum(c * b for c, b in zip(terms, basis, strict=False))


def chebyshev(x, terms):
    basis = [np.ones_like(x), x]
    for _ in range(2, len(terms)):
        basis.append(2 * x * basis[-1] - basis[-2])
    return sum(c * b for c, b in zip(terms, basis, strict=False))


X = (2 * PIXEL - (1 + N)) / (N - 1)
TERMS = [5100.0, 30.0, -2.0, 0.5]
WORDS = " ".join(str(t) for t in TERMS)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (f"1 1 0 5000. 0.25 {N} 0. 0 0", 5000 + 0.25 * (PIXEL - 1)),
        (f"1 1 0 5000. 0.25 {N} 0.001 0 0", (5000 + 0.25 * (PIXEL - 1)) / 1.001),
        (f"1 1 1 3.7 1e-4 {N} 0. 0 0", 10 ** (3.7 + 1e-4 * (PIXEL - 1))),
        (f"1 1 2 0 0 {N} 0. 0 0 1. 0. 2 4 1 {N} {WORDS}", legendre(X, TERMS)),
        (f"1 1 2 0 0 {N} 0. 0 0 1. 0. 1 4 1 {N} {WORDS}", chebyshev(X, TERMS)),
        (
            f"1 1 2 0 0 {N} 0. 0 0 0.5 10. 1 4 1 {N} {WORDS} 0.5 -10. 2 4 1 {N} {WORDS}",
            0.5 * (legendre(X, TERMS) + chebyshev(X, TERMS)),
        ),
        (
            f"1 1 2 0 0 {N} 0. 0 0 1. 0. 4 2 1 {N} 5000 5060 5130",
            np.interp(PIXEL, [1, 32.5, N], [5000, 5060, 5130]),
        ),
        # A cubic B-spline with coefficients that rise evenly is a straight line; IRAF's basis sums to 6.
        (f"1 1 2 0 0 {N} 0. 0 0 1. 0. 3 3 1 {N} 800 810 820 830 840 850", 4860 + 180 * (PIXEL - 1) / (N - 1)),
        (f"1 1 2 0 0 {N} 0. 0 0 1. 0. 6 2 1 5000 {N} 5126", np.interp(PIXEL, [1, N], [5000, 5126])),
    ],
)
def test_kinds_of_axes(tmp_path, spec, expected):
    found = io.read(multispec(tmp_path / "x.fits", spec), source=SOURCE)
    np.testing.assert_allclose(found.wave, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.flux, [PIXEL])


def test_orders_apertures_and_those_without_a_dispersion(tmp_path):
    path = multispec(
        tmp_path / "x.fits",
        f"4 88 0 5000. 0.25 {N} 0. 0 0",
        f"5 87 -1 1. 1. {N} 0. 0 0",
        f"6 86 0 5100. -0.25 {N // 2} 0. 0 0",
        cards={"OBJECT": "HD 1"},
    )
    found = io.read_segments(path, source=SOURCE | {"facts": {"star_id": "OBJECT"}})
    assert [s.fact("segment")[0] for s in found] == ["order4", "order6"]
    assert [s.fact("star_id")[0] for s in found] == ["HD 1", "HD 1"]
    assert found[1].wave[[0, -1]].tolist() == [5100 - 0.25 * (N // 2 - 1), 5100]
    assert found[1].flux[0, -1] == 2 * N + 1
    with pytest.raises(SpectrumError, match=r"expected one segment, found 2 \(order4, order6\)"):
        io.read(path, source=SOURCE)


def test_a_part_of_an_image_keeps_the_pixels_of_the_whole(tmp_path):
    spec = f"1 1 0 5000. 0.25 {N} 0. 0 0"
    path = multispec(tmp_path / "x.fits", spec, cards={"LTV1": -10.0, "LTM1_1": 1.0})
    assert io.read(path, source=SOURCE).wave[0] == 5002.5


@pytest.mark.parametrize("flag", [0, 1])
def test_equispec_and_bands(tmp_path, flag):
    axis = {"CRVAL1": 3.7, "CD1_1": 1e-4} if flag else {"CRVAL1": 5000.0, "CD1_1": 0.25}
    header = fits.Header(
        axis | {"CRPIX1": 1.0, "DC-FLAG": flag, "WAT0_001": "system=equispec", "APNUM1": "7 7"}
    )
    fits.writeto(tmp_path / "x.fits", np.arange(4.0 * N).reshape(2, 2, N) + 1, header)
    found = io.read_segments(tmp_path / "x.fits", source=SOURCE | {"error_band": 1})
    expected = 10 ** (3.7 + 1e-4 * np.arange(N)) if flag else 5000 + 0.25 * np.arange(N)
    np.testing.assert_allclose(found[1].wave, expected, rtol=1e-14)
    assert [s.fact("segment")[0] for s in found] == ["order7", "order2"]
    assert found[1].flux[0, 0] == N + 1
    np.testing.assert_allclose(found[1].ivar[0, 0], 1 / (3 * N + 1) ** 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("1 1 0 x 0.25 64 0. 0 0", "expected numbers in spec1"),
        ("1 1 0 5000.", "expected numbers in spec1"),
        ("1 1 0 5000. 0.25 65 0. 0 0", "up to 64 pixels"),
        ("1 1 7 5000. 0.25 64 0. 0 0", "found kind 7"),
        ("1 1 0 5000. 0.25 64 -2. 0 0", "Doppler factor -2"),
        ("1 1 2 0 0 64 0. 0 0 1. 0. 2 4 1 64 5100 30", "cut after 8 numbers"),
        ("1 1 2 0 0 64 0. 0 0 1. 0. 2 4 64 1 5100 30 1 1", "found 4 terms over 64-1"),
        ("1 1 2 0 0 64 0. 0 0 1. 0. 9 4 1 64 5100 30 1 1", "kind 1 to 6"),
        ("1 1 2 0 0 64 0. 0 0 1. 0. 2 1e9 1 64 5100", "found 1e.09 terms"),
        ("1 1 -1 5000. 0.25 64 0. 0 0", "orders with a dispersion, found none"),
    ],
)
def test_axes_that_make_no_sense(tmp_path, spec, message):
    with pytest.raises(SpectrumError, match=message):
        io.read(multispec(tmp_path / "x.fits", spec), source=SOURCE)


def test_an_order_without_a_spec(tmp_path):
    path = multispec(tmp_path / "x.fits", f"1 1 0 5000. 0.25 {N} 0. 0 0")
    header = fits.getheader(path)
    fits.writeto(path, np.ones((2, N)), header, overwrite=True)
    with pytest.raises(SpectrumError, match="expected spec2 in the cards WAT2"):
        io.read_segments(path, source=SOURCE)


def test_rows_of_the_same_wavelengths_are_spectra_of_their_own(tmp_path):
    """Fibres of a field: star and sky, or many stars. As orders of one spectrum they would be averaged."""
    fields = {"OBJECT": "field 1", "RA": "05:19:00", "DEC": "10:00:00"}
    source = SOURCE | {"facts": {"star_id": "OBJECT", "ra": "RA", "dec": "DEC"}}
    spec = f"1 1 0 5000. 0.25 {N} 0. 0 0"
    path = multispec(tmp_path / "x.fits", spec, spec.replace("5000.", "5000.1"), cards=fields)
    found = io.read_segments(path, source=source)
    assert [s.names[0] for s in found] == ["x.fits[order1#1]", "x.fits[order1#2]"]
    assert [s.fact("star_id")[0] for s in found] == ["", ""]
    assert np.isnan([s.fact("ra")[0] for s in found]).all()
    path = multispec(tmp_path / "x.fits", spec, spec, cards=fields | {"APID1": "HD 1", "APID2": "HD 2"})
    assert [s.fact("star_id")[0] for s in io.read_segments(path, source=source)] == ["HD 1", "HD 2"]


def test_rows_of_different_names_are_spectra_of_their_own(tmp_path):
    specs = (f"1 1 0 5000. 0.25 {N} 0. 0 0", f"2 2 0 5008. 0.25 {N} 0. 0 0")
    found = io.read_segments(multispec(tmp_path / "x.fits", *specs, cards={"APID1": "HD 1"}), source=SOURCE)
    assert [s.names[0] for s in found] == ["x.fits", "x.fits"]  # half of their wavelengths are in common
    cards = {"APID1": "HD 1", "APID2": "HD 2"}
    found = io.read_segments(multispec(tmp_path / "x.fits", *specs, cards=cards), source=SOURCE)
    assert [s.names[0] for s in found] == ["x.fits[order1]", "x.fits[order2]"]


def test_steps_of_one_axis_that_contradict_each_other_are_refused(tmp_path):
    cards = {"CRVAL1": 4000.0, "CDELT1": 0.9, "CD1_1": 1.0, "WAT0_001": "system=equispec"}
    fits.writeto(tmp_path / "x.fits", np.ones((2, N)), fits.Header(cards))
    with pytest.raises(SpectrumError, match=r"CD1_1 = 1 and CDELT1 = 0\.9"):
        io.read_segments(tmp_path / "x.fits", source=SOURCE)
