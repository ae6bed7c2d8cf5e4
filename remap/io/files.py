"""Finding files, checking source declarations, and one error for every way in which a file can be broken."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import gzip
import io
import logging
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy import units
from astropy.io import fits

from remap.config import ConfigError, Section, is_section
from remap.spectra import MEDIA, SpectrumError

logger = logging.getLogger(__name__)

_OPENED: contextvars.ContextVar[tuple[Path, fits.HDUList] | None] = contextvars.ContextVar(
    "opened", default=None
)
GZIP = b"\x1f\x8b"
START = b"SIMPLE  ="  # of every FITS file
BLOCK, CARD = 2880, 80  # bytes, of FITS
LARGEST = 2**32  # bytes of a file, and of what is packed in one
RATIO = 30  # of what is unpacked to the file: spectra shrink to a half or a third, zeros to a thousandth
UNPACKED, UNPACKED_TEXT = 2**27, 2**24  # bytes up to which any ratio is good
LONGEST_HEADER = 2**21  # bytes: 26,000 cards, which take seconds to parse
MOST_HDUS = 2000
MOST_AXES = 9
CHUNK = 2**20  # bytes
HINT = "; largest of the source is the limit in bytes"
CHECKSUMS = ("data", "all", "none")
NO_SIZES = ("ZSIMPLE", "ZIMAGE", "DATASUM", "CHECKSUM")
END = re.compile(rb"END {77}")
# Cards that say how much there is, however a parser that forgives much may find their names.
SIZES = re.compile(
    rb"(BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|ZSIMPLE|ZIMAGE|DATASUM|CHECKSUM|ZNAXIS\d*|ZTILE\d*) *= ?([^/]{1,70})"
)
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
    found = data_path(path, root=root)
    if not found.exists():
        absolute = Path(path).expanduser().is_absolute()
        hint = "" if absolute else "; data_root in the config and $REMAP_DATA say where data are"
        raise SpectrumError(f"{path}: not found; expected it at {found}{hint}")
    return found


def data_path(path: str | os.PathLike, *, root: str | os.PathLike | None = None) -> Path:
    """Where a data file or folder belongs, there or not; see `find_data`.

    Raises:
      SpectrumError: no folder of the data is known.
    """
    path = Path(path).expanduser()
    root = root or os.environ.get("REMAP_DATA")
    if not path.is_absolute() and not root:
        raise SpectrumError(
            f"{path}: expected to know the folder of the data: set $REMAP_DATA to it, or data_root in the config "
            "(--config.data_root=FOLDER), or give an absolute path"
        )
    return path if path.is_absolute() else Path(root).expanduser() / path


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
    # Beside every file macOS leaves one of its own, `._NAME`, on discs that are not its own.
    found = sorted(
        {f for pattern in patterns for f in path.glob(pattern) if f.is_file() and not f.name.startswith("._")}
    )
    if not found:
        raise SpectrumError(
            f"{path}: expected files like {' or '.join(patterns)}, found none among "
            f"{sum(1 for _ in path.iterdir())} entries"
        )
    return found


def plain(value: Any) -> Any:
    """A part of a config as plain dicts and tuples, at all depths."""
    if isinstance(value, Mapping) or is_section(value):
        return {key: plain(value[key]) for key in value}
    return tuple(plain(v) for v in value) if isinstance(value, list | tuple) else value


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
    found = {key: plain(source[key]) for key in source if source[key] is not None}
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask of the machine, and what its checksums decide: keys of every source, all optional.

    Attributes:
      largest: bytes of a file, and of what is packed in it. None = `LARGEST`, and what is packed may be no more than
        `RATIO` times the file, unless it is small: a bomb of megabytes unpacks to gigabytes of nothing.
      checksums: of FITS. "data": a file is refused where data are not those of their DATASUM, and a CHECKSUM that is
        not that of its HDU is told in a warning, because whoever edits a header leaves it stale; "all": it refuses
        the file, too; "none": neither is looked at.
    """

    largest: int | None = None
    checksums: str = "data"

    def unpacked(self, size: int, *, text: bool = False, pieces: bool = False) -> int:
        """The most bytes that a file of so many may unpack to; with `pieces` it is never in memory as a whole."""
        if self.largest is not None:
            return self.largest
        most = max(UNPACKED_TEXT if text else UNPACKED, RATIO * size)
        return most if pieces else min(LARGEST, most)


