"""Advice for a silent task: the sources' word on the step at hand, followed while the task itself has said nothing."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from llmrl.rewards.base import speaks
from llmrl.types import RewardTransform, Rollout, Scalar, Signal


class AdviceState(NamedTuple):
    """What has been heard so far; written only by ``observe``.

    Attributes:
        informed: 0 while the task has only ever paid one constant, 1 from its first other word on.
        age: rollouts seen.
    """

    informed: Scalar
    age: Scalar


def advice(
    prior: float | Scalar = 1.0,
    patience: float | Scalar = 10.0,
    decay: float | Scalar = 0.02,
    discount: float | Scalar = 0.0,
) -> RewardTransform:
    """r = f sum_m r_m with a discount of its own, f = prior (1 - decay)^(age - patience) while the task is silent,
    else 0.

    In a sparse task nothing can be learned about a source before the first success, and without a source there may
    never be one. What makes following dangerous is not the source's word on a step but the sum of its words: whatever
    pays each time can be collected for ever. With ``discount`` 0 each word counts for the step that it is about and
    nothing can be collected: in a grid, an agent that is paid for every step towards the goal walks into the goal,
    where one that adds the same numbers up hovers before it.

    Exploring alone comes first, for ``patience`` rollouts; a misleading source is followed ever less; and the first
    word of the task ends it.

    Args:
        prior: largest f.
        patience: silent rollouts before the sources are followed.
        decay: share of f lost per rollout from then on.
        discount: how far the sources' words are summed; 0 not at all.
    """

    def following(state: AdviceState) -> Scalar:
        waited = state.age - patience
        fading = prior * (1.0 - decay) ** jnp.maximum(waited, 0.0)
        return jnp.where((waited > 0) & (state.informed == 0), fading, 0.0)

    def apply(signal: Signal, phi, state: AdviceState, rollout: Rollout) -> Signal:
        paid = following(state) * jnp.sum(rollout.steps.aux, axis=-1)
        return Signal(paid, jnp.where(rollout.steps.terminated, 0.0, jnp.full_like(signal.discount, discount)))

    def observe(state: AdviceState, phi, signal: Signal, rollout: Rollout) -> AdviceState:
        return AdviceState(jnp.maximum(state.informed, speaks(rollout)), state.age + 1.0)

    return RewardTransform(
        init=lambda key: ({}, AdviceState(jnp.zeros(()), jnp.zeros(()))),
        apply=apply,
        observe=observe,
        report=lambda phi, state, rollout: {"trust_prior": following(state)},
    )
