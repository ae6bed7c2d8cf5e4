"""Catalogues: contents, round trips through FITS and ECSV, provenance, refusals."""

import hashlib
import json
import warnings

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from remap.config import ConfigError
from remap.pmf import distributions
from remap.predict import catalogue
from remap.predict.catalogue import Flag

EDGES = {
    "teff": np.linspace(3000.0, 7000.0, 51),
    "logg": np.linspace(1.0, 5.5, 31),
    "vsini": np.array([0.0, 1.5, 4.0, 10.0, 30.0]),  # unequal bins
}
UNITS = {"teff": "K", "logg": "dex", "vsini": "km/s"}
FILES = ["b.fits", "a.fits", "b.fits", "café 1.fits", "back\\slash.fits", "bytes\udcff.fits"]
MESSAGES = ["", "a.fits: covers 4850-5000 Å,\n not 5280", "", "", "", ""]
CONFIG = {
    "seed": 1,
    "widths": [16, 32],
    "labels": {"teff": {"low": 3000.0}},
    "long": "x" * 5000,
    "name": "é '\"\n ",
}


def make(step=1200, arms=("A", "B")):
    rng = np.random.default_rng(0)
    pmfs = {
        name: rng.dirichlet(np.ones(e.size - 1), len(FILES)).astype(np.float32) for name, e in EDGES.items()
    }
    for pmf in pmfs.values():
        pmf[1] = np.nan
    pmfs |= {("teff", arm): np.roll(pmfs["teff"], 1, axis=1) for arm in arms}
    bits = np.zeros(len(FILES), int)
    bits[1] = Flag.UNREADABLE | Flag.MISSING_ARM
    table = catalogue.build_catalogue(
        FILES,
        pmfs,
        EDGES,
        units=UNITS,
        flags=bits,
        snr=np.array([50, np.nan, 70, 80, 90, 100]),
        arms={"A": np.array([1, 0, 1, 1, 1, 1], bool), "B": np.array([1, 0, 0, 1, 1, 1], bool)},
        messages=MESSAGES,
        star_ids=[f"S{i}" for i in range(len(FILES))],
    )
    meta = catalogue.provenance(
        config=CONFIG, checkpoint_step=step, date="2026-01-02T03:04:05", inputs=len(FILES)
    )
    return table, pmfs, dict(EDGES), meta


def assert_same_tables(found, expected):
    assert found.colnames == expected.colnames
    for name in expected.colnames:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].unit == expected[name].unit, name
        assert found[name].description == expected[name].description, name
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]), err_msg=name)


def test_columns_units_and_values():
    table, pmfs, edges, _ = make()
    suffixes = ["", "_p16", "_p84", "_mean", "_std", "_mode", "_entropy"]
    expected = ["file", "star_id", *(label + s for label in EDGES for s in suffixes)]
    assert table.colnames == [*expected, "flags", "snr", "arms", "luminosity_class", "message"]
    assert all(table[name].description for name in table.colnames)
    assert (table["teff_p16"].unit, table["logg_std"].unit, table["vsini"].unit) == (u.K, u.dex, u.km / u.s)
    assert table["teff_entropy"].unit is None
    assert table["flags"].dtype == np.int32
    assert table["file"].tolist() == FILES
    for label in EDGES:
        summary = distributions.pmf_summary(pmfs[label], edges[label])
        np.testing.assert_array_equal(table[label], summary["median"])
        for name in ("p16", "p84", "mean", "std", "mode", "entropy"):
            np.testing.assert_array_equal(table[f"{label}_{name}"], summary[name])
    assert table["arms"].tolist() == ["A,B", "", "A", "A,B", "A,B", "A,B"]
    assert table["message"][1] == "a.fits: covers 4850-5000 Å, not 5280"
    np.testing.assert_array_equal(
        table["luminosity_class"], distributions.dwarf_giant(table["teff"], table["logg"])
    )
    assert table["luminosity_class"][1] == ""
    assert "256 UNREADABLE" in table["flags"].description


def test_labels_are_arbitrary():
    alpha = np.full((1, 4), 0.25)
    table = catalogue.build_catalogue(
        ["x"],
        {"alpha_m": alpha},
        {"alpha_m": np.arange(5.0)},
        units={"alpha_m": ""},
        flags=np.array([0]),
        snr=np.array([1.0]),
        arms={},
    )
    assert table["alpha_m"][0] == 2
    assert table["alpha_m"].unit is None
    assert "luminosity_class" not in table.colnames
    assert "star_id" not in table.colnames


