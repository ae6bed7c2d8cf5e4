"""Rows of tables and files: which belongs to which, and when nobody can tell."""

import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remap.config import ConfigError
from remap.io import distinct_names, match_rows
from remap.io.matching import RULES
from remap.spectra import SpectrumError


def matched(names, files, rule=None):
    return match_rows(names, [Path("/data/survey") / f for f in files], rule=rule).tolist()


@pytest.mark.parametrize(
    ("names", "files", "rows"),
    [
        (["b.fits", "a.fits"], ["a.fits", "b.fits", "c.fits"], [1, 0, -1]),
        (["1/a.fits", "2/a.fits"], ["2/a.fits", "1/a.fits"], [1, 0]),
        (["./1/a.fits", ".\\2\\a.fits"], ["2/a.fits", "1/a.fits"], [1, 0]),
        (["survey/1/a.fits"], ["1/a.fits", "2/a.fits"], [0, -1]),
        (["/data/survey/1/a.fits"], ["1/a.fits", "2/a.fits"], [0, -1]),
        (["1/a", "2/a"], ["2/a.fits.gz", "1/a.FITS"], [1, 0]),
        (["/home/me/a.fits", "/home/me/b.fits"], ["b.fits", "a.fits"], [1, 0]),
        (["a", "b.5", "c.fit"], ["c.fits", "b.5.fits", "a.fits.fz"], [2, 1, 0]),
        (["HD 1"], ["HD 1.fits"], [0]),
        (["0001", "1"], ["1.txt", "0001.txt"], [1, 0]),
        (["a.fits"], ["a.fits", "a.fits.gz"], [0, -1]),
    ],
)
def test_the_strictest_rule_that_serves(names, files, rows):
    assert matched(names, files) == rows


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_composed_or_not(form):
    name, file = unicodedata.normalize(form, "Procyonë.fits"), unicodedata.normalize("NFD", "Procyonë.fits")
    assert matched([name], ["x.fits", file]) == [-1, 0]
    assert matched([name], ["x.fits", unicodedata.normalize("NFC", file)]) == [-1, 0]


@pytest.mark.parametrize(
    ("names", "files", "rule", "message"),
    [
        (["a.fits"], ["1/a.fits", "2/a.fits"], None, r"one file for 'a.fits', found .*1/a.fits, .*2/a.fits"),
        (
            ["1/a.fits", "2/a.fits"],
            ["3/a.fits"],
            None,
            r"one row for .*3/a.fits, found '1/a.fits' .row 0. and '2/a",
        ),
        (
            ["a"],
            ["a.fits", "a.fits.gz"],
            None,
            r"one file for 'a', found .*a.fits, .*a.fits.gz; .*by 'path_stem'",
        ),
        (["1/a.fits", "2/a.fits"], ["2/a.fits", "1/a.fits"], "name", "one file for '1/a.fits'"),
        (
            ["a.fits", "a"],
            ["a.fits"],
            "stem",
            r"one row for .*a.fits, found 'a.fits' \(row 0\) and 'a' \(row 1\)",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(names, files, rule, message):
    with pytest.raises(SpectrumError, match=message):
        matched(names, files, rule)


def test_a_rule_is_declared():
    assert matched(["1/a.fits"], ["2/a.fits"], "name") == [0]
    assert matched(["1/a"], ["2/a.fits"], "stem") == [0]
    with pytest.raises(ConfigError, match=r"match must be one of .* found 'guess'"):
        matched(["a"], ["a"], "guess")


def test_folders_that_count_are_not_passed_over(caplog):
    """The second row is of a file that is not there; that its name is elsewhere too is told and not used."""
    caplog.set_level(logging.WARNING)
    assert matched(["1/a.fits", "3/b.fits"], ["1/a.fits", "2/b.fits"]) == [0, -1]
    assert "1 rows have no file by 'path', but would by a looser rule" in caplog.text


@pytest.mark.parametrize("rule", [None, "name"])
def test_rows_of_which_none_has_a_file_are_told(caplog, rule):
    assert matched(["a"], ["b.fits", "c.fits"], rule) == [-1, -1]
    assert (
        "none of 1 rows (such as 'a') is that of any of 2 files (such as /data/survey/b.fits)" in caplog.text
    )


def test_many_files_of_one_name():
    names = [f"star{i}/spec.fits" for i in range(3000)]
    assert matched(names, names[::-1]) == list(range(2999, -1, -1))
    with pytest.raises(SpectrumError, match="expected one file for"):
        matched(names, names, "name")


def test_names_that_tell_files_apart():
    assert distinct_names([Path("s/a"), Path("s/b")]) == ["a", "b"]
    assert distinct_names([Path("s/1/a"), Path("s/2/a"), Path("s/2/b")]) == ["1/a", "2/a", "2/b"]
    assert distinct_names([]) == []


FOLDER, STEM = st.sampled_from(["", "x/", "y/"]), st.sampled_from("abc")


@given(
    st.lists(st.tuples(FOLDER, STEM, st.sampled_from(["", ".fits", ".FIT.gz"])), max_size=5),
    st.lists(st.tuples(FOLDER, STEM, st.sampled_from([".fits", ".FIT.gz"])), max_size=5, unique=True),
    st.sampled_from([None, *RULES]),
)
def test_no_row_is_used_twice_and_each_has_the_name_of_its_file(names, files, rule):
    try:
        rows = matched(["".join(n) for n in names], ["".join(f) for f in files], rule)
    except SpectrumError:
        return
    used = [r for r in rows if r >= 0]
    assert len(used) == len(set(used))
    for row, file in zip(rows, files, strict=True):
        if row >= 0:
            assert names[row][1] == file[1]
            assert np.isin(rule or "any", ["any", "stem", "path_stem"]) or names[row][2] == file[2]
