"""Shared fixtures. Real spectra are optional: tests that need them skip, saying so, where they are absent."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest
from helpers import tiny

from remap import load
from remap.io import find_data
from remap.spectra import SpectrumError
from remap.stages.finetune import finetune
from remap.stages.preprocess import preprocess
from remap.stages.pretrain import pretrain

jax.config.update("jax_numpy_rank_promotion", "raise")
# A checkout may have the real spectra beside it; the library itself looks only where it is told to.
if "REMAP_DATA" not in os.environ and (beside := Path(__file__).parents[2] / "shared" / "data").is_dir():
    os.environ["REMAP_DATA"] = str(beside)

# No example depends on chance, and none is late, since the first one may compile.
hypothesis.settings.register_profile("remap", deadline=None, derandomize=True, database=None, max_examples=40)
hypothesis.settings.load_profile("remap")

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def unchecked():
    """What users have: no check of annotations, so that the library's own messages are heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real spectra, or a skip."""
    try:
        return find_data("lte_grid.npz").parent
    except SpectrumError as error:
        pytest.skip(f"needs real spectra: {error}")


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the parallel test processes to need it makes, and the others wait for."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if root.name.startswith("popen-") else root  # of a process of pytest-xdist
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Library and survey of the tiny experiment (`helpers/tiny.py`); tests must not change them."""
    return made_once(tmp_path_factory, "tiny_data", tiny.write_data)


@pytest.fixture(scope="session")
def tiny_prepared(tiny_data, tmp_path_factory) -> Path:
    """A working folder of the tiny experiment in which `preprocess` has run; tests must not change it."""
    return made_once(
        tmp_path_factory, "tiny_prepared", lambda folder: preprocess(tiny.config(tiny_data), folder)
    )


@pytest.fixture(scope="session")
def tiny_workdir(tiny_data, tiny_prepared, tmp_path_factory) -> Path:
    """A working folder in which all stages have run, both folds; tests must not change it."""

    def train(folder: Path) -> None:
        shutil.copytree(tiny_prepared, folder, dirs_exist_ok=True)
        pretrain(tiny.config(tiny_data), folder)
        finetune(tiny.config(tiny_data), folder)

    return made_once(tmp_path_factory, "tiny_trained", train)


@pytest.fixture(scope="session")
def tiny_predictor(tiny_workdir):
    """The fine-tuned networks of `tiny_workdir`."""
    return load(tiny_workdir)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, for a look inside."""
    from matplotlib.figure import Figure

    saved = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (saved.append(self), original(self, *a, **k))
    )
    return saved
