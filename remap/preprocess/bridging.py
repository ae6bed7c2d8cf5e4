"""Straight lines over pixels that are missing."""

from __future__ import annotations

import numpy as np


def bridge_gaps(values: np.ndarray, good: np.ndarray, at: np.ndarray) -> None:
    """Puts the pixels of rows that are not good on straight lines between the good ones around them, in place.

    As `np.interp` for every row, to the last bit: beyond the first and the last good pixel their values are held.
    Rows without a good pixel stay as they are. It takes as long as there are missing pixels, not pixels.

    Args:
      values: float[S, N].
      good: bool[S, N].
      at: [N], where the pixels are, increasing.

    Examples:
      >>> import numpy as np
      >>> values = np.array([[0.0, 1.0, 9.0, 9.0, 4.0, 9.0]])
      >>> bridge_gaps(values, values < 9, np.arange(6))
      >>> values.tolist()
      [[0.0, 1.0, 2.0, 3.0, 4.0, 4.0]]
    """
    rows, columns = np.nonzero(~good & good.any(axis=1, keepdims=True))
    if not rows.size:
        return
    starts = np.ones(rows.size, bool)
    starts[1:] = (np.diff(rows) != 0) | (np.diff(columns) != 1)
    first = np.flatnonzero(starts)
    length = np.diff(first, append=rows.size)
    left, right = columns[first] - 1, columns[first] + length
    inside = (left >= 0) & (right < at.size)
    left, right = np.where(left >= 0, left, right), np.where(right < at.size, right, left)
    row = rows[first]
    low, high = values[row, left].astype(np.float64), values[row, right].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        slope = np.where(inside, (high - low) / np.where(inside, at[right] - at[left], 1), 0.0)
        along = at[columns] - np.repeat(at[left], length)
        values[rows, columns] = np.repeat(slope, length) * along + np.repeat(low, length)
