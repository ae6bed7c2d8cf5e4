"""Catalogues: contents, round trips through FITS and ECSV, provenance, refusals."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.io.votable.ucd import parse_ucd
from helpers.catalogues import CONFIG, EDGES, FILES, make

from remap.config import ConfigError
from remap.pmf import distributions
from remap.pmf.luminosity import dwarf_giant, dwarf_probability
from remap.predict import catalogue
from remap.predict.catalogue import Flag


def test_columns_units_and_values():
    table, pmfs, edges, _ = make()
    suffixes = ["", "_p16", "_p84", "_mean", "_std", "_mode", "_entropy"]
    expected = ["file", "star_id", "ra", "dec", *(label + s for label in EDGES for s in suffixes)]
    at = expected.index("logg")
    expected[at:at] = ["teff_A", "teff_B"]
    rest = ["flags", "snr", "rv", "arms", "dwarf_probability", "luminosity_class", "message"]
    assert table.colnames == [*expected, *rest]
    assert all(table[name].description for name in table.colnames)
    assert (table["teff_p16"].unit, table["logg_std"].unit, table["vsini"].unit) == (u.K, u.dex, u.km / u.s)
    assert (table["teff_A"].unit, table["ra"].unit, table["rv"].unit) == (u.K, u.deg, u.km / u.s)
    assert table["teff_entropy"].unit is None
    assert table["flags"].dtype == np.int32
    assert table["file"].tolist() == FILES
    for label in EDGES:
        summary = distributions.pmf_summary(pmfs[label], edges[label])
        np.testing.assert_array_equal(table[label], summary["median"])
        for name in ("p16", "p84", "mean", "std", "mode", "entropy"):
            np.testing.assert_array_equal(table[f"{label}_{name}"], summary[name])
    for arm in "AB":
        alone = distributions.pmf_quantile(pmfs["teff", arm], edges["teff"], 0.5)
        np.testing.assert_array_equal(table[f"teff_{arm}"], alone)
    assert np.abs(table["teff_A"] - table["teff"])[0] > 1
    assert table["arms"].tolist() == ["A,B", "", "A", "A,B", "A,B", "A,B"]
    assert table["message"][1] == "a.fits: covers 4850-5000 Å, not 5280"
    np.testing.assert_array_equal(table["luminosity_class"], dwarf_giant(table["teff"], table["logg"]))
    assert table["luminosity_class"][1] == ""
    chance = dwarf_probability(pmfs["teff"], edges["teff"], pmfs["logg"], edges["logg"])
    np.testing.assert_array_equal(table["dwarf_probability"], chance)
    assert np.isnan(table["dwarf_probability"]).tolist() == [False, True, False, False, False, False]
    assert "256 UNREADABLE" in table["flags"].description


def test_the_document_explains_every_flag_and_column():
    text = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()
    for flag in Flag:
        assert f"| {int(flag)} | {flag.name} |" in text
    for column in make()[0].colnames:
        name = re.sub(r"^(teff|logg|vsini)(?=$|_)", "X", column)
        name = re.sub("^X_[AB]$", "X_ARM", name)
        assert f"`{name}`" in text, column


def test_ucds_are_of_the_vocabulary():
    table = make()[0]
    for column in table.itercols():
        parse_ucd(column.meta["ucd"], check_controlled_vocabulary=True)
    assert table["teff"].meta["ucd"] == "phys.temperature.effective;stat.median"
    assert table["ra"].meta["ucd"] == "pos.eq.ra;meta.main"
    assert (
        "ucd" not in build(pmfs={"odd": FLAT}, edges={"odd": np.arange(5.0)}, units={"odd": ""})["odd"].meta
    )


def test_quantities():
    found = catalogue.Catalogue(*make())
    assert found.qtable["teff"][0] == found.table["teff"][0] * u.K
    assert found.qtable["logg_std"].unit == u.dex


def test_plot_draws_the_pmfs_of_a_star(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra `plots`)")
    found = catalogue.Catalogue(*make())
    figure = found.plot(0, path=tmp_path / "star.png")
    assert (tmp_path / "star.png").stat().st_size > 0
    teff, _, vsini = figure.axes
    drawn = [patch.get_data().values for patch in teff.patches if hasattr(patch, "get_data")]
    for expected in (found.pmfs["teff"][0], found.pmfs["teff", "A"][0], found.pmfs["teff", "B"][0]):
        assert any(np.array_equal(values, expected) for values in drawn)
    assert "K" in teff.get_xlabel()
    assert vsini.get_xlim() == (0.0, 30.0)
    nothing = found.plot(1)
    assert [axis.get_title(loc="right") for axis in nothing.axes] == ["no prediction"] * 3
    found.plot(-1, path=tmp_path / "odd.svg")  # its name is no text
    with pytest.raises(IndexError, match="expected a row of a catalogue of 6, found 6"):
        found.plot(6)


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


@pytest.mark.parametrize("name", ["out.fits", "out.ecsv", "out.vot"])
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


@pytest.mark.parametrize("name", ["out.fits", "out.ecsv", "out.vot"])
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
    with pytest.raises(ValueError, match=r"end in \.fits, .* or \.parquet"):
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


FLAT = np.full((2, 4), 0.25)


def build(**changes):
    given = {
        "files": ["a", "b"],
        "pmfs": {"teff": FLAT},
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
        (
            {"pmfs": {"teff": FLAT, ("teff", "A"): FLAT[:1]}},
            r"label teff, arm A: expected PMFs \[2, K\], found shape \(1, 4\)",
        ),
        ({"pmfs": {"teff": FLAT, ("teff", "p16"): FLAT}}, "arm p16: there is a column teff_p16 already"),
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


def test_a_row_without_a_pmf_is_never_without_a_flag():
    pmf = np.full((3, 4), 0.25)
    pmf[1, 2] = np.nan
    pmf[2] = np.nan
    table = catalogue.build_catalogue(
        ["a", "b", "c"],
        {"teff": pmf},
        {"teff": np.linspace(4000, 6000, 5)},
        units={"teff": "K"},
        flags=np.array([0, 0, Flag.UNREADABLE]),
        snr=np.ones(3),
        arms={"A": np.ones(3, bool)},
        messages=["", "", "no file"],
    )
    assert list(table["flags"]) == [0, Flag.UNREADABLE | Flag.NOT_FINITE, Flag.UNREADABLE]
    assert list(table["message"]) == ["", "the PMF is not finite", "no file"]


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
    with pytest.raises(ValueError, match=r"image\.fits: expected the table CATALOG .* found \[\]"):
        catalogue.read_catalogue(tmp_path / "image.fits")
    for name in ("text.vot", "text_pmf.vot"):
        (tmp_path / name).write_text("<VOTABLE><RESOURCE>")
    with pytest.raises(ValueError, match=r"text\.vot: expected a catalogue in VOTable"):
        catalogue.read_catalogue(tmp_path / "text.vot")
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
