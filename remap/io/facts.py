"""What a file says of its spectra besides their pixels: identifiers, coordinates, S/N, velocity; and the line spread.

A source declares `facts`, the name of a fact -> its place, or several places, of which the first that says anything
counts. A place is the keyword of a header (that of the spectrum's HDU, then the primary one) or a mapping with one of
  keyword: the same, where `{n}` stands for the number of the exposure, from 1;
  column: of a table, its first row, or the row of the target;
  name: a regular expression with one group, looked for in the file's name;
  value: the fact itself;
and optionally hdu; factor, by which a number is multiplied (299792.458 makes a redshift a velocity); missing, values
that stand for "not known"; within, of a star_id that differs between visits of a star, because it is a position or a
number of the observation: spectra whose positions agree to so many arcsec are of one star then (it becomes the fact
star_within); where, one or several of {"column": ..., "values": (...), "hdu": ...}: columns that must
have one of these values in the same row, or the fact is not known (flags of warning, the class of an object). What is
absent or broken is "" or NaN: a fact is never a reason not to read a spectrum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from remap.config import ConfigError
from remap.io import bintable, places
from remap.io.declarations import check_choice, plain
from remap.spectra import NUMBER_FACTS, TEXT_FACTS, SpectrumError

PLACES = ("keyword", "column", "name", "value")
KEYS = (*PLACES, "hdu", "factor", "missing", "where", "within")
WIDEST = 60.0  # arcsec: no two positions of a star differ by more
SPREADS = ("resolution", "fwhm", "sigma", "fwhm_pixels", "sigma_pixels", "sigma_log10")
SIGMA = 2 * np.sqrt(2 * np.log(2))  # FWHM of a Gaussian of unit standard deviation
LIMITS = {
    "ra": (0, 360),
    "dec": (-90, 90),
    "star_within": (0, WIDEST),
    "rv": (-2000, 2000),  # no star is faster, but the redshift of a galaxy or quasar stands at the same place
    "rv_err": (0, 2000),
    "snr": (0, np.inf),
}  # what a fact can be; elsewhere it is not known
SEXAGESIMAL = re.compile(
    r"[+-]?\s*\d{1,3}[:hd\s]+\d{1,2}(\.\d*)?([:m'\s]+\d{1,2}(\.\d*)?)?\s*[ms'\"]?", re.IGNORECASE
)
# Written where a target has no name: as an identifier it would make one star of many.
NO_NAMES = {
    *(
        "-",
        "--",
        "---",
        "?",
        "n/a",
        "na",
        "nan",
        "none",
        "null",
        "nil",
        "unknown",
        "undefined",
        "unnamed",
        "noname",
    ),
    *("object", "star", "target", "science", "sky", "std", "standard", "test"),
    *("0", "-1", "-99", "-999", "-9999", "-99999", "9999", "99999", "999999"),
}


def check_facts(declared: Any, kind: str) -> dict[str, tuple[dict[str, Any], ...]]:
    """`facts` of a source as fact -> places; ConfigError where it cannot be right."""
    declared = plain(declared) or {}
    if not isinstance(declared, Mapping):
        raise ConfigError(f"source of {kind}: facts must name the place of each fact, found {declared!r}")
    out = {}
    for name, given in declared.items():
        if name not in (*TEXT_FACTS, *NUMBER_FACTS):
            raise ConfigError(
                f"source of {kind}: facts must be among {(*TEXT_FACTS, *NUMBER_FACTS)}, found {name!r}"
            )
        options = given if isinstance(given, tuple) else () if given is None else (given,)
        out[name] = tuple(_check_place(place, name, kind) for place in options)
    return out


def _check_place(place: Any, name: str, kind: str) -> dict[str, Any]:
    if isinstance(place, str):
        return {"keyword": place}
    if (
        not isinstance(place, Mapping)
        or set(place) - set(KEYS)
        or sum(place.get(k) is not None for k in PLACES) != 1
    ):
        raise ConfigError(
            f"source of {kind}: the fact {name!r} needs a keyword, or one of {PLACES} with {KEYS[4:]} if need be, "
            f"found {place!r}"
        )
    within = place.get("within")
    if within is not None and (
        name != "star_id"
        or isinstance(within, bool)
        or not isinstance(within, int | float)
        or not 0 < within <= WIDEST
    ):
        raise ConfigError(
            f"source of {kind}: within is of star_id alone, a number of arcsec above 0 and up to {WIDEST:g}, found "
            f"{within!r} of {name!r}"
        )
    if place.get("where") is not None:
        tests = place["where"] if isinstance(place["where"], tuple) else (place["where"],)
        if not all(
            isinstance(t, Mapping)
            and {"column", "values"} <= set(t) <= {"column", "values", "hdu"}
            and isinstance(t["values"], tuple)
            for t in tests
        ):
            raise ConfigError(
                f"source of {kind}: where of the fact {name!r} must have a column and values, found "
                f"{place['where']!r}"
            )
        place = {**place, "where": tests}
    if place.get("name") is not None:
        try:
            groups = re.compile(place["name"]).groups
        except re.error as error:
            raise ConfigError(f"source of {kind}: the fact {name!r}: {error} in {place['name']!r}") from error
        if groups != 1:
            raise ConfigError(f"source of {kind}: the fact {name!r} needs one group in {place['name']!r}")
    return dict(place)


def gather(
    declared: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    hdus: fits.HDUList | None = None,
    hdu: int | str = 0,
    rows: Sequence[int] | None = None,
    number: int = 1,
    count: int = 1,
    columns: Callable[[str], Sequence | np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """The facts of `count` spectra of one file.

    Args:
      declared: of `check_facts`.
      path: the file.
      hdus: its HDUs; None for a file without (only `name` and `value` can say anything).
      hdu: that of the spectra.
      rows: of the tables of targets, one for each spectrum; None = the first row for all.
      number: of the exposure, from 1.
      count: number of spectra.
      columns: of a file without HDUs that has columns: name -> the values of the spectra, None = there is none.

    Returns:
      Every fact declared -> `count` values; star_within, too, where a place of star_id has `within`.
    """
    out = {}
    within = np.full(count, np.nan)
    for name, options in declared.items():
        text = name in TEXT_FACTS
        found: list = ["" if text else np.nan] * count
        for place in options:
            values = _look(place, path, hdus, hdu, rows, number, count, columns)
            for test in place.get("where") or ():
                values = _only(values, test, place, path, hdus, hdu, rows, columns)
            for i, value in enumerate(values):
                if found[i] == "" or (not text and np.isnan(found[i])):
                    found[i] = _as_known_text(value, name, place) if text else _as_number(value, name, place)
                    if found[i] and place.get("within") is not None:
                        within[i] = place["within"]
        out[name] = np.array(found, dtype=object if text else np.float64)
    if any(place.get("within") is not None for place in declared.get("star_id", ())):
        out["star_within"] = within
    return out


def _look(
    place: Mapping[str, Any],
    path: Path,
    hdus: fits.HDUList | None,
    hdu: int | str,
    rows: Sequence[int] | None,
    number: int,
    count: int,
    columns: Callable[[str], Sequence | np.ndarray | None] | None = None,
) -> list:
    """`count` values as the file has them, None where it has none."""
    nothing = [None] * count
    if "value" in place and place["value"] is not None:
        return [place["value"]] * count
    if place.get("name") is not None:
        match = re.search(place["name"], path.name)
        return [match.group(1)] * count if match else nothing
    if columns is not None and place.get("column") is not None:
        found = columns(place["column"])
        return nothing if found is None else list(found)
    if hdus is None:
        return nothing
    where = place.get("hdu")
    if place.get("keyword") is not None:
        key = place["keyword"].replace("{n}", str(number))
        for chosen in (hdu, 0) if where is None else (where,):
            try:
                value = hdus[chosen].header.get(key)
            except (KeyError, IndexError, fits.VerifyError, ValueError):
                continue  # no such HDU, or a broken card
            if value is not None and not isinstance(value, fits.card.Undefined):
                return [value] * count
        return nothing
    chosen = [0] * count if rows is None else list(rows)
    try:
        table = bintable.open_table(hdus[hdu if where is None else where], path)
        if len(set(chosen)) == 1:
            return [table.cells(place["column"], chosen[0])] * count
        column = table.cells(place["column"])
    except Exception:  # no such HDU, no table, no such column, or damage in what is not needed
        return nothing
    return [column[r] if 0 <= r < len(column) else None for r in chosen]


def _only(
    values: list,
    test: Mapping[str, Any],
    place: Mapping[str, Any],
    path: Path,
    hdus: fits.HDUList | None,
    hdu: int | str,
    rows: Sequence[int] | None,
    columns: Callable[[str], Sequence | np.ndarray | None] | None = None,
) -> list:
    """The values of a place in rows where another column has one of some values; None elsewhere."""
    where = {"column": test["column"], "hdu": test.get("hdu", place.get("hdu"))}
    told = [as_text(v) for v in _look(where, path, hdus, hdu, rows, 1, len(values), columns)]
    wanted = {as_text(v) for v in test["values"]}
    return [value if text in wanted else None for value, text in zip(values, told, strict=True)]


def _as_known_text(value: Any, name: str, place: Mapping[str, Any]) -> str:
    text = as_text(value)
    if name == "star_id" and text.lower() in NO_NAMES:
        return ""
    return "" if text in {as_text(m) for m in place.get("missing") or ()} else text


def as_text(value: Any) -> str:
    """An identifier to the digit: numbers without a fraction are written as integers; "" for what is none."""
    if isinstance(value, np.ndarray):
        if value.size != 1:
            return ""
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return value.strip().strip("\0").strip()
    if value is None or value is np.ma.masked or isinstance(value, bool | np.bool_):
        return ""
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
    return ""


def _as_number(value: Any, name: str, place: Mapping[str, Any]) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if value is None or value is np.ma.masked or isinstance(value, bool | np.bool_):
        return np.nan
    try:
        if name in ("ra", "dec") and isinstance(value, str) and SEXAGESIMAL.fullmatch(value.strip()):
            number = _sexagesimal(value) * (15 if name == "ra" else 1)  # right ascensions are in hours then
        else:
            number = float(value)
    except (TypeError, ValueError):
        return np.nan
    low, high = LIMITS.get(name, (-np.inf, np.inf))
    if not np.isfinite(number) or any(
        abs(number - m) <= 1e-8 + 1e-5 * abs(m) for m in place.get("missing") or ()
    ):
        return np.nan
    number *= place.get("factor") or 1.0
    return number if low <= number <= high else np.nan


def _sexagesimal(text: str) -> float:
    parts = [float(p) for p in re.findall(r"\d+\.?\d*", text)]
    if any(p >= 60 for p in parts[1:]):
        return np.nan
    size = sum(p / 60**i for i, p in enumerate(parts))
    return -size if text.strip().startswith("-") else size


def check_spread(declared: Any, kind: str) -> dict[str, Any] | None:
    """`line_spread` of a source as a dict, or None; ConfigError where it cannot be right.

    One of {"resolution": R}, {"fwhm": Å}, either of them as a sequence beside {"wave": Å, ...}, between which is
    interpolated, and {"place": ..., "kind": one of SPREADS, "factor": 1.0}: a keyword, or a mapping as for other
    arrays or facts. "sigma_log10" is a standard deviation of log10 of the wavelength; the factor multiplies what is
    there.
    """
    declared = plain(declared)
    if not declared:
        return None
    if not isinstance(declared, Mapping):
        raise ConfigError(f"source of {kind}: line_spread must be a mapping, found {declared!r}")
    keys = set(declared)
    if {"place", "kind"} <= keys <= {"place", "kind", "factor"}:
        check_choice(declared, "kind", SPREADS, kind)
        place = declared["place"]
        if isinstance(place, str):
            place = {"keyword": place}
        if not isinstance(place, Mapping):
            raise ConfigError(
                f"source of {kind}: the place of line_spread must be a mapping, found {place!r}"
            )
        if any(key in place for key in ("keyword", "name", "value")):
            place = _check_place(place, "line_spread", kind)
        else:
            place = places.check(place, "the place of line_spread", kind)
        factor = declared.get("factor", 1.0)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < np.inf:
            raise ConfigError(f"source of {kind}: factor of line_spread must be positive, found {factor!r}")
        return {"place": place, "kind": declared["kind"], "factor": float(factor)}
    values = keys - {"wave"}
    if values not in ({"resolution"}, {"fwhm"}):
        raise ConfigError(
            f"source of {kind}: line_spread must have resolution or fwhm, with wave if it varies, or place and kind, "
            f"found {sorted(keys)}"
        )
    (what,) = values
    try:
        size = np.asarray(declared[what], np.float64)
        wave = np.asarray(declared["wave"], np.float64) if "wave" in keys else None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"source of {kind}: line_spread must hold numbers, found {declared!r}") from error
    shape = () if wave is None else wave.shape
    if size.shape != shape or not np.all(np.isfinite(size) & (size > 0)):
        raise ConfigError(f"source of {kind}: line_spread must have positive numbers, found {declared!r}")
    if wave is not None and (wave.ndim != 1 or wave.size == 0 or np.any(np.diff(wave) <= 0)):
        raise ConfigError(f"source of {kind}: wave of line_spread must increase, found {declared['wave']!r}")
    return declared


def fetch_spread(
    declared: Mapping[str, Any] | None,
    path: Path,
    hdus: fits.HDUList,
    hdu: int | str,
    row: Any = None,
    number: int = 1,
) -> np.ndarray | None:
    """The values of a line spread that stands in the file, float of any shape; None where it has none.

    `row` is that of the spectrum, for images with a line spread in every row.
    """
    if declared is None or "place" not in declared:
        return None
    place = declared["place"]
    if any(key in place for key in ("keyword", "name", "value")):
        (value,) = _look(place, path, hdus, hdu, None, number, 1)
        size = _as_number(value, "", place)
        return np.array(size) if size > 0 else None
    try:
        return places.numbers(
            places.fetch(hdus, {"hdu": hdu, "row": row, **place}, path, what="the line spread")
        )
    except SpectrumError:
        return None


def fwhm(
    declared: Mapping[str, Any] | None, wave: np.ndarray, step: np.ndarray, values: np.ndarray | None
) -> np.ndarray | None:
    """The line spread as FWHM.

    Args:
      declared: of `check_spread`.
      wave: float64[N], Å.
      step: float64[N], Å per pixel of the file.
      values: of a place: one, `[N]`, or `[S, N]`, whose median over the spectra is taken, because `Spectra` holds one
        line spread for all. Pixels without a positive value get that of their neighbours.

    Returns:
      float64[N], Å, or None where it is not known.
    """
    if declared is None:
        return None
    if "place" not in declared:
        (what,) = set(declared) - {"wave"}
        size = declared[what]
        if "wave" in declared:
            size = np.interp(wave, declared["wave"], size)
        return np.broadcast_to(wave / size if what == "resolution" else np.asarray(size, float), wave.shape)
    if values is None:
        return None
    values = np.asarray(values, np.float64)
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    if values.ndim == 2:
        known = np.isfinite(values).any(0)
        values = np.where(known, np.nanmedian(np.where(known, values, 1.0), axis=0), np.nan)
    values = np.broadcast_to(values, wave.shape)
    known = np.isfinite(values)
    if not known.any():
        return None
    values = np.interp(wave, wave[known], values[known])
    values = values * declared.get("factor", 1.0)
    factor = SIGMA if declared["kind"].startswith("sigma") else 1.0
    if declared["kind"] == "sigma_log10":
        return values * factor * wave * np.log(10)
    if declared["kind"] == "resolution":
        return wave / values
    return values * factor * (step if declared["kind"].endswith("pixels") else 1.0)
