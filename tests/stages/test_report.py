"""What a report is gathered from: which stars have cards, which labels are compared, and whose spectra are shown."""

import re
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.predict.arms import ArmInputs
from remap.predict.catalogue import describe
from remap.report.html import Neighbour
from remap.spectra import air_to_vacuum
from remap.stages.report import (
    ReportSettings,
    choose_cards,
    known_from_table,
    known_labels,
    labelled_lines,
    make_report,
    observed_spectra,
    report_settings,
    survey_spectra,
)
from remap.store.stars import labelled_rows, readable_stars

pytest.importorskip("jinja2", reason="needs Jinja2 (extra `report`)")
ARMS = ("A", "B")


@pytest.fixture(scope="module")
def survey(tiny_predictor, tiny_data):
    """The spectra of the survey's files, as the networks take them, and their catalogue."""
    files = sorted((tiny_data / "survey" / "spectra").glob("*.fits"))
    observed = tiny_predictor.observe_files(files)
    return observed, tiny_predictor.predict_observed(observed)


def test_small_catalogues_have_all_cards_and_large_ones_flagged_stars_first():
    flags = np.zeros(1000, np.int32)
    flags[:500] = 8  # a common flag
    flags[[7, 700]] |= 64  # a rare one
    values = np.linspace(4000, 7000, 1000)
    assert choose_cards(flags[:30], describe(), values[:30], 30) == list(range(30))
    chosen = np.array(choose_cards(flags, describe(), values, 30))
    assert chosen.size == 30
    assert np.all(np.diff(chosen) > 0)
    assert {7, 700} <= set(chosen)
    assert np.count_nonzero(flags[chosen]) == 20
    clean = values[chosen[flags[chosen] == 0]]
    assert clean.min() < 5600 < 6900 < clean.max()  # spread over all that is there
    assert choose_cards(flags, describe(), values, 0) == []
    assert len(choose_cards(np.full(50, 1, np.int32), describe(), values[:50], 12)) == 12
    assert len(choose_cards(np.zeros(50, np.int32), describe(), values[:50], 12)) == 12


def test_settings_are_those_of_the_config_or_the_defaults():
    assert report_settings({}) == ReportSettings()
    assert report_settings({"report": {"cards": 3, "lines": 1}}) == ReportSettings(cards=3, lines=1)
    with pytest.raises(ConfigError, match="cards must be at least 0, found -1"):
        ReportSettings(cards=-1)


def test_known_lines_are_named_where_they_are(tiny_predictor):
    lines = labelled_lines(tiny_predictor, 8)
    names = {round(line.wave, 2): line.name for line in lines}
    assert names[5167.32] == "Mg b"
    assert names[5183.6] == "Mg b"
    assert all(5000 < line.wave < 5240 for line in lines)
    for low, high in tiny.ARMS.values():
        inside = np.array([line.wave for line in lines if low < line.wave < high])
        assert 4 <= inside.size <= 8
        assert np.diff(inside).min() > (high - low) / 40  # names can be read
    assert set(names.values()) - {"Mg b"} <= {
        "Fe I",
        "Fe II",
        "Ti I",
        "Ti II",
        "Cr I",
        "Ni I",
        "Mg I",
        "Ca I",
    }
    medium = tiny_predictor.preprocessing.medium
    assert medium == "air"
    assert air_to_vacuum(np.array([5167.32]))[0] > 5168


def test_a_report_shows_every_star_with_its_spectra(tiny_predictor, tiny_workdir, survey, tmp_path):
    observed, catalogue = survey
    near = {0: [Neighbour(name="a reference", distance=0.25, labels={"teff": 5000.0})]}
    path = make_report(
        tmp_path / "report.html",
        catalogue,
        predictor=tiny_predictor,
        spectra=observed_spectra(catalogue, observed, in_order=True),
        workdir=tiny_workdir,
        neighbours=near,
    )
    text = path.read_text()
    cards = dict(zip(*[iter(re.split(r'<details class="card" id="card-(\d+)">', text)[1:])] * 2, strict=True))
    assert len(cards) == len(catalogue.table) == 24
    for row, card in cards.items():
        arms = catalogue.table["arms"][int(row)]
        drawn = len(re.findall("flux, normalised flux and saliency", card))
        assert drawn == (len(arms.split(",")) if arms else 0)
        assert ('<span class="key lib"></span>library: Teff ' in card) == bool(arms)
        assert ("K per 1 % · Å" in card) == bool(arms)
    assert "a reference" in cards["0"]
    assert "UNREADABLE" in cards[str(list(catalogue.table["file"]).index("truncated.fits"))]
    assert "Catalogue of 24 stars" in text
    few = make_report(tmp_path / "few.html", catalogue, settings=ReportSettings(cards=2), title="few")
    assert few.read_text().count('<details class="card"') == 2


