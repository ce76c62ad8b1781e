"""Losses of the inner level, as functions of arrays; everything is minimised."""

from __future__ import annotations

from functools import partial
from typing import cast

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


def with_clipped_cotangent(x: Float[Array, "*b m"], limit: float) -> Float[Array, "*b m"]:
    """x, through which no element's derivative comes back much larger than ``limit`` root mean squares of all.

    The clip is soft and leaves one of 1 as it is: a derivative d, in root mean squares of those that are not 0, for
    each m by itself, becomes d sqrt((1 + limit^2) / (d^2 + limit^2)). For limit to infinity that is d, and for limit to
    0 its sign. Only in reverse mode: it has no jvp.

    Args:
        x: any array.
        limit: above 0.

    Reference: per-example gradients are clipped in Abadi et al. 2016, there for privacy.
    """
    return cast(Array, _clipped(x, limit))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clipped(x, limit):
    return x


def _clipped_back(limit, _, cotangent):
    every = tuple(range(cotangent.ndim - 1))
    count = jnp.maximum(jnp.sum((cotangent != 0).astype(cotangent.dtype), axis=every), 1.0)
    square = jnp.maximum(jnp.sum(jnp.square(cotangent), axis=every) / count, 1e-30)
    return (cotangent * jnp.sqrt((1.0 + limit**2) / (jnp.square(cotangent) / square + limit**2)),)


_clipped.defvjp(lambda x, limit: (x, None), _clipped_back)


def with_cotangent_beside(x: Float[Array, "*b m"], along: Float[Array, "*b m"], share: float) -> Float[Array, "*b m"]:
    """x, through which a derivative comes back less ``share`` of its component along a direction, for each m by itself.

    Args:
        x: any array.
        along: the direction, a constant to gradients; where it is 0 nothing is taken away.
        share: from 0, all comes back, to 1, only what is at right angles to ``along``.
    """
    every = tuple(range(x.ndim - 1))
    along = held_constant(along)
    unit = along / jnp.maximum(jnp.sum(jnp.square(along), axis=every), 1e-12)
    # As large as 0, and the transpose of its derivative is the projection that is wanted.
    return x - share * along * jnp.sum(unit * (x - held_constant(x)), axis=every)


def held_constant(x: Array) -> Array:
    """x as a constant: the caller's loss does not differentiate it. The code that computed x owns it."""
    return jax.lax.stop_gradient(x)
