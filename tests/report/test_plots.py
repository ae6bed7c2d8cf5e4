"""Figures: that they are written, hold what they should, and refuse what does not fit."""

import subprocess
import sys

import numpy as np
import pytest
from astropy.table import Table

from remap.pmf import distributions, metrics
from remap.report import plots

pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")

UNITS = {"teff": "K", "alpha_m": ""}


def assert_image(path, figure):
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[:2] == tuple(round(150 * size) for size in figure.get_size_inches()[::-1])
    assert pixels[..., :3].std() > 0.02  # not blank


def stars(count=60):
    rng = np.random.default_rng(0)
    truth = {"teff": rng.uniform(4000, 7000, count), "alpha_m": rng.normal(0, 0.2, count)}
    scale = {"teff": 75, "alpha_m": 0.05}
    predicted = {k: v + scale[k] * rng.standard_normal(count) for k, v in truth.items()}
    p16 = {k: v - scale[k] for k, v in predicted.items()}
    p84 = {k: v + scale[k] for k, v in predicted.items()}
    return truth, predicted, p16, p84


def test_one_to_one(tmp_path, figures):
    truth, predicted, p16, p84 = stars()
    predicted["teff"][:3] = [np.nan, np.inf, truth["teff"][2] + 3000]
    groups = np.where(np.arange(60) % 3 > 0, "dwarf", "giant")
    path = tmp_path / "new" / "one.png"
    plots.one_to_one(
        path, truth, predicted, p16, p84, labels=list(UNITS), units=UNITS, groups=groups, title="T"
    )
    (figure,) = figures
    assert_image(path, figure)
    assert len(figure.axes) == 4
    top, bottom = figure.axes[0], figure.axes[2]
    assert top.get_xlim() == top.get_ylim()
    assert top.get_ylabel().endswith("[K]")
    assert "[" not in figure.axes[1].get_ylabel()  # no unit
    for text in top.get_legend().get_texts():
        name = text.get_text().split(":")[0]
        table = metrics.residual_table(predicted["teff"][groups == name], truth["teff"][groups == name])
        digits = max(0, 1 - int(np.floor(np.log10(table["std"]))))
        assert text.get_text() == (
            f"{name}: {table['bias']:+.{digits}f} ± {table['std']:.{digits}f}, "
            f"robust {table['robust']:.{digits}f} ({table['n']})"
        ).replace("-", "−")
    limit = bottom.get_ylim()[1]
    assert 75 * 3 < limit < 1000  # the wild star does not set the scale, but stays in sight
    triangles = [line for line in bottom.lines if line.get_marker() == "^" and line.get_xdata().size]
    assert [line.get_xdata().tolist() for line in triangles] == [[truth["teff"][2]]]
    assert triangles[0].get_ydata()[0] < limit


@pytest.mark.parametrize("suffix", [".pdf", ".svg"])
def test_one_to_one_of_nothing_known(tmp_path, suffix):
    nothing = {"teff": np.full(3, np.nan)}
    path = tmp_path / f"one{suffix}"
    plots.one_to_one(path, nothing, nothing, nothing, nothing, labels=["teff"], units=UNITS)
    assert path.stat().st_size > 1000


def test_groups_are_drawn_with_their_names_and_rows_of_none_are_left_out(tmp_path, monkeypatch):
    columns = {"teff": [1.0, 2.0, 3.0], "teff_p16": [0.5, 1.5, 2.5], "teff_p84": [1.5, 2.5, 3.5]}
    table, stars = Table(columns), Table({"teff": [1.1, 2.1, 3.1]})
    table["teff"].unit = "K"
    drawn = []
    monkeypatch.setattr(plots, "one_to_one", lambda *a, **kw: drawn.append((a, kw)))
    members = {"dwarfs": np.array([True, False, True]), "cool": np.array([False, False, True])}
    path = tmp_path / "a.png"
    plots.groups_one_to_one(path, table, stars, members, labels=["teff"], title="all")
    ((_, *values), options) = drawn.pop()
    assert [v["teff"].tolist() for v in values] == [[1.1, 3.1], [1.0, 3.0], [0.5, 2.5], [1.5, 3.5]]
    assert options == {
        "labels": ["teff"],
        "units": {"teff": "K"},
        "groups": ["dwarfs", "cool"],
        "title": "all",
    }
    plots.groups_one_to_one(path, table, stars, {"none": np.zeros(3, bool)}, labels=["teff"], title="")
    assert not drawn


def test_one_to_one_refuses_what_does_not_fit(tmp_path):
    truth, predicted, p16, p84 = stars()
    short = p84 | {"alpha_m": p84["alpha_m"][:5]}
    with pytest.raises(ValueError, match=r"label alpha_m: expected arrays of 60 stars, found .*\(5,\)"):
        plots.one_to_one(tmp_path / "a.png", truth, predicted, p16, short, labels=list(UNITS), units=UNITS)
    with pytest.raises(ValueError, match="at least one label"):
        plots.one_to_one(tmp_path / "a.png", truth, predicted, p16, p84, labels=[], units=UNITS)
    assert not list(tmp_path.iterdir())


def records(cycles=3, length=10):
    out = []
    for epoch in range(1, cycles * length + 1):
        phase = (epoch - 1) % length
        warm = min(1, (phase + 1) / 3)  # a warm-up must not count as many ends
        rate = 1e-3 * warm * (1 - 0.99 * max(0, phase - 2) / (length - 3))
        record = {"step": 50 * epoch, "epoch": epoch, "loss": 5 / epoch + 1, "learning_rate": rate}
        out.append(record | {"val_loss": None if epoch % 2 else 5 / epoch + 1.2})
    return out


