"""Label tables as astronomers write them: names to the digit, what is not known, units, separators, encodings."""

import csv
import logging
import re
import unicodedata

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from hypothesis import given
from hypothesis import strategies as st

from remap import io
from remap.config import ConfigError
from remap.io.columns import NOTHING
from remap.spectra import SpectrumError

TEFF = {"columns": {"teff": "teff"}, "file_column": "file"}
CSV = TEFF | {"format": "csv"}
WRITTEN = {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits"}  # what astropy calls them
GAIA = ("1234567890123456789", "1234567890123456790")  # the same as float64


def read(path, text, source=CSV, **more):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return io.read_labels(path, source=source | more)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records]


def test_byte_order_mark_and_encodings(tmp_path, told):
    text = "file,teff\nα Cen,5790\nβ Hyi,5870\n"
    for content in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        found = read(tmp_path / "x.csv", content)
        assert found.files == ("α Cen", "β Hyi")
        assert found.values["teff"].tolist() == [5790.0, 5870.0]
    assert not told()
    latin = "file,teff\nBarnard–é,3200\n".encode("windows-1252")
    assert read(tmp_path / "y.csv", latin).files == ("Barnard–é",)
    assert "y.csv: no UTF-8 (line 2); read as windows-1252" in told()[0]
    mac = "file,teff\nKapteyné,3200\n".encode("mac-roman")
    assert read(tmp_path / "z.csv", mac, encoding="mac-roman").files == ("Kapteyné",)
    with pytest.raises(ConfigError, match="encoding 'klingon' is not known"):
        read(tmp_path / "z.csv", mac, encoding="klingon")
    with pytest.raises(SpectrumError, match=r"z.csv: expected a text table, found the character '\\x00'"):
        read(tmp_path / "z.csv", b"file,teff\na\x00b,5000\n")


@pytest.mark.parametrize(
    "text",
    [
        "file,teff\na b,5000\nc,6000\n",
        "file;teff\na b;5000\nc;6000\n",
        "file\tteff\r\na b\t5000\r\nc\t6000\r\n",
        "teff | file\r5000 | a b\r6000 | c\r",
        '"file"  teff\n"a b"   5000\n c \t 6000\n',
        '# made by hand\n#file, teff, note\na b, 5000, x\nc, 6000, "y, z"\n# the end\n',
        "# of two stars, both known\n\nfile, note, teff,\na b, , 5000,,\n\nc, x, 6000,\n",
    ],
)
def test_separators_and_comments(tmp_path, text):
    found = read(tmp_path / "x.csv", text)
    assert found.files == ("a b", "c")
    assert found.values["teff"].tolist() == [5000.0, 6000.0]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("file,teff\na,5000\nb\n", {}, "expected 2 cells in every row, found 1 in row 1"),
        ("file,teff\na,5000,7\n", {}, "expected 2 cells in every row, found 3"),
        ("file teff\nHD 1 5000\n", {}, "expected 2 cells in every row, found 3"),
        ("file,teff,teff\na,5000,6000\n", {}, "expected one column 'teff', found 2"),
        ("file;teff\na;5000\n", {"separator": ","}, "expected a column 'teff', found file;teff"),
        ('file,teff\n"a,5000\nb,6000\n', {}, "unreadable file .*end of data"),
        ('file,teff\n"a\nb",6000\n', {}, r"expected names in 'file', found 'a\\nb' in row 0"),
        ("file;teff\na;5772,5\n", {}, "found '5772,5' in row 0; where this is a decimal comma, set decimal"),
        ("file;teff\na;1.234,5\n", {"decimal": ","}, "found '1.234,5'"),
        ("file,teff\na,<5000\n", {}, "expected numbers in 'teff', found '<5000' in row 0"),
        ("file,teff\na,5_000\n", {}, "found '5_000'"),
        ("file,teff\na,0x10\n", {}, "found '0x10'"),
        ("file,teff\na,5000 K\n", {}, "found '5000 K'"),
        ("# only\n# comments\n", {}, "expected a column 'teff', found comments"),
        ("\n\n", {}, "with rows, found none"),
        ("file,teff\n", {}, "with rows, found none"),
    ],
)
def test_text_tables_that_cannot_be_used(tmp_path, text, more, message):
    with pytest.raises(SpectrumError, match=f"x.csv: .*{message}"):
        read(tmp_path / "x.csv", text, **more)


