"""Crumbs, key and door, a moving goal: what is paid, and what sources of each quality say of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import AUX_SOURCES, ENVIRONMENTS, checked_environment, make
from llmrl.envs import small_tasks as room

TASKS = ("crumbs", "keydoor", "moving_goal")
QUALITIES = ("fair", "farmable", "rare", "useless", "harmful", "half_right", "late_wrong", "loud", "faint")
UP, RIGHT, DOWN, LEFT = range(4)
KEY = jax.random.key(3)


def play(env, actions, key=KEY):
    """States and steps of one episode, by these actions in order; ``actions`` may also choose by the state."""
    state, _ = jax.jit(env.reset)(key)
    states, steps, step = [state], [], jax.jit(env.step)
    for action in actions:
        state, result = step(KEY, state, jnp.asarray(action(state) if callable(action) else action, jnp.int32))
        states.append(state)
        steps.append(result)
    return states, steps


def towards(target):
    """The move that brings the agent nearer to a cell, rows first."""

    def action(state):
        row, column = np.asarray(target(state)) - np.asarray(state.position)
        return (DOWN if row > 0 else UP) if row else (RIGHT if column > 0 else LEFT)

    return action


@pytest.mark.parametrize("task", TASKS)
def test_an_environment_like_any_other(task):
    checked_environment(make(task, aux=QUALITIES), task)
    assert set(AUX_SOURCES[task]) == set(QUALITIES)
    for size in (2, 0):
        with pytest.raises(ValueError, match="size"):
            ENVIRONMENTS[task](size=size)


def test_crumbs_pay_near_the_start_and_the_goal_ends_the_episode():
    env = make("crumbs", aux=(), size=4)
    _, steps = play(env, [RIGHT, LEFT, LEFT, DOWN, RIGHT, RIGHT, RIGHT, DOWN, DOWN])
    assert [round(float(step.reward), 3) for step in steps] == [0.005, 0.005, 0, 0.005, 0.005, 0, 0, 0, 1]
    assert [bool(step.terminated) for step in steps] == [False] * 8 + [True]


def test_the_door_opens_with_the_key_only():
    env = make("keydoor", aux=(), size=5)
    states, steps = play(env, [RIGHT, RIGHT])
    assert states[-1].position.tolist() == [4, 1]  # the wall
    way = [UP, UP, UP, UP, RIGHT, RIGHT, RIGHT, DOWN, DOWN, DOWN, DOWN, RIGHT]
    states, steps = play(env, way)
    assert [bool(state.reached) for state in states] == [False] * 4 + [True] * 9
    assert float(sum(step.reward for step in steps)) == 1.0 and bool(steps[-1].success)
    # Over the door without a key: along the second row, then up at the wall.
    states, _ = play(env, [UP, UP, UP, RIGHT, UP, RIGHT])
    assert states[-1].position.tolist() == [0, 1]


def test_each_goal_is_drawn_equally_often_and_never_where_the_agent_starts():
    env = make("moving_goal", aux=(), size=3)
    goals = jax.jit(jax.vmap(lambda key: env.reset(key)[0].goal))(jax.random.split(KEY, 8000))
    counts = np.bincount(np.asarray(goals) @ [3, 1], minlength=9)
    assert counts[4] == 0
    np.testing.assert_allclose(np.delete(counts, 4), 1000, atol=150)


def test_a_step_costs_and_the_goal_pays_where_it_moves():
    env = make("moving_goal", aux=(), size=5)
    states, steps = play(env, [towards(lambda state: state.goal)] * 4)
    ends = next(i for i, step in enumerate(steps) if step.terminated)
    assert np.abs(np.asarray(states[0].goal) - 2).sum() == ends + 1
    np.testing.assert_allclose(sum(step.reward for step in steps[: ends + 1]), 1 - 0.01 * (ends + 1), atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_what_each_quality_says_of_a_step(task):
    """Fair help telescopes over a loop; the others are made of it as their names say."""
    env = make(task, aux=QUALITIES, size=5)
    _, steps = play(env, [UP, DOWN, RIGHT, LEFT, UP, DOWN] if task == "keydoor" else [DOWN, UP, RIGHT, LEFT, DOWN, UP])
    aux = dict(zip(QUALITIES, np.stack([step.aux for step in steps]).T, strict=True))
    np.testing.assert_allclose(aux["fair"].sum(), 0.0, atol=1e-6)
    assert (np.abs(aux["fair"]) > 0).any()
    np.testing.assert_array_equal(aux["farmable"], np.maximum(aux["fair"], 0.0))
    np.testing.assert_array_equal(aux["harmful"], -aux["fair"])
    np.testing.assert_allclose(aux["loud"], -100 * aux["fair"], rtol=1e-6)
    np.testing.assert_allclose(aux["faint"], 0.001 * aux["fair"], rtol=1e-5)
    assert (np.abs(aux["half_right"]) == np.abs(aux["fair"])).all()
    assert np.abs(aux["useless"]).max() <= 0.1 and len(set(aux["useless"].tolist())) > 2


def test_half_of_the_states_are_told_the_truth():
    for task in TASKS:
        fair, half = (AUX_SOURCES[task][name](size=5) for name in ("fair", "half_right"))
        signs = set()
        for row, column, reached in ((1, 3, False), (3, 1, True)):
            state = room.TaskState(
                jnp.asarray([row, column]), jnp.asarray([4, 4]), jnp.asarray(reached), jnp.asarray(0)
            )
            moved = state._replace(position=state.position + jnp.asarray([1, 0]))
            signs.add(float(half(state, jnp.asarray(0), moved) / fair(state, jnp.asarray(0), moved)))
        assert signs == {1.0, -1.0}


@pytest.mark.parametrize("task", TASKS)
def test_a_sub_goal_is_paid_once_per_episode(task):
    env = make(task, aux=("rare",), size=5)
    there = (lambda state: state.goal) if task != "keydoor" else (lambda state: [0, 0])
    away = UP if task != "keydoor" else RIGHT
    _, steps = play(env, [towards(there)] * 4 + [away, towards(there), away])
    ends = next((i + 1 for i, step in enumerate(steps) if step.terminated), len(steps))
    assert sum(float(step.aux[0]) for step in steps[:ends]) == 0.5
