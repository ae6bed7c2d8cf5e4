"""Figures of calibration and embeddings: what they show, and what they refuse."""

import numpy as np
import pytest

from remap import diagnostic_plots, metrics
from remap.diagnostic_plots import CalibrationFound

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
    diagnostic_plots.calibration_curves(
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
            diagnostic_plots.calibration_curves(tmp_path / "a.png", nothing, LEVELS, bins=10, confidence=0.9)
    assert not list(tmp_path.iterdir())
