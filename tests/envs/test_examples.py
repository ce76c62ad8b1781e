"""The example environment of the docs: its rules, and what its two hints are worth."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmrl.envs import make

SIZE = 5
UP, RIGHT, DOWN, LEFT = range(4)
TO_THE_KEY, TO_THE_DOOR, TO_THE_GOAL = [UP] * 4, [DOWN, DOWN, RIGHT, RIGHT], [RIGHT, DOWN, DOWN, RIGHT]


@pytest.fixture
def walk(monkeypatch):
    """``(actions, hint) -> what each step gave``, from the start."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts" / "examples")

    def walk(actions, hint="closer"):
        env = make("keydoor.keydoor", aux=(), aux_function=f"keydoor.{hint}", size=SIZE)
        key = jax.random.key(0)
        state, _ = env.reset(key)
        found = []
        for action in actions:
            state, result = env.step(key, state, jnp.int32(action))
            found.append(result)
        return state, found

    return walk


def test_the_goal_is_reached_by_key_and_door_and_nothing_else_is_rewarded(walk):
    way = [*TO_THE_KEY, *TO_THE_DOOR, *TO_THE_GOAL]
    _, found = walk(way)
    np.testing.assert_array_equal([result.reward for result in found], [0.0] * (len(way) - 1) + [1.0])
    assert [bool(result.terminated) for result in found] == [False] * (len(way) - 1) + [True]
    assert found[-1].success


def test_without_the_key_the_door_stays_shut(walk):
    state, _ = walk([UP, UP, RIGHT, RIGHT])
    np.testing.assert_array_equal(state.place, [2, 1])
    state, _ = walk([*TO_THE_KEY, RIGHT, RIGHT])  # nor is there a way through the wall with it
    np.testing.assert_array_equal(state.place, [0, 1])


def test_the_good_hint_pays_for_the_way_and_takes_back_what_a_detour_earned(walk):
    _, found = walk([*TO_THE_KEY, *TO_THE_DOOR, *TO_THE_GOAL])
    np.testing.assert_allclose([result.aux[0] for result in found], 0.1, rtol=1e-6)
    _, found = walk([UP, DOWN] * 3)
    assert sum(float(result.aux[0]) for result in found) == pytest.approx(0.0)


def test_the_other_hint_can_be_farmed(walk):
    _, found = walk([*TO_THE_KEY, UP, LEFT, UP], "at_the_key")
    np.testing.assert_allclose([result.aux[0] for result in found], [0.0] * 3 + [0.1] * 4, rtol=1e-6)