def test_numbers_as_they_are_written(tmp_path):
    found = read(tmp_path / "x.csv", "file;teff\na;5,772e3\nb;\N{MINUS SIGN}1\nc;+5.D+03\n", decimal=",")
    assert found.values["teff"].tolist() == [5772.0, -1.0, 5000.0]


@pytest.mark.parametrize(
    ("format", "word"),
    [
        (format, word)
        for format in WRITTEN
        for word in sorted({"N/A", "None", "NULL", "NaN"} | NOTHING - {""})
        if word.isascii() or format != "fits"
    ],
)
def test_words_for_nothing(tmp_path, format, word):
    made = Table({"file": ["a", "b"], "teff": [word, "5000"], "e": ["60.5", word]})
    made.write(tmp_path / "x", format=WRITTEN[format])
    found = io.read_labels(tmp_path / "x", source=TEFF | {"format": format, "error_columns": {"teff": "e"}})
    np.testing.assert_array_equal(found.values["teff"], [np.nan, 5000.0])
    np.testing.assert_array_equal(found.errors["teff"], [60.5, np.nan])


def test_words_for_nothing_in_an_ecsv_column_of_numbers(tmp_path):
    head = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: file, datatype: string}\n"
    head += "# - {name: teff, datatype: float64, unit: K}\n"
    found = read(tmp_path / "x", head + 'file teff\na N/A\nb ""\nc 5000.0\n', TEFF | {"format": "ecsv"})
    np.testing.assert_array_equal(found.values["teff"], [np.nan, np.nan, 5000.0])


@pytest.mark.parametrize("method", ["null_value", "data_mask"])
def test_what_ecsv_masks_is_not_known(tmp_path, method):
    path = tmp_path / "x.ecsv"
    teff = MaskedColumn([5000.0, 6000.0], mask=[True, False], unit="K")
    QTable({"file": ["a", "b"], "teff": teff, "more": np.ones((2, 3))}).write(path, serialize_method=method)
    found = io.read_labels(path, source=TEFF | {"format": "ecsv"})
    np.testing.assert_array_equal(found.values["teff"], [np.nan, 6000.0])


# Names


@pytest.mark.parametrize(
    "names",
    [
        ("0001", "1", "00123"),
        ("1E10", "10000000000", "1e10"),
        (*GAIA, "0" + GAIA[0]),
        (f"{GAIA[0]}.0", f"{GAIA[1]}.0", GAIA[0]),
        ("17.0", "17", "17.00"),
        ("True", "False", "+1"),
        ("1_000", "1000", "2020-01-01"),
    ],
)
@pytest.mark.parametrize("format", ["csv", "ecsv", "fits"])
def test_names_stay_text_to_the_digit(tmp_path, format, names):
    path, written = tmp_path / "x", WRITTEN[format]
    Table({"star": names, "teff": [5000.0, 5500.0, 6000.0]}).write(path, format=written)
    source = {"format": format, "columns": {"teff": "teff"}, "id_column": "star"}
    assert io.read_labels(path, source=source).star_ids == names


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, ">i8"])
def test_names_that_are_integers(tmp_path, dtype):
    made = Table({"star": np.array([int(i) for i in GAIA], dtype), "teff": [5000.0, 6000.0]})
    for format, written in WRITTEN.items():
        made.write(tmp_path / format, format=written)
        source = {"format": format, "columns": {"teff": "teff"}, "id_column": "star"}
        assert io.read_labels(tmp_path / format, source=source).star_ids == GAIA


@pytest.mark.parametrize("format", ["ecsv", "fits"])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([17.0, 18.0]), ("17", "18")),
        (np.array([17.0, 18.0], np.float32), ("17", "18")),
        (np.array([2.0**53, 18.0]), "made a floating-point number: these hold 15 digits"),
        (np.array([2.0**24, 18.0], np.float32), "made a floating-point number"),
        (np.array([17.5, 18.0]), "the number 17.5 in row 0"),
    ],
)
def test_names_that_are_floating_point_numbers(tmp_path, format, values, found):
    Table({"star": values, "teff": [5e3, 6e3]}).write(tmp_path / "x", format=WRITTEN[format])
    source = {"format": format, "columns": {"teff": "teff"}, "id_column": "star"}
    if isinstance(found, tuple):
        assert io.read_labels(tmp_path / "x", source=source).star_ids == found
    else:
        with pytest.raises(SpectrumError, match=found):
            io.read_labels(tmp_path / "x", source=source)


