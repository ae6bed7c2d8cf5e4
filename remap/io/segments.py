"""Segments of files: what every reader hands over, and how that becomes `Spectra`; sources with several layouts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError
from remap.io import axis, facts, places
from remap.io.content import reading
from remap.io.declarations import plain
from remap.io.fits_files import is_fits, open_fits, pick_hdu
from remap.spectra import Spectra, SpectrumError, make_spectra

# Keys of the source of every format.
COMMON = {"facts": None, "line_spread": None, "segments": None}
WHEN = ("hdus", "keywords", "columns", "shape", "name", "kind", "rises")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Spectra on one axis as they stand in a file, before anything is mended.

    Attributes:
      coordinate: float64[N], along the declared axis, NaN where null.
      flux: float[S, N].
      ivar: float[S, N], or None.
      error: float[S, N], standard deviations; None where there are none or ivar is given.
      valid: bool[S, N], what the file's masks say, or None.
      spread: the values of a line spread that stands in the file: one, `[N]` or `[S, N]`; or None.
      names: S names.
      facts: fact -> S values.
      labels: label -> float64[S].
    """

    coordinate: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray | None = None
    error: np.ndarray | None = None
    valid: np.ndarray | None = None
    spread: np.ndarray | None = None
    names: tuple[str, ...] = ()
    facts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def build(
    segment: Segment,
    path: Path,
    source: Mapping[str, Any],
    within: tuple[float, float] | None = None,
) -> Spectra:
    """A segment as `Spectra`: its axis mended (see `remap.io.axis.mend`), everything else brought along.

    Pixels that are merged are averaged by inverse variance where there is one, good pixels only, and their inverse
    variances added.

    Args:
      segment: of one file.
      path: the file.
      source: with medium, axis, wave_unit and line_spread (of `facts.check_spread`).
      within: Å, in the medium of the source.

    Raises:
      OutsideError: nothing is within the range.
      SpectrumError: the axis cannot be mended.
    """
    line = axis.mend(
        segment.coordinate, path, axis=source["axis"], wave_unit=source["wave_unit"], within=within
    )
    flux = np.atleast_2d(segment.flux)
    ivar = None if segment.ivar is None else np.atleast_2d(segment.ivar)
    if segment.error is not None:
        error = np.atleast_2d(np.asarray(segment.error, np.float64))
        # Below 1e-150 the square is no number; that of a huge error is infinite, and its pixel worth nothing.
        known = np.isfinite(error) & (error > 1e-150)
        if source.get("bad_error") is not None:
            known &= error < source["bad_error"]
        with np.errstate(over="ignore"):
            ivar = np.where(known, 1 / np.where(known, error, 1) ** 2, 0)
    good = np.isfinite(flux)
    if segment.valid is not None:
        good &= np.atleast_2d(segment.valid)
    if ivar is not None:
        good &= np.isfinite(ivar) & (ivar > 0)
    if line.merged:
        weights = good.astype(np.float64) if ivar is None else np.where(good, ivar, 0.0)
        flux = line.mean(flux, weights)
        ivar = None if ivar is None else line.total(np.where(good, ivar, 0.0))
        good = line.total(good.astype(np.int64)) > 0
    else:
        flux, good = flux[:, line.index], good[:, line.index]
        ivar = None if ivar is None else ivar[:, line.index]
    spread = segment.spread
    if spread is not None and np.ndim(spread):
        if np.shape(spread)[-1] != segment.coordinate.size:
            raise SpectrumError(
                f"{path}: expected a line spread for {segment.coordinate.size} pixels, found shape {np.shape(spread)}"
            )
        spread = line.mean(np.asarray(spread, np.float64))
    return make_spectra(
        line.wave,
        flux,
        medium=source["medium"],
        valid=good,
        ivar=ivar,
        names=segment.names or None,
        labels=segment.labels,
        fwhm=facts.fwhm(source.get("line_spread"), line.wave, line.step, spread),
        facts=segment.facts,
    )


def build_all(
    found: Iterable[tuple[Segment, Mapping[str, Any]]], path: Path, within: tuple[float, float] | None
) -> tuple[Spectra, ...]:
    """Segments and their sources as `Spectra`, without those that lie outside the range; error if all do."""
    out, outside = [], None
    for segment, source in found:
        try:
            out.append(build(segment, path, source, within))
        except axis.OutsideError as error:
            outside = error
    if not out:
        raise outside or SpectrumError(f"{path}: expected a spectrum, found none")
    return tuple(out)


