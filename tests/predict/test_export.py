"""One file for JAX and NumPy alone: the script of the documents runs it, and it says what the catalogue says."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny

from remap.config import ConfigError
from remap.pmf.calibration import Calibration, Widening
from remap.predict import release
from remap.predict.arms import ArmInputs
from remap.predict.export import SUFFIX, describe, export

pytest.importorskip("flatbuffers", reason="needs the extra `export`")

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "export.md"
FORBIDDEN = ("remap", "flax", "optax", "orbax", "astropy", "ml_collections", "jaxtyping")
BLOCK = f"""
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN!r}:
            raise ImportError(name + " is forbidden here")

sys.meta_path.insert(0, Forbidden())
"""
SAVE = """
for name in list(sys.modules):
    assert name.split(".")[0] not in FORBIDDEN
np.savez(
    "found.npz",
    calibrated=found["calibrated"],
    **{f"pmf/{k}": v for k, v in found["pmf"].items()},
    **{f"{arm}/{k}": v for arm, each in found["arms"].items() for k, v in each.items()},
)
""".replace("FORBIDDEN", repr(FORBIDDEN))


@pytest.fixture(scope="module")
def predictor(tiny_predictor):
    """With a calibration that depends on the arms, the kind of star and the noise."""
    wide = Widening(0.4, 0.0, 9.0, 50, snr_slope=0.8, snr_low=20.0, snr_high=200.0, scaled=True)
    narrow = dataclasses.replace(wide, power=2.0, snr_slope=0.0)
    mixed = Widening(0.6, 0.1, 9.0, 50)
    widenings = {label: {"A+B": wide, "A": narrow, "B": mixed} for label in tiny_predictor.labels}
    giants = dataclasses.replace(wide, power=0.2, fitted=False)
    by_group = {label: {"A+B": {"dwarfs": wide, "giants": giants}} for label in widenings}
    groups = {"dwarfs": {"logg": (4.0, 5.5)}, "giants": {"logg": (1.0, 4.0)}}
    return dataclasses.replace(tiny_predictor, calibration=Calibration(widenings, groups, by_group))


@pytest.fixture(scope="module")
def file(predictor, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "networks.npz"
    assert export(predictor, path) == path.stat().st_size
    return path


@pytest.fixture(scope="module")
def inputs(predictor):
    """Five stars: whole, with a gap, without arm B, without an arm, without S/N."""
    observed = predictor._observe([[tiny.spectra((i,))] for i in range(5)], None, None)
    arms = {arm: [np.array(x) for x in (on.flux, on.valid, on.snr)] for arm, on in observed.arms.items()}
    arms["A"][1][1, 30:50] = False
    arms["B"][1][2] = False
    for _, valid, snr in arms.values():
        valid[3] = False
        snr[4] = np.nan
    return {arm: ArmInputs(*each) for arm, each in arms.items()}


def expected(predictor, inputs):
    arms = {arm: predictor.predict_arm(arm, each) for arm, each in inputs.items()}
    return predictor.combine(arms, [str(i) for i in range(5)]).pmfs


def test_the_script_of_the_documents_says_what_the_catalogue_says(predictor, file, inputs, tmp_path):
    """The script, where this package and Flax cannot be imported. It knows no S/N."""
    unknown = {arm: each._replace(snr=np.full(5, np.nan)) for arm, each in inputs.items()}
    flux = {arm: np.where(each.valid, each.flux, np.nan) for arm, each in inputs.items()}
    np.savez(tmp_path / "spectra.npz", **{f"flux/{arm}": each for arm, each in flux.items()})
    (tmp_path / "networks.npz").write_bytes(file.read_bytes())
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "script.py").write_text(textwrap.dedent(BLOCK) + script + SAVE)
    cache = jax.config.jax_compilation_cache_dir
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nan") == 3  # the star without an arm, for each label
    found, known = np.load(tmp_path / "found.npz"), expected(predictor, unknown)
    for key, pmf in known.items():
        name = f"pmf/{key}" if isinstance(key, str) else f"{key[1]}/{key[0]}"
        np.testing.assert_allclose(found[name], pmf, atol=1e-5, err_msg=name)
    assert np.isnan(known["teff"]).all(axis=1).tolist() == [False, False, False, True, False]
    assert not found["calibrated"][3]


def test_any_number_of_spectra_with_their_noise(predictor, file, inputs):
    """In another number than that of the script, with S/N; before the calibration as without one."""
    opened = np.load(file)
    program = jax.export.deserialize(bytearray(opened["program"]))
    assert program.platforms == ("cpu", "cuda", "tpu")
    rows = [4, 0, 1]
    flux, valid, snr = (
        {arm: np.asarray(getattr(each, name)[rows], dtype) for arm, each in inputs.items()}
        for name, dtype in (("flux", np.float32), ("valid", bool), ("snr", np.float32))
    )
    found = program.call(flux, valid, snr)
    with_calibration = expected(predictor, inputs)
    without = expected(dataclasses.replace(predictor, calibration=None), inputs)
    for label in predictor.labels:
        np.testing.assert_allclose(found["pmf"][label], with_calibration[label][rows], atol=1e-5)
        np.testing.assert_allclose(found["combined"][label], without[label][rows], atol=1e-5)
        assert np.abs(found["pmf"][label] - found["combined"][label]).max() > 0.01
    assert {arm: used.tolist() for arm, used in found["used"].items()} == {"A": [True] * 3, "B": [True] * 3}


def test_the_file_says_what_it_is(predictor, file):
    opened = np.load(file)
    about = json.loads(str(opened["about"]))
    assert about == describe(predictor, opened["program"].tobytes(), ("cpu", "cuda", "tpu"))
    assert about["sha256"] == hashlib.sha256(opened["program"].tobytes()).hexdigest()
    assert Calibration.from_json(about["calibration"]) == predictor.calibration
    for arm in predictor.networks:
        np.testing.assert_array_equal(opened[f"wave/{arm}"], predictor.preprocessing.wave(arm))
        np.testing.assert_array_equal(opened[f"fwhm/{arm}"], predictor.preprocessing.fwhm(arm))
    for label in predictor.preprocessing.labels:
        np.testing.assert_array_equal(opened[f"edges/{label.name}"], label.edges)


def test_released_networks_are_exported_by_the_script_of_launch(tiny_predictor, tmp_path):
    release.release(tiny_predictor, tmp_path / "release", name="tiny", card="# tiny\n\nTests.\n")
    output = tmp_path / "out" / "networks.npz"
    arguments = (f"--workdir={tmp_path / 'release'}", f"--output={output}", "--platforms=cpu")
    done = tiny.launch("launch.export", *arguments)
    assert done.returncode == 0, done.stderr
    about = json.loads(str(np.load(output)["about"]))
    assert about["platforms"] == ["cpu"]
    assert about["networks"] == release.load(tmp_path / "release").weights


def test_places_and_platforms_that_cannot_be_are_refused(predictor, file, tmp_path):
    with pytest.raises(FileExistsError, match="exists already"):
        export(predictor, file)
    with pytest.raises(ConfigError, match=f"ends with {SUFFIX}"):
        export(predictor, tmp_path / "networks.zip")
    for wrong in (("cpu", "abacus"), ()):
        with pytest.raises(ConfigError, match="platforms: expected some of"):
            export(predictor, tmp_path / "x.npz", platforms=wrong)
    assert not (tmp_path / "x.npz").exists()
