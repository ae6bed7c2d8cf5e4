"""Rows of arrays in blocks that fit into a processor's cache, on all processors."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
ELEMENTS = (
    2**17
)  # of one array of a block: few enough for a processor's cache, enough to outweigh calls of NumPy


def in_blocks(
    work: Callable[[slice], Result], rows: int, pixels: int, elements: int | None = None
) -> list[Result]:
    """What `work` gives for blocks of rows, in their order.

    NumPy and SciPy let other threads run while they compute, so blocks run side by side: on as many threads as there
    are processors, or as `OMP_NUM_THREADS` says. What becomes of a row must not depend on the others of its block.

    Args:
      work: takes the rows of a block; may write to their places in arrays of its own.
      rows: how many there are.
      pixels: elements of a row.
      elements: of a block, about; None = `ELEMENTS`.

    Examples:
      >>> in_blocks(lambda some: some.stop - some.start, 10, 1, elements=4)
      [4, 4, 2]
    """
    step = max(1, (ELEMENTS if elements is None else elements) // max(pixels, 1))
    blocks = [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    threads = min(processors(), len(blocks))
    if threads < 2:
        return [work(block) for block in blocks]
    with ThreadPoolExecutor(threads, "rows") as pool:
        return list(pool.map(work, blocks))


def processors() -> int:
    """How many threads may compute: `OMP_NUM_THREADS`, or the processors that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
