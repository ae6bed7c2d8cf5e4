"""Figures of calibration and embeddings: what they show, and what they refuse."""

import numpy as np
import pytest

from remap.pmf import metrics
from remap.report import reliability
from remap.report.maps import embedding_maps
from remap.report.reliability import CalibrationFound

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

LEVELS = tuple(i / 20 for i in range(1, 20))
EDGES = np.linspace(-8, 8, 161)
STARS = 2000


def normal_pmfs(centre, sigma):
    from scipy.stats import norm

    cdf = norm.cdf(EDGES[None], np.reshape(centre, (-1, 1)), sigma)
    return np.diff(cdf, axis=1) / (cdf[:, -1:] - cdf[:, :1])


def found(width):
    """Predictions of unit scatter whose PMFs claim that it is `width`."""
    rng = np.random.default_rng(2)
    truth = rng.normal(0, 1, STARS)
    pmf = normal_pmfs(truth + rng.normal(0, 1, STARS), width)
    transform = metrics.pit(pmf, EDGES, truth)
    return CalibrationFound(transform, metrics.coverage(pmf, EDGES, truth, LEVELS))


def test_calibration_curves_of_a_known_distribution(tmp_path, figures):
    """PMFs of the right width lie within the bands; of half the width, coverage is that of the normal: erf."""
    from scipy.special import erfinv
    from scipy.stats import norm

    curves = {"right": found(1.0), "narrow": found(0.5)}
    empty = {"right": CalibrationFound(np.full(3, np.nan), np.full(19, np.nan))}
    reliability.calibration_curves(
        tmp_path / "new" / "a.png",
        {"dwarfs": {"teff": curves, "feh": empty}, "giants": {"teff": curves, "feh": curves}},
        LEVELS,
        bins=10,
        confidence=0.999,
        title="T",
    )
    (figure,) = figures
    assert (tmp_path / "new" / "a.png").stat().st_size > 10_000
    axes = np.reshape(figure.axes, (4, 2))
    assert axes[0, 0].get_title() == r"dwarfs: $T_\mathrm{eff}$ (2000)"
    assert axes[0, 1].texts[0].get_text() == axes[1, 1].texts[0].get_text() == "no star"
    histogram, curve = axes[:2, 0]
    right, narrow = (p for p in histogram.patches if hasattr(p, "get_data"))  # the stairs
    low, high = (v[0] * 10 for v in metrics.binomial_band([0.1], STARS, confidence=0.999))
    assert np.all((right.get_data().values >= low) & (right.get_data().values <= high))
    assert right.get_data().values.mean() == pytest.approx(1)
    assert narrow.get_data().values[[0, -1]].min() > high  # heaped at both ends
    lines = {line.get_label(): line for line in curve.lines}
    band = metrics.binomial_band(LEVELS, STARS, confidence=0.999)
    assert np.all((lines["right"].get_ydata() >= band[0]) & (lines["right"].get_ydata() <= band[1]))
    expected = 2 * norm.cdf(0.5 * np.sqrt(2) * erfinv(LEVELS)) - 1  # half as wide: z of each level halved
    np.testing.assert_allclose(lines["narrow"].get_ydata(), expected, atol=4 * 0.5 / np.sqrt(STARS))
    texts = [t.get_text() for t in histogram.get_legend().get_texts()]
    assert texts == [f"{name}, KS {metrics.uniform_distance(c.pit):.2f}" for name, c in curves.items()]
    assert float(texts[0][-4:]) < 1.95 / np.sqrt(STARS) + 0.005 < float(texts[1][-4:])


def test_calibration_curves_need_a_group_and_a_label(tmp_path):
    for nothing in ({}, {"dwarfs": {}}):
        with pytest.raises(ValueError, match="at least one group and label"):
            reliability.calibration_curves(tmp_path / "a.png", nothing, LEVELS, bins=10, confidence=0.9)
    assert not list(tmp_path.iterdir())


def maps(places, values):
    """What a figure of one column and one row needs."""
    note = {"epoch 0": {"training": "a note"}}
    return {"maps": {"epoch 0": {"training": places}}, "values": {"training": values}, "notes": note}


def test_embedding_maps_share_colours_and_limits_and_mark_unknown_labels(tmp_path, figures):
    rng = np.random.default_rng(0)
    rows = {
        "training": np.append(rng.uniform(4000, 6000, 30), np.nan),
        "validation": rng.uniform(5000, 7000, 20),
    }
    columns = {
        name: {row: scale * rng.normal(size=(len(v), 2)) for row, v in rows.items()}
        for name, scale in (("epoch 0", 1.0), ("epoch 25", 50.0))
    }
    notes = {name: {row: f"{name} {row}" for row in rows} for name in columns}
    embedding_maps(tmp_path / "a.png", columns, rows, label="teff", unit="K", notes=notes, title="T")
    (figure,) = figures
    panels = [axis for axis in figure.axes if axis.collections and axis.get_label() != "<colorbar>"]
    assert [axis.get_title() for axis in panels] == [f"{c} {r}" for r in rows for c in columns]
    known = np.concatenate(list(rows.values()))
    for axis, (row, column) in zip(panels, [(r, c) for r in rows for c in columns], strict=True):
        (points,) = axis.collections
        assert points.get_clim() == (np.nanmin(known), np.nanmax(known))
        places, values = columns[column][row], rows[row]
        drawn = sorted(zip(points.get_array(), *points.get_offsets().T, strict=True))
        expected = sorted(v for v in zip(values, *places.T, strict=True) if np.isfinite(v[0]))
        np.testing.assert_allclose(drawn, expected)
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), places[np.isnan(values)])
    assert panels[0].get_xlim() == panels[2].get_xlim() != panels[1].get_xlim()
    assert figure.axes[-1].get_ylabel() == r"$T_\mathrm{eff}$ [K]"


@pytest.mark.parametrize(
    ("places", "values", "message"),
    [
        (np.zeros((3, 2)), np.full(3, np.nan), "expected maps of spectra with a known teff, found none"),
        (np.zeros((3, 2)), np.ones(4), r"epoch 0: expected places \[S, 2\].*found .*\(3, 2\)"),
        (np.zeros((3, 3)), np.ones(3), r"epoch 0: expected places \[S, 2\].*found .*\(3, 3\)"),
    ],
)
def test_embedding_maps_refuse_what_does_not_fit(tmp_path, places, values, message):
    with pytest.raises(ValueError, match=message):
        embedding_maps(tmp_path / "a.png", **maps(places, values), label="teff", unit="K")
    assert not list(tmp_path.iterdir())
