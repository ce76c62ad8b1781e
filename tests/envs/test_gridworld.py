"""The grid against brute force, and its rewards against what their names promise."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrl.envs import gridworld as room
from llmrl.envs import make

KEY = jax.random.key(0)
UP, RIGHT, DOWN, LEFT = (jnp.asarray(action, jnp.int32) for action in range(4))


def at(row, column, time=0):
    return room.GridState(jnp.asarray([row, column], jnp.int32), jnp.asarray(time, jnp.int32))


def every_step(env, size):
    """All cells times all actions, at once: states, actions, next states and results."""
    cells = np.array(list(itertools.product(range(size), range(size), range(4))), np.int32)
    states = room.GridState(jnp.asarray(cells[:, :2]), jnp.zeros((len(cells),), jnp.int32))
    actions = jnp.asarray(cells[:, 2])
    next_states, results = jax.jit(jax.vmap(env.step, in_axes=(None, 0, 0)))(KEY, states, actions)
    return states, actions, next_states, results


def shortest_paths(env, size):
    """Steps to the goal by value iteration on the moves themselves, knowing nothing of coordinates."""
    states, _, next_states, _ = every_step(env, size)
    source, target = [np.asarray(s.position) @ [size, 1] for s in (states, next_states)]
    distance = np.full(size * size, np.inf)
    distance[-1] = 0.0
    for _ in range(2 * size):
        np.minimum.at(distance, source, 1.0 + distance[target])
    return distance.reshape(size, size)


# --- the task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5])
def test_distance_equals_brute_force(size):
    expected = shortest_paths(make("gridworld", aux=(), size=size), size)
    ours = [[float(room.goal_distance(jnp.asarray([r, c]), size)) for c in range(size)] for r in range(size)]
    np.testing.assert_array_equal(ours, expected)


def test_only_the_goal_rewards_and_ends():
    size = 4
    _, _, next_states, results = every_step(make("gridworld", aux=(), size=size), size)
    at_goal = np.all(np.asarray(next_states.position) == size - 1, axis=1)
    for field in (results.reward, results.terminated, results.success):
        np.testing.assert_array_equal(np.asarray(field).astype(bool), at_goal)
    assert not bool(results.truncated.any())


def test_walls_stop_a_move_and_moves_go_where_they_say():
    env = make("gridworld", aux=(), size=3)
    reached = [env.step(KEY, at(1, 1), action)[0].position.tolist() for action in (UP, RIGHT, DOWN, LEFT)]
    assert reached == [[0, 1], [1, 2], [2, 1], [1, 0]]
    for into_a_wall in (UP, LEFT):
        assert env.step(KEY, at(0, 0), into_a_wall)[0].position.tolist() == [0, 0]


@pytest.mark.parametrize("horizon", [1, 6])
def test_truncated_at_exactly_the_horizon(horizon):
    env = make("gridworld", aux=(), size=3, horizon=horizon)
    state, _ = env.reset(KEY)
    ends = []
    for _ in range(horizon):
        state, result = env.step(KEY, state, UP)
        ends.append((bool(result.truncated), bool(result.terminated), bool(result.success)))
    assert ends == [(False, False, False)] * (horizon - 1) + [(True, False, False)]


def test_reaching_the_goal_on_the_last_step_is_both_ends():
    _, result = make("gridworld", aux=(), size=3, horizon=4).step(KEY, at(1, 2, time=3), DOWN)
    assert bool(result.truncated) and bool(result.terminated) and bool(result.success) and float(result.reward) == 1.0


def test_observations():
    env = make("gridworld", aux=(), size=3)
    assert env.spec.obs_shape == (6,)
    assert env.reset(KEY)[1].tolist() == [1, 0, 0, 1, 0, 0]
    assert env.step(KEY, at(1, 1), RIGHT)[1].obs.tolist() == [0, 1, 0, 0, 0, 1]
    env = make("gridworld", aux=(), size=3, observation="coordinates")
    assert env.spec.obs_shape == (2,) and env.spec.obs_names == ("row", "column")
    assert env.reset(KEY)[1].tolist() == [-1, -1]
    assert env.step(KEY, at(1, 1), RIGHT)[1].obs.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"size": 1}, "at least 2.*got 1"),
        ({"size": 0}, "size must be a positive integer, got 0"),
        ({"horizon": 0}, "horizon must be a positive integer, got 0"),
        ({"observation": "onehot"}, "nearest: 'one_hot'"),
    ],
)
def test_refusals(kwargs, says):
    with pytest.raises(ValueError, match=says):
        make("gridworld", **kwargs)


# --- hints ----------------------------------------------------------------------------------------------------------


def test_hints_pay_for_the_direction_of_the_step():
    size = 4
    env = make("gridworld", aux=("helpful_hackable", "harmful"), size=size)
    states, _, next_states, results = every_step(env, size)
    before, after = [2 * (size - 1) - np.asarray(s.position).sum(1) for s in (states, next_states)]
    np.testing.assert_allclose(results.aux[:, 0], np.where(after < before, 0.1, 0.0))
    np.testing.assert_allclose(results.aux[:, 1], np.where(after > before, 0.1, 0.0))


def walker(env):
    """actions -> the steps of one episode; compiled once."""

    def step(state, action):
        state, result = env.step(KEY, state, action)
        return state, result

    return jax.jit(lambda actions: jax.lax.scan(step, env.reset(KEY)[0], actions)[1])


@functools.cache
def potential_walker(gamma):
    return walker(make("gridworld", aux=("potential",), size=4, horizon=99, aux_options={"gamma": gamma}))


def test_to_and_fro_collects_the_hackable_hint_for_ever_but_not_its_potential_form():
    env = make("gridworld", aux=("helpful_hackable", "potential"), size=4, aux_options={"gamma": 1.0})
    hackable, potential = walker(env)(jnp.asarray([1, 3] * 20)).aux.T
    np.testing.assert_allclose(hackable.sum(), 20 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(potential.sum(), 0.0, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.sampled_from([0.9, 0.99, 1.0]))
def test_potential_telescopes(actions, gamma):
    """sum_t gamma^t F_t = gamma^T Phi(s_T) - Phi(s_0), whatever the walk."""
    steps = potential_walker(gamma)(jnp.asarray(actions))
    distance = 6 - np.asarray(steps.obs.reshape(12, 2, 4).argmax(-1)).sum(-1)
    discounts = gamma ** np.arange(12)
    expected = 0.1 * (-(gamma**12) * distance[-1] + 6.0)
    np.testing.assert_allclose((discounts * np.asarray(steps.aux[:, 0])).sum(), expected, atol=1e-5)


def test_potential_is_zero_at_the_goal():
    value = make("gridworld", aux=("potential",), size=3).step(KEY, at(1, 2), DOWN)[1].aux[0]
    np.testing.assert_allclose(value, 0.1 * 1.0, rtol=1e-6)


def test_random_is_a_fixed_table():
    def values_of(seed):
        return every_step(make("gridworld", aux=("random",), size=6, aux_options={"seed": seed}), 6)[3].aux[:, 0]

    values, again, other = [np.asarray(values_of(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(values, again)
    assert len(set(values.tolist())) > 100 and np.abs(values).max() <= 0.1
    assert values.min() < -0.08 and values.max() > 0.08 and np.abs(values - other).max() > 0.05
