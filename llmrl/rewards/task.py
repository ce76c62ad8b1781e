"""The task's own reward, unchanged; stream 0 of every method."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.trust.task_statistics import no_task_statistics, observed
from llmrl.types import RewardTransform, Rollout, Signal


def task() -> RewardTransform:
    """r_p, as the environment gave it; its state holds the task's statistics, for every stream that needs them."""
    return RewardTransform(
        init=lambda key: ({}, no_task_statistics()),
        apply=lambda phi, state, rollout, signal: signal,
        observe=lambda phi, state, rollout, signal: observed(state, rollout),
        report=lambda phi, state, rollout: {},
    )


def task_signal(rollout: Rollout, discount: float | Float[Array, ""]) -> Signal:
    """The task's own signal: its reward, and gamma (1 - terminated); a truncation leaves the discount alone."""
    steps = rollout.steps
    return Signal(steps.reward, jnp.where(steps.terminated, 0.0, discount))
