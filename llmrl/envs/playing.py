"""An environment played for a while, operation by operation: what shapes alone do not show. Nothing is compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.base import action_shape
from llmrl.envs.checking import RESET, STEP
from llmrl.settings.errors import BadValue, UserError, first_line
from llmrl.types import Box, Discrete, Environment, HostEnvironment

INSTANCES = 8
"""Environments that are played side by side; half of them repeat one action, which leads farther than random ones."""

REPEATED = 25
"""First steps that are taken twice: what a coin decides in Python agrees with itself that often in 1 of 3e7 cases."""

RESETTING, STEPPING = "reset(key)", "step(key, state, action)"


class Played(NamedTuple):
    """Steps of several instances side by side, with a reset wherever an episode ended; arrays are numpy's.

    Attributes:
        obs: observations acted on, [t, n, *obs].
        actions: actions taken, [t, n] or [t, n, a].
        results: what the steps gave, a ``TimeStep`` of numpy's arrays, [t, n].
        ages: how many steps the running episode has had, this one included, [t, n].
        started: whether the observation is that of a reset, [t, n].
        heeded: whether another action ever changed anything.
        faults: what went wrong on the way.
        seconds: how long it took.
        functions: what the two functions are called that were played, in errors.
    """

    obs: Shaped[np.ndarray, "t n *obs"]
    actions: Shaped[np.ndarray, "t n *a"]
    results: Any
    ages: Int[np.ndarray, "t n"]
    started: Bool[np.ndarray, "t n"]
    heeded: bool
    faults: tuple[UserError, ...]
    seconds: float
    functions: tuple[str, str] = (RESETTING, STEPPING)

    @property
    def num_steps(self) -> int:
        return self.ages.size

    @property
    def ends(self) -> Bool[np.ndarray, "t n"]:
        return np.asarray(self.results.terminated | self.results.truncated)


def play(env: Environment, what: str, *, seed: int, num_steps: int, seconds: float) -> Played | UserError:
    """Plays an environment that shapes have shown no fault of; each of its functions is called as Python has it.

    Args:
        env: the environment.
        what: what it is called, as errors begin.
        seed: of all randomness.
        num_steps: steps of each instance.
        seconds: no further step is begun after so long.

    Returns:
        What was seen; or why not even one step could be taken.
    """
    began, faults, heeded = time.monotonic(), [], False
    key = jax.random.key(seed)
    reset = called(f"{what}: {RESETTING}", jax.vmap(env.reset), RESET)
    step = called(f"{what}: {STEPPING}", jax.vmap(env.step), STEP)
    moments: list[tuple[Any, ...]] = []
    try:
        keys = _keys(key, 0)
        states, obs = reset(keys)
        faults += _differing(f"{what}: {RESETTING}", (states, obs), reset(keys))
        ages, started = np.zeros(INSTANCES, int), np.ones(INSTANCES, bool)
        for at, actions in enumerate(_actions(env.spec.action, seed, num_steps)):
            if moments and time.monotonic() - began > seconds:
                break
            keys, ages = _keys(key, 2 * at + 1), ages + 1
            reached, result = step(keys, states, actions)
            if at < REPEATED and not faults:
                again, other = step(keys, states, actions), step(keys, states, _others(env.spec.action, actions))
                faults += _differing(f"{what}: {STEPPING}", (reached, result), again)
                heeded = heeded or any(_differing("", (reached, result), other))
            moments.append(jax.tree.map(np.asarray, (obs, actions, result, ages, started)))
            started = np.asarray(result.terminated | result.truncated)
            states, obs = reached, result.obs
            if started.any():
                states, obs = _where(started, reset(_keys(key, 2 * at + 2)), (states, obs))
                ages = np.where(started, 0, ages)
    except UserError as fault:
        if not moments:
            return fault
        faults.append(fault)
    seen: tuple[Any, Any, Any, Any, Any] = jax.tree.map(lambda *arrays: np.stack(arrays), *moments)
    return Played(*seen, heeded, tuple(faults), time.monotonic() - began)


def play_host(env: HostEnvironment, what: str, *, seed: int, num_steps: int, seconds: float) -> Played | UserError:
    """The same for an environment that only Python steps; arguments as for ``play``. No step is taken twice."""
    began, chances, places = time.monotonic(), np.random.default_rng(seed), np.arange(INSTANCES)
    moments: list[tuple[Any, ...]] = []
    faults: list[UserError] = []

    def seeds(number: int) -> list[int]:
        return chances.integers(2**31, size=number).tolist()

    try:
        with env.opened(env.sources) as worlds:
            obs = np.asarray(worlds.reset(places.tolist(), seeds(INSTANCES)))
            ages, started = np.zeros(INSTANCES, int), np.ones(INSTANCES, bool)
            for actions in _actions(env.spec.action, seed, num_steps):
                if moments and time.monotonic() - began > seconds:
                    break
                ages = ages + 1
                result = jax.tree.map(np.array, worlds.step(places.tolist(), actions))
                moments.append((obs, actions, result, ages, started))
                started, obs = result.terminated | result.truncated, result.obs.copy()
                if started.any():
                    obs[started] = worlds.reset(places[started].tolist(), seeds(int(started.sum())))
                    ages = np.where(started, 0, ages)
    except UserError as fault:
        faults.append(fault)
    except Exception as error:
        faults.append(BadValue(f"{what} failed when it was played: {first_line(error)}"))
    if not moments:
        return faults[0]
    seen: tuple[Any, Any, Any, Any, Any] = jax.tree.map(lambda *arrays: np.stack(arrays), *moments)
    return Played(*seen, True, tuple(faults), time.monotonic() - began, ("reset()", "step(action)"))


def called(what: str, function: Callable[..., Any], hint: str) -> Callable[..., Any]:
    """The function, run now, with its errors in words.

    Args:
        what: what it is called, as errors begin.
        function: the function.
        hint: what is expected of it, as errors end.
    """

    def call(*arguments: Any) -> Any:
        try:
            return jax.block_until_ready(function(*arguments))
        except Exception as error:
            raise BadValue(f"{what} failed when it was run: {first_line(error)}; {hint}") from error

    return call


def _keys(key: PRNGKeyArray, number: int) -> Array:
    return jax.random.split(jax.random.fold_in(key, number), INSTANCES)


def _where(chosen: Bool[np.ndarray, " n"], first: PyTree, other: PyTree) -> PyTree:
    one = jax.vmap(lambda chosen, first, other: jax.tree.map(lambda a, b: jnp.where(chosen, a, b), first, other))
    return one(jnp.asarray(chosen), first, other)


def _actions(space: Discrete | Box, seed: int, num_steps: int) -> Iterator[Shaped[np.ndarray, "n *a"]]:
    """Random actions, beyond the bounds of a ``Box`` too, as a Gaussian policy takes them; half of the instances repeat
    one."""
    random, shape = np.random.default_rng(seed), (INSTANCES, *action_shape(space).shape)
    repeating = INSTANCES // 2
    if isinstance(space, Discrete):
        first = np.arange(repeating, dtype=np.int32) % space.num
        for _ in range(num_steps):
            drawn = random.integers(space.num, size=shape).astype(np.int32)
            yield np.concatenate([first, drawn[repeating:]])
        return
    middle, half = (np.asarray(space.high) + space.low) / 2, (np.asarray(space.high) - space.low) / 2
    ends = np.where(np.arange(repeating) % 2, 1.0, -1.0)[:, None]
    first = middle + half * ends * np.ones(space.dim)
    for _ in range(num_steps):
        drawn = middle + half * random.normal(size=shape)
        yield np.concatenate([first, drawn[repeating:]]).astype(np.float32)


def _others(space: Discrete | Box, actions: Shaped[np.ndarray, "n *a"]) -> Shaped[np.ndarray, "n *a"]:
    """Another action for each instance, where there is one."""
    if isinstance(space, Discrete):
        return ((actions + 1) % space.num).astype(np.int32)
    return (np.asarray(space.high) + space.low - actions).astype(np.float32)


def _differing(what: str, first: PyTree, second: PyTree) -> list[UserError]:
    """The first number that a function returned in two ways for the same arguments, if any."""
    leaves = jax.tree_util.tree_leaves_with_path(first)
    for (path, one), other in zip(leaves, jax.tree.leaves(second), strict=True):
        pairs = zip(_numbers(one), _numbers(other), strict=True)
        if pair := next((pair for pair in pairs if pair[0].tobytes() != pair[1].tobytes()), None):
            return [
                BadValue(
                    f"{what} returned {_name(path)} {pair[0]}, and {pair[1]} when it was called again with the same "
                    "arguments; expected the same, since all that is random comes from key: the first value of "
                    "anything else would be frozen into all of training"
                )
            ]
    return []


def _numbers(leaf: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.ravel(np.asarray(jax.random.key_data(leaf) if is_key else leaf))


def _name(path: tuple[Any, ...]) -> str:
    """A place in (state, obs) or (state, TimeStep) by its name there."""
    if path[0].idx == 0:
        return f"state{jax.tree_util.keystr(path[1:])}"
    return "observation" if len(path) == 1 or path[1].name == "obs" else path[1].name
