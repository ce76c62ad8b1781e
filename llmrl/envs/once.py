"""Sources that pay once per episode, for states that do not tell what an episode has paid already."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, Shaped

from llmrl.envs.base import AuxFunction
from llmrl.types import Environment, EnvState, HostEnvironment, HostWorlds, TimeStep


class Once(NamedTuple):
    """An auxiliary function whose first payment in an episode is its last.

    Attributes:
        function: what it pays for.
    """

    function: AuxFunction

    def __call__(self, state: EnvState, action: Any, next_state: EnvState) -> Any:
        return self.function(state, action, next_state)


class PaidState(NamedTuple):
    """A state, and which sources have paid in its episode.

    Attributes:
        state: the environment's own.
        paid: one per source that pays once, [c].
    """

    state: EnvState
    paid: Bool[Array, " c"]


def paid_once(env: Environment, columns: Sequence[int]) -> Environment:
    """The environment, whose sources in these columns of ``TimeStep.aux`` pay once per episode."""
    if not columns:
        return env
    places = jnp.asarray(columns)

    def reset(key: PRNGKeyArray) -> tuple[PaidState, Shaped[Array, "*obs"]]:
        state, obs = env.reset(key)
        return PaidState(state, jnp.zeros(len(columns), jnp.bool_)), obs

    def step(key: PRNGKeyArray, at: PaidState, action: Shaped[Array, "*a"]) -> tuple[PaidState, TimeStep]:
        next_state, result = env.step(key, at.state, action)
        values = jnp.where(at.paid, 0.0, result.aux[places])
        return PaidState(next_state, at.paid | (values != 0.0)), result._replace(aux=result.aux.at[places].set(values))

    return env._replace(reset=reset, step=step)


def paid_once_on_host(env: HostEnvironment, columns: Sequence[int]) -> HostEnvironment:
    """The same where only Python steps; the games of a run are told apart by their places."""
    if not columns:
        return env

    @contextlib.contextmanager
    def opened(sources: Sequence[Callable]) -> Iterator[HostWorlds]:
        paid: set[tuple[int, int]] = set()

        def reset(places: Sequence[int], seeds: Sequence[int]):
            paid.difference_update([(place, column) for place in places for column in columns])
            return worlds.reset(places, seeds)

        def step(places: Sequence[int], actions: Sequence[int]) -> TimeStep:
            result = worlds.step(places, actions)
            for row, place in enumerate(places):
                for column in columns:
                    if (place, column) in paid:
                        result.aux[row, column] = 0.0
                    elif result.aux[row, column] != 0.0:
                        paid.add((place, column))
            return result

        with env.opened(sources) as worlds:
            yield worlds._replace(reset=reset, step=step)

    return env._replace(opened=opened)
