"""Trust that asks for evidence: how far a learned weight may go, decided by what the task itself has shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.ops.returns import discounted_sum
from llmrl.types import Rollout, Scalar, Signal


class TrustState(NamedTuple):
    """What has been seen so far; written only by ``observe``.

    Attributes:
        scale: factor that brings each source to the task's own units, [m], never above 1.
        ceiling: largest weight allowed at present, as a share of the bound, [m].
        informed: 0 while the task has only ever paid one constant, 1 once it has given a signal.
        lowest, highest: range of the task's reward so far.
        task_deviation, source_deviation: running deviations of the task's advantage and of each source's discounted sum,
            [] and [m].
        level, best, worst, noise: running mean of the task's reward per step, its extremes, its running deviation.
        age: rollouts seen.
    """

    scale: Float[Array, " m"]
    ceiling: Float[Array, " m"]
    informed: Scalar
    lowest: Scalar
    highest: Scalar
    task_deviation: Scalar
    source_deviation: Float[Array, " m"]
    level: Scalar
    best: Scalar
    worst: Scalar
    noise: Scalar
    age: Scalar


class Trust(NamedTuple):
    """Functions of a ``TrustState``: ``init()``, ``observe(state, signal, rollout, advantage)``, ``limit(state, weight)``,
    ``report``."""

    init: Callable[[], TrustState]
    observe: Callable[[TrustState, Signal, Rollout, Float[Array, "t n"]], TrustState]
    limit: Callable[[TrustState, Float[Array, "t n m"]], Float[Array, "t n m"]]
    report: Callable[[TrustState], dict[str, Scalar]]


def _start(num_aux: int) -> TrustState:
    zero, infinity = jnp.zeros(()), jnp.asarray(jnp.inf)
    return TrustState(
        scale=jnp.ones(num_aux),
        ceiling=jnp.ones(num_aux),
        informed=zero,
        lowest=infinity,
        highest=-infinity,
        task_deviation=zero,
        source_deviation=jnp.zeros(num_aux),
        level=zero,
        best=-infinity,
        worst=infinity,
        noise=zero,
        age=zero,
    )


def no_trust(num_aux: int) -> Trust:
    """No limits and no prior: the learned weight is used as it is."""
    return Trust(
        init=lambda: _start(num_aux),
        observe=lambda state, signal, rollout, advantage: state,
        limit=lambda state, weight: weight,
        report=lambda state: {},
    )


def evidence(
    num_aux: int,
    *,
    units: bool = True,
    prior: float | Scalar = 1.0,
    prior_decay: float | Scalar = 0.02,
    ceiling: bool = True,
    ceiling_fall: float | Scalar = 0.1,
    ceiling_rise: float | Scalar = 0.002,
    setback: float | Scalar = 0.1,
    gae_lambda: float | Scalar = 0.95,
    memory: float = 0.9,
) -> Trust:
    """w_effective = prior (1 - informed) + ceiling * w.

    Args:
        num_aux: number of sources, m.
        units: scale a source so that its discounted sum deviates no more than the task's advantage.
        prior: weight while the task has given no signal; 0 ignores a source until then.
        prior_decay: the prior fades by this share per rollout even without a signal.
        ceiling: lower the limit while the task's return is below its best.
        ceiling_fall: share lost per rollout of a setback.
        ceiling_rise: share regained per rollout otherwise.
        setback: how far below its best, as a share of its range, the return must be (beside its noise).
        gae_lambda: shortens the discounted sums that ``units`` compares, as it shortens the advantages.
        memory: what running deviations keep per rollout.
    """

    def observe(state, signal, rollout, advantage):
        state = state._replace(age=state.age + 1.0)
        state = _note_signal(state, signal, prior_decay)
        if units:
            state = _note_units(state, signal, rollout, advantage, gae_lambda, memory)
        if ceiling:
            state = _note_level(state, signal, ceiling_fall, ceiling_rise, setback)
        return state

    def limit(state, weight):
        return prior * (1.0 - state.informed) + state.ceiling * weight

    def report(state):
        return {
            "trust_informed": state.informed,
            "trust_ceiling": jnp.mean(state.ceiling),
            "trust_scale": jnp.mean(state.scale),
        }

    return Trust(lambda: _start(num_aux), observe, limit, report)


def _note_signal(state: TrustState, signal: Signal, prior_decay) -> TrustState:
    lowest = jnp.minimum(state.lowest, jnp.min(signal.reward))
    highest = jnp.maximum(state.highest, jnp.max(signal.reward))
    faded = state.informed + prior_decay * (1.0 - state.informed)
    return state._replace(lowest=lowest, highest=highest, informed=jnp.where(highest > lowest, 1.0, faded))


def _note_units(
    state: TrustState, signal: Signal, rollout: Rollout, advantage: Float[Array, "t n"], gae_lambda, memory: float
) -> TrustState:
    steps = rollout.steps
    decay = jnp.where(steps.terminated | steps.truncated, 0.0, signal.discount * gae_lambda)
    sums = discounted_sum(steps.aux, jnp.broadcast_to(decay[..., None], steps.aux.shape))
    rate = jnp.maximum(1.0 - memory, 1.0 / state.age)
    task = state.task_deviation + rate * (jnp.std(advantage) - state.task_deviation)
    source = state.source_deviation + rate * (jnp.std(sums, axis=(0, 1)) - state.source_deviation)
    # Without a signal there are no units to bring a source to.
    informed = state.highest > state.lowest
    scale = jnp.where(informed, jnp.minimum(1.0, task / jnp.maximum(source, 1e-8)), 1.0)
    return state._replace(task_deviation=task, source_deviation=source, scale=scale)


def _note_level(state: TrustState, signal: Signal, fall, rise, setback) -> TrustState:
    now = jnp.mean(signal.reward)
    rate = jnp.maximum(0.2, 1.0 / state.age)
    noise = jnp.where(state.age > 1, state.noise + rate * (jnp.abs(now - state.level) - state.noise), 0.0)
    level = state.level + rate * (now - state.level)
    best, worst = jnp.maximum(state.best, level), jnp.minimum(state.worst, level)
    fell = level < best - setback * (best - worst) - noise
    moved = jnp.where(fell, state.ceiling * (1.0 - fall), state.ceiling * (1.0 + rise))
    return state._replace(level=level, best=best, worst=worst, noise=noise, ceiling=jnp.clip(moved, 0.0, 1.0))
