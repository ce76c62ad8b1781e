"""Sources of every quality for one task, made of a few that the task defines itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llmrl.envs.base import AuxFunction, key_of_seed
from llmrl.envs.once import Once
from llmrl.types import EnvState

LATE_WRONG = "late_wrong"
"""The source that is ``fair`` in the first half of a training and its opposite in the second; training turns it."""

LOUD, FAINT = 100.0, 0.001
"""Factors of the sources ``loud`` and ``faint``."""

Factory = Callable[..., AuxFunction]


def qualities(
    *,
    fair: Factory,
    farmable: Factory,
    rare: Factory,
    useless: Factory,
    in_first_half: Callable[[EnvState], Array],
) -> dict[str, Factory]:
    """Sources by the quality of their help.

    Args:
        fair: help that cannot be collected: a step back costs what a step forward earned.
        farmable: the same help without the cost; it can be collected for ever.
        rare: pays for a sub-goal, once per episode.
        useless: a fixed random function of state and action.
        in_first_half: ``state -> bool``; ``half_right`` is fair there and harmful elsewhere.

    Returns:
        Quality -> factory. ``harmful`` is the opposite of ``fair``, ``loud`` is ``harmful`` times 100, ``faint`` is
        ``fair`` times 0.001, and ``late_wrong`` is ``fair`` until training turns it.
    """
    return {
        "fair": fair,
        "farmable": farmable,
        "rare": rare,
        "useless": useless,
        "harmful": _changed(fair, lambda value, state: -value),
        "half_right": _changed(fair, lambda value, state: jnp.where(in_first_half(state), value, -value)),
        LATE_WRONG: fair,
        "loud": _changed(fair, lambda value, state: -LOUD * value),
        "faint": _changed(fair, lambda value, state: FAINT * value),
    }


def _changed(factory: Factory, change: Callable[[Float[Array, ""], EnvState], Array]) -> Factory:
    """A factory with the same options, whose source is changed step by step."""

    @functools.wraps(factory)
    def made(**options: Any) -> AuxFunction:
        source = factory(**options)
        return lambda state, action, next_state: change(source(state, action, next_state), state)

    return made


def random_table(shape: tuple[int, ...], seed: int, magnitude: float) -> Float[Array, "..."]:
    """Fixed random numbers, uniform in [-magnitude, magnitude], to be looked up by state and action."""
    return jax.random.uniform(key_of_seed(seed), shape, jnp.float32, -magnitude, magnitude)


# --- made of one row --------------------------------------------------------------------------------------------------

CELLS = 1021
"""Different values of a ``useless`` source; a prime, so that neighbouring cells seldom share one."""


class Help(NamedTuple):
    """What a task's sources are made of.

    Attributes:
        progress: ``(state, action, next_state) -> []``, how much nearer a step brings the agent to its aim; a step back
            costs what a step forward earned.
        first_half: ``state -> bool``, true in about one half of the states.
        cell: ``state -> integers``, the state in coarse numbers.
        fair: what ``fair`` and ``farmable`` pay for one unit of progress.
        useless: the largest payment of ``useless``.
        sub_goal: ``state -> bool``, whether the sub-goal is reached there.
        rare: what ``rare`` pays for the sub-goal.
    """

    progress: AuxFunction
    first_half: Callable[[EnvState], Any]
    cell: Callable[[EnvState], tuple[Any, ...]]
    fair: float
    useless: float
    sub_goal: Callable[[EnvState], Any] = lambda state: jnp.zeros((), jnp.bool_)
    rare: float = 0.0


def gain(potential: Callable[[EnvState], Any]) -> AuxFunction:
    """Progress as a difference of potentials: Phi(s') - Phi(s)."""
    return lambda state, action, next_state: _real(potential(next_state)) - _real(potential(state))


def sources_of(help: Help) -> dict[str, Factory]:
    """Sources of every quality, see ``qualities``; their options are ``magnitude`` and, of ``useless``, ``seed``."""

    def fair(*, magnitude: float = help.fair) -> AuxFunction:
        return lambda state, action, next_state: magnitude * _real(help.progress(state, action, next_state))

    def farmable(*, magnitude: float = help.fair) -> AuxFunction:
        both = fair(magnitude=magnitude)
        return lambda state, action, next_state: jnp.maximum(both(state, action, next_state), 0.0)

    def rare(*, magnitude: float = help.rare) -> AuxFunction:
        return Once(lambda state, action, next_state: jnp.where(help.sub_goal(next_state), magnitude, 0.0))

    def useless(*, seed: int = 0, magnitude: float = help.useless) -> AuxFunction:
        return noise_of(help.cell, seed, magnitude)

    return qualities(fair=fair, farmable=farmable, rare=rare, useless=useless, in_first_half=help.first_half)


def noise_of(cell: Callable[[EnvState], tuple[Any, ...]], seed: int, magnitude: float) -> AuxFunction:
    """A fixed random function of a state's cell and the action (the sign of each of its numbers, where it is
    continuous), uniform in [-magnitude, magnitude]."""
    table = random_table((CELLS,), seed, magnitude)

    def source(state: EnvState, action: Any, next_state: EnvState) -> Float[Array, ""]:
        chosen = action if jnp.issubdtype(jnp.result_type(action), jnp.integer) else action > 0.0
        numbers = jnp.concatenate([_whole(part) for part in (*cell(state), chosen)])
        return table[jnp.dot(numbers, jnp.asarray([31**i % CELLS for i in range(numbers.size)])) % CELLS]

    return source


def _whole(numbers: Any) -> Int[Array, " c"]:
    """Whole numbers, those below rounded down, as a vector."""
    return jnp.floor(_real(numbers)).astype(jnp.int32).reshape(-1)


def _real(number: Any) -> Float[Array, "..."]:
    return jnp.asarray(number).astype(jnp.float32)
