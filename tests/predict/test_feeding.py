"""Worker processes: order, memory, and what deaths and standstills cost."""

import dataclasses
import threading
import time

import numpy as np
from helpers import tiny
from helpers.readers import DiesLater, Fails, Misbehaving

from remap import io
from remap.predict.feeding import Feeder, FeedError, FileReader, Item


def items(folder, numbers):
    for i in numbers:
        tiny.write_table(folder / tiny.DWARFS[i][0], *tiny.star(i))
    return [Item(str(folder / tiny.DWARFS[i][0]), tiny.DWARFS[i][0]) for i in numbers]


def fields(predictor):
    return {
        "preprocessing": predictor.preprocessing,
        "source": dict(predictor.config["survey"]["source"]),
        "root": None,
        "settings": predictor.observe_settings,
        "templates": predictor.templates,
    }


def assert_same(found, expected):
    """Rows on the grids, bit for bit."""
    assert found.names == expected.names
    assert found.messages == expected.messages
    for arm, on in expected.arms.items():
        for ours, theirs in zip(found.arms[arm], on, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_deaths_and_standstills_cost_their_file_alone_and_the_order_stays(tiny_predictor, tmp_path):
    files = items(tmp_path / "spectra", range(8))
    (tmp_path / "marks").mkdir()
    name = [item.name for item in files]
    bad = {"kills": (name[1],), "kills_once": (name[4],), "hangs": (name[6],)}
    read = Misbehaving(**fields(tiny_predictor), **bad, marks=str(tmp_path / "marks"))
    tasks = [files[:3], files[3:6], files[6:]]
    with Feeder(read, 3, tasks.__getitem__, workers=3, ahead=3, timeout=5.0) as feeder:
        found = [row for fed in feeder for row in fed.found]
    assert [row.names[0] for row in found] == name
    told = {row.names[0]: row.messages[0] for row in found if row.messages[0]}
    assert set(told) == {name[1], name[6]}
    assert files[1].path in told[name[1]]
    assert "signal 9" in told[name[1]]
    assert f"{files[6].path}: not read within 5 s" in told[name[6]]

    good = FileReader(**fields(tiny_predictor))
    with Feeder(good, 3, tasks.__getitem__, workers=0, ahead=3, timeout=5.0) as feeder:
        expected = [row for fed in feeder for row in fed.found]
    for ours, theirs in zip(found, expected, strict=True):
        if ours.names[0] not in told:
            assert_same(ours, theirs)


def test_what_kills_after_it_was_read_is_found_one_by_one():
    tasks = [[Item(f"/x/{name}", name) for name in "abc"], [Item("/x/d", "d")]]
    with Feeder(DiesLater(("b",)), 2, tasks.__getitem__, workers=1, ahead=1, timeout=60.0) as feeder:
        first, second = (fed.found for fed in feeder)
    assert [first[0], first[2]] == ["a", "c"]
    assert first[1] == "/x/b: the process that read it has ended (signal 9)"
    assert second == ["d"]


def test_a_fault_of_the_reader_names_its_file_and_the_others_are_done():
    tasks = [[Item("/x/a", "a"), Item("/x/b", "b")], [Item("/x/c", "c")]]
    with Feeder(Fails(), 2, tasks.__getitem__, workers=0, ahead=1, timeout=1.0) as feeder:
        first, second = feeder
    assert isinstance(first, FeedError)
    assert str(first).startswith("/x/b: ")
    assert "ZeroDivisionError: a fault" in str(first)
    assert second.found == ["c"]


def test_nothing_is_given_out_far_ahead_and_leaving_early_ends_the_workers(tiny_predictor, tmp_path):
    files = items(tmp_path, range(1))
    given = []

    def make(k):
        given.append(k)
        return files

    read = FileReader(**fields(tiny_predictor))
    with Feeder(read, 100, make, workers=1, ahead=2, timeout=60.0) as feeder:
        rows = iter(feeder)
        next(rows)
        deadline = time.monotonic() + 30
        while len(given) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        assert given == [0, 1, 2]
        next(rows)
        processes = [worker.process for worker in feeder._workers]
    assert not any(process.is_alive() for process in processes)
    assert not any(thread.name == "feeder" for thread in threading.enumerate())
    assert max(given) <= 4


def test_pieces_of_a_file_are_those_of_the_whole(tiny_predictor, tmp_path):
    spectra = dataclasses.replace(tiny.spectra(), labels={"teff": np.zeros(5)})
    io.write_bundle(tmp_path / "all.npz", spectra)
    source = {"format": "bundle", "medium": "air", "absolute": False, "label_columns": ("teff",)}
    read = FileReader(**{**fields(tiny_predictor), "source": source})
    path = str(tmp_path / "all.npz")
    tasks = [[Item(path, "all.npz")], [Item(path, "all.npz", (0, 3))], [Item(path, "all.npz", (3, 5))]]
    with Feeder(read, 3, tasks.__getitem__, workers=0, ahead=1, timeout=1.0) as feeder:
        (whole,), (first,), (second,) = (fed.found for fed in feeder)
    assert first.names + second.names == whole.names
    for arm, on in whole.arms.items():
        for i, values in enumerate(on):
            np.testing.assert_array_equal(np.concatenate([first.arms[arm][i], second.arms[arm][i]]), values)