_LIMITS: contextvars.ContextVar[Limits | None] = contextvars.ContextVar("limits", default=None)


def limits() -> Limits:
    """Those of the source that is being read."""
    return _LIMITS.get() or Limits()


@contextlib.contextmanager
def limited(source: Section, kind: str) -> Iterator[dict[str, Any]]:
    """Within it the limits of a source hold; gives the source without them, one of "any" from its options too.

    Raises:
      ConfigError: a limit that is none.
    """
    rest = {key: source[key] for key in source}
    found = [
        {key: one.pop(key) for key in ("largest", "checksums") if key in one}
        for one in (rest, *(_options(rest) if rest.get("format") == "any" else ()))
    ]
    given: dict[str, Any] = {}
    for one in found:
        given = {key: value for key, value in one.items() if value is not None} | given
    largest = given.get("largest", 1)
    if type(largest) is not int or largest < 1:
        raise ConfigError(f"source of {kind}: largest must be a number of bytes, found {largest!r}")
    check_choice({"checksums": Limits.checksums} | given, "checksums", CHECKSUMS, kind)
    token = _LIMITS.set(Limits(**given))
    try:
        yield rest
    finally:
        _LIMITS.reset(token)


def _options(source: dict[str, Any]) -> list[dict[str, Any]]:
    """The options of a source of format "any" as dicts of its own, in place of what it has."""
    options = plain(source.get("options"))
    if not isinstance(options, tuple) or not all(isinstance(one, Mapping) for one in options):
        return []
    copies = [dict(one) for one in options]
    source["options"] = tuple(copies)
    return copies


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever a parser throws or warns about a damaged file into one SpectrumError naming it.

    Args:
      path: the file that the block reads.
      expected: what it should be, for the message.

    Raises:
      SpectrumError: the file is missing, a folder, empty, truncated or unreadable.
    """
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not path.is_file():
                found = "a folder" if path.is_dir() else "no file"
                raise SpectrumError(f"{path}: expected {expected}, found {found}")
            if path.stat().st_size == 0:
                raise SpectrumError(f"{path}: expected {expected}, found an empty file")
            yield
        except ConfigError:
            raise
        except SpectrumError as error:
            if str(path) not in str(error) and path.name not in str(error):
                failure = error
            else:
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


def is_fits(path: Path) -> bool:
    """Whether a file begins as FITS does, gzipped or not; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(START))
        if start.startswith(GZIP):
            with gzip.open(path) as file:
                start = file.read(len(START))
    except (OSError, EOFError, zlib.error):
        return False
    return start == START


def open_fits(path: Path, *, pieces: bool = False) -> fits.HDUList:
    """Opens a plain or gzipped FITS file, whose sizes are checked against its headers before anything is read.

    Archives are decompressed whole, so that damage is noticed. A last block without its padding is padded. An image
    that `fpack` took from the primary HDU is HDU 0 again.

    Args:
      path: the file.
      pieces: leave on the disk what can be left there: sections of images are read when they are asked for.
    """
    before = _OPENED.get()
    if before is not None and before[0] == path:
        _OPENED.set(None)
        return before[1]
    if pieces and not is_packed(path):
        place = path.stat()
        if limits().largest is not None and place.st_size > limits().largest:
            raise SpectrumError(
                f"{path}: expected up to {limits().largest:.3g} bytes, found {place.st_size:.3g}{HINT}"
            )
        end, packed = _follow_file(path, place.st_size, place.st_mtime_ns, limits())
        if end == place.st_size and not packed:
            return fits.open(path, memmap=False)
    content, packed = check_fits(read_bytes(path), path)
    hdus = fits.open(io.BytesIO(content), memmap=False)
    if packed:
        hdus = fits.HDUList(list(hdus)[1:])
    return hdus


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped."""
    with path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


@functools.lru_cache(maxsize=16)
def _follow_file(path: Path, size: int, changed: int, limits: Limits) -> tuple[int, bool]:
    """`_follow` of a file on the disk; once for all its pieces, since checksums are of the whole.

    Args:
      path: the file.
      size, changed: of it, so that another one of its name is looked at again.
      limits: those that hold.
    """
    with path.open("rb") as file:
        return _follow(_OnDisk(file, size), path)


class _OnDisk:
    """A file as if it were its bytes, as far as `_follow` looks at them."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        self._file.seek(start)
        return self._file.read(max(0, stop - start))


