"""Tables of the working folder: texts of any kind come back, and a turned bit is noticed."""

import numpy as np
import pytest
from astropy.table import Table

from remap.config import ConfigError
from remap.store.tables import escape, unescape
from remap.store.workdir import read_stars, write_stars

ODD = [
    "bytes\udcff.fits",
    "#star.fits",
    "=cmd.fits",
    " lead",
    "trail ",
    "tab\t.fits",
    "a\nb.fits",
    "\u2028",
    "a\\x41",
    "--",
]


def stars(names):
    count = len(names)
    values = {"file": names, "star_id": [f"S{i}" if i else "" for i in range(count)]}
    return Table(values | {"teff": np.linspace(5000, 6000, count) / 3, "status": ["ok"] * count})


def test_any_name_comes_back(tmp_path):
    """One file of an odd name made the whole survey unreadable."""
    write_stars(tmp_path, stars(ODD))
    found = read_stars(tmp_path)
    assert list(found["file"]) == ODD
    assert found["star_id"].mask.tolist() == [True] + [False] * (len(ODD) - 1)
    assert list(found["star_id"][1:]) == [f"S{i}" for i in range(1, len(ODD))]
    np.testing.assert_array_equal(found["teff"], stars(ODD)["teff"])
    assert not found.meta
    assert all(unescape(escape(name)) == name for name in ODD)


def test_every_turned_bit_is_noticed_or_changes_nothing(tmp_path):
    write_stars(tmp_path, stars(["a", "b", "c"]))
    expected = read_stars(tmp_path)
    path = tmp_path / "data" / "stars.ecsv"
    whole, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for position in rng.choice(8 * len(whole), 150, replace=False):
        spoilt = bytearray(whole)
        spoilt[position // 8] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        try:
            found = read_stars(tmp_path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is right
            noticed += 1
        else:
            assert [list(map(str, found[name])) for name in expected.colnames] == [
                list(map(str, expected[name])) for name in expected.colnames
            ]
    assert noticed > 50


def test_a_table_that_was_edited_or_is_of_before_is_read(tmp_path):
    write_stars(tmp_path, stars(["a", "b"]))
    path = tmp_path / "data" / "stars.ecsv"
    text = path.read_text()
    path.write_text(text.replace("2000.0", "2001.0"))
    with pytest.raises(
        ConfigError, match=r"stars\.ecsv: .*by its hash; if you have edited it, delete its sha256"
    ):
        read_stars(tmp_path)
    edited = [line for line in text.replace("2000.0", "2001.0").splitlines() if "sha256" not in line]
    path.write_text("\n".join(edited) + "\n")
    assert 2001.0 in list(read_stars(tmp_path)["teff"])
    stars(["a\\\\b"]).write(path, overwrite=True)  # before texts were escaped
    assert list(read_stars(tmp_path)["file"]) == ["a\\\\b"]
