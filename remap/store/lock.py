"""One writer for a folder: a lock that a process which has died does not hold."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from remap import sharding
from remap.config import ConfigError
from remap.store.atomic import StorageError, check_writable, remove_leftovers

logger = logging.getLogger(__name__)

NAME = "run.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(ConfigError):
    """Another run writes into the folder."""


@dataclasses.dataclass
class Held:
    """A folder that this process holds.

    Attributes:
      spoilt: what is there may not belong together; set it before an error leaves the folder, and `unfinished` says
        so until another run has held it to its end.
    """

    spoilt: bool = False
    _count: int = 1


_held: dict[Path, Held] = {}  # by this process


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Held]:
    """Keeps a folder, which is made, for this process; within it may be asked for again.

    `run.lock` says which host, process and start of it hold the folder. On one machine the kernel's lock on that file
    decides, which ends with the process however it ends; where the file system has none, the process number with the
    time at which it began, since numbers are used again. Of another host nothing can be known. Of several
    processes of a run the first one holds it for all.

    Raises:
      LockedError: another run holds it; says which, and what to do if that run is no more.
      StorageError: the folder cannot be written to.
    """
    try:
        folder = folder.resolve()
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise StorageError(f"{folder}: cannot be written to: {error}") from error
    path = folder / NAME
    if folder in _held:
        _held[folder]._count += 1
        try:
            yield _held[folder]
        finally:
            _held[folder]._count -= 1
        return
    made, handle = sharding.from_first(lambda: _open(path))
    held = _held[folder] = Held()
    try:
        if sharding.writes():
            remove_leftovers(folder)
        yield held
    finally:
        del _held[folder]
        if sharding.writes():
            _give_back(path, made, handle, keep=held.spoilt)


def _open(path: Path) -> tuple[list[Path], int]:
    """The folders that were made for the file, and the open file that holds the lock."""
    check_writable(path)
    folder = path.parent
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return made, _take(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _give_back(path: Path, made: list[Path], handle: int, *, keep: bool) -> None:
    # While it is still locked: a run that waits for this file sees that it is gone and makes another.
    if not keep:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    os.close(handle)
    with contextlib.suppress(OSError):  # a run that was refused leaves no trace
        for each in made:
            each.rmdir()


def unfinished(folder: Path) -> bool:
    """True while another run holds the folder, and after one that was killed there or has left it spoilt."""
    return (folder / NAME).exists() and folder.resolve() not in _held


def _take(path: Path) -> int:
    """The open file that holds the lock."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            locked = _lock(handle)
            holder = _read(handle)
            if locked is False or (holder and _may_live(holder)):
                raise LockedError(_told(path, holder))
            if not _is_file(handle, path):  # its holder ended in between
                os.close(handle)
                continue
            if holder:
                logger.warning(
                    "%s: its run (process %s) has ended without giving the folder back; taken over",
                    path,
                    holder.get("pid"),
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(identity()).encode() + b"\n", 0)
            os.fsync(handle)
            return handle
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise


def _lock(handle: int) -> bool | None:
    """True: the kernel's lock is ours; False: it is another's; None: this file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _read(handle: int) -> dict[str, Any]:
    """What the file says of its holder; {} where a kill or a full disk left nothing of it."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_file(handle: int, path: Path) -> bool:
    """True if `path` still is the open file."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(handle), found)


def identity() -> dict[str, Any]:
    """This process, in a way that no other one is known by: host, number and start."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}


def _may_live(holder: dict[str, Any]) -> bool:
    """False only where the process is known to be no more."""
    if holder.get("host") != socket.gethostname():
        return True
    pid = holder.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return False
    if pid == os.getpid():  # what this process holds is in `_held`
        return False
    return holder.get("started") == started(pid) is not None


def started(pid: int) -> str | None:
    """When a process of this machine began, as a text that its number alone cannot repeat; None = there is none."""
    try:
        # The name in brackets may hold anything; field 22 counts ticks since the start of the machine.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None


def _told(path: Path, holder: dict[str, Any]) -> str:
    if not holder:  # it has only just begun
        return f"{path.parent}: another run writes here; wait for it or stop it"
    host, pid = holder.get("host", "unknown"), holder.get("pid", "unknown")
    here = host == socket.gethostname()
    who = f"process {pid} of this machine" if here else f"process {pid} on the host {host}"
    rest = "wait for it or stop it" if here else f"if it has ended, delete {path} and start again"
    return f"{path.parent}: another run writes here ({who}); {rest}"
