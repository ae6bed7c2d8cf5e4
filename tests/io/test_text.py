"""Spectra as text."""

import codecs
import gzip
import tracemalloc

import numpy as np
import pytest

from remap import io
from remap.config import ConfigError
from remap.io import text
from remap.spectra import SpectrumError

SOURCE = {"format": "text", "medium": "air", "axis": "linear", "wave_unit": "Angstrom"}
ROWS = [(5000.0, 1.0), (5000.5, 0.5), (5001.0, -2e-3)]


def read(tmp_path, content, **source):
    (tmp_path / "x.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
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
        '"5000","1"\n"5000.5","0.5"\n"5001","-0.002"\n',
        "5000 1.0+000\n5000.5 50.0-002\n5001 -2.-003\n",
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
    found = read(tmp_path, "wave\tflux\n5000\t1\n5001\t\n5002\tNA\n5003\t4\n")
    assert found.valid.tolist() == [[True, False, False, True]]
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


def test_only_what_has_no_end_may_have_been_cut(tmp_path):
    assert read(tmp_path, "5000 1\n5001 2\n5002 3\n  ").wave.tolist() == [5000.0, 5001.0, 5002.0]
    assert read(tmp_path, "5000 1\n5001 2\n5002 3\n# the end").wave.tolist() == [5000.0, 5001.0, 5002.0]


@pytest.mark.parametrize("block", [1, 7, 50, 10**6])
def test_a_text_is_the_same_in_any_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text, "BLOCK", block)
    rows = [f"{5000 + i},{5 * (i % 2)};{'' if i % 5 == 3 else i};0,1" for i in range(40)]
    found = read(tmp_path, "\r\n".join(["# a star", "wave;flux;error", *rows[:20], "# half", *rows[20:], ""]))
    np.testing.assert_array_equal(found.wave, [5000 + i + 0.5 * (i % 2) for i in range(40)])
    np.testing.assert_array_equal(found.valid[0], [i % 5 != 3 for i in range(40)])
    with pytest.raises(SpectrumError, match="expected a number in line 33, found 'x'"):
        read(tmp_path, "\n".join([*rows[:32], "x;1;1", *rows[33:], ""]))


def test_long_texts_take_little_memory(tmp_path):
    """Nine times their size at most, most of it numbers; with all lines at once it was eleven times."""
    content = "".join(f"{4000 + 0.01 * i:.2f} 1.5\n" for i in range(300_000))
    read(tmp_path, content[:1200])
    tracemalloc.start()
    try:
        assert read(tmp_path, content).wave.size == 300_000
        assert tracemalloc.get_traced_memory()[1] < 9 * len(content)
    finally:
        tracemalloc.stop()


def test_texts_beyond_the_limits(tmp_path, monkeypatch):
    lines = "".join(f"{5000 + i} 1\n" for i in range(1000))
    monkeypatch.setattr(text, "MOST_BYTES", 5000)
    for content in (lines, gzip.compress(lines.encode())):
        with pytest.raises(SpectrumError, match=r"x.txt: expected .*up to 5e\+03.*largest of the source"):
            read(tmp_path, content)
        assert len(read(tmp_path, content, largest=10**6).wave) == 1000
    monkeypatch.undo()
    monkeypatch.setattr(text, "MOST_LINES", 500)
    for end in ("\n", "\x0b"):
        with pytest.raises(SpectrumError, match=r"x.txt: expected a spectrum of up to 500 lines, found more"):
            read(tmp_path, lines.replace("\n", end))
    monkeypatch.undo()
    monkeypatch.setattr(text, "BLOCK", 10)
    monkeypatch.setattr(text, "MOST_LINE", 100)
    with pytest.raises(
        SpectrumError, match=r"x.txt: expected lines of up to 100 characters, found more in line 4"
    ):
        read(tmp_path, "5000 1\n5001 1\n5002 1\n" + lines.replace("\n", " "))


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
