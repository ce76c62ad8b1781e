"""Balancing a pole on a cart: gymnax's physics, a sparse task reward, and hints of every quality.

Reference: Hu et al. (2020), "Learning to Utilize Shaping Rewards", for the cap of 200 steps, the sparse reward, and the
beneficial, harmful and random shaping rewards. We also give -1 where the cart leaves the track; one port gives 0 there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from llmrl.envs.base import AuxFunction, action_shape, clip_action, key_of_seed, require_positive_int, time_step
from llmrl.envs.gymnax_steps import gymnax_functions
from llmrl.envs.qualities import Help, gain, sources_of
from llmrl.settings.errors import BadValue, unknown
from llmrl.types import Box, Discrete, Environment, EnvSpec, EnvState, TimeStep

OBS_SCALE = (2.4, 2.0, 0.21, 2.0)
OBS_NAMES = ("cart position", "cart velocity", "pole angle", "pole angular velocity")
SECONDS_PER_STEP = 0.02  # gymnax's tau

REWARDS: dict[str, Callable[[Bool[Array, ""]], Float[Array, ""]]] = {
    "sparse": lambda terminated: -terminated.astype(jnp.float32),
    "dense": lambda terminated: jnp.ones((), jnp.float32),
}


# --- environments ---------------------------------------------------------------------------------------------------


def cartpole(horizon: int = 200, reward: str = "sparse") -> Environment:
    """CartPole with two actions, 0 pushes left and 1 pushes right.

    Args:
        horizon: time limit in steps; the pole still standing then is a success.
        reward: "sparse" gives -1 when the pole falls or the cart leaves the track and 0 otherwise, "dense" gives +1 per
            step.

    Returns:
        The environment; its state is gymnax's: ``x``, ``x_dot``, ``theta``, ``theta_dot`` (metres, radians), ``time``.

    Raises:
        ValueError: the horizon is no positive integer, or the reward does not exist.
    """
    spec = EnvSpec("cartpole", (4,), Discrete(2), horizon, obs_scale=OBS_SCALE, obs_names=OBS_NAMES)
    return _cartpole(spec, lambda action: action, reward, force=10.0)


def cartpole_continuous(horizon: int = 200, reward: str = "sparse", force: float = 10.0) -> Environment:
    """CartPole with a continuous push: the action in [-1, 1], times the largest force.

    Args:
        horizon: as ``cartpole``.
        reward: as ``cartpole``.
        force: the largest force, in newtons (10 in the classic task, 15 in one port of BiPaRS).

    Returns:
        The environment; actions have shape [1] and are clipped.

    Raises:
        ValueError: as ``cartpole``, or the force is not positive.
    """
    if not force > 0.0:
        raise BadValue(f"force must be positive, got {force!r}")
    spec = EnvSpec("cartpole_continuous", (4,), Box(1), horizon, obs_scale=OBS_SCALE, obs_names=OBS_NAMES)
    # gymnax's force is force_mag (2 a - 1) for an action a of 0 or 1, and it does not mind the numbers between.
    return _cartpole(spec, lambda action: (clip_action(spec.action, action)[0] + 1.0) / 2.0, reward, force)


def _cartpole(spec: EnvSpec, to_native: Callable[[Array], Array], reward: str, force: float) -> Environment:
    from gymnax.environments.classic_control.cartpole import CartPole

    require_positive_int("horizon", spec.horizon)
    if reward not in REWARDS:
        raise unknown("reward", reward, REWARDS)
    physics = CartPole()
    params = replace(physics.default_params, force_mag=force, max_steps_in_episode=spec.horizon)
    native = jax.eval_shape(to_native, action_shape(spec.action))
    raw_reset, raw_step = gymnax_functions(physics, params, native)

    def reset(key: PRNGKeyArray) -> tuple[EnvState, Float[Array, "4"]]:
        state, obs = raw_reset(key)
        return state, obs.astype(jnp.float32)

    def step(key: PRNGKeyArray, state: EnvState, action: Shaped[Array, "*a"]) -> tuple[EnvState, TimeStep]:
        next_state, obs, _, terminated, truncated = raw_step(key, state, to_native(action))
        return next_state, time_step(obs, REWARDS[reward](terminated), terminated, truncated, truncated & ~terminated)

    return Environment(spec, reset, step)


# --- auxiliary sources ----------------------------------------------------------------------------------------------


def beneficial(magnitude: float = 0.1) -> AuxFunction:
    """A good hint: +magnitude for pushing to the side the pole leans to, else 0.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(_follows_pole(state, action), magnitude, 0.0)


def harmful(magnitude: float = 0.1) -> AuxFunction:
    """Advice to let the pole fall: -magnitude when its angle gets smaller on this step, else 0.

    Args:
        magnitude: the punishment's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(
        jnp.abs(next_state.theta) < jnp.abs(state.theta), -magnitude, 0.0
    )


def half_right(magnitude: float = 0.1) -> AuxFunction:
    """A hint that depends on the place: ``beneficial`` on the right half of the track, its negation on the left.

    Args:
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(
        _follows_pole(state, action), jnp.where(state.x >= 0.0, magnitude, -magnitude), 0.0
    )


