"""The first answer: every spectrum that comes with a network, moved and noisy, found again; the same each time."""

import numpy as np
import pytest

from remap.predict.catalogue import Flag
from remap.predict.release import load
from remap.stages.first import FASTEST, first_answer


def test_a_row_for_every_spectrum_at_its_own_velocity():
    found = first_answer("fgk_r1800")
    table, known = found.catalogue.table, found.known
    templates = load("fgk_r1800", references=False).templates
    assert len(table) == len(known) == len(templates.labels)
    np.testing.assert_array_equal(known["teff"], templates.labels[:, 0])
    assert np.abs(known["rv"]).max() <= FASTEST
    assert np.std(known["rv"]) > 50
    assert np.median(np.abs(table["rv"] - known["rv"])) < 3
    assert not np.any(table["flags"] & (Flag.UNREADABLE | Flag.RESOLUTION))  # their width is told
    assert list(found.summary["label"]) == ["teff", "logg", "feh", "rv"]
    assert np.all(found.summary["robust"] < [150, 0.4, 0.3, 3])
    again = first_answer("fgk_r1800")
    np.testing.assert_array_equal(again.catalogue.table["teff"], table["teff"])
    assert not np.array_equal(first_answer("fgk_r1800", seed=1).known["rv"], known["rv"])


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nobody: expected"):
        first_answer("nobody")
