"""Eight devices, and two processes, against one device: the same numbers to rounding, one writer, one end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import on_devices, tiny

from remap import sharding
from remap.config import ConfigError
from remap.sampling.augment import Batch
from remap.store.records import read_records

# Sums over a batch are rounded otherwise in every division of it. What normalisation by the batch takes out has
# rounding for a gradient, of which Adam makes whole steps; the running statistics of validation follow late and let
# it through.
PREDICTED, TRAINED, VALIDATED = 1e-5, 1e-4, 2e-2
LIMIT = 300  # s, after which a child is killed


def child(output: Path, *arguments: str) -> subprocess.Popen:
    """Starts `on_devices` as a process by itself."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{tiny.REPOSITORY}:{tiny.REPOSITORY}/tests",
    }
    script = Path(on_devices.__file__)
    return subprocess.Popen(
        [sys.executable, script, output, str(jax.config.jax_compilation_cache_dir), *arguments],
        cwd=tiny.REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(children: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, output and errors of all; what hangs is killed, since JAX's processes do not listen to SIGTERM."""
    try:
        out = [each.communicate(timeout=LIMIT) for each in children]
    finally:
        for each in children:
            if each.poll() is None:
                each.send_signal(signal.SIGKILL)
                each.wait()
    return [(each.returncode, *texts) for each, texts in zip(children, out, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device, that of the tests, makes of it: folder, PMFs of the trained network, prediction."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, on_devices.trained_pmfs(on_devices.train(folder)), on_devices.predict()


def check_prediction(found, alone):
    flux, pmf, trouble = alone[2]
    np.testing.assert_array_equal(found["flux"], flux)  # row by row: bit for bit
    np.testing.assert_allclose(found["pmf"], pmf, atol=PREDICTED)
    np.testing.assert_array_equal(found["trouble"], trouble)


def check_losses(folder, alone):
    ours, theirs = (read_records(each / "metrics.jsonl") for each in (folder, alone[0]))
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    for name, tolerance in (("loss", TRAINED), ("val_loss", VALIDATED)):
        a, b = (np.array([r[name] for r in records]) for records in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=tolerance)


def test_eight_devices_train_and_predict_as_one(alone, tmp_path):
    ((status, told, errors),) = finished([child(tmp_path, "--devices=8")])
    assert status == 0, errors
    assert "8 devices" in told
    with np.load(tmp_path / "found.npz") as found:
        check_prediction(found, alone)
        np.testing.assert_allclose(found["trained"], alone[1], atol=TRAINED)
    check_losses(tmp_path / "run", alone)


def test_two_processes_stop_together_and_one_device_goes_on(alone, tmp_path):
    """SIGTERM comes to the second process. The first one saves; what it saved is finished here, on one device."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    pair = [
        child(tmp_path, f"--coordinator={address}", "--process_count=2", f"--process_index={i}")
        for i in (0, 1)
    ]
    ends = finished(pair)
    if any("not implemented" in errors.lower() for _, _, errors in ends):
        pytest.skip("this jaxlib has no exchange between processes on CPUs")
    for i, (status, told, errors) in enumerate(ends):
        assert status == 0, errors
        assert f"{i} of 2, 2 devices: small: stopped by SIGTERM at step" in told
    assert len({told.rpartition("at step")[2] for _, told, _ in ends}) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found.npz", "run"]
    assert not list((tmp_path / "run").glob("*.lock"))
    with np.load(tmp_path / "found.npz") as found:
        check_prediction(found, alone)
    trained = on_devices.trained_pmfs(on_devices.train(tmp_path / "run"))
    np.testing.assert_allclose(trained, alone[1], atol=TRAINED)
    check_losses(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": -1}, "devices: expected 0 or more, found -1"),
        ({"coordinator": "localhost:1"}, "expected coordinator HOST:PORT"),
        ({"process_count": 2, "process_index": 0}, "expected coordinator HOST:PORT"),
        (
            {"coordinator": "localhost:1", "process_count": 2, "process_index": 2},
            "process_index from 0 below it",
        ),
    ],
)
def test_numbers_that_do_not_go_together(given, message):
    with pytest.raises(ConfigError, match=message):
        sharding.start(**given)


def test_devices_are_chosen_before_the_first_computation():
    jnp.zeros(1).block_until_ready()
    with pytest.raises(ConfigError, match="before JAX's first computation"):
        sharding.start(devices=3)


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    batch = Batch(
        jnp.ones((8, 50)), jnp.ones((8, 50), bool), jnp.ones((2, 6, 5)), jnp.ones((2, 8), jnp.int32)
    )
    with pytest.raises(ConfigError, match="a batch of 6 spectra cannot be divided among 4 devices"):
        sharding.divide(batch)
    assert [sharding.whole_batches(size) for size in (1, 4, 5)] == [4, 4, 8]


def test_one_device_has_nothing_done_to_it():
    tree = {"a": jnp.ones(3)}
    assert sharding.replicate(tree)["a"].sharding == tree["a"].sharding
    assert sharding.divided(tree) is tree
    assert sharding.local(tree) is tree
    assert sharding.by_rows(jnp.sin) is jnp.sin
    assert sharding.from_first(lambda: tree) is tree
    assert sharding.writes()
