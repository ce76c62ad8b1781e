"""Trust that asks for evidence: how far a learned weight may go, decided by what the task itself has shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.ops.moments import running_peak
from llmrl.ops.returns import discounted_sum
from llmrl.trust.task_statistics import TaskStatistics
from llmrl.types import Rollout, Scalar, Signal


class LimitsState(NamedTuple):
    """What has been seen so far; written only by ``observe``.

    Attributes:
        ceiling: largest weight allowed at present, as a share of the bound, [m].
        task_spread, source_spread: deviation of the discounted sums in the last rollout, [] and [m].
        task_peak, source_peak: the largest they have been.
        level: running mean of the task's reward per step.
        best, worst: its largest value, counted only where it is surely that large, and its smallest.
        noise: variance of ``level`` as an estimate of the mean.
    """

    ceiling: Float[Array, " m"]
    task_spread: Scalar
    source_spread: Float[Array, " m"]
    task_peak: Scalar
    source_peak: Float[Array, " m"]
    level: Scalar
    best: Scalar
    worst: Scalar
    noise: Scalar


class WeightLimits(NamedTuple):
    """What a learned weight may do at most, as functions of a ``LimitsState``.

    Attributes:
        init: ``() -> LimitsState``.
        observe: ``(state, task, rollout, signal) -> LimitsState``.
        limit: ``(state, weight) -> weight``.
        scale: ``(state, task) -> [m]``: the factor that brings each source to the task's units.
        report: ``state -> {metric: scalar}``.
        settled: ``state -> state``: with the largest units instead of the last, those of the time when the task's sums
            varied most.
    """

    init: Callable[[], LimitsState]
    observe: Callable[[LimitsState, TaskStatistics, Rollout, Signal], LimitsState]
    limit: Callable[[LimitsState, Float[Array, "t n m"]], Float[Array, "t n m"]]
    scale: Callable[[LimitsState, TaskStatistics], Float[Array, " m"]]
    report: Callable[[LimitsState], dict[str, Scalar]]
    settled: Callable[[LimitsState], LimitsState]


def _start(num_aux: int) -> LimitsState:
    zero, infinity = jnp.zeros(()), jnp.asarray(jnp.inf)
    return LimitsState(
        ceiling=jnp.ones(num_aux),
        task_spread=zero,
        source_spread=jnp.zeros(num_aux),
        task_peak=zero,
        source_peak=jnp.zeros(num_aux),
        level=zero,
        best=-infinity,
        worst=infinity,
        noise=zero,
    )


def no_limits(num_aux: int) -> WeightLimits:
    """No limits: the learned weight is used as it is."""
    return WeightLimits(
        init=lambda: _start(num_aux),
        observe=lambda state, task, rollout, signal: state,
        limit=lambda state, weight: weight,
        scale=lambda state, task: jnp.ones(num_aux),
        report=lambda state: {},
        settled=lambda state: state,
    )


def weight_limits(
    num_aux: int,
    *,
    units: bool,
    ceiling: bool,
    ceiling_fall: float | Scalar,
    ceiling_rise: float | Scalar,
    setback: float | Scalar,
    gae_lambda: float | Scalar,
) -> WeightLimits:
    """w_effective = ceiling * scale * w.

    Args:
        num_aux: number of sources, m.
        units: scale a source, down only, to the task's own units: it may not spread its discounted sums wider than the
            task does now. An optimiser brings whatever is left to full size once the task's rewards vary no more, and a
            solved task seldom needs the source that has helped to solve it, however significant its gains were.
        ceiling: lower the limit while the task's return is below its best.
        ceiling_fall: share lost per rollout of a setback.
        ceiling_rise: share regained per rollout otherwise.
        setback: how far below its best, as a share of its range, the return must be, by two standard errors of both.
        gae_lambda: shortens the discounted sums that ``units`` compares, as it shortens the advantages.
    """

    def observe(state, task, rollout, signal):
        if units:
            state = _note_units(state, rollout, signal, gae_lambda)
        if ceiling:
            state = _note_level(state, task, signal, ceiling_fall, ceiling_rise, setback)
        return state

    def limit(state, weight):
        return state.ceiling * weight

    def scale(state, task):
        if not units:
            return jnp.ones(num_aux)
        ratio = jnp.minimum(1.0, state.task_spread / jnp.maximum(state.source_spread, 1e-8))
        # Without a signal there are no units to bring a source to.
        return jnp.where(task.event_count > 0, ratio, 1.0)

    def report(state):
        return {"trust_ceiling": jnp.mean(state.ceiling)} if ceiling else {}

    def settled(state):
        return state._replace(task_spread=state.task_peak, source_spread=state.source_peak)

    return WeightLimits(lambda: _start(num_aux), observe, limit, scale, report, settled)


def _note_units(state: LimitsState, rollout: Rollout, signal: Signal, gae_lambda) -> LimitsState:
    steps = rollout.steps
    decay = jnp.where(steps.terminated | steps.truncated, 0.0, signal.discount * gae_lambda)
    paid = jnp.concatenate([signal.reward[..., None], steps.aux], axis=-1)
    sums = discounted_sum(paid, jnp.broadcast_to(decay[..., None], paid.shape))
    spread = jnp.std(sums, axis=(0, 1))
    task, source = spread[0], spread[1:]
    return state._replace(
        task_spread=task,
        source_spread=source,
        task_peak=running_peak(state.task_peak, task, 1.0),
        source_peak=running_peak(state.source_peak, source, 1.0),
    )


def _note_level(state: LimitsState, task: TaskStatistics, signal: Signal, fall, rise, setback) -> LimitsState:
    paid = jnp.mean(signal.reward, axis=0)
    rate = jnp.maximum(0.2, 1.0 / task.rollouts)
    level = state.level + rate * (jnp.mean(paid) - state.level)
    # Environments are independent of each other, so that their spread says how far their mean can be believed.
    noise = (1.0 - rate) ** 2 * state.noise + rate**2 * jnp.var(paid) / paid.size
    doubt = 2.0 * jnp.sqrt(noise)
    best, worst = jnp.maximum(state.best, level - doubt), jnp.minimum(state.worst, level)
    fell = level + doubt < best - setback * jnp.maximum(best - worst, 0.0)
    moved = jnp.where(fell, state.ceiling * (1.0 - fall), state.ceiling * (1.0 + rise))
    return state._replace(level=level, best=best, worst=worst, noise=noise, ceiling=jnp.clip(moved, 0.0, 1.0))