def choose(options: Any, path: Path) -> tuple[dict[str, Any], fits.HDUList | None]:
    """The first of several sources whose test `when` holds for a file, and its HDUs, open; None for a text file.

    Args:
      options: sources, plain ones (`declarations.plain`), each with `when`: a mapping of some of
        kind: "fits" or "text";
        name: a regular expression, looked for in the file's name;
        hdus: names or numbers of HDUs that must be there;
        keywords: keyword -> regular expression that its value must match from the start (in the primary header, or
          the first extension's);
        columns: {"hdu": ..., "names": (...)}: columns that a table must have;
        shape: {"hdu": ..., "shape": (5, None)}: that of an image, None for any length; "integer": True, of integers;
        rises: {"hdu": ..., "row": ...}: an image's row that increases (a wavelength).
      path: the file.

    Raises:
      SpectrumError: none holds; says what each expected and what the file has.
    """
    if not isinstance(options, tuple) or not options or not all(isinstance(o, Mapping) for o in options):
        raise ConfigError(f"source of any: options must be sources, each with 'when', found {options!r}")
    for option in options:
        if set(option.get("when") or {}) - set(WHEN):
            raise ConfigError(f"source of any: when knows {WHEN}, found {sorted(option['when'])}")
    missing = []
    with reading(path, "a spectrum"):
        hdus = open_fits(path) if is_fits(path) else None
        for option in options:
            lacks = failing(option.get("when") or {}, path, hdus)
            if lacks is None:
                return {key: value for key, value in option.items() if key != "when"}, hdus
            missing.append(lacks)
        found = "a text file" if hdus is None else describe(hdus)
    raise SpectrumError(f"{path}: expected {' or '.join(dict.fromkeys(missing))}, found {found}")


def describe(hdus: fits.HDUList) -> str:
    """The HDUs of a file in a few words."""
    parts = []
    for i, hdu in enumerate(hdus):
        if hdu.is_image:
            parts.append(f"{i} {hdu.name!r} {list(hdu.shape)}")
        else:
            parts.append(f"{i} {hdu.name!r} ({', '.join(hdu.columns.names[:6])})")
    return "; ".join(parts[:8]) + (" …" if len(parts) > 8 else "")


def failing(when: Mapping[str, Any], path: Path, hdus: fits.HDUList | None) -> str | None:
    """What a file lacks to pass a test, in words; None if it passes."""
    kind = "text" if hdus is None else "fits"
    if when.get("kind", kind) != kind:
        return f"a {when['kind']} file"
    if "name" in when and not re.search(when["name"], path.name):
        return f"a name like {when['name']}"
    if hdus is None:
        return None if not set(when) - {"kind", "name"} else "a FITS file"
    for hdu in when.get("hdus", ()):
        if _hdu(hdus, hdu) is None:
            return f"an HDU {hdu!r}"
    for key, pattern in when.get("keywords", {}).items():
        values = [h.header.get(key) for h in (hdus[0], *([hdus[1]] if len(hdus) > 1 else []))]
        if not any(v is not None and re.match(pattern, str(v).strip()) for v in values):
            return f"{key} = {pattern} in the header"
    for test in _several(when.get("columns")):
        hdu = _hdu(hdus, test["hdu"])
        there = {n.lower() for n in hdu.columns.names} if hdu is not None and not hdu.is_image else set()
        lacking = [n for n in test["names"] if n.lower() not in there]
        if lacking:
            return f"columns {', '.join(test['names'])} in HDU {test['hdu']!r}"
    for test in _several(when.get("shape")):
        hdu = _hdu(hdus, test["hdu"])
        shape = hdu.shape if hdu is not None and hdu.is_image else ()
        if test.get("integer") and not (shape and hdu.header.get("BITPIX", 0) > 0):
            return f"an image of integers in HDU {test['hdu']!r}"
        if len(shape) != len(test["shape"]) or any(
            want not in (None, n) for want, n in zip(test["shape"], shape, strict=True)
        ):
            wanted = ", ".join("N" if n is None else str(n) for n in test["shape"])
            return f"an image [{wanted}] in HDU {test['hdu']!r}"
    for test in _several(when.get("rises")):
        hdu = _hdu(hdus, test["hdu"])
        what = f"wavelengths in row {test['row']} of HDU {test['hdu']!r}"
        if hdu is None or not hdu.is_image or hdu.data is None:
            return what
        try:
            values = places.image_row(hdu.data, test["row"], path, where="it")
        except SpectrumError:
            return what
        values = values[np.isfinite(values) & (values > 0)]
        if values.size < 2 or np.mean(np.diff(values) > 0) < 0.999:
            return what
    return None


