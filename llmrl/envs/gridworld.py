"""A grid with the start in one corner and the goal in the opposite one: the smallest place where rewards get hacked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from llmrl.envs.base import AuxFunction, key_of_seed, require_positive_int, time_step
from llmrl.envs.once import Once
from llmrl.envs.qualities import Help, sources_of
from llmrl.settings.errors import BadValue, unknown
from llmrl.types import Discrete, Environment, EnvSpec, TimeStep

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)], np.int32)
"""Change of (row, column) for the actions up, right, down, left; the goal is down and right of the start."""


class GridState(NamedTuple):
    """Where the agent is and for how long.

    Attributes:
        position: row and column, each 0 .. size - 1, [2].
        time: steps taken in this episode, [].
    """

    position: Int[Array, "2"]
    time: Int[Array, ""]


# --- environment ----------------------------------------------------------------------------------------------------


def gridworld(size: int = 10, horizon: int = 50, observation: str = "one_hot") -> Environment:
    """A size x size grid: start at (0, 0), +1 and the end of the episode at (size - 1, size - 1), walls stop a move.

    Args:
        size: cells per side, at least 2.
        horizon: time limit in steps.
        observation: "one_hot" gives row and column one-hot, [2 size]; "coordinates" gives both scaled to [-1, 1], [2].

    Returns:
        The environment; its state is a ``GridState``.

    Raises:
        ValueError: size or horizon is no positive integer, the size is 1, or the observation does not exist.
    """
    require_positive_int("size", size)
    require_positive_int("horizon", horizon)
    if size < 2:
        raise BadValue(f"size must be at least 2, since start and goal are different cells, got {size!r}")
    if observation not in OBSERVATIONS:
        raise unknown("observation", observation, OBSERVATIONS)
    observe = OBSERVATIONS[observation]

    def reset(key: PRNGKeyArray) -> tuple[GridState, Float[Array, " obs"]]:
        del key
        position = jnp.zeros((2,), jnp.int32)
        return GridState(position, jnp.zeros((), jnp.int32)), observe(position, size)

    def step(key: PRNGKeyArray, state: GridState, action: Int[Array, ""]) -> tuple[GridState, TimeStep]:
        del key
        position = jnp.clip(state.position + jnp.asarray(MOVES)[action], 0, size - 1)
        time = state.time + 1
        at_goal = jnp.all(position == size - 1)
        return GridState(position, time), time_step(observe(position, size), at_goal, at_goal, time >= horizon, at_goal)

    spec = EnvSpec(
        name="gridworld",
        obs_shape=jax.eval_shape(reset, jax.random.key(0))[1].shape,
        action=Discrete(len(MOVES)),
        horizon=horizon,
        obs_names=("row", "column") if observation == "coordinates" else (),
    )
    return Environment(spec, reset, step)


def _one_hot(position: Int[Array, "2"], size: int) -> Float[Array, " obs"]:
    return jax.nn.one_hot(position, size, dtype=jnp.float32).reshape(-1)


def _coordinates(position: Int[Array, "2"], size: int) -> Float[Array, "2"]:
    return position.astype(jnp.float32) * (2.0 / (size - 1)) - 1.0


OBSERVATIONS: dict[str, Callable[[Int[Array, "2"], int], Float[Array, " obs"]]] = {
    "one_hot": _one_hot,
    "coordinates": _coordinates,
}


# --- auxiliary sources ----------------------------------------------------------------------------------------------


def helpful_hackable(magnitude: float = 0.1) -> AuxFunction:
    """A good hint with a loophole: +magnitude for each step towards the goal; walking to and fro collects it for ever.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(_progress(state, next_state) > 0, magnitude, 0.0)


def harmful(magnitude: float = 0.1) -> AuxFunction:
    """Bad advice: +magnitude for every step away from the goal.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(_progress(state, next_state) < 0, magnitude, 0.0)


def random(*, size: int, seed: int = 0, magnitude: float = 0.1) -> AuxFunction:
    """A fixed random function of cell and action that means nothing: magnitude times a table of numbers in [-1, 1].

    Args:
        size: cells per side.
        seed: which table.
        magnitude: the reward's largest size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    table = jax.random.uniform(key_of_seed(seed), (size, size, len(MOVES)), jnp.float32, -magnitude, magnitude)
    return lambda state, action, next_state: table[state.position[0], state.position[1], action]


def potential(*, size: int, gamma: float = 0.99, magnitude: float = 0.1) -> AuxFunction:
    """The same hint as ``helpful_hackable`` without the loophole: magnitude (gamma Phi(s') - Phi(s)).

    Phi(s) is minus the Manhattan distance to the goal; at the goal, the only terminal cell, it is 0 as it has to be.

    Args:
        size: cells per side.
        gamma: the task's discount; with another one the shaping is no longer neutral.
        magnitude: factor on the potential.

    Returns:
        A function of (state, action, next_state) that returns [].

    Reference: Ng, Harada, Russell (1999), "Policy invariance under reward transformations", theorem 1.
    """
    return lambda state, action, next_state: (
        magnitude * (goal_distance(state.position, size) - gamma * goal_distance(next_state.position, size))
    )


def goal_distance(position: Int[Array, "2"], size: int) -> Float[Array, ""]:
    """Steps that are at least needed to the goal: the Manhattan distance.

    Args:
        position: row and column, [2].
        size: cells per side.

    Returns:
        The distance, [].
    """
    return (2 * (size - 1) - jnp.sum(position)).astype(jnp.float32)


def rare(*, size: int, magnitude: float = 0.5) -> AuxFunction:
    """Half of the way, once per episode: +magnitude for the first step that ends there.

    Args:
        size: cells per side.
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return Once(lambda state, action, next_state: jnp.where(jnp.sum(next_state.position) >= size - 1, magnitude, 0.0))


AUX_SOURCES: dict[str, Callable[..., AuxFunction]] = {
    **sources_of(
        Help(
            progress=lambda state, action, next_state: _progress(state, next_state),
            first_half=lambda state: state.position[0] < state.position[1],
            cell=lambda state: (state.position,),
            fair=0.1,
            useless=0.1,
        )
    ),
    "rare": rare,
    "helpful_hackable": helpful_hackable,
    "harmful": harmful,
    "random": random,
    "potential": potential,
}


def _progress(state: GridState, next_state: GridState) -> Int[Array, ""]:
    """Steps by which the goal came nearer; in the corner of the largest coordinates it needs no size to tell."""
    return jnp.sum(next_state.position) - jnp.sum(state.position)
