"""PHOENIX-ACES HiRes from a server in a thread: what comes, what is told, and what a second run asks for."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import ml_collections
import numpy as np
import pytest
from helpers import server as fake
from helpers import tiny

from configs import common, marvels
from remap import io
from remap.config import ConfigError
from remap.io.phoenix_server import WAVE_NAME, Node, file_name, remote_path
from remap.spectra import SpectrumError
from remap.stages.fetch_library import MANIFEST, fetch_library, selected_limits
from remap.stages.preprocess import preprocess

PIXELS = 600
NODES = [Node(t, g, f) for t in (5700, 5800) for g in (4.0, 4.5) for f in (-0.5, 0.0)]
PATHS = [remote_path(node) for node in NODES]
NAMES = [file_name(node) for node in NODES]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with fake.running() as running:
        fake.serve_library(running, NODES, pixels=PIXELS)
        yield running


def settings(url, root, **changes) -> ml_collections.ConfigDict:
    c = tiny.config(root)
    with c.unlocked():
        c.library = common.phoenix_library(interpolate=True)
        c.library.select = {"teff": (5700, 5800), "logg": (4.0, 4.5), "feh": (-0.5, 0), "alpha": (0, 0)}
    c.fetch.update({"url": url, "backoff": 0.001, "retries": 2, "timeout": 5.0} | changes)
    return c


@pytest.fixture
def config(server, tmp_path):
    return settings(server.url, tmp_path)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "phoenix" / "hires"


def manifest(folder):
    return json.loads((folder / MANIFEST).read_text())


def statuses(folder):
    files = manifest(folder)["files"]
    return [files[name]["status"] for name in NAMES]


def test_the_selected_part_comes_and_is_read(server, config, folder):
    found = fetch_library(config)
    assert found.folder == folder
    assert found.counts == {"there": 8, "hole": 0, "wrong": 0, "failed": 0, "missing": 0}
    assert sorted(p.name for p in folder.iterdir()) == sorted([MANIFEST, WAVE_NAME, *NAMES])
    assert sorted(server.paths()) == sorted([WAVE_NAME, *PATHS])
    for name, path in zip(NAMES, PATHS, strict=True):
        assert (folder / name).read_bytes() == server.files[path]
        entry = manifest(folder)["files"][name]
        assert entry["url"] == server.url + path
        assert (entry["bytes"], entry["odd_pixels"]) == (len(server.files[path]), 0)
        read = io.read(folder / name, source=config.library.source)
        assert {k: v[0] for k, v in read.labels.items()} == NODES[NAMES.index(name)]._asdict()
    assert manifest(folder)["url"] == server.url
    assert manifest(folder)["pixels"] == PIXELS
    # Nothing is left to ask for.
    fetch_library(config)
    assert len(server.asked) == 9


def test_all_that_servers_do_at_once(server, config, folder, caplog):
    hole, wrong, dead, down, slow, short = PATHS[:6]
    del server.files[hole]
    server.files[wrong] = server.files[PATHS[7]]
    server.faults.update({dead: [500] * 9, down: [502, ("drop", 3000)], slow: [("drop", 100)] * 3})
    server.faults.update({short: [("short", 4000)]})
    with pytest.raises(
        SpectrumError, match="5 there, 1 hole, 1 wrong, 1 failed of 8 models; all were asked for"
    ):
        fetch_library(config)
    assert statuses(folder) == ["hole", "wrong", "failed", *["there"] * 5]
    assert "expected the labels of its name" in manifest(folder)["files"][NAMES[1]]["message"]
    assert "500" in manifest(folder)["files"][NAMES[2]]["message"]
    assert sorted(p.name for p in folder.iterdir()) == sorted([MANIFEST, WAVE_NAME, *NAMES[3:]])
    assert f"wrong file: {server.url}{wrong}" in caplog.text

    server.asked.clear()
    server.faults.clear()
    server.files[wrong] = fake.flux_file(NODES[1], pixels=PIXELS)
    found = fetch_library(config)
    assert sorted(server.paths()) == sorted([wrong, dead])
    assert found.counts == {"there": 7, "hole": 1, "wrong": 0, "failed": 0, "missing": 0}

    server.asked.clear()
    server.files[hole] = fake.flux_file(NODES[0], pixels=PIXELS)
    fetch_library(config)
    assert server.asked == []
    config.fetch.ask_again = True
    assert fetch_library(config).counts["there"] == 8
    assert server.paths() == [hole]


def test_holes_of_one_server_are_asked_of_another(server, config, folder):
    del server.files[PATHS[0]]
    assert fetch_library(config).counts["hole"] == 1
    with fake.running() as mirror:
        fake.serve_library(mirror, NODES, pixels=PIXELS)
        config.fetch.url = mirror.url.rstrip("/")
        assert fetch_library(config).counts["there"] == 8
        assert mirror.paths() == [PATHS[0]]


def test_a_mirror_without_a_folder_is_told(server, config, caplog):
    for node in NODES:
        if node.feh == 0:
            del server.files[remote_path(node)]
    assert fetch_library(config).counts["hole"] == 4
    assert "has none of the models selected from Z-0.0:" in caplog.text


def test_a_library_of_holes_is_none(server, config):
    for path in PATHS:
        del server.files[path]
    for _ in range(2):
        with pytest.raises(SpectrumError, match=r"8 hole of 8 models.*fetch.ask_again"):
            fetch_library(config)
    assert len(server.asked) == 9
    server.files[PATHS[0]] = fake.flux_file(NODES[0], pixels=PIXELS)
    config.fetch.ask_again = True
    assert fetch_library(config).counts["there"] == 1


def test_a_url_of_something_else(server, config, folder):
    config.fetch.url = server.url + "nowhere"
    with pytest.raises(SpectrumError, match=f"{server.url}nowhere/: expected {WAVE_NAME} and a folder"):
        fetch_library(config)
    assert len(server.asked) == 1
    assert statuses(folder) == ["missing"] * 8


def test_it_gives_up_after_failures_in_a_row(server, config, folder):
    server.faults.update({path: [500] * 9 for path in PATHS})
    config.fetch.update({"give_up": 2, "connections": 1})
    with pytest.raises(
        SpectrumError, match="2 failed, 6 missing of 8 models; stopped after 2 failures in a row"
    ):
        fetch_library(config)


def test_a_dry_run_asks_and_writes_nothing(server, config, folder, caplog):
    caplog.set_level(logging.INFO)
    plan = fetch_library(config, dry_run=True)
    assert plan.counts["missing"] == len(plan.selected) == 8
    assert plan.size == 8 * 6_300_000 + 12_560_000
    assert "8 models selected, 0 there, 0 holes, 8 to fetch: about 63.0 MB" in caplog.text
    assert server.asked == []
    assert not folder.exists()

    del server.files[PATHS[0]]
    fetch_library(config)
    (folder / NAMES[1]).rename(folder / f"{NAMES[1]}.part")
    plan = fetch_library(config, dry_run=True)
    assert (plan.counts["there"], plan.counts["hole"], plan.counts["missing"]) == (6, 1, 1)
    assert plan.size == 6_300_000 - len(server.files[PATHS[1]])


def test_the_paper_s_part_of_the_grid(monkeypatch, tmp_path):
    config = marvels.get_config()
    config.data_root = str(tmp_path)
    assert selected_limits(config) == {
        "teff": (3000, 7000),
        "logg": (1, 5.5),
        "feh": (-2, 1),
        "alpha": (-0.01, 0.01),
    }
    plan = fetch_library(config, dry_run=True)
    assert len(plan.selected) == 41 * 10 * 7
    config.fetch.alpha = (0.0, 0.4)
    config.fetch.feh = (0.0, 0.5)
    # α only where it was computed: 3500-7000 K, [M/H] up to 0.
    assert len(fetch_library(config, dry_run=True).selected) == 41 * 10 * 2 + 2 * 36 * 10


def test_the_space_first(server, config, folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 20_000_000))
    with pytest.raises(ConfigError, match=r"about 63.0 MB are to come and .* has 20.0 MB free"):
        fetch_library(config)
    assert server.asked == []
    assert not folder.exists()


def test_a_full_disk_ends_it(server, config, folder, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("remap.stages.fetch_library.write_json", lambda *_: None)
    with pytest.raises(SpectrumError, match=r"hires: cannot be written to: .*No space left"):
        fetch_library(config)


def test_files_that_someone_put_there(server, config, folder, caplog):
    folder.mkdir(parents=True)
    (folder / WAVE_NAME).write_bytes(server.files[WAVE_NAME])
    right, other, cut = (folder / name for name in NAMES[:3])
    right.write_bytes(fake.flux_file(NODES[0], pixels=PIXELS, seed=9))
    other.write_bytes(server.files[PATHS[5]])
    cut.write_bytes(server.files[PATHS[2]][:3000])
    fetch_library(config)
    assert sorted(server.paths()) == sorted(PATHS[1:])
    assert right.read_bytes() != server.files[PATHS[0]]
    assert manifest(folder)["files"][NAMES[0]]["url"] == ""
    assert other.read_bytes() == server.files[PATHS[1]]
    assert other.with_name(other.name + ".wrong").read_bytes() == server.files[PATHS[5]]
    assert caplog.text.count("renamed to") == 2


def test_files_that_changed_since(server, config, folder):
    fetch_library(config)
    server.asked.clear()
    first, second, third, fourth = (folder / name for name in NAMES[:4])
    first.write_bytes(b"not a spectrum")
    second.unlink()
    os.utime(third, (1, 1))
    stat = fourth.stat()
    fourth.write_bytes(server.files[PATHS[5]])  # as long and as old as before
    os.utime(fourth, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fetch_library(config)
    assert sorted(server.paths()) == sorted(PATHS[:2])
    assert first.read_bytes() == server.files[PATHS[0]]
    config.fetch.verify = True
    fetch_library(config)
    assert server.paths()[2:] == [PATHS[3]]
    assert not list(folder.glob("*.wrong"))


def test_other_wavelengths_call_for_other_models(server, config, folder):
    fetch_library(config)
    fake.serve_library(server, NODES, pixels=PIXELS - 10)
    (folder / WAVE_NAME).unlink()
    server.asked.clear()
    fetch_library(config)
    assert len(server.asked) == 9
    assert manifest(folder)["pixels"] == PIXELS - 10


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": []}', '{"files": {"a": 3}, "pixels": 1}', '{"files": {}}']
)
def test_a_broken_manifest_is_made_anew(server, config, folder, text, caplog):
    fetch_library(config)
    (folder / MANIFEST).write_text(text)
    server.asked.clear()
    fetch_library(config)
    assert server.asked == []
    assert statuses(folder) == ["there"] * 8
    assert "every file is checked again" in caplog.text


def test_odd_pixels_are_told(server, config, folder, caplog):
    flux = np.ones(PIXELS)
    flux[3] = np.nan
    server.files[PATHS[0]] = fake.flux_file(NODES[0], pixels=PIXELS, flux=flux)
    fetch_library(config)
    assert manifest(folder)["files"][NAMES[0]]["odd_pixels"] == 1
    assert f"{NAMES[0]}: 1 pixels are negative or not finite" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fetch.teff": (9050.0, 9100.0)}, "PHOENIX has no model within teff 9050 to 9100"),
        ({"fetch.url": "ftp://host/"}, "fetch: url: expected http"),
        ({"fetch.logg": (4.0,)}, r"fetch: logg: expected \(low, high\)"),
        ({"fetch.feh": (1.0, 0.0)}, "fetch: feh: expected"),
        ({"fetch.connections": 0}, "fetch: connections: expected 1 or more"),
        ({"fetch.progress": 0.0}, "fetch: progress: expected"),
        ({"fetch.retries": -1}, "fetch: retries: expected"),
        ({"library.patterns": ("*.fits.gz",)}, "library.patterns are"),
        ({"library.source.wave_path": "waves.fits"}, "library.source.wave_path is 'waves.fits'"),
        ({"library.source.medium": "ether"}, "medium must be one of"),
        ({"library.source.format": "bundle"}, "library.source.format is 'phoenix_hires', found 'bundle'"),
    ],
)
def test_settings_that_cannot_be(server, config, folder, change, message):
    config.update_from_flattened_dict(change)
    with pytest.raises(ConfigError, match=message):
        fetch_library(config)
    assert server.asked == []


def test_the_folder(server, config, tmp_path):
    config.fetch.folder = "else/where"
    config.library.patterns = ("*.gz",)  # of the library's own folder
    assert fetch_library(config).folder == tmp_path / "else" / "where"
    (tmp_path / "file").write_text("")
    config.fetch.folder = "file"
    with pytest.raises(SpectrumError, match="file: cannot be written to"):
        fetch_library(config)


def test_two_runs_at_once_are_refused(server, config):
    inside = []

    def again(self, *_):
        with pytest.raises(ConfigError, match="another run is fetching"):
            fetch_library(config)
        inside.append(True)
        return self.plan()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remap.stages.fetch_library._Run.fetch", again)
        fetch_library(config)
    assert inside
    fetch_library(config)


def test_an_interrupt_keeps_what_came(server, folder, tmp_path):
    """The launch script and Ctrl-C in the middle of a file; the same command goes on."""
    path = PATHS[2]
    server.faults[path] = [("stall", 3000)]
    code = (
        "import sys; from absl import flags; from helpers import tiny; import test_fetch_library as t\n"
        "from remap.stages import fetch_library as f; from launch import cli, fetch_library as script\n"
        f"config = t.settings({server.url!r}, {str(tmp_path)!r}, connections=1, timeout=8.0)\n"
        "script.CONFIG = type('C', (), {'value': config})()\n"
        "sys.argv = ['fetch_library', '--compilation_cache=']\n"
        "cli.run(script.main, required=())"
    )
    places = [tiny.REPOSITORY, tiny.REPOSITORY / "tests", tiny.REPOSITORY / "tests" / "stages"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "JAX_PLATFORMS": "cpu"}
    run = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    part = folder / f"{NAMES[2]}.part"
    assert server.stalled.wait(60)
    late = time.monotonic() + 20
    while (
        not (part.exists() and part.stat().st_size >= 3000) and time.monotonic() < late
    ):  # yet to be written
        server.ended.wait(0.01)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130, told
    assert "the same command goes on" in told
    assert "Traceback" not in told
    assert part.stat().st_size == 3000
    assert statuses(folder) == ["there", "there", *["missing"] * 6]
    server.asked.clear()
    fetch_library(settings(server.url, tmp_path))
    assert [(p, r) for p, r, _ in server.asked if r] == [(path, "bytes=3000-")]
    assert len(server.asked) == 6


def test_what_was_fetched_goes_through_preprocess(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    shutil.copytree(tiny.write_data(tmp_path / "made") / "survey", tmp_path / "survey")
    nodes = [Node(t, g, f) for t in (5000, 5100) for g in (4.0, 4.5) for f in (-0.5, 0.0)]
    with fake.running() as server:
        fake.serve_library(server, nodes[1:], pixels=1100)
        config = settings(server.url, tmp_path)
        config.library.select.update({"teff": (5000, 5100)})
        assert fetch_library(config).counts["hole"] == 1
    preprocess(config, tmp_path / "work")
    with np.load(tmp_path / "work" / "data" / "library_A.npz") as data:
        assert sorted(map(tuple, data["labels"])) == sorted(node[:3] for node in nodes[1:])
        assert data["valid"].all()
