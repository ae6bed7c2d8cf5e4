"""Rows in blocks on several threads: in order, each once, and none depends on the others."""

import threading

import numpy as np
import pytest

from remap.preprocess.blocks import in_blocks, processors


@pytest.mark.parametrize("threads", ["1", "3"])
def test_blocks_come_in_order_and_hold_every_row_once(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    got = in_blocks(lambda some: np.arange(some.start, some.stop), 1000, 7, elements=70)
    assert {len(part) for part in got} == {10}
    assert np.concatenate(got).tolist() == list(range(1000))
    assert in_blocks(lambda some: some, 0, 7) == []
    assert in_blocks(lambda some: some, 3, 100, elements=10) == [slice(i, i + 1) for i in range(3)]


def test_threads_are_as_many_as_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    meeting = threading.Barrier(2, timeout=20)  # two blocks must be at work at a time, or it breaks
    assert in_blocks(lambda some: meeting.wait() in (0, 1), 2, 1, elements=1) == [True, True]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = in_blocks(lambda some: threading.current_thread() is threading.main_thread(), 4, 1, elements=1)
    assert all(here)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert processors() >= 1


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        in_blocks(lambda some: 1 / (some.start - 3), 5, 1, elements=1)
