"""What a file may ask of the machine: the bytes that it may have and unpack to, and what its checksums decide."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from remap.config import ConfigError, Section
from remap.io.declarations import check_choice, plain

LARGEST = 2**32  # bytes of a file, and of what is packed in one
RATIO = 30  # of what is unpacked to the file: spectra shrink to a half or a third, zeros to a thousandth
UNPACKED, UNPACKED_TEXT = 2**27, 2**24  # bytes up to which any ratio is good
HINT = "; largest of the source is the limit in bytes"
CHECKSUMS = ("data", "all", "none")


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
