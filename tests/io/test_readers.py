"""Readers, label tables and everything that can be wrong with a file."""

import gzip
import warnings

import ml_collections
import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from remap import io
from remap.io import fits_files
from remap.spectra import SpectrumError, make_spectra, to_medium

IMAGE = {"format": "image", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
HIRES = {"format": "phoenix_hires", "medium": "vacuum", "wave_unit": "Angstrom", "wave_path": "WAVE.fits"}
TABLE = {
    "format": "table",
    "medium": "vacuum",
    "axis": "linear",
    "wave_unit": "Angstrom",
    "wave_column": "WAVE",
    "flux_column": "FLUX",
}
BUNDLE = {
    "format": "bundle",
    "medium": "air",
    "absolute": False,
    "label_columns": ("teff", "logg", "m_h", "vmic"),
}
LABELS = {
    "format": "ecsv",
    "columns": {"teff": "teff", "logg": "logg"},
    "error_columns": {"teff": "teff_err"},
    "file_column": "file",
    "id_column": "star",
}
N = 300
FLUX = np.linspace(1, 2, N).astype(np.float32)
WAVE = 5000 + 0.5 * np.arange(N)


def shared(path):
    try:
        return io.find_data(path)
    except SpectrumError as error:
        pytest.skip(str(error))


def image(path, data=FLUX, *, crval=5000.0, cdelt=0.5, **cards):
    header = fits.Header({"CRVAL1": crval, "CDELT1": cdelt, "CRPIX1": 1.0} | cards)
    fits.writeto(path, data, header, overwrite=True)
    return path


def table(path, *, unit="Angstrom", **columns):
    columns = {"WAVE": WAVE, "FLUX": FLUX.astype(float)} | columns
    made = Table({k: v for k, v in columns.items() if v is not None})
    if unit and "WAVE" in made.colnames:
        made["WAVE"].unit = unit
    made.write(path, format="fits", overwrite=True)
    return path


def stars(path, format="ascii.ecsv", **columns):
    columns = {
        "file": ["a.fits", "b.fits", "c.fits"],
        "star": ["A", "B", "C"],
        "teff": [5000.0, 5500.0, 6000.0] * units.K,
        "teff_err": [50.0, 60.0, 70.0] * units.K,
        "logg": [4.5, 4.4, 4.3],
    } | columns
    Table(columns).write(path, format=format, overwrite=True)
    return path


# Finding files


def test_data_are_where_data_root_or_the_environment_says(tmp_path, monkeypatch):
    for folder in ("root", "env"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.fits").touch()
    monkeypatch.setenv("REMAP_DATA", str(tmp_path / "env"))
    assert io.find_data("x.fits") == tmp_path / "env" / "x.fits"
    assert io.find_data("x.fits", root=tmp_path / "root") == tmp_path / "root" / "x.fits"
    assert io.find_data(tmp_path / "env" / "x.fits", root=tmp_path / "root") == tmp_path / "env" / "x.fits"
    with pytest.raises(SpectrumError, match=r"y\.fits: not found; expected it at .*env/y\.fits; data_root"):
        io.find_data("y.fits")
    with pytest.raises(SpectrumError, match=r"expected it at .*root/y\.fits"):
        io.find_data("y.fits", root=tmp_path / "root")
    monkeypatch.delenv("REMAP_DATA")
    with pytest.raises(SpectrumError, match=r"x\.fits: .* set \$REMAP_DATA .* or data_root in the config"):
        io.find_data("x.fits")


def test_what_a_folder_has_besides_is_told(tmp_path, caplog):
    (tmp_path / "night1").mkdir()
    with pytest.raises(
        SpectrumError, match=r"none among 1 entries; 1 folders \(night1\) are not looked into"
    ):
        io.list_files(tmp_path, "*.fits")
    for name in ("a.fits", "readme.txt", "night1/b.fits"):
        (tmp_path / name).touch()
    caplog.set_level("INFO")
    assert [f.name for f in io.list_files(tmp_path, "*.fits")] == ["a.fits"]
    told = {record.levelname: record.getMessage() for record in caplog.records}
    assert "1 folders (night1) are not looked into" in told["WARNING"]
    assert "1 of 2 files are not like *.fits, such as readme.txt" in told["INFO"]
    caplog.clear()
    assert [f.name for f in io.list_files(tmp_path, ("*.fits", "**/*.fits"))] == ["a.fits", "b.fits"]
    assert "WARNING" not in {record.levelname for record in caplog.records}


def test_list_files(tmp_path):
    for name in ("b.fits", "a.fits.gz", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.fits").mkdir()
    found = io.list_files(tmp_path, ("*.fits", "*.fits.gz", "b.*"))
    assert [f.name for f in found] == ["a.fits.gz", "b.fits"]
    assert io.list_files(str(tmp_path / "c.txt"), "*.fits") == [tmp_path / "c.txt"]
    with pytest.raises(SpectrumError, match=r"expected files like \*.dat, found none among 4 entries"):
        io.list_files(tmp_path, "*.dat")
    with pytest.raises(SpectrumError, match="absent: expected a file or a folder, found nothing"):
        io.list_files(tmp_path / "absent", "*.fits")


# Declarations


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "missing 'format'"),
        ({"format": "guess"}, "format must be one of .* found 'guess'"),
        ({"format": "image"}, "missing 'medium', missing 'axis', missing 'wave_unit'"),
        (IMAGE | {"medium": None}, "missing 'medium'"),
        (
            IMAGE | {"colour": 1, "weight": 2},
            "unknown 'colour', unknown 'weight'; its keys are format, medium",
        ),
        (IMAGE | {"medium": "glass"}, r"medium must be one of \('air', 'vacuum'\), found 'glass'"),
        (IMAGE | {"axis": "log"}, "axis must be one of .* found 'log'"),
        (IMAGE | {"wave_unit": "K"}, "wave_unit must be a unit of length, found 'K'"),
        (IMAGE | {"wave_unit": "ångströms"}, "wave_unit must be a unit of length"),
        (
            {k: v for k, v in HIRES.items() if k != "wave_path"},
            "source of phoenix_hires: missing 'wave_path'",
        ),
        (TABLE | {"ivar_column": "I", "error_column": "E"}, "ivar_column or error_column, not both"),
        (TABLE | {"mask_column": "M"}, "mask_good must be one of .* found None"),
        (TABLE | {"mask_bits": 1}, "need a mask_column"),
        (BUNDLE | {"absolute": "yes"}, "absolute must be one of"),
        (BUNDLE | {"wave_unit": "nm"}, "wave_unit must be one of"),
    ],
)
def test_a_wrong_declaration_is_a_mistake_of_the_configuration(tmp_path, source, message):
    path = image(tmp_path / "x.fits")
    with pytest.raises(ValueError, match=message) as caught:
        io.read(path, source=source)
    assert not isinstance(caught.value, SpectrumError)  # or a batch would flag every file and go on


