"""How often the task pays anything but its usual reward."""

from __future__ import annotations

import jax.numpy as jnp

from llmrl.types import Rollout, Scalar

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