def test_names_in_text_that_have_lost_digits(tmp_path, told):
    source = {"format": "csv", "columns": {"teff": "teff"}, "id_column": "star", "repeat_stars": True}
    text = f"star,teff\n{GAIA[0]}.0,5000\n%s,6000\n"
    assert read(tmp_path / "x", text % f"{GAIA[1]}.0", source).star_ids == tuple(f"{g}.0" for g in GAIA)
    assert "2 names in 'star' look like floating-point numbers" in told()[0]
    with pytest.raises(
        SpectrumError, match=r"found 1234567890123456789.0 in several rows, .* may have become"
    ):
        read(tmp_path / "x", text % f"{GAIA[0]}.0", source)
    for lost in (str(float(GAIA[0])), "1.2345678901234568E18", "1.23457E+18", "1E+10"):
        with pytest.raises(SpectrumError, match=re.escape(f"found {lost} in row 1, ") + ".* may have become"):
            read(tmp_path / "x", text % lost, source)


@pytest.mark.parametrize("name", ["", "--", "N/A", "nan"])
def test_a_row_without_a_name(tmp_path, name):
    with pytest.raises(SpectrumError, match=r"a name in every row of 'file', found .* row 1"):
        read(tmp_path / "x", f"file,teff\na,5000\n{name},6000\n")


def test_a_number_for_no_name_is_no_star(tmp_path):
    text = "file,star,teff\na,7,5000\nb,-9999,6000\nc,-9999,6500\nd,7,5000\n"
    with pytest.raises(SpectrumError, match="duplicates of -9999, which is no name of a star"):
        read(tmp_path / "x", text, id_column="star", repeat_stars=True)


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=20).filter(
            lambda t: t.lower() not in NOTHING and not t.startswith("#")
        ),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    st.sampled_from([",", ";", "\t", "|", " "]),
    st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, names, separator, data):
    """Names of any letters and numbers of any size, by every separator, quoted or not."""
    values = data.draw(st.lists(st.floats(200, 5e5), min_size=len(names), max_size=len(names), unique=True))
    path = tmp_path_factory.mktemp("written") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([("file", "teff"), *zip(names, values, strict=True)])
    composed = tuple(unicodedata.normalize("NFC", n) for n in names)
    if len(set(composed)) < len(names):
        with pytest.raises(SpectrumError, match="duplicates"):
            io.read_labels(path, source=CSV)
        return
    found = io.read_labels(path, source=CSV)
    assert found.files == composed
    np.testing.assert_array_equal(found.values["teff"], np.array(values, float))


# Units


@pytest.mark.parametrize("format", ["ecsv", "fits"])
@pytest.mark.parametrize(
    ("label", "unit"),
    [("teff", u) for u in ("K", "Kelvin", "kelvin", "deg_K", " K ")]
    + [("logg", u) for u in ("dex", "Dex", "dex(cm / s2)", "dex(cm/s**2)", "dex(cm.s**-2)", "[-]", "[cgs]")]
    + [("logg", u) for u in ("log(cm.s**-2)", "log10(cm/s^2)", "log(cm/s2)", "log (cm s^-2)", "log(cgs)")]
    + [("logg", u) for u in ("[cm/s2]", "[cm/s**2]", "[cm.s-2]")]
    + [("feh", u) for u in ("dex", "[Sun]", "[-]", "dex(1)", "---")]
    + [("rv", u) for u in ("km/s", "km.s-1", "km s**-1", "km/sec", "kms-1", "km s-1")],
)
def test_units_as_they_are_written(tmp_path, format, label, unit):
    labels(tmp_path / "x", format, label, unit)
    source = {"format": format, "columns": {label: "c"}, "file_column": "file"}
    assert io.read_labels(tmp_path / "x", source=source).values[label].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("format", ["ecsv", "fits"])
