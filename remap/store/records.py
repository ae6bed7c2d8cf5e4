"""Metrics as JSON lines: one object per line, kept consistent with checkpoints on resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remap import sharding
from remap.store.atomic import DamagedError, write_text

logger = logging.getLogger(__name__)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All complete records of a JSONL file; [] if it does not exist. A torn last line (a kill) is dropped.

    Raises:
      DamagedError: another line is no record; names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().splitlines()
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
        except ValueError as error:  # no JSON, or no text
            if i < len(lines) - 1:
                raise DamagedError(f"{path}: line {i + 1} is no JSON: {error}") from error
            break
        if not isinstance(record, dict):
            raise DamagedError(f"{path}: line {i + 1}: expected a record, found {line[:80]!r}")
        records.append(record)
    return records


def open_records(
    path: str | Path, *, step: int, known: Sequence[Mapping[str, Any]] | None = None
) -> RecordWriter:
    """A writer that continues after `step`: records of later steps, which will be made again, are dropped.

    Args:
      known: the records up to `step` as somebody else has kept them; a file that lacks or contradicts them is told of
        and written anew. None = nobody has, and the file is believed.
    """
    path = Path(path)
    try:
        kept = [r for r in read_records(path) if r["step"] <= step]
    except (DamagedError, KeyError, TypeError) as error:
        if known is None:
            raise
        logger.warning("%s: damaged (%s)", path, error)
        kept = []
    if known is not None:
        ours, theirs = ([json.dumps(r, sort_keys=True) for r in records] for records in (kept, known))
        if ours != theirs:
            logger.warning(
                "%s: held %d of the %d records up to step %d; written anew from the checkpoint",
                *(path, len(set(ours) & set(theirs)), len(theirs), step),
            )
            kept = [dict(record) for record in known]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
    return RecordWriter(path)


class RecordWriter:
    """Appends records and flushes each, so that a kill loses at most the line being written.

    Of several processes the first one writes, the others do nothing.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a") if sharding.writes() else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; it needs a `step`."""
        if self._file is not None:
            self._file.write(json.dumps(dict(record)) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
