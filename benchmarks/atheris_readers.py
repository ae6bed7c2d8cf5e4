"""A reader under atheris, which looks for inputs that reach new branches: only a `SpectrumError` may come out.

    pip install atheris
    mkdir -p workdirs/atheris
    export REMAP_FUZZ_READER=table
    python -m benchmarks.atheris_readers workdirs/atheris -max_total_time=600 -rss_limit_mb=2048 -timeout=10

The folder takes the inputs that reached something new; the readers are those of `benchmarks.small_files`, with the
small file of each as the first input. What it finds belongs into tests/io/test_hostile_files.py.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["remap.io"]):
    from benchmarks import fuzzing
    from benchmarks.small_files import SAMPLES


def main() -> None:
    """Runs until libFuzzer's arguments end it, or something is found."""
    name = os.environ.get("REMAP_FUZZ_READER", "table")
    sample = SAMPLES[name]
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / sample.file
        source = sample.write(path)
        for argument in sys.argv[1:]:
            if Path(argument).is_dir():
                (Path(argument) / f"small_{name}").write_bytes(path.read_bytes())

        def one(data: bytes) -> None:
            path.write_bytes(data)
            outcome, what = fuzzing.judge(path, sample, source)
            if outcome == "fault":
                raise RuntimeError(what)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
