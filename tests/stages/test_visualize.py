"""Maps of embeddings: numbers against plain loops, figures with what they should show, clear refusals."""

import shutil
import sys

import numpy as np
import pytest
from astropy.table import Table
from helpers import tiny

from remap.pmf.metrics import decimals
from remap.stages import visualize
from remap.stages.visualize import neighbour_difference, tsne
from remap.train.embeddings import Embedded, read_embeddings


def embedded(rng, size, features=5):
    labels = np.stack([rng.uniform(4000, 7000, size), rng.normal(0, 0.3, size)], axis=1).astype(np.float32)
    return Embedded(rng.normal(size=(2, size, features)).astype(np.float32), labels)


@pytest.mark.parametrize("same", [True, False])
def test_neighbours_equal_those_of_a_loop(same):
    rng = np.random.default_rng(0)
    train = embedded(rng, 30)
    found = train if same else embedded(rng, 17)
    train.labels[4, 1] = found.labels[7, 1] = np.nan
    differences, chances = [], []
    for i, (point, label) in enumerate(zip(found.embedding[1], found.labels[:, 1], strict=True)):
        others = [
            (np.sum((point - p) ** 2), abs(label - v))
            for j, (p, v) in enumerate(zip(train.embedding[1], train.labels[:, 1], strict=True))
            if np.isfinite(v) and not (same and i == j)
        ]
        if np.isfinite(label):
            differences.append(min(others)[1])
            chances += [difference for _, difference in others]
    table = neighbour_difference(train, found, 1, same=same)
    assert table["n"] == len(differences) == np.isfinite(found.labels[:, 1]).sum()
    assert table["neighbour"] == pytest.approx(np.median(differences))
    assert table["chance"] == pytest.approx(np.median(chances))


def test_a_copy_elsewhere_is_a_neighbour_but_a_spectrum_is_not_its_own():
    places = np.array([[[0.0], [0.0], [5.0], [5.0]]])
    found = Embedded(places, np.array([[1.0], [2.0], [4.0], [7.0]]))
    assert neighbour_difference(found, found, 0, same=True)["neighbour"] == 2.0  # of 1, 1, 3, 3


def test_neighbours_of_nothing_known_are_unknown():
    found = Embedded(np.zeros((1, 3, 2)), np.full((3, 1), np.nan))
    table = neighbour_difference(found, found, 0, same=True)
    assert table["n"] == 0
    assert np.isnan([table["neighbour"], table["chance"]]).all()


def test_tsne_parts_what_is_apart_and_repeats():
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(c, 0.1, (20, 4)) for c in (0, 5)])
    places = tsne(points, perplexity=5.0, seed=3)
    assert places.shape == (40, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(40, np.inf))
    nearest = distances.argmin(axis=1)
    np.testing.assert_array_equal(nearest < 20, np.arange(40) < 20)
    np.testing.assert_array_equal(tsne(points, perplexity=5.0, seed=3), places)


def test_maps_of_a_trained_folder(tiny_data, tiny_workdir, tmp_path, figures):
    """One figure for each arm and label: three epochs in columns, training above validation."""
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    workdir = tmp_path / "work"
    keep = shutil.ignore_patterns("checkpoints", "final", "finetune", "library_*", "survey_*")
    shutil.copytree(tiny_workdir, workdir, ignore=keep)
    for arm in "AB":  # the third epoch adds only time
        (workdir / "pretrain" / arm / "embeddings_epoch_0002.npz").unlink()
    config = tiny.config(tiny_data, embeddings__perplexity=4.0)
    table = visualize.visualize(config, workdir)
    out = workdir / "visualize"
    names = [f"tsne_{arm}_{label}.png" for arm in "AB" for label in ("teff", "logg", "feh")]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "neighbours.ecsv"])
    written = Table.read(out / "neighbours.ecsv")
    np.testing.assert_array_equal(written["neighbour"], table["neighbour"])
    assert len(table) == 2 * 3 * 2 * 2
    assert set(table["n"]) == {12}

    saved = read_embeddings(workdir / "pretrain" / "A")
    figure = figures[names.index("tsne_A_feh.png")]
    panels = [axis for axis in figure.axes if axis.collections and axis.get_label() != "<colorbar>"]
    assert [axis.get_ylabel() for axis in panels[::2]] == ["training (12)", "validation (12)"]
    assert [axis.texts[0].get_text() for axis in panels[:2]] == ["epoch 0", "epoch 4"]
    assert "[Fe/H] [dex]" in [axis.get_ylabel() for axis in figure.axes]
    for axis, (part, each) in zip(
        panels, [(part, each) for part in ("train", "val") for each in saved], strict=True
    ):
        (points,) = axis.collections
        np.testing.assert_allclose(np.sort(points.get_array()), np.sort(each.parts[part].labels[:, 2]))
        place = (table["arm"] == "A") & (table["label"] == "feh") & (table["part"] == part)
        (row,) = table[place & (table["epoch"] == each.epoch)]
        shown = row["neighbour"]
        assert f"Δ {shown:.{decimals(shown)}f} dex" in axis.get_title()
    # Training and validation spectra of an epoch lie on one map.
    joined = np.concatenate([part.embedding[2] for part in saved[1].parts.values()])
    expected = tsne(joined, perplexity=4.0, seed=config.seed)
    drawn = np.concatenate([panels[1].collections[0].get_offsets(), panels[3].collections[0].get_offsets()])
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(expected, axis=0), atol=1e-3)


def test_without_scikit_learn_there_are_numbers_and_a_warning(
    tiny_data, tiny_workdir, tmp_path, monkeypatch, caplog
):
    workdir = tmp_path / "work"
    shutil.copytree(tiny_workdir, workdir, ignore=shutil.ignore_patterns("checkpoints", "final", "finetune"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with caplog.at_level("WARNING"):
        table = visualize.visualize(tiny.config(tiny_data), workdir)
    assert "visualize: no maps: t-SNE needs scikit-learn: pip install 'deep-remap[plots]'" in caplog.text
    assert len(table) == 2 * 3 * 3 * 2
    assert [p.name for p in (workdir / "visualize").iterdir()] == ["neighbours.ecsv"]


def test_a_folder_without_embeddings_is_refused_with_what_to_do(tiny_data, tiny_prepared, tmp_path):
    shutil.copytree(tiny_prepared, tmp_path / "work")
    with pytest.raises(FileNotFoundError, match=r"embeddings_epoch_.*found none; set embeddings\.epochs"):
        visualize.visualize(tiny.config(tiny_data), tmp_path / "work")
    assert not (tmp_path / "work" / "visualize").exists()
