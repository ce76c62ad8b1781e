"""An environment of one's own, key and door, with two hints: one that is worth following, and one that can be farmed.

    export PYTHONPATH=scripts/examples
    llmrl compare env=gymnax env.id=keydoor.keydoor aux=function aux.function=keydoor.closer
    llmrl compare env=gymnax env.id=keydoor.keydoor +env.params.size=7 aux=function aux.function=keydoor.at_the_key

An environment is a description and two pure functions of one instance, in jax: `reset(key)` and `step(key, state,
action)`. A step never resets: that, and running many instances side by side, is llmrl's. A hint is a function of one
step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmrl.envs import time_step
from llmrl.types import Discrete, Environment, EnvSpec

MOVES = jnp.array([(-1, 0), (0, 1), (1, 0), (0, -1)], jnp.int32)


class State(NamedTuple):
    """Row and column of the agent and of the three places, whether the agent has the key, and its steps so far."""

    place: jax.Array
    has_key: jax.Array
    time: jax.Array
    key: jax.Array
    door: jax.Array
    goal: jax.Array


def keydoor(size: int = 9, horizon: int = 80) -> Environment:
    """Two rooms with a door between them that opens with the key only; +1 at the goal, where the episode ends.

    The agent starts at the bottom left and moves up, right, down or left. The key lies at the top left, the door is in
    the middle of the wall, the goal is at the bottom right. Nothing else is rewarded, not even the key.
    """
    last, wall = size - 1, size // 2
    places = [jnp.array(place, jnp.int32) for place in ((last, 0), (0, 0), (wall, wall), (last, last))]

    def observe(state):
        row, column = jax.nn.one_hot(state.place, size)
        return jnp.concatenate([row, column, state.has_key[None].astype(jnp.float32)])

    def reset(key):
        start, *others = places
        state = State(start, jnp.zeros((), bool), jnp.zeros((), jnp.int32), *others)
        return state, observe(state)

    def step(key, state, action):
        wanted = jnp.clip(state.place + MOVES[action], 0, last)
        opens = state.has_key & jnp.all(wanted == state.door)
        place = jnp.where((wanted[1] == wall) & ~opens, state.place, wanted)
        has_key = state.has_key | jnp.all(place == state.key)
        state = state._replace(place=place, has_key=has_key, time=state.time + 1)
        arrived = jnp.all(place == state.goal)
        result = time_step(
            observe(state), arrived, terminated=arrived, truncated=state.time >= horizon, success=arrived
        )
        return state, result

    spec = EnvSpec("keydoor", (2 * size + 1,), Discrete(4), horizon)
    return Environment(spec, reset, step)


def closer(state, action, next_state):
    """A good hint: 0.1 for a step towards what comes next (key, door, goal), -0.1 for a step away from it."""
    beyond = state.place[1] >= state.door[1]
    target = jnp.where(state.has_key, jnp.where(beyond, state.goal, state.door), state.key)
    before, after = (jnp.sum(jnp.abs(place - target)) for place in (state.place, next_state.place))
    return 0.1 * (before - after).astype(jnp.float32)


def at_the_key(state, action, next_state):
    """A hint that can be farmed: 0.1 for every step that ends at the key, as often as one likes."""
    return jnp.where(jnp.all(next_state.place == state.key), 0.1, 0.0)