def read_bytes(path: Path, *, text: bool = False) -> bytes:
    """The content of a file, unpacked where it is gzipped; SpectrumError where it is beyond `limits`."""
    most = limits().largest or LARGEST
    size = path.stat().st_size
    if size > most:
        raise SpectrumError(f"{path}: expected up to {most:.3g} bytes, found {size:.3g}{HINT}")
    content = path.read_bytes()
    return gunzip(content, path, text=text) if content.startswith(GZIP) else content


def gunzip(content: bytes, path: Path, *, text: bool = False) -> bytes:
    """A gzipped file decompressed whole; SpectrumError where it is cut or grows beyond `limits`."""
    most = limits().unpacked(len(content), text=text)
    parts, size, at, member = [], 0, 0, None
    while at < len(content):
        chunk = content[at : at + CHUNK]  # or what is left would be copied with every member
        if member is None:
            padding = len(chunk) - len(chunk.lstrip(b"\0"))
            if padding:
                at += padding
                continue
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        parts.append(member.decompress(chunk, most + 1 - size))
        size += len(parts[-1])
        if size > most:
            raise SpectrumError(
                f"{path}: expected an archive of {len(content)} bytes to hold up to {most:.3g}, found more{HINT}"
            )
        at += len(chunk) - len(member.unused_data)
        if member.eof:
            member = None
    if member is not None:
        raise SpectrumError(f"{path}: expected a whole archive, found a truncated file")
    return b"".join(parts)


@contextlib.contextmanager
def opened(path: Path, hdus: fits.HDUList | None) -> Iterator[None]:
    """Within it the first `open_fits` of a path gives what is open already, so that headers are parsed but once."""
    token = _OPENED.set(None if hdus is None else (path, hdus))
    try:
        yield
    finally:
        _OPENED.reset(token)
        if hdus is not None:
            hdus.close()


def check_fits(content: bytes, path: Path) -> tuple[bytes, bool]:
    """Follows the headers through a FITS file, so that no reader allocates what is not there.

    Args:
      content: of the file.
      path: the file, for messages.

    Returns:
      The content, padded to whole blocks, and whether its first image was packed by `fpack`.

    Raises:
      SpectrumError: a header without end, sizes that are no sizes or go beyond the file, or that leave a
        part of it over.
    """
    end, packed = _follow(content, path)
    return (content[:end] if end < len(content) else content + b"\0" * (end - len(content))), packed


