"""Returns and advantages: reverse-time recursions over [t, n] arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SMALL = 2**14
"""Up to so many numbers, a loop over time is dominated by what it costs to go round once more."""


def discounted_sum(reward: Float[Array, "t *n"], decay: Float[Array, "t *n"]) -> Float[Array, "t *n"]:
    """Sums of future rewards, y_t = r_t + d_t y_{t+1}, with y_T = 0.

    Args:
        reward: r, [t, ...].
        decay: d, what a step lets through of the future; 0 at an episode's last step.

    Returns:
        y, [t, ...].
    """

    if reward.size <= SMALL:
        return _by_doubling(reward, decay)

    def step(later, now):
        reward_t, decay_t = now
        total = reward_t + decay_t * later
        return total, total

    _, sums = jax.lax.scan(step, jnp.zeros_like(reward[0]), (reward, decay), reverse=True)
    return sums


def _by_doubling(reward: Float[Array, "t *n"], decay: Float[Array, "t *n"]) -> Float[Array, "t *n"]:
    """The same in log2 T passes over everything: sums of 1, 2, 4, ... steps, each made of two of the one before."""

    def later(x, steps):
        return jnp.concatenate([x[steps:], jnp.zeros_like(x[:steps])])

    steps = 1
    while steps < reward.shape[0]:
        reward = reward + decay * later(reward, steps)
        decay = decay * later(decay, steps)
        steps *= 2
    return reward


def generalized_advantage(
    reward: Float[Array, "t *n"],
    discount: Float[Array, "t *n"],
    value: Float[Array, "t *n"],
    next_value: Float[Array, "t *n"],
    episode_end: Bool[Array, "t *n"],
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, "t *n"]:
    """Generalised advantage estimates.

        delta_t = r_t + gamma_t V(s'_t) - V(s_t)
        A_t     = delta_t + gamma_t lambda c_t A_{t+1}

    A truncated step keeps its discount, so its value is bootstrapped from the observation before the reset, but cuts
    the sum (c_t = 0): what follows belongs to another episode. Several signals on a last axis are one recursion.

    Args:
        reward: r, [t, ...].
        discount: gamma (1 - terminated), [t, ...].
        value: V of the observation acted on, [t, ...].
        next_value: V of the observation after the step and before any reset, [t, ...].
        episode_end: terminated or truncated, [t, ...].
        gae_lambda: lambda in [0, 1].

    Returns:
        A, [t, ...].

    Reference: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation", eq.
    16.
    """
    delta = reward + discount * next_value - value
    return discounted_sum(delta, jnp.where(episode_end, 0.0, discount * gae_lambda))
