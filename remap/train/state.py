"""The state of a training run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from remap.train.optim import SWAState, swa_init


class TrainState(NamedTuple):
    """Everything that changes from step to step. Keys derive from the seed and `step`, so none is stored."""

    step: Int[Array, ""]  # steps done
    params: Any
    batch_stats: Any
    opt_state: Any
    swa: SWAState


def init_state(variables: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, from a network's variables (`params` and `batch_stats`)."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(params),
        swa=swa_init(params),
    )
