"""Auxiliary sources of both Crafters: achievements on the way to tools and off it, and help of every quality.

The help leads to tools; where the task is ``collect_drink``, it leads to water.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from llmrl.envs import crafter_codes as codes
from llmrl.envs.base import AuxFunction
from llmrl.envs.once import Once
from llmrl.envs.qualities import noise_of, qualities
from llmrl.types import EnvState

# --- achievements -----------------------------------------------------------------------------------------------------

HELPFUL = ("collect_wood", "place_table", "make_wood_pickaxe")
DISTRACTING = ("collect_sapling", "collect_drink", "place_plant", "wake_up")


def hints(magnitude: float = 1.0) -> AuxFunction:
    """What leads to tools: +magnitude for the first wood, table and wooden pickaxe of an episode.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return _unlocking(HELPFUL, magnitude)


def distracting(magnitude: float = 1.0) -> AuxFunction:
    """What leads nowhere near a tool: +magnitude for an episode's first sapling, drink, plant and waking up.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return _unlocking(DISTRACTING, magnitude)


def _unlocking(names: Sequence[str], magnitude: float) -> AuxFunction:
    """magnitude times the achievements among ``names`` that a step unlocks.

    States of either game tell what an episode has unlocked so far as ``unlocked``, booleans [22].
    """
    chosen = np.array(codes.achievement_indices(names))

    def function(state: Any, action: Any, next_state: Any) -> Any:
        del action
        new = next_state.unlocked[chosen] & ~state.unlocked[chosen]
        return magnitude * new.astype(np.float32).sum()

    return function


# --- qualities --------------------------------------------------------------------------------------------------------

OUT_OF_VIEW = 8
"""Steps to a block that is not in view: one more than to the farthest that is."""

_ROWS, _COLUMNS = np.indices(codes.VIEW) - np.array(codes.VIEW).reshape(2, 1, 1) // 2
_STEPS = (np.abs(_ROWS) + np.abs(_COLUMNS)).reshape(-1)
_NEXT_CELLS = codes.CELLS // 2 + np.array([-1, 1, -codes.VIEW[1], codes.VIEW[1]])
"""Cells to the player's left, right, above and below, in the order of ``FACING``."""


def fair(*, task: Any = "all", magnitude: float = 1.0) -> AuxFunction:
    """``hints``; where the task is a drink, a fifth of the magnitude for each step that water comes nearer."""
    if not _is_drink(task):
        return hints(magnitude)
    nearer = _nearer("water")
    return lambda state, action, next_state: 0.2 * magnitude * nearer(state, action, next_state)


def farmable(*, task: Any = "all", magnitude: float = 0.1) -> AuxFunction:
    """+magnitude for each step that a tree comes nearer (water, where the task is a drink), and nothing for others."""
    nearer = _nearer("water" if _is_drink(task) else "tree")
    return lambda state, action, next_state: magnitude * jnp.maximum(nearer(state, action, next_state), 0.0)


def rare(*, task: Any = "all", magnitude: float = 1.0) -> AuxFunction:
    """+magnitude for an episode's first wood; where the task is a drink, for facing water for the first time."""
    wood = codes.ACHIEVEMENTS.index("collect_wood")
    reached = _faces_water if _is_drink(task) else lambda state: jnp.asarray(state.unlocked)[wood]
    return Once(lambda state, action, next_state: jnp.where(reached(next_state), magnitude, 0.0))


def useless(*, seed: int = 0, magnitude: float = 0.1) -> AuxFunction:
    """A fixed random function of where the player faces, the four cells around it, and the action."""
    around = np.array([codes.FACING, *_NEXT_CELLS])
    return noise_of(lambda state: (jnp.asarray(state.seen)[around],), seed, magnitude)


def _is_drink(task: Any) -> bool:
    return codes.achievement_indices(task) == codes.achievement_indices("collect_drink")


def _steps_to(block: str, state: EnvState) -> Int[Array, ""]:
    """Steps to the nearest such block in view, walls disregarded."""
    found = jnp.asarray(state.seen)[codes.BLOCK] == codes.BLOCKS.index(block)
    return jnp.min(jnp.where(found, jnp.asarray(_STEPS), OUT_OF_VIEW))


def _nearer(block: str) -> Callable[..., Float[Array, ""]]:
    def steps(state: EnvState, action: Any, next_state: EnvState) -> Float[Array, ""]:
        return (_steps_to(block, state) - _steps_to(block, next_state)).astype(jnp.float32)

    return steps


def _faces_water(state: EnvState) -> Bool[Array, ""]:
    seen = jnp.asarray(state.seen)
    return seen[jnp.asarray(_NEXT_CELLS)[seen[codes.FACING]]] == codes.BLOCKS.index("water")


AUX_SOURCES: dict[str, Callable[..., AuxFunction]] = {
    "hints": hints,
    "distracting": distracting,
    **qualities(
        fair=fair,
        farmable=farmable,
        rare=rare,
        useless=useless,
        in_first_half=lambda state: jnp.asarray(state.seen)[codes.FACING] < 2,  # to the left or right
    ),
}
"""Quality -> factory. ``harmful`` costs 1 where ``hints`` would pay it, or a fifth for each step nearer to water."""
