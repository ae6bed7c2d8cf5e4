"""What a launch script prints for a mistake of the user, and for a fault of the program."""

import os
import subprocess
import sys

import pytest
from helpers import tiny

PYTHON_ERRORS = {"interrupt": "KeyboardInterrupt()", "place": "OSError(28, 'No space left on device', 'a/b')"}
MAIN = """
import sys
sys.argv = ["prog", "--workdir=w", *sys.argv[1:]]
from launch import cli
from remap.config import ConfigError
def main():
    raise {error}
cli.run(main, required=("workdir",))
"""


@pytest.mark.parametrize(
    ("error", "arguments", "traced"),
    [("ConfigError", (), False), ("ConfigError", ("--traceback",), True), ("ValueError", (), True)],
)
def test_mistakes_are_one_line_and_faults_keep_their_traceback(error, arguments, traced, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(error=f'{error}("what is wrong")'), *arguments],
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


@pytest.mark.parametrize(
    ("which", "status", "last"),
    [
        ("interrupt", 130, "stopped by Ctrl-C; the same command starts this step again"),
        ("place", 1, "error: a/b: No space left on device"),
    ],
)
def test_ctrl_c_and_a_full_disk_are_told_in_one_line(which, status, last, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MAIN.format(error=PYTHON_ERRORS[which])],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith(last)


DEVICES = """
import sys
sys.argv = ["prog", *sys.argv[1:]]
from launch import cli
def main():
    import jax
    import numpy as np
    from remap import sharding
    print(jax.device_count(), "devices", flush=True)
    with sharding.guarded():
        jax.jit(lambda x: x)(np.ones(3))
cli.run(main, required=())
"""


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("--devices=3",), 0, "3 devices"),
        (("--transfer_guard=disallow",), 1, "Disallowed host-to-device transfer"),
        (("--process_count=2", "--process_index=0"), 1, "error: this script runs in one process"),
    ],
)
def test_devices_processes_guard_and_profile(arguments, status, told, tmp_path):
    profile = tmp_path / "profile"
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, *arguments, f"--profile={profile}"],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert told in done.stdout + done.stderr
    assert bool(list(profile.rglob("*.xplane.pb"))) == (told == "3 devices" or "transfer" in told)
