"""Where ended episodes go on from: a start of their own for every step, or a few worlds that are handed out.

A reset costs nothing in most environments and as much as dozens of steps in some. Then there is a pool of worlds, every
episode that ends takes the next, and between two rollouts as many are made as were taken. Large states would fill the
memory, one for every step: they are made one by one, where an episode ends, and are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.base import step_with_reset
from llmrl.types import Environment, EnvState, Scalar, TimeStep

MOST_BYTES = 2**27
"""What a rollout's fresh starts may take, of one seed, where there is one for every step."""


class PoolStatistics(NamedTuple):
    """What became of a rollout's worlds.

    Attributes:
        worlds_made: fresh worlds, in place of those that the rollout took.
        worlds_shared: episodes that had to start in a world which another one of the same rollout had started in,
            because all were gone; where that is no exception, ``steps_per_reset`` is too large.
    """

    worlds_made: Scalar
    worlds_shared: Scalar


class Resets(NamedTuple):
    """A way to go on after an episode.

    Attributes:
        draws: scanned along with the steps, leading axis [t] or empty.
        start: carried from step to step.
        advance: ``(keys [n], env_state, action, draw, carried) -> (env_state, obs, TimeStep, carried)``.
        finish: ``carried -> (worlds, PoolStatistics)``, the pool full again; Nones where there is none.
    """

    draws: PyTree
    start: PyTree
    advance: Callable[..., tuple[EnvState, Shaped[Array, "n *obs"], TimeStep, Any]]
    finish: Callable[[Any], tuple[Worlds | None, PoolStatistics | None]]


Worlds: TypeAlias = tuple[EnvState, Shaped[Array, "k *obs"]]
"""A pool: fresh states and their observations, [k]."""


def make_resets(
    env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int, worlds: Worlds | None = None
) -> Resets:
    """The fresh starts of one rollout; ``worlds``: the pool, where the environment asks for one."""
    if worlds is not None:
        return _pooled(env, key, worlds)
    keys = jax.random.split(key, (num_steps, num_envs))
    large = num_steps * num_envs * _bytes_of_start(env) > MOST_BYTES
    return _made_where_needed(env, keys) if large else _made_beforehand(env, keys)


def _bytes_of_start(env: Environment) -> int:
    start = jax.eval_shape(env.reset, jax.random.key(0))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(start))


def start_all(env: Environment, key: PRNGKeyArray, num_envs: int) -> tuple[EnvState, Shaped[Array, "n *obs"]]:
    """A fresh episode in every environment."""
    keys = jax.random.split(key, num_envs)
    return jax.vmap(env.reset)(keys) if env.steps_per_reset is None else _many_worlds(env, keys)


def full_pool(env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int) -> Worlds | None:
    """Worlds for rollouts of so many steps in so many environments; None where the environment needs no pool."""
    if env.steps_per_reset is None:
        return None
    return _many_worlds(env, jax.random.split(key, -(-num_steps * num_envs // env.steps_per_reset)))


def worlds_at_once() -> int:
    """How many worlds are made side by side: on a CPU, wider is dearer."""
    return 1 if jax.default_backend() == "cpu" else 64


def _many_worlds(env: Environment, keys: Key[Array, " k"]) -> Worlds:
    at_once = worlds_at_once()
    # A width of 1 would be a vmap all the same, and three times as slow as none.
    return jax.lax.map(env.reset, keys, batch_size=None if at_once == 1 else at_once)


def refilled(env: Environment, worlds: Worlds, taken: Int[Array, ""], key: PRNGKeyArray, at_once: int) -> Worlds:
    """A pool whose first worlds, ``taken`` of them, have been replaced by fresh ones, ``at_once`` at a time."""
    size = jax.tree.leaves(worlds)[0].shape[0]

    # Seeds take turns: side by side, each would go on until the last had what it needs, and copy its pool every time.
    @jax.custom_batching.sequential_vmap
    def made(worlds, taken, key):
        def one(place, worlds):
            fresh = env.reset(jax.random.fold_in(key, place))
            return jax.tree.map(lambda x, y: x.at[place].set(y), worlds, fresh)

        def several(i, worlds):
            places = i * at_once + jnp.arange(at_once)
            fresh = jax.vmap(env.reset)(jax.vmap(lambda place: jax.random.fold_in(key, place))(places))
            places = jnp.where(places < taken, places, size)  # beyond that, unused
            return jax.tree.map(lambda x, y: x.at[places].set(y, mode="drop"), worlds, fresh)

        make = one if at_once == 1 else several
        return jax.lax.fori_loop(0, -(-jnp.minimum(taken, size) // at_once), make, worlds)

    return made(worlds, taken, key)


def _made_beforehand(env: Environment, keys: Key[Array, "t n"]) -> Resets:
    def advance(keys, env_state, action, draw, carried):
        step = jax.vmap(step_with_reset, in_axes=(None, 0, 0, 0, 0, 0))
        return *step(env, keys, env_state, action, *draw), carried

    return Resets(jax.vmap(jax.vmap(env.reset))(keys), (), advance, lambda carried: (None, None))


def _made_where_needed(env: Environment, keys: Key[Array, "t n"]) -> Resets:
    # Seeds take turns: side by side, each would make as many starts as the one that needs most.
    @jax.custom_batching.sequential_vmap
    def started_anew(reached, done, keys):
        ended_first = jnp.argsort(~done)

        def one(i, now):
            place = ended_first[i]
            return jax.tree.map(lambda x, y: x.at[place].set(y), now, env.reset(keys[place]))

        return jax.lax.fori_loop(0, jnp.sum(done, dtype=jnp.int32), one, reached)

    def advance(keys, env_state, action, draw, carried):
        env_state, step = jax.vmap(env.step)(keys, env_state, action)
        env_state, obs = started_anew((env_state, step.obs), step.terminated | step.truncated, draw)
        return env_state, obs, step, carried

    return Resets(keys, (), advance, lambda carried: (None, None))


def _pooled(env: Environment, key: PRNGKeyArray, worlds: Worlds) -> Resets:
    size = jax.tree.leaves(worlds)[0].shape[0]

    def advance(keys, env_state, action, draw, taken):
        del draw
        env_state, step = jax.vmap(env.step)(keys, env_state, action)
        done = step.terminated | step.truncated
        given = jax.tree.map(lambda x: x[_turns(done, taken) % size], worlds)
        env_state, obs = jax.tree.map(lambda fresh, reached: _where(done, fresh, reached), given, (env_state, step.obs))
        return env_state, obs, step, taken + jnp.sum(done, dtype=jnp.int32)

    def finish(taken):
        made, shared = jnp.minimum(taken, size), jnp.maximum(taken - size, 0)
        statistics = PoolStatistics(made.astype(jnp.float32), shared.astype(jnp.float32))
        return refilled(env, worlds, made, key, worlds_at_once()), statistics

    return Resets((), jnp.zeros((), jnp.int32), advance, finish)


def _turns(done: Bool[Array, " n"], taken: Int[Array, ""]) -> Int[Array, " n"]:
    """Whose turn it is: the first to end takes the next world, the second the one after it; the others' are unused."""
    return taken + jnp.maximum(jnp.cumsum(done, dtype=jnp.int32) - 1, 0)


def _where(condition: Bool[Array, " n"], x: Shaped[Array, "n ..."], y: Shaped[Array, "n ..."]) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