def test_training_curves(tmp_path, figures):
    path = tmp_path / "curves.png"
    plots.training_curves(path, records())
    (figure,) = figures
    assert_image(path, figure)
    loss, rate = figure.axes
    assert loss.get_yscale() == "log"
    lines = {line.get_label(): line for line in loss.lines}
    np.testing.assert_allclose(lines["training"].get_ydata(), [r["loss"] for r in records()])
    np.testing.assert_array_equal(lines["validation"].get_xdata(), np.arange(100, 1501, 100))
    dotted = [line.get_xdata()[0] for line in rate.lines if line.get_linestyle() == ":"]
    assert dotted == [500, 1000, 1500]


def test_an_unfinished_cycle_has_no_end(tmp_path, figures):
    plots.training_curves(tmp_path / "a.png", records()[:17])
    dotted = [line.get_xdata()[0] for line in figures[0].axes[1].lines if line.get_linestyle() == ":"]
    assert dotted == [500]


def test_training_curves_of_one_record_and_of_none(tmp_path):
    plots.training_curves(tmp_path / "a.png", [{"step": 1, "loss": 2.0}])
    assert (tmp_path / "a.png").exists()
    with pytest.raises(ValueError, match="found none"):
        plots.training_curves(tmp_path / "b.png", [])
    with pytest.raises(ValueError, match="a step in every"):
        plots.training_curves(tmp_path / "b.png", [{"loss": 1.0}])


def test_spectra_gallery(tmp_path, figures):
    wave = np.linspace(4850, 5280, 431)
    flux = 1 + 0.1 * np.sin(wave[None] / np.array([[3.0], [5.0], [7.0]]))
    valid = np.ones(flux.shape, bool)
    valid[0, 100:110] = False
    flux[1, 50] = np.nan
    flux[2, 60] = 100  # a cosmic ray
    valid[2] = [True] * 430 + [False]
    plots.spectra_gallery(tmp_path / "a.png", wave, flux, ["a", "b", "c"], valid)
    (figure,) = figures
    assert_image(tmp_path / "a.png", figure)
    drawn = [axis.lines[0].get_ydata() for axis in figure.axes]
    for y, f, good in zip(drawn, flux, valid & np.isfinite(flux), strict=True):
        np.testing.assert_array_equal(y, np.where(good, f, np.nan))
    assert figure.axes[2].get_ylim()[1] < 2
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a", "b", "c"]


def test_spectra_gallery_of_an_all_bad_spectrum(tmp_path):
    wave = np.linspace(1, 2, 20)
    plots.spectra_gallery(tmp_path / "a.png", wave, np.full((1, 20), np.nan), ["bad"])
    plots.spectra_gallery(tmp_path / "b.png", wave, np.ones((1, 20)), ["flat"])
    assert len(list(tmp_path.iterdir())) == 2


def test_spectra_gallery_refuses_what_does_not_fit(tmp_path):
    wave, flux = np.arange(5.0), np.ones((2, 5))
    with pytest.raises(ValueError, match=r"found \(2, 5\), \(4,\)"):
        plots.spectra_gallery(tmp_path / "a.png", wave[:4], flux, ["a", "b"])
    with pytest.raises(ValueError, match="expected 2 titles, found 1"):
        plots.spectra_gallery(tmp_path / "a.png", wave, flux, ["a"])
    with pytest.raises(ValueError, match="expected flux"):
        plots.spectra_gallery(tmp_path / "a.png", wave, flux[:0], [])


def test_pmf_panels(tmp_path, figures):
    edges = {"teff": np.linspace(3000, 7000, 51), "alpha_m": np.linspace(-1, 1, 11)}
    pmfs = {k: np.random.default_rng(1).dirichlet(np.ones(e.size - 1), 3) for k, e in edges.items()}
    pmfs["teff"][2] = np.nan
    truth = {"teff": np.array([5000, np.nan, 4000])}
    plots.pmf_panels(tmp_path / "a.png", pmfs, edges, truth, ["a", "b", "c"], units=UNITS)
    (figure,) = figures
    assert_image(tmp_path / "a.png", figure)
    assert len(figure.axes) == 6
    first = figure.axes[0]
    lines = {line.get_label(): line.get_xdata()[0] for line in first.lines}
    assert lines["median"] == pytest.approx(distributions.pmf_quantile(pmfs["teff"], edges["teff"], 0.5)[0])
    assert lines["truth"] == 5000
    assert first.get_xlim() == (3000, 7000)
    assert figure.axes[4].get_title(loc="right") == "no prediction"
    assert figure.axes[4].get_xlabel() == r"$T_\mathrm{eff}$ [K]"


def test_pmf_panels_refuse_what_does_not_fit(tmp_path):
    pmfs, edges = (
        {"a": np.full((2, 4), 0.25), "b": np.full((3, 4), 0.25)},
        {"a": np.arange(5.0), "b": np.arange(5.0)},
    )
    with pytest.raises(ValueError, match=r"\(2, 4\), \(3, 4\)"):
        plots.pmf_panels(tmp_path / "a.png", pmfs, edges)
    with pytest.raises(ValueError, match="expected PMFs"):
        plots.pmf_panels(tmp_path / "a.png", {}, edges)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'deep-remap\[plots\]'"):
        plots.training_curves(tmp_path / "a.png", records())


def test_importing_needs_no_matplotlib_and_plotting_no_pyplot(tmp_path):
    code = (
        "import sys, remap.report.plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"remap.report.plots.training_curves({str(tmp_path / 'a.png')!r}, [{{'step': 1, 'loss': 1.0}}])\n"
        "import matplotlib\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['font.size'] == matplotlib.rcParamsDefault['font.size']\n"
        "assert matplotlib.rcParams['axes.grid'] == matplotlib.rcParamsDefault['axes.grid']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