def test_config_dicts_and_keys_set_to_none(tmp_path):
    source = ml_collections.ConfigDict(IMAGE | {"wave_path": None})
    np.testing.assert_array_equal(io.read(image(tmp_path / "x.fits"), source=source).wave, WAVE)


# Images


@pytest.mark.parametrize("shape", [(N,), (1, N), (1, 1, N)])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz"])
def test_image_linear(tmp_path, shape, suffix):
    path = image(tmp_path / f"star{suffix}", FLUX.reshape(shape))
    read = io.read(str(path), source=IMAGE)
    np.testing.assert_array_equal(read.wave, WAVE)
    np.testing.assert_array_equal(read.flux, [FLUX])
    assert read.flux.dtype == np.dtype(np.float32)  # in native byte order
    assert read.flux.dtype.isnative
    assert (read.medium, read.names, dict(read.labels), read.ivar) == ("air", (path.name,), {}, None)


@pytest.mark.parametrize(("axis", "log"), [("ln", np.log), ("log10", np.log10)])
def test_image_logarithmic(tmp_path, axis, log):
    # The header lies about all of it, as PHOENIX MedRes does; the declaration wins.
    path = image(tmp_path / "x.fits", crval=log(500.0), cdelt=1e-5, CTYPE1="AWAV", CUNIT1="m")
    read = io.read(path, source=IMAGE | {"axis": axis, "wave_unit": "nm", "medium": "vacuum"})
    step = np.exp(1e-5) if axis == "ln" else 10**1e-5
    np.testing.assert_allclose(read.wave, 5000 * step ** np.arange(N), rtol=1e-12)
    assert read.medium == "vacuum"


def test_image_reference_pixel_steps_and_other_hdus(tmp_path):
    path = image(tmp_path / "a.fits", CRPIX1=11.0)
    np.testing.assert_allclose(io.read(path, source=IMAGE).wave, WAVE - 5, rtol=1e-15)
    for cards in ({"cdelt": 0.0, "CD1_1": 0.5}, {"CD1_1": 0.0}, {"cdelt": 1.0, "PC1_1": 0.5}, {"CD1_1": 0.5}):
        path = image(tmp_path / "b.fits", **cards)
        np.testing.assert_array_equal(io.read(path, source=IMAGE).wave, WAVE)
    header = fits.Header({"CRVAL1": 5000.0, "CDELT1": 0.5})  # without CRPIX1
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(FLUX, header, name="SCI")]).writeto(tmp_path / "c.fits")
    for hdu in (1, "SCI"):
        np.testing.assert_array_equal(io.read(tmp_path / "c.fits", source=IMAGE | {"hdu": hdu}).wave, WAVE)


