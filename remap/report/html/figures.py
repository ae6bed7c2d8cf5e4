"""Figures of all stars together: Kiel diagram, distributions, comparison with known labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from remap.pmf.metrics import residual_table
from remap.report.html import svg
from remap.report.html.records import KnownLabels

WORDS = {
    "teff": "Teff",
    "logg": "log g",
    "feh": "[Fe/H]",
    "vsini": "v sin i",
    "snr": "S/N per pixel",
    "rv": "rv",
}
# A star with several flags is drawn as the first of these that it has: what is least likely to be right first.
SEVERITY = (
    "UNREADABLE",
    "FAR",
    "ARMS_DISAGREE",
    "MULTIMODAL",
    "VELOCITY",
    "RESOLUTION",
    "CONTINUUM",
    "EDGE",
    "BAD_PIXELS",
    "MISSING_ARM",
    "LOW_SNR",
)
LOOKS = ("triangle", "diamond", "square", "cross", "plus")  # of the most severe flags; the others are rings
BINS = 40


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """Stars that are drawn alike.

    Attributes:
      name: of the flag, or what they share.
      shape: of their marks, a key of `svg.SHAPES`.
      kind: class of the style sheet.
      members: bool[S].
    """

    name: str
    shape: str
    kind: str
    members: np.ndarray


def in_words(label: str, unit: str = "") -> str:
    """A label as people write it, with its unit in brackets."""
    return WORDS.get(label, label) + (f" [{unit}]" if unit else "")


def by_severity(flags: Mapping[int, str]) -> list[int]:
    """Bits of flags, the most severe first; those that this version does not know come before all."""
    names = {bit: text.split(":")[0] for bit, text in flags.items()}
    return sorted(flags, key=lambda b: (SEVERITY.index(names[b]) if names[b] in SEVERITY else -1, b))


def kinds_by_flag(flags: np.ndarray, meanings: Mapping[int, str], drawn: np.ndarray) -> list[Kind]:
    """The stars without flags, and those of each flag, each star once.

    Args:
      flags: int[S].
      meanings: bit -> "NAME: meaning".
      drawn: bool[S], stars that a figure has a place for.
    """
    left = drawn & (flags != 0)
    out = [Kind(name="no flag", shape="dot", kind="k0", members=drawn & (flags == 0))]
    rest = np.zeros(len(flags), bool)
    for bit in by_severity(meanings):
        members = left & (flags & bit != 0)
        left = left & ~members
        if not members.any():
            continue
        if len(out) <= len(LOOKS):
            name = meanings[bit].split(":")[0]
            out.append(Kind(name=name, shape=LOOKS[len(out) - 1], kind=f"k{len(out)}", members=members))
        else:
            rest = rest | members
    rest = rest | left
    if rest.any():
        out.append(Kind(name="other flags", shape="ring", kind="k6", members=rest))
    return [kind for kind in out if kind.members.any()]


def kiel(teff: np.ndarray, logg: np.ndarray, kinds: Sequence[Kind], units: Mapping[str, str]) -> str:
    """log g against Teff, both as they are usual, hot and giant at the left and the top. "" without a star."""
    if not kinds:
        return ""
    drawn = np.any([kind.members for kind in kinds], axis=0)
    x, y = _limits(teff[drawn]), _limits(logg[drawn])
    panel = svg.Panel(left=64, top=10, width=520, height=380, x=x[::-1], y=y[::-1])
    names = [in_words(label, units.get(label, "")) for label in ("teff", "logg")]
    parts = [svg.axes(panel, x_name=names[0], y_name=names[1], x_count=8, y_count=8)]
    for kind in kinds:
        places = panel.across(teff[kind.members]), panel.up(logg[kind.members])
        count = f"{kind.name}: {kind.members.sum()} stars"
        parts.append(svg.dots(*places, kind=kind.kind, shape=kind.shape, title=count))
    return svg.drawing(
        600, 434, parts, title=f"Kiel diagram of {drawn.sum()} stars, {names[1]} against {names[0]}"
    )


def legend_mark(kind: Kind) -> str:
    """The mark of a kind of stars, for a legend in the page's own text."""
    mark = svg.dots(np.array([7.0]), np.array([7.0]), kind=kind.kind, shape=kind.shape)
    return f'<svg class="mark" viewBox="0 0 14 14" aria-hidden="true">{mark}</svg>'


