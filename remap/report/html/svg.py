"""Curves, points and axes as small SVG: whole numbers in paths, colours left to the page's style sheet.

All text goes through `text`, which escapes it; everything else is numbers.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A rectangle of a drawing with its scales.

    Attributes:
      left, top, width, height: of the rectangle, in units of the drawing.
      x, y: values at its left and right, and at its bottom and top; the first may be the larger one.
    """

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, values: ArrayLike) -> Any:
        """Horizontal places of values of x."""
        return self.left + self.width * (np.asarray(values, float) - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, values: ArrayLike) -> Any:
        """Vertical places of values of y, which grow downwards."""
        share = (np.asarray(values, float) - self.y[0]) / (self.y[1] - self.y[0])
        return self.top + self.height * (1 - share)


def drawing(width: float, height: float, parts: Sequence[str], *, title: str) -> str:
    """A whole drawing; `title` is read to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def text(x: float, y: float, words: str, *, kind: str = "", turn: bool = False, title: str = "") -> str:
    """Words at a place; `kind` are classes of the style sheet, `turn` writes upwards."""
    attributes = f' class="{kind}"' if kind else ""
    if turn:
        attributes += f' transform="rotate(-90 {x:.0f} {y:.0f})"'
    inner = html.escape(words) + (f"<title>{html.escape(title)}</title>" if title else "")
    return f'<text x="{x:.0f}" y="{y:.0f}"{attributes}>{inner}</text>'


def line(x: np.ndarray, y: np.ndarray, *, kind: str, title: str = "") -> str:
    """A curve through points, broken where one is not finite. "" where none is finite."""
    data = relative_path(x, y)
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<path class="c {kind}" d="{data}">{inner}</path>' if data else ""


def area(x: np.ndarray, y: np.ndarray, base: float, *, kind: str) -> str:
    """The surface between a curve and a level; points that are not finite count as the level."""
    y = np.where(np.isfinite(y), y, base)
    data = relative_path(np.r_[x[0], x, x[-1]], np.r_[base, y, base])
    return f'<path class="a {kind}" d="{data}z"/>' if data else ""


SHAPES = {  # what is drawn from a place on; told apart without their colours
    "dot": "h0",
    "triangle": "m0-5l4 8h-8z",
    "diamond": "m0-5l4 5-4 5-4-5z",
    "square": "m-3-3h6v6h-6z",
    "cross": "m-4-4l8 8m0-8l-8 8",
    "plus": "m-5 0h10m-5-5v10",
    "ring": "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
}


def dots(x: np.ndarray, y: np.ndarray, *, kind: str, shape: str = "dot", title: str = "") -> str:
    """Points, each a mark of `SHAPES`; those that are not finite are left out, and "" where none is."""
    keep = np.isfinite(x) & np.isfinite(y)
    places = _tenths(x[keep]), _tenths(y[keep])
    data = "".join(f"M{a} {b}{SHAPES[shape]}" for a, b in zip(*places, strict=True))
    inner = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<path class="d {shape} {kind}" d="{data}">{inner}</path>' if data else ""


def bars(x: np.ndarray, low: np.ndarray, high: np.ndarray, *, kind: str) -> str:
    """Vertical bars from `low` to `high`."""
    keep = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    ends = (_tenths(v[keep]) for v in (x, low, high))
    data = "".join(f"M{a} {b}V{c}" for a, b, c in zip(*ends, strict=True))
    return f'<path class="c {kind}" d="{data}"/>' if data else ""


def relative_path(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` of a curve in relative whole numbers, which is the shortest way to say it.

    Examples:
      >>> import numpy as np
      >>> relative_path(np.array([0, 1, 2, 3, 4]), np.array([5, 2, np.nan, 7, 9]))
      'M0 5l1-3M3 7l1 2'
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    good = np.isfinite(x) & np.isfinite(y)
    starts = np.flatnonzero(good & ~np.r_[False, good[:-1]])
    stops = np.flatnonzero(good & ~np.r_[good[1:], False]) + 1
    out = []
    for i, j in zip(starts, stops, strict=True):
        points = np.stack([np.rint(x[i:j]), np.rint(y[i:j])], axis=1).astype(np.int64)
        steps = np.diff(points, axis=0)
        steps = steps[np.any(steps != 0, axis=1)]
        out.append(f"M{points[0, 0]} {points[0, 1]}")
        out.append("l" + " ".join(map(str, steps.ravel().tolist())) if len(steps) else "h1")
    return "".join(out).replace(" -", "-")


def thin(x: np.ndarray, y: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A curve with at most two points per column: its least and largest value there, in the order they come.

    Args:
      x: float[N], increasing.
      y: float[N]; a column with a value that is not finite alone stays a gap.
      columns: how many; curves of no more than twice as many points stay as they are.
    """
    if x.size <= 2 * columns:
        return x, y
    edges = np.linspace(0, x.size, columns + 1).astype(int)
    keep = []
    for i, j in itertools.pairwise(edges.tolist()):
        part = y[i:j]
        if not np.isfinite(part).any():
            keep.append(i)
            continue
        keep += sorted({i + int(np.nanargmin(part)), i + int(np.nanargmax(part))})
    return x[keep], y[keep]


