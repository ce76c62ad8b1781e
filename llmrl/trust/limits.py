"""Trust that asks for evidence: how far a learned weight may go, decided by what the task itself has shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.ops.moments import running_peak
from llmrl.ops.returns import discounted_sum
from llmrl.trust.task_voice import speaks
from llmrl.types import Rollout, Scalar, Signal


class TrustState(NamedTuple):
    """What has been seen so far; written only by ``observe``.

    Attributes:
        ceiling: largest weight allowed at present, as a share of the bound, [m].
        informed: 0 while the task has only ever paid one constant, 1 once it has said anything else.
        task_spread, source_spread: deviation of the discounted sums in the last rollout, [] and [m].
        task_peak, source_peak: the largest they have been.
        level, best, worst, noise: running mean of the task's reward per step, the most that it has surely been, the
            least that it has been, its variance as an estimate.
        age: rollouts seen.
    """

    ceiling: Float[Array, " m"]
    informed: Scalar
    task_spread: Scalar
    source_spread: Float[Array, " m"]
    task_peak: Scalar
    source_peak: Float[Array, " m"]
    level: Scalar
    best: Scalar
    worst: Scalar
    noise: Scalar
    age: Scalar


class Trust(NamedTuple):
    """Functions of a ``TrustState``: ``init()``, ``observe(state, signal, rollout)``, ``limit(state, weight)``,
    ``scale(state)``, ``report(state)``, and ``settled(state)``, with the largest units instead of the last, those of
    the time when the task had most to say."""

    init: Callable[[], TrustState]
    observe: Callable[[TrustState, Signal, Rollout], TrustState]
    limit: Callable[[TrustState, Float[Array, "t n m"]], Float[Array, "t n m"]]
    scale: Callable[[TrustState], Float[Array, " m"]]
    report: Callable[[TrustState], dict[str, Scalar]]
    settled: Callable[[TrustState], TrustState]


def _start(num_aux: int) -> TrustState:
    zero, infinity = jnp.zeros(()), jnp.asarray(jnp.inf)
    return TrustState(
        ceiling=jnp.ones(num_aux),
        informed=zero,
        task_spread=zero,
        source_spread=jnp.zeros(num_aux),
        task_peak=zero,
        source_peak=jnp.zeros(num_aux),
        level=zero,
        best=-infinity,
        worst=infinity,
        noise=zero,
        age=zero,
    )


def no_trust(num_aux: int) -> Trust:
    """No limits: the learned weight is used as it is."""
    return Trust(
        init=lambda: _start(num_aux),
        observe=lambda state, signal, rollout: state,
        limit=lambda state, weight: weight,
        scale=lambda state: jnp.ones(num_aux),
        report=lambda state: {},
        settled=lambda state: state,
    )


def evidence(
    num_aux: int,
    *,
    units: bool = True,
    ceiling: bool = False,
    ceiling_fall: float | Scalar = 0.3,
    ceiling_rise: float | Scalar = 0.002,
    setback: float | Scalar = 0.05,
    gae_lambda: float | Scalar = 0.95,
) -> Trust:
    """w_effective = ceiling * scale * w.

    Args:
        num_aux: number of sources, m.
        units: scale a source, down only, to the task's own units: it may not spread its discounted sums wider than the
            task does now. An optimiser blows whatever is left up to full size once the task is quiet, and a source that
            has helped to solve it is seldom what a solved task needs, however well its help was borne out.
        ceiling: lower the limit while the task's return is below its best.
        ceiling_fall: share lost per rollout of a setback.
        ceiling_rise: share regained per rollout otherwise.
        setback: how far below its best, as a share of its range, the return must be, by two standard errors of both.
        gae_lambda: shortens the discounted sums that ``units`` compares, as it shortens the advantages.
    """

    def observe(state, signal, rollout):
        state = state._replace(age=state.age + 1.0, informed=jnp.maximum(state.informed, speaks(rollout)))
        if units:
            state = _note_units(state, signal, rollout, gae_lambda)
        if ceiling:
            state = _note_level(state, signal, ceiling_fall, ceiling_rise, setback)
        return state

    def limit(state, weight):
        return state.ceiling * weight

    def scale(state):
        if not units:
            return jnp.ones(num_aux)
        ratio = jnp.minimum(1.0, state.task_spread / jnp.maximum(state.source_spread, 1e-8))
        # Without a signal there are no units to bring a source to.
        return jnp.where(state.informed > 0, ratio, 1.0)

    def report(state):
        return {"trust_ceiling": jnp.mean(state.ceiling)} if ceiling else {}

    def settled(state):
        return state._replace(task_spread=state.task_peak, source_spread=state.source_peak)

    return Trust(lambda: _start(num_aux), observe, limit, scale, report, settled)


def _note_units(state: TrustState, signal: Signal, rollout: Rollout, gae_lambda) -> TrustState:
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


def _note_level(state: TrustState, signal: Signal, fall, rise, setback) -> TrustState:
    paid = jnp.mean(signal.reward, axis=0)
    rate = jnp.maximum(0.2, 1.0 / state.age)
    level = state.level + rate * (jnp.mean(paid) - state.level)
    # Environments are independent of each other, so that their spread says how far their mean can be believed.
    noise = (1.0 - rate) ** 2 * state.noise + rate**2 * jnp.var(paid) / paid.size
    doubt = 2.0 * jnp.sqrt(noise)
    best, worst = jnp.maximum(state.best, level - doubt), jnp.minimum(state.worst, level)
    fell = level + doubt < best - setback * jnp.maximum(best - worst, 0.0)
    moved = jnp.where(fell, state.ceiling * (1.0 - fall), state.ceiling * (1.0 + rise))
    return state._replace(level=level, best=best, worst=worst, noise=noise, ceiling=jnp.clip(moved, 0.0, 1.0))
