"""Where ended episodes go on from: a start of their own for every step, or a few worlds that are handed out.

A reset costs nothing in most environments and as much as dozens of steps in some. Then one is made per so many steps,
one after the other (vmapped wide, making worlds is dearer still), and every episode that ends takes the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, Shaped

from llmrl.envs.base import step_with_reset
from llmrl.types import Environment, EnvState, Scalar, TimeStep


class PoolStatistics(NamedTuple):
    """What became of a rollout's worlds.

    Attributes:
        worlds_made: fresh worlds of this rollout.
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
        statistics: ``carried -> PoolStatistics``, where there is a pool.
    """

    draws: PyTree
    start: PyTree
    advance: Callable[..., tuple[EnvState, Shaped[Array, "n *obs"], TimeStep, Any]]
    statistics: Callable[[Any], PoolStatistics | None]


def make_resets(env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int) -> Resets:
    """The fresh starts of one rollout."""
    if env.steps_per_reset is None:
        return _own_starts(env, key, num_steps, num_envs)
    return _pooled(env, key, -(-num_steps * num_envs // env.steps_per_reset))


def start_all(env: Environment, key: PRNGKeyArray, num_envs: int) -> tuple[EnvState, Shaped[Array, "n *obs"]]:
    """A fresh episode in every environment."""
    keys = jax.random.split(key, num_envs)
    return jax.vmap(env.reset)(keys) if env.steps_per_reset is None else jax.lax.map(env.reset, keys)


def _own_starts(env: Environment, key: PRNGKeyArray, num_steps: int, num_envs: int) -> Resets:
    def advance(keys, env_state, action, draw, carried):
        step = jax.vmap(step_with_reset, in_axes=(None, 0, 0, 0, 0, 0))
        return *step(env, keys, env_state, action, *draw), carried

    fresh = jax.vmap(jax.vmap(env.reset))(jax.random.split(key, (num_steps, num_envs)))
    return Resets(fresh, (), advance, lambda carried: None)


def _pooled(env: Environment, key: PRNGKeyArray, size: int) -> Resets:
    worlds = jax.lax.map(env.reset, jax.random.split(key, size))

    def advance(keys, env_state, action, draw, taken):
        del draw
        env_state, step = jax.vmap(env.step)(keys, env_state, action)
        done = step.terminated | step.truncated
        given = jax.tree.map(lambda x: x[_turns(done, taken) % size], worlds)
        env_state, obs = jax.tree.map(lambda fresh, reached: _where(done, fresh, reached), given, (env_state, step.obs))
        return env_state, obs, step, taken + jnp.sum(done, dtype=jnp.int32)

    def statistics(taken):
        shared = jnp.maximum(taken - size, 0).astype(jnp.float32)
        return PoolStatistics(jnp.asarray(size, jnp.float32), shared)

    return Resets((), jnp.zeros((), jnp.int32), advance, statistics)


def _turns(done: Bool[Array, " n"], taken: Int[Array, ""]) -> Int[Array, " n"]:
    """Whose turn it is: the first to end takes the next world, the second the one after it; the others' are unused."""
    return taken + jnp.maximum(jnp.cumsum(done, dtype=jnp.int32) - 1, 0)


def _where(condition: Bool[Array, " n"], x: Shaped[Array, "n ..."], y: Shaped[Array, "n ..."]) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
