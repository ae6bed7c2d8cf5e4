"""The benchmark's baselines find labels that the pixels determine."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from benchmarks.baselines import METHODS

LIMITS = {
    "kernel ridge": 0.15,
    "partial least squares": 0.15,
    "random forest on PCA": 0.6,
    "quadratic in labels (Cannon)": 0.02,
}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    y = np.stack([rng.uniform(4500, 6500, 160), rng.uniform(-1, 0.5, 160)], axis=1)
    z = (y - y.mean(axis=0)) / y.std(axis=0)
    linear, square = rng.normal(size=(2, 40)) * 0.05, rng.normal(size=(2, 40)) * 0.01
    x = 1 + z @ linear + z**2 @ square + 0.0005 * rng.normal(size=(160, 40))
    return x, y


@pytest.mark.parametrize("name", METHODS)
def test_labels_are_recovered(problem, name):
    x, y = problem
    found = METHODS[name](x[:120], y[:120], x[120:], 0)
    assert found.shape == (40, 2)
    error = np.std((found - y[120:]) / y.std(axis=0), axis=0)
    assert np.all(error < LIMITS[name]), error
