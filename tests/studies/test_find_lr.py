"""The range test: rates rise exponentially, the end is noticed, and the suggestion follows from what is written."""

import json
import shutil

import numpy as np
import pytest
from helpers import tiny

from remap.studies import find_lr as module
from remap.studies.find_lr import RangeSettings, find_lr, range_schedule

CHANGE = {"find_lr__low": 1e-5, "find_lr__high": 1e-1, "find_lr__steps": 9, "find_lr__smoothing": 0.5}


@pytest.fixture(scope="module")
def found(tiny_data, tiny_prepared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lr") / "work"
    shutil.copytree(tiny_prepared, workdir)
    return workdir, find_lr(tiny.config(tiny_data, **CHANGE), workdir)


def test_schedule_goes_from_low_to_high_in_equal_ratios():
    settings = RangeSettings(1e-6, 1.0, 7, 0.9, 2.0, 0.5, 100.0)
    rates = [float(range_schedule(settings)(i)) for i in range(7)]
    np.testing.assert_allclose(rates, np.logspace(-6, 0, 7), rtol=1e-4)


def test_suggestion_follows_from_the_records(found):
    workdir, tests = found
    assert set(tests) == {"A", "B"}
    for arm, test in tests.items():
        record = json.loads((workdir / "find_lr" / f"{arm}.json").read_text())
        assert record["rate_high"] == test.rate_high
        running, smooth = 0.0, []
        for i, loss in enumerate(record["losses"]):
            running = 0.5 * running + 0.5 * loss
            smooth.append(running / (1 - 0.5 ** (i + 1)))
        np.testing.assert_allclose(record["smooth"], smooth, rtol=1e-6)
        assert record["rate_high"] == pytest.approx(0.5 * record["rates"][int(np.argmin(smooth))])
        assert record["rate_low"] == pytest.approx(record["rate_high"] / 100)
        assert (workdir / "find_lr" / f"{arm}.png").stat().st_size > 1000
    assert not (workdir / "pretrain").exists()


def test_repeats_exactly(found, tiny_data, tmp_path):
    workdir, tests = found
    shutil.copytree(workdir, tmp_path / "work")
    again = find_lr(tiny.config(tiny_data, **CHANGE), tmp_path / "work")
    assert again == tests
    assert again["A"].losses != again["B"].losses


def test_divergence_ends_the_test(tiny_data, tiny_prepared, tmp_path):
    shutil.copytree(tiny_prepared, tmp_path / "work")
    change = CHANGE | {"find_lr__high": 1e7, "find_lr__steps": 60, "find_lr__diverged": 1.05}
    tests = find_lr(tiny.config(tiny_data, **change), tmp_path / "work")
    for test in tests.values():
        assert test.diverged
        assert len(test.losses) < 60
        assert len(test.rates) == len(test.losses) == len(test.smooth)
        assert test.rate_high < test.rates[-1]


def test_a_loss_that_is_never_finite_is_an_error(tiny_data, tiny_prepared, tmp_path, monkeypatch):
    shutil.copytree(tiny_prepared, tmp_path / "work")
    step = module.train_step

    def broken(*args, **static):
        state, terms = step(*args, **static)
        return state, terms._replace(total=terms.total * np.nan)

    monkeypatch.setattr(module, "train_step", broken)
    with pytest.raises(ValueError, match="not finite at the first step"):
        find_lr(tiny.config(tiny_data, **CHANGE), tmp_path / "work")


@pytest.mark.parametrize(
    "change",
    [{"low": 0.0}, {"high": 1e-7}, {"steps": 1}, {"smoothing": 1.0}, {"diverged": 1.0}, {"margin": 0}],
)
def test_impossible_settings_are_refused(change):
    good = {
        "low": 1e-6,
        "high": 1.0,
        "steps": 10,
        "smoothing": 0.9,
        "diverged": 2.0,
        "margin": 0.5,
        "span": 100.0,
    }
    with pytest.raises(ValueError, match="find_lr: expected"):
        RangeSettings(**good | change)
