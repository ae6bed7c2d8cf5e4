"""Schedules, per-layer rates and weight averaging as optax pieces (paper §4.6, 4.7, 5)."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Int

from remap.config import ConfigError

Rule = tuple[str, float | None]  # (regular expression on "a/b/c", factor on the rate; None freezes)


class AverageState(NamedTuple):
    """Running mean of the parameters at the ends of the cycles (eq. 5), a part of the optimiser's state."""

    step: Int[Array, ""]  # of the optimiser
    cycles: Int[Array, ""]  # averaged so far
    average: Any  # like the parameters; the initial ones while `cycles` is 0


def sgdr(*, peak: float, end: float, cycles: int, steps_per_cycle: int) -> optax.Schedule:
    """Cosine annealing with warm restarts: `cycles` times from `peak` down to `end` (Loshchilov & Hutter 2016).

    Examples:
      >>> schedule = sgdr(peak=1e-2, end=1e-4, cycles=2, steps_per_cycle=10)
      >>> [f"{float(schedule(step)):.4f}" for step in (0, 5, 9, 10)]
      ['0.0100', '0.0050', '0.0003', '0.0100']
    """
    if not 0 < end <= peak:
        raise ConfigError(f"expected 0 < end <= peak for the learning rate, found {end} and {peak}")
    if cycles < 1 or steps_per_cycle < 1:
        raise ConfigError(f"expected at least one cycle of one step, found {cycles} of {steps_per_cycle}")
    cycle = {
        "init_value": peak,
        "peak_value": peak,
        "warmup_steps": 0,
        "decay_steps": steps_per_cycle,
        "end_value": end,
    }
    return optax.sgdr_schedule([cycle] * cycles)


def graded_rules(modules: int, *, factor: float, beside: Sequence[str] = ()) -> tuple[Rule, ...]:
    """Rates for fine-tuning: `factor` for the heads, factor/i for the i-th group from the heads (paper §5 ii).

    The heads are i = 1, the last module i = 2, and so on; the stem is last, i = modules + 2. With the
    paper's factor 1/10 the last module gets 1/20 of the pre-training rate and the one before it 1/30.

    Args:
      modules: residual modules of the network.
      factor: on the rate.
      beside: what the heads see beside the last module, with the factor of the heads.
    """
    rules: list[Rule] = [(rf"({'|'.join(('heads', *beside))})/.*", factor)]
    rules += [(rf"module_{modules - i}/.*", factor / (i + 1)) for i in range(1, modules + 1)]
    return (*rules, (r"stem(_norm)?/.*", factor / (modules + 2)))


def layer_rules(kind: str, modules: int, *, factor: float, beside: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules that a config names: "graded" (paper), "uniform" (one factor) or "heads" (the rest frozen).

    Args:
      modules, factor, beside: see `graded_rules`.
    """
    if kind == "graded":
        return graded_rules(modules, factor=factor, beside=beside)
    if kind == "uniform":
        return ((r".*", factor),)
    if kind == "heads":
        return ((r"heads/.*", factor), (r".*", None))
    raise ConfigError(f"layer rates must be 'graded', 'uniform' or 'heads', found {kind!r}")


def match_rules(params: Any, rules: Sequence[Rule]) -> Any:
    """Index of the first rule that matches each parameter, in a tree like `params`.

    Raises:
      ValueError: a parameter that no rule covers, or a rule that covers no parameter.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    index: dict[str, int] = {}
    for path in flat:
        found = next((i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, path)), None)
        if found is None:
            raise ConfigError(f"no rule covers the parameter {path}; the rules are {[r[0] for r in rules]}")
        index[path] = found
    unused = [rule[0] for i, rule in enumerate(rules) if i not in index.values()]
    if unused:
        raise ConfigError(f"the rules {unused} match no parameter of {sorted(flat)}")
    return traverse_util.unflatten_dict(index, sep="/")


def make_optimizer(
    rules: Sequence[Rule], schedule: optax.Schedule, *, clip_norm: float | None
) -> optax.GradientTransformation:
    """Adam whose rate is `schedule` times the factor of each parameter's rule.

    Args:
      rules: first match wins; every parameter must be covered and None freezes. `init` raises the errors of
        `match_rules`.
      clip_norm: clips the norm of the whole gradient, before the partition; None does not clip.
    """

    def groups(params: Any) -> Any:
        return jax.tree.map(str, match_rules(params, rules))

    def one(factor: float | None) -> optax.GradientTransformation:
        if factor is None:
            return optax.set_to_zero()
        return optax.adam(lambda count: schedule(count) * factor)

    split = optax.partition({str(i): one(factor) for i, (_, factor) in enumerate(rules)}, groups)
    return optax.chain(optax.clip_by_global_norm(clip_norm), split) if clip_norm is not None else split


@functools.lru_cache(maxsize=128)
def cycle_optimizer(
    rules: tuple[Rule, ...],
    *,
    peak: float,
    end: float,
    cycles: int,
    steps_per_cycle: int,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """The optimiser of a whole run: `make_optimizer` on `sgdr`, and last in the chain the average of eq. 5.

    Equal arguments give the same object, so that a step compiled for one run serves the next one, too.
    """
    schedule = sgdr(peak=peak, end=end, cycles=cycles, steps_per_cycle=steps_per_cycle)
    return optax.chain(
        make_optimizer(rules, schedule, clip_norm=clip_norm), average_at_cycle_ends(steps_per_cycle)
    )


def average_at_cycle_ends(steps_per_cycle: int) -> optax.GradientTransformation:
    """Keeps the running mean of the parameters at the ends of the cycles and lets the updates pass (eq. 5).

    w_SWA ← (w_SWA·n + w) / (n + 1) for the n-th end. It must be the last of a chain, where the updates are those that
    the parameters get. `averaged` reads the mean.
    """

    def init(params: Any) -> AverageState:
        # Three buffers of their own, because a step takes them over.
        step, cycles = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return AverageState(step, cycles, jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        if params is None:
            raise ConfigError(
                "average_at_cycle_ends needs the params of the step: optimizer.update(grads, state, params)"
            )
        step = state.step + 1
        ended = state._replace(step=step), optax.apply_updates(params, updates)
        return updates, jax.lax.cond(step % steps_per_cycle == 0, _one_more, lambda s, _: s, *ended)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Any:
    """The mean that `average_at_cycle_ends` keeps, from the state of the whole chain.

    Raises:
      ValueError: no average is in the chain.
    """
    found = optax.tree.get(opt_state, "average")
    if found is None:
        raise ConfigError("expected an optimiser with average_at_cycle_ends in its chain, found none")
    return found


def _one_more(state: AverageState, params: Any) -> AverageState:
    n = state.cycles.astype(jnp.float32)

    def one(average: Array, value: Array) -> Array:
        # A frozen parameter stays as it is to the last bit, which the quotient does not promise.
        return jnp.where(average == value, average, (average * n + value) / (n + 1))

    return state._replace(cycles=state.cycles + 1, average=jax.tree.map(one, state.average, params))