def test_spectra_are_found_by_name(survey):
    observed, catalogue = survey
    rows = observed_spectra(catalogue, observed).rows
    np.testing.assert_array_equal(rows, np.arange(24))
    other = catalogue._replace(table=catalogue.table[::-1])
    np.testing.assert_array_equal(observed_spectra(other, observed).rows, np.arange(24)[::-1])


def test_prepared_spectra_are_taken_for_the_same_star_alone(tiny_workdir, survey):
    catalogue = survey[1]
    found = survey_spectra(tiny_workdir, catalogue, ARMS)
    stars = readable_stars(tiny_workdir)
    names = [str(f) for f in catalogue.table["file"]]
    for name, row in zip(names, found.rows, strict=True):
        assert (str(stars["file"][row]) == name) if row >= 0 else name == "truncated.fits"
    assert isinstance(found.arms["A"], ArmInputs)
    # A file of another survey with the same name has another signal-to-noise ratio.
    table = catalogue.table.copy()
    table["snr"][:] = table["snr"] * 1.5
    assert survey_spectra(tiny_workdir, catalogue._replace(table=table), ARMS) is None


def test_stars_that_trained_the_networks_are_not_compared(tiny_workdir, survey, tmp_path):
    catalogue = survey[1]
    found = known_labels(tiny_workdir, catalogue, ARMS)
    assert set(found.groups) <= {"giants", "other"}  # fine-tuning took all dwarfs
    np.testing.assert_allclose(np.sort(found.known["teff"])[:2], [4700.0, 5100.0])
    assert "belong to none of their folds" in found.note
    assert known_labels(tmp_path, catalogue, ARMS) is None

    # As predicted by the networks of their own folds, where `launch.evaluate` has run.
    workdir = tmp_path / "evaluated"
    shutil.copytree(tiny_workdir, workdir)
    stars = readable_stars(workdir)
    rows = [list(catalogue.table["file"]).index(str(f)) for f in stars["file"]]
    held = catalogue._replace(
        table=catalogue.table[rows], pmfs={k: p[rows] for k, p in catalogue.pmfs.items()}
    )
    held.table["teff"] += 1.0
    held.write(workdir / "evaluate" / "finetune.fits")
    found = known_labels(workdir, catalogue, ARMS)
    assert {"dwarfs", "giants"} <= set(found.groups)
    assert len(found.groups) > 18
    own = dict(zip(map(str, stars["file"]), held.table["teff"], strict=True))
    expected = [own[str(f)] for f in catalogue.table["file"] if str(f) in own]
    np.testing.assert_allclose(np.sort(found.predicted["teff"]), np.sort(expected)[: len(found.groups)])
    assert "did not train on it" in found.note
    few = labelled_rows(workdir, stars)
    assert len(few) == len(stars) - 2
    short = held._replace(table=held.table[few], pmfs={k: p[few] for k, p in held.pmfs.items()})
    short.write(workdir / "evaluate" / "finetune.fits", overwrite=True)
    again = known_labels(workdir, catalogue, ARMS)  # as it is written now: without stars that have no label
    for name, values in again.known.items():
        keep = np.isfinite(found.known[name])
        np.testing.assert_array_equal(values[np.isfinite(values)], found.known[name][keep])
        np.testing.assert_array_equal(again.predicted[name][np.isfinite(values)], found.predicted[name][keep])
    assert known_labels(workdir, catalogue._replace(meta={}), ARMS).note.startswith(
        "Stars of the networks' own survey that"
    )


def test_labels_of_a_table_are_compared_by_file(survey, tmp_path):
    catalogue = survey[1]
    table = tmp_path / "labels.csv"
    table.write_text("file,T,logg\ndwarf_03.fits,5000,4.5\nnot_there.fits,6000,4\ndwarf_01.fits,5100,4.4\n")
    found = known_from_table(table, catalogue, {"teff": "T"})
    names = list(catalogue.table["file"])
    expected = [catalogue.table["teff"][names.index(n)] for n in ("dwarf_01.fits", "dwarf_03.fits")]
    np.testing.assert_allclose(found.known["teff"], [5100, 5000])
    np.testing.assert_allclose(found.predicted["teff"], expected)
    with pytest.raises(ConfigError, match=r"not \['vsini'\]"):
        known_from_table(table, catalogue, {"vsini": "T"})
