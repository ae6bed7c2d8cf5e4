"""Comparison of candidates by hand-made fold losses."""

import numpy as np
import pytest

from remap.studies.comparison import Candidate, FoldLoss, Result, compare, mean_and_error


def result(name, losses, parameters):
    return Result(Candidate(name, {}), tuple(FoldLoss(loss, parameters, 2.0) for loss in losses))


def test_means_and_paired_differences_by_hand():
    """A fold that is hard for all spreads the losses, not the differences."""
    large = result("large", (1.0, 2.0, 6.0), 100)
    small = result("small", (1.3, 1.9, 6.1), 10)  # differences 0.3, -0.1, 0.1: mean 0.1, error 0.2 / sqrt(3)
    tiny = result("tiny", (1.2, 2.2, 6.2), 1)  # differences 0.2 without spread: worse for certain
    found = compare([tiny, small, large], 3)
    assert (found.best, found.smallest) == ("large", "small")
    rows = {row["name"]: row for row in found.rows}
    assert rows["large"]["mean"] == pytest.approx(3.0)
    assert rows["large"]["std"] == pytest.approx(np.sqrt(7))
    assert rows["large"]["error"] == pytest.approx(np.sqrt(7 / 3))
    assert rows["large"]["difference"] == 0
    assert rows["small"]["difference"] == pytest.approx(0.1)
    assert rows["small"]["difference_error"] == pytest.approx(0.2 / np.sqrt(3))
    assert rows["tiny"]["difference"] == pytest.approx(0.2)
    assert rows["tiny"]["difference_error"] == pytest.approx(0.0, abs=1e-12)
    assert [row["seconds"] for row in found.rows] == [6.0] * 3
    assert [row["parameters"] for row in found.rows] == [1, 10, 100]


def test_of_equally_small_ones_the_better_is_taken():
    found = compare(
        [result(n, v, 5) for n, v in {"b": (1.1, 2.0), "a": (1.0, 2.0), "c": (1.0, 2.1)}.items()], 2
    )
    assert (found.best, found.smallest) == ("a", "a")


def test_stopped_and_diverged_candidates_get_a_row_and_are_not_chosen():
    whole = result("whole", (2.0, 3.0, 4.0), 9)
    stopped = result("stopped", (1.0, 1.0), 1)
    diverged = result("diverged", (1.0, float("inf")), 1)
    found = compare([stopped, diverged, whole], 3)
    assert (found.best, found.smallest) == ("whole", "whole")
    rows = {row["name"]: row for row in found.rows}
    assert [rows[n]["folds"] for n in ("whole", "stopped", "diverged")] == [3, 2, 1]
    assert rows["stopped"]["difference"] == pytest.approx(-1.5)
    assert rows["diverged"]["mean"] == np.inf
    assert np.isnan(rows["diverged"]["std"])
    with pytest.raises(ValueError, match=r"all 3 folds, found none of \['stopped', 'diverged'\]"):
        compare([stopped, diverged], 3)


def test_one_value_has_no_error():
    mean, error = mean_and_error(np.array([2.0]))
    assert mean == 2.0
    assert np.isnan(error)
