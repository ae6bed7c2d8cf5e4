"""What is this file? A look at one spectrum before it is trusted to a network; nothing is written but a picture.

What it finds is a proposal. The declaration stays the authority: neither medium nor frame can be seen in a file, and
what its header says of them is wrong too often.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from remap import io, surveys
from remap.predict.predictor import Predictor
from remap.preprocess.cleaning import mask_bad
from remap.preprocess.description import Preprocessing
from remap.preprocess.grid import snr_estimate
from remap.preprocess.line_width import measure_line_width
from remap.preprocess.media import MediaComparison, compare_media
from remap.preprocess.observe import observe
from remap.preprocess.observe_settings import ObserveSettings
from remap.preprocess.templates import Templates
from remap.report.figure import COLOURS, page
from remap.spectra import MEDIA, NUMBER_FACTS, TEXT_FACTS, Spectra, SpectrumError
from remap.store.workdir import load_templates, read_preprocessing
from remap.surveys import Match, Survey

SHOWN = 12  # segments of a file that are told one by one
STELLAR = (1000.0, 1e6)  # Å; what a file is read within that has no sound wavelengths beyond
AT_REST = 10.0  # km/s: error of the velocity 0 of a spectrum that is declared to be at rest


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a file.

    Attributes:
      name: arm, chip or order, and exposure; "" where there is one only.
      spectra: as read.
      step: median width of a pixel, Å.
      zeros: share of pixels that are exactly zero.
      masked: share that the file's own mask, errors or NaN mark.
      cleaned: share that is bad besides: zeros without a mask, absurd values.
      snr: median signal-to-noise per pixel; NaN = unknown.
      declared: median FWHM of the line spread, Å, as declared or as the file says; NaN = unknown.
      measured: FWHM of the narrowest structure, Å, estimated from the power spectrum: the star's own width is in it,
        and noise that resampling has smoothed looks like it. NaN = none found.
    """

    name: str
    spectra: Spectra
    step: float
    zeros: float
    masked: float
    cleaned: float
    snr: float
    declared: float
    measured: float


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a file.

    Attributes:
      path: the file.
      hdus: its parts, in words.
      matches: surveys that could read it, best first.
      survey: with which it was read; None where it could not be.
      segments: what was read.
      trouble: why it could not be, "" elsewhere.
      coverage: arm of the network -> share of its pixels that are covered and good; {} without a working folder.
      media: velocities in either medium; None without a working folder or without arms.
      expected: km/s, the velocity that the declaration speaks for; NaN = it speaks for none.
      coarse: the lines are wider than the networks know them, or nobody knows how wide.
    """

    path: Path
    hdus: str
    matches: tuple[Match, ...]
    survey: Survey | None
    segments: tuple[Segment, ...]
    trouble: str
    coverage: Mapping[str, float]
    media: MediaComparison | None
    expected: float
    coarse: bool

    def lines(self) -> list[str]:
        """The same in words, for a terminal."""
        out = [str(self.path), f"  parts     {self.hdus}"]
        for match in self.matches[:3]:
            lacks = f"; lacks {', '.join(match.lacks)}" if match.lacks else ""
            out.append(f"  survey    {match.name}: {', '.join(match.reasons)}{lacks}")
        if not self.matches:
            out.append("  survey    none that is known; declare one with --source (docs/surveys.md)")
        if self.trouble:
            out.append(f"  not read  {self.trouble}")
            return out
        out.append(f"  read as   {self.survey.name}, {self._medium()}, frame {self.survey.frame} (declared)")
        for segment in self.segments[:SHOWN]:
            out += _segment_lines(segment)
        if len(self.segments) > SHOWN:
            out.append(f"  ... and {len(self.segments) - SHOWN} segments more")
        out += self._facts()
        if self.coverage:
            shares = ", ".join(f"{arm} {share:.0%}" for arm, share in self.coverage.items())
            wide = "; lines are wider than the networks know them, or of unknown width" if self.coarse else ""
            out.append(f"  network   covers of its arms: {shares}{wide}")
        out += self._velocity()
        return out

    def _medium(self) -> str:
        return "/".join(sorted({s.spectra.medium for s in self.segments}))

    def _facts(self) -> list[str]:
        first = self.segments[0].spectra
        told = [f"{n} {first.fact(n)[0]}" for n in TEXT_FACTS if first.fact(n)[0] and n != "segment"]
        told += [f"{n} {first.fact(n)[0]:.6g}" for n in NUMBER_FACTS if np.isfinite(first.fact(n)[0])]
        return [f"  says      {', '.join(told)}"] if told else []

    def _velocity(self) -> list[str]:
        if self.media is None:
            return []
        out, own = [], self._medium()
        other = "air" if own == "vacuum" else "vacuum"
        for medium, found in ((own, self.media.declared), (other, self.media.other)):
            if not np.isfinite(found.velocity[0]):
                out.append(
                    f"  velocity  cannot be measured in {medium}: too little of the arms, or no lines of a star"
                )
                continue
            what = "poor" if found.poor[0] else f"quality {found.quality[0]:.1f}"
            out.append(
                f"  velocity  {found.velocity[0]:+.1f} ± {found.error[0]:.1f} km/s in {medium} ({what})"
            )
        verdict = str(self.media.verdict[0])
        if np.isfinite(self.expected):
            said = {
                "declared": f"fits {own}, as declared",
                "other": f"speaks for {other}, not for {own} as declared",
                "undecided": "is not decided",
            }[verdict]
            out.append(f"  medium    {said} (expected {self.expected:+.1f} km/s)")
        else:
            out.append("  medium    cannot be told without a velocity that the star should have")
        return out


def inspect(
    path: str | Path,
    *,
    survey: Survey | str | None = None,
    workdir: str | Path | None = None,
    predictor: Predictor | None = None,
    settings: ObserveSettings | None = None,
) -> Inspection:
    """Looks at a file: what it is, what is in it, and what a working folder's networks could do with it.

    Args:
      survey: with which it is read; None = the one that fits best.
      workdir: a folder with the stage `preprocess` done: for the arms, and for templates of velocities.
      predictor: networks that have both, in place of a working folder.
      settings: how observed spectra are treated; None = `ObserveSettings()`.

    Raises:
      SpectrumError: there is no such file, or it is broken beyond telling its parts.
      FileNotFoundError: the working folder has no prepared data.
    """
    path = Path(path)
    hdus, matches = surveys.describe(path), surveys.identify(path)
    if survey is None:
        chosen = surveys.get(matches[0].name) if matches else None
    else:
        chosen = surveys.get(survey) if isinstance(survey, str) else survey
    found, trouble = (), "" if chosen else "no known survey has files like it"
    if chosen:
        try:
            found = io.read_segments(path, source=chosen.source)
        except SpectrumError as error:
            trouble = str(error)
            with contextlib.suppress(SpectrumError):  # what is wrong in the far ultraviolet is no matter
                found, trouble = io.read_segments(path, source=chosen.source, within=STELLAR), ""
    settings = settings or ObserveSettings()
    segments = tuple(_segment(part, settings) for part in found)
    coverage, media, expected, coarse = {}, None, np.nan, False
    if segments and (workdir is not None or predictor is not None):
        if predictor is None:
            preprocessing, templates = read_preprocessing(Path(workdir)), load_templates(Path(workdir))
        else:
            preprocessing, templates = predictor.preprocessing, predictor.templates
        expected = 0.0 if chosen.frame == "rest" else float(found[0].fact("rv")[0])
        coverage, coarse, media = _network(found, preprocessing, templates, settings, expected, chosen.frame)
    return Inspection(path, hdus, matches, chosen, segments, trouble, coverage, media, expected, coarse)


def plot(found: Inspection, path: str | Path) -> None:
    """Draws the segments of a file: flux, what is masked, and where.

    Raises:
      ImportError: matplotlib is missing.
      SpectrumError: the file could not be read.
    """
    if not found.segments:
        raise SpectrumError(f"{found.path}: nothing to draw: {found.trouble}")
    shown = found.segments[:SHOWN]
    with page(path, 9.0, 1.2 + 1.8 * len(shown)) as figure:
        axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axis, segment in zip(axes, shown, strict=True):
            spectra = segment.spectra
            good = mask_bad(spectra, ObserveSettings().cleaning).valid[0]
            flux = np.where(good, spectra.flux[0], np.nan)
            axis.plot(spectra.wave, flux, color=COLOURS[0], linewidth=0.6)
            low, high = np.nanpercentile(flux, [0.5, 99.5]) if good.any() else (0.0, 1.0)
            margin = 0.1 * (high - low) or 1.0
            axis.set_ylim(low - margin, high + margin)
            bad = ~good
            if bad.any():
                bottom = np.full(np.count_nonzero(bad), low - margin)
                axis.plot(spectra.wave[bad], bottom, "|", color=COLOURS[1], label="not used")
                axis.legend(loc="upper right")
            axis.set_title(segment.name or found.path.name, loc="left")
            axis.set_ylabel("flux")
        axes[-1].set_xlabel(f"wavelength in {shown[-1].spectra.medium} [Å]")


def _segment(part: Spectra, settings: ObserveSettings) -> Segment:
    """What one segment is like, over all of its rows."""
    first = part.rows(slice(0, 1))
    zero = np.mean(part.flux == 0)
    cleaned = mask_bad(part, settings.cleaning)
    step = float(np.median(np.diff(part.wave))) if part.wave.size > 1 else np.nan
    snr = snr_estimate(cleaned.flux, cleaned.valid, cleaned.ivar)
    name = f"{first.fact('segment')[0]} {first.fact('exposure')[0]}".strip()
    return Segment(
        name=name,
        spectra=part,
        step=step,
        zeros=float(zero),
        masked=float(np.mean(~part.valid)),
        cleaned=float(np.mean(part.valid & ~cleaned.valid)),
        snr=float(np.median(snr[np.isfinite(snr)])) if np.isfinite(snr).any() else np.nan,
        declared=np.nan if part.fwhm is None else float(np.median(part.fwhm)),
        measured=measure_line_width(cleaned.flux, cleaned.valid) * step,
    )


def _network(
    found: Sequence[Spectra],
    preprocessing: Preprocessing,
    templates: Templates | None,
    settings: ObserveSettings,
    expected: float,
    frame: str,
) -> tuple[dict[str, float], bool, MediaComparison | None]:
    """Coverage of the arms, whether the lines are too wide, and velocities, of the file's fullest spectrum."""
    still = dataclasses.replace(settings, velocity="rest", check=False, trust_width=False, cosmic_rays=False)
    best = int(
        np.argmax(sum(p.valid.sum(axis=1) for p in found if len(p) == len(found[0])))
    )  # targets may be blank
    first = [part.rows(slice(best, best + 1)) for part in found if len(part) == len(found[0])]
    turned = [
        dataclasses.replace(p, medium=MEDIA[1 - MEDIA.index(p.medium)]) for p in first if p.wave[0] > 2000
    ]
    own = observe([first], preprocessing, settings=still)
    coverage = {arm: float(on.valid[0].mean()) for arm, on in own.arms.items()}
    if templates is None or not turned or not any(coverage.values()):
        return coverage, bool(own.coarse[0]), None
    other = observe([turned], preprocessing, settings=still)
    arms = [
        {
            a: (on.flux[:1], on.valid[:1], None if np.isnan(on.ivar[:1]).all() else on.ivar[:1])
            for a, on in x.arms.items()
        }
        for x in (own, other)
    ]
    error = AT_REST
    if frame != "rest" and np.isfinite(found[0].fact("rv_err")[0]):
        error = max(AT_REST, float(found[0].fact("rv_err")[0]))
    media = compare_media(
        *arms,
        templates,
        settings.cross_correlation,
        expected=expected if np.isfinite(expected) else None,
        expected_error=error,
    )
    return coverage, bool(own.coarse[0]), media


def _segment_lines(segment: Segment) -> list[str]:
    spectra = segment.spectra
    name = f" {segment.name}" if segment.name else ""
    rows = f"{len(spectra)} spectra, " if len(spectra) > 1 else ""
    out = [
        f"  segment  {name} {rows}{spectra.wave[0]:.2f} to {spectra.wave[-1]:.2f} Å, {spectra.wave.size} pixels of "
        f"{segment.step:.4g} Å, S/N {segment.snr:.3g}; {segment.zeros:.1%} exact zeros, {segment.masked:.1%} masked, "
        f"{segment.cleaned:.1%} bad besides"
    ]
    middle = float(np.median(spectra.wave))
    widths = []
    for what, width in (("declared", segment.declared), ("narrowest structure", segment.measured)):
        if np.isfinite(width) and width > 0:
            widths.append(f"{what} {width:.3g} Å (R {middle / width:.0f})")
    out.append(f"  lines     {'; '.join(widths) or 'of unknown width: set line_spread or --resolution'}")
    return out
