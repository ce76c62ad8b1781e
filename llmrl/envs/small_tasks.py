"""Three small grids on which help pays later: crumbs of reward near the start, a key and a door, a moving goal.

Each has sources of every quality (``llmrl.envs.qualities``). All three are ``report`` tasks of the no-regret suite: no
setting is ever chosen on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from llmrl.envs.base import AuxFunction, require_positive_int, time_step
from llmrl.envs.gridworld import MOVES
from llmrl.envs.qualities import qualities, random_table
from llmrl.settings.errors import BadValue
from llmrl.types import Discrete, Environment, EnvSpec, TimeStep


class TaskState(NamedTuple):
    """State of one episode in any of the three grids.

    Attributes:
        position: row and column of the agent, [2].
        goal: row and column of the goal, [2].
        reached: whether the sub-goal was reached in this episode, [].
        time: steps taken in this episode, [].
    """

    position: Int[Array, "2"]
    goal: Int[Array, "2"]
    reached: Bool[Array, ""]
    time: Int[Array, ""]


def _grid(
    name: str,
    size: int,
    horizon: int,
    *,
    start: Callable[[PRNGKeyArray], tuple[Int[Array, "2"], Int[Array, "2"]]],
    blocked: Callable[[TaskState, Int[Array, "2"]], Array],
    sub_goal: Callable[[TaskState], Array],
    pay: Callable[[TaskState, TaskState, Array], Array],
    observe: Callable[[TaskState], Float[Array, " obs"]],
) -> Environment:
    """A grid with four moves; walls around it stop a move, and the goal ends the episode.

    Args:
        name: the environment's.
        size: cells per side, at least 3.
        horizon: time limit in steps.
        start: ``key -> (position, goal)``.
        blocked: ``(state, cell) -> bool``, whether the agent cannot enter a cell.
        sub_goal: ``state -> bool``, whether the sub-goal is reached where the agent is.
        pay: ``(state, next_state, at_goal) -> reward``.
        observe: ``state -> [obs]``.

    Raises:
        ValueError: size or horizon is no positive integer, or the size is below 3.
    """
    require_positive_int("size", size)
    require_positive_int("horizon", horizon)
    if size < 3:
        raise BadValue(f"size must be at least 3, got {size!r}")

    def reset(key: PRNGKeyArray) -> tuple[TaskState, Float[Array, " obs"]]:
        position, goal = start(key)
        state = TaskState(position, goal, jnp.zeros((), jnp.bool_), jnp.zeros((), jnp.int32))
        return state, observe(state)

    def step(key: PRNGKeyArray, state: TaskState, action: Int[Array, ""]) -> tuple[TaskState, TimeStep]:
        del key
        cell = jnp.clip(state.position + jnp.asarray(MOVES)[action], 0, size - 1)
        moved = state._replace(position=jnp.where(blocked(state, cell), state.position, cell), time=state.time + 1)
        moved = moved._replace(reached=state.reached | sub_goal(moved))
        at_goal = jnp.all(moved.position == moved.goal)
        reward = pay(state, moved, at_goal)
        return moved, time_step(observe(moved), reward, at_goal, moved.time >= horizon, at_goal)

    obs_shape = jax.eval_shape(reset, jax.random.key(0))[1].shape
    return Environment(EnvSpec(name, obs_shape, Discrete(len(MOVES)), horizon), reset, step)


def _one_hot(size: int, *cells: Int[Array, "2"]) -> Float[Array, " obs"]:
    """Row and column of each cell, one-hot, [2 size] each."""
    return jnp.concatenate([jax.nn.one_hot(cell, size, dtype=jnp.float32).reshape(-1) for cell in cells])


def _cell(row: int, column: int) -> Int[Array, "2"]:
    return jnp.asarray([row, column], jnp.int32)


def _distance(a: Int[Array, "2"], b: Int[Array, "2"]) -> Int[Array, ""]:
    """Manhattan distance in steps."""
    return jnp.sum(jnp.abs(a - b))


def _never(*_: object) -> Bool[Array, ""]:
    return jnp.zeros((), jnp.bool_)


# --- tasks ----------------------------------------------------------------------------------------------------------

CRUMB = 0.005
"""Reward of ``crumbs`` for each move within two steps of the start."""
STEP_COST = 0.01
"""What each step of ``moving_goal`` costs."""


def crumbs(size: int = 15, horizon: int = 60) -> Environment:
    """Pays 0.005 for each move within two steps of the start, and +1 in the opposite corner.

    A policy gradient settles for the crumbs, because the goal is seldom met by chance. The sub-goal is half of the way.

    Args:
        size: cells per side, at least 3.
        horizon: time limit in steps.

    Returns:
        The environment. Its observation is row and column, one-hot, [2 size].

    Raises:
        ValueError: size or horizon is no positive integer, or the size is below 3.
    """

    def pay(state: TaskState, moved: TaskState, at_goal: Array) -> Array:
        crumb = (jnp.sum(moved.position) <= 2) & jnp.any(moved.position != state.position)
        return at_goal.astype(jnp.float32) + jnp.where(crumb, CRUMB, 0.0)

    return _grid(
        "crumbs",
        size,
        horizon,
        start=lambda key: (_cell(0, 0), _cell(size - 1, size - 1)),
        blocked=_never,
        sub_goal=lambda state: jnp.sum(state.position) >= size - 1,
        pay=pay,
        observe=lambda state: _one_hot(size, state.position),
    )


def keydoor(size: int = 7, horizon: int = 80) -> Environment:
    """Two rooms and a door between them that opens with the key only; +1 at the goal, nothing else is paid.

    The agent starts at the bottom left. The key lies at the top left, the door is at the top of the wall, the goal at
    the bottom right. The sub-goal is the key.

    Args:
        size: cells per side, at least 3.
        horizon: time limit in steps.

    Returns:
        The environment. Its observation is row and column, one-hot, and whether the agent has the key, [2 size + 1].

    Raises:
        ValueError: size or horizon is no positive integer, or the size is below 3.
    """
    wall = size // 2

    def blocked(state: TaskState, cell: Int[Array, "2"]) -> Array:
        return (cell[1] == wall) & ~(state.reached & (cell[0] == 0))

    return _grid(
        "keydoor",
        size,
        horizon,
        start=lambda key: (_cell(size - 1, 0), _cell(size - 1, size - 1)),
        blocked=blocked,
        sub_goal=lambda state: jnp.all(state.position == 0),
        pay=lambda state, moved, at_goal: at_goal.astype(jnp.float32),
        observe=lambda state: jnp.append(_one_hot(size, state.position), state.reached.astype(jnp.float32)),
    )


def moving_goal(size: int = 9, horizon: int = 40) -> Environment:
    """+1 at a goal that is drawn anew for each episode, and -0.01 for every step.

    The agent starts in the middle. The goal is any other cell, all equally likely. The sub-goal is to be next to it.

    Args:
        size: cells per side, at least 3.
        horizon: time limit in steps.

    Returns:
        The environment. Its observation is row and column of agent and goal, one-hot, [4 size].

    Raises:
        ValueError: size or horizon is no positive integer, or the size is below 3.
    """
    middle = size // 2

    def start(key: PRNGKeyArray) -> tuple[Int[Array, "2"], Int[Array, "2"]]:
        other = jax.random.randint(key, (), 0, size * size - 1, jnp.int32)
        cell = jnp.where(other >= middle * size + middle, other + 1, other)
        return _cell(middle, middle), jnp.stack([cell // size, cell % size])

    return _grid(
        "moving_goal",
        size,
        horizon,
        start=start,
        blocked=_never,
        sub_goal=lambda state: _distance(state.position, state.goal) <= 1,
        pay=lambda state, moved, at_goal: at_goal.astype(jnp.float32) - STEP_COST,
        observe=lambda state: _one_hot(size, state.position, state.goal),
    )


# --- sources --------------------------------------------------------------------------------------------------------


def _nearer(target: Callable[[TaskState, int], Int[Array, "2"]]) -> Callable[..., AuxFunction]:
    """+magnitude for a step towards what comes next, -magnitude for a step away from it."""

    def fair(*, size: int, magnitude: float = 0.1) -> AuxFunction:
        def source(state: TaskState, action: Array, next_state: TaskState) -> Float[Array, ""]:
            place = target(state, size)
            return magnitude * (_distance(state.position, place) - _distance(next_state.position, place)).astype(
                jnp.float32
            )

        return source

    return fair


def _only_nearer(fair: Callable[..., AuxFunction]) -> Callable[..., AuxFunction]:
    def farmable(*, size: int, magnitude: float = 0.1) -> AuxFunction:
        both = fair(size=size, magnitude=magnitude)
        return lambda state, action, next_state: jnp.maximum(both(state, action, next_state), 0.0)

    return farmable


def _rare(magnitude: float = 0.5) -> AuxFunction:
    """+magnitude for the sub-goal, once per episode."""
    return lambda state, action, next_state: jnp.where(next_state.reached & ~state.reached, magnitude, 0.0)


def _useless(*, size: int, seed: int = 0, magnitude: float = 0.1) -> AuxFunction:
    """A fixed random function of cell and action, uniform in [-magnitude, magnitude]."""
    table = random_table((size, size, len(MOVES)), seed, magnitude)
    return lambda state, action, next_state: table[state.position[0], state.position[1], action]


def _next_in_keydoor(state: TaskState, size: int) -> Int[Array, "2"]:
    wall = size // 2
    beyond = jnp.where(state.position[1] >= wall, state.goal, _cell(0, wall))
    return jnp.where(state.reached, beyond, _cell(0, 0))


def _sources(
    target: Callable[[TaskState, int], Int[Array, "2"]], in_first_half: Callable[[TaskState], Array]
) -> dict[str, Callable[..., AuxFunction]]:
    fair = _nearer(target)
    return qualities(fair=fair, farmable=_only_nearer(fair), rare=_rare, useless=_useless, in_first_half=in_first_half)


def _above_diagonal(state: TaskState) -> Bool[Array, ""]:
    return state.position[0] < state.position[1]


AUX_SOURCES: dict[str, dict[str, Callable[..., AuxFunction]]] = {
    "crumbs": _sources(lambda state, size: state.goal, _above_diagonal),
    "keydoor": _sources(_next_in_keydoor, lambda state: ~state.reached),
    "moving_goal": _sources(lambda state, size: state.goal, _above_diagonal),
}
"""Task -> quality -> factory. ``half_right`` is fair above the diagonal; in ``keydoor``, before the key."""
