"""A survey is prepared some rows at a time: the files are those of all at once, and nothing is left beside them."""

import numpy as np
from helpers import tiny

from remap.stages.preprocess import preprocess
from remap.store import rows
from remap.store.workdir import load_survey


def content(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "data").glob("survey_*.npz")}


def test_the_number_of_rows_in_memory_changes_nothing(tiny_data, tiny_prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 3)
    for name, join in (("plain", False), ("joined", True)):
        preprocess(tiny.config(tiny_data, observe__join=join), tmp_path / name)
        assert not list((tmp_path / name / "data").glob(".*"))
    assert content(tmp_path / "plain") == content(tiny_prepared)
    monkeypatch.setattr(rows, "BLOCK", 1000)
    preprocess(tiny.config(tiny_data, observe__join=True), tmp_path / "at once")
    assert content(tmp_path / "joined") == content(tmp_path / "at once")
    assert len(load_survey(tmp_path / "joined", "A")[1]) < len(load_survey(tiny_prepared, "A")[1])


def test_a_survey_stays_in_its_file_but_for_the_rows_that_are_trained_on(tiny_prepared):
    survey, _ = load_survey(tiny_prepared, "A")
    for array in (survey.flux, survey.valid):
        base = array
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert base is not None
