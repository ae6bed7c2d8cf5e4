"""Files over HTTP, whole or not at all: dropped, stalled and failing connections are taken up where they ended.

What has come so far lies beside the file as `NAME.part`, and what it is the beginning of in `NAME.part.json`, so that
a later run goes on as well. A rest is only joined to a beginning of the same version: by ETag or date of change
(`If-Range`) or, where the server tells neither, by an overlap that must be equal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remap._version import __version__
from remap.config import ConfigError
from remap.spectra import SpectrumError

BLOCK = 1 << 16  # bytes that are read at a time, and of the overlap
GONE = (404, 410)
PASSING = (408, 425, 429)  # and all of 500 and above: another time may do
LONGEST_WAIT = 120.0  # seconds between two attempts, whatever the server asks for


class NotThereError(Exception):
    """The server has no such file (404, 410)."""


class TransferError(Exception):
    """The file could not be had; names the URL, what was expected and what was found."""


class WrongFileError(Exception):
    """The server has another file under the name, or a damaged one; it has been deleted."""


class StoppedError(Exception):
    """The caller asked to stop; what has come is kept."""


class _AgainError(Exception):
    """This attempt failed, another one may not; `after` are seconds that the server asks to wait."""

    def __init__(self, reason: str, *, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """How patient a download is.

    Attributes:
      retries: attempts after the first that may fail in a row without a new byte.
      timeout: seconds without an answer after which an attempt has failed.
      backoff: seconds before the first new attempt, doubled for each further one, 120 at most.
      slowest: bytes per second, over `timeout`, below which an attempt has failed.
      largest: bytes of a file beyond which it cannot be the right one.
    """

    retries: int = 5
    timeout: float = 30.0
    backoff: float = 1.0
    slowest: float = 1000.0
    largest: int = 100_000_000

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ConfigError(f"retries: expected 0 or more, found {self.retries}")
        for name in ("timeout", "largest"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected more than 0, found {getattr(self, name)}")
        for name in ("backoff", "slowest"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected 0 or more, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is there.

    Attributes:
      size: bytes.
      sha256: of its content, hexadecimal.
      etag: what the server called this version, "" where it did not.
      modified: its date of change according to the server, "" where it told none.
    """

    size: int
    sha256: str
    etag: str = ""
    modified: str = ""


def check_url(url: str) -> str:
    """A folder's URL with a slash at its end.

    Raises:
      ConfigError: it is no URL of http or https.

    Examples:
      >>> check_url("https://example.org/data")
      'https://example.org/data/'
    """
    try:
        parts = urllib.parse.urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        fine = False
    if not fine or re.search(r"[\s?#]", url):
        raise ConfigError(f"url: expected http://HOST/FOLDER or https://HOST/FOLDER, found {url!r}")
    return url.rstrip("/") + "/"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_path(path: Path) -> Path:
    """Where the beginning of a file lies until it is whole."""
    return path.with_name(path.name + ".part")


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], object],
    settings: TransferSettings,
    stop: threading.Event,
    count: Callable[[int], object] = lambda _: None,
) -> Fetched:
    """Fetches one file; it appears under its name when it is whole and `check` found it right.

    A file that `check` refuses is deleted and asked for once more from its first byte, because its beginning may have
    been of another version and a server may cut a file short without saying so.

    Args:
      url: of the file.
      path: where it goes; the folder is there.
      check: raises SpectrumError for a file that is not what it should be.
      stop: set by another thread to end soon.
      count: called with the bytes that have come, each time.

    Raises:
      NotThereError: the server has no such file.
      WrongFileError: the file is not what it should be, twice.
      TransferError: it could not be had.
      StoppedError: `stop` was set.
      OSError: the file cannot be written.
    """
    part = part_path(path)
    for place in (part, part.with_name(part.name + ".json")):  # its name can be guessed
        if place.is_symlink():
            place.unlink()
    failed, refused, reached = 0, 0, _size(part)
    while True:
        try:
            _attempt(url, part, settings, stop, count)
        except _AgainError as again:
            failed = 0 if _size(part) > reached else failed + 1
            reached = max(reached, _size(part))
            if failed > settings.retries:
                raise TransferError(f"{url}: given up after {failed} attempts: {again}") from again
            wait = min(max(settings.backoff * 2.0 ** max(failed - 1, 0), again.after), LONGEST_WAIT)
            if stop.wait(wait):
                raise StoppedError(url) from again
            continue
        except NotThereError:
            _discard(part)
            raise
        try:
            check(part)
        except SpectrumError as error:
            _discard(part)
            refused, reached = refused + 1, 0
            if refused > 1:
                raise WrongFileError(f"{url}: deleted: {str(error).replace(str(part), path.name)}") from error
            continue
        state = _read_state(part, url)
        found = Fetched(
            size=_size(part),
            sha256=sha256(part),
            etag=state.get("etag") or "",
            modified=state.get("modified") or "",
        )
        with part.open("rb") as whole:  # on the disk, before the name says that it is there
            os.fsync(whole.fileno())
        os.replace(part, path)
        _discard(part)
        return found


