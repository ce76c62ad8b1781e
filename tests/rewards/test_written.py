"""Written reward functions: they mean what Python means by them, and what is no number, too large or of another shape
is refused before anything is trained."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.envs import time_step
from llmrl.language.subset import Refused, read_functions
from llmrl.rewards.trial import Trial, _trial, random_steps, tried
from llmrl.rewards.written import fields_of, silenced, source_of
from llmrl.types import Discrete, Environment, EnvSpec


class Bag(NamedTuple):
    wood: jax.Array


class Place(NamedTuple):
    theta: jax.Array
    position: jax.Array
    map: jax.Array
    inventory: Bag
    reached: jax.Array
    key: jax.Array
    unnamed: tuple[jax.Array, jax.Array]


def _reset(key):
    zero = jnp.zeros((), jnp.int32)
    state = Place(
        *(jnp.zeros(()), jnp.zeros(2, jnp.int32), jnp.zeros((64, 64), jnp.int32), Bag(zero), zero > 0),
        *(key, (jnp.zeros(()), jnp.zeros(()))),
    )
    return state, state.theta[None]


def _step(key, state, action):
    """A walk that ends at 3, and pays its place there; so a random one earns from 0 on."""
    theta = state.theta + jnp.where(action == 1, 1.0, -1.0)
    state = state._replace(theta=theta, position=state.position + 1, key=key)
    return state, time_step(theta[None], jnp.where(theta >= 3, 1.0, 0.0), theta >= 3, state.position[0] >= 8)


ENV = Environment(EnvSpec("walk", (1,), Discrete(2), 8), _reset, _step)
STATE = _reset(jax.random.key(0))[0]


def written(body):
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return f'def f(state, action, next_state):\n    """Pays."""\n{lines}\n'


def source(body):
    (function,) = read_functions(written(body))
    return source_of(ENV, function)


def test_a_state_is_its_numbers_by_name():
    assert set(fields_of(ENV)) == {"theta", "position", "map", "inventory.wood", "reached"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return state.position", r"an array of shape \[2\]"),
        ("return state.map", r"an array of shape \[64, 64\]"),
        ("return jnp.array([1.0])", r"an array of shape \[1\]"),
        ("return state.position[2]", "index 2 for 2 entries"),
        ("return state.position[-3]", "index -3 for 2 entries"),
        ("return state.position[0, 0]", r"line 3: an index more than an array of shape \[2\] has"),
        ("return state.theta[0]", "line 3: an index more than a single number has"),
        ("return state.position[state.theta]", "TypeError"),
        ("return jnp.sum(state.map[state.map > 0])", "Boolean"),
        ("return jnp.sum(state.map + state.position)", "Incompatible shapes"),
        ("return -state.reached", "TypeError"),
        ("return ~state.theta", "TypeError"),
        ("return jnp.clip(state.theta, state.map, 1.0)", "an array of shape"),
        ("m = state.map\nreturn jnp.sum(m[m])", "numbers in a step, at most 65,536"),
        ("m = state.map\nreturn jnp.sum(m[m[m[m]]])", "numbers in a step"),
        ("m = state.map\nx = m[m]\nx = x[x]\nx = x[x]\nx = x[x]\nx = x[x]\nreturn jnp.sum(x)", "[Oo]verflow|numbers"),
        ("m = state.map\n" + "m = m * m\n" * 16 + "return jnp.sum(m)", "numbers in a step"),
    ],
)
def test_what_does_not_fit_the_state_is_refused(body, reason):
    with pytest.raises(Refused, match=reason) as refused:
        source(body)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


MEANT = (
    "return state.theta",
    "return 0.5",
    "return True",
    "return action",
    "return next_state.theta ** 2 - state.theta ** -1",
    "x = 3 * action - 1.5\nx = x // 2\nreturn -x % 2 + jnp.sum(state.position) / 7",
    "return jnp.where((state.theta > 0.1) & ~state.reached, state.position[-1] * 0.1, state.map[3, action])",
    "return jnp.linalg.norm(state.position - jnp.array([1.0, next_state.theta])) + jnp.pi",
    "a = state.inventory.wood <= 2\nb = state.theta != 1\nreturn (a | b) ^ (1 == action)",
    "return jnp.clip(jnp.max(state.map), 0, 5) + jnp.minimum(action, 0.5)",
)


@pytest.mark.parametrize("body", MEANT)
def test_a_function_means_what_python_means_by_it(body):
    space: dict = {"jnp": jnp}
    exec(written(body), space)
    values = jax.tree.map(lambda x: x if x is STATE.key else x + jnp.asarray(2).astype(x.dtype), STATE)
    other = values._replace(theta=jnp.float32(0.7), position=jnp.asarray([4, 5]))
    with jax.numpy_dtype_promotion("standard"):
        expected = space["f"](other, jnp.asarray(1), values)
    found = source(body)(other, jnp.asarray(1), values)
    assert found.dtype == jnp.float32 and found.shape == ()
    np.testing.assert_allclose(found, jnp.asarray(expected, jnp.float32), rtol=1e-6)


LEAVES = ("1.5", "2", "True", "action", "state.theta", "state.position", "next_state.map", "state.reached", "jnp.pi")
SHAPES = ("({0} + {1})", "({0} // {1})", "({0} ** 2)", "-{0}", "~{0}", "({0} < {1})", "{0}[{1}]",
          "{0}[0]", "jnp.sum({0})", "jnp.where({0}, {1}, {0})", "jnp.array([{0}, {1}])", "({0} & {1})")  # fmt: skip
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(lambda shape, a, b: shape.format(a, b), st.sampled_from(SHAPES), inner, inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
def test_what_is_not_refused_gives_one_number(value):
    try:
        made = source(f"return {value}")
    except Refused as reason:
        assert "\n" not in str(reason)
        return
    found = jax.eval_shape(silenced(made), STATE, jax.ShapeDtypeStruct((), jnp.int32), STATE)
    assert (found.shape, found.dtype) == ((), jnp.float32)


def test_what_is_no_number_is_silence():
    for body in ("return jnp.log(state.theta)", "return 1 / state.theta", "return jnp.sqrt(-1.0)", "return 1e6 * 1e6"):
        assert not abs(source(body)(STATE, jnp.asarray(0), STATE)) <= 1e6
        assert silenced(source(body))(STATE, jnp.asarray(0), STATE) == 0.0
    assert silenced(source("return 1e6"))(STATE, jnp.asarray(0), STATE) == 1e6


# --- trials -----------------------------------------------------------------------------------------------------------


def test_functions_are_tried_on_random_episodes():
    bodies = {
        "nan": "return jnp.log(next_state.theta)",
        "large": "return 1e6 + next_state.theta ** 2",
        "silent": "return 0.0",
        "task": "return next_state.theta >= 3",
        "opposite": "return -0.5 * (next_state.theta >= 3)",
    }
    found = tried(ENV, {name: source(body) for name, body in bodies.items()})
    assert [name for name, trial in found.items() if not trial.sound] == ["nan", "large"]
    assert "no number" in str(found["nan"])
    assert found["silent"].spoken == 0.0 and found["silent"].agreed == found["silent"].pairs / 2 > 0
    # The walk ends in at most 8 steps, and only its last step pays.
    assert found["task"].agreed == found["task"].pairs
    assert found["opposite"].agreed == 0.0
    assert 0.0 < found["task"].spoken < 0.3
    assert "ranks 100% of" in str(found["task"]) and "ranks 0% of" in str(found["opposite"])


def test_pairs_are_counted_as_by_hand():
    alive = np.array([[True, True, True], [True, False, True]])
    values = np.array([[1.0, 2.0, 0.0], [1.0, 9.0, 2.0]], np.float32)
    weights = np.where(alive, np.array([[1.0], [0.5]]), 0.0)
    # Sums: 1.5, 2 and 1. The task: 3 > 1 and 2 > 1 and 3 > 2, so (0, 2) agrees, (1, 2) does, (0, 1) does not.
    found = _trial(values, alive, weights, np.array([3.0, 2.0, 1.0]))
    assert found == Trial(True, 4 / 5, 3, 2.0)


def test_where_the_task_has_said_nothing_there_is_nothing_to_compare_with():
    found = _trial(np.ones((1, 2), np.float32), np.ones((1, 2), bool), np.ones((1, 2)), np.zeros(2))
    assert found.pairs == 0 and "nothing to compare it with" in str(found)


def test_an_episode_lasts_until_its_end():
    steps = jax.jit(lambda key: random_steps(ENV, key, 8))(jax.random.key(3))
    ended = np.asarray(steps.step.terminated | steps.step.truncated)
    first = int(np.argmax(ended)) if ended.any() else 7
    np.testing.assert_array_equal(steps.alive, np.arange(8) <= first)
    np.testing.assert_array_equal(steps.next_state.theta[:-1], steps.state.theta[1:])
