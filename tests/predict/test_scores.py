"""A catalogue against known labels: the numbers of the plain functions, whatever the labels come in."""

import numpy as np
import pytest
from astropy import units as u
from astropy.table import QTable, Table

import remap
from remap.config import ConfigError
from remap.pmf import coverage, crps, normal_pmf, residual_table
from remap.predict.catalogue import Catalogue, Flag, build_catalogue
from remap.predict.scores import evaluate
from remap.spectra import SpectrumError

EDGES = {"teff": np.linspace(4000.0, 6000.0, 41), "feh": np.linspace(-1.0, 0.5, 31)}
STARS = 60
HOW = {"resamples": 50}


@pytest.fixture(scope="module")
def known():
    """Labels, their errors as they are in fact, and PMFs whose widths are right."""
    rng = np.random.default_rng(1)
    truth = {"teff": rng.uniform(4500, 5500, STARS), "feh": rng.uniform(-0.7, 0.2, STARS)}
    sigma = {"teff": 80.0, "feh": 0.08}
    own = {k: v + rng.normal(0, sigma[k], STARS) for k, v in truth.items()}
    pmfs = {k: normal_pmf(own[k], np.full(STARS, sigma[k]), EDGES[k]) for k in truth}
    for pmf in pmfs.values():
        pmf[3] = np.nan
    flags = np.zeros(STARS, int)
    flags[3], flags[5] = Flag.UNREADABLE, Flag.LOW_SNR
    table = build_catalogue(
        [f"s{i:02d}.fits" for i in range(STARS)],
        pmfs,
        EDGES,
        units={"teff": "K", "feh": "dex"},
        flags=flags,
        snr=np.full(STARS, 50.0),
        arms={"A": np.ones(STARS, bool)},
        star_ids=[f"S{i // 2}" for i in range(STARS)],
    )
    errors = {"teff": np.full(STARS, 50.0), "feh": np.full(STARS, 0.03)}
    labels = {k: v + rng.normal(0, errors[k]) for k, v in truth.items()}
    labels |= {f"{k}_err": v for k, v in errors.items()}
    labels["file"] = table["file"].tolist()
    return Catalogue(table, pmfs, EDGES, {}), Table(labels)


