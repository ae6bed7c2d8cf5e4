"""Columns of binary tables against astropy, and headers that contradict themselves."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from remap.io.bintable import open_table
from remap.io.fits_files import open_fits
from remap.spectra import SpectrumError

ROWS = 4
RANDOM = np.random.default_rng(0)
KINDS = {
    "L": np.array([True, False, True, True]),
    "B": np.arange(ROWS, dtype=np.uint8),
    "I": np.arange(-2, ROWS - 2, dtype=np.int16),
    "J": np.arange(-2, ROWS - 2, dtype=np.int32) * 10**8,
    "K": np.array([-(2**62), 0, 39633297352951412, 2**63 - 1]),
    "E": RANDOM.normal(size=ROWS).astype(np.float32),
    "D": RANDOM.normal(size=ROWS),
    "5A": np.array(["a", "", " b c", "abcde"]),
    "3E": RANDOM.normal(size=(ROWS, 3)).astype(np.float32),
}


def write(path, columns, **cards):
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.writeto(path, overwrite=True)
    for key, value in cards.items():
        fits.setval(path, key, value=value, ext=1)
    return path


def table(path):
    with open_fits(Path(path)) as hdus:
        return open_table(hdus[1], Path(path))


def test_every_kind_as_astropy_reads_it(tmp_path):
    path = write(tmp_path / "a.fits", [fits.Column(f"C{k}", k, array=v) for k, v in KINDS.items()])
    read = table(path)
    data = fits.getdata(path, 1)
    for kind, values in KINDS.items():
        cells = read.cells(f"c{kind}".lower())
        assert not np.ma.getmaskarray(cells).any()
        np.testing.assert_array_equal(cells, values if kind != "5A" else [v.rstrip() for v in data["C5A"]])
        assert cells.dtype.isnative
        for row in range(ROWS):
            np.testing.assert_array_equal(read.cells(f"C{kind}", row), cells[row])


@pytest.mark.parametrize("kind", ["i1", "u2", "u4", "u8"])
def test_integers_of_the_other_sign(tmp_path, kind):
    info = np.iinfo(kind)
    values = np.array([info.min, info.min + 1, info.max // 2, info.max], dtype=kind)
    if kind == "i1":  # which astropy writes as logicals
        column = fits.Column("A", "B", array=values.view("u1") ^ 128)
        path = write(tmp_path / "a.fits", [column], TZERO1=-128)
    else:
        path = tmp_path / "a.fits"
        Table({"A": values}).write(path)
    cells = table(path).cells("A")
    np.testing.assert_array_equal(cells, values)
    assert cells.dtype == np.dtype(kind)


def test_scaled_numbers_and_nulls(tmp_path):
    raw = np.arange(ROWS, dtype=np.int16)
    columns = [fits.Column("A", "I", null=2, array=raw), fits.Column("B", "E", array=raw.astype(np.float32))]
    read = table(write(tmp_path / "a.fits", columns, TSCAL1=0.5, TZERO1=-3.0, TSCAL2=2.0))
    np.testing.assert_array_equal(read.cells("A").filled(9), [-3, -2.5, 9, -1.5])
    np.testing.assert_array_equal(read.cells("B"), 2.0 * raw)
    assert read.cells("A", 2).mask.all()


def test_arrays_of_many_axes_and_of_lengths_of_their_own(tmp_path):
    cube = np.arange(ROWS * 6).reshape(ROWS, 3, 2).astype(np.int32)
    lists = np.array([np.arange(n, dtype=np.float64) for n in (2, 0, 3, 1)], dtype=object)
    columns = [fits.Column("C", "6J", dim="(2,3)", array=cube), fits.Column("V", "PD()", array=lists)]
    columns += [fits.Column("Q", "QD()", array=lists), fits.Column("X", "3X", array=np.ones((ROWS, 3), bool))]
    read = table(write(tmp_path / "a.fits", columns))
    np.testing.assert_array_equal(read.cells("C"), cube)
    for row, values in enumerate(lists):
        np.testing.assert_array_equal(read.cells("V", row), values)
        np.testing.assert_array_equal(read.cells("Q", row), values)
    with pytest.raises(SpectrumError, match=r"a\.fits: .*found 4 cells of different lengths; row says"):
        read.cells("V")
    with pytest.raises(SpectrumError, match="found bits"):
        read.cells("X")
    with pytest.raises(SpectrumError, match="expected row 4 of the column 'C', found 4 rows"):
        read.cells("C", 4)
    with pytest.raises(SpectrumError, match="expected a column 'c2', found C, V, Q, X"):
        read.cells("c2")


@pytest.mark.parametrize("cell", [(-1, 0), (3, 10**6), (10**6, 0), (1, -8)])
def test_cells_that_lie_outside_of_the_file(tmp_path, cell):
    path = write(
        tmp_path / "a.fits", [fits.Column("V", "PD()", array=np.array([np.arange(3.0), None], object)[:1])]
    )
    content = bytearray(path.read_bytes())
    content[-2880 : -2880 + 8] = np.array(cell, ">i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(SpectrumError, match="expected a cell of the column 'V' within the file"):
        table(path).cells("V")


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"TFORM1": "2D"}, "expected rows of 16 bytes .* as NAXIS1 says, found columns of 24"),
        ({"TFORM1": "Y"}, "expected the format of a column in TFORM1, found 'Y'"),
        ({"TFORM1": 3}, "expected the format of a column in TFORM1"),
        ({"TSCAL1": "x"}, "expected a number for TSCAL1, found 'x'"),
        ({"TFIELDS": 3}, "expected the format of a column in TFORM3"),
        ({"TFIELDS": 1}, "expected rows of 16 bytes"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, cards, message):
    columns = [fits.Column(name, "D", array=np.arange(ROWS)) for name in "AB"]
    path = write(tmp_path / "a.fits", columns)
    content = path.read_bytes()
    for key, value in cards.items():
        card = str(fits.Card(key, value)).encode()
        at = content.find(key.ljust(8).encode())
        content = (
            content[:at] + card + content[at + 80 :]
            if at >= 0
            else content.replace(b"END".ljust(80), card + b"END".ljust(80), 1)
        )
    if "TSCAL1" in cards:  # the table's own header
        fits.setval(path, "TSCAL1", value="x", ext=1)
        content = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(SpectrumError, match=rf"a\.fits: {message}"):
        table(path)


def test_long_names_and_the_first_of_two(tmp_path):
    columns = [fits.Column("A", "D", array=np.arange(ROWS)), fits.Column("B", "D", array=-np.arange(ROWS))]
    long = "a name that goes on and on, over more than the one card of eighty characters that a value has"
    path = write(tmp_path / "a.fits", columns, TTYPE1=long)
    np.testing.assert_array_equal(table(path).cells(long), np.arange(ROWS))
    path = write(tmp_path / "b.fits", columns, TTYPE2="a")
    np.testing.assert_array_equal(table(path).cells("A"), np.arange(ROWS))


def test_tables_of_text(tmp_path):
    columns = [
        fits.Column("A", "F10.3", array=np.arange(ROWS) / 4),
        fits.Column("B", "I5", array=np.arange(ROWS)),
    ]
    fits.TableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    read = table(tmp_path / "a.fits")
    np.testing.assert_array_equal(read.cells("A"), np.arange(ROWS) / 4)
    np.testing.assert_array_equal(read.cells("B"), np.arange(ROWS))


def test_images_are_no_tables(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(3), name="I")]).writeto(tmp_path / "a.fits")
    with pytest.raises(SpectrumError, match=r"a\.fits: expected a table in HDU 'I', found an image"):
        table(tmp_path / "a.fits")
