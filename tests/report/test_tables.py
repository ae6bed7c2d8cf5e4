"""Tables of the report, against cases made by hand."""

import numpy as np
import pytest

from remap.report.tables import by_snr, table1


def test_by_snr_of_a_case_made_by_hand():
    """Low signal: predictions drawn halfway to 4. High signal: exact but 0.1 too high."""
    truth = np.array([3.0, 4.0, 5.0, 3.0, 4.0, 5.0, 6.0, 4.0])
    predicted = np.array([3.5, 4.0, 4.5, 3.1, 4.1, 5.1, 6.1, np.nan])
    snr = np.array([10.0, 29.9, 0.0, 30.0, 60.0, 80.0, 99.0, 40.0])
    low, high, none = by_snr(predicted, truth, np.full(8, 0.5), snr, (30.0, 100.0))
    assert [low["snr_low"], low["snr_high"], high["snr_high"], none["snr_high"]] == [0, 30, 100, np.inf]
    assert [low["n"], high["n"], none["n"]] == [3, 4, 0]
    assert low["prediction_slope"] == pytest.approx(0.5)
    assert high["prediction_slope"] == pytest.approx(1.0)
    assert [low["bias"], high["bias"]] == pytest.approx([0.0, 0.1])
    assert low["robust"] == pytest.approx(1.4826 * 0.5)
    assert [high["robust"], high["slope_error"]] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert low["attainable_slope"] == pytest.approx(1 - 0.25 / 1.0)  # variance of 3, 4, 5
    assert high["attainable_slope"] == pytest.approx(1 - 0.25 / (5 / 3))
    assert np.isnan([none["bias"], none["prediction_slope"], none["robust"]]).all()


def test_stars_of_unknown_signal_are_a_row_of_their_own():
    truth = np.arange(4.0)
    rows = by_snr(truth + 1, truth, np.ones(4), np.array([np.nan, 5.0, np.nan, 50.0]), (10.0,))
    assert [r["n"] for r in rows] == [1, 1, 2]
    assert np.isnan([rows[2]["snr_low"], rows[2]["snr_high"]]).all()


@pytest.mark.parametrize("edges", [(0.0, 30.0), (60.0, 30.0), (30.0, 30.0), (30.0, np.inf)])
def test_impossible_edges_are_refused(edges):
    with pytest.raises(ValueError, match=r"evaluate\.snr_edges must be positive and increase, found"):
        by_snr(*np.ones((4, 3)), edges)


def test_no_edge_is_one_bin():
    (row,) = by_snr(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.zeros(2), np.array([5.0, 500.0]), ())
    assert (row["snr_low"], row["snr_high"], row["n"]) == (0.0, np.inf, 2)


def test_table1_shows_two_digits_of_the_scatter_and_quotes_others_as_given():
    rows = [
        {
            "stage": "finetune",
            "group": "dwarfs",
            "label": "teff",
            "n": 183,
            "bias": -3.8,
            "std": 133.4,
            "robust": 87.1,
        },
        {
            "stage": "finetune",
            "group": "dwarfs",
            "label": "vsini",
            "n": 1,
            "bias": 0.5,
            "std": np.nan,
            "robust": 0.0,
        },
        {
            "stage": "finetune",
            "group": "giants",
            "label": "teff",
            "n": 9,
            "bias": 1.26,
            "std": 8.0,
            "robust": 7.0,
        },
    ]
    text = table1(rows, units={"teff": "K", "vsini": ""}, quoted={"teff": (-10.0, 75.0)}, source="the paper")
    lines = [line for line in text.splitlines() if line.startswith(("##", "| teff", "| vsini"))]
    assert lines == [
        "## finetune, dwarfs",
        "| teff (K) | 183 | −4 K | 133 K | 87 K | −10 K | 75 K |",
        "| vsini | 1 | +0.50 | – | 0.00 | – | – |",
        "## finetune, giants",
        "| teff (K) | 9 | +1.3 K | 8.0 K | 7.0 K | −10 K | 75 K |",
    ]
    assert "quoted, not computed here" in text
    assert text.count("| quoted: μ_Δ | quoted: σ_Δ |") == 2
    assert "the paper" in text
