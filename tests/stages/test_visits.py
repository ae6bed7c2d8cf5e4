"""Visits of one star, whose identifiers change: on one side of every split, and one row where rows are joined."""

import logging
import shutil

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from helpers import tiny

from remap.sampling.folds import split_stars
from remap.stages.preprocess import preprocess
from remap.store.stars import read_stars

# arcsec of each file from the first: three visits of one star, a neighbour at 2, and stars from 100 on
AWAY = (0.0, 100.0, 1.2, 200.0, 0.6, 2.0, 300.0, 400.0)


@pytest.fixture
def prepared(tmp_path, tiny_data):
    """Prepares a survey whose identifiers are positions, or names; gives its stars by file."""

    def run(name, star_id, stars=None, join=False):
        data = tiny.small_survey(tmp_path / name, tiny_data)
        files = data / "survey" / "spectra"
        shutil.rmtree(files)
        files.mkdir()
        names = [f"{i}.fits" for i in range(len(AWAY))]
        for i, file in enumerate(names):
            shutil.copy(tiny_data / "survey" / "spectra" / tiny.DWARFS[0][0], files / file)
            told = {
                "RA": 10.0,
                "DEC": 20.0 + AWAY[i] / 3600,
                "DESIG": f"J{AWAY[i]}",
                "OBJECT": "alpha" if i < 2 else "",
            }
            for key, value in told.items():
                fits.setval(files / file, key, value=value, ext=1)
        labels = Table.read(tiny_data / "survey" / "labels.ecsv")[[0] * len(AWAY)]
        labels["file"] = names
        labels["star_id"] = stars or names
        labels.write(data / "survey" / "labels.ecsv", overwrite=True)
        config = tiny.config(data, observe__join=join)
        with config.unlocked():
            config.survey.source.facts = {"star_id": star_id, "ra": "RA", "dec": "DEC"}
            if stars is None:
                config.survey.labels.id_column = None
        preprocess(config, tmp_path / f"work {name}")
        return read_stars(tmp_path / f"work {name}")

    return run


POSITION = {"keyword": "DESIG", "within": 1.5}


def test_visits_are_on_one_side_of_every_split(prepared):
    plain, found = prepared("names", "DESIG"), prepared("positions", POSITION)
    assert list(plain["star_id"]) == [f"{i}.fits" for i in range(8)]
    # The neighbour's spectrum could be the star's, too, but is never its row.
    assert list(found["star_id"]) == ["J0.0", "J100.0", "J0.0", "J200.0", "J0.0", "J0.0", "J300.0", "J400.0"]
    one = np.isin(np.arange(8), (0, 2, 4, 5))
    for seed in range(20):
        for fold in range(2):
            sides = split_stars(found["star_id"], folds=2, fold=fold, validation=0.3, seed=seed)
            assert len(set(sides[one])) == 1
    rest = [name for name in plain.colnames if name != "star_id"]
    assert all(np.array_equal(plain[name], found[name]) for name in rest if plain[name].dtype.kind != "f")


def test_what_the_table_calls_stars_is_joined_and_visits_stay_on_one_side(prepared):
    stars = ["a", "b", "a", "c", "d", "e", "f", "g"]
    found = prepared("named", POSITION, stars=stars, join=True)
    assert list(found["file"]) == [
        "0.fits+2.fits",
        "1.fits",
        "3.fits",
        "4.fits",
        "5.fits",
        "6.fits",
        "7.fits",
    ]
    assert list(found["star_id"]) == ["a", "b", "c", "a", "a", "f", "g"]


def test_visits_are_joined_by_position(prepared):
    # Where 2.0 lies 0.8 from 1.2, nobody can say who is who: identifiers decide.
    assert len(prepared("chain", POSITION, join=True)) == 8
    found = prepared("near", POSITION | {"within": 2.0}, join=True)
    assert list(found["file"]) == ["0.fits+2.fits+4.fits+1 more", "1.fits", "3.fits", "6.fits", "7.fits"]


def test_names_that_the_table_does_not_have_are_told(prepared, caplog):
    with caplog.at_level(logging.WARNING, logger="remap"):
        found = prepared("told", "OBJECT")
    assert list(found["star_id"]) == [f"{i}.fits" for i in range(8)]
    assert (
        "1 labelled files say that they are of a star that another one is of, too (such as 'alpha')"
        in caplog.text
    )
