"""Auxiliary sources and the reset, on a counter that is small enough to predict by hand."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import base
from llmrl.types import Box, Discrete, Environment, EnvSpec


class Count(NamedTuple):
    steps: jax.Array


def counter(rules_end=5, horizon=3):
    """Counts its steps and remembers nothing else; the observation is the count, twice."""

    def observe(state):
        return jnp.full((2,), state.steps, jnp.float32)

    def reset(key):
        state = Count(jnp.zeros((), jnp.int32))
        return state, observe(state)

    def step(key, state, action):
        state = Count(state.steps + 1)
        result = base.time_step(observe(state), 1.0, state.steps >= rules_end, state.steps >= horizon)
        return state, result

    return Environment(EnvSpec("counter", (2,), Box(2), horizon), reset, step)


KEY = jax.random.key(0)
ZERO = jnp.zeros((2,), jnp.float32)


def run(env, actions):
    state, _ = env.reset(KEY)
    results = []
    for action in actions:
        state, result = env.step(KEY, state, action)
        results.append(result)
    return results


# --- several sources ------------------------------------------------------------------------------------------------


def test_sources_keep_their_order_and_names_and_share_the_scale():
    env = base.with_aux(
        counter(),
        {
            "before": lambda state, action, next_state: state.steps.astype(jnp.float32),
            "pair": lambda state, action, next_state: jnp.stack([action[0], next_state.steps.astype(jnp.float32)]),
        },
        scale=10.0,
    )
    assert env.spec.aux_names == ("before", "pair_0", "pair_1")
    first, second = run(env, [ZERO, ZERO + 0.5])
    assert first.aux.tolist() == [0.0, 0.0, 10.0]
    assert second.aux.tolist() == [10.0, 5.0, 20.0]


def test_adding_one_by_one_equals_adding_at_once():
    sources = {"a": lambda s, a, n: a[0], "b": lambda s, a, n: a[1]}
    at_once = base.with_aux(counter(), sources, 2.0)
    one_by_one = base.with_aux(base.with_aux(counter(), {"a": sources["a"]}, 2.0), {"b": sources["b"]}, 2.0)
    assert at_once.spec == one_by_one.spec
    action = jnp.asarray([0.25, -0.5])
    assert run(at_once, [action])[0].aux.tolist() == run(one_by_one, [action])[0].aux.tolist() == [0.5, -1.0]


def test_no_sources_is_an_empty_axis():
    env = base.with_aux(counter(), {})
    assert env.spec.aux_names == () and run(env, [ZERO])[0].aux.shape == (0,)


def test_a_source_sees_the_clipped_action():
    env = base.with_aux(counter(), {"action": lambda s, action, n: action})
    assert run(env, [jnp.asarray([7.0, -0.5])])[0].aux.tolist() == [1.0, -0.5]


def test_a_name_can_be_taken_only_once():
    env = base.with_aux(counter(), {"hint": lambda s, a, n: a[0]})
    with pytest.raises(ValueError, match=r"different names.*hint"):
        base.with_aux(env, {"hint": lambda s, a, n: a[0]})


def test_the_scale_may_be_a_traced_number():
    def aux_of(scale):
        return run(base.with_aux(counter(), {"one": lambda s, a, n: jnp.ones(())}, scale), [ZERO])[0].aux[0]

    assert jax.vmap(aux_of)(jnp.asarray([0.0, 0.5, 2.0])).tolist() == [0.0, 0.5, 2.0]


# --- reset ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rules_end", "horizon"), [(2, 9), (9, 2), (2, 2)])
def test_reset_keeps_the_last_observation_and_goes_on_from_the_fresh_one(rules_end, horizon):
    env = counter(rules_end=rules_end, horizon=horizon)
    fresh_state, fresh_obs = Count(jnp.asarray(-7)), jnp.full((2,), -7.0)
    step = jax.jit(functools.partial(base.step_with_reset, env))
    state, _ = env.reset(KEY)

    state, obs, result = step(KEY, state, ZERO, fresh_state, fresh_obs)
    assert (state.steps, obs[0], result.obs[0]) == (1, 1.0, 1.0)
    assert not (result.terminated | result.truncated)

    state, obs, result = step(KEY, state, ZERO, fresh_state, fresh_obs)
    assert (state.steps, obs[0], result.obs[0]) == (-7, -7.0, 2.0)
    assert bool(result.terminated) == (rules_end == 2) and bool(result.truncated) == (horizon == 2)


def test_reset_is_decided_for_each_environment():
    env = counter(horizon=3)
    states = Count(jnp.asarray([0, 2], jnp.int32))
    fresh = jax.vmap(env.reset)(jax.random.split(KEY, 2))
    step = jax.vmap(functools.partial(base.step_with_reset, env))
    states, obs, result = step(jax.random.split(KEY, 2), states, jnp.zeros((2, 2)), *fresh)
    assert states.steps.tolist() == [1, 0] and obs[:, 0].tolist() == [1.0, 0.0]
    assert result.obs[:, 0].tolist() == [1.0, 3.0]


def test_reset_handles_keys_inside_a_state():
    env = Environment(
        EnvSpec("keys", (1,), Discrete(2), 1),
        lambda key: (key, jnp.zeros((1,))),
        lambda key, state, action: (key, base.time_step(jnp.zeros((1,)), 0.0, True, False)),
    )
    fresh = jax.random.key(5)
    state, _, _ = base.step_with_reset(env, KEY, KEY, jnp.zeros((), jnp.int32), fresh, jnp.zeros((1,)))
    assert jax.random.key_data(state).tolist() == jax.random.key_data(fresh).tolist()


def test_strongly_typed_leaves_numbers_and_keys_alone():
    tree = base.strongly_typed({"int": 3, "float": 0.5, "bool": True, "key": KEY, "weak": jnp.asarray(1.5) * 2})
    assert not any(getattr(leaf, "weak_type", False) for leaf in jax.tree.leaves(tree))
    dtypes = {name: leaf.dtype.name for name, leaf in tree.items() if name != "key"}
    assert dtypes == {"int": "int32", "float": "float32", "bool": "bool", "weak": "float32"}
    assert (tree["int"], tree["float"], tree["weak"]) == (3, 0.5, 3.0)


# --- a user's function ----------------------------------------------------------------------------------------------


def takes_two(state, action):
    return action[0]


def branches(state, action, next_state):
    return jnp.ones(()) if state.steps > 0 else jnp.zeros(())


def misses_attribute(state, action, next_state):
    return state.angle


def divides_by_zero(state, action, next_state):
    return jnp.float32(1 / 0)


@pytest.mark.parametrize(
    ("function", "kind", "says"),
    [
        (lambda s, a, n: jnp.zeros((2, 2)), ValueError, r"returned float32\[2, 2\]"),
        (lambda s, a, n: jnp.zeros((0,)), ValueError, r"returned float32\[0\]"),
        (lambda s, a, n: n.steps, TypeError, r"returned int32\[\].*astype"),
        (lambda s, a, n: n.steps > 1, TypeError, r"returned bool\[\].*astype"),
        (lambda s, a, n: (a[0], a[1]), TypeError, r"returned \(float32\[\], float32\[\]\)"),
        (lambda s, a, n: None, TypeError, "returned None"),
        (takes_two, TypeError, "takes_two failed: TypeError.*positional argument"),
        (branches, TypeError, r"branches failed: Tracer.*jnp\.where instead"),
        (misses_attribute, ValueError, "misses_attribute failed: AttributeError.*angle"),
        (divides_by_zero, ValueError, "divides_by_zero failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_function_is_named_with_what_it_did_and_what_is_expected(function, kind, says):
    with pytest.raises(kind, match=says) as caught:
        base.with_aux(counter(), {"hint": function})
    message = str(caught.value)
    assert base.dotted_name(function) in message and "float array of shape [] or [m]" in message


def test_what_cannot_be_called_is_named():
    with pytest.raises(TypeError, match=r"'harmful'.*expected a function"):
        base.checked_aux(counter(), "harmful")


@pytest.mark.parametrize(("function", "shape"), [(lambda s, a, n: 0.5, ()), (lambda s, a, n: a, (2,))])
def test_a_right_function_gives_its_shape(function, shape):
    assert base.checked_aux(counter(), function) == shape


def test_the_check_does_not_run_the_function():
    seen = []

    def spy(state, action, next_state):
        seen.append(isinstance(action, jax.core.Tracer))
        return action[0]

    base.checked_aux(counter(), spy)
    assert seen and all(seen)


def test_dotted_name_sees_through_partial():
    assert base.dotted_name(functools.partial(takes_two, 1)) == f"{__name__}.takes_two"


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "5", None])
def test_counts_are_positive_integers(value):
    with pytest.raises(ValueError, match="horizon must be a positive integer, got"):
        base.require_positive_int("horizon", value)


def test_time_step_has_the_library_dtypes():
    result = base.time_step([1, 2], 1, True, 0)
    dtypes = [leaf.dtype.name for leaf in result]
    assert dtypes == ["float32", "float32", "bool", "bool", "bool", "float32", "uint32", "int32"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint8", "bool", "float64"])
def test_time_step_keeps_the_dtype_of_an_observation(dtype):
    obs = np.zeros(2, jnp.dtype(dtype))
    assert base.time_step(obs, 1, True, 0).obs.dtype.name == ("float32" if dtype == "float64" else dtype)
