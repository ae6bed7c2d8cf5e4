"""Schedules, per-layer rates and weight averaging as optax pieces (paper §4.6, 4.7, 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Int

Rule = tuple[str, float | None]  # (regular expression on "a/b/c", factor on the rate; None freezes)


class SWAState(NamedTuple):
    """Running mean of the parameters at the ends of the cycles (eq. 5)."""

    count: Int[Array, ""]  # cycles averaged so far
    params: Any  # like the parameters; the initial parameters while count is 0


def sgdr(*, peak: float, end: float, cycles: int, steps_per_cycle: int) -> optax.Schedule:
    """Cosine annealing with warm restarts: `cycles` times from `peak` down to `end` (Loshchilov & Hutter 2016).

    Examples:
      >>> schedule = sgdr(peak=1e-2, end=1e-4, cycles=2, steps_per_cycle=10)
      >>> [f"{float(schedule(step)):.4f}" for step in (0, 5, 9, 10)]
      ['0.0100', '0.0050', '0.0003', '0.0100']
    """
    if not 0 < end <= peak:
        raise ValueError(f"expected 0 < end <= peak for the learning rate, found {end} and {peak}")
    if cycles < 1 or steps_per_cycle < 1:
        raise ValueError(f"expected at least one cycle of one step, found {cycles} of {steps_per_cycle}")
    cycle = {
        "init_value": peak,
        "peak_value": peak,
        "warmup_steps": 0,
        "decay_steps": steps_per_cycle,
        "end_value": end,
    }
    return optax.sgdr_schedule([cycle] * cycles)


def graded_rules(modules: int, *, factor: float) -> tuple[Rule, ...]:
    """Rates for fine-tuning: `factor` for the heads, factor/i for the i-th group from the heads (paper §5 ii).

    The heads are i = 1, the last module i = 2, and so on; the stem is last, i = modules + 2. With the
    paper's factor 1/10 the last module gets 1/20 of the pre-training rate and the one before it 1/30.
    """
    rules: list[Rule] = [(r"heads/.*", factor)]
    rules += [(rf"module_{modules - i}/.*", factor / (i + 1)) for i in range(1, modules + 1)]
    return (*rules, (r"stem(_norm)?/.*", factor / (modules + 2)))


def layer_rules(kind: str, modules: int, *, factor: float) -> tuple[Rule, ...]:
    """The rules that a config names: "graded" (paper), "uniform" (one factor) or "heads" (the rest frozen)."""
    if kind == "graded":
        return graded_rules(modules, factor=factor)
    if kind == "uniform":
        return ((r".*", factor),)
    if kind == "heads":
        return ((r"heads/.*", factor), (r".*", None))
    raise ValueError(f"layer rates must be 'graded', 'uniform' or 'heads', found {kind!r}")


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
            raise ValueError(f"no rule covers the parameter {path}; the rules are {[r[0] for r in rules]}")
        index[path] = found
    unused = [rule[0] for i, rule in enumerate(rules) if i not in index.values()]
    if unused:
        raise ValueError(f"the rules {unused} match no parameter of {sorted(flat)}")
    return traverse_util.unflatten_dict(index, sep="/")


def make_optimizer(
    params: Any, rules: Sequence[Rule], schedule: optax.Schedule, *, clip_norm: float | None
) -> optax.GradientTransformation:
    """Adam whose rate is `schedule` times the factor of each parameter's rule.

    Args:
      params: the parameters, for their names.
      rules: first match wins; every parameter must be covered and None freezes.
      clip_norm: clips the norm of the whole gradient, before the partition; None does not clip.
    """
    groups = jax.tree.map(str, match_rules(params, rules))

    def one(factor: float | None) -> optax.GradientTransformation:
        if factor is None:
            return optax.set_to_zero()
        return optax.adam(lambda count: schedule(count) * factor)

    split = optax.partition({str(i): one(factor) for i, (_, factor) in enumerate(rules)}, groups)
    return optax.chain(optax.clip_by_global_norm(clip_norm), split) if clip_norm is not None else split


def swa_init(params: Any) -> SWAState:
    """No cycle averaged yet."""
    return SWAState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))


def swa_update(state: SWAState, params: Any) -> SWAState:
    """One more cycle: w_SWA ← (w_SWA·n + w) / (n + 1) (eq. 5)."""
    n = state.count.astype(jnp.float32)

    def one(average: Array, value: Array) -> Array:
        # A frozen parameter stays as it is to the last bit, which the quotient does not promise.
        return jnp.where(average == value, average, (average * n + value) / (n + 1))

    mean = jax.tree.map(one, state.params, params)
    return SWAState(state.count + 1, mean)


def swa_update_at_cycle_end(
    state: SWAState, params: Any, step: Int[Array, ""], steps_per_cycle: int
) -> SWAState:
    """`swa_update` if `step` steps complete a cycle, else the state as it is."""
    return jax.lax.cond(step % steps_per_cycle == 0, swa_update, lambda s, p: s, state, params)