@pytest.mark.parametrize("name", ["out.fits", "new/folder/out.ecsv"])
def test_round_trip(tmp_path, name):
    table, pmfs, edges, meta = make()
    catalogue.write_catalogue(tmp_path / name, table, pmfs, edges, meta)
    found = catalogue.read_catalogue(tmp_path / name)
    assert_same_tables(found.table, table)
    assert list(found.pmfs) == list(pmfs)
    for key, pmf in pmfs.items():
        assert found.pmfs[key].dtype == np.float32
        np.testing.assert_array_equal(found.pmfs[key], pmf)
    assert list(found.edges) == list(edges)
    for label, value in edges.items():
        np.testing.assert_array_equal(found.edges[label], value)
    assert found.meta == meta


def test_a_catalogue_without_rows(tmp_path):
    nothing = {"teff": np.zeros((0, 4))}
    edges = {"teff": np.arange(5.0)}
    none = np.zeros(0)
    table = catalogue.build_catalogue(
        [], nothing, edges, units={"teff": "K"}, flags=none.astype(int), snr=none, arms={}
    )
    catalogue.write_catalogue(tmp_path / "out.fits", table, nothing, edges, {})
    found = catalogue.read_catalogue(tmp_path / "out.fits")
    assert (len(found.table), found.pmfs["teff"].shape, found.meta) == (0, (0, 4), {})
    with pytest.raises(ValueError, match=r"out\.ecsv: expected at least one row"):
        catalogue.write_catalogue(tmp_path / "out.ecsv", table, nothing, edges, {})


@pytest.mark.parametrize("name", ["out.fits", "out.ecsv"])
def test_what_was_read_can_be_written(tmp_path, name):
    catalogue.write_catalogue(tmp_path / "first.fits", *make())
    first = catalogue.read_catalogue(tmp_path / "first.fits")
    catalogue.write_catalogue(tmp_path / name, *first)
    assert_same_tables(catalogue.read_catalogue(tmp_path / name).table, first.table)


def test_the_second_table_stands_alone(tmp_path):
    table, pmfs, edges, meta = make()
    catalogue.write_catalogue(tmp_path / "out.fits", table, pmfs, edges, meta)
    with fits.open(tmp_path / "out.fits") as hdus:
        hdus.verify("exception")
        data, header = hdus[2].data, hdus[2].header
        assert data["file"][:3].tolist() == FILES[:3]
        for name, label in (("teff_pmf", "teff"), ("logg_pmf", "logg"), ("teff_pmf_B", "teff")):
            n = data.names.index(name) + 1
            found = np.linspace(header[f"BLOW{n}"], header[f"BHIGH{n}"], header[f"BNUM{n}"] + 1)
            np.testing.assert_allclose(found, edges[label], rtol=1e-14)
        assert f"BLOW{data.names.index('vsini_pmf') + 1}" not in header
        np.testing.assert_array_equal(data["vsini_edges"], np.tile(edges["vsini"], (len(FILES), 1)))
        assert hdus[0].header["NINPUT"] == len(FILES)
        assert hdus[0].header["CONFHASH"] == meta["config_sha256"]
        n = hdus[1].data.names.index("flags") + 1
        assert hdus[1].header[f"TCOMM{n}"] == table["flags"].description


def test_astropys_table_reads_it(tmp_path):
    table, *rest = make()
    catalogue.write_catalogue(tmp_path / "out.fits", table, *rest)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'dex' did not parse as fits unit")
        found = Table.read(tmp_path / "out.fits", hdu=1)
    np.testing.assert_array_equal(np.ma.filled(found["teff"], np.nan), table["teff"])
    assert found["teff"].unit == u.K
    assert str(found["logg"].unit) == "dex"


