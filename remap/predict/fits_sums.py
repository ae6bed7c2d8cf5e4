"""CHECKSUM and DATASUM of written catalogues, and whether they still fit (FITS standard 4.0, appendix J).

Headers have placeholders (`reserve`) that are filled when the file is there (`sign`), so that a catalogue that is put
together from parts, whatever its length, has the bytes of one that is written at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from astropy.io import fits

BLOCK, CARD = 2880, 80
CHUNK = BLOCK << 13  # bytes at a time, 24 MB
_NONE = "0" * 16
_NO_LETTERS = (*range(0x3A, 0x41), *range(0x5B, 0x61))  # between digits, capitals and small letters


class _Place(NamedTuple):
    """An HDU of a file, places in bytes."""

    header: int
    data: int
    end: int  # with the padding
    cards: dict[str, tuple[int, str]]  # keyword -> where its card is, and what stands behind "= "


def reserve(header: fits.Header) -> None:
    """Gives a header room for both sums; `sign` fills it."""
    header["CHECKSUM"] = (_NONE, "of the HDU")
    header["DATASUM"] = (f"{0:010d}", "of the data")


def sign(file: BinaryIO) -> None:
    """Fills the sums of a file that is open for writing and has a name."""
    file.flush()
    with Path(file.name).open("rb") as written:
        for hdu in list(_places(written)):
            data = _sum(written, hdu.data, hdu.end)
            _put(file, hdu.cards["CHECKSUM"][0], _NONE)
            _put(file, hdu.cards["DATASUM"][0], f"{data:010d}")
            file.flush()
            total = _fold(_sum(written, hdu.header, hdu.data) + data)
            _put(file, hdu.cards["CHECKSUM"][0], _encoded(~total & 0xFFFFFFFF))
    file.seek(0, 2)
    file.flush()


def fault(path: Path, *, headers: bool = True) -> str:
    """What is wrong with a file by its sums; "" where they fit, or nothing in it has any (as in older catalogues).

    Args:
      headers: False looks at the data of HDUs that have their sum alone: somebody may have added a card or an HDU.
    """
    with path.open("rb") as file:
        try:
            hdus = list(_places(file))
        except (ValueError, KeyError) as error:
            return f"a header that is none ({error})"
        if not any({"CHECKSUM", "DATASUM"} & set(hdu.cards) for hdu in hdus):
            return ""
        for number, hdu in enumerate(hdus):
            data = _sum(file, hdu.data, hdu.end)
            known = _value(hdu, "DATASUM")
            if known.lstrip("0") != str(data).lstrip("0") and (known or headers):
                return f"the data of HDU {number} are not those of its DATASUM"
            if not headers:
                continue
            if _value(hdu, "CHECKSUM") == "" or _fold(_sum(file, hdu.header, hdu.data) + data) != 0xFFFFFFFF:
                return f"HDU {number} is not that of its CHECKSUM"
    return ""


def _places(file: BinaryIO) -> Iterator[_Place]:
    """The HDUs of a file that was written here.

    Raises:
      ValueError, KeyError: a header without an end or a size, or a file that ends within an HDU.
    """
    size, at = file.seek(0, 2), 0
    while at < size:
        cards: dict[str, tuple[int, str]] = {}
        place, ended = at, False
        while not ended:
            file.seek(place)
            block = file.read(BLOCK)
            if len(block) < BLOCK:
                raise ValueError("it does not end")
            for i in range(0, BLOCK, CARD):
                text = block[i : i + CARD].decode("ascii", "replace")
                if text.rstrip() == "END":
                    ended = True
                    break
                cards.setdefault(text[:8].rstrip(), (place + i, text[10:]))
            place += BLOCK
        axes = [_integer(cards, f"NAXIS{i + 1}") for i in range(_integer(cards, "NAXIS"))]
        pixels = int(np.prod(axes, dtype=object)) if axes else 0
        if pixels < 0:
            raise ValueError("a negative size")
        end = place + abs(_integer(cards, "BITPIX")) // 8 * pixels
        end += -end % BLOCK
        if end > size:
            raise ValueError("the data do not end")
        yield _Place(at, place, end, cards)
        at = end


def _integer(cards: dict[str, Any], key: str) -> int:
    return int(cards[key][1].partition("/")[0])


def _value(hdu: _Place, key: str) -> str:
    return hdu.cards.get(key, (0, ""))[1].partition("/")[0].strip().strip("'").strip()


def _put(file: BinaryIO, card: int, text: str) -> None:
    file.seek(card + 11)  # behind "KEYWORD = '"
    file.write(text.encode("ascii"))


def _sum(file: BinaryIO, start: int, end: int) -> int:
    """The sum in ones' complement of the 32-bit words of whole blocks."""
    total = 0
    file.seek(start)
    for at in range(start, end, CHUNK):
        words = np.frombuffer(file.read(min(CHUNK, end - at)), ">u4")
        total = _fold(total + int(words.sum(dtype=np.uint64)))
    return total


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


def _encoded(value: int) -> str:
    """A sum as sixteen letters and digits, whose words have that sum over that of zeros."""
    columns = []
    for byte in value.to_bytes(4, "big"):
        letters = [byte // 4 + 0x30] * 4
        letters[0] += byte % 4
        while bad := [i for i in (0, 2) if {letters[i], letters[i + 1]} & set(_NO_LETTERS)]:
            for i in bad:
                letters[i] += 1
                letters[i + 1] -= 1
        columns.append(letters)
    out = [columns[byte][place] for place in range(4) for byte in range(4)]
    return bytes([out[-1], *out[:-1]]).decode("ascii")  # the value begins one byte before a word
