"""Keys: all random numbers of a run come from its seed and its name."""

from __future__ import annotations

import jax
import ml_collections

PRETRAIN, FINETUNE, ALIGN = 0, 1, 1 << 21  # folded into the keys; folds follow FINETUNE


def stage_key(config: ml_collections.ConfigDict, arm: str, *what: int) -> jax.Array:
    """The root key of a run: a function of the seed, the arm and what is run."""
    key = jax.random.fold_in(jax.random.key(config.seed), config.arm_names.index(arm))
    for number in what:
        key = jax.random.fold_in(key, number)
    return key
