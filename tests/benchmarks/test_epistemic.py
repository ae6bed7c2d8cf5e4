"""SWAG of the benchmark: networks drawn from the snapshots of a training."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.bench_epistemic import swag_mean, swag_samples


def snapshots(count: int) -> list:
    keys = jax.random.split(jax.random.key(0), count)
    return [
        {
            "params": {"w": 3.0 + jax.random.normal(k, (40, 50)), "b": jnp.full(7, 2.0)},
            "batch_stats": {"mean": jnp.arange(3.0)},
        }
        for k in keys
    ]


def test_samples_have_the_mean_and_the_variance_of_the_snapshots():
    given = snapshots(12)
    mean = swag_mean(given)
    np.testing.assert_allclose(
        mean["params"]["w"], np.mean([s["params"]["w"] for s in given], axis=0), rtol=1e-5
    )
    for scale in (1.0, 4.0):
        drawn = swag_samples(jax.random.key(1), given, count=200, scale=scale)
        moved = np.stack([d["params"]["w"] - mean["params"]["w"] for d in drawn])
        known = np.var([s["params"]["w"] for s in given], axis=0)
        assert abs(np.mean(moved)) < 0.05 * np.sqrt(scale)
        # Half of the diagonal (over n) and half of the low rank (over n - 1) are the variance of each weight again.
        np.testing.assert_allclose(
            np.mean(moved**2), scale * np.mean(known) * (0.5 + 0.5 * 12 / 11), rtol=0.05
        )
        np.testing.assert_allclose(drawn[0]["params"]["b"], 2.0, rtol=1e-6)  # what no snapshot moved
        np.testing.assert_array_equal(drawn[0]["batch_stats"]["mean"], np.arange(3.0))
    # The low-rank part moves the weights together: its share of a projection on a snapshot's own direction.
    direction = np.ravel(given[0]["params"]["w"] - mean["params"]["w"])
    along = np.stack([np.ravel(d["params"]["w"] - mean["params"]["w"]) for d in drawn]) @ direction
    alone = np.sqrt(scale / 2 * np.mean(known)) * np.linalg.norm(direction)
    assert np.std(along) > 3 * alone
