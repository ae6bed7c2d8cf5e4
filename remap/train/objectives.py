"""What a run makes small: an objective gives the loss of a batch, and says what becomes of the model's own state.

Objectives are frozen records, equal if they say the same, so that the programs that `remap.train.loop` compiles for
one run serve every other one with an equal objective and equal shapes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from remap.network.losses import LossSettings, LossTerms, multitask_loss
from remap.network.resnet import Outputs, ResNet1D
from remap.sampling.augment import Batch


@runtime_checkable
class Source(Protocol):
    """Where batches come from: a tree of arrays whose static parts are equal if they say the same."""

    def draw(self, key: Array, step: Array) -> Any:
        """The batch of a step, a pure function of both."""


@runtime_checkable
class Objective(Protocol):
    """The loss of a model, hashable."""

    @property
    def terms(self) -> type:
        """The type of the loss terms, a NamedTuple of which `total` is made small."""

    def train(self, params: Any, model_state: Any, batch: Any, key: Array) -> tuple[Any, Any]:
        """The terms of a batch that is trained on, and the new state of the model."""

    def evaluate(self, params: Any, model_state: Any, batch: Any) -> Any:
        """The terms of a batch that is looked at."""

    def settle(self, params: Any, model_state: Any, batches: Iterable[Any], key: Array) -> Any:
        """The state of the model that belongs to averaged parameters, from training batches."""


class Task(NamedTuple):
    """What is trained, and on what."""

    objective: Objective
    params: Any  # where it starts
    model_state: Any  # the same of what the model keeps besides; () for nothing
    source: Source
    validation: Any | None  # a fixed batch that is not trained on, for the records


@dataclasses.dataclass(frozen=True)
class NetworkObjective:
    """The loss of the ResNet (eq. 7), whose model state are its batch statistics.

    Attributes:
      model: the network.
      settings: of the loss.
      freeze_stats: True trains with the running batch statistics as they were given and leaves them so.
    """

    model: ResNet1D
    settings: LossSettings
    freeze_stats: bool = False

    @property
    def terms(self) -> type[LossTerms]:
        """The parts of eq. 7."""
        return LossTerms

    def train(self, params: Any, model_state: Any, batch: Batch, key: Array) -> tuple[LossTerms, Any]:
        """With dropout, which depends on the key alone."""
        outputs, updates = self.model.apply(
            {"params": params, "batch_stats": model_state},
            batch.flux,
            batch.valid,
            train=True,
            running=self.freeze_stats,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return batch_loss(outputs, batch, self.settings), updates["batch_stats"]

    def evaluate(self, params: Any, model_state: Any, batch: Batch) -> LossTerms:
        """Without dropout, with the running statistics."""
        variables = {"params": params, "batch_stats": model_state}
        outputs = self.model.apply(variables, batch.flux, batch.valid, train=False, running=True)
        return batch_loss(outputs, batch, self.settings)

    def settle(self, params: Any, model_state: Any, batches: Iterable[Batch], key: Array) -> Any:
        """Batch statistics of its own for averaged weights, unless they are frozen."""
        if self.freeze_stats:
            return model_state
        return reestimate_stats(self.model, params, model_state, batches, key)


class Stateless(abc.ABC):
    """The rest of an objective without dropout, whose model state stays as it is: `loss` and `terms` say it all."""

    @property
    @abc.abstractmethod
    def terms(self) -> type:
        """The type of the loss terms."""

    @abc.abstractmethod
    def loss(self, params: Any, model_state: Any, batch: Any) -> Any:
        """The terms of a batch."""

    def train(self, params: Any, model_state: Any, batch: Any, key: Array) -> tuple[Any, Any]:
        """As `loss`."""
        return self.loss(params, model_state, batch), model_state

    def evaluate(self, params: Any, model_state: Any, batch: Any) -> Any:
        """As `loss`."""
        return self.loss(params, model_state, batch)

    def settle(self, params: Any, model_state: Any, batches: Iterable[Any], key: Array) -> Any:
        """Nothing to do."""
        return model_state


def batch_loss(outputs: Outputs, batch: Batch, settings: LossSettings) -> LossTerms:
    """The loss of a batch."""
    return multitask_loss(
        outputs.logits, outputs.embedding, batch.target, batch.classes, **dataclasses.asdict(settings)
    )


def reestimate_stats(
    model: ResNet1D, params: Any, batch_stats: Any, batches: Iterable[Batch], key: Array
) -> Any:
    """Batch statistics of `params`, as the plain mean over training batches (for averaged weights).

    Running averages move by a factor m towards each batch's own statistics; solving for those and averaging
    them gives every batch the same weight (Izmailov et al. 2018, §3.2).

    Args:
      key: of dropout alone; the batches must have been drawn with another one.
    """
    stats = [
        _own_stats(params, batch_stats, batch, jax.random.fold_in(key, i), model=model)
        for i, batch in enumerate(batches)
    ]
    return jax.tree.map(lambda *values: sum(values) / len(values), *stats)


@functools.partial(jax.jit, static_argnames="model")
def _own_stats(params: Any, batch_stats: Any, batch: Batch, key: Array, *, model: ResNet1D) -> Any:
    momentum = model.settings.batch_norm_momentum
    _, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        batch.flux,
        batch.valid,
        train=True,
        running=False,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    return jax.tree.map(
        lambda new, old: (new - momentum * old) / (1 - momentum), updates["batch_stats"], batch_stats
    )
