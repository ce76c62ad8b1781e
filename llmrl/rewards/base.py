"""What most reward transforms have in common: nothing learned, nothing noted."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.types import RewardTransform, Rollout, Signal


def stateless(apply: Callable[[Signal, Rollout], Signal]) -> RewardTransform:
    """A transform without parameters and without memory."""
    return RewardTransform(
        init=lambda key: ({}, ()),
        apply=lambda signal, phi, state, rollout: apply(signal, rollout),
        observe=lambda state, phi, signal, rollout: state,
        report=lambda phi, state, rollout: {},
    )


def frozen(transform: RewardTransform) -> RewardTransform:
    """The same transform, noting nothing any more: what it makes of a signal no longer changes by itself."""
    return transform._replace(observe=lambda state, phi, signal, rollout: state)


def task_signal(rollout: Rollout, discount: float | Float[Array, ""]) -> Signal:
    """The task's own signal: its reward, and gamma (1 - terminated); a truncation leaves the discount alone."""
    steps = rollout.steps
    return Signal(steps.reward, jnp.where(steps.terminated, 0.0, discount))