def test_image_integers_nan_and_labels(tmp_path):
    read = io.read(image(tmp_path / "a.fits", np.arange(N, dtype=np.int16)), source=IMAGE)
    np.testing.assert_array_equal(read.flux, [np.arange(N)])
    assert read.flux.dtype == np.float64
    flux = FLUX.copy()
    flux[[3, 4]] = np.nan, np.inf
    path = image(tmp_path / "b.fits", flux, PHXTEFF=5800.0, PHXLOGG=4.5, PHXM_H=-0.5)
    read = io.read(path, source=IMAGE)
    assert np.flatnonzero(~read.valid).tolist() == [3, 4]
    assert {k: v.tolist() for k, v in read.labels.items()} == {"teff": [5800], "logg": [4.5], "feh": [-0.5]}
    with pytest.raises(
        SpectrumError, match=r"c.fits: expected a number for PHXTEFF in the header, found 'hot'"
    ):
        io.read(image(tmp_path / "c.fits", PHXTEFF="hot"), source=IMAGE)


def test_a_broken_card_is_told_only_if_it_is_needed(tmp_path):
    """Astropy parses a card when it is asked for, so that its complaint comes after the file has been read."""
    path = image(tmp_path / "a.fits", PHXTEFF=5800.0, AIRMASS=1.5)
    whole = path.read_bytes()
    for key, value in (("CRVAL1", b"5000.0"), ("PHXTEFF", b"5800.0")):
        path.write_bytes(whole.replace(value, b"5(00.0"))
        with pytest.raises(SpectrumError, match=rf"a\.fits: expected a value of {key} .* broken card"):
            io.read(path, source=IMAGE)
    path.write_bytes(whole.replace(b" 1.5 ", b" 1(5 "))
    assert len(io.read(path, source=IMAGE)) == 1


@pytest.mark.parametrize(
    ("cards", "source", "message"),
    [
        ({}, {"axis": "ln"}, "axis='ln'.*expected wavelengths within 500 to 1e.07 Å, found inf to inf"),
        ({"crval": 8.4, "cdelt": 1e-5}, {}, "axis='linear'.*found 8.4 to 8.4"),
        ({"crval": 3.7, "cdelt": 1e-5}, {"axis": "ln"}, "found 40.4"),
        ({"crval": 8.5, "cdelt": 1e-5}, {"axis": "log10"}, r"found 3.16\d*e\+08"),
        ({"crval": 0.5, "cdelt": 1e-4}, {}, "found 0.5"),
        ({"cdelt": 0.9, "CD1_1": 1.0}, {}, "CD1_1 = 1 and CDELT1 = 0.9; step_keyword says which"),
        ({"crval": 3.7, "cdelt": 1e-4, "COEFF0": 3.5, "COEFF1": 1e-4}, {"axis": "log10"}, "COEFF0 = 3.5"),
        ({"crval": "inf"}, {}, "CRVAL1"),
        ({"cdelt": 0.0}, {}, "increase strictly, found 5000 then 5000"),
        ({"crval": "blue"}, {}, "expected a number for CRVAL1 in the header, found 'blue'"),
    ],
)
def test_image_that_contradicts_its_declaration(tmp_path, cards, source, message):
    path = image(tmp_path / "x.fits", **cards)
    with pytest.raises(SpectrumError, match=message) as caught:
        io.read(path, source=IMAGE | source)
    assert str(path) in str(caught.value)


# Broken files: every format that is FITS meets the same damage


def broken_fits(kind, path, whole):
    """Turns the content of a healthy file into one kind of damage; returns the path to read."""
    if kind == "missing":
        return path.with_name("missing.fits")
    if kind == "folder":
        path.mkdir()
        return path
    damage = {
        "empty": b"",
        "text": b"wave flux\n5000 1\n" * 500,
        "header only": whole[:1000],
        "header cut": whole[:2880],
        "data cut": whole[: len(whole) - 2880],
        "data cut inside": whole[: len(whole) - 2880 - 77],
        "in the padding": whole[:-100] + b"1" * 100 + whole[-2880:],
        "gzip cut": gzip.compress(whole)[:-300],
        "gzip of cut": gzip.compress(whole[: len(whole) - 2880 - 77]),
        "gzip garbled": b"\x1f\x8b" + bytes(range(200)) * 5,
    }[kind]
    path = path.with_name("broken.fits.gz") if kind.startswith("gzip") else path
    path.write_bytes(damage)
    return path


