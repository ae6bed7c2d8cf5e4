"""The benchmark of training: the network of PyTorch is ours, what is timed is what is said, and the table has it."""

import jax
import numpy as np
import pytest

from benchmarks import bench_training
from benchmarks.bench_training import (
    check_equal,
    differences,
    library,
    measure,
    report,
    sizes_of,
    start,
    work,
)
from remap.network.resnet import ModelSettings


@pytest.fixture(scope="module")
def small():
    """Sizes of MILES with a small network."""
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed (pip install torch)")
    settings = ModelSettings(
        stem_filters=4, stem_stride=2, filters=(4, 6), kernel=3, embedding=5, dropout=0.2
    )
    return sizes_of("miles", short=True)._replace(model=settings)


def test_its_short_form_runs_and_says_what_it_found(small):
    found = measure(small, threads=1, rounds=2, short=True)
    assert max(found["apart"].values()) < 1e-4
    text = report([found])
    rows = [line for line in text.splitlines() if line.startswith("| 472 | 1 |")]
    assert [row.split(" | ")[2] for row in rows] == list(found["pieces"])
    assert len({row.count("|") for row in rows}) == 1
    assert "| 8 |" in rows[0]
    assert all(len(p["wall"]) == 2 and min(p["wall"]) > 0 for p in found["pieces"].values())


def test_another_network_is_refused(small):
    variables, batch = start(small)
    kernel = variables["params"]["module_1"]["conv2"]["kernel"]
    good = differences(small, variables, batch)
    check_equal(good)
    other = jax.tree.map(np.array, variables)
    other["params"]["module_1"]["conv2"]["kernel"] = np.asarray(kernel)[::-1]
    from benchmarks import equal_network

    theirs = equal_network.Training(small.model, small.loss, small.mask, other, batch)
    ours = equal_network.Training(small.model, small.loss, small.mask, variables, batch)
    found = [x.network.eval()(*x.batch[:2])[0].detach().numpy() for x in (theirs, ours)]
    apart = float(np.abs(found[0] - found[1]).max() / np.abs(found[1]).max())
    with pytest.raises(ValueError, match="PyTorch's network is not ours"):
        check_equal(good | {"logits": apart})


def test_work_is_that_of_the_convolutions_by_hand():
    settings = ModelSettings(stem_filters=2, stem_kernel=3, stem_stride=2, filters=(2, 4), kernel=3)
    flops, moved = work(settings, 9)  # 5 outputs of the stem, then 3
    assert flops == 2 * (5 * 3 * 2 * 2 + 2 * 5 * 3 * 2 * 2 + 3 * 3 * 2 * 4 + 3 * 3 * 4 * 4 + 3 * 2 * 4)
    stem = 9 * 2 + 10 + 20
    first = 20 + 20 + 20 + 30  # two convolutions and two activations, the last one with the input
    second = (10 + 12) + 24 + 24 + 24 + (10 + 12) + 12  # and a convolution of the input
    assert moved == 4 * (stem + first + second)


def test_made_up_libraries_have_the_form_of_their_config():
    for name, corners in (("miles", 8), ("marvels", 1)):
        made = library(sizes_of(name, short=True))
        assert made.log_flux.shape == (3, 27, {"miles": 472, "marvels": 4300}[name])
        assert made.cells.shape[1] == corners


def test_without_pytorch_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(bench_training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install torch"):
        bench_training.main([])
