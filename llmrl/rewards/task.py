"""The task's own reward, unchanged; stream 0 of every method."""

from __future__ import annotations

from llmrl.trust.task_statistics import no_task_statistics, observed
from llmrl.types import RewardTransform


def task() -> RewardTransform:
    """r_p, as the environment gave it; its state holds the task's statistics, for every stream that needs them."""
    return RewardTransform(
        init=lambda key: ({}, no_task_statistics()),
        apply=lambda phi, state, rollout, signal: signal,
        observe=lambda phi, state, rollout, signal: observed(state, rollout),
        report=lambda phi, state, rollout: {},
    )