DAMAGE = {
    "missing": "not found; expected it at",
    "folder": "found a folder",
    "empty": "found an empty file",
    "text": "found an unreadable file",
    "header only": "found a truncated file",
    "header cut": "found (an unreadable|a truncated) file|found no data|expected HDU 1, found 0 'PRIMARY'",
    "data cut": "found a truncated file",
    "data cut inside": "found a truncated file",
    "in the padding": "bytes that belong to nothing",
    "gzip of cut": "found a truncated file",
    "gzip cut": "found (an unreadable|a truncated) file",
    "gzip garbled": "found an unreadable file",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("reader", ["image", "hires", "wave", "table", "labels"])
def test_broken_fits(tmp_path, kind, reader):
    healthy = tmp_path / "healthy.fits"
    large = np.linspace(1, 2, 2000)  # several blocks of 2880 bytes
    if reader in ("image", "hires"):
        image(healthy, large)
    elif reader == "wave":
        image(healthy, 5000 + 0.5 * np.arange(2000))
    elif reader == "table":
        Table({"WAVE": 5000 + large, "FLUX": large}).write(healthy)
    else:
        names = [f"{i}.fits" for i in range(2000)]
        Table({"file": names, "star": names, "teff": large, "teff_err": large, "logg": large}).write(healthy)
    whole = healthy.read_bytes()
    path = broken_fits(kind, tmp_path / "broken.fits", whole)
    flux = image(tmp_path / "flux.fits", large)
    attempt = {
        "image": lambda: io.read(path, source=IMAGE),
        "hires": lambda: io.read(path, source=HIRES),
        "wave": lambda: io.read(flux, source=HIRES | {"wave_path": str(path)}),
        "table": lambda: io.read(path, source=TABLE),
        "labels": lambda: io.read_labels(path, source=LABELS | {"format": "fits"}),
    }[reader]
    with pytest.raises(SpectrumError, match=DAMAGE[kind]) as caught:
        attempt()
    assert path.name in str(caught.value)


def test_warnings_of_astropy_do_not_leak(tmp_path):
    path = image(tmp_path / "x.fits")
    whole = path.read_bytes()
    odd = whole.replace(b"CRPIX1  =                  1.0", b"CRPIX1  = 1.0               ".ljust(30))
    path.write_bytes(odd.replace(b"EXTEND  ", b"ext end "))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(io.read(path, source=IMAGE).wave, WAVE)


@pytest.mark.parametrize(
    ("hdus", "source", "message"),
    [
        ([fits.PrimaryHDU()], IMAGE, "expected a 1-D image in HDU 0, found no data"),
        ([fits.PrimaryHDU(np.ones((2, 50)))], IMAGE, r"expected a 1-D image .* found shape \[2, 50\]"),
        ([fits.PrimaryHDU(np.ones((50, 1)))], IMAGE, r"found shape \[50, 1\]"),
        ([fits.PrimaryHDU(FLUX)], IMAGE | {"hdu": 1}, "expected HDU 1, found 0 'PRIMARY'"),
        ([fits.PrimaryHDU(FLUX)], IMAGE | {"hdu": "SCI"}, "expected HDU 'SCI', found 0 'PRIMARY'"),
        ([fits.PrimaryHDU(FLUX)], IMAGE, "expected a number for CRVAL1 in the header, found None"),
        (
            [fits.PrimaryHDU(), fits.BinTableHDU(Table({"a": [1]}))],
            IMAGE | {"hdu": 1},
            "expected a 1-D image in HDU 1, found a table",
        ),
        ([fits.PrimaryHDU(FLUX)], TABLE | {"hdu": 0}, "expected a table in HDU 0, found an image"),
        ([fits.PrimaryHDU(FLUX)], TABLE, "expected HDU 1, found 0 'PRIMARY'"),
    ],
)
def test_wrong_kind_of_fits(tmp_path, hdus, source, message):
    fits.HDUList(hdus).writeto(tmp_path / "x.fits")
    with pytest.raises(SpectrumError, match=f"x.fits: .*{message}"):
        io.read(tmp_path / "x.fits", source=source)


def test_a_last_block_without_its_padding_is_read(tmp_path):
    path = image(tmp_path / "x.FITS")
    path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(io.read(path, source=IMAGE).flux, [FLUX])


# PHOENIX HiRes


def test_phoenix_hires_and_its_wave_file(tmp_path, monkeypatch):
    flux = image(tmp_path / "lte.fits", PHXTEFF=5000.0, PHXLOGG=4.0, PHXM_H=0.0, PHXALPHA=0.2)
    data = tmp_path / "data"
    data.mkdir()
    for place, source, root in (
        (tmp_path / "WAVE.fits", HIRES, None),
        (tmp_path / "elsewhere.fits", HIRES | {"wave_path": str(tmp_path / "elsewhere.fits")}, None),
        (data / "under_root.fits", HIRES | {"wave_path": "under_root.fits"}, data),
    ):
        fits.writeto(place, WAVE)
        read = io.read(flux, source=source, data_root=root)
        np.testing.assert_array_equal(read.wave, WAVE)
    assert {k: v.tolist() for k, v in read.labels.items()} == {
        "teff": [5e3],
        "logg": [4],
        "feh": [0],
        "alpha": [0.2],
    }

    reads = []
    inner = fits_files.read_image
    monkeypatch.setattr(
        fits_files, "read_image", lambda path, hdu: reads.append(path.name) or inner(path, hdu)
    )
    io.read(flux, source=HIRES)
    io.read(flux, source=HIRES)
    assert reads.count("WAVE.fits") <= 1
    fits.writeto(tmp_path / "WAVE.fits", np.append(WAVE, 6000.0), overwrite=True)
    with pytest.raises(SpectrumError, match=r"lte.fits: expected 301 pixels as in .*WAVE.fits, found 300"):
        io.read(flux, source=HIRES)
    fits.writeto(tmp_path / "WAVE.fits", WAVE[::-1].copy(), overwrite=True)
    with pytest.raises(SpectrumError, match=r"WAVE.fits: expected wavelengths that increase strictly"):
        io.read(flux, source=HIRES)


# Tables


def test_table_columns_errors_and_masks(tmp_path):
    error = np.full(N, 0.1)
    error[[1, 2, 3]] = 0, -1, np.nan
    mask = np.zeros(N, np.int32)
    mask[[5, 6]] = 1, 2
    path = table(
        tmp_path / "x.fits",
        ERR=error,
        IVAR=1 / np.where(error > 0, error, np.inf) ** 2,
        MASK=mask,
        OK=mask == 0,
    )
    read = io.read(path, source=TABLE)
    np.testing.assert_array_equal(read.wave, WAVE)
    assert read.valid.all()
    assert read.ivar is None
    for column in ({"error_column": "err"}, {"ivar_column": "IVAR"}):
        read = io.read(path, source=TABLE | column)
        assert np.flatnonzero(~read.valid).tolist() == [1, 2, 3]
        np.testing.assert_allclose(read.ivar[0, 4:], 100)
    for source, bad in (
        ({"mask_column": "MASK", "mask_good": "zero"}, [5, 6]),
        ({"mask_column": "MASK", "mask_good": "zero", "mask_bits": 2}, [6]),
        ({"mask_column": "OK", "mask_good": "nonzero"}, [5, 6]),
    ):
        assert np.flatnonzero(~io.read(path, source=TABLE | source).valid).tolist() == bad


def test_table_of_one_row_logarithms_nulls_and_tiny_fluxes(tmp_path):
    flux = np.ma.array(np.arange(1, N + 1), mask=np.arange(N) == 7)
    path = table(tmp_path / "a.fits.gz", WAVE=np.log10(WAVE), FLUX=MaskedColumn(flux), unit=None)
    read = io.read(path, source=TABLE | {"axis": "log10"})
    np.testing.assert_allclose(read.wave, WAVE, rtol=1e-14)
    assert np.flatnonzero(~read.valid).tolist() == [7]
    tiny = np.full((1, N), 1e-22, np.float32)
    path = table(tmp_path / "b.fits", WAVE=WAVE[None] / 10, FLUX=tiny, ERR=tiny, unit="nm")
    read = io.read(path, source=TABLE | {"wave_unit": "nm", "error_column": "ERR"})
    np.testing.assert_allclose(read.wave, WAVE, rtol=1e-14)
    assert read.valid.all()
    np.testing.assert_allclose(read.ivar, 1e44, rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "source", "message"),
    [
        ({"FLUX": None}, {}, "expected a column 'FLUX', found WAVE"),
        ({}, {"ivar_column": "IVAR"}, "expected a column 'IVAR', found WAVE, FLUX"),
        ({"FLUX": np.array(["a"] * N)}, {}, "expected a column 'FLUX' of N numbers, found text"),
        ({"FLUX": np.ones((N, 2))}, {}, r"of N numbers, found .* \[300, 2\]"),
        ({"WAVE": WAVE[[0, 2, 1, *range(3, N)]]}, {}, "increase strictly"),
        ({"unit": "nm"}, {}, "expected WAVE in Angstrom as declared, found 'nm'"),
        ({"WAVE": np.where(WAVE == 5010, np.nan, WAVE)}, {}, "expected a wavelength in every pixel"),
        ({"OK": FLUX}, {"mask_column": "OK", "mask_good": "zero", "mask_bits": 1}, "expected integers in OK"),
        ({"WAVE": WAVE[None], "FLUX": FLUX[None, :9]}, {}, "columns of one length, found WAVE 300, FLUX 9"),
    ],
)
def test_table_that_does_not_fit_its_declaration(tmp_path, columns, source, message):
    path = table(tmp_path / "x.fits", **columns)
    with pytest.raises(SpectrumError, match=f"x.fits: .*{message}"):
        io.read(path, source=TABLE | source)


