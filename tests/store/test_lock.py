"""A folder has one writer: the living keep it, the dead do not, and of other hosts nothing is assumed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import tiny

from remap.store import lock
from remap.store.atomic import StorageError
from remap.store.lock import LockedError, hold

HOLDER = """
import sys, time
from pathlib import Path
from remap.store.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def write(folder, **changes):
    """A lock as a process has left it."""
    folder.mkdir(exist_ok=True)
    (folder / lock.NAME).write_text(json.dumps(lock.identity() | changes))


def test_another_process_is_refused_while_it_lives_and_not_once_it_is_killed(other, tmp_path, caplog):
    folder = tmp_path / "run"
    with (
        pytest.raises(LockedError, match=rf"run: another run writes here \(process {other.pid} of this m"),
        hold(folder),
    ):
        pytest.fail("two at once")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    (folder / ".metrics.jsonl.1.0123abcd.tmp").write_text("half")
    with hold(folder):
        assert json.loads((folder / lock.NAME).read_text()) == lock.identity()
        assert [p.name for p in folder.iterdir()] == [lock.NAME]
    assert list(folder.iterdir()) == []
    assert f"its run (process {other.pid}) has ended without giving the folder back" in caplog.text


def test_without_the_kernels_lock_the_process_number_and_its_start_decide(other, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda handle: None)
    folder = tmp_path / "run"
    with pytest.raises(LockedError, match=f"process {other.pid} of this machine"), hold(folder):
        pytest.fail("two at once")
    write(folder, pid=other.pid, started="another start")  # the number has been given to a new process
    with hold(folder):
        pass
    write(
        folder, pid=os.getpid()
    )  # an earlier process with the number and, as a machine can have it, the start
    with hold(folder):
        pass
    os.kill(other.pid, signal.SIGKILL)
    while lock.started(other.pid) is not None:  # a zombie holds nothing
        time.sleep(0.01)
    write(folder, pid=other.pid, started="whatever")
    with hold(folder):
        pass


def test_another_host_is_refused_with_what_to_do(tmp_path):
    write(tmp_path / "run", host="elsewhere", pid=7)
    with pytest.raises(LockedError) as error, hold(tmp_path / "run"):
        pytest.fail("two at once")
    path = tmp_path / "run" / lock.NAME
    assert "process 7 on the host elsewhere" in str(error.value)
    assert f"delete {path} and start again" in str(error.value)
    path.unlink()
    with hold(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": "HOST", "pid": "x"}', '{"host": "HOST", "pid": -1}']
)
def test_a_torn_lock_holds_nothing(tmp_path, text):
    """Nobody has the kernel's lock, and what a full disk left names no process."""
    (tmp_path / lock.NAME).write_text(text.replace("HOST", socket.gethostname()))
    with hold(tmp_path):
        pass


def test_a_process_may_ask_again_and_the_folder_is_free_at_the_last_end(tmp_path):
    with hold(tmp_path / "run"):
        with hold(tmp_path / "run"):
            pass
        (tmp_path / "link").symlink_to(tmp_path / "run")
        with hold(tmp_path / "link"):
            pass
        assert (tmp_path / "run" / lock.NAME).exists()
    assert not (tmp_path / "run" / lock.NAME).exists()
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "new" / "run"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["link"]  # whoever leaves nothing leaves no folder


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match=r"run\.lock: cannot be written"), hold(tmp_path / "run"):
        pytest.fail("followed")
    assert (tmp_path / "precious").read_text() == "kept"


def test_links_that_lead_to_each_other_are_told(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StorageError, match=r"a/run: cannot be written to"), hold(tmp_path / "a" / "run"):
        pass


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="run: expected a folder"), hold(tmp_path / "run"):
        pytest.fail("held")
