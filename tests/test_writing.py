"""Files are written whole or not at all, and follow no link."""

import errno
import json
import os
import shutil
import stat
from collections import namedtuple

import numpy as np
import pytest

from remap.writing import (
    StorageError,
    check_space,
    check_writable,
    remove_leftovers,
    save_arrays,
    write_files,
    write_json,
)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_is_written_comes_back_and_nothing_else_stays(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"x": [1, "Å"]})
    save_arrays(tmp_path / "deep" / "b.npz", flux=np.arange(3.0))
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"x": [1, "Å"]}
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "b.npz")["flux"], [0, 1, 2])
    assert names(tmp_path / "deep") == ["a.json", "b.npz"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "deep" / "a.json").stat().st_mode) == 0o666 & ~mask


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def fill(file):
        file.write(b"half of")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=rf"^{path}: cannot be written: No space left on device$"):
        write_files({tmp_path / "b": lambda file: file.write(b"b"), path: fill})
    assert json.loads(path.read_text()) == 1
    assert names(tmp_path) == ["a.json"]
    with pytest.raises(ZeroDivisionError):  # a fault of the program stays what it is
        write_files({path: lambda file: 1 / 0})
    assert names(tmp_path) == ["a.json"]


def test_everything_is_on_the_disk_before_a_name_is_moved_and_the_move_is_too(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def synced(handle):
        seen.append(("fsync", stat.S_ISDIR(os.fstat(handle).st_mode)))

    def moved(*paths):
        seen.append(("replace", False))
        replace(*paths)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    write_files({tmp_path / name: lambda file: file.write(b"x") for name in "ab"})
    assert seen == [("fsync", False)] * 2 + [("replace", False)] * 2 + [("fsync", True)]


@pytest.mark.parametrize("guessed", [False, True])
def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, monkeypatch, guessed):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "a.json.tmp").symlink_to(precious)
    if guessed:
        monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 8)
        (tmp_path / f".a.json.{os.getpid()}.00000000.tmp").symlink_to(precious)
        with pytest.raises(StorageError, match=r"a\.json: cannot be written: File exists"):
            write_json(tmp_path / "a.json", {"x": 1})
    else:
        write_json(tmp_path / "a.json", {"x": 1})
    assert precious.read_text() == "kept"


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a.json").symlink_to(tmp_path / "precious")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "precious").read_text() == "kept"
    assert not (tmp_path / "a.json").is_symlink()


def test_what_a_kill_left_is_removed_and_nothing_that_looks_like_it(tmp_path):
    (tmp_path / ".a.json.123.0123abcd.tmp").write_text("half")
    for name in ("a.tmp", ".a.123.tmp", ".a.json.123.0123abcd.tmp.keep"):
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".a.123.tmp", ".a.json.123.0123abcd.tmp.keep", "a.tmp"]


def test_places_that_cannot_be_written_to_are_told_and_nothing_is_made(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder" / "c.fits")
    assert names(tmp_path) == []
    with pytest.raises(StorageError, match="is a folder, expected the name of a file"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file: expected a folder to write c\.fits into, found none"):
        check_writable(tmp_path / "file" / "deep" / "c.fits")
    (tmp_path / "loose").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"loose: expected a folder"):
        check_writable(tmp_path / "loose" / "c.fits")

    def refuse(path, *rest, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageError, match=rf"^{tmp_path}: cannot be written to: Read-only file system$"):
            check_writable(tmp_path / "c.fits")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(StorageError, match=r"needs about 2\.0 MB, found 0\.0 MB free"):
        check_space(tmp_path, 2_000_000)
    with pytest.raises(StorageError, match=r"found 0\.0 MB free"):
        check_writable(tmp_path / "c.fits")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot be written to: Permission denied"):
        check_writable(tmp_path / "c.fits")