def test_table_without_rows(tmp_path):
    with pytest.raises(SpectrumError, match="of N numbers"):
        io.read(table(tmp_path / "x.fits", WAVE=WAVE[:0], FLUX=FLUX[:0]), source=TABLE)


# Bundles


def bundle(path, **changes):
    arrays = {
        "wave_air": WAVE,
        "wave_vac": to_medium(WAVE, source="air", target="vacuum"),
        "flux": np.stack([FLUX, 2 * FLUX]),
        "cont_wave_air": np.array([4990.0, 5200.0]),
        "continuum": np.array([[1.0, 1.0], [0.0, 210.0]], np.float32),
        "labels": np.array([[5000, 4.5, 0.1, 1.0], [6000, 4.0, -0.5, 1.5]], np.float32),
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_bundle(tmp_path):
    path = bundle(tmp_path / "lib.npz")
    read = io.read(path, source=BUNDLE)
    np.testing.assert_array_equal(read.wave, WAVE)
    np.testing.assert_array_equal(read.flux, [FLUX, 2 * FLUX])
    assert read.names == ("lib.npz[0]", "lib.npz[1]")
    assert list(read.labels) == ["teff", "logg", "feh", "vmic"]
    np.testing.assert_allclose(read.labels["feh"], [0.1, -0.5], rtol=1e-6)
    read = io.read(path, source=BUNDLE | {"medium": "vacuum", "absolute": True})
    np.testing.assert_array_equal(read.wave, to_medium(WAVE, source="air", target="vacuum"))
    np.testing.assert_allclose(read.flux, [FLUX, 2 * FLUX * (WAVE - 4990)], rtol=1e-6)
    assert read.flux.dtype == np.float32


def test_bundle_round_trip(tmp_path):
    flux = np.stack([FLUX, 2 * FLUX])
    flux[1, 7] = np.nan
    made = make_spectra(
        WAVE,
        flux,
        medium="vacuum",
        ivar=np.full(flux.shape, 4.0),
        names=["a", "b"],
        labels={"teff": [5e3, 6e3]},
    )
    continuum = {"cont_wave_air": np.array([4900.0, 5300.0]), "continuum": np.array([[1, 1], [3, 3]])}
    io.write_bundle(tmp_path / "x.npz", made, **continuum)
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]
    for absolute, scale in ((False, 1), (True, 3)):
        source = BUNDLE | {"medium": "vacuum", "label_columns": ["teff"], "absolute": absolute}
        read = io.read(tmp_path / "x.npz", source=source)
        np.testing.assert_array_equal(read.wave, made.wave)
        np.testing.assert_array_equal(read.valid, made.valid)
        np.testing.assert_allclose(read.flux[1], flux[1] * scale, rtol=1e-6)
        np.testing.assert_allclose(read.ivar[1], 4 / scale**2)
        assert read.names == ("a", "b")
        assert read.labels["teff"].tolist() == [5e3, 6e3]
    air = io.read(tmp_path / "x.npz", source=BUNDLE | {"label_columns": ["teff"]})
    np.testing.assert_allclose(to_medium(air.wave, source="air", target="vacuum"), WAVE, rtol=1e-14)
    with pytest.raises(ValueError, match="go together"):
        io.write_bundle(tmp_path / "y.npz", made, continuum=np.ones((2, 2)))
    with pytest.raises(ValueError, match="continuum must have shape"):
        io.write_bundle(tmp_path / "y.npz", made, cont_wave_air=np.ones(3), continuum=np.ones((2, 2)))


