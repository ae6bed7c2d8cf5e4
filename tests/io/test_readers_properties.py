"""What is written is read back, whatever its axis, units and types; damaged files raise SpectrumError alone."""

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from remap import io
from remap.io.bundle import write_bundle
from remap.spectra import SpectrumError, make_spectra

N, S = 24, 3
TO_AXIS = {"linear": np.asarray, "ln": np.log, "log10": np.log10}
AXIS = st.sampled_from(sorted(TO_AXIS))
UNIT = st.sampled_from(("Angstrom", "nm", "um"))
MEDIUM = st.sampled_from(("air", "vacuum"))
FLOAT = st.sampled_from((">f4", ">f8"))
FLUX = arrays(np.float32, N, elements=st.one_of(st.floats(-1e6, 1e6, width=32), st.just(np.nan)))
START, STEP = st.floats(3000, 9000), st.floats(0.01, 2.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


def coordinate(start, step, axis, unit):
    """First value and step of an axis that begins at `start` and goes on by `step` there, both in Å."""
    scale = units.AA.to(units.Unit(unit))
    ends = TO_AXIS[axis](np.array([start, start + step]) * scale)
    return float(ends[0]), float(ends[1] - ends[0])


def wavelengths(first, step, axis, unit):
    values = first + step * np.arange(N)
    values = {"linear": np.asarray, "ln": np.exp, "log10": lambda x: 10**x}[axis](values)
    return values * units.Unit(unit).to(units.AA)


def check(found, wave, flux, medium):
    assert found.medium == medium
    assert len(found) == 1
    np.testing.assert_allclose(found.wave, wave, rtol=1e-12)
    np.testing.assert_array_equal(found.valid[0], np.isfinite(flux))
    np.testing.assert_array_equal(found.flux[0], flux)


@given(AXIS, UNIT, MEDIUM, FLOAT, FLUX, START, STEP)
def test_images(folder, axis, unit, medium, dtype, flux, start, step):
    first, step = coordinate(start, step, axis, unit)
    path = folder / "image.fits"
    cards = fits.Header({"CRVAL1": first, "CDELT1": step, "CRPIX1": 1.0})
    fits.writeto(path, flux.astype(dtype), cards, overwrite=True)
    source = {"format": "image", "medium": medium, "axis": axis, "wave_unit": unit}
    check(io.read(path, source=source), wavelengths(first, step, axis, unit), flux, medium)


@given(AXIS, UNIT, MEDIUM, FLOAT, FLUX, START, STEP, st.booleans())
def test_tables(folder, axis, unit, medium, dtype, flux, start, step, one_row):
    first, step = coordinate(start, step, axis, unit)
    columns = {
        "W": first + step * np.arange(N),
        "F": flux.astype(dtype),
        "E": np.abs(np.nan_to_num(flux)) + 1.0,
    }
    made = Table({name: values[None] if one_row else values for name, values in columns.items()})
    path = folder / "table.fits"
    made.write(path, format="fits", overwrite=True)
    source = {"format": "table", "medium": medium, "axis": axis, "wave_unit": unit}
    source |= {"wave_column": "W", "flux_column": "F", "error_column": "E"}
    found = io.read(path, source=source)
    check(found, wavelengths(first, step, axis, unit), flux, medium)
    np.testing.assert_allclose(found.ivar[0], columns["E"].astype(np.float64) ** -2.0)


@given(
    MEDIUM,
    st.sampled_from((np.float32, np.float64)),
    arrays(np.float32, (S, N), elements=st.floats(-1e6, 1e6, width=32)),
    arrays(np.bool_, (S, N)),
    arrays(np.float64, S, elements=st.floats(3000, 9000)),
)
def test_bundles(folder, medium, dtype, flux, valid, teff):
    wave = 5000.0 + 0.5 * np.arange(N)
    names = [f"star {i}" for i in range(S)]
    spectra = make_spectra(
        wave, flux.astype(dtype), medium=medium, valid=valid, names=names, labels={"teff": teff, "feh": -teff}
    )
    write_bundle(folder / "b.npz", spectra)
    source = {"format": "bundle", "medium": medium, "absolute": False, "label_columns": ("teff", "feh")}
    found = io.read(folder / "b.npz", source=source)
    assert found.flux.dtype == dtype
    assert found.names == spectra.names
    np.testing.assert_allclose(found.wave, wave, rtol=1e-12)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.flux[valid], spectra.flux[valid])
    for name, value in spectra.labels.items():
        np.testing.assert_array_equal(found.labels[name], value)


@pytest.fixture(scope="module")
def whole(folder):
    """kind -> a good file of this format, as bytes, and its source."""
    base = {"medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
    wave, flux = 5000.0 + 0.5 * np.arange(N), np.linspace(1, 2, N)
    fits.writeto(folder / "whole.fits", flux, fits.Header({"CRVAL1": 5000.0, "CDELT1": 0.5}))
    Table({"W": wave, "F": flux, "I": flux, "M": np.zeros(N, int)}).write(folder / "whole_table.fits")
    write_bundle(folder / "whole.npz", make_spectra(wave, flux, medium="air", labels={"teff": [5000.0]}))
    columns = {"wave_column": "W", "flux_column": "F", "ivar_column": "I", "mask_column": "M"}
    content = {
        "image": ((folder / "whole.fits").read_bytes(), base),
        "table": ((folder / "whole_table.fits").read_bytes(), base | columns | {"mask_good": "zero"}),
        "bundle": (
            (folder / "whole.npz").read_bytes(),
            {"medium": "air", "absolute": False, "label_columns": ("teff",)},
        ),
    }
    return content.get  # a failure shows its arguments, and these are long


@pytest.mark.parametrize("kind", ["image", "table", "bundle"])
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4), st.floats(0, 1)
)
def test_a_damaged_file_is_read_or_refused(kind, whole, folder, changes, length):
    """Some bytes are others, or the end is missing: the reader gives spectra, or a SpectrumError with the file."""
    content, source = whole(kind)
    content = bytearray(content)
    for place, value in changes:
        content[int(place * len(content))] = value
    if not changes:
        content = content[: int(length * len(content))]
    path = folder / f"damaged_{kind}"
    path.write_bytes(content)
    try:
        message = path.name * (len(io.read(path, source=source | {"format": kind})) == 1)
    except SpectrumError as error:
        message = str(error)
    assert path.name in message
