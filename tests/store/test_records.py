"""JSON lines: what is written comes back, and a resumed run leaves no torn, later or double records."""

import json

import pytest

from remap.store.atomic import DamagedError
from remap.store.records import open_records, read_records


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def write(path, steps, *, after=0):
    writer = open_records(path, step=after)
    for step in steps:
        writer.write({"step": step, "loss": [0.1, step / 3]})
    writer.close()


def steps_in(path):
    return [r["step"] for r in read_records(path)]


def test_a_missing_file_has_no_records(path):
    assert read_records(path) == []


def test_records_come_back_as_written_and_each_is_on_disk_at_once(path):
    writer = open_records(path, step=0)
    for step in (1, 2):
        writer.write({"step": step, "loss": 1 / 3, "per_label": [1e-300, -0.0]})
        assert steps_in(path) == list(range(1, step + 1))  # before the file is closed
    writer.close()
    assert read_records(path)[1] == {"step": 2, "loss": 1 / 3, "per_label": [1e-300, -0.0]}
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_resuming_drops_later_steps_and_goes_on(path):
    write(path, [10, 20, 30, 40])
    write(path, [30, 40, 50], after=20)
    assert steps_in(path) == [10, 20, 30, 40, 50]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]  # no temporary file stays


def test_a_new_run_starts_empty_and_a_finished_one_loses_nothing(path):
    write(path, [10, 20])
    write(path, [], after=20)
    assert steps_in(path) == [10, 20]
    write(path, [], after=0)
    assert steps_in(path) == []


@pytest.mark.parametrize("cut", [1, 2, 10, -1])
def test_a_torn_last_line_is_dropped_and_overwritten(path, cut):
    write(path, [10, 20, 30])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2].rstrip("\n")[:cut])
    assert steps_in(path) == [10, 20]
    write(path, [30, 40], after=30)
    assert steps_in(path) == [10, 20, 30, 40]


def test_a_last_line_without_its_newline_is_complete(path):
    write(path, [10, 20])
    path.write_text(path.read_text().rstrip("\n"))
    assert steps_in(path) == [10, 20]
    write(path, [30], after=20)
    assert steps_in(path) == [10, 20, 30]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_text("\n".join(path.read_text().splitlines()[1:])),
        lambda path: path.write_text("{" + path.read_text()),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
        lambda path: path.write_text(path.read_text().replace("0.1", "0.2", 1)),
        lambda path: path.write_text('{"loss": 1}\n' + path.read_text()),
    ],
)
def test_records_that_are_lost_or_damaged_are_those_of_the_checkpoint(path, spoil, caplog):
    write(path, [10, 20, 30])
    expected = path.read_text().splitlines()
    known = read_records(path)[:2]
    open_records(path, step=20, known=known).close()
    assert caplog.text == ""
    write(path, [30], after=20)
    spoil(path)
    open_records(path, step=20, known=known).close()
    assert path.read_text().splitlines() == expected[:2]
    assert "of the 2 records up to step 20; written anew from the checkpoint" in caplog.text


def test_damaged_records_are_named_where_nobody_else_has_them(path):
    write(path, [10, 20])
    path.write_text("{" + path.read_text())
    with pytest.raises(DamagedError, match=rf"^{path}: line 1 is no JSON"):
        open_records(path, step=20)
    path.write_text("[]\n")
    with pytest.raises(DamagedError, match=rf"^{path}: line 1: expected a record"):
        read_records(path)