def _attempt(
    url: str,
    part: Path,
    settings: TransferSettings,
    stop: threading.Event,
    count: Callable[[int], object],
) -> None:
    """One request, for what is not there yet; returns when the part is the whole file."""
    state = _read_state(part, url)
    have, size = _size(part), state.get("size")
    if not state or (size is not None and have > size):
        _discard(part)
        have, state, size = 0, {}, None
    if have and have == size:
        return
    validator = state.get("etag") or state.get("modified")
    start = have if validator else max(have - BLOCK, 0)
    headers = {"User-Agent": f"deep-remap/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    with _open(urllib.request.Request(url, headers=headers), part, settings) as response:
        told = response.headers
        if told.get("Content-Encoding", "identity") != "identity":
            raise TransferError(
                f"{url}: expected the file as it is, found it encoded as {told['Content-Encoding']}"
            )
        if response.status == 206:
            size = _check_rest(response, part, state, start)
        elif response.status == 200:
            _discard(part)
            start = have = 0
            length = told.get("Content-Length", "")
            size = int(length) if length.isdecimal() else None
            # Weak tags stand for files that are alike, not equal, and are no good for joining.
            etag = told.get("ETag", "")
            etag = "" if etag.startswith("W/") else etag
            state = {"url": url, "etag": etag, "modified": told.get("Last-Modified", ""), "size": size}
            part.with_name(part.name + ".json").write_text(json.dumps(state))
        else:
            raise TransferError(f"{url}: expected the file, found the answer {response.status}")
        if size is not None and size > settings.largest:
            _discard(part)
            raise TransferError(f"{url}: expected no more than {settings.largest} bytes, found {size}")
        blocks = _blocks(response, settings, stop)
        at = start
        if have > start:
            blocks, at = _join(blocks, part, start), have
        with part.open("ab") as out:
            while size is None or at < size:
                block = next(blocks, b"")
                if not block:
                    break
                at += len(block)
                if at > (settings.largest if size is None else size):
                    break
                out.write(block)
                out.flush()  # so that it is there whatever ends this process
                count(len(block))
    if size is None and at <= settings.largest:
        return  # the end of the connection is the end of the file, as far as anyone can tell
    if size is None:
        _discard(part)
        raise TransferError(f"{url}: expected no more than {settings.largest} bytes, found more")
    if at > size:
        _discard(part)
        raise _AgainError(f"expected {size} bytes, found more")
    if at < size:
        raise _AgainError(f"the connection ended after {at} of {size} bytes")


def _open(
    request: urllib.request.Request, part: Path, settings: TransferSettings
) -> http.client.HTTPResponse:
    """The answer to a request, its failures told apart: not there, another time perhaps, never."""
    url = request.full_url
    try:
        return urllib.request.urlopen(request, timeout=settings.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in GONE:
                raise NotThereError(f"{url}: the server answers {error.code}") from error
            if error.code == 416:  # what there is does not belong to the file as it is now
                _discard(part)
                raise _AgainError("the server has no such range (416)") from error
            if error.code in PASSING or error.code >= 500:
                after = error.headers.get("Retry-After") or ""
                wait = float(after) if after.isdecimal() else 0.0
                raise _AgainError(f"the server answers {error.code}", after=wait) from error
            raise TransferError(f"{url}: expected the file, found the answer {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _AgainError(f"no answer ({reason or type(error).__name__})") from error


def _check_rest(response: http.client.HTTPResponse, part: Path, state: dict[str, Any], start: int) -> int:
    """The size of the whole file, if an answer 206 is the rest that was asked for, of the same version."""
    told = response.headers
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", told.get("Content-Range", "").strip())
    size, etag, modified = state.get("size"), told.get("ETag"), told.get("Last-Modified")
    same = found is not None and start > 0 and int(found[1]) == start and int(found[2]) + 1 == int(found[3])
    same = same and size in (None, int(found[3]))
    same = same and not (state["etag"] and etag and etag != state["etag"])
    same = same and not (state["modified"] and modified and modified != state["modified"])
    if not same:
        _discard(part)
        raise _AgainError(f"found the range {told.get('Content-Range')!r} where {start} to {size} was asked")
    return int(found[3])


def _join(blocks: Iterator[bytes], part: Path, start: int) -> Iterator[bytes]:
    """What comes after the bytes that the part has from `start` on, which must be the same."""
    with part.open("rb") as file:
        file.seek(start)
        known = file.read()
    come = b""
    while len(come) < len(known):
        block = next(blocks, b"")
        if not block:
            raise _AgainError("the connection ended before anything new")
        come += block
    if come[: len(known)] != known:
        _discard(part)
        raise _AgainError("found another file than the one that had begun")
    rest = come[len(known) :]

    def after() -> Iterator[bytes]:
        if rest:
            yield rest
        yield from blocks

    return after()


def _blocks(
    response: http.client.HTTPResponse, settings: TransferSettings, stop: threading.Event
) -> Iterator[bytes]:
    """The body as it comes."""
    since, come = time.monotonic(), 0
    while True:
        if stop.is_set():
            raise StoppedError(response.url)
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _AgainError(f"the connection broke ({error or type(error).__name__})") from error
        if not block:
            return
        come += len(block)
        passed = time.monotonic() - since
        if passed > settings.timeout:
            if come < settings.slowest * passed:
                raise _AgainError(f"{come / passed:.0f} bytes per second are too few")
            since, come = time.monotonic(), 0
        yield block


def _read_state(part: Path, url: str) -> dict[str, Any]:
    """What a part is the beginning of; empty where nobody knows, or where it is of another URL."""
    path = part.with_name(part.name + ".json")
    try:
        state = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    fine = isinstance(state, dict) and state.get("url") == url
    fine = fine and all(isinstance(state.get(key), str) for key in ("etag", "modified"))
    return state if fine and isinstance(state.get("size"), int | None) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)
