"""The one training loop: pre-training, fine-tuning and every other training differ by their task and their run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from remap import sharding
from remap.config import ConfigError
from remap.store import checkpoint
from remap.store.lock import hold
from remap.store.records import open_records, read_records
from remap.train import cycles
from remap.train.objectives import Objective, Source, Task
from remap.train.optim import Rule, averaged, cycle_optimizer, sgdr
from remap.train.saving import RunCheckpoints
from remap.train.state import TrainState, init_state
from remap.train.stopping import signals, stopped_by

logger = logging.getLogger(__name__)

TOLD = 30.0  # s between two lines about a run in the log

OnEpoch = Callable[[int, TrainState], None]  # (epochs done, state)

AVERAGES = ("swa", "last", *cycles.KEPT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Length, rates and bookkeeping of one run; sections of a config for a stage have these fields and more.

    Attributes:
      cycles, epochs_per_cycle: the length of the run (paper §5).
      rate_high, rate_low: limits of the learning rate in every cycle.
      clip_norm: limit of the gradient's norm; None = none.
      checkpoint_epochs: epochs between checkpoints; the last epoch is always saved.
      keep: checkpoints to keep.
      average: "swa" (eq. 5) returns the mean of the parameters at the ends of the cycles, with a model state
        of its own; "last" those at the end of the last cycle, with theirs; "best" the mean over as many cycles as
        give the least validation loss (early stopping by whole cycles); "snapshots" those of all cycles, as an
        ensemble with a leading axis.
      stats_batches: batches from which the model state of averaged parameters is found.
    """

    cycles: int = 4
    epochs_per_cycle: int = 30
    rate_high: float = 1e-3
    rate_low: float = 1e-5
    clip_norm: float | None = 1.0
    checkpoint_epochs: int = 5
    keep: int = 2
    average: str = "swa"
    stats_batches: int = 50

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise ConfigError(f"average must be one of {AVERAGES}, found {self.average!r}")
        for name in ("cycles", "epochs_per_cycle", "checkpoint_epochs", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        self.schedule(1)  # its errors at the door

    @property
    def epochs(self) -> int:
        """Of all cycles."""
        return self.cycles * self.epochs_per_cycle

    def schedule(self, steps: int) -> optax.Schedule:
        """The learning rate of a run with so many steps per epoch, before the factors of the layers."""
        return sgdr(
            peak=self.rate_high,
            end=self.rate_low,
            cycles=self.cycles,
            steps_per_cycle=self.epochs_per_cycle * steps,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a task.

    Attributes:
      settings: its length, rates and bookkeeping.
      steps: per epoch.
      key: root of all its random numbers.
      folder: receives `checkpoints/` and `metrics.jsonl`; an unfinished run found there is continued, with
        the same losses as if it had not been interrupted.
      meta: what must agree for a run to be continued (config, preprocessing); kept with each checkpoint.
      name: for the log.
      on_epoch: called with 0 before the first step, and after every epoch with the number of epochs done,
        before a checkpoint: a resumed run calls it again for the epochs that it repeats, so none is left out.
        It must not keep the state, whose buffers the next step takes over.
    """

    settings: FitSettings
    steps: int
    key: Array
    folder: Path
    meta: Mapping[str, Any]
    name: str
    on_epoch: OnEpoch | None = None

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.settings.epochs * self.steps

    def optimizer(self, rules: tuple[Rule, ...] = ((".*", 1.0),)) -> optax.GradientTransformation:
        """Adam on the schedule of the run, with the factors of `rules`, and the average over the cycles."""
        s = self.settings
        return cycle_optimizer(
            rules,
            peak=s.rate_high,
            end=s.rate_low,
            cycles=s.cycles,
            steps_per_cycle=s.epochs_per_cycle * self.steps,
            clip_norm=s.clip_norm,
        )


class Fitted(NamedTuple):
    """What a run gives; with `average` "snapshots" every array has a leading axis."""

    params: Any
    model_state: Any


class Preempted(Exception):
    """SIGTERM or SIGINT (Ctrl-C) arrived; the state was saved and the same command resumes the run."""


class DivergedError(FloatingPointError):
    """A loss or a parameter is not finite."""


class RunKeys(NamedTuple):
    """The keys of one run: of the batches it trains on and of dropout, and the same for the statistics."""

    batches: Array
    dropout: Array
    stats: Array
    stats_dropout: Array


def run_keys(key: Array) -> RunKeys:
    """The keys of a run from its root key."""
    return RunKeys(*jax.random.split(key, 4))


# The programs of a run. Sources bring their arrays with them, objectives and optimisers are known by what they
# say, so that one compilation serves all folds, members and runs of a shape. Batches are apart from the training
# step: the normaliser in them takes long to compile, and the statistics of averaged weights need batches alone.


@jax.jit
def draw_batch(source: Source, key: Array, step: Array) -> Any:
    """`source.draw(key, step)`, divided among the devices."""
    return sharding.divided(source.draw(key, step))


@functools.partial(jax.jit, static_argnames=("objective", "optimizer"), donate_argnames="state")
def train_step(
    state: TrainState,
    batch: Any,
    key: Array,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Any]:
    """One step; gives the new state, which takes over the buffers of the old one, and the terms of the loss.

    Args:
      key: of dropout, which depends on it and on the step alone.
    """
    dropout_key = jax.random.fold_in(key, state.step)

    def total(params: Any) -> tuple[Array, tuple[Any, Any]]:
        terms, model_state = objective.train(params, state.model_state, batch, dropout_key)
        return terms.total, (terms, model_state)

    grads, (terms, model_state) = jax.grad(total, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return sharding.replicated((TrainState(state.step + 1, params, model_state, opt_state), terms))


@functools.partial(jax.jit, static_argnames="objective")
def evaluate(params: Any, model_state: Any, batch: Any, *, objective: Objective) -> Any:
    """The terms of the loss of a batch that is not trained on."""
    return sharding.replicated(objective.evaluate(params, model_state, batch))


def fit(task: Task, optimizer: optax.GradientTransformation, run: Run) -> Fitted:
    """Trains, checkpoints, resumes; returns the parameters that `run.settings.average` names.

    Args:
      optimizer: `run.optimizer`, or another one with `average_at_cycle_ends` in its chain.

    Batches are divided among all devices of all processes (`remap.sharding`). What comes out depends on their number
    by the rounding of sums alone. Several processes all call this; the first one writes.

    Raises:
      Preempted: SIGTERM or SIGINT arrived; the state is saved.
      DivergedError: a loss or a parameter is not finite (names step, terms and the last checkpoint).
      ConfigError: `run.folder` holds a run with other settings, is in use, cannot be written to, or none of its
        checkpoints is whole; "best" is asked for without validation; or a batch cannot be divided among the devices.
    """
    with hold(run.folder):
        return _fit(task, optimizer, run)


def _fit(task: Task, optimizer: optax.GradientTransformation, run: Run) -> Fitted:
    settings = run.settings
    if settings.average == "best" and task.validation is None:
        raise ConfigError(f"{run.name}: average 'best' needs validation spectra, found none")
    if settings.average in cycles.KEPT:
        keep = cycles.cycle_recorder(run.folder, settings.epochs_per_cycle)
        run = dataclasses.replace(run, on_epoch=_both(run.on_epoch, keep))
    task = _on_devices(task)
    state = _train(task, optimizer, run)
    keys = run_keys(run.key)

    def settled(params: Any) -> Fitted:
        steps = range(settings.stats_batches)
        batches = (draw_batch(task.source, keys.stats, jnp.asarray(i, jnp.int32)) for i in steps)
        found = task.objective.settle(params, state.model_state, batches, keys.stats_dropout)
        out = sharding.local(Fitted(params, found))
        if bad := checkpoint.not_finite(out):
            raise DivergedError(f"{run.name}: {bad} of the averaged network is not finite")
        return out

    if settings.average == "last":
        return sharding.local(Fitted(state.params, state.model_state))
    if settings.average == "swa":
        return settled(averaged(state.opt_state))
    read = functools.partial(cycles.read_cycles, run.folder, settings.cycles)
    ends = [Fitted(*end) for end in sharding.from_first(read)]
    if settings.average == "snapshots":
        return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *ends)
    candidates = [settled(params) for params in cycles.running_means([end.params for end in ends])]
    losses = [float(evaluate(*c, task.validation, objective=task.objective).total) for c in candidates]
    if not np.isfinite(losses).all():
        raise DivergedError(f"{run.name}: validation losses of the averages are not finite: {losses}")
    best = int(np.argmin(losses))
    logger.info(
        "%s: mean over %d cycles; validation losses %s", run.name, best + 1, np.round(losses, 3).tolist()
    )
    return candidates[best]


def _on_devices(task: Task) -> Task:
    """The task with its batches on all devices; where it starts stays as it is."""
    if jax.device_count() == 1:
        return task
    return task._replace(
        source=sharding.replicate(task.source), validation=sharding.replicate(task.validation)
    )


def _both(first: OnEpoch | None, second: OnEpoch) -> OnEpoch:
    """One call for two."""
    if first is None:
        return second

    def call_both(epoch: int, state: TrainState) -> None:
        first(epoch, state)
        second(epoch, state)

    return call_both


def _train(task: Task, optimizer: optax.GradientTransformation, run: Run) -> TrainState:
    """The loop itself: steps, records, checkpoints, resuming and stopping; the state after the last step."""
    keys = sharding.replicate(run_keys(run.key))
    # A copy: the buffers of the state are taken over by the first step.
    state = init_state(*jax.tree.map(jnp.array, (task.params, task.model_state)), optimizer)
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(
            RunCheckpoints(run.folder / "checkpoints", keep=run.settings.keep, meta=run.meta)
        )
        stop = stack.enter_context(signals())
        restored = saved.restore(state)
        collected: list[Any] = []
        history: list[dict[str, Any]] | None = []
        if restored is not None:
            state, partial = restored
            # A list is what versions without the records in the checkpoint have left.
            old = isinstance(partial, list)
            terms, history = (partial, None) if old else (partial["terms"], partial["records"])
            collected = [_terms_from_json(p, task.objective.terms) for p in terms]
            logger.info("%s: resuming at step %d", run.name, int(state.step))
        step = int(state.step)
        path = run.folder / "metrics.jsonl"
        writer = stack.enter_context(contextlib.closing(open_records(path, step=step, known=history)))
        if history is None:
            history = sharding.from_first(lambda: read_records(path))
        state = sharding.replicate(state)
        if run.on_epoch is not None and step == 0:
            run.on_epoch(0, sharding.local(state))
        began = told = time.monotonic()
        first = step
        while step < run.total:
            at = sharding.replicate(np.int32(step))
            with sharding.guarded():
                batch = draw_batch(task.source, keys.batches, at)
                state, terms = train_step(
                    state, batch, keys.dropout, objective=task.objective, optimizer=optimizer
                )
            collected.append(terms)
            step += 1
            if step % run.steps == 0:
                _check_finite(run, state, step, collected, saved)
                record = _epoch_record(task, run, state, step, collected)
                collected = []
                writer.write(record)
                history.append(record)
                now = time.monotonic()
                due = now - told >= TOLD
                told = now if due else told
                done = (step - first) / run.steps
                _end_epoch(run, state, record, history, saved, seconds=now - began, done=done, due=due)
            if reason := stopped_by(stop, step):  # in the last step, too: what would follow must not start
                _check_finite(run, state, step, collected, saved)
                saved.save(step, state, _partial(collected, history))
                raise Preempted(f"{run.name}: stopped by {reason} at step {step}; the same command resumes")
    return state


@jax.jit
def _all_finite(params: Any, model_state: Any) -> Array:
    leaves = [x for x in jax.tree.leaves((params, model_state)) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


def _check_finite(
    run: Run, state: TrainState, step: int, collected: list[Any], checkpoints: RunCheckpoints
) -> None:
    """Raises DivergedError at the first loss of `collected`, the steps up to `step`, that is not finite.

    Parameters are looked at as well, since their own loss comes a step later. Called where the device is waited for
    anyhow, and before what it refuses could reach a checkpoint.
    """
    bad: dict[int, list[str]] = {}
    if collected:
        terms = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *collected)
        for field, values in zip(terms._fields, terms, strict=True):
            lost = ~np.isfinite(values.reshape(len(collected), -1)).all(axis=1)
            if lost.any():
                bad.setdefault(step - len(collected) + 1 + int(np.argmax(lost)), []).append(field)
    if bad:
        at = min(bad)
        names = [field for field in bad[at] if field != "total"] or ["total"]
        raise DivergedError(
            f"{run.name}: the loss is not finite at step {at} (epoch {-(-at // run.steps)}; "
            f"{', '.join(names)}); {checkpoints.told()}"
        )
    if not _all_finite(state.params, state.model_state):
        name = checkpoint.not_finite({"params": state.params, "model_state": state.model_state})
        raise DivergedError(f"{run.name}: {name} is not finite after step {step}; {checkpoints.told()}")


def _epoch_record(task: Task, run: Run, state: TrainState, step: int, collected: list[Any]) -> dict[str, Any]:
    """Means over the epoch's steps, and the validation loss."""
    terms = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *collected)
    means = jax.tree.map(lambda v: v.mean(axis=0), terms)
    record = {"step": step, "epoch": step // run.steps, **_prefixed("", means)}
    record["learning_rate"] = float(run.settings.schedule(run.steps)(step - 1))
    if task.validation is not None:
        found = evaluate(state.params, state.model_state, task.validation, objective=task.objective)
        record |= _prefixed("val_", found)
    return record


def _end_epoch(
    run: Run,
    state: TrainState,
    record: Mapping[str, Any],
    history: list[dict[str, Any]],
    checkpoints: RunCheckpoints,
    *,
    seconds: float,
    done: float,
    due: bool,
) -> None:
    """What a run does at the end of an epoch, when its record is written.

    Args:
      seconds, done: time, and epochs, since the run was begun or taken up again.
      due: it is time for a line in the log.
    """
    epoch, epochs, last = record["epoch"], run.settings.epochs, record["step"] == run.total
    if run.on_epoch is not None:
        run.on_epoch(epoch, sharding.local(state))
    if epoch % run.settings.checkpoint_epochs == 0 or last:
        checkpoints.save(record["step"], state, _partial([], history))
    # A line for a run that is short, one now and then for a long one.
    validation = f", validation {record['val_loss']:.4g}" if "val_loss" in record else ""
    left = "" if last else f", {seconds * (epochs - epoch) / done / 60:.0f} min left"
    logger.log(
        logging.INFO if last or due else logging.DEBUG,
        "%s: epoch %d/%d, loss %.4g%s, %.0f s%s",
        run.name,
        epoch,
        epochs,
        record["loss"],
        validation,
        seconds,
        left,
    )


def _partial(collected: list[Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run needs besides its state: the terms of the epoch that has begun, and the records of those before."""
    return {"terms": [_terms_to_json(t) for t in collected], "records": history}


def _terms_to_json(terms: Any) -> list[Any]:
    return [np.asarray(v).tolist() for v in terms]


def _terms_from_json(values: list[Any], terms: type) -> Any:
    return terms(*(np.asarray(v, np.float32) for v in values))


def _prefixed(prefix: str, terms: Any) -> dict[str, Any]:
    return {
        f"{prefix}{'loss' if k == 'total' else k}": np.asarray(v).tolist() for k, v in terms._asdict().items()
    }
