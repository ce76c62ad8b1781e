"""Sources of every quality for one task, made of a few that the task defines itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.envs.base import AuxFunction, key_of_seed
from llmrl.types import EnvState

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
        ``fair`` times 0.001.
    """
    return {
        "fair": fair,
        "farmable": farmable,
        "rare": rare,
        "useless": useless,
        "harmful": _changed(fair, lambda value, state: -value),
        "half_right": _changed(fair, lambda value, state: jnp.where(in_first_half(state), value, -value)),
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