def _follow(content: bytes | _OnDisk, path: Path) -> tuple[int, bool]:
    """Where the last HDU of a file ends, with its padding, there or not; and whether its first image was packed."""
    expected = f"{path}: expected a FITS file"
    if not content[: len(START)] == START:
        raise SpectrumError(f"{expected}, found an unreadable file (it begins with {content[:6]!r})")
    at, number, packed = 0, 0, False
    while at < len(content):
        if number == MOST_HDUS:
            raise SpectrumError(f"{expected}, found more than {MOST_HDUS} HDUs")
        start, cards = at, {}
        while True:
            block = content[at : at + BLOCK]
            if len(block) < CARD or at - start > LONGEST_HEADER:
                raise SpectrumError(
                    f"{expected}, found a truncated file (a header without END in HDU {number})"
                )
            at += BLOCK
            _add_cards(cards, block, f"{expected}, found", number)
            if any(end.start() % CARD == 0 for end in END.finditer(block)):
                break
        sizes = {}
        for key, value in cards.items():
            if key not in NO_SIZES:
                if not re.fullmatch(r"[+-]?\d{1,18}", value):
                    raise SpectrumError(f"{expected}, found {key} = {value[:40]} in HDU {number}")
                sizes[key] = int(value)
        _check_sizes(sizes, f"{expected}, found", number, len(content))
        packed |= number == 1 and cards.get("ZSIMPLE") == "T"
        size = _data_size(sizes)
        if at + size > len(content):
            raise SpectrumError(
                f"{expected}, found a truncated file ({size} bytes of data in HDU {number}, {len(content) - at} "
                "there)"
            )
        _check_sums(cards, content, (start, at, at + size), f"{expected}, found", number, path)
        at += size
        short = -size % BLOCK
        number += 1
        rest = content[at : at + short]
        if rest.strip(b"\0 "):
            raise SpectrumError(
                f"{expected}, found bytes that belong to nothing after HDU {number - 1}: a size in its header is "
                "wrong"
            )
        at += short
        if at >= len(content):
            return at, packed
        if not content[at : at + 8].startswith(b"XTENSION"):
            if any(content[i : i + CHUNK].strip(b"\0 \r\n\x1a") for i in range(at, len(content), CHUNK)):
                raise SpectrumError(
                    f"{expected}, found {len(content) - at} bytes that belong to nothing after HDU {number - 1}: a "
                    "size in its header is wrong"
                )
            return at, packed
    return at, packed


def _add_cards(cards: dict[str, str], block: bytes, found: str, number: int) -> None:
    """Adds the cards of a block that say how much there is; SpectrumError where one is there twice and differs."""
    block = block.upper()  # a regular expression that ignores case takes ten times as long
    for card in SIZES.finditer(block):
        # Astropy finds a name also in lower case, after blanks and before a "=" that is too early.
        place = card.start() % CARD
        before = block[card.start() - place : card.start()].strip(b" ")
        if before != b"HIERARCH" and (before or place >= 8):
            continue
        key, value = card[1].decode(), card[2].decode("latin-1").strip()
        if cards.setdefault(key, value) != value:
            raise SpectrumError(f"{found} {key} = {cards[key][:40]} and {value[:40]} in HDU {number}")


def _check_sums(
    cards: Mapping[str, str],
    content: bytes | _OnDisk,
    places: tuple[int, int, int],
    found: str,
    number: int,
    path: Path,
) -> None:
    """SpectrumError where data are not those of their DATASUM; for CHECKSUM see `Limits`.

    Args:
      cards: of the header.
      content: of the file.
      places: where the header begins, the data begin, and end.
      found: beginning of messages.
      number: of the HDU.
      path: the file.
    """
    checked = limits().checksums
    header, data, end = places
    # Zero stands for "no data" or "not computed" (as in HARPS's tables).
    written = cards.get("DATASUM", "").strip("' ")
    written = int(written) if re.fullmatch(r"\d{1,10}", written) else 0
    whole = cards.get("CHECKSUM", "").strip("' ").strip("0")
    if checked == "none" or not (written or whole):
        return
    total = _sum(content, data, end)
    if written and written != total:
        raise SpectrumError(
            f"{found} data of HDU {number} that are not those of its DATASUM: damaged; checksums of the source says "
            "whether that counts"
        )
    if whole and _fold(total + _sum(content, header, data)) not in (0, 0xFFFFFFFF):
        told = f"HDU {number} that is not that of its CHECKSUM"
        if checked == "all":
            raise SpectrumError(f"{found} {told}: damaged, or edited since")
        what = (
            "its header was edited since, or is damaged" if written else "it was edited since, or is damaged"
        )
        logger.warning("%s: found %s: %s", path, told, what)


