"""The content of a file within its limits, and one error for every way in which it can be broken."""

from __future__ import annotations

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from remap.config import ConfigError
from remap.io.limits import HINT, LARGEST, limits
from remap.spectra import SpectrumError

GZIP = b"\x1f\x8b"
CHUNK = 2**20  # bytes


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


def is_packed(path: Path) -> bool:
    """Whether a file is gzipped."""
    with path.open("rb") as file:
        return file.read(len(GZIP)) == GZIP


def read_bytes(path: Path, *, text: bool = False, most: int = LARGEST) -> bytes:
    """The content of a file, unpacked where it is gzipped; SpectrumError where it is beyond `limits`.

    Args:
      path: the file.
      text: archives of texts may hold less.
      most: bytes of the file, and of what is packed in it, where the source does not say how many.
    """
    most = limits().largest or most
    size = path.stat().st_size
    if size > most:
        raise SpectrumError(f"{path}: expected up to {most:.3g} bytes, found {size:.3g}{HINT}")
    content = path.read_bytes()
    if not content.startswith(GZIP):
        return content
    return gunzip(content, path, most=min(most, limits().unpacked(len(content), text=text)))


def gunzip(content: bytes, path: Path, *, most: int) -> bytes:
    """A gzipped file decompressed whole; SpectrumError where it is cut or grows beyond `most` bytes."""
    out, at, member = io.BytesIO(), 0, None  # which gives its content away, where a joined list is a copy
    while at < len(content):
        chunk = content[at : at + CHUNK]  # or what is left would be copied with every member
        if member is None:
            padding = len(chunk) - len(chunk.lstrip(b"\0"))
            if padding:
                at += padding
                continue
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out.write(member.decompress(chunk, most + 1 - out.tell()))
        if out.tell() > most:
            raise SpectrumError(
                f"{path}: expected an archive of {len(content)} bytes to hold up to {most:.3g}, found more{HINT}"
            )
        at += len(chunk) - len(member.unused_data)
        if member.eof:
            member = None
    if member is not None:
        raise SpectrumError(f"{path}: expected a whole archive, found a truncated file")
    return out.getvalue()


def native_float(values: np.ndarray) -> np.ndarray:
    """Values in the machine's byte order: float32 stays, everything else becomes float64."""
    values = np.asarray(values)
    single = values.dtype.kind == "f" and values.dtype.itemsize == 4
    return values.astype(np.float32 if single else np.float64)
