"""Finding files, checking source declarations, and one error for every way in which a file can be broken."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.io import fits

from remap.config import ConfigError, Section
from remap.spectra import MEDIA, SpectrumError

AXES = ("linear", "ln", "log10")
# Stellar spectra lie well inside. Those with an axis declared linear that is logarithmic, ln that is log10,
# or Å that is µm do not.
PLAUSIBLE = (500.0, 1e7)  # Å


def find_data(path: str | os.PathLike, *, root: str | os.PathLike | None = None) -> Path:
    """Where a data file or folder lies.

    Args:
      path: absolute, or relative to `root`.
      root: the folder looked into; None = that of the environment variable $REMAP_DATA.

    Raises:
      SpectrumError: it is not there (the message names the place), or no folder of the data is known.
    """
    path = Path(path).expanduser()
    root = root or os.environ.get("REMAP_DATA")
    if not path.is_absolute() and not root:
        raise SpectrumError(
            f"{path}: expected to know the folder of the data: set $REMAP_DATA to it, or data_root in the config "
            "(--config.data_root=FOLDER), or give an absolute path"
        )
    found = path if path.is_absolute() else Path(root).expanduser() / path
    if not found.exists():
        hint = "" if path.is_absolute() else "; data_root in the config and $REMAP_DATA say where data are"
        raise SpectrumError(f"{path}: not found; expected it at {found}{hint}")
    return found


def resolve(path: str | os.PathLike, root: str | os.PathLike | None) -> Path:
    """A path as it is where that exists, else as `find_data` finds it."""
    path = Path(path).expanduser()
    return path if path.exists() else find_data(path, root=root)


def list_files(path: str | os.PathLike, patterns: str | Iterable[str]) -> list[Path]:
    """The files that a path stands for, sorted: the file itself, or a folder's files that match a pattern.

    Args:
      path: a file (returned whatever its name) or a folder.
      patterns: one or more glob patterns, for example ("*.fits", "*.fits.gz"); "**/*.fits" descends.

    Raises:
      SpectrumError: the path does not exist, or no file in the folder matches.
    """
    path = Path(path).expanduser()
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SpectrumError(f"{path}: expected a file or a folder, found nothing")
    found = sorted({f for pattern in patterns for f in path.glob(pattern) if f.is_file()})
    if not found:
        raise SpectrumError(
            f"{path}: expected files like {' or '.join(patterns)}, found none among "
            f"{sum(1 for _ in path.iterdir())} entries"
        )
    return found


def check_source(
    source: Section, *, kind: str, required: Iterable[str], optional: Mapping[str, Any]
) -> dict[str, Any]:
    """A declaration as a plain dict with every optional key filled in.

    A key whose value is None counts as not given. Mistakes here are the configuration's, not a file's, so
    they raise a plain ValueError, which a batch that tolerates bad files must not swallow.

    Args:
      source: a dict or an `ml_collections.ConfigDict`.
      kind: what is declared, for the message.
      required: keys that must be given.
      optional: key -> default.

    Raises:
      ValueError: a key that is missing or unknown, a medium, axis or wavelength unit that does not exist.
    """
    found = {key: source[key] for key in source if source[key] is not None}
    required = tuple(required)
    known = (*required, *optional)
    missing = [key for key in required if key not in found]
    unknown = sorted(set(found) - set(known))
    if missing or unknown:
        wrong = [f"missing {key!r}" for key in missing] + [f"unknown {key!r}" for key in unknown]
        raise ConfigError(f"source of {kind}: {', '.join(wrong)}; its keys are {', '.join(known)}")
    filled = {**optional, **found}
    if "medium" in filled:
        check_choice(filled, "medium", MEDIA, kind)
    if "axis" in filled:
        check_choice(filled, "axis", AXES, kind)
    if "wave_unit" in filled:
        try:
            units.Unit(filled["wave_unit"]).to(units.AA)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"source of {kind}: wave_unit must be a unit of length, found {filled['wave_unit']!r}"
            ) from error
    return filled


def check_choice(source: Section, key: str, allowed: Iterable[Any], kind: str) -> None:
    """Raises ValueError unless `source[key]` is one of `allowed`."""
    allowed = tuple(allowed)
    if source[key] not in allowed:
        raise ConfigError(f"source of {kind}: {key} must be one of {allowed}, found {source[key]!r}")


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever a parser throws or warns about a damaged file into one SpectrumError naming it.

    Args:
      path: the file that the block reads.
      expected: what it should be, for the message.

    Raises:
      SpectrumError: the file is missing, a folder, empty, truncated or unreadable.
    """
    if not path.is_file():
        raise SpectrumError(
            f"{path}: expected {expected}, found {'a folder' if path.is_dir() else 'no file'}"
        )
    if path.stat().st_size == 0:
        raise SpectrumError(f"{path}: expected {expected}, found an empty file")
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except SpectrumError:
            raise
        # Parsers meet damaged bytes with nearly every exception that there is (OSError, EOFError,
        # zlib.error, TypeError, UnicodeDecodeError, ...), and all of them mean the same to the caller.
        except Exception as error:
            failure = error
    # Astropy warns about a file shorter than its header says and may then go on with what there is.
    short = [str(w.message) for w in caught if "truncated" in str(w.message)]
    if short:
        raise SpectrumError(f"{path}: expected {expected}, found a truncated file ({short[0]})") from failure
    if failure is not None:
        reason = " ".join(str(failure).split()) or type(failure).__name__
        raise SpectrumError(f"{path}: expected {expected}, found an unreadable file ({reason})") from failure


