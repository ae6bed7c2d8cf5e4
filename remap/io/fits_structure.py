"""FITS files followed from header to header, so that no parser allocates what is not there; and their checksums."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from remap.io.content import CHUNK
from remap.io.limits import Limits, limits
from remap.spectra import SpectrumError

logger = logging.getLogger(__name__)

START = b"SIMPLE  ="  # of every FITS file
BLOCK, CARD = 2880, 80  # bytes, of FITS
LONGEST_HEADER = 2**21  # bytes: 26,000 cards, which take seconds to parse
MOST_HDUS = 2000
MOST_AXES = 9
NO_SIZES = ("ZSIMPLE", "ZIMAGE", "DATASUM", "CHECKSUM")
END = re.compile(rb"END {77}")
# Cards that say how much there is, however a parser that forgives much may find their names.
SIZES = re.compile(
    rb"(BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|ZSIMPLE|ZIMAGE|DATASUM|CHECKSUM|ZNAXIS\d*|ZTILE\d*|ZNAME\d+|ZVAL\d+)"
    rb" *= ?([^/]{1,70})"
)
# What the decoders of compressed images take memory for (FITS standard 4.0, section 10.4.1), by their ZNAMEn.
CODING = {"BYTEPIX": (1, 2, 4, 8), "BLOCKSIZE": range(1, 2**16)}


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


@functools.lru_cache(maxsize=16)
def follow_file(path: Path, size: int, changed: int, limits: Limits) -> tuple[int, bool]:
    """Where the last HDU of a file on the disk ends, and whether its first image was packed by `fpack`.

    Once for all pieces of the file, since checksums are of the whole.

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
            if key not in NO_SIZES and not key.startswith(("ZNAME", "ZVAL")):
                if not re.fullmatch(r"[+-]?\d{1,18}", value):
                    raise SpectrumError(f"{expected}, found {key} = {value[:40]} in HDU {number}")
                sizes[key] = int(value)
        _check_sizes(sizes, f"{expected}, found", number, len(content))
        _check_coding(cards, f"{expected}, found", number)
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


def _check_coding(cards: Mapping[str, str], found: str, number: int) -> None:
    """SpectrumError where a compressed image says that it is coded as none can be."""
    for key, name in cards.items():
        name = name.strip("' ")
        if key.startswith("ZNAME") and name in CODING:
            value = cards.get(f"ZVAL{key.removeprefix('ZNAME')}", "nothing")
            if not re.fullmatch(r"\d{1,9}", value) or int(value) not in CODING[name]:
                raise SpectrumError(f"{found} a compressed image of {name} = {value[:40]} in HDU {number}")


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
