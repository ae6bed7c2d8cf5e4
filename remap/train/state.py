"""The state of a training run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


class TrainState(NamedTuple):
    """Everything that changes from step to step. Keys derive from the seed and `step`, so none is stored."""

    step: Int[Array, ""]  # steps done
    params: Any
    model_state: Any  # what the model keeps besides: batch statistics, or () for nothing
    opt_state: Any  # with the average over the cycles (`optim.averaged`)


def init_state(params: Any, model_state: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
    )
