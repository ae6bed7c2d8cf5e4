"""The one training loop: pre-training, fine-tuning and training from scratch differ by their arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array

from remap.network.losses import LossSettings, LossTerms, multitask_loss
from remap.network.resnet import Outputs, ResNet1D
from remap.sampling.augment import Batch
from remap.store import checkpoint, records
from remap.train import cycles
from remap.train.optim import swa_update_at_cycle_end
from remap.train.state import TrainState, init_state

logger = logging.getLogger(__name__)

BatchFn = Callable[[Array, Array, Any], Batch]  # (key, step, data) -> batch; pure
Terms = TypeVar("Terms", bound=tuple)  # parts of a loss, of which `total` is made small
OnEpoch = Callable[[int, TrainState], None]  # (epochs done, state)


AVERAGES = ("swa", "last", *cycles.KEPT)


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """Length and bookkeeping of one run (config sections `pretrain` and `finetune`).

    Attributes:
      cycles, epochs_per_cycle, steps_per_epoch: the length of the run.
      checkpoint_epochs: epochs between checkpoints; the last epoch is always saved.
      keep: checkpoints to keep.
      stats_batches: batches over which batch statistics are re-estimated for the averaged parameters.
      freeze_stats: True leaves the running batch statistics as they were given and trains with them.
      average: "swa" (eq. 5) returns the mean of the parameters at the ends of the cycles, with statistics
        of its own; "last" those at the end of the last cycle, with their running statistics; "best" the mean
        over as many cycles as give the least validation loss (early stopping by whole cycles); "snapshots"
        those of all cycles, as an ensemble with a leading axis.
    """

    cycles: int
    epochs_per_cycle: int
    steps_per_epoch: int
    checkpoint_epochs: int
    keep: int
    stats_batches: int
    freeze_stats: bool
    average: str

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise ValueError(f"average must be one of {AVERAGES}, found {self.average!r}")

    @property
    def epochs(self) -> int:
        """Of all cycles."""
        return self.cycles * self.epochs_per_cycle

    @property
    def steps_per_cycle(self) -> int:
        """Optimiser steps from one warm restart to the next."""
        return self.epochs_per_cycle * self.steps_per_epoch


class Preempted(Exception):
    """SIGTERM arrived; the state was saved and the same command resumes the run."""


class DivergedError(FloatingPointError):
    """A loss or a parameter is not finite."""


class RunKeys(NamedTuple):
    """The keys of one run: of the batches it trains on, of dropout, of the batches for the statistics."""

    batches: Array
    dropout: Array
    stats: Array


def run_keys(key: Array) -> RunKeys:
    """The keys of a run from its root key."""
    return RunKeys(*jax.random.split(key, 3))


def batch_loss(outputs: Outputs, batch: Batch, settings: LossSettings) -> LossTerms:
    """The loss of a batch."""
    return multitask_loss(
        outputs.logits, outputs.embedding, batch.target, batch.classes, **dataclasses.asdict(settings)
    )


def make_train_step(
    model: ResNet1D,
    optimizer: optax.GradientTransformation,
    loss: LossSettings,
    fit: FitSettings,
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, LossTerms]]:
    """A jitted, donating `(state, batch, key) -> (state, loss terms)`; dropout depends on key and step alone."""

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, LossTerms]:
        dropout_key = jax.random.fold_in(key, state.step)

        def objective(params: Any) -> tuple[Array, tuple[LossTerms, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, updates = model.apply(
                variables,
                batch.flux,
                batch.valid,
                train=True,
                running=fit.freeze_stats,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            terms = batch_loss(outputs, batch, loss)
            return terms.total, (terms, updates["batch_stats"])

        grads, (terms, stats) = jax.grad(objective, has_aux=True)(state.params)
        state = state._replace(batch_stats=stats)
        return apply_gradients(state, grads, optimizer, fit.steps_per_cycle), terms

    return jax.jit(step, donate_argnums=0)


def make_eval_step(model: ResNet1D, loss: LossSettings) -> Callable[[dict, Batch], LossTerms]:
    """A jitted `(variables, batch) -> loss terms` without dropout, with running statistics."""

    def evaluate(variables: dict, batch: Batch) -> LossTerms:
        return batch_loss(
            model.apply(variables, batch.flux, batch.valid, train=False, running=True), batch, loss
        )

    return jax.jit(evaluate)


def reestimate_stats(
    model: ResNet1D, params: Any, batch_stats: Any, batches: Iterable[Batch], key: Array
) -> Any:
    """Batch statistics of `params`, as the plain mean over training batches (for averaged weights).

    Running averages move by a factor m towards each batch's own statistics; solving for those and averaging
    them gives every batch the same weight (Izmailov et al. 2018, §3.2).
    """
    momentum = model.settings.batch_norm_momentum

    @jax.jit
    def one(params: Any, batch: Batch, key: Array) -> Any:
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

    stats = [one(params, batch, jax.random.fold_in(key, i)) for i, batch in enumerate(batches)]
    return jax.tree.map(lambda *values: sum(values) / len(values), *stats)


def fit(
    model: ResNet1D,
    variables: dict,
    optimizer: optax.GradientTransformation,
    batch_fn: BatchFn,
    data: Any,
    validation: Batch | None,
    *,
    loss: LossSettings,
    settings: FitSettings,
    key: Array,
    schedule: optax.Schedule,
    folder: str | Path,
    meta: Mapping[str, Any],
    name: str,
    on_epoch: OnEpoch | None = None,
) -> dict:
    """Trains, checkpoints, resumes; returns the network that `settings.average` names.

    Args:
      model, variables: the network and where it starts.
      batch_fn, data: batch of a step as a pure function of (key, step, data).
      validation: fixed batch of held-out stars whose loss is logged each epoch, or None.
      key: root of all random numbers of this run.
      schedule: the learning rate before the factors of the layers, for the records.
      folder: receives `checkpoints/` and `metrics.jsonl`; an unfinished run found there is continued, with
        the same losses as if it had not been interrupted.
      meta: what must agree for a run to be continued (config, preprocessing); kept with each checkpoint.
      name: of the run, for the log.
      on_epoch: called with 0 before the first step, and after every epoch with the number of epochs done,
        before a checkpoint: a resumed run calls it again for the epochs that it repeats, so none is left out.
        It must not keep the state, whose buffers the next step takes over.

    Returns:
      {"params", "batch_stats"} of the stochastic weight average, or what `settings.average` asks for instead.

    Raises:
      Preempted: SIGTERM arrived; the state is saved.
      DivergedError: a loss is not finite (names step and term).
      ValueError: `folder` holds a run with other settings; or "best" is asked for without validation.
    """
    if settings.average == "best" and validation is None:
        raise ValueError(f"{name}: average 'best' needs validation spectra, found none")
    batch_key, dropout_key, stats_key = run_keys(key)
    # Compiled apart from the training step: the normaliser in it takes long to compile, and this way the
    # statistics of the averaged weights use the same program.
    make_batch = jax.jit(batch_fn)
    train_step = make_train_step(model, optimizer, loss, settings)
    eval_step = make_eval_step(model, loss)
    keep = None
    if settings.average in cycles.KEPT:
        keep = cycles.cycle_recorder(folder, settings.epochs_per_cycle)
    state = run(
        init_state(jax.tree.map(jnp.array, variables), optimizer),  # a copy: the state is donated
        lambda step: make_batch(batch_key, jnp.asarray(step, jnp.int32), data),
        lambda state, batch: train_step(state, batch, dropout_key),
        None if validation is None else lambda variables: eval_step(variables, validation),
        terms=LossTerms,
        settings=settings,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=name,
        on_epoch=_both(on_epoch, keep),
    )

    def with_stats(params: Any) -> dict:
        stats = state.batch_stats
        if not settings.freeze_stats:
            steps = range(settings.stats_batches)
            batches = (make_batch(stats_key, jnp.asarray(i, jnp.int32), data) for i in steps)
            stats = reestimate_stats(model, params, stats, batches, stats_key)
        return {"params": params, "batch_stats": stats}

    if settings.average == "last":
        return {"params": state.params, "batch_stats": state.batch_stats}
    if settings.average == "swa":
        return with_stats(state.swa.params)
    ends = cycles.read_cycles(folder, settings.cycles)
    if settings.average == "snapshots":
        return checkpoint.stack(ends)
    candidates = [with_stats(params) for params in cycles.running_means([end["params"] for end in ends])]
    losses = [float(eval_step(network, validation).total) for network in candidates]
    best = int(np.argmin(losses))
    logger.info("%s: mean over %d cycles; validation losses %s", name, best + 1, np.round(losses, 3).tolist())
    return candidates[best]


def _both(first: OnEpoch | None, second: OnEpoch | None) -> OnEpoch | None:
    """One call for two; None stays None."""
    wanted = [call for call in (first, second) if call is not None]
    if not wanted:
        return None

    def call_all(epoch: int, state: TrainState) -> None:
        for call in wanted:
            call(epoch, state)

    return call_all


def fit_function(
    objective: Callable[[Any, Any], Terms],
    params: Any,
    optimizer: optax.GradientTransformation,
    batch_fn: Callable[[Array, Array, Any], Any],
    data: Any,
    validation: Any,
    *,
    terms: type[Terms],
    settings: FitSettings,
    key: Array,
    schedule: optax.Schedule,
    folder: str | Path,
    meta: Mapping[str, Any],
    name: str,
) -> Any:
    """`fit` for any objective without batch statistics and dropout; returns the averaged parameters.

    Args:
      objective: (params, batch) -> terms, a NamedTuple of which `total` is made small.
      params: where it starts.
      batch_fn, data: batch of a step as a pure function of (key, step, data).
      validation: fixed batch whose terms are logged each epoch, or None.
      terms: the type of the objective's terms.
      settings: `stats_batches` and `freeze_stats` have no part.
      key, schedule, folder, meta, name: as for `fit`, and so are the errors.
    """
    make_batch = jax.jit(batch_fn)
    evaluate = jax.jit(objective)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Terms]:
        def total(params: Any) -> tuple[Array, Terms]:
            out = objective(params, batch)
            return out.total, out

        grads, out = jax.grad(total, has_aux=True)(state.params)
        return apply_gradients(state, grads, optimizer, settings.steps_per_cycle), out

    variables = {"params": jax.tree.map(jnp.array, params), "batch_stats": {}}
    state = run(
        init_state(variables, optimizer),
        lambda step: make_batch(key, jnp.asarray(step, jnp.int32), data),
        jax.jit(step, donate_argnums=0),
        None if validation is None else lambda variables: evaluate(variables["params"], validation),
        terms=terms,
        settings=settings,
        schedule=schedule,
        folder=folder,
        meta=meta,
        name=name,
    )
    return state.swa.params


def run(
    state: TrainState,
    make_batch: Callable[[int], Any],
    train_step: Callable[[TrainState, Any], tuple[TrainState, Terms]],
    evaluate: Callable[[dict], Terms] | None,
    *,
    terms: type[Terms],
    settings: FitSettings,
    schedule: optax.Schedule,
    folder: str | Path,
    meta: Mapping[str, Any],
    name: str,
    on_epoch: OnEpoch | None = None,
) -> TrainState:
    """The loop itself: steps, records, checkpoints, resuming and stopping, whatever is trained.

    Args:
      state: before the first step; its buffers may be donated.
      make_batch: step -> batch.
      train_step: (state, batch) -> (state, loss terms).
      evaluate: variables -> loss terms of the validation batch, or None.
      terms: the type of the loss terms, a NamedTuple with a field `total`.
      settings, schedule, folder, meta, name, on_epoch: as for `fit`, and so are the errors.

    Returns:
      The state after the last step.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(checkpoint.open_manager(folder / "checkpoints", keep=settings.keep))
        stop = stack.enter_context(_sigterm())
        restored = checkpoint.restore_state(manager, state, meta)
        collected: list[Terms] = []
        if restored is not None:
            state, partial = restored
            collected = [_terms_from_json(p, terms) for p in partial]
            logger.info("%s: resuming at step %d", name, int(state.step))
        step = int(state.step)
        writer = stack.enter_context(
            contextlib.closing(records.open_records(folder / "metrics.jsonl", step=step))
        )
        if on_epoch is not None and step == 0:
            on_epoch(0, state)
        total = settings.epochs * settings.steps_per_epoch
        began = time.monotonic()
        while step < total:
            state, out = train_step(state, make_batch(step))
            collected.append(out)
            step += 1
            if step % settings.steps_per_epoch == 0:
                epoch = step // settings.steps_per_epoch
                record = _epoch_record(collected, step, epoch, name)
                record["learning_rate"] = float(schedule(step - 1))
                collected = []
                if evaluate is not None:
                    variables = {"params": state.params, "batch_stats": state.batch_stats}
                    record |= _prefixed("val_", evaluate(variables))
                writer.write(record)
                if on_epoch is not None:
                    on_epoch(epoch, state)
                if epoch % settings.checkpoint_epochs == 0 or step == total:
                    checkpoint.save_state(manager, step, state, meta, [])
                if epoch == 1 or epoch % max(1, settings.epochs // 20) == 0 or step == total:
                    _log_progress(name, record, epoch, settings.epochs, time.monotonic() - began)
            if stop.is_set():  # in the last step, too: what would follow must not start
                checkpoint.save_state(manager, step, state, meta, [_terms_to_json(t) for t in collected])
                raise Preempted(f"{name}: stopped by SIGTERM at step {step}; the same command resumes")
    return state


def apply_gradients(
    state: TrainState, grads: Any, optimizer: optax.GradientTransformation, steps_per_cycle: int
) -> TrainState:
    """The state after one step with these gradients; batch statistics stay as they are."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    done = state.step + 1
    swa = swa_update_at_cycle_end(state.swa, params, done, steps_per_cycle)
    return TrainState(done, params, state.batch_stats, opt_state, swa)


def _epoch_record(collected: list[Any], step: int, epoch: int, name: str) -> dict[str, Any]:
    """Means over the epoch's steps; raises DivergedError at the first value that is not finite."""
    terms = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *collected)
    for field, values in zip(terms._fields, terms, strict=True):
        bad = ~np.isfinite(values.reshape(len(collected), -1)).all(axis=1)
        if bad.any():
            at = step - len(collected) + 1 + int(np.argmax(bad))
            raise DivergedError(f"{name}: the {field} loss is not finite at step {at} (epoch {epoch})")
    means = jax.tree.map(lambda v: v.mean(axis=0), terms)
    return {"step": step, "epoch": epoch, **_prefixed("", means)}


