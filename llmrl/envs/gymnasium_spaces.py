"""Gymnasium's spaces as ours: observations as vectors of numbers with names, actions as one choice or one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Shaped

from llmrl.settings.errors import BadType, BadValue
from llmrl.types import Box, Discrete

MOST_COMBINATIONS = 1024
"""Several choices at once are one choice among their combinations, each of which is an output of the policy."""


class Observations(NamedTuple):
    """How a space's observations are written.

    Attributes:
        size: numbers in one.
        dtype: theirs: bytes where the space holds nothing else, float32 otherwise.
        names: of each number; empty where the space gives none.
        left_out: parts of the space that are no numbers, such as texts.
        vector: an observation to its numbers, [size].
    """

    size: int
    dtype: str
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    vector: Callable[[Any], Shaped[np.ndarray, " size"]]


class Actions(NamedTuple):
    """How a space's actions are chosen.

    Attributes:
        space: what a policy chooses from.
        native: ``actions [n, *a] -> [n, *native]``, what the environments are given.
    """

    space: Discrete | Box
    native: Callable[[Shaped[np.ndarray, "n *a"]], Shaped[np.ndarray, "n *native"]]


# --- observations -----------------------------------------------------------------------------------------------------


def observations(what: str, space: Any) -> Observations:
    """A space of observations as vectors: choices are one-hot, parts of a dictionary stand in its order of keys.

    Args:
        what: whose they are, as errors begin.
        space: a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict or Tuple of them; other parts of these two are
            left out.

    Raises:
        ValueError: nothing of it is made of numbers.
    """
    left_out: list[str] = []
    kept = _numeric(space, "", left_out)
    if kept is None:
        raise BadValue(
            f"{what}: observations are {space}, which is not made of numbers; env.wrappers=[my_module:MyWrapper] can "
            "change them"
        )
    if isinstance(kept, spaces.Box) and not isinstance(space, spaces.Dict | spaces.Tuple):
        dtype = "uint8" if kept.dtype == np.uint8 else "float32"
        return Observations(prod(kept.shape), dtype, (), (), lambda obs: _of_box(obs, kept.shape, dtype))
    named = isinstance(space, spaces.Dict | spaces.Tuple)
    names, size = tuple(_names(kept, "")) if named else (), spaces.flatdim(kept)

    def vector(obs: Any) -> Shaped[np.ndarray, " size"]:
        numbers = np.asarray(spaces.flatten(kept, _part(kept, obs)), np.float32)
        if numbers.shape != (size,):
            raise BadValue(f"the observation has {numbers.size} numbers; expected {size} as observation_space says")
        return numbers

    return Observations(size, "float32", names, tuple(left_out), vector)


def _of_box(obs: Any, shape: tuple[int, ...], dtype: str) -> Shaped[np.ndarray, " size"]:
    array = np.asarray(obs)
    if array.shape != shape:
        raise BadValue(f"the observation has shape {array.shape}; expected {shape} as observation_space says")
    return array.astype(dtype).reshape(-1)


_NUMERIC = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _numeric(space: Any, path: str, left_out: list[str]) -> Any:
    """The same space without what is no numbers; None where nothing is left."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        kept = {str(key): _numeric(part, f"{path}{key} ", left_out) for key, part in parts}
        kept = {key: part for key, part in kept.items() if part is not None}
        return spaces.Dict(kept) if kept else None
    if isinstance(space, _NUMERIC):
        return space
    left_out.append(path.strip() or str(space))
    return None


def _part(kept: Any, obs: Any) -> Any:
    """What a space without its other parts takes of an observation."""
    if not isinstance(kept, spaces.Dict):
        return obs
    return {
        key: _part(part, obs[int(key)] if isinstance(obs, tuple | list) else obs[key]) for key, part in kept.items()
    }


def _names(kept: Any, path: str) -> list[str]:
    if isinstance(kept, spaces.Dict):
        return [name for key, part in kept.items() for name in _names(part, f"{path}{key} ")]
    size = spaces.flatdim(kept)
    return [path.strip()] if size == 1 else [f"{path}{i}" for i in range(size)]


# --- actions ----------------------------------------------------------------------------------------------------------


def actions(what: str, space: Any) -> Actions:
    """A space of actions: several choices at once are one among their combinations, and finite bounds are stretched to
    [-1, 1].

    Args:
        what: whose they are, as errors begin.
        space: a Discrete, MultiDiscrete, MultiBinary or Box.

    Raises:
        ValueError: there are more than ``MOST_COMBINATIONS``.
        TypeError: the space is of another kind.
    """
    if isinstance(space, spaces.Discrete):
        return Actions(Discrete(int(space.n)), lambda action: action + int(space.start))
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        choices = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)
        return _combinations(what, space, np.asarray(choices))
    if not isinstance(space, spaces.Box):
        raise BadType(
            f"{what}: actions are {space}; expected Discrete, MultiDiscrete, MultiBinary or Box, as "
            "env.wrappers=[my_module:MyWrapper] can make of them"
        )
    return _continuous(space)


def _combinations(what: str, space: Any, choices: Shaped[np.ndarray, "..."]) -> Actions:
    number = prod(choices.reshape(-1).tolist())
    if number > MOST_COMBINATIONS:
        raise BadValue(f"{what}: actions are {space}, {number} combinations; expected at most {MOST_COMBINATIONS}")
    first = np.asarray(getattr(space, "start", 0))

    def native(action: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *choices"]:
        each = np.stack(np.unravel_index(action, choices.reshape(-1)), axis=-1)
        return (each.reshape(-1, *choices.shape) + first).astype(space.dtype)

    return Actions(Discrete(number), native)


def _continuous(space: spaces.Box) -> Actions:
    low, high = (np.asarray(bound, np.float32).reshape(-1) for bound in (space.low, space.high))
    bounded = np.isfinite(low) & np.isfinite(high)
    box = Box(low.size) if bounded.all() else Box(low.size, -np.inf, np.inf)
    ends = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0)

    def native(action: Shaped[np.ndarray, "n a"]) -> Shaped[np.ndarray, "n *shape"]:
        share = (np.clip(action, -1.0, 1.0) + 1.0) / 2.0
        # Not low + share (high - low): that one misses the upper bound by a rounding error.
        stretched = ends[0] * (1.0 - share) + ends[1] * share
        chosen = np.where(bounded, stretched, np.clip(action, low, high))
        return chosen.reshape(-1, *space.shape).astype(space.dtype)

    return Actions(box, native)


def infos(each: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What environments tell of a step, as Gymnasium's vectorised environments do: name -> [n], and ``_name`` -> [n],
    whether an environment told it at all."""
    vector = gymnasium.vector.VectorEnv()
    vector.num_envs = len(each)
    found: dict[str, Any] = {}
    for place, info in enumerate(each):
        found = vector._add_info(found, info, place)
    return found
