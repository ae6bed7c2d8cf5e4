"""Drawings of one star: its arms, line by line, and its PMFs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from remap.report.html import svg
from remap.report.html.figures import in_words
from remap.report.html.records import ArmCard, LineMark, StarCard

WIDTH, LEFT, RIGHT = 1200, 64, 12  # of a drawing, and its margins
CONTINUUM_POINTS = 80
PMF_SHOWN = 0.01  # of the largest probability; bins outside are not drawn
NEAR = 0.5  # how far up the spectra of neighbours are shifted, per neighbour, in units of the continuum


def arm(
    card: ArmCard, lines: Sequence[LineMark], units: Mapping[str, str], *, columns: int, medium: str = ""
) -> str:
    """Flux with continuum, normalised flux with library and lines, and saliencies of an arm, one above the other.

    Args:
      columns: of the curves; finer ones are drawn by their least and largest values.
    """
    x = (float(card.wave[0]), float(card.wave[-1]))
    parts, top = [], 8.0
    if card.flux is not None and np.isfinite(card.flux).any():
        parts.append(_flux(card, _panel(top, 100, x, _window(card.flux)), columns))
        parts.append(svg.text(WIDTH - RIGHT - 4, top + 96, f"arm {card.name}", kind="e"))
        top += 118
    if card.normalized is not None and np.isfinite(card.normalized).any():
        panel = _panel(top + 34, 150, x, _window(card.normalized, floor=1.05))
        parts.append(_normalized(card, panel, lines, columns))
        top += 202
    largest = {label: np.nanmax(np.abs(s), initial=0.0) for label, s in card.saliency.items()}
    for i, (label, values) in enumerate(card.saliency.items()):
        limit = float(largest[label]) * 1.05 or 1.0
        panel = _panel(top, 46, x, (-limit, limit))
        parts.append(svg.axes(panel, x_count=6, y_count=2, numbers=False))
        wave, mean = svg.average(card.wave, np.nan_to_num(values), columns)
        parts.append(svg.area(panel.across(wave), panel.up(mean), float(panel.up(0.0)), kind=f"s{i % 4}"))
        words = f"{in_words(label)}: {units.get(label) or 'units'} per 1 % · Å, at most {largest[label]:.2g}"
        parts.append(svg.text(LEFT + 6, top + 12, words, kind="n"))
        top += 58
    if not parts:
        return ""
    bottom = _panel(top - 12, 0.01, x, (0.0, 1.0))
    parts += [svg.text(bottom.across(v), top + 6, svg.number(v), kind="m") for v in svg.ticks(*x, 8)]
    where = f"wavelength{f' in {medium}' if medium else ''} [Å]"
    parts.append(svg.text(LEFT + (WIDTH - LEFT - RIGHT) / 2, top + 24, where, kind="m"))
    title = f"arm {card.name}, {x[0]:.0f} to {x[1]:.0f} Å: flux, normalised flux and saliency"
    return svg.drawing(WIDTH, top + 30, parts, title=title)


def pmfs(star: StarCard, label: str, edges: np.ndarray, unit: str, arms: Sequence[str]) -> str:
    """The PMFs of a label, combined and of every arm, where they are not negligible; "" where there is none.

    Ticks at the bottom are the neighbours' labels. `arms` are the names of the arms in their order.
    """
    own = {whose: np.asarray(p, float) for whose, p in star.pmfs.get(label, {}).items()}
    own = {whose: p for whose, p in own.items() if np.isfinite(p).all()}
    if not own:
        return ""
    shown = np.flatnonzero(np.max([p / p.max() for p in own.values()], axis=0) > PMF_SHOWN)
    first, last = max(shown[0] - 1, 0), min(shown[-1] + 2, edges.size - 1)
    # Per unit of the label, so that bins of different widths compare; the panel's height is the largest.
    density = {whose: p / np.diff(edges) for whose, p in own.items()}
    limit = max(d.max() for d in density.values()) * 1.06
    x = (float(edges[first]), float(edges[last]))
    panel = svg.Panel(left=14, top=6, width=372, height=120, x=x, y=(0.0, float(limit)))
    parts = [svg.axes(panel, x_name=in_words(label, unit), x_count=5, y_count=0)]
    for whose, d in density.items():
        steps = np.repeat(edges[first : last + 1], 2)[1:-1], np.repeat(d[first:last], 2)
        across, up = panel.across(steps[0]), panel.up(steps[1])
        if whose == "":
            parts.insert(1, svg.area(across, up, float(panel.up(0.0)), kind="pmf"))
        else:
            i = list(arms).index(whose) if whose in arms else 0
            parts.append(svg.line(across, up, kind=f"arm{i % 4}", title=f"arm {whose}"))
    values = [n.labels[label] for n in star.neighbours if label in n.labels]
    near = np.array([v for v in values if x[0] <= v <= x[1]])
    base = np.full(near.size, panel.top + panel.height)
    parts.append(svg.bars(panel.across(near), base, base - 10, kind="near"))
    return svg.drawing(400, 160, parts, title=f"probabilities of {in_words(label)}, combined and per arm")


def neighbours(star: StarCard, card: ArmCard, *, columns: int) -> str:
    """The normalised spectra of an arm of the star and, shifted, of its neighbours. "" where none is at hand."""
    own = [
        (n.name, np.asarray(n.spectra[card.name], float)) for n in star.neighbours if card.name in n.spectra
    ]
    own = [(name, s) for name, s in own if s.shape == card.wave.shape and np.isfinite(s).any()]
    if not own or card.normalized is None:
        return ""
    curves = [("the star", card.normalized), *own]
    x = (float(card.wave[0]), float(card.wave[-1]))
    panel = _panel(8, 60 * len(curves) + 60, x, (_window(card.normalized)[0], 1.1 + NEAR * (len(curves) - 1)))
    parts = [svg.axes(panel, x_count=8, y_count=0, x_name="wavelength [Å]")]
    for i, (name, flux) in enumerate(curves):
        wave, thinned = svg.thin(card.wave, flux, columns)
        parts.append(
            svg.line(panel.across(wave), panel.up(thinned + NEAR * i), kind="star" if i == 0 else "lib")
        )
        parts.append(svg.text(LEFT + 6, float(panel.up(1.06 + NEAR * i)), name, kind="n"))
    return svg.drawing(
        WIDTH, panel.top + panel.height + 36, parts, title=f"arm {card.name}: star and neighbours"
    )


def _flux(card: ArmCard, panel: svg.Panel, columns: int) -> str:
    parts = [svg.axes(panel, y_name="flux", x_count=8, y_count=2, numbers=False)]
    wave, flux = svg.thin(card.wave, np.asarray(card.flux, float), columns)
    parts.append(svg.line(panel.across(wave), panel.up(flux), kind="star"))
    if card.continuum is not None:
        some = np.unique(np.linspace(0, card.wave.size - 1, CONTINUUM_POINTS).astype(int))
        places = panel.across(card.wave[some]), panel.up(np.asarray(card.continuum, float)[some])
        parts.append(svg.line(*places, kind="cont", title="continuum"))
    return "".join(parts)


def _normalized(card: ArmCard, panel: svg.Panel, lines: Sequence[LineMark], columns: int) -> str:
    parts = [svg.axes(panel, y_name="normalised", x_count=8, y_count=3, numbers=False)]
    for mark in lines:
        if panel.x[0] < mark.wave < panel.x[1]:
            place = float(panel.across(mark.wave))
            parts.append(f'<path class="l" d="M{place:.0f} {panel.top - 4:.0f}v{panel.height + 4:.0f}"/>')
            full = f"{mark.name} {mark.wave:.2f} Å"
            parts.append(svg.text(place + 4, panel.top - 6, mark.name, kind="t", turn=True, title=full))
    if card.library is not None:
        wave, flux = svg.thin(card.wave, np.asarray(card.library, float), columns)
        parts.append(
            svg.line(panel.across(wave), panel.up(np.clip(flux, *panel.y)), kind="lib", title="library")
        )
    wave, flux = svg.thin(card.wave, np.asarray(card.normalized, float), columns)
    parts.append(
        svg.line(panel.across(wave), panel.up(np.clip(flux, *panel.y)), kind="star", title="the star")
    )
    return "".join(parts)


def _panel(top: float, height: float, x: tuple[float, float], y: tuple[float, float]) -> svg.Panel:
    return svg.Panel(left=LEFT, top=top, width=WIDTH - LEFT - RIGHT, height=height, x=x, y=y)


def _window(values: np.ndarray, *, floor: float = -np.inf) -> tuple[float, float]:
    """Limits that a cosmic ray does not stretch; the upper one is at least `floor`."""
    good = np.asarray(values, float)[np.isfinite(values)]
    low, high = np.percentile(good, [0.1, 99.7])
    margin = 0.08 * (high - low) or 0.1
    return float(low - margin), float(max(high + margin, floor))
