"""Metrics as JSON lines: one object per line, kept consistent with checkpoints on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remap.config import ConfigError


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All complete records of a JSONL file; [] if it does not exist. A torn last line (a kill) is dropped."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if i < len(lines) - 1:
                raise ConfigError(f"{path}: line {i + 1} is no JSON: {error}") from error
    return records


def open_records(path: str | Path, *, step: int) -> RecordWriter:
    """A writer that continues after `step`: records of later steps, which will be made again, are dropped."""
    path = Path(path)
    kept = [r for r in read_records(path) if r["step"] <= step]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
    os.replace(temporary, path)
    return RecordWriter(path)


class RecordWriter:
    """Appends records and flushes each, so that a kill loses at most the line being written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it needs a `step`."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
