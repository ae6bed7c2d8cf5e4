"""The formats of a catalogue: round trips, and what other programs make of the files."""

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits, votable
from astropy.table import Column, QTable, Table
from helpers.catalogues import FILES, assert_same_tables, make

from remap.config import ConfigError
from remap.predict import catalogue, formats
from remap.predict.fits_format import bintable

FORMATS = ["fits", "ecsv", "vot", "xml", "parquet"]
ODD = [
    *(
        "#star.fits",
        "#",
        "=cmd|' /C calc'!A0",
        "+1+1",
        "@SUM(1)",
        "-2",
        "bytes\udcff.fits",
        "back\\slash\\x41",
    ),
    *(" lead", "trail ", "a\nb", "a\n#b", "tab\t\x0b\x1f|", "quote\"'", "a,b;c|d", "<&]]>", "\u2028", "\x85"),
    *("", "nan", "--", "None", "é☆😀", "\ufffe", "N/A", "True", "1e5", "\\u0041", "\\"),
]


@pytest.fixture(params=FORMATS)
def ending(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
    return request.param


def files(path):
    return [path] if path.suffix == ".fits" else [path, formats.second(path)]


def test_round_trip(tmp_path, ending):
    table, pmfs, edges, meta = make()
    path = tmp_path / "new" / "folder" / f"out.{ending}"
    features = {"A": np.arange(18, dtype=np.float32).reshape(6, 3)}
    catalogue.write_catalogue(path, table, pmfs, edges, meta, features)
    assert sorted(path.parent.iterdir()) == sorted(files(path))
    found = catalogue.read_catalogue(path)
    assert_same_tables(found.table, table)
    assert list(found.pmfs) == list(pmfs)
    for key, pmf in pmfs.items():
        assert found.pmfs[key].dtype == np.float32
        np.testing.assert_array_equal(found.pmfs[key], pmf)
    assert list(found.edges) == list(edges)
    for label, value in edges.items():
        assert found.edges[label].dtype == np.float64
        np.testing.assert_array_equal(found.edges[label], value)
    assert found.meta == meta
    assert list(found.embeddings) == ["A"]
    np.testing.assert_array_equal(found.embeddings["A"], features["A"])
    found.table["teff"][0] = 1.0  # may be changed
    found.pmfs["teff"][0] = 0.0


def test_any_name_and_message_comes_back(tmp_path, ending):
    count = len(ODD)
    pmfs, edges = {"teff": np.full((count, 4), 0.25)}, {"teff": np.arange(5.0)}
    table = catalogue.build_catalogue(
        ODD,
        pmfs,
        edges,
        units={"teff": "K"},
        flags=np.zeros(count, int),
        snr=np.arange(float(count)),
        arms={},
        messages=ODD,
        star_ids=ODD[::-1],
    )
    catalogue.write_catalogue(tmp_path / f"out.{ending}", table, pmfs, edges, {"name": "\udcff é\n"})
    found = catalogue.read_catalogue(tmp_path / f"out.{ending}")
    assert found.table["file"].tolist() == ODD
    assert found.table["star_id"].tolist() == ODD[::-1]
    assert found.table["message"].tolist() == [" ".join(text.split()) for text in ODD]
    assert found.meta == {"name": "\udcff é\n"}
    for path in files(tmp_path / f"out.{ending}"):
        told = Table.read(path)  # any reader has all rows, and ordinary names as they are
        assert len(told) == count
        for i in (0, 2, 3, 4, 5):
            assert told["file"][i] == ODD[i]
        np.testing.assert_array_equal(np.asarray(found.table["snr"]), np.arange(float(count)))


@pytest.mark.parametrize("kind", [Table, QTable])
def test_astropy_reads_it_without_a_warning(tmp_path, ending, kind):
    table, *rest = make()
    path = tmp_path / f"out.{ending}"
    catalogue.write_catalogue(path, table, *rest)
    for each in files(path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = kind.read(each)
        assert found["file"][0] == FILES[0]
        assert len(found) == len(FILES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kind.read(path)
    assert found.colnames == table.colnames
    assert found["teff"].unit == u.K
    assert found["rv"].unit == u.km / u.s
    plain = np.ma.filled(np.ma.array(getattr(found["teff"], "value", found["teff"])), np.nan)
    np.testing.assert_array_equal(plain[[0, 2, 3, 4, 5]], table["teff"][[0, 2, 3, 4, 5]])
    dex = found["logg"].unit
    if ending == "fits":  # which has no word for it
        assert not dex
    else:
        assert "dex" in str(dex)
        assert found["teff"].info.description == table["teff"].description
        assert found["teff"].info.meta["ucd"] == "phys.temperature.effective;stat.median"


def test_what_was_read_can_be_written(tmp_path, ending):
    catalogue.write_catalogue(tmp_path / f"first.{ending}", *make())
    first = catalogue.read_catalogue(tmp_path / f"first.{ending}")
    for name in ("out.fits", "out.ecsv", "out.vot"):
        first.write(tmp_path / name)
        assert_same_tables(catalogue.read_catalogue(tmp_path / name).table, first.table)


def test_same_input_same_bytes(tmp_path, ending):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        catalogue.write_catalogue(path, *make())
    for one, other in zip(*map(files, paths), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_catalogue_without_rows(tmp_path, ending):
    nothing = {"teff": np.zeros((0, 4))}
    edges = {"teff": np.arange(5.0)}
    none = np.zeros(0)
    table = catalogue.build_catalogue(
        [], nothing, edges, units={"teff": "K"}, flags=none.astype(int), snr=none, arms={}
    )
    path = tmp_path / f"out.{ending}"
    if ending == "ecsv":
        with pytest.raises(ConfigError, match=r"out\.ecsv: expected at least one row"):
            catalogue.write_catalogue(path, table, nothing, edges, {})
        return
    catalogue.write_catalogue(path, table, nothing, edges, {})
    found = catalogue.read_catalogue(path)
    assert (len(found.table), found.pmfs["teff"].shape, found.meta) == (0, (0, 4), {})


@pytest.mark.parametrize("ending", ["ecsv", "vot", "parquet"])
def test_the_second_file_of_another_catalogue_is_refused(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
    table, *rest = make()
    catalogue.write_catalogue(tmp_path / f"a.{ending}", table, *rest)
    table["file"] = [*FILES[:-1], "another"]
    catalogue.write_catalogue(tmp_path / f"b.{ending}", table, *rest)
    shutil.copy(tmp_path / f"b_pmf.{ending}", tmp_path / f"a_pmf.{ending}")
    with pytest.raises(ConfigError, match=rf"a_pmf\.{ending}: expected the PMFs of the 6 rows beside it"):
        catalogue.read_catalogue(tmp_path / f"a.{ending}")
    (tmp_path / f"a_pmf.{ending}").unlink()
    with pytest.raises(
        ConfigError, match=rf"a\.{ending}: .* PMFs are in a_pmf\.{ending} beside it, found no"
    ):
        catalogue.read_catalogue(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", ["out.fits", "out.vot", "out_pmf.vot", "out.parquet", "out_pmf.parquet"])
def test_a_truncated_catalogue_is_refused(tmp_path, name, fraction):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="needs pyarrow (extra `parquet`)")
    path = tmp_path / name.replace("_pmf", "")
    catalogue.write_catalogue(path, *make())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(ConfigError, match=rf"{name}: expected a catalogue"):
        catalogue.read_catalogue(path)


def test_the_images_of_the_fits_file_stand_alone(tmp_path):
    table, pmfs, edges, meta = make()
    catalogue.write_catalogue(tmp_path / "out.fits", table, pmfs, edges, meta)
    with fits.open(tmp_path / "out.fits") as hdus:
        hdus.verify("exception")
        assert sum(isinstance(hdu, fits.BinTableHDU) for hdu in hdus) == 1  # astropy warns of several
        for name, label in (("PMF_teff", "teff"), ("PMF_logg", "logg"), ("PMF_teff_B", "teff")):
            header = hdus[name].header
            assert hdus[name].data.shape == (len(FILES), len(edges[label]) - 1)
            pixel = 0.5 + np.arange(
                len(edges[label])
            )  # of the lower edge of every bin, and the last upper one
            found = header["CRVAL1"] + (pixel - header["CRPIX1"]) * header["CDELT1"]
            np.testing.assert_allclose(found, edges[label], rtol=1e-14)
        assert hdus["PMF_teff"].header["CUNIT1"] == "K"
        assert "CRVAL1" not in hdus["PMF_vsini"].header
        np.testing.assert_array_equal(hdus["EDGES_vsini"].data, edges["vsini"])
        assert hdus[0].header["NINPUT"] == len(FILES)
        assert hdus[0].header["CONFHASH"] == meta["config_sha256"]
        names, header = hdus[1].data.names, hdus[1].header
        n = names.index("flags") + 1
        assert (header[f"TCOMM{n}"], header[f"TUCD{n}"]) == (table["flags"].description, "meta.code.qual")
        n = names.index("logg") + 1
        assert header[f"TCOMM{n}"] == "logg: median of the PMF [dex]"
        assert f"TUNIT{n}" not in header


def test_a_fits_file_of_before_is_read(tmp_path):
    """PMFs, edges and provenance were tables once."""
    table, pmfs, edges, _ = make()
    arrays = {"file": table["file"], "teff_pmf": pmfs["teff"], "teff_pmf_A": pmfs["teff", "A"]}
    columns = [Table({"key": ["version"], "value": ['"0.1.0"']}), Table({"teff_edges": edges["teff"][None]})]
    hdus = [bintable(table, "CATALOG"), bintable(Table(arrays), "PMF"), bintable(columns[1], "EDGES")]
    whole = fits.HDUList([fits.PrimaryHDU(), *hdus, bintable(columns[0], "PROVENANCE")])
    whole.writeto(tmp_path / "old.fits")
    found = catalogue.read_catalogue(tmp_path / "old.fits")
    assert_same_tables(found.table, table)
    assert list(found.pmfs) == ["teff", ("teff", "A")]
    np.testing.assert_array_equal(found.pmfs["teff", "A"], pmfs["teff", "A"])
    assert (found.meta, found.embeddings) == ({"version": "0.1.0"}, {})


def test_the_votables_are_valid(tmp_path):
    catalogue.write_catalogue(tmp_path / "out.vot", *make())
    for name in ("out.vot", "out_pmf.vot"):
        with (tmp_path / "report.txt").open("w") as out:
            assert votable.validate(str(tmp_path / name), output=out), (tmp_path / "report.txt").read_text()


@pytest.mark.skipif(not shutil.which("stilts"), reason="needs stilts (Debian's package of this name)")
def test_stilts_reads_it(tmp_path):
    table, *rest = make()
    for ending in ("fits", "vot"):
        catalogue.write_catalogue(tmp_path / f"out.{ending}", table, *rest)
    for name in ("out.vot", "out_pmf.vot"):
        done = subprocess.run(["stilts", "votlint", tmp_path / name], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in ("out.fits", "out.vot"):
        done = subprocess.run(
            ["stilts", "tpipe", f"in={tmp_path / name}", "cmd=meta name units ucd description", "ofmt=csv"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        rows = done.stdout.splitlines()[1:]
        assert [row.split(",")[0] for row in rows] == table.colnames
        teff = rows[table.colnames.index("teff")].split(",")
        assert teff[1:] == ["K", "phys.temperature.effective;stat.median", "teff: median of the PMF"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'deep-remap\[parquet\]'"):
        catalogue.check_output(tmp_path / "out.parquet", overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_table_of_other_columns_can_be_written(tmp_path, ending):
    """Vectors and truth values, as a user or a later stage may add them."""
    table, *rest = make()
    table["near"] = Column(np.arange(12.0).reshape(6, 2), unit=u.K, description="of neighbours")
    table["good"] = [True, False, True, True, True, False]
    path = tmp_path / f"out.{ending}"
    catalogue.write_catalogue(path, table, *rest)
    assert_same_tables(catalogue.read_catalogue(path).table, table)


def test_sums_of_a_fits_catalogue_are_those_of_the_standard(tmp_path):
    catalogue.write_catalogue(tmp_path / "a.fits", *make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # astropy warns of sums that do not fit
        with fits.open(tmp_path / "a.fits", checksum=True) as hdus:
            assert all({"CHECKSUM", "DATASUM"} <= set(hdu.header) for hdu in hdus)
            [hdu.data for hdu in hdus]


def test_a_bit_of_a_fits_catalogue_is_not_turned_unnoticed(tmp_path, caplog):
    """In the data it is refused; in a header it is told, since somebody may have edited it."""
    path = tmp_path / "a.fits"
    catalogue.write_catalogue(path, *make())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    seen = {"refused": 0, "told": 0}
    for position in rng.choice(8 * len(whole), 100, replace=False):
        spoilt = bytearray(whole)
        spoilt[position // 8] ^= 1 << (position % 8)
        path.write_bytes(spoilt)
        caplog.clear()
        try:
            catalogue.read_catalogue(path)
        except ConfigError as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is right
            seen["refused"] += 1
        else:
            assert "it was edited, or is damaged" in caplog.text
            seen["told"] += 1
    assert seen["refused"] > 30
    assert seen["told"] > 10


def test_damage_of_other_formats_is_told_with_the_file_or_changes_a_value(tmp_path, ending):
    """They have no sums; but no damage is a fault of the program."""
    path = tmp_path / f"a.{ending}"
    catalogue.write_catalogue(path, *make())
    rng, refused = np.random.default_rng(0), 0
    for each in files(path):
        whole = each.read_bytes()
        for position in rng.choice(8 * len(whole), 12, replace=False):
            spoilt = bytearray(whole)
            spoilt[position // 8] ^= 1 << (position % 8)
            each.write_bytes(spoilt)
            try:
                catalogue.read_catalogue(path)
            except ConfigError as error:
                assert str(tmp_path) in str(error)  # noqa: PT017  either outcome is right
                refused += 1
        each.write_bytes(whole)
    assert refused


def test_a_catalogue_with_a_card_and_an_hdu_of_somebody_else_is_read(tmp_path):
    path, made = tmp_path / "a.fits", make()
    catalogue.write_catalogue(path, *made)
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["OBSERVER"] = "nobody"
    assert_same_tables(catalogue.read_catalogue(path).table, made[0])
