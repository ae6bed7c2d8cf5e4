"""An HTTP server on this machine that serves files and, when told to, fails in the ways of real ones."""

import contextlib
import email.utils
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator

import numpy as np
from astropy.io import fits

from remap.io.phoenix_server import WAVE_NAME, Node, remote_path

DATE = email.utils.formatdate(1.3e9, usegmt=True)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes); a request takes the next of the path's `faults`, if there is one left.

    Faults: a status code; ("drop", N): the connection ends after N bytes of the body; ("short", N): so does the body,
    and its length says so; ("stall", N): nothing comes after N bytes; ("serve", bytes): another file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, If-Range
        self.ranges = self.etags = self.dates = self.lengths = self.conditions = True
        self.headers: dict[str, str] = {}
        self.version = "1.1"
        self.stalled, self.ended = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def handle_error(self, *_) -> None:
        """Clients that go away are part of the game."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, path = self.server, self.path.lstrip("/")
        self.protocol_version = f"HTTP/{server.version}"
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        server.asked.append((path, wanted, condition))
        faults = server.faults.get(path, [])
        kind = faults.pop(0) if faults else None
        if isinstance(kind, int) or path not in server.files:
            self.send_response(kind if kind else 404)
            for name, value in ({"Content-Length": "0"} | server.headers).items():
                self.send_header(name, value)
            self.end_headers()
            return
        what, value = kind or (None, None)
        content = value if what == "serve" else server.files[path]
        content = content[:value] if what == "short" else content
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and server.ranges and (not server.conditions or condition in (None, etag, DATE)):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(416 if start >= len(content) else 206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.etags:
            self.send_header("ETag", etag)
        if server.dates:
            self.send_header("Last-Modified", DATE)
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        for header in server.headers.items():
            self.send_header(*header)
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[:value] if what in ("drop", "stall") else body)
        self.wfile.flush()
        if what == "stall":
            server.stalled.set()
            server.ended.wait(20)
        self.close_connection = what == "drop" or not server.lengths

    def log_message(self, *_) -> None:
        """Quiet."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server in a thread of its own."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def wave(pixels: int, step: float = 0.25) -> np.ndarray:
    return 4980.0 + step * np.arange(pixels)


def flux_file(node: Node, *, pixels: int, seed: int = 0, flux: np.ndarray | None = None, **cards) -> bytes:
    """A file like those of PHOENIX: the flux, its labels, and the abundances in a second HDU."""
    if flux is None:
        flux = 1e14 * np.random.default_rng([seed, node.teff]).uniform(0.5, 1.0, pixels)
    labels = {"PHXTEFF": float(node.teff), "PHXLOGG": node.logg, "PHXM_H": node.feh, "PHXALPHA": node.alpha}
    first = fits.PrimaryHDU(flux.astype(np.float32), fits.Header(labels | cards))
    second = fits.BinTableHDU.from_columns([fits.Column("Fe", "D", array=np.array([7.5]))], name="ABUNDANCES")
    return as_bytes(fits.HDUList([first, second]))


def wave_file(pixels: int, step: float = 0.25) -> bytes:
    return as_bytes(fits.HDUList([fits.PrimaryHDU(wave(pixels, step))]))


def as_bytes(hdus: fits.HDUList) -> bytes:
    out = io.BytesIO()
    hdus.writeto(out)
    return out.getvalue()


def serve_library(server: Server, nodes: list[Node], *, pixels: int = 600) -> None:
    """WAVE and these models."""
    server.files[WAVE_NAME] = wave_file(pixels)
    for node in nodes:
        server.files[remote_path(node)] = flux_file(node, pixels=pixels)
