"""Any gymnax environment (version 1.0 or later) behind our protocol, without gymnax's own auto-reset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from llmrl.envs.base import action_shape, clip_action, require_positive_int, time_step
from llmrl.envs.gymnax_steps import gymnax_functions, their_promotion
from llmrl.envs.parameters import fitted_like
from llmrl.settings.errors import BadValue, unknown
from llmrl.types import Box, Discrete, Environment, EnvSpec, EnvState, TimeStep


def gymnax_env(id: str, /, horizon: int | None = None, **params: Any) -> Environment:
    """A gymnax environment by its id; rewards, physics and time limit are gymnax's own.

    Args:
        id: as in ``gymnax.make``, for instance "Pendulum-v1".
        horizon: time limit in steps; None keeps gymnax's.
        **params: any field of the environment's parameters, for instance ``gravity=5.0``; a list for an array.

    Returns:
        The environment; see ``from_gymnax`` for its observations and actions.

    Raises:
        ValueError: the id or a parameter does not exist (the nearest ones are named), a parameter is of another type
            than its default, or as ``from_gymnax``.
    """
    import gymnax  # costs seconds, so only those pay who use it

    if id not in gymnax.registered_envs:
        raise unknown("gymnax environment", id, gymnax.registered_envs)
    with their_promotion():
        env, defaults = gymnax.make(id)
    names = [field.name for field in fields(defaults)]
    for name in params:
        if name not in names:
            raise unknown(f"parameter of {id}", name, ["horizon", *names])
    given = {name: fitted_like(f"parameter {name} of {id}", x, getattr(defaults, name)) for name, x in params.items()}
    return from_gymnax(env, defaults.replace(**given), horizon=horizon, name=id)


def from_gymnax(env: Any, params: Any, horizon: int | None = None, name: str | None = None) -> Environment:
    """An environment object of one's own, written for gymnax 1.0, behind our protocol.

    Observations become float32 vectors: images are flattened, integers (a ``Discrete`` space) one-hot. A continuous
    action is a vector in [-1, 1], clipped and then stretched to the bounds of gymnax's box; auxiliary functions see it
    before it is stretched. gymnax does not say what success is, so ``success`` is always false.

    Args:
        env: a ``gymnax.environments.environment.Environment``, wrapped or not; what the outermost wrapper does counts.
        params: its parameters.
        horizon: time limit in steps; None takes ``params.max_steps_in_episode``.
        name: what to call it; None takes ``env.name``.

    Returns:
        The environment.

    Raises:
        ValueError: the horizon is no positive integer, a space is of a kind we cannot serve, or as
            ``gymnax_functions``.
    """
    if horizon is not None:
        require_positive_int("horizon", horizon)
        params = params.replace(max_steps_in_episode=horizon)
    label = str(env.name) if name is None else name
    with their_promotion():
        actions, observations = env.action_space(params), env.observation_space(params)
    action_space, to_native = _action_space(label, actions)
    to_vector = _observation_encoder(observations)
    native = jax.eval_shape(to_native, action_shape(action_space))
    raw_reset, raw_step = gymnax_functions(env, params, native, label)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, Float[Array, " obs"]]:
        state, obs = raw_reset(key)
        return state, to_vector(obs)

    def step(key: PRNGKeyArray, state: EnvState, action: Shaped[Array, "*a"]) -> tuple[EnvState, TimeStep]:
        next_state, obs, reward, terminated, truncated = raw_step(key, state, to_native(action))
        return next_state, time_step(to_vector(obs), reward, terminated, truncated)

    obs_shape = jax.eval_shape(reset, jax.random.key(0))[1].shape
    spec = EnvSpec(
        name=label,
        obs_shape=obs_shape,
        action=action_space,
        horizon=int(params.max_steps_in_episode),
        obs_scale=_observation_scale(label, observations, obs_shape),
    )
    return Environment(spec, reset, step)


def _action_space(name: str, space: Any) -> tuple[Discrete | Box, Callable[[Array], Array]]:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: action.astype(space.dtype)
    if not isinstance(space, spaces.Box):
        raise BadValue(f"{name}: action space {space!r} is neither Discrete nor Box")
    low = np.broadcast_to(np.asarray(space.low, np.float32), space.shape)
    high = np.broadcast_to(np.asarray(space.high, np.float32), space.shape)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise BadValue(f"{name}: action space {space!r} has no finite bounds to stretch [-1, 1] to")
    box = Box(prod(space.shape))

    def stretch(action: Array) -> Array:
        share = (clip_action(box, action).reshape(space.shape) + 1.0) / 2.0
        # Not low + share (high - low): that one misses the upper bound by a rounding error.
        return jnp.asarray(low) * (1.0 - share) + jnp.asarray(high) * share

    return box, stretch


def _observation_encoder(space: Any) -> Callable[[Any], Array]:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return lambda obs: jax.nn.one_hot(jnp.asarray(obs), space.n, dtype=jnp.float32)
    return lambda obs: jnp.asarray(obs, jnp.float32).reshape(-1)


def _observation_scale(name: str, space: Any, obs_shape: tuple[int, ...]) -> tuple[float, ...] | float:
    """The larger bound of each component where the box has a meaningful one, else 1."""
    from gymnax.environments import spaces

    if not isinstance(space, spaces.Box):
        return 1.0
    bound = np.maximum(np.abs(np.asarray(space.low, np.float64)), np.abs(np.asarray(space.high, np.float64)))
    # "No bound" is written as the largest float by some environments and as infinity by others.
    bound = np.where((bound > 0.0) & (bound < 1e6), bound, 1.0)
    if prod(space.shape) != prod(obs_shape):
        raise BadValue(f"{name}: reset gives {prod(obs_shape)} numbers; expected as many as {space!r} has")
    scale = np.broadcast_to(bound, space.shape).reshape(obs_shape)
    return float(scale[0]) if (scale == scale[0]).all() else tuple(scale.tolist())