def test_same_input_same_bytes(tmp_path):
    for name in ("a.fits", "b.fits"):
        catalogue.write_catalogue(tmp_path / name, *make())
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_provenance():
    meta = make(step={"A": [100, 200], "B": (1,)})[-1]
    assert meta["checkpoint_step"] == {"A": [100, 200], "B": [1]}
    assert meta["config"] == CONFIG
    assert meta["flags"]["1"].startswith("LOW_SNR")
    text = json.dumps(CONFIG, sort_keys=True, separators=(",", ":"))
    assert meta["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    reordered = dict(reversed(CONFIG.items()))
    again = catalogue.provenance(config=reordered, checkpoint_step=0, date="2026-01-02", inputs=0)
    assert again["config_sha256"] == meta["config_sha256"]
    with pytest.raises(ValueError, match="isoformat"):
        catalogue.provenance(config={}, checkpoint_step=0, date="yesterday", inputs=0)


def test_an_existing_catalogue_is_kept(tmp_path):
    table, *rest = make()
    for name, occupied in (("out.fits", "out.fits"), ("out.ecsv", "out_pmf.ecsv")):
        (tmp_path / occupied).write_text("precious")
        with pytest.raises(FileExistsError, match=occupied):
            catalogue.write_catalogue(tmp_path / name, table, *rest)
        assert (tmp_path / occupied).read_text() == "precious"
        catalogue.write_catalogue(tmp_path / name, table, *rest, overwrite=True)
        assert len(catalogue.read_catalogue(tmp_path / name).table) == len(FILES)


@pytest.mark.parametrize("name", ["out.fits", "out.ecsv"])
def test_a_failure_leaves_nothing_and_harms_nothing(tmp_path, monkeypatch, name):
    table, *rest = make()
    catalogue.write_catalogue(tmp_path / name, table, *rest)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(fd):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        catalogue.write_catalogue(tmp_path / name, table[:2], {}, {}, {}, overwrite=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["out.fits", "out.ecsv"])
def test_places_that_cannot_hold_it_are_told_before_any_work(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=rf"{name}: is a folder, expected the name of a file"):
            catalogue.check_output(tmp_path / name, overwrite=overwrite)
        with pytest.raises(ConfigError, match=r"file: expected a folder to write out\.\w+ into"):
            catalogue.check_output(tmp_path / "file" / name, overwrite=overwrite)
    catalogue.check_output(tmp_path / "new" / name, overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["file", name])


@pytest.mark.parametrize("name", ["out.csv", "out", "out.fits.gz"])
def test_unknown_endings_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"\.fits or \.ecsv"):
        catalogue.write_catalogue(tmp_path / name, *make())
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused(tmp_path):
    table, pmfs, edges, meta = make()
    with pytest.raises(ValueError, match=r"teff_pmf_B: expected PMFs of shape \(6, 50\), found \(2, 50\)"):
        catalogue.write_catalogue(
            tmp_path / "o.fits", table, pmfs | {("teff", "B"): np.ones((2, 50))}, edges, meta
        )
    with pytest.raises(TypeError, match="JSON"):
        catalogue.write_catalogue(tmp_path / "o.fits", table, pmfs, edges, {"a": object()})
    assert not list(tmp_path.iterdir())


def build(**changes):
    given = {
        "files": ["a", "b"],
        "pmfs": {"teff": np.full((2, 4), 0.25)},
        "edges": {"teff": np.arange(5.0)},
        "units": {"teff": "K"},
        "flags": np.zeros(2, int),
        "snr": np.zeros(2),
        "arms": {"A": np.ones(2, bool)},
    }
    given |= changes
    return catalogue.build_catalogue(given.pop("files"), given.pop("pmfs"), given.pop("edges"), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pmfs": {"teff": np.full((3, 4), 0.25)}},
            r"label teff: expected PMFs \[2, K\], found shape \(3, 4\)",
        ),
        ({"pmfs": {"teff": np.full((2, 4), 0.5)}}, "label teff: expected PMFs .* sum to 1"),
        ({"edges": {}}, "label teff: expected edges and a unit"),
        ({"units": {"logg": "dex"}}, "label teff: expected edges and a unit"),
        ({"flags": np.zeros(2)}, r"flags: expected int32\[2\], found float64"),
        ({"flags": np.zeros(3, int)}, r"flags: expected int32\[2\]"),
        ({"snr": np.zeros(3)}, r"snr: expected float64\[2\]"),
        ({"arms": {"A": np.ones(3, bool)}}, r"arm A: expected bool\[2\]"),
        ({"messages": ["x"]}, "messages: expected 2 values, found 1"),
        ({"star_ids": ["x"]}, "star_ids: expected 2 values, found 1"),
    ],
)
def test_arrays_that_do_not_agree_are_refused(changes, message):
    build()
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_reserved_names_are_refused():
    for name in ("file", "snr"):
        with pytest.raises(ValueError, match=f"label {name}: there is a column {name} already"):
            build(pmfs={name: np.full((2, 4), 0.25)}, edges={name: np.arange(5.0)}, units={name: ""})


def test_what_is_no_catalogue_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        catalogue.read_catalogue(tmp_path / "absent.fits")
    (tmp_path / "text.fits").write_text("no FITS at all")
    with pytest.raises(ValueError, match=r"text\.fits: expected a catalogue in FITS"):
        catalogue.read_catalogue(tmp_path / "text.fits")
    fits.PrimaryHDU(np.zeros(3)).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"image\.fits: expected the tables .* found \[\]"):
        catalogue.read_catalogue(tmp_path / "image.fits")
    (tmp_path / "text.ecsv").write_text("a b\n1 2\n")
    (tmp_path / "text_pmf.ecsv").write_text("a b\n1 2\n")
    with pytest.raises(ValueError, match=r"text\.ecsv: expected a catalogue in ECSV"):
        catalogue.read_catalogue(tmp_path / "text.ecsv")


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_catalogue_is_refused(tmp_path, fraction):
    catalogue.write_catalogue(tmp_path / "out.fits", *make())
    whole = (tmp_path / "out.fits").read_bytes()
    (tmp_path / "out.fits").write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(ValueError, match=r"out\.fits: expected"):
        catalogue.read_catalogue(tmp_path / "out.fits")
