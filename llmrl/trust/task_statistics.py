"""How often the task pays anything but its usual reward, counted once for all that ask."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from llmrl.types import Rollout, Scalar

SAMPLED_STEPS = 256
"""Steps that the usual reward is estimated from; sorting all of them would take as long as a pass through a network."""
MEMORY = 0.9
"""What ``TaskStatistics.event_share`` keeps per rollout in which an episode ended."""


class TaskStatistics(NamedTuple):
    """What the task's rewards have shown so far, the last rollout included; the state of stream 0, the bare task.

    A reward event is a step on which the task pays anything but its usual reward (``reward_events``).

    Attributes:
        rollouts: rollouts seen.
        steps: environment steps seen.
        event_count: reward events so far.
        last_event_count: reward events in the last rollout.
        event_share: share of the episodes with a reward event, averaged over the last rollouts.
    """

    rollouts: Scalar
    steps: Scalar
    event_count: Scalar
    last_event_count: Scalar
    event_share: Scalar


class WithTask(NamedTuple):
    """What a transform that needs the task's statistics gets in place of its state.

    Attributes:
        own: the transform's own state.
        task: the task's statistics.
    """

    own: Any
    task: TaskStatistics


def no_task_statistics() -> TaskStatistics:
    """Before the first rollout."""
    nothing = jnp.zeros(())
    return TaskStatistics(nothing, nothing, nothing, nothing, nothing)


def observed(before: TaskStatistics, rollout: Rollout) -> TaskStatistics:
    """The statistics after one more rollout."""
    steps = rollout.steps
    events = reward_events(rollout)
    ended = jnp.any(steps.terminated | steps.truncated)
    share = MEMORY * before.event_share + (1.0 - MEMORY) * rollout_event_share(rollout)
    return TaskStatistics(
        rollouts=before.rollouts + 1.0,
        steps=before.steps + steps.reward.size,
        event_count=before.event_count + events,
        last_event_count=events,
        event_share=jnp.where(ended, share, before.event_share),
    )


def reward_events(rollout: Rollout) -> Scalar:
    """Number of steps of a rollout on which the task pays anything but its usual reward, the median of a sample of the
    steps; where that is not 0, a termination, which ends the pay, is an event too."""
    steps = rollout.steps
    # An odd stride, so that every environment is among them.
    some = steps.reward.reshape(-1)[:: steps.reward.size // SAMPLED_STEPS | 1]
    usual = jnp.sort(some)[some.size // 2]
    return jnp.sum((steps.reward != usual) | (steps.terminated & (usual != 0))).astype(jnp.float32)


def rollout_event_share(rollout: Rollout) -> Scalar:
    """Share of a rollout's episodes with a reward event, at most 1; 0 where no episode ended."""
    steps = rollout.steps
    ended = jnp.sum((steps.terminated | steps.truncated).astype(jnp.float32))
    return jnp.where(ended > 0, jnp.minimum(1.0, reward_events(rollout) / jnp.maximum(ended, 1.0)), 0.0)
