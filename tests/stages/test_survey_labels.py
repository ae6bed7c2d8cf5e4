"""Files of a survey and the rows of its label table, through the stage that joins them."""

import shutil
import unicodedata

import pytest
from astropy.table import Table
from helpers import tiny

from remap.spectra import SpectrumError
from remap.stages.preprocess import preprocess
from remap.store.stars import read_stars

TEFF = {"first": tiny.DWARFS[0][2], "second": tiny.DWARFS[1][2]}


@pytest.fixture
def prepared(tmp_path, tiny_data):
    """Prepares a survey of two stars whose files and names in the label table are given; gives file -> Teff."""

    def run(first, second, table, match=None):
        data = tiny.small_survey(tmp_path / "data", tiny_data)
        for star, name in zip(tiny.DWARFS, (first, second), strict=False):
            path = data / "survey" / "spectra" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_data / "survey" / "spectra" / star[0], path)
        labels = Table.read(data / "survey" / "labels.ecsv")[:2]
        labels["file"] = list(table)
        labels.write(data / "survey" / "labels.ecsv", overwrite=True)
        config = tiny.config(data, survey__patterns=("**/*.fits",))
        with config.unlocked():
            config.survey.labels.match = match
        preprocess(config, tmp_path / "work")
        stars = read_stars(tmp_path / "work")
        return dict(zip(map(str, stars["file"]), map(float, stars["teff"]), strict=True))

    return run


@pytest.mark.parametrize(
    ("files", "table"),
    [
        (("1.fits", "2.fits"), ("1", "2")),
        (("1.fits", "2.fits"), ("from/afar/1.fits", "from/afar/2.fits")),
        (("night/1.fits", "night/2.fits"), ("1.fits", "2.fits")),
        (("á.fits", "é.fits"), [unicodedata.normalize("NFD", name) for name in ("á.fits", "é.fits")]),
        ([unicodedata.normalize("NFD", name) for name in ("á.fits", "é.fits")], ("á.fits", "é.fits")),
    ],
)
def test_every_file_has_the_labels_of_its_row(prepared, files, table):
    found = prepared(*files, table)
    names = [name.removeprefix("night/") for name in files]
    assert found == {names[0]: TEFF["first"], names[1]: TEFF["second"]}


def test_files_of_one_name_are_told_apart_by_their_folders(prepared):
    found = prepared("1/star.fits", "2/star.fits", ("1/star.fits", "2/star.fits"))
    assert found == {"1/star.fits": TEFF["first"], "2/star.fits": TEFF["second"]}


def test_files_of_one_name_are_refused_where_the_table_has_no_folders(prepared):
    with pytest.raises(SpectrumError, match=r"one file for 'star.fits', found .*1/star.fits, .*2/star.fits"):
        prepared("1/star.fits", "2/star.fits", ("star.fits", "other.fits"))


def test_the_rule_of_the_config_is_kept(prepared):
    with pytest.raises(SpectrumError, match=r"one file for '1/star.fits'"):
        prepared("1/star.fits", "2/star.fits", ("1/star.fits", "2/star.fits"), match="name")
