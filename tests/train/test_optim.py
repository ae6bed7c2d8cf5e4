"""Schedule, layer rates by the updates that they cause, and weight averaging."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from remap.network.resnet import ModelSettings, init_variables, make_model
from remap.train.optim import (
    average_at_cycle_ends,
    averaged,
    cycle_optimizer,
    graded_rules,
    layer_rules,
    make_optimizer,
    match_rules,
    sgdr,
)

MODULES = 11  # enough that module_1 and module_10 could be confused


@functools.cache
def network_params():
    """Ones in the shape of a real network of eleven modules."""
    settings = ModelSettings(2, 3, 1, (2, 3) * 5 + (2,), 3, 0.0, 2, "mish", "avg", False, True, 0.9)
    model = make_model(settings, np.ones((2, 3), bool))
    shapes = jax.eval_shape(lambda key: init_variables(model, key, 64), jax.random.key(0))["params"]
    return jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def one_leaf_each(params):
    """Only the first parameter of every module, to compile less."""
    first = {path.split("/")[0]: path for path in reversed(flat(params))}
    return traverse_util.unflatten_dict({p: flat(params)[p] for p in first.values()}, sep="/")


def first_update(params, rules):
    """The change of every parameter in the first step under a gradient of ones."""
    optimizer = make_optimizer(rules, lambda count: 1e-3, clip_norm=None)
    grads = jax.tree.map(jnp.ones_like, params)
    return flat(jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0])


def test_sgdr_follows_the_cosine_and_restarts():
    peak, end, cycles, length = 1e-3, 1e-5, 3, 7
    schedule = sgdr(peak=peak, end=end, cycles=cycles, steps_per_cycle=length)
    values = np.array([float(schedule(i)) for i in range(cycles * length)]).reshape(cycles, length)
    expected = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * np.arange(length) / length))
    np.testing.assert_allclose(values, np.tile(expected, (cycles, 1)), rtol=1e-5)  # float32 cosine
    np.testing.assert_allclose(values[:, 0], peak, rtol=1e-6)
    np.testing.assert_allclose(schedule(cycles * length), end, rtol=1e-6)  # stays down afterwards
    np.testing.assert_allclose(schedule(10 * cycles * length), end, rtol=1e-6)


def test_sgdr_of_one_step_per_cycle_stays_at_the_peak():
    schedule = sgdr(peak=1e-2, end=1e-4, cycles=3, steps_per_cycle=1)
    np.testing.assert_allclose([schedule(i) for i in range(3)], 1e-2, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"end": 2e-3}, "expected 0 < end <= peak for the learning rate, found 0.002 and 0.001"),
        ({"end": 0.0}, "expected 0 < end <= peak"),
        ({"end": float("nan")}, "expected 0 < end <= peak"),
        ({"cycles": 0}, "at least one cycle of one step, found 0 of 7"),
        ({"steps_per_cycle": 0}, "at least one cycle of one step, found 3 of 0"),
    ],
)
def test_impossible_schedules_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sgdr(**{"peak": 1e-3, "end": 1e-5, "cycles": 3, "steps_per_cycle": 7} | change)


def test_graded_rates_are_those_of_the_paper_in_the_updates_that_adam_makes():
    params = one_leaf_each(network_params())
    graded = first_update(params, graded_rules(MODULES, factor=0.1))
    expected = {"heads": 1 / 10, "stem": 1 / 130, "stem_norm": 1 / 130}
    expected |= {f"module_{MODULES - i}": 1 / (10 * (i + 1)) for i in range(1, MODULES + 1)}
    assert expected["module_10"] == 1 / 20
    assert expected["module_9"] == 1 / 30
    assert set(expected) == set(params)
    for path, update in graded.items():
        # Adam's first step is the rate, 1e-3, against the gradient's sign; float32 knows 1 - 0.999 to 6e-5.
        np.testing.assert_allclose(update, -1e-3 * expected[path.split("/")[0]], rtol=1e-4)


def test_the_factor_holds_at_every_step_of_the_schedule():
    params = {"heads": {"w": jnp.ones(2)}, "stem": {"w": jnp.ones(2)}}
    rules = (("heads/.*", 0.1), ("stem/.*", 0.05))
    schedule = sgdr(peak=1e-1, end=1e-3, cycles=2, steps_per_cycle=3)
    optimizer = make_optimizer(rules, schedule, clip_norm=None)
    reference = optax.adam(schedule)
    state, reference_state = optimizer.init(params), reference.init(params)
    rng = np.random.default_rng(0)
    update, reference_update = jax.jit(optimizer.update), jax.jit(reference.update)
    for _ in range(6):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
        found, state = update(grads, state, params)
        plain, reference_state = reference_update(grads, reference_state, params)
        # Only the product of rate and factor is rounded differently.
        np.testing.assert_allclose(found["heads"]["w"], 0.1 * plain["heads"]["w"], rtol=1e-6)
        np.testing.assert_allclose(found["stem"]["w"], 0.05 * plain["stem"]["w"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["graded", "uniform", "heads"])
def test_every_parameter_is_in_exactly_one_group(kind):
    params = network_params()
    rules = layer_rules(kind, MODULES, factor=0.1)
    index = match_rules(params, rules)
    assert jax.tree.structure(index) == jax.tree.structure(params)
    groups = flat(index)
    assert set(groups.values()) == set(range(len(rules)))
    by_module = {}
    for path, group in groups.items():
        by_module.setdefault(path.split("/")[0].removesuffix("_norm"), set()).add(group)
    assert all(len(g) == 1 for g in by_module.values())
    assert len({min(g) for g in by_module.values()}) == {"graded": 13, "uniform": 1, "heads": 2}[kind]


@pytest.mark.parametrize("kind", ["graded", "uniform", "heads"])
@pytest.mark.parametrize("places", [0, 2])
def test_rates_by_depth_cover_what_stands_beside_the_last_module(kind, places):
    settings = ModelSettings(stem_filters=2, filters=(2, 4), place_filters=places)
    params = init_variables(make_model(settings, np.ones((1, 3), bool)), jax.random.key(0), 16)["params"]
    rules = layer_rules(kind, len(settings.filters), factor=0.1, beside=settings.beside)
    index = match_rules(params, rules)
    assert ("places" in params) == bool(places) == bool(settings.beside)
    for name in settings.beside if kind != "heads" else ():
        assert set(jax.tree.leaves(index[name])) == set(jax.tree.leaves(index["heads"]))


def test_the_first_matching_rule_wins():
    assert match_rules({"a": {"w": 0, "b": 0}}, (("a/w", 1.0), (".*", 2.0))) == {"a": {"w": 0, "b": 1}}


def test_uncovered_parameters_unused_rules_and_unknown_kinds_are_errors():
    params = {"heads": {"w": np.ones(1)}, "module_10": {"w": np.ones(1)}}
    with pytest.raises(ValueError, match=r"no rule covers the parameter module_10/w; the rules are \['heads"):
        match_rules(params, (("heads/.*", 1.0), ("module_1/.*", 1.0)))
    with pytest.raises(ValueError, match=r"the rules \['stem/.*'\] match no parameter of \['heads/w'"):
        match_rules(params, ((".*", 1.0), ("stem/.*", 1.0)))
    with pytest.raises(ValueError, match="no rule covers the parameter stem/kernel"):
        make_optimizer((("heads/.*", 1.0),), lambda c: 1.0, clip_norm=None).init(
            {"stem": {"kernel": np.ones(1)}}
        )
    with pytest.raises(ValueError, match="'graded', 'uniform' or 'heads', found 'linear'"):
        layer_rules("linear", 2, factor=0.1)
    with pytest.raises(ValueError, match=r"match no parameter"):  # a network of fewer modules
        match_rules(params, graded_rules(12, factor=0.1))


def test_frozen_groups_keep_every_bit():
    params = jax.tree.map(lambda p: jnp.asarray(p) * 0.1, one_leaf_each(network_params()))
    optimizer = make_optimizer(layer_rules("heads", MODULES, factor=0.1), lambda c: 1e-2, clip_norm=1.0)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    after = params
    for _ in range(3):
        after, state = step(after, state)
    for path, before in flat(params).items():
        if path.startswith("heads/"):
            assert (np.asarray(flat(after)[path]) < np.asarray(before)).all()
        else:
            assert np.asarray(flat(after)[path]).tobytes() == np.asarray(before).tobytes()


def test_clipping_uses_the_norm_of_the_whole_gradient():
    # Adam forgets a constant scale of the gradient, so the scale must change from step to step.
    params = {"heads": {"w": jnp.zeros(1)}, "stem": {"w": jnp.zeros(1)}}
    rules = (("heads/.*", 1.0), ("stem/.*", 1.0))
    optimizer = make_optimizer(rules, lambda c: 1.0, clip_norm=1.0)
    reference = optax.adam(1.0)
    state, reference_state = optimizer.init(params), reference.init(params)
    for heads, stem in ((0.3, 0.4), (30.0, 40.0), (0.0, 5.0)):
        grads = {"heads": {"w": jnp.array([heads])}, "stem": {"w": jnp.array([stem])}}
        shrink = max(1.0, np.hypot(heads, stem))
        found, state = optimizer.update(grads, state, params)
        clipped = jax.tree.map(lambda g: g / shrink, grads)  # noqa: B023
        expected, reference_state = reference.update(clipped, reference_state, params)
        for name in params:
            np.testing.assert_allclose(found[name]["w"], expected[name]["w"], rtol=1e-5, atol=1e-7)  # float32


def averages(optimizer, params, grads):
    """The average after every step, and the parameters."""
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    found = [(averaged(state), params)]
    for grad in grads:
        params, state = step(params, state, grad)
        found.append((averaged(state), params))
    return found


def test_the_average_is_that_of_the_parameters_at_the_ends_of_the_cycles():
    """eq. 5, last in a chain that changes what the parameters get."""
    length, cycles = 4, 3
    rng = np.random.default_rng(0)
    grads = [{"w": jnp.asarray(g)} for g in rng.normal(size=(length * cycles + 2, 5)).astype(np.float32)]
    optimizer = optax.chain(optax.sgd(0.1), average_at_cycle_ends(length))
    found = averages(optimizer, {"w": jnp.full(5, 7.0)}, grads)
    history = np.stack([params["w"] for _, params in found])
    np.testing.assert_array_equal(found[0][0]["w"], history[0])  # before the first end: the initial ones
    for i in range(1, len(found)):
        mean, before = np.asarray(found[i][0]["w"]), np.asarray(found[i - 1][0]["w"])
        ends = history[length : i + 1 : length]
        if i % length:
            assert mean.tobytes() == before.tobytes()
        else:  # a running mean of float32 numbers; what it started with is forgotten
            np.testing.assert_allclose(mean, ends.astype(np.float64).mean(axis=0), rtol=1e-5)


def test_the_average_lets_updates_pass_and_keeps_a_frozen_parameter_to_the_last_bit():
    params = {"heads": {"w": jnp.ones(3)}, "stem": {"w": jax.random.normal(jax.random.key(0), (1000,))}}
    run = {"peak": 1e-2, "end": 1e-3, "cycles": 7, "steps_per_cycle": 1, "clip_norm": 1.0}
    rules = (("heads/.*", 0.1), ("stem/.*", None))
    grads = [jax.tree.map(jnp.ones_like, params)] * 7
    found = averages(cycle_optimizer(rules, **run), params, grads)
    for mean, _ in found:
        assert np.asarray(mean["stem"]["w"]).tobytes() == np.asarray(params["stem"]["w"]).tobytes()
    schedule = sgdr(peak=1e-2, end=1e-3, cycles=7, steps_per_cycle=1)
    plain = optax.chain(make_optimizer(rules, schedule, clip_norm=1.0), average_at_cycle_ends(10**6))
    for (_, ours), (_, theirs) in zip(found, averages(plain, params, grads), strict=True):
        np.testing.assert_array_equal(ours["heads"]["w"], theirs["heads"]["w"])
    assert cycle_optimizer(rules, **run) is cycle_optimizer(
        rules, **run
    )  # or every run would compile its own step


def test_an_optimiser_that_averages_nothing_is_told():
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="average_at_cycle_ends"):
        averaged(optax.adam(1e-3).init(params))
    average = average_at_cycle_ends(2)
    with pytest.raises(ValueError, match="params"):
        average.update(params, average.init(params))