def histogram(values: np.ndarray, marked: np.ndarray, name: str) -> str:
    """How often values occur, with those of `marked` stars hatched in front. "" without a finite value.

    The 0.5 % at each end that lie far out are counted in the outermost bins.
    """
    good = np.isfinite(values)
    if not good.any():
        return ""
    low, high = _limits(np.clip(values[good], *np.percentile(values[good], [0.5, 99.5])), margin=0.0)
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(values[good], low, high)
    every, some = (np.histogram(v, edges)[0] for v in (inside, inside[marked[good]]))
    panel = svg.Panel(
        left=50, top=8, width=340, height=120, x=(low, high), y=(0.0, float(every.max()) * 1.05)
    )
    parts = [svg.axes(panel, x_name=name, x_count=5, y_count=3)]
    for counts, kind in ((every, "h0"), (some, "h1")):
        if counts.any():
            steps = np.repeat(edges, 2)[1:-1], np.repeat(counts, 2)
            parts.append(
                svg.area(panel.across(steps[0]), panel.up(steps[1]), float(panel.up(0.0)), kind=kind)
            )
    title = f"{name}: {good.sum()} values, median {svg.number(_rounded(np.median(values[good])))}"
    return svg.drawing(400, 162, parts, title=title)


def one_to_one(known: KnownLabels, label: str, unit: str) -> tuple[str, list[dict[str, str]]]:
    """A label against what is known of it, the difference below, and numbers of every group.

    Returns:
      The drawing, "" without a star; and one record per group: name, shape, kind, n, bias, scatter.
    """
    truth, value, low, high = (
        np.asarray(v[label], float) for v in (known.known, known.predicted, known.p16, known.p84)
    )
    groups = np.asarray(known.groups or [""] * truth.size, str)
    good = np.isfinite(truth) & np.isfinite(value)
    if not good.any():
        return "", []
    span = _limits(np.r_[truth[good], value[good]])
    difference = value - truth
    limit = float(np.percentile(np.abs(difference[good]), 98)) * 1.3 or 1.0
    top = svg.Panel(left=64, top=8, width=320, height=250, x=span, y=span)
    below = svg.Panel(left=64, top=278, width=320, height=90, x=span, y=(-limit, limit))
    name = in_words(label, unit)
    parts = [
        svg.axes(top, y_name="network", numbers=False),
        svg.axes(below, x_name=f"known {name}", y_count=3),
    ]
    parts += [svg.text(22, 323, "difference", kind="m", turn=True)]
    few = good.sum() <= 1000
    numbers = []
    for i, group in enumerate(dict.fromkeys(groups[good])):
        mine = good & (groups == group)
        look = {"kind": f"k{i % 7}", "shape": ("dot", *LOOKS, "ring")[i % 7]}
        x = top.across(truth[mine])
        if few:
            parts.append(svg.bars(x, top.up(low[mine]), top.up(high[mine]), kind=f"{look['kind']} thin"))
        parts.append(svg.dots(x, top.up(value[mine]), **look))
        clipped = np.clip(difference[mine], -limit, limit)
        parts.append(svg.dots(x, below.up(clipped), **look))
        found = residual_table(value[mine], truth[mine])
        numbers.append(
            {
                "name": str(group) or "all",
                "label": name,
                "n": str(int(mine.sum())),
                "bias": svg.number(_rounded(found["bias"])),
                "scatter": svg.number(_rounded(found["robust"])),
                "mark": legend_mark(Kind(name=str(group), members=mine, **look)),
            }
        )
    ends = np.array(span)
    parts.append(svg.line(top.across(ends), top.up(ends), kind="one"))
    parts.append(svg.line(below.across(ends), below.up(np.zeros(2)), kind="one"))
    return svg.drawing(400, 404, parts, title=f"{name} of the networks against known values"), numbers


def _limits(values: np.ndarray, *, margin: float = 0.04) -> tuple[float, float]:
    """Least and largest value with a margin; never the same."""
    low, high = float(np.min(values)), float(np.max(values))
    extra = margin * (high - low) or (0.5 * max(abs(low), 1.0) * 0.1 if high == low else 0.0)
    return low - extra, high + extra


def _rounded(value: float) -> float:
    """To three digits that mean something."""
    return float(f"{float(value):.3g}")
