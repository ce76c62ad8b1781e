"""An environment of one's own, with a hint of one's own: a corridor with the goal at its right end.

    export PYTHONPATH=scripts/examples
    llmrl train env=gymnax env.id=corridor.corridor aux=function aux.function=corridor.to_the_right
    llmrl train env=gymnax env.id=corridor.corridor +env.params.length=30 aux=function aux.function=corridor.to_the_left

An environment is a description and two pure functions of one instance, in jax: `reset(key)` and `step(key, state,
action)`. A step never resets: that, and running many instances side by side, is llmrl's. A hint is a function of one
step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmrl.envs import time_step
from llmrl.types import Discrete, Environment, EnvSpec


class State(NamedTuple):
    """Where the agent stands, and for how long it has been walking."""

    place: jax.Array
    time: jax.Array


def corridor(length: int = 12, horizon: int = 60) -> Environment:
    """Two actions, 0 left and 1 right; +1 at the right end, where the episode ends; nothing anywhere else."""

    def observe(place):
        return jnp.stack([place / (length - 1), 1.0 - place / (length - 1)]).astype(jnp.float32)

    def reset(key):
        place = jnp.zeros((), jnp.int32)
        return State(place, jnp.zeros((), jnp.int32)), observe(place)

    def step(key, state, action):
        place = jnp.clip(state.place + 2 * action - 1, 0, length - 1)
        time, arrived = state.time + 1, place == length - 1
        result = time_step(observe(place), arrived, terminated=arrived, truncated=time >= horizon, success=arrived)
        return State(place, time), result

    spec = EnvSpec("corridor", (2,), Discrete(2), horizon, obs_names=("done", "left to go"))
    return Environment(spec, reset, step)


def to_the_right(state, action, next_state):
    """A hint that means well: 0.1 for every step to the right, as often as one likes."""
    return jnp.where(action == 1, 0.1, 0.0)


def to_the_left(state, action, next_state):
    """A bad hint: 0.1 for every step to the left."""
    return jnp.where(action == 0, 0.1, 0.0)