def _hdu(hdus: fits.HDUList, hdu: int | str) -> Any:
    try:
        return hdus[hdu]
    except (KeyError, IndexError):
        return None


def _several(tests: Any) -> tuple:
    return () if tests is None else tests if isinstance(tests, tuple) else (tests,)


def check_segments(declared: Any, arrays: tuple[str, ...], kind: str) -> tuple[dict[str, Any], ...] | None:
    """`segments` of a source as a tuple of dicts, or None; ConfigError where it cannot be right.

    Args:
      declared: see `expand`.
      arrays: keys of the source that a segment may set for itself.
      kind: what is declared, for messages.
    """
    declared = plain(declared)
    if declared is None:
        return None
    known = ("segment", "exposure", "hdu", "hdus", "rows", *arrays)
    if not isinstance(declared, tuple) or not declared:
        raise ConfigError(f"source of {kind}: segments must be a sequence of mappings, found {declared!r}")
    for one in declared:
        if not isinstance(one, Mapping) or set(one) - set(known):
            raise ConfigError(f"source of {kind}: a segment has the keys {known}, found {one!r}")
        if one.get("hdus") is not None:
            try:
                re.compile(one["hdus"])
            except re.error as error:
                raise ConfigError(f"source of {kind}: {error} in hdus {one['hdus']!r}") from error
    return declared


def expand(
    source: Mapping[str, Any], hdus: fits.HDUList, path: Path, *, exposures: bool = True
) -> list[dict[str, Any]]:
    """The sources of the single segments of a file.

    Args:
      source: with hdu and `segments`: None for one segment, or a sequence of mappings, each with keys of the source
        that differ in it, and some of
        segment: its name, the fact of that name;
        exposure: the name of a single exposure; where it is absent the segment is what the pipeline summed up;
        hdus: a regular expression: one segment for each HDU whose whole name matches it; groups (?P<segment>...) and
          (?P<exposure>...) are those names where they are not given;
        rows: (first, last) of the image or table, last not included or None: one segment for each row.
        `{n}` in the names is the number from 1 of the HDU or row, `{name}` the HDU's name.
      hdus: the open file.
      path: the file, for messages.
      exposures: False leaves single exposures out, if anything else is there.

    Returns:
      Sources without `segments` and with segment, exposure ("" where there is none) and number, from 1.
    """
    base = {key: value for key, value in source.items() if key != "segments"}
    if source.get("segments") is None:
        return [base | {"segment": "", "exposure": "", "number": 1}]
    out = []
    for declared in source["segments"]:
        one = {key: value for key, value in declared.items() if key not in ("hdus", "rows")}
        several: list[dict[str, Any]] = [one]
        if declared.get("hdus") is not None:
            pattern = re.compile(declared["hdus"], re.IGNORECASE)
            matching = [(i, m) for i, h in enumerate(hdus) if (m := pattern.fullmatch(h.name))]
            several = [{k: v for k, v in m.groupdict().items() if v} | one | {"hdu": i} for i, m in matching]
        elif declared.get("rows") is not None:
            hdu = {**base, **one}["hdu"]
            image = pick_hdu(hdus, hdu, path)
            shape = image.shape if image.is_image else ()
            first, last = declared["rows"]
            count = shape[-2] if len(shape) > 1 else 1 if image.is_image else image.header["NAXIS2"]
            several = [one | {"row": r} for r in range(first, count if last is None else min(last, count))]
        for number, each in enumerate(several, 1):
            name = ""
            if isinstance(each.get("hdu"), int) and 0 <= each["hdu"] < len(hdus):
                name = hdus[each["hdu"]].name
            for key in ("segment", "exposure"):
                text = str(each.get(key) or "")
                each = each | {key: text.replace("{n}", str(number)).replace("{name}", name)}
            out.append(base | each | {"number": number})
    chosen = out if exposures else [one for one in out if not one["exposure"]] or out
    if not chosen:
        raise SpectrumError(f"{path}: expected segments, found none among {describe(hdus)}")
    return chosen


def name_facts(told: dict[str, np.ndarray], one: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Facts with the names of segment and exposure that the declaration gives."""
    count = max([len(v) for v in told.values()], default=1)
    out = dict(told)
    for key in ("segment", "exposure"):
        if one.get(key):
            out[key] = np.full(count, one[key], dtype=object)
    return out
