"""Keys come from names, and no two uses share one."""

import itertools

import jax
import numpy as np
import pytest

from remap.train.keys import named_key, root_key
from remap.train.loop import run_keys


def data(key):
    return tuple(jax.random.key_data(key).tolist())


def test_other_seeds_and_names_give_other_keys_and_equal_ones_the_same():
    names = [(), ("a",), ("a", "b"), ("ab",), ("b", "a"), ("a", 0), ("a", 1), ("a", 10)]
    keys = [data(root_key(seed, *n)) for seed, n in itertools.product((0, 1), names)]
    assert len(set(keys)) == len(keys)
    assert data(root_key(1, "a", 1)) == data(named_key(jax.random.key(1), "a", "1"))


def test_a_key_is_the_same_on_every_machine():
    """A run repeats from config and seed: a change of this number forgets all networks."""
    assert data(root_key(0, "pretrain", "A")) == (1525914866, 2450287377)


@pytest.mark.parametrize("name", ["prior", "stars", "0", "1"])
def test_named_keys_are_none_that_split_or_a_step_give(name):
    key = jax.random.key(3)
    counted = {data(jax.random.fold_in(key, i)) for i in range(64)} | {
        data(k) for k in jax.random.split(key, 64)
    }
    assert data(named_key(key, name)) not in counted


def test_dropout_of_the_statistics_has_no_key_of_their_batches():
    """`fold_in(key, i)` and `split(key)[i]` are one number: what folds steps in needs a key that nothing splits."""
    keys = run_keys(jax.random.key(5))
    assert len({data(k) for k in keys}) == 4
    split = {data(k) for k in jax.random.split(keys.stats, 64)}
    assert data(jax.random.fold_in(keys.stats, 1)) in split
    dropout = {data(jax.random.fold_in(keys.stats_dropout, i)) for i in range(64)}
    assert not dropout & split
    np.testing.assert_equal(len(dropout), 64)