@pytest.mark.parametrize(
    ("changes", "source", "message"),
    [
        ({"wave_vac": None}, {"medium": "vacuum"}, "expected an array 'wave_vac', found cont_wave_air, "),
        ({"continuum": None}, {"absolute": True}, "expected an array 'continuum'"),
        ({"labels": np.ones((3, 4))}, {}, r"expected labels of shape \[2, 4\], found \[3, 4\]"),
        ({}, {"label_columns": ["teff"]}, r"expected labels of shape \[2, 1\], found \[2, 4\]"),
        ({"wave_air": WAVE[:-1]}, {}, r"expected wave_air of shape \[300\]"),
        ({"wave_air": WAVE[::-1]}, {}, "increase strictly"),
        ({"flux": FLUX}, {}, r"expected flux of shape \[S, N\], found \[300\]"),
        (
            {"label_names": ["logg", "teff", "m_h", "vmic"]},
            {},
            r"expected the label columns \['teff', .* found \['logg'",
        ),
        ({"cont_wave_air": [5010.0, 5200.0]}, {"absolute": True}, "expected a continuum over 5000 to 5149.5"),
        ({"flux": np.array([[object()]])}, {}, "numbers or names in flux.npy, found object"),
    ],
)
def test_bundle_that_does_not_fit(tmp_path, changes, source, message):
    path = bundle(tmp_path / "x.npz", **changes)
    with pytest.raises(SpectrumError, match=f"x.npz: .*{message}"):
        io.read(path, source=BUNDLE | source)


