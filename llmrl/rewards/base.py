"""What most reward transforms have in common: nothing learned, nothing noted."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.types import RewardTransform, Rollout, Scalar, Signal


def stateless(apply: Callable[[Signal, Rollout], Signal]) -> RewardTransform:
    """A transform without parameters and without memory."""
    return RewardTransform(
        init=lambda key: ({}, ()),
        apply=lambda signal, phi, state, rollout: apply(signal, rollout),
        observe=lambda state, phi, signal, rollout: state,
        report=lambda phi, state, rollout: {},
    )


def beyond_task(transform: RewardTransform) -> RewardTransform:
    """What a transform pays beyond the task's reward, as a stream of its own.

    The task keeps its own critic head then, so that a transform that pays nothing changes nothing: with
    zero-initialised heads the agent learns exactly as if the stream were not there. For transforms that leave the
    discount alone.
    """

    def apply(signal: Signal, phi, state, rollout: Rollout) -> Signal:
        changed = transform.apply(signal, phi, state, rollout)
        return changed._replace(reward=changed.reward - signal.reward)

    return transform._replace(apply=apply)


SOME = 256
"""Steps that tell what a task usually pays; to sort all of them would take as long as a pass through a network."""


def words(rollout: Rollout) -> Scalar:
    """On how many steps of a rollout the task said anything.

    What it usually pays, the median of steps from all over the rollout, is silence. Where that is not 0, the end of the
    pay is news.
    """
    steps = rollout.steps
    # An odd stride, so that every environment is among them.
    some = steps.reward.reshape(-1)[:: steps.reward.size // SOME | 1]
    usual = jnp.sort(some)[some.size // 2]
    return jnp.sum((steps.reward != usual) | (steps.terminated & (usual != 0))).astype(jnp.float32)


def spoken_to(rollout: Rollout) -> Scalar:
    """Share of a rollout's episodes in which the task spoke, at most 1; 0 where none ended."""
    steps = rollout.steps
    ended = jnp.sum((steps.terminated | steps.truncated).astype(jnp.float32))
    return jnp.where(ended > 0, jnp.minimum(1.0, words(rollout) / jnp.maximum(ended, 1.0)), 0.0)


def speaks(rollout: Rollout) -> Scalar:
    """1 where the task said anything in a rollout, else 0."""
    return (words(rollout) > 0).astype(jnp.float32)


def active_mean(x: Float[Array, "t n m"], aux: Float[Array, "t n m"]) -> Float[Array, " m"]:
    """Mean over the steps on which each source speaks; 0 where it never does."""
    active = (aux != 0).astype(x.dtype)
    return jnp.sum(x * active, axis=(0, 1)) / jnp.maximum(jnp.sum(active, axis=(0, 1)), 1.0)


def frozen(transform: RewardTransform) -> RewardTransform:
    """The same transform, noting nothing any more: what it makes of a signal no longer changes by itself."""
    settled, weights = transform.settled or (lambda state: state), transform.weights
    return transform._replace(
        apply=lambda signal, phi, state, rollout: transform.apply(signal, phi, settled(state), rollout),
        observe=lambda state, phi, signal, rollout: state,
        report=lambda phi, state, rollout: transform.report(phi, settled(state), rollout),
        weights=weights and (lambda phi, state, rollout: weights(phi, settled(state), rollout)),
    )


def task_signal(rollout: Rollout, discount: float | Float[Array, ""]) -> Signal:
    """The task's own signal: its reward, and gamma (1 - terminated); a truncation leaves the discount alone."""
    steps = rollout.steps
    return Signal(steps.reward, jnp.where(steps.terminated, 0.0, discount))
