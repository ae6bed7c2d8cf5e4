"""The tutorial is what a reader sees: its cells run in order, and it is kept without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
# In a process of its own, since the libraries of notebooks warn of each other.
RUN = """
import sys
import nbclient, nbformat

book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, sys.argv[3])
"""


def test_the_tutorial_runs(tmp_path):
    """From the folder of the documents, as its reader opens it."""
    for name in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
        pytest.importorskip(name, reason="needs the extra `test`")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir), "TMPDIR": str(tmp_path)}
    environment = os.environ | cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(TUTORIAL), str(ROOT / "docs"), str(tmp_path / "run.ipynb")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cells = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    assert [out for out in outputs if out["output_type"] == "error"] == []
    assert any("image/png" in out.get("data", {}) for out in outputs)  # the star
    printed = "".join(text for out in outputs for text in out.get("text", ()))
    assert printed.count("fine-tuned bias") == 3


def test_the_tutorial_is_kept_without_outputs():
    code = [c for c in json.loads(TUTORIAL.read_text())["cells"] if c["cell_type"] == "code"]
    assert len(code) > 4
    assert [c["id"] for c in code if c["outputs"] or c["execution_count"] is not None] == []
