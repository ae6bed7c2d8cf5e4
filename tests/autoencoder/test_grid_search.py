"""The grid search: every combination and fold once, resumable, the best first."""

import json

import pytest
from helpers import tiny

from remap.autoencoder import grid_search
from remap.autoencoder.grid_search import GridSettings, combinations, search
from remap.stages.preprocess import preprocess


@pytest.fixture(scope="module")
def searched(tiny_data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("search")
    config = tiny.route_config(tiny_data)
    preprocess(config, workdir)
    return workdir, search(config, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "search" / "results.jsonl").read_text().splitlines()]


def test_all_combinations_are_tried(tiny_data):
    config = tiny.route_config(tiny_data)
    config.search.update({"widths": (8, 16), "l1": (0.0, 1e-7), "rates": (1e-3,)})
    assert combinations(GridSettings(**config.search)) == [
        {"width": w, "l1": a, "rate": 1e-3} for w, a in ((8, 0.0), (8, 1e-7), (16, 0.0), (16, 1e-7))
    ]


def test_result_is_the_mean_over_folds_with_the_best_first(searched):
    workdir, table = searched
    done = lines(workdir)
    assert [(r["width"], r["fold"]) for r in done] == [(8, 0), (8, 1), (16, 0), (16, 1)]
    for row in table:
        errors = [r["error"] for r in done if r["width"] == row["width"]]
        assert row["error"] == pytest.approx(sum(errors) / 2)
        assert row["scatter"] == pytest.approx(abs(errors[0] - errors[1]) / 2**0.5)
    assert list(table["error"]) == sorted(table["error"])
    left = {p.name for p in (workdir / "search").iterdir()}
    assert left == {"inputs.json", "results.jsonl", "settings.json", "summary.ecsv"}  # no checkpoints


def test_a_search_goes_on_with_what_is_missing(searched, tiny_data, tmp_path, monkeypatch):
    workdir, table = searched
    path = workdir / "search" / "results.jsonl"
    whole = path.read_text()
    path.write_text("".join(line + "\n" for line in whole.splitlines()[:-1]))
    calls = []
    fit = grid_search.fit_autoencoder
    monkeypatch.setattr(
        grid_search, "fit_autoencoder", lambda *a, **k: calls.append(a[3].name) or fit(*a, **k)
    )
    again = search(tiny.route_config(tiny_data), workdir)
    assert calls == ["width16_l11e-07_rate0.01_fold1"]
    assert path.read_text() == whole
    assert list(again["error"]) == list(table["error"])
    calls.clear()
    search(tiny.route_config(tiny_data), workdir)
    assert calls == []


def test_other_settings_are_refused_but_the_grid_may_grow(searched, tiny_data):
    workdir, _ = searched
    with pytest.raises(ValueError, match=r"config\.search\.epochs: expected 3, found 1"):
        search(tiny.route_config(tiny_data, search__epochs=3), workdir)
    narrower = search(tiny.route_config(tiny_data, search__widths=(16,)), workdir)
    assert list(narrower["width"]) == [16]