def average(x: np.ndarray, y: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The means of a curve in columns, for what is a density; shorter curves stay as they are."""
    if x.size <= columns:
        return x, y
    edges = np.linspace(0, x.size, columns + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def ticks(low: float, high: float, count: int) -> np.ndarray:
    """About `count` round numbers between two values, increasing.

    Examples:
      >>> ticks(4312.0, 6690.0, 5).tolist()
      [4500.0, 5000.0, 5500.0, 6000.0, 6500.0]
    """
    low, high = min(low, high), max(low, high)
    if not np.isfinite([low, high]).all() or low == high:
        return np.array([low]) if np.isfinite(low) else np.array([])
    raw = (high - low) / max(count, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * next(s for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step


def axes(
    panel: Panel,
    *,
    x_name: str = "",
    y_name: str = "",
    x_count: int = 6,
    y_count: int = 4,
    numbers: bool = True,
) -> str:
    """Frame, grid and numbers of a panel.

    Args:
      x_name, y_name: under and beside it.
      x_count, y_count: about how many numbers; 0 = none.
      numbers: write those below the panel; without, its grid alone is drawn.
    """
    bottom, right = panel.top + panel.height, panel.left + panel.width
    across, up = ticks(*panel.x, x_count) if x_count else [], ticks(*panel.y, y_count) if y_count else []
    out = [
        f'<path class="g" d="{"".join(f"M{panel.across(v):.0f} {panel.top:.0f}V{bottom:.0f}" for v in across)}'
        f'{"".join(f"M{panel.left:.0f} {panel.up(v):.0f}H{right:.0f}" for v in up)}"/>'
    ]
    if numbers:
        out += [text(panel.across(v), bottom + 14, number(v), kind="m") for v in across]
    out += [text(panel.left - 5, panel.up(v) + 4, number(v), kind="e") for v in up]
    if x_name:
        out.append(text(panel.left + panel.width / 2, bottom + 30, x_name, kind="m"))
    if y_name:
        out.append(text(panel.left - 42, panel.top + panel.height / 2, y_name, kind="m", turn=True))
    return "".join(out)


def number(value: float) -> str:
    """A number as a person would write it, with a true minus sign.

    Examples:
      >>> number(5500.0), number(-0.30000000000000004), number(float("nan"))
      ('5500', '−0.3', '')
    """
    if not np.isfinite(value):
        return ""
    return f"{0.0 if abs(value) < 1e-12 else value:.6g}".replace("-", "−")


def _tenths(values: np.ndarray) -> list[str]:
    return [f"{v:.1f}".removesuffix(".0") for v in values.tolist()]