def _check_sizes(sizes: dict[str, int], found: str, number: int, there: int) -> None:
    """SpectrumError where the sizes in a header cannot be."""
    if sizes.get("BITPIX") not in (8, 16, 32, 64, -32, -64):
        raise SpectrumError(f"{found} BITPIX = {sizes.get('BITPIX')} in HDU {number}")
    axes = sizes.get("NAXIS", -1)
    if not 0 <= axes <= MOST_AXES:
        raise SpectrumError(f"{found} NAXIS = {axes} in HDU {number}")
    for key in (*(f"NAXIS{i + 1}" for i in range(axes)), "PCOUNT", "GCOUNT", "TFIELDS"):
        value = sizes.get(key, -1 if key.startswith("NAXIS") else 0)
        # Beyond the file are those that another axis of length zero makes nothing of.
        if value < 0 or (key == "TFIELDS" and value > 999):
            raise SpectrumError(f"{found} {key} = {sizes.get(key)} in HDU {number}")
        if value > there:
            told = f"{key} = {value} in HDU {number}, {there} bytes there"
            raise SpectrumError(f"{found} a truncated file, or a wrong size ({told})")
    if "ZNAXIS" in sizes:
        pixels = [sizes.get(f"ZNAXIS{i + 1}", -1) for i in range(min(max(sizes["ZNAXIS"], 0), MOST_AXES))]
        tiles = [sizes.get(f"ZTILE{i + 1}", n if i == 0 else 1) for i, n in enumerate(pixels)]
        if sizes["ZNAXIS"] != len(pixels) or min([*pixels, *tiles], default=0) < 1:
            raise SpectrumError(
                f"{found} a compressed image of {pixels} pixels in tiles of {tiles} in HDU {number}"
            )
        count = math.prod(-(-n // t) for n, t in zip(pixels, tiles, strict=True))
        if count != sizes.get("NAXIS2") or math.prod(pixels) * 8 > limits().unpacked(there):
            raise SpectrumError(
                f"{found} a compressed image of {pixels} pixels in tiles of {tiles}, but {sizes.get('NAXIS2')} tiles "
                f"in HDU {number}, in a file of {there} bytes"
            )


def _sum(content: bytes | _OnDisk, start: int, end: int) -> int:
    """The sum in ones' complement of the 32-bit words of some bytes (FITS standard 4.0, appendix J)."""
    total = 0
    for at in range(start, end, CHUNK):
        piece = content[at : min(at + CHUNK, end)]
        words = np.frombuffer(piece, ">u4", len(piece) // 4)
        last = piece[4 * words.size :]
        total += int(words.sum(dtype=np.uint64)) + int.from_bytes(last.ljust(4, b"\0"), "big")
    return _fold(total)


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _data_size(sizes: dict[str, int]) -> int:
    """Bytes of data that belong to a header, without padding (FITS standard 4.0, equations 1 and 2)."""
    axes = [sizes[f"NAXIS{i + 1}"] for i in range(sizes["NAXIS"])]
    if not axes:
        return 0
    groups = len(axes) > 1 and axes[0] == 0  # random groups
    pixels = math.prod(axes[1:] if groups else axes)
    return abs(sizes["BITPIX"]) // 8 * sizes.get("GCOUNT", 1) * (sizes.get("PCOUNT", 0) + pixels)


def pick_hdu(hdus: fits.HDUList, hdu: int | str, path: Path) -> fits.hdu.base._BaseHDU:
    """The HDU with a number or a name, or a SpectrumError that tells which there are.

    Where the primary HDU is empty and a compressed image the only other one, it is what HDU 0 means.
    """
    try:
        chosen = hdus[hdu]
    except (KeyError, IndexError) as error:
        there = ", ".join(f"{i} {h.name!r}" for i, h in enumerate(hdus))
        raise SpectrumError(f"{path}: expected HDU {hdu!r}, found {there}") from error
    if (
        hdu == 0
        and len(hdus) == 2
        and chosen.header.get("NAXIS") == 0
        and isinstance(hdus[1], fits.CompImageHDU)
    ):
        return hdus[1]
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
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):  # exp(3540) is one of the contradictions that are told apart below
        wave = {"linear": lambda x: x, "ln": np.exp, "log10": lambda x: 10.0**x}[axis](values)
        wave = wave * units.Unit(wave_unit).to(units.AA)
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
