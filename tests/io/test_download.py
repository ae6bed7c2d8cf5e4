"""Downloads from a server that fails in every way that servers do."""

import json
import threading

import numpy as np
import pytest
from helpers import server as fake

from remap.config import ConfigError
from remap.io.download import (
    BLOCK,
    NotThereError,
    StoppedError,
    TransferError,
    TransferSettings,
    WrongFileError,
    check_url,
    download,
    part_path,
    sha256,
)
from remap.spectra import SpectrumError

SIZE = 5 * BLOCK + 123
CONTENT = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8).tobytes()
HALF = 2 * BLOCK + 7
QUICK = TransferSettings(retries=2, timeout=5.0, backoff=0.001)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with fake.running() as running:
        running.files["f"] = CONTENT
        yield running


@pytest.fixture
def get(server, tmp_path):
    """Downloads `f` and returns what lies under its name; nothing else may be left."""

    def call(*, settings=QUICK, expected=CONTENT, stop=None, count=lambda _: None):
        def check(path):
            if path.read_bytes() != expected:
                raise SpectrumError(f"{path}: expected something else")

        path = tmp_path / "f"
        found = download(
            server.url + "f",
            path,
            check=check,
            settings=settings,
            stop=stop or threading.Event(),
            count=count,
        )
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
        assert path.read_bytes() == expected
        assert (found.size, found.sha256) == (len(expected), sha256(path))
        return found

    return call


def test_a_file_comes_whole(server, get):
    come = []
    found = get(count=come.append)
    assert sum(come) == SIZE
    assert found.modified == fake.DATE
    assert found.etag
    assert server.asked == [("f", None, None)]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("etags", [True, False])
def test_a_dropped_connection_is_taken_up_where_it_ended(server, get, etags, version):
    server.version, server.etags = version, etags
    server.faults["f"] = [("drop", HALF), ("drop", BLOCK)]
    come = []
    found = get(count=come.append)
    validator = found.etag if etags else fake.DATE
    assert server.asked[1:] == [
        ("f", f"bytes={HALF}-", validator),
        ("f", f"bytes={HALF + BLOCK}-", validator),
    ]
    assert sum(come) == SIZE  # nothing twice


