"""The command of an installed package: finds its commands, and says what it has."""

import os
import subprocess
import sys

import pytest
from helpers import tiny

import remap
from remap.command.main import COMMANDS


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from remap.command.main import main; main()", *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tiny.REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_usage_names_every_command(arguments):
    done = run(*arguments)
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_version_and_unknown_commands():
    assert run("--version").stdout == f"deep-REMAP {remap.__version__}\n"
    done = run("train")
    assert done.returncode == 1
    assert done.stderr == f"error: expected one of {', '.join(COMMANDS)}, found 'train'; remap --help\n"


def test_networks_and_their_cards():
    done = run("networks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fgk_r1800: Teff, log g and [Fe/H]")
    assert "## Stars kept aside" in run("networks", "fgk_r1800").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found neither"),
        (("--network=fgk_r1800", "--workdir=x"), "found both"),
        (
            ("--network=nobody",),
            "nobody: expected a trained working folder or a network that comes with the package",
        ),
    ],
)
def test_predict_needs_one_source_of_networks(tmp_path, arguments, message):
    done = run("predict", "--spectra=x.fits", f"--output={tmp_path / 'c.fits'}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