def test_broken_bundles(tmp_path):
    whole = bundle(tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[1000] ^= 255
    for content in (b"", b"no archive", whole[:-500], whole[:100], bytes(flipped)):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(SpectrumError, match=r"x.npz: expected .*(an .npz bundle|an empty file|a whole)"):
            io.read(tmp_path / "x.npz", source=BUNDLE)
    np.save(tmp_path / "y.npy", WAVE)
    with pytest.raises(SpectrumError, match="found a single array"):
        io.read(tmp_path / "y.npy", source=BUNDLE)


# Labels


@pytest.mark.parametrize("format", ["ecsv", "csv", "fits"])
def test_labels(tmp_path, format):
    written = {"ecsv": "ascii.ecsv", "csv": "ascii.csv", "fits": "fits"}[format]
    teff = MaskedColumn([5000.0, 5500.0, 6000.0], mask=[False, True, False], unit="K")
    path = stars(
        tmp_path / "labels", written, teff=teff, teff_err=[50.0, 0.0, -9999.0], rv=[10.0, -9999.0, np.inf]
    )
    source = LABELS | {"format": format, "rv_column": "rv", "missing_values": [-9999]}
    for declared in (source, ml_collections.ConfigDict(source)):
        read = io.read_labels(path, source=declared)
        assert read.files == ("a.fits", "b.fits", "c.fits")
        assert read.star_ids == ("A", "B", "C")
        assert len(read) == 3
        assert set(read.values) == set(read.errors) == {"teff", "logg"}
        np.testing.assert_array_equal(read.values["teff"], [5000, np.nan, 6000])
        np.testing.assert_array_equal(read.values["logg"], [4.5, 4.4, 4.3])
        np.testing.assert_array_equal(read.errors["teff"], [50, np.nan, np.nan])
        np.testing.assert_array_equal(read.errors["logg"], [np.nan] * 3)
        np.testing.assert_array_equal(read.rv, [10, np.nan, np.nan])


def test_labels_empty_cells_and_number_ids(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("file,star,teff,teff_err,logg\na.fits,17,5000,,4.5\nb.fits,18,,,\n")
    read = io.read_labels(path, source=LABELS | {"format": "csv"})
    assert read.star_ids == ("17", "18")
    np.testing.assert_array_equal(read.values["teff"], [5000, np.nan])
    np.testing.assert_array_equal(read.values["logg"], [4.5, np.nan])
    assert np.isnan(read.errors["teff"]).all()
    assert read.rv is None


def test_labels_by_file_or_by_star_alone(tmp_path):
    path = stars(tmp_path / "x.ecsv")
    by_file = io.read_labels(path, source=LABELS | {"id_column": None})
    assert by_file.files == by_file.star_ids == ("a.fits", "b.fits", "c.fits")
    by_star = io.read_labels(path, source=LABELS | {"file_column": None})
    assert by_star.files == by_star.star_ids == ("A", "B", "C")


def test_labels_duplicates(tmp_path):
    path = stars(tmp_path / "x.ecsv", star=["A", "B", "A"])
    with pytest.raises(
        SpectrumError, match=r"x.ecsv: expected every 'star' once, found duplicates of A; set repeat_stars"
    ):
        io.read_labels(path, source=LABELS)
    assert io.read_labels(path, source=LABELS | {"repeat_stars": True}).star_ids == ("A", "B", "A")
    path = stars(tmp_path / "y.ecsv", file=["a.fits", "b.fits", "b.fits"])
    with pytest.raises(SpectrumError, match=r"expected every 'file' once, found duplicates of b.fits$"):
        io.read_labels(path, source=LABELS | {"repeat_stars": True})


@pytest.mark.parametrize("unit", ["dex", "dex(cm / s2)", ""])
def test_labels_accepts_the_ways_to_write_dex(tmp_path, unit):
    path = stars(tmp_path / "x.ecsv", logg=MaskedColumn([4.5, 4.4, 4.3], unit=unit or None))
    assert io.read_labels(path, source=LABELS).values["logg"].tolist() == [4.5, 4.4, 4.3]


@pytest.mark.parametrize(
    ("columns", "source", "message"),
    [
        (
            {},
            {"columns": {"feh": "[Fe/H]"}, "error_columns": {}},
            r"expected a column '\[Fe/H\]', found file, star, teff",
        ),
        ({}, {"file_column": "name"}, "expected a column 'name', found file, star"),
        ({"teff": ["hot", "cool", "warm"]}, {}, "expected numbers in 'teff', found .*hot"),
        ({"teff": np.ones((3, 2))}, {}, "expected one value per row in 'teff'"),
        ({"teff": [5.0, 5.5, 6.0] * units.kK}, {}, "expected 'teff' in K, found the unit 'kK'"),
        ({"teff_err": [5.0, 5.5, 6.0] * units.eV}, {}, "expected 'teff_err' in K, found the unit 'eV'"),
        ({"logg": MaskedColumn([2.5] * 3, unit="dex(m / s2)")}, {}, "expected 'logg' in dex"),
        ({"rv": [1.0, 2.0, 3.0] * units.m / units.s}, {"rv_column": "rv"}, "expected 'rv' in km / s, found"),
        ({"file": ["a.fits", " ", "c.fits"]}, {}, "a name in every row of 'file', found none in row 1"),
        ({k: [] for k in ("file", "star", "teff", "teff_err", "logg")}, {}, "with rows, found none"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, columns, source, message):
    path = stars(tmp_path / "x.ecsv", **columns)
    with pytest.raises(SpectrumError, match=f"x.ecsv: .*{message}"):
        io.read_labels(path, source=LABELS | source)


def test_labels_units_of_other_labels_are_declared(tmp_path):
    path = stars(tmp_path / "x.ecsv", vsini=[1.0, 2.0, 3.0] * units.m / units.s)
    source = LABELS | {"columns": {"vsini": "vsini"}, "error_columns": {}}
    with pytest.raises(SpectrumError, match="expected 'vsini' in km / s"):
        io.read_labels(path, source=source)
    assert io.read_labels(path, source=source | {"units": {"vsini": "m / s"}}).values["vsini"].tolist() == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"format": "xls"}, "format must be one of"),
        ({"columns": None}, "missing 'columns'"),
        ({"columns": {}}, "names no label"),
        ({"error_columns": {"feh": "e"}}, r"error_columns has \['feh'\]"),
        ({"file_column": None, "id_column": None}, "missing 'file_column' or 'id_column'"),
        ({"colum": "x"}, "unknown 'colum'"),
    ],
)
def test_labels_declaration(tmp_path, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        io.read_labels(stars(tmp_path / "x.ecsv"), source=LABELS | source)
    assert not isinstance(caught.value, SpectrumError)


@pytest.mark.parametrize("format", ["ecsv", "csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01\x02" * 50, b"# %ECSV 1.0\n# ---\n# datatype: [\na b\n1 2\n"]
)
def test_broken_text_tables(tmp_path, format, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SpectrumError, match="x: expected a"):
        io.read_labels(tmp_path / "x", source=LABELS | {"format": format})


# The real files


def test_miles():
    labels = io.read_labels(
        shared("miles/labels.ecsv"),
        source={
            "format": "ecsv",
            "columns": {"teff": "teff", "logg": "logg", "feh": "feh"},
            "error_columns": {"teff": "teff_err", "logg": "logg_err", "feh": "feh_err"},
            "file_column": "file",
            "id_column": "star_id",
        },
    )
    paths = io.list_files(shared("miles/spectra"), "*.fits")
    assert len(labels) == len(paths) == 565
    assert sorted(labels.files) == [p.name for p in paths]
    assert np.count_nonzero(labels.values["logg"] >= 3.5) == 259
    assert set(labels.errors["teff"]) == {60.0}
    first = io.read(paths[0], source=IMAGE)
    assert (first.wave[0], first.flux.shape) == (3540.5, (1, 4300))
    # The strongest line of a G star between 6540 and 6590 Å is H-alpha, at 6562.8 Å in air and at rest.
    near = (first.wave > 6540) & (first.wave < 6590)
    assert abs(first.wave[near][np.argmin(first.flux[0, near])] - 6562.8) < 0.9


def test_phoenix():
    medres = IMAGE | {"medium": "vacuum", "axis": "ln"}
    paths = io.list_files(shared("phoenix/medres"), "*.fits")
    teff = [io.read(p, source=medres).labels["teff"][0] for p in paths]
    assert teff == [5000, 5300, 5600, 5800, 6200]
    solar = io.read(paths[3], source=medres)
    near = (solar.wave > 6540) & (solar.wave < 6590)
    assert abs(solar.wave[near][np.argmin(solar.flux[0, near])] - 6564.61) < 0.1  # vacuum
    with pytest.raises(SpectrumError, match="expected wavelengths within"):
        io.read(paths[0], source=IMAGE)
    source = HIRES | {"wave_path": "WAVE_PHOENIX-ACES-AGSS-COND-2011.fits"}
    hires = io.read(shared("phoenix/hires_cut") / paths[3].name, source=source)
    assert (hires.wave[0], hires.wave[-1], hires.flux.shape) == (5000.0, 5800.0, (1, 80001))
    assert {k: v.tolist() for k, v in hires.labels.items()} == {
        k: v.tolist() for k, v in solar.labels.items()
    }


def test_lte_grid():
    path = shared("lte_grid.npz")
    read = io.read(path, source=BUNDLE)
    assert read.flux.shape == (594, 22501)
    assert (read.labels["teff"].min(), read.labels["feh"].max()) == (4000, 0.5)
    absolute = io.read(path, source=BUNDLE | {"absolute": True, "medium": "vacuum"})
    with np.load(path) as raw:
        expected = raw["flux"][300] * np.interp(raw["wave_air"], raw["cont_wave_air"], raw["continuum"][300])
        np.testing.assert_allclose(absolute.flux[300], expected, rtol=1e-6)
        np.testing.assert_array_equal(absolute.wave, raw["wave_vac"])