def _terms_to_json(terms: Any) -> list[Any]:
    return [np.asarray(v).tolist() for v in terms]


def _terms_from_json(values: list[Any], terms: type[Terms]) -> Terms:
    return terms(*(np.asarray(v, np.float32) for v in values))


def _prefixed(prefix: str, terms: Any) -> dict[str, Any]:
    return {
        f"{prefix}{'loss' if k == 'total' else k}": np.asarray(v).tolist() for k, v in terms._asdict().items()
    }


def _log_progress(name: str, record: Mapping[str, Any], epoch: int, epochs: int, seconds: float) -> None:
    validation = f", validation {record['val_loss']:.4g}" if "val_loss" in record else ""
    logger.info(
        "%s: epoch %d/%d, loss %.4g%s, %.0f s", name, epoch, epochs, record["loss"], validation, seconds
    )


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; the old handler comes back at the end. Only the main thread may install it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def fit_settings(section: ml_collections.ConfigDict, steps: int) -> FitSettings:
    """Length of a run of `steps` per epoch of what has no batch statistics, or keeps them."""
    return FitSettings(
        cycles=section.cycles,
        epochs_per_cycle=section.epochs_per_cycle,
        steps_per_epoch=steps,
        checkpoint_epochs=section.checkpoint_epochs,
        keep=section.keep,
        stats_batches=0,
        freeze_stats=True,
        average="swa",
    )
