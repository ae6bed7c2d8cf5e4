"""What a wheel puts into site-packages: the library with its data, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    """The names of the files in a wheel of the repository."""
    pytest.importorskip("setuptools.command.bdist_wheel", reason="needs setuptools >= 70.1 (extra `test`)")
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, because setuptools writes beside its sources; without what a build left in the repository.
    source = folder / "source"
    source.mkdir()
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for package in ("remap", "configs", "launch", "benchmarks", "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_holds_the_library_alone(names):
    tops = {name.split("/")[0] for name in names}
    assert "remap" in tops
    assert [top for top in tops if top != "remap" and not top.endswith(".dist-info")] == []


def test_wheel_holds_all_of_the_library(names):
    kept = {str(file.relative_to(ROOT)) for file in (ROOT / "remap").rglob("*.py")}
    kept |= {str(file.relative_to(ROOT)) for file in (ROOT / "remap/report/html/templates").iterdir()}
    assert kept | {"remap/py.typed", "remap/synth/lines.ecsv"} <= set(names)