@pytest.mark.parametrize(
    ("label", "unit"),
    [("teff", u) for u in ("Celsius", "deg_C", "kK", "dex(K)", "[K]", "eV", "C", "mK", "dex")]
    + [
        ("logg", u)
        for u in ("dex(m/s2)", "log(m/s**2)", "[m/s2]", "cm/s2", "m/s2", "mag", "ln(cm/s2)", "[Sun")
    ]
    + [("feh", u) for u in ("%", "mag", "dex(cm/s2)", "[cm/s2]", "log(Fe/H)", "10-2")]
    + [("rv", u) for u in ("m/s", "km/h", "AU/yr", "km", "[km/s]", "pix")],
)
def test_units_that_contradict(tmp_path, format, label, unit):
    labels(tmp_path / "x", format, label, unit)
    source = {"format": format, "columns": {label: "c"}, "file_column": "file"}
    with pytest.raises(
        SpectrumError, match=r"expected 'c' in .*, found the unit .*set units to \{'"
    ) as error:
        io.read_labels(tmp_path / "x", source=source)
    shown = str(error.value).split("found the unit ")[1].split(";")[0]
    declared = io.read_labels(tmp_path / "x", source=source | {"units": {label: shown.strip("'\"")}})
    assert declared.values[label].tolist() == [2.0, 3.0]


def labels(path, format, label, unit):
    """A table with one label in a unit, written as text because astropy would write another."""
    if format == "ecsv":
        head = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: file, datatype: string}\n"
        head += f"# - {{name: c, datatype: float64, unit: '{unit}'}}\n"
        path.write_text(head + "file c\na 2.0\nb 3.0\n", encoding="utf-8")
        return
    columns = [fits.Column("file", "1A", array=["a", "b"]), fits.Column("c", "D", array=[2.0, 3.0])]
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.header["TUNIT2"] = unit
    hdu.writeto(path)


def test_a_unit_with_letters_that_are_not_ascii(tmp_path):
    labels(tmp_path / "x", "ecsv", "rv", "km s\N{SUPERSCRIPT MINUS}¹")
    assert io.read_velocities(tmp_path / "x", column="c") == {"a": 2.0, "b": 3.0}


# What nobody declared missing


@pytest.mark.parametrize("format", ["csv", "ecsv", "fits"])
@pytest.mark.parametrize(
    ("label", "good", "bad"),
    [
        ("teff", 5772.0, -9999.0),
        ("teff", 5772.0, 0.0),
        ("logg", 4.4, -9.99),
        ("logg", 4.4, 99.99),
        ("feh", 0.0, -999.0),
        ("vsini", 2.0, -1.0),
        ("rv", 12.0, -9999.0),
        ("rv", 12.0, 1e10),
        ("mg_fe", 0.1, -9999.99),
    ],
)
def test_undeclared_sentinels_are_counted_and_not_used(tmp_path, told, format, label, good, bad):
    path, written = tmp_path / "x", WRITTEN[format]
    Table({"file": list("abcd"), "c": np.array([good, bad, good, bad], np.float32)}).write(
        path, format=written
    )
    source = {"format": format, "columns": {label: "c"}, "file_column": "file"}
    found = io.read_labels(path, source=source)
    np.testing.assert_allclose(found.values[label], [good, np.nan, good, np.nan], rtol=1e-6)
    assert [m for m in told() if f"column 'c': 2 values are {bad:g}, which no {label} is" in m]
    count = len(told())
    declared = io.read_labels(path, source=source | {"missing_values": [bad]})
    np.testing.assert_allclose(declared.values[label], [good, np.nan, good, np.nan], rtol=1e-6)
    assert len(told()) == count


def test_names_and_columns_with_accents(tmp_path):
    decomposed = unicodedata.normalize("NFD", "étoile,Température\ná,5000\n")
    for text in (decomposed, unicodedata.normalize("NFC", decomposed)):
        for form in ("NFC", "NFD"):
            column, name = (unicodedata.normalize(form, t) for t in ("Température", "étoile"))
            found = read(tmp_path / "x", text, CSV | {"columns": {"teff": column}, "file_column": name})
            assert found.files == ("á",)
    column = fits.Column("file", "2A", array=np.array([b"\xe9", b"\xe8"]))
    fits.BinTableHDU.from_columns([column, fits.Column("teff", "D", array=[5e3, 6e3])]).writeto(
        tmp_path / "y"
    )
    assert io.read_labels(tmp_path / "y", source=TEFF | {"format": "fits"}).files == ("é", "è")


