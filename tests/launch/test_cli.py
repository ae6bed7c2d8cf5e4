"""What a launch script prints for a mistake of the user, and for a fault of the program."""

import os
import subprocess
import sys

import pytest
from helpers import tiny

MAIN = """
import sys
sys.argv = ["prog", "--workdir=w", *sys.argv[1:]]
from launch import cli
from remap.config import ConfigError
def main():
    raise {error}("what is wrong")
cli.run(main, required=("workdir",))
"""


@pytest.mark.parametrize(
    ("error", "arguments", "traced"),
    [("ConfigError", (), False), ("ConfigError", ("--traceback",), True), ("ValueError", (), True)],
)
def test_mistakes_are_one_line_and_faults_keep_their_traceback(error, arguments, traced, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(error=error), *arguments],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "what is wrong" in done.stderr
    assert ("Traceback" in done.stderr) == traced
    if not traced:
        assert done.stderr.splitlines()[-1] == "error: what is wrong"
