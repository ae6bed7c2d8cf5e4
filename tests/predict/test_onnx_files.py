"""Networks as ONNX: a runtime that knows nothing of JAX gives the PMFs of the networks."""

import jax.numpy as jnp
import numpy as np
import pytest

from remap.config import ConfigError
from remap.predict.ensemble import mean_pmf as mean_of
from remap.predict.onnx_files import export_onnx, mean_pmf


@pytest.fixture(scope="module")
def flux():
    return np.random.default_rng(0).normal(1, 0.05, (5, 120)).astype(np.float32)


def test_without_bad_pixels_the_program_is_that_of_the_predictor(tiny_predictor, flux):
    for arm, network in tiny_predictor.networks.items():
        known = mean_of(jnp.asarray(tiny_predictor.member_pmfs(arm, flux, np.ones(flux.shape, bool))))
        np.testing.assert_allclose(mean_pmf(network, jnp.asarray(flux)), known, atol=1e-6)


def test_onnxruntime_says_what_the_predictor_says(tiny_predictor, flux, tmp_path):
    pytest.importorskip("jax2onnx", reason="needs the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    files = export_onnx(tiny_predictor, tmp_path / "networks.onnx")
    assert sorted(files) == ["A", "B"]
    session = runtime.InferenceSession(str(files["B"]))
    known = tiny_predictor.member_pmfs("B", flux, np.ones(flux.shape, bool)).mean(axis=0)
    for count in (5, 2):
        (found,) = session.run(None, {session.get_inputs()[0].name: flux[:count]})
        np.testing.assert_allclose(found, known[:, :count], atol=1e-5)
    with pytest.raises(FileExistsError, match=r"networks_A\.onnx, .*exists already"):
        export_onnx(tiny_predictor, tmp_path / "networks.onnx")


def test_another_suffix_is_refused(tiny_predictor, tmp_path):
    with pytest.raises(ConfigError, match=r"ends with \.onnx"):
        export_onnx(tiny_predictor, tmp_path / "networks.npz")
