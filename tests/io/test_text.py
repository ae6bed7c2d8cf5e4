"""Spectra as text."""

import codecs
import gzip

import numpy as np
import pytest

from remap import io
from remap.config import ConfigError
from remap.spectra import SpectrumError

SOURCE = {"format": "text", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
ROWS = [(5000.0, 1.0), (5000.5, 0.5), (5001.0, -2e-3)]


def read(tmp_path, text, **source):
    (tmp_path / "x.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return io.read(tmp_path / "x.txt", source=SOURCE | source)


@pytest.mark.parametrize(
    "text",
    [
        "5000 1\n5000.5 .5\n5001. -2e-3\n",
        "  5000\t1 \r\n5000.5\t.5\r\n\r\n5001\t-2E-3\r\n",
        "5000,1\n5000.5,0.5\n5001,-0.002\n",
        "5000, 1\n5000.5, 0.5\n5001, -0.002\n",
        "5000,1,\n5000.5,0.5,\n5001,-0.002,\n",
        "5000;1\n5000.5;0.5\n5001;-0.002\n",
        "5000,0;1,0\n5000,5;0,5\n5001,0;-0,002\n",
        "5000,0 1,0\n5000,5 0,5\n5001,0 -0,002\n",
        "# a star\nwave flux\n5000 1\n5000.5 0.5\n# half\n5001 -0.002\n",
        "wave,flux\n5000,1\n5000.5,0.5\n5001,-0.002\n",
        "a line of words\nNumber of pixels: 3\n5000 1\n5000.5 0.5\n5001 -0.002\n",
        "5000 1.0D0\n5000.5 5.0d-1\n5001 -2.0D-3\n",
        "5001 -0.002\n5000.5 0.5\n5000 1\n",
    ],
)
@pytest.mark.parametrize(
    "encode", [str.encode, lambda t: codecs.BOM_UTF8 + t.encode(), lambda t: t.encode("utf-16")]
)
def test_ways_to_write_columns(tmp_path, text, encode):
    found = read(tmp_path, encode(text))
    np.testing.assert_array_equal(np.c_[found.wave, found.flux[0]], ROWS)
    assert found.names == ("x.txt",)


def test_missing_values_and_lines_without_a_flux(tmp_path):
    found = read(tmp_path, "5000 nan\n5001 INDEF\n5002\n5003 4\n")
    assert found.valid.tolist() == [[False, False, False, True]]
    found = read(tmp_path, "5000,1\n5001,\n5002,--\n5003,4\n")
    assert found.valid.tolist() == [[True, False, False, True]]


def test_a_third_column_is_what_is_declared(tmp_path):
    text = "#lambda flux sigma mask\n5000 1 0.5 0\n5001 2 0 0\n5002 3 0.5 4\n"
    assert read(tmp_path, text).ivar is None
    for column in (2, "SIGMA"):
        found = read(tmp_path, text, error_column=column, mask_column="mask", mask_good="zero")
        assert found.valid.tolist() == [[True, False, False]]
        assert found.ivar[0, 0] == 4
    with pytest.raises(SpectrumError, match="expected a column 'err', found lambda, flux, sigma, mask"):
        read(tmp_path, text, error_column="err")
    with pytest.raises(SpectrumError, match="expected a column 7, found 4 columns"):
        read(tmp_path, text, error_column=7)


def test_a_last_line_without_an_end_may_have_been_cut(tmp_path):
    assert read(tmp_path, "5000 1\n5001 2\n5002 31").flux.tolist() == [[1, 2]]


def test_gzip(tmp_path):
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"5000 1\n5001 2\n"))
    assert io.read(tmp_path / "x.txt.gz", source=SOURCE).flux.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("no numbers\nat all\n", "two or more numbers, found none"),
        ("5000\n5001\n", "two or more numbers, found none"),
        ("5000 1\n5001 2 3\n", "expected 2 columns .* found 3 in line 2"),
        ("5000 1 2\n5001\n", "expected 3 columns .* found 1 in line 2"),
        ("5000 1\nx 2\n", "expected a number in line 2, found 'x'"),
        ("5000 1\n5001 2\n5000.5 3\n", "increase strictly"),
        (b"5000 1\n\0\0\0", "found a binary one"),
        ('id,xp,flux\n12,BP,"(1.0, 2.0)"\n', "two or more numbers, found none"),
    ],
)
def test_what_is_no_spectrum(tmp_path, text, message):
    with pytest.raises(SpectrumError, match=message):
        read(tmp_path, text)


def test_a_wrong_declaration(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        read(tmp_path, "1 2\n", ivar_column=2, error_column=2)
    with pytest.raises(ConfigError, match="mask_good"):
        read(tmp_path, "1 2\n", mask_column=2)


def test_the_unit_and_axis_are_declared(tmp_path):
    np.testing.assert_allclose(read(tmp_path, "500 1\n501 2\n", wave_unit="nm").wave, [5000, 5010])
    np.testing.assert_allclose(
        read(tmp_path, "3.7 1\n3.8 2\n", axis="log10").wave, 10 ** np.array([3.7, 3.8])
    )
