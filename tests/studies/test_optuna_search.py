"""The search on losses from a formula: it learns, stops poor trials, and an interrupted one goes on alike."""

import sys

import numpy as np
import pytest

from remap.studies.comparison import FoldLoss
from remap.studies.optuna_search import SearchSettings, search

SPACE = (
    {"field": "pretrain.rate_high", "kind": "float", "low": 1e-4, "high": 1e-1, "log": True},
    {"field": "model.stem_filters", "kind": "int", "low": 2, "high": 64, "log": True},
    {"field": "model.filters", "kind": "choice", "values": ((8, 16), (16, 32, 64))},
)
SETTINGS = {"trials": 10, "startup": 4, "stop_folds": 2, "stop_errors": 2.0, "space": SPACE}
FOLDS = 4


class Bowl:
    """Losses least at a rate of 1e-2, 16 filters and two modules; folds differ in difficulty and a little noise.

    `fail` raises when so many folds have been asked for.
    """

    def __init__(self, fail=None):
        self.asked, self.fail = [], fail

    def __call__(self, candidate):
        rate, stem, filters = (candidate.overrides[entry["field"]] for entry in SPACE)
        for fold in range(FOLDS):
            if len(self.asked) == self.fail:
                raise KeyboardInterrupt
            self.asked.append((candidate.name, fold))
            noise = 0.01 * np.random.default_rng((fold, stem)).standard_normal()
            loss = np.log10(rate / 1e-2) ** 2 + np.log2(stem / 16) ** 2 + len(filters) + 3 * fold + noise
            yield FoldLoss(float(loss) if rate < 0.08 else float("inf"), stem, 1.0)


def run(path, losses, **changes):
    settings = SearchSettings(**SETTINGS | changes)
    return search(losses, settings, folds=FOLDS, seed=0, storage=path / "optuna.db", name="study")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("optuna", reason="needs the extra 'search'")
    return run(tmp_path_factory.mktemp("search"), Bowl())


def test_values_are_those_of_the_space_and_later_ones_are_better(whole):
    assert [r.candidate.name for r in whole] == [f"trial {i}" for i in range(10)]
    for result in whole:
        rate, stem, filters = result.candidate.overrides.values()
        assert 1e-4 <= rate <= 1e-1
        assert isinstance(stem, int)
        assert 2 <= stem <= 64
        assert filters in ((8, 16), (16, 32, 64))
    first = [r.losses[0] for r in whole]
    assert min(first[4:]) < min(first[:4])  # those that were drawn at random


def test_poor_trials_are_stopped_on_the_first_folds(whole, tmp_path):
    lengths = [len(r.folds) for r in whole]
    assert lengths[0] == FOLDS  # there was nothing to be worse than
    assert 2 in lengths
    best = min((r for r in whole if r.finished(FOLDS)), key=lambda r: r.losses.mean())
    assert all(r.losses[0] > best.losses[0] for r in whole if len(r.folds) == 2)
    free = run(tmp_path, Bowl(), stop_errors=float("inf"), trials=4)
    assert [len(r.folds) for r in free] == [FOLDS if np.isfinite(r.losses[0]) else 1 for r in free]


def test_diverged_trial_ends_at_once_and_the_search_goes_on(whole):
    diverged = [i for i, r in enumerate(whole) if not np.isfinite(r.losses).all()]
    assert diverged
    assert diverged[0] < 9
    assert all(len(whole[i].folds) == 1 for i in diverged)


def test_interrupted_search_goes_on_as_if_it_had_not_been(whole, tmp_path):
    """Stopped within the first trial, then asked for few trials, then stopped among those that are learned from."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Bowl(fail=1))
    assert run(tmp_path, Bowl(), trials=3) == whole[:3]
    asked = [(r.candidate.name, fold) for r in whole for fold in range(len(r.folds))]
    broken = Bowl(fail=len(asked) - 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, broken)
    assert broken.asked == asked[:-3]  # no trial that is there is asked for further than it got
    assert run(tmp_path, Bowl()) == whole


def test_without_optuna_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'deep-remap\[search\]'"):
        run(tmp_path, Bowl())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "at least 1"),
        ({"stop_folds": 1}, "stop_folds of at least 2"),
        ({"space": ()}, "at least one field"),
        ({"space": ({"field": "a", "kind": "real", "low": 1, "high": 2, "log": False},)}, "found .*'real'"),
        ({"space": ({"field": "a", "kind": "int", "low": 1, "high": 2},)}, "'int' or 'float'"),
        (
            {"space": ({"field": "a", "kind": "int", "low": 2, "high": 1, "log": False},)},
            "a: expected low < high",
        ),
        ({"space": ({"field": "a", "kind": "float", "low": 0.0, "high": 1.0, "log": True},)}, "low > 0"),
        ({"space": ({"field": "a", "kind": "choice", "values": ()},)}, "a: expected values"),
    ],
)
def test_impossible_searches_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**SETTINGS | change)