def pd_good(proportional: float = 0.1, derivative: float = 0.1) -> AuxFunction:
    """Praise for acting as a controller would that balances the pole: +1 where the push agrees, else 0.

    The controller pushes to the side of proportional * angle + derivative * the angle's change per step, which is taken
    from the angular velocity. With a proportional gain of 0.1 a derivative one of 0.05 holds the pole for about 80
    steps, one from 0.1 to 0.5 for 500 and more.

    Args:
        proportional: gain on the angle.
        derivative: gain on the angle's change in 0.02 seconds.

    Returns:
        A function of (state, action, next_state) that returns [].

    Reference: Gupta et al. (2023), "Behavior Alignment via Reward Function Optimization", their CartPole; gains and
    values are those of its code, which takes the change since the step before.
    """
    return _controller(1.0, 0.0, proportional, derivative)


def pd_best(proportional: float = 0.1, derivative: float = 0.5) -> AuxFunction:
    """As ``pd_good``, better and louder: +5 where the push agrees with the controller, else -1."""
    return _controller(5.0, -1.0, proportional, derivative)


def pd_bad(proportional: float = 0.1, derivative: float = 0.5) -> AuxFunction:
    """The opposite of good advice: -5 where the push agrees with the controller of ``pd_best``, else +1."""
    return _controller(-5.0, 1.0, proportional, derivative)


def noise() -> AuxFunction:
    """Nothing at all: a number drawn anew at every step, uniformly from [-1, 1].

    Returns:
        A function of (state, action, next_state, key) that returns [].
    """
    return lambda state, action, next_state, key: jax.random.uniform(key, minval=-1.0, maxval=1.0)


def random(seed: int = 0, frequency: float = 3.0) -> AuxFunction:
    """A fixed random function of state and action that means nothing, in [-1, 1].

    f(s, a) = sin(frequency <w_a, s / scale>), w normal and drawn once; for a continuous action
    sin(frequency <w, (s / scale, a)>).

    Args:
        seed: which function.
        frequency: how fast it varies.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    discrete_key, continuous_key = jax.random.split(key_of_seed(seed))
    weights_per_action = jax.random.normal(discrete_key, (2, 4), jnp.float32)
    joint_weights = jax.random.normal(continuous_key, (5,), jnp.float32)

    def noise(state: EnvState, action: Shaped[Array, "*a"], next_state: EnvState) -> Float[Array, ""]:
        scaled = jnp.stack([state.x, state.x_dot, state.theta, state.theta_dot]) / jnp.asarray(OBS_SCALE, jnp.float32)
        if _is_discrete(action):
            return jnp.sin(frequency * jnp.sum(weights_per_action[action] * scaled))
        return jnp.sin(frequency * jnp.sum(joint_weights * jnp.concatenate([scaled, action])))

    return noise


def rare(*, horizon: int, magnitude: float = 0.5) -> AuxFunction:
    """Half of the time limit, once per episode: +magnitude where the pole has stood so long.

    Args:
        horizon: time limit in steps.
        magnitude: the reward's size.

    Returns:
        A function of (state, action, next_state) that returns [].
    """
    return lambda state, action, next_state: jnp.where(next_state.time == (horizon + 1) // 2, magnitude, 0.0)


AUX_SOURCES: dict[str, Callable[..., AuxFunction]] = {
    **sources_of(
        Help(
            progress=gain(lambda state: -jnp.abs(state.theta + 0.2 * state.theta_dot)),  # the angle in 0.2 seconds
            first_half=lambda state: state.x >= 0.0,
            cell=lambda state: (2.0 * state.x, 20.0 * state.theta, 2.0 * state.theta_dot),
            fair=1.0,
            useless=0.5,
        )
    ),
    "rare": rare,
    "harmful": harmful,
    "beneficial": beneficial,
    "random": random,
    "half_right": half_right,
    "pd_good": pd_good,
    "pd_best": pd_best,
    "pd_bad": pd_bad,
    "noise": noise,
}


def _is_discrete(action: Shaped[Array, "*a"]) -> bool:
    return jnp.issubdtype(action.dtype, jnp.integer)


def _push(action: Shaped[Array, "*a"]) -> Float[Array, ""]:
    return (2 * action - 1).astype(jnp.float32) if _is_discrete(action) else action[0]


def _follows_pole(state: EnvState, action: Shaped[Array, "*a"]) -> Bool[Array, ""]:
    # Signs, not the product itself: that one underflows to 0 for a tiny angle and a tiny push.
    return jnp.sign(_push(action)) * jnp.sign(state.theta) > 0.0


def _controller(agreed: float, otherwise: float, proportional: float, derivative: float) -> AuxFunction:
    def judge(state: EnvState, action: Shaped[Array, "*a"], next_state: EnvState) -> Float[Array, ""]:
        wanted = proportional * state.theta + derivative * SECONDS_PER_STEP * state.theta_dot
        agrees = jnp.sign(_push(action)) * jnp.sign(wanted) > 0.0
        return jnp.where(agrees, agreed, otherwise)

    return judge