@pytest.mark.parametrize(
    ("missing", "found"),
    [((), [9, 5]), (9, [np.nan, 5]), ("9", [np.nan, 5]), ("95", [9, 5]), (("no", 5.0), [9, np.nan])],
)
def test_declared_missing_values(tmp_path, missing, found):
    text = "file,vsini\na,9\nb,5\n" + ("c,no\n" if missing == ("no", 5.0) else "c,-\n")
    got = read(tmp_path / "x", text, CSV | {"columns": {"vsini": "vsini"}, "missing_values": missing})
    np.testing.assert_array_equal(got.values["vsini"], [*found, np.nan])


def test_one_sentinel_is_enough_where_it_is_all_nines(tmp_path, told):
    found = read(tmp_path / "x", "file,teff\na,5000\nb,-9999\nc,5000\n")
    np.testing.assert_array_equal(found.values["teff"], [5000, np.nan, 5000])
    assert "1 values are -9999" in told()[0]


def test_values_that_are_odd_are_told_and_kept(tmp_path, told):
    found = read(tmp_path / "x", "file,teff\na,3.76\nb,3.74\nc,9999\nd,9999\n")
    assert found.values["teff"].tolist() == [3.76, 3.74, 9999, 9999]
    assert "2 values lie outside 200 to 500000, where every teff should be; the first is 3.74" in told()[0]
    assert "2 values are 9999; declare it in missing_values if it means" in told()[1]


def test_good_tables_are_read_without_a_word(tmp_path, told):
    names = "\n".join(f"{i},{5000 + i % 7},0.0" for i in range(50))
    source = CSV | {"columns": {"teff": "teff", "feh": "feh"}}
    assert len(read(tmp_path / "x", f"file,teff,feh\n{names}\n", source)) == 50
    assert not told()


def test_errors_that_are_sentinels(tmp_path, told):
    text = "file,feh,e\na,0.1,99.99\nb,0.2,0.05\nc,0.2,-9999\n"
    found = read(tmp_path / "x", text, CSV | {"columns": {"feh": "feh"}, "error_columns": {"feh": "e"}})
    np.testing.assert_array_equal(found.errors["feh"], [np.nan, 0.05, np.nan])
    assert "1 values are 99.99" in told()[0]


# FITS headers that lie


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NAXIS2", -3),
        ("NAXIS2", 10**12),
        ("NAXIS2", 10**17),
        ("NAXIS1", 10**9),
        ("NAXIS1", 8),
        ("TFIELDS", 900),
        ("TFIELDS", 10**9),
        ("TFIELDS", -1),
        ("TFIELDS", 1),
        ("PCOUNT", 10**12),
        ("TFORM1", "'99999999999A'"),
        ("TFORM2", "'Q'"),
        ("NAXIS2", "'many'"),
        ("NAXIS2", 1.5),
        ("TTYPE1", "'teff'"),
    ],
)
def test_fits_headers_that_lie(tmp_path, key, value):
    path = tmp_path / "x.fits"
    Table({"file": ["a", "b"], "teff": [5e3, 6e3]}).write(path)
    raw = path.read_bytes()
    at = raw.rfind(f"{key:<8}=".encode())
    assert at > 2880
    path.write_bytes(raw[:at] + f"{key:<8}= {value:>20}".ljust(80).encode() + raw[at + 80 :])
    with pytest.raises(SpectrumError, match=r"x.fits: expected"):
        io.read_labels(path, source=TEFF | {"format": "fits"})


