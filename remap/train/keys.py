"""Keys: all random numbers of a run come from its seed and from what it is called."""

from __future__ import annotations

import hashlib

import jax


def root_key(seed: int, *names: str | int) -> jax.Array:
    """The key of what has these names: ("finetune", "A", "fold", 0), say. Other names give independent keys.

    Examples:
      >>> bool(jax.numpy.array_equal(root_key(0, "pretrain", "A"), root_key(0, "pretrain", "A")))
      True
    """
    return named_key(jax.random.key(seed), *names)


def named_key(key: jax.Array, *names: str | int) -> jax.Array:
    """The part of a key that has these names; not one of those that `jax.random.split` gives, nor a step's.

    All names together are hashed, in a way that does not depend on the Python or the machine, into two numbers that
    are folded in one after the other, as no counter is.
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    for i in (0, 4):
        key = jax.random.fold_in(key, int.from_bytes(digest[i : i + 4], "big"))
    return key