def open_fits(path: Path) -> fits.HDUList:
    """Opens a plain or gzipped FITS file; archives are decompressed whole, so that damage is noticed."""
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return fits.open(io.BytesIO(content))


def pick_hdu(hdus: fits.HDUList, hdu: int | str, path: Path) -> fits.hdu.base._BaseHDU:
    """The HDU with a number or a name, or a SpectrumError that tells which there are."""
    try:
        chosen = hdus[hdu]
    except (KeyError, IndexError) as error:
        there = ", ".join(f"{i} {h.name!r}" for i, h in enumerate(hdus))
        raise SpectrumError(f"{path}: expected HDU {hdu!r}, found {there}") from error
    return chosen


def native_float(values: np.ndarray) -> np.ndarray:
    """Values in the machine's byte order: float32 stays, everything else becomes float64."""
    values = np.asarray(values)
    single = values.dtype.kind == "f" and values.dtype.itemsize == 4
    return values.astype(np.float32 if single else np.float64)


def read_image(path: Path, hdu: int | str) -> tuple[fits.Header, np.ndarray]:
    """Header and values float[N] of a one-dimensional FITS image; axes of length 1 are dropped."""
    with reading(path, f"a FITS file with a 1-D image in HDU {hdu!r}"), open_fits(path) as hdus:
        chosen = pick_hdu(hdus, hdu, path)
        if not chosen.is_image:
            raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found a table")
        if chosen.data is None or chosen.data.size == 0:
            raise SpectrumError(f"{path}: expected a 1-D image in HDU {hdu!r}, found no data")
        header, shape, values = chosen.header, chosen.data.shape, native_float(chosen.data)
    if shape[-1] != values.size:
        raise SpectrumError(
            f"{path}: expected a 1-D image [N] or [1, N] in HDU {hdu!r}, found shape {list(shape)}"
        )
    return header, values.reshape(-1)


def card(header: fits.Header, key: str, path: Path, default: Any = None) -> Any:
    """Value of a header card, or the default; a SpectrumError where the card breaks the rules of FITS.

    Cards are parsed when they are asked for, so that a broken one that nobody needs does no harm.
    """
    try:
        return header.get(key, default)
    except fits.VerifyError as error:
        raise SpectrumError(
            f"{path}: expected a value of {key} in the header, found a broken card"
        ) from error


def pixels_within(
    values: np.ndarray, path: Path, *, axis: str, wave_unit: str, within: tuple[float, float] | None
) -> slice:
    """The pixels that a reader is asked for, before anything is asked of the others.

    Args:
      values, path, axis, wave_unit: as for `wavelengths`.
      within: the range asked for [Å], both ends included; None = all pixels.

    Raises:
      SpectrumError: no pixel lies within.
    """
    if within is None:
        return slice(None)
    wave = _in_angstrom(values, axis=axis, wave_unit=wave_unit)
    low, high = within
    keep = np.flatnonzero((wave >= low) & (wave <= high))
    if not keep.size:
        finite = wave[np.isfinite(wave)]
        found = f"{finite.min():.6g} to {finite.max():.6g} Å" if finite.size else "no finite wavelength"
        raise SpectrumError(f"{path}: expected wavelengths within {low:.6g} to {high:.6g} Å, found {found}")
    # From the first to the last, so that a wavelength missing between them is found out later.
    return slice(int(keep[0]), int(keep[-1]) + 1)


def _in_angstrom(values: np.ndarray, *, axis: str, wave_unit: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):  # exp(3540) is one of the contradictions that `wavelengths` tells apart
        wave = {"linear": lambda x: x, "ln": np.exp, "log10": lambda x: 10.0**x}[axis](values)
        return wave * units.Unit(wave_unit).to(units.AA)


def wavelengths(values: np.ndarray, path: Path, *, axis: str, wave_unit: str) -> np.ndarray:
    """Coordinates along a declared axis, in Å.

    Args:
      values: float64[N], wavelengths in `wave_unit` or their logarithms.
      path: the file, for messages.
      axis: "linear", "ln" or "log10".
      wave_unit: an astropy unit string.

    Raises:
      SpectrumError: the result does not increase strictly, or no stellar spectrum lies there, so the
        declaration and the file contradict each other.
    """
    wave = _in_angstrom(values, axis=axis, wave_unit=wave_unit)
    declared = f"axis={axis!r} and wave_unit={wave_unit!r}"
    if not np.all((wave >= PLAUSIBLE[0]) & (wave <= PLAUSIBLE[1])):
        raise SpectrumError(
            f"{path}: with the declared {declared}, expected wavelengths within {PLAUSIBLE[0]:g} to "
            f"{PLAUSIBLE[1]:g} Å, found {wave[0]:.6g} to {wave[-1]:.6g} Å"
        )
    if np.any(np.diff(wave) <= 0):
        at = int(np.argmax(np.diff(wave) <= 0))
        raise SpectrumError(
            f"{path}: expected wavelengths that increase strictly, found {wave[at]:.6g} then "
            f"{wave[at + 1]:.6g} Å at pixel {at}"
        )
    return wave
