"""The example of docs/scale.md on two local workers of Dask: the catalogue is that of a prediction at once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers import tiny

from remap import io

ROOT = Path(__file__).resolve().parents[1]


def test_two_workers_of_dask_make_the_catalogue_of_a_prediction_at_once(
    tiny_workdir, tiny_predictor, tmp_path
):
    pytest.importorskip("distributed", reason="needs Dask (extra `dask`)")
    for i in range(6):
        tiny.write_table(tmp_path / "spectra" / tiny.DWARFS[i][0], *tiny.star(i))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "dask.distributed" in block]
    assert "SHARES = 64" in code
    code = code.replace("workdirs/mine", str(tiny_workdir)).replace("SHARES = 64", "SHARES = 2")
    (tmp_path / "example.py").write_text(code)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("6 spectra predicted, 6 rows")
    created = json.loads((tmp_path / "parts" / "manifest.json").read_text())["created"]
    files = io.list_files(tmp_path / "spectra", "*.fits")
    tiny_predictor.predict_files(files, date=created).write(tmp_path / "once.fits")
    assert (tmp_path / "catalogue.fits").read_bytes() == (tmp_path / "once.fits").read_bytes()