@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4), st.floats(0, 1)
)
@pytest.mark.parametrize("format", ["csv", "ecsv", "fits"])
def test_a_damaged_table_is_read_or_refused(tmp_path_factory, format, changes, length):
    folder = tmp_path_factory.mktemp("damaged")
    made = Table({"file": ["a.fits", "b.fits"], "teff": MaskedColumn([5e3, 6e3], unit="K")})
    made.write(folder / "whole", format=WRITTEN[format])
    content = bytearray((folder / "whole").read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    content = content if changes else content[: int(length * len(content))]
    (folder / "table").write_bytes(content)
    try:
        message = "table" * bool(len(io.read_labels(folder / "table", source=TEFF | {"format": format})))
    except SpectrumError as error:
        message = str(error)
    assert "table" in message


# Velocities


@pytest.mark.parametrize("format", ["csv", "ecsv", "fits"])
def test_velocities(tmp_path, format):
    path, written = tmp_path / "x", WRITTEN[format]
    rv = MaskedColumn([12.5, -3.0, 7.0], mask=[False, False, True], unit="km/s")
    Table({"obsid": ["0001", "0002", "0003"], "rv_sys": rv}).write(path, format=written)
    found = io.read_velocities(path, column="rv_sys", name_column="obsid")
    assert list(found) == ["0001", "0002", "0003"]
    np.testing.assert_array_equal(list(found.values()), [12.5, -3.0, np.nan])
    path.write_bytes(b"" if format == "fits" else b"\xef\xbb\xbf" + path.read_bytes())
    if format != "fits":
        assert list(io.read_velocities(path, column="rv_sys", name_column="obsid")) == [
            "0001",
            "0002",
            "0003",
        ]
    Table({"obsid": ["0001"], "rv_sys": [1.0]}).write(path, format=written, overwrite=True)
    with pytest.raises(SpectrumError, match="expected a column 'rv', found obsid, rv_sys"):
        io.read_velocities(path, name_column="obsid")


def test_velocities_in_another_unit(tmp_path):
    rv = MaskedColumn([12500.0], unit="m/s")
    Table({"file": ["a"], "rv": rv}).write(tmp_path / "x.ecsv")
    with pytest.raises(SpectrumError, match="expected 'rv' in km / s, found the unit 'm / s'"):
        io.read_velocities(tmp_path / "x.ecsv")


def test_velocities_of_lamost():
    try:
        path = io.find_data("surveys/lamost_lrs/labels.ecsv")
    except SpectrumError as error:
        pytest.skip(str(error))
    found = io.read_velocities(path)
    files = io.list_files(path.parent, ("*.fits", "**/*.fits*"))
    rows = io.match_rows(list(found), files)
    velocities = np.array(list(found.values()))[rows]
    assert np.isfinite(velocities).sum() == 60
    assert np.abs(velocities).max() < 600


ALL = {"columns": {"teff": "teff", "logg": "logg"}, "error_columns": {"teff": "err"}, "file_column": "file"}
OFFSETS = {
    "teff": {"by": "logg", "at": (3.0, 4.0), "add": (4.0, 64.0)},
    "logg": {"by": "logg", "at": (3.5,), "add": (-0.1,)},
}


def test_offsets_bring_labels_to_another_scale(tmp_path, told):
    text = "file,teff,logg,err\na,5000,2.0,50\nb,5000,3.25,50\nc,5000,4.5,50\nd,,4.5,50\ne,5000,,50\n"
    found = read(tmp_path / "x.csv", text, CSV | ALL, offsets=OFFSETS)
    # By the table's own log g, which has an offset, too.
    np.testing.assert_allclose(found.values["teff"], [5004.0, 5019.0, 5064.0, np.nan, np.nan])
    np.testing.assert_allclose(found.values["logg"], [1.9, 3.15, 4.4, 4.4, np.nan])
    np.testing.assert_array_equal(found.errors["teff"], 50.0)
    assert "1 values of teff have no logg" in told()[0]
    plain = read(tmp_path / "x.csv", text, CSV | ALL)
    np.testing.assert_array_equal(plain.values["teff"], [5000, 5000, 5000, np.nan, 5000])


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        ({"by": "feh", "at": (1.0,), "add": (1.0,)}, "found 'feh'"),
        ({"by": "logg", "at": (1.0,)}, "fields by, at and add"),
        ({"by": "logg", "at": (2.0, 1.0), "add": (0.0, 1.0)}, "which increases"),
        ({"by": "logg", "at": (1.0, 2.0), "add": (0.0,)}, "as many numbers"),
        ({"by": "logg", "at": (1.0,), "add": (float("nan"),)}, "as many numbers"),
    ],
)
def test_offsets_that_cannot_be_are_refused(tmp_path, offset, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "x.csv", "file,teff,logg,err\na,5000,2.0,50\n", CSV | ALL, offsets={"teff": offset})