def test_drops_with_progress_are_not_counted_as_failures(server, get):
    server.faults["f"] = [("drop", BLOCK // 2)] * 9
    get(settings=TransferSettings(retries=0, timeout=5.0, backoff=0.0))
    assert len(server.asked) == 10


def test_a_server_that_knows_no_ranges_gives_the_whole(server, get):
    server.ranges = False
    server.faults["f"] = [("drop", HALF), ("drop", HALF - 1)]
    get()
    assert len(server.asked) == 3


@pytest.mark.parametrize("conditions", [True, False])
def test_a_new_version_is_not_joined_to_the_old_one(server, get, conditions):
    server.conditions = conditions  # False: If-Range is not heeded, and the ETag of the rest tells
    server.faults["f"] = [("drop", HALF)]
    get(expected=OTHER, count=lambda _: server.files.update(f=OTHER))
    assert server.asked[1][1] == f"bytes={HALF}-"
    assert len(server.asked) == 3 - conditions


@pytest.mark.parametrize("changed", [False, True])
def test_without_a_validator_an_overlap_tells(server, get, changed):
    server.etags = server.dates = False
    server.faults["f"] = [("drop", HALF)]
    if changed:
        get(expected=OTHER, count=lambda _: server.files.update(f=OTHER))
    else:
        get()
    assert server.asked[1] == ("f", f"bytes={HALF - BLOCK}-", None)
    assert len(server.asked) == 2 + changed


def test_a_link_in_the_place_of_a_part_is_not_followed(server, get, tmp_path):
    (tmp_path / "away").mkdir()
    precious = tmp_path / "away" / "precious"
    precious.write_bytes(CONTENT[:HALF])
    part_path(tmp_path / "f").symlink_to(precious)
    with pytest.raises(AssertionError, match="away"):  # the folder, which `get` does not expect
        get()
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert precious.read_bytes() == CONTENT[:HALF]


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(server, get, code):
    server.faults["f"] = [code, code]
    get()
    assert len(server.asked) == 3


def test_it_gives_up_in_the_end(server, get, tmp_path):
    server.faults["f"] = [("drop", HALF), *[500] * 9]
    with pytest.raises(TransferError, match=rf"{server.url}f: given up after 3 attempts: .* 500"):
        get()
    # But keeps what came, for a later run.
    assert part_path(tmp_path / "f").read_bytes() == CONTENT[:HALF]
    server.faults.clear()
    get()
    assert server.asked[-1][1] == f"bytes={HALF}-"


@pytest.mark.parametrize("code", [400, 401, 403, 451])
def test_what_will_not_pass_is_not_tried_again(server, get, code):
    server.faults["f"] = [code]
    with pytest.raises(TransferError, match=f"f: expected the file, found the answer {code}"):
        get()
    assert len(server.asked) == 1


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_versions_are_never_mixed(server, tmp_path, seed):
    """Faults in any order, of servers of any kind, and a new version in the middle."""
    rng = np.random.default_rng(seed)
    server.etags, server.dates, server.ranges, server.conditions = map(bool, rng.integers(0, 2, 4))
    server.dates &= server.etags  # both versions have the same date
    server.version = rng.choice(["1.0", "1.1"])
    kinds = [500, 416, ("drop", 0), *[("drop", int(n)) for n in rng.integers(1, SIZE, 4)]]
    server.faults["f"] = [kinds[i] for i in rng.integers(0, len(kinds), 6)] + [("short", HALF)] * (seed % 2)

    def check(path):
        content = path.read_bytes()
        if len(content) < SIZE:
            raise SpectrumError(f"{path}: short")
        assert content in (CONTENT, OTHER)

    def count(_):
        if len(server.faults["f"]) < 4:
            server.files["f"] = OTHER

    settings = TransferSettings(retries=9, timeout=5.0, backoff=0.0)
    download(
        server.url + "f", tmp_path / "f", check=check, settings=settings, stop=threading.Event(), count=count
    )
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("code", [404, 410])
def test_a_hole_is_told_apart(server, get, tmp_path, code):
    server.faults["f"] = [("drop", HALF), code]
    with pytest.raises(NotThereError):
        get()
    assert list(tmp_path.iterdir()) == []


def test_the_server_may_ask_to_wait(server, get):
    waits = []

    class Stop(threading.Event):
        def wait(self, timeout=None):
            return bool(waits.append(timeout))

    server.headers = {"Retry-After": "7"}
    server.faults["f"] = [503, 503, 503]
    get(stop=Stop(), settings=TransferSettings(retries=3, timeout=5.0, backoff=4.0))
    assert waits == [7.0, 8.0, 16.0]


def test_a_short_file_without_a_length_is_asked_for_again(server, get):
    server.version, server.lengths = "1.0", False
    server.faults["f"] = [("drop", HALF)]
    get()
    assert [r for _, r, _ in server.asked] == [None, None]


def test_a_short_file_with_the_wrong_length_is_asked_for_again(server, get):
    server.faults["f"] = [("short", HALF)]
    get()


def test_another_file_is_deleted_and_told(server, get, tmp_path):
    server.files["f"] = OTHER
    with pytest.raises(WrongFileError, match="f: deleted: f: expected something else"):
        get()
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 2


def test_a_part_of_a_file_that_shrank_is_given_up(server, get):
    server.conditions = False
    server.faults["f"] = [("drop", HALF)]
    get(expected=CONTENT[:100], count=lambda _: server.files.update(f=CONTENT[:100]))
    assert [r for _, r, _ in server.asked] == [None, f"bytes={HALF}-", None]


def test_a_part_of_unknown_origin_is_not_used(server, get, tmp_path):
    part = part_path(tmp_path / "f")
    state = part.with_name("f.part.json")
    known = {"url": "http://elsewhere/f", "etag": "", "modified": "", "size": SIZE}
    for text in (
        None,
        "{",
        "[]",
        json.dumps(known),
        json.dumps(known | {"url": server.url + "f", "etag": 3}),
    ):
        part.write_bytes(OTHER[:HALF])
        if text is not None:
            state.write_text(text)
        get()
        assert server.asked[-1] == ("f", None, None)
        (tmp_path / "f").unlink()


def test_a_stalled_connection_is_given_up(server, get):
    server.faults["f"] = [("stall", HALF)]
    get(settings=TransferSettings(retries=1, timeout=0.2, backoff=0.0))
    assert server.asked[1][1] == f"bytes={HALF}-"


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with fake.running() as gone:
        url = gone.url + "f"
    with pytest.raises(TransferError, match="given up after 3 attempts: no answer"):
        download(url, tmp_path / "f", check=lambda _: None, settings=QUICK, stop=threading.Event())


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_without_an_end_is_refused(server, get, tmp_path, lengths):
    server.lengths = lengths
    with pytest.raises(TransferError, match=r"1000 bytes"):
        get(settings=TransferSettings(retries=0, timeout=5.0, backoff=0.0, largest=1000))
    assert list(tmp_path.iterdir()) == []


def test_an_encoded_file_is_refused(server, get):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(TransferError, match="found it encoded as gzip"):
        get()


def test_a_stop_keeps_what_came(server, get, tmp_path):
    stop = threading.Event()
    with pytest.raises(StoppedError):
        get(stop=stop, count=lambda _: stop.set())
    kept = part_path(tmp_path / "f").stat().st_size
    assert 0 < kept < SIZE
    get()
    assert server.asked[-1][1] == f"bytes={kept}-"


def test_urls():
    assert check_url("https://example.org/a/b//") == "https://example.org/a/b/"
    for url in (
        "",
        "ftp://h/x",
        "file:///x",
        "http://",
        "http://h:x/",
        "http://[::1/",
        "http://h/a b",
        "h/x?q",
    ):
        with pytest.raises(ConfigError, match="url: expected http"):
            check_url(url)


@pytest.mark.parametrize("field", ["retries", "timeout", "backoff", "slowest", "largest"])
def test_settings_that_cannot_be(field):
    with pytest.raises(ConfigError, match=f"{field}: expected"):
        TransferSettings(**{field: -1})
