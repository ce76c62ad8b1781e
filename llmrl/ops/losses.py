"""Losses of the inner level, as functions of arrays; everything is minimised."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_policy_loss(
    log_prob: Float[Array, " b"],
    old_log_prob: Float[Array, " b"],
    advantage: Float[Array, " b"],
    clip: float | Float[Array, ""],
) -> Float[Array, ""]:
    """PPO's pessimistic surrogate, -E min(rho A, clip(rho, 1 - c, 1 + c) A).

    Args:
        log_prob: of the actions under the policy that is trained, [b].
        old_log_prob: under the policy that acted, [b].
        advantage: A, [b].
        clip: c > 0.

    Reference: Schulman et al. 2017, "Proximal policy optimization algorithms", eq. 7.
    """
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage))


def value_loss(value: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
    """Half the squared error, averaged over the batch and summed over heads."""
    return 0.5 * jnp.sum(jnp.mean(jnp.square(value - target), axis=0))


def approximate_kl(log_prob: Float[Array, " b"], old_log_prob: Float[Array, " b"]) -> Float[Array, ""]:
    """Low-variance estimate of KL(old || new), E[rho - 1 - log rho]; never negative."""
    log_ratio = log_prob - old_log_prob
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio)


def normalized(x: Float[Array, "*b"], least: float | Float[Array, ""] = 0.0, eps: float = 1e-8) -> Float[Array, "*b"]:
    """x shifted to mean 0 and divided by its deviation, or by ``least`` where it deviates less."""
    return (x - jnp.mean(x)) / (jnp.maximum(jnp.std(x), least) + eps)


def held_constant(x: Array) -> Array:
    """x as a number that nobody differentiates; the owner is whoever computed it."""
    return jax.lax.stop_gradient(x)