def test_the_numbers_are_those_of_the_plain_functions(known):
    catalogue, labels = known
    found = remap.evaluate(catalogue, labels, **HOW)
    assert list(found["label"]) == ["teff", "feh"]
    assert list(found["unit"]) == ["K", "dex"]
    for row in found:
        label = row["label"]
        truth, errors = labels[label].data, labels[f"{label}_err"].data
        expected = residual_table(catalogue.table[label], truth)
        for name, same in (("bias", "bias"), ("scatter", "robust"), ("std", "std"), ("slope", "slope")):
            assert row[name] == pytest.approx(expected[same], rel=1e-9)
        pmf, edges = catalogue.pmfs[label], EDGES[label]
        levels = (0.68, 0.95)
        assert (row["cover68"], row["cover95"]) == pytest.approx(tuple(coverage(pmf, edges, truth, levels)))
        star = coverage(pmf, edges, truth, levels, errors)
        assert (row["cover68_star"], row["cover95_star"]) == pytest.approx(tuple(star))
        assert row["crps"] == pytest.approx(np.nanmean(crps(pmf, edges, truth)))
        assert (row["n"], row["stars"], row["lost"]) == (59, 30, 1)
        for name in ("bias", "scatter", "std", "slope", "cover68", "cover95", "crps", "scatter_star"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert row[f"{name}_low"] < row[f"{name}_high"]
        assert row["scatter_star"] < row["scatter"]
    again = remap.evaluate(catalogue, labels, **HOW)
    assert all(np.array_equal(found[name], again[name]) for name in found.colnames)
    assert all(found[name].description for name in found.colnames[2:])


def test_labels_come_in_many_forms(known, tmp_path):
    catalogue, labels = known
    expected = evaluate(catalogue, labels, **HOW)["bias"].tolist()
    rows = np.random.default_rng(0).permutation(STARS)
    shuffled = Table(labels[rows])
    shuffled.add_row({"file": "another.fits", "teff": 9000.0, "feh": 0.0, "teff_err": 1.0, "feh_err": 1.0})
    kelvin = QTable(labels)
    kelvin["teff"] = (labels["teff"].data / 1000) * u.kK
    kelvin["teff_err"] = (labels["teff_err"].data / 1000) * u.kK
    kelvin["feh"] = labels["feh"].data * u.dex
    shuffled.write(tmp_path / "labels.csv")
    bare = Table(
        {"file": [f"/data/{name}" for name in labels["file"]], "T": labels["teff"], "feh": labels["feh"]}
    )
    plain = {name: labels[name].tolist() for name in ("teff", "feh")}
    for each, more in (
        (shuffled, {}),
        (kelvin, {}),
        (tmp_path / "labels.csv", {}),
        (str(tmp_path / "labels.csv"), {}),
        (plain, {}),
        (bare, {"columns": {"teff": "T"}}),
    ):
        found = evaluate(catalogue, each, **more, **HOW)
        assert found["bias"].tolist() == pytest.approx(expected, rel=1e-9)
    stars = {"star_id": [f"S{i}" for i in range(30)], "feh": np.zeros(30)}
    assert evaluate(catalogue, stars, **HOW)["n"].tolist() == [59]
    assert evaluate(catalogue, Frame(labels), **HOW)["bias"].tolist() == pytest.approx(expected)


class Frame:
    """What is used of a table of pandas."""

    def __init__(self, table):
        self.table, self.columns = table, list(table.colnames)

    def __getitem__(self, name):
        return self.table[name].tolist()

    def to_numpy(self):
        return np.array(self.table)


def test_unknown_labels_and_flagged_rows_are_left_out(known):
    catalogue, labels = known
    some = Table(labels, masked=True, copy=True)
    some["teff"].mask[:10] = True
    some["feh"][0] = np.nan
    some["feh_err"][:] = np.nan
    found = evaluate(catalogue, some, without=Flag.LOW_SNR, **HOW)
    assert found["n"].tolist() == [50, 57]  # the unreadable one is row 3, the noisy one row 5
    assert found["lost"].tolist() == [0, 1]
    assert np.isnan(found["scatter_star"][1])
    assert np.isnan(found["cover68_star"][1])
    without = labels["file", "teff"]
    assert np.isnan(evaluate(catalogue, without, **HOW)["cover95_star"]).all()
    nothing = Table(labels, copy=True)
    nothing["teff"] = np.nan
    found = evaluate(catalogue, nothing, **HOW)
    assert found["n"][0] == 0
    assert np.isnan(found["bias"][0])
    assert np.isfinite(found["bias"][1])


def test_placeholders_are_no_labels_and_gravities_may_say_their_unit(known, caplog):
    catalogue, labels = known
    some = Table(labels, copy=True)
    some["teff"][:10], some["feh"][7:9], some["teff_err"][20:] = -9999.0, 99.99, -9999.0
    found = evaluate(catalogue, some, **HOW)
    assert found["n"].tolist() == [50, 57]
    assert "10 values are -9999, which no teff is: taken as not known" in caplog.text
    hidden = Table(labels, masked=True, copy=True)
    hidden["teff"].mask[:10] = hidden["feh"].mask[7:9] = hidden["teff_err"].mask[20:] = True
    assert found["bias", "scatter_star"].as_array().tolist() == (
        evaluate(catalogue, hidden, **HOW)["bias", "scatter_star"].as_array().tolist()
    )
    plain = np.asarray(labels["feh"])
    edges = {"logg": EDGES["feh"]}
    table = Table({"file": catalogue.table["file"], "logg": catalogue.table["feh"]})
    gravities = Catalogue(table, {"logg": catalogue.pmfs["feh"]}, edges, {})
    for unit in (None, "dex", "dex(cm / s2)"):
        given = Table({"file": labels["file"], "logg": plain})
        given["logg"].unit = unit
        assert evaluate(gravities, given, **HOW)["bias"][0] == found_bias(catalogue, labels)
    given["logg"].unit = "cm / s2"
    with pytest.raises(SpectrumError, match="expected 'logg' in dex, found the unit 'cm / s2'"):
        evaluate(gravities, given, **HOW)


def found_bias(catalogue, labels):
    return evaluate(catalogue, labels["file", "feh"], **HOW)["bias"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 3}, "expected a table, a mapping of columns or a file, found int"),
        ({"labels": {"vsini": np.zeros(STARS)}}, r"expected some of the columns \['teff', 'feh'\]"),
        ({"labels": {"teff": np.zeros(3)}}, "expected a column file or star_id, or 60 rows, found 3"),
        ({"labels": {"star_id": ["S1", "S1"], "teff": [1, 2]}}, "expected one row for star_id 'S1'"),
        ({"labels": {"star_id": ["X"], "teff": [1.0]}}, "found no star_id of theirs among 1"),
        ({"labels": {"teff": np.zeros(STARS) * u.m}}, "expected teff as numbers in K"),
        ({"labels": {"teff": ["x"] * STARS}}, "expected teff as numbers in K"),
        ({"labels": {"teff": np.zeros(STARS)}, "on": "name"}, "labels: expected a column name"),
        ({"columns": {"vsini": "v"}}, r"has the labels \['teff', 'feh'\], not \['vsini'\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(known, change, message):
    catalogue, labels = known
    with pytest.raises(ConfigError, match=message):
        evaluate(catalogue, **({"labels": labels} | change))


def test_a_file_that_is_no_table(known, tmp_path):
    (tmp_path / "labels.fits").write_text("nothing")
    with pytest.raises(ConfigError, match=r"labels\.fits: expected a table of labels"):
        evaluate(known[0], tmp_path / "labels.fits")
    with pytest.raises(FileNotFoundError):
        evaluate(known[0], tmp_path / "absent.csv")
