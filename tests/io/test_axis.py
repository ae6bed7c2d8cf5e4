"""Wavelength axes as files have them."""

from pathlib import Path

import numpy as np
import pytest

from remap.io import axis, segments
from remap.spectra import SpectrumError

WAVE = 5000 + 0.5 * np.arange(300)
LINEAR = {"axis": "linear", "wave_unit": "Angstrom"}


def mend(values, within=None, **declared):
    return axis.mend(np.asarray(values), Path("x.fits"), within=within, **(LINEAR | declared))


def build(wave, within=None, **arrays):
    segment = segments.Segment(coordinate=np.asarray(wave), names=("x",), **arrays)
    return segments.build(segment, Path("x.fits"), LINEAR | {"medium": "air"}, within)


@pytest.mark.parametrize("padding", [0.0, np.nan, -1.0, np.inf])
@pytest.mark.parametrize("order", [1, -1])
def test_padding_at_the_ends_is_cut(padding, order):
    values = np.concatenate([[padding] * 3, WAVE, [padding] * 4])[::order]
    made = mend(values)
    np.testing.assert_array_equal(made.wave, WAVE)
    np.testing.assert_array_equal(values[made.index], WAVE)


@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_padding_in_the_middle_is_an_error(padding):
    values = WAVE.copy()
    values[100:103] = padding
    with pytest.raises(SpectrumError, match=r"x\.fits: expected a wavelength in every .* at pixel 100"):
        mend(values)
    with pytest.raises(SpectrumError, match="in every pixel"):
        mend(values, within=(5010.0, 5100.0))
    np.testing.assert_array_equal(mend(values, within=(5100.0, 5120.0)).wave, WAVE[200:241])


def test_padding_by_the_last_value_is_cut():
    values = np.append(WAVE, [WAVE[-1]] * 40)
    np.testing.assert_array_equal(mend(values).wave, WAVE)
    np.testing.assert_array_equal(mend(values[::-1]).index[:2], [339, 338])


def test_zeros_of_a_logarithm_are_padding():
    made = mend(np.append(np.log10(WAVE), [0.0, 0.0]), axis="log10")
    np.testing.assert_allclose(made.wave, WAVE, rtol=1e-14)


def test_ties_of_float32_are_merged():
    fine = 9000 + 0.0002 * np.arange(2000)
    rounded = fine.astype(np.float32).astype(float)
    flux = np.sin(fine)
    ivar = np.linspace(1, 3, 2000)
    flux[7], ivar[9] = np.nan, 0
    made = build(rounded, flux=flux, ivar=ivar)
    for wave, one, weight in zip(made.wave, made.flux[0], made.ivar[0], strict=True):
        same = (rounded == wave) & np.isfinite(flux) & (ivar > 0)
        np.testing.assert_allclose(one, np.sum(flux[same] * ivar[same]) / np.sum(ivar[same]), rtol=1e-12)
        np.testing.assert_allclose(weight, ivar[same].sum(), rtol=1e-12)
    assert made.valid.all()
    assert len(made.wave) == len(np.unique(rounded)) < 1000


def test_ties_without_errors_and_with_masks():
    values = np.array([5000.0, 5001, 5001, 5002, 5003])
    made = build(values, flux=np.array([1.0, 2, 4, 8, 9]), valid=np.array([True, True, False, True, True]))
    assert made.flux.tolist() == [[1, 2, 8, 9]]
    made = build(values, flux=np.array([1.0, 2, 4, 8, 9]))
    assert made.flux.tolist() == [[1, 3, 8, 9]]
    made = build(values, flux=np.ones(5), valid=np.array([True, False, False, True, True]))
    assert made.valid.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([5000.0, 5002, 5001, 5003], "increase strictly, found 5002 then 5001 Å at pixel 1"),
        ([5000.0] * 40, "increase strictly, found 5000 then 5000"),
        ([np.nan] * 5, "found none among 5 pixels"),
        ([0.5, 0.6, 0.7], r"within 500 to 1e\+07 Å, found 0.5 to 0.7"),
    ],
)
def test_what_cannot_be_mended(values, message):
    with pytest.raises(SpectrumError, match=message):
        mend(values)


def test_pixels_outside_are_dropped_before_anything_is_checked():
    values = np.concatenate([[88.0, 90.0, 89.0], WAVE, [0.0, 7.0]])  # a Kurucz model begins at 88 Å
    assert len(mend(values, within=(4000.0, 6000.0)).wave) == 300
    with pytest.raises(axis.OutsideError, match=r"within 7000 to 8000 Å, found 7 to 5149\.5 Å"):
        mend(values, within=(7000.0, 8000.0))
    with pytest.raises(ValueError, match="low < high"):
        mend(values, within=(8000.0, 7000.0))


def test_line_spreads_go_with_the_pixels():
    wave = np.append(5200 - 0.5 * np.arange(300), 0.0)
    spread = np.linspace(1, 2, 301)
    spread[40] = np.nan
    segment = segments.Segment(coordinate=wave, flux=np.ones(301), spread=spread)
    source = LINEAR | {"medium": "air", "line_spread": {"place": {"hdu": 1}, "kind": "sigma_pixels"}}
    made = segments.build(segment, Path("x.fits"), source)
    good = np.delete(np.arange(300), 40)
    np.testing.assert_allclose(made.fwhm[::-1][good], 2.3548200450309493 * 0.5 * spread[good], rtol=1e-9)
    assert np.isfinite(made.fwhm).all()
