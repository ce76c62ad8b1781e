"""Credit that cannot be farmed: what each source says of a single action, whatever the size of what it pays."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.ops.moments import running_peak
from llmrl.types import EnvSpec, RewardTransform, Rollout, Scalar, Signal, SourceWeights, Stream

MEMORY = 0.998
"""What a source's mean and its largest size keep per rollout."""


class CreditState(NamedTuple):
    """What has been noted; written only by ``observe``.

    Attributes:
        mean: of each source over the last rollouts, [m].
        size: largest deviation of each source so far, slowly forgotten, [m].
    """

    mean: Float[Array, " m"]
    size: Float[Array, " m"]


def credit_stream(spec: EnvSpec, follow: float | Scalar) -> Stream:
    """A stream that pays sum_m (r_m - mean_m) / size_m, with the discount 0, in the task's units.

    A hint judges a single action. With the discount 0 the stream's advantage is r - V(s): what this action brought
    compared with what the policy usually brings in this state. So a reward that a later action takes back, or that can
    be collected for ever, is worth no more than the action itself. Divided by their deviations, sources of any size and
    with any offset count alike.

    Args:
        spec: the environment; it has at least one source.
        follow: share of this stream's advantage in that of the policy, where the task's is 1. At 0 nothing is paid, so
            that the critic learns as if the stream were not there.
    """
    follow = jnp.asarray(follow, jnp.float32)

    def paid(state: CreditState, rollout: Rollout) -> SourceWeights:
        factor = jnp.where(state.size > 0, 1.0 / jnp.maximum(state.size, 1e-30), 0.0)
        factor = jnp.where(follow != 0, factor, 0.0)
        return SourceWeights(jnp.broadcast_to(factor, rollout.steps.aux.shape), factor)

    def apply(phi, state: CreditState, rollout: Rollout, signal: Signal) -> Signal:
        reward = jnp.sum(paid(state, rollout).weight * (rollout.steps.aux - state.mean), axis=-1)
        return Signal(reward, jnp.zeros_like(signal.discount))

    def observe(phi, state: CreditState, rollout: Rollout, signal: Signal) -> CreditState:
        aux, first = rollout.steps.aux, jnp.all(state.size == 0)
        mean = jnp.mean(aux, axis=(0, 1))
        mean = jnp.where(first, mean, MEMORY * state.mean + (1.0 - MEMORY) * mean)
        return CreditState(mean, running_peak(state.size, jnp.std(aux, axis=(0, 1)), MEMORY))

    transform = RewardTransform(
        init=lambda key: ({}, CreditState(*jnp.zeros((2, len(spec.aux_names))))),
        apply=apply,
        observe=observe,
        report=lambda phi, state, rollout: {},
        weights=lambda phi, state, rollout: paid(state, rollout),
    )
    return Stream(transform, follow, task_units=True)
