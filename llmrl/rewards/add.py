"""Trust: the auxiliary sources added as they are, all of them or one."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.rewards.base import stateless
from llmrl.types import RewardTransform, SourceWeights


def add(coefficient: float | Float[Array, ""] = 1.0) -> RewardTransform:
    """r = r_p + coefficient * sum_m r_m."""

    def trusted(phi, state, rollout):
        weight = jnp.full_like(rollout.steps.aux, coefficient)
        return SourceWeights(weight, jnp.ones(weight.shape[-1]))

    blend = stateless(
        lambda rollout, signal: signal._replace(
            reward=signal.reward + coefficient * jnp.sum(rollout.steps.aux, axis=-1)
        )
    )
    return blend._replace(weights=trusted)


def add_one(source: int) -> RewardTransform:
    """r = r_p + r_m of one source alone.

    Args:
        source: m, its place among the auxiliary sources.
    """
    return stateless(lambda rollout, signal: signal._replace(reward=signal.reward + rollout.steps.aux[..., source]))
