"""The learned reward on one rollout: what is noted of it, the outer step, and the advantages that come out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.learner.influence import Influence, influence, influence_metrics
from llmrl.learner.meta import Meta
from llmrl.learner.ppo import Params
from llmrl.learner.problem import InnerProblem
from llmrl.learner.streams import (
    AdviceSteps,
    Values,
    advice_steps,
    are_scaled,
    blended,
    correction_share,
    deviations,
    given,
    scaling,
    signals,
    stream_advantages,
    stream_states,
    value_rollout,
)
from llmrl.ops.moments import running_peak
from llmrl.rewards.task import task_signal
from llmrl.types import Rollout, Scalar, Signal, Stream


class RewardState(NamedTuple):
    """What a learned reward keeps between rollouts.

    Attributes:
        phis: parameters of the streams' transforms.
        transform_states: what the transforms have noted.
        meta_state: of the outer level; empty where there is none.
        advantage_peaks: largest deviations so far of the blended advantage and of advice, slowly forgotten, [2]; where
            a stream is scaled to the task, then those of all streams, [2 + k].
    """

    phis: tuple[PyTree, ...]
    transform_states: tuple[PyTree, ...]
    meta_state: PyTree
    advantage_peaks: Array


class Credit(NamedTuple):
    """What a rollout's actions are worth under the learned reward.

    Attributes:
        signals: of each stream, k of them.
        values: the critics' answers.
        advantages: of each stream, [t, n, k].
        advantage: of the inner objective, [t, n].
        advice: the additional steps on advice; None where no stream is advice.
        least_deviations: what ``advantage`` and ``advice.advantage`` are to be divided by at least, [2].
    """

    signals: Sequence[Signal]
    values: Values
    advantages: Float[Array, "t n k"]
    advantage: Float[Array, "t n"]
    advice: AdviceSteps | None
    least_deviations: Float[Array, " 2"]


def learn_reward(
    inner: InnerProblem,
    meta: Meta | None,
    reward: RewardState,
    params: Params,
    rollout: Rollout,
    key: PRNGKeyArray,
    index: Array,
    last_kl: Scalar,
    floor: float | Scalar,
    decay: float | Scalar,
) -> tuple[Credit, RewardState, dict[str, Scalar]]:
    """Note a rollout, move phi by an outer step, and value the rollout under the reward that results.

    Args:
        inner: streams, policy and critic.
        meta: the outer level; None where nothing is learned about the reward.
        reward: what is kept, before.
        params: the actor and the critic that have met the rollout.
        rollout: complete, every auxiliary value included.
        key: of the outer step.
        index: number of the iteration, from 0.
        last_kl: how far the last inner update moved the policy.
        floor: an advantage is divided by at least this share of its largest deviation so far.
        decay: what that largest deviation keeps per rollout.

    Returns:
        The rollout's worth, what is kept, and the outer step's metrics.
    """
    states = noted_of(inner, reward.phis, reward.transform_states, rollout)
    phis, meta_state, metrics = reward.phis, reward.meta_state, {}
    least_deviation = floor * decay * reward.advantage_peaks[0]
    if meta is not None:
        phis, meta_state, states, metrics = meta.update(
            phis, meta_state, states, params, rollout, key, index, last_kl, least_deviation
        )

    all_signals, values, advantages, advice = _valued(inner, phis, states, params, rollout)
    peaks, factors = reward.advantage_peaks, None
    if are_scaled(inner.streams):
        now = deviations(advantages, rollout)
        peaks = peaks.at[2:].set(running_peak(peaks[2:], now, decay))
        factors = scaling(inner.streams, phis, states, rollout, jnp.maximum(now, floor * peaks[2:]))
    advantage = blended(advantages, inner.streams, factors)
    spreads = [deviations(advantage, rollout), jnp.zeros(()) if advice is None else jnp.std(advice.advantage)]
    peaks = peaks.at[:2].set(running_peak(peaks[:2], jnp.stack(spreads), decay))
    credit = Credit(all_signals, values, advantages, advantage, advice, floor * peaks[:2])
    return credit, RewardState(phis, states, meta_state, peaks), metrics


def no_peaks(streams: Sequence[Stream]) -> Float[Array, " peaks"]:
    """The largest deviations before the first rollout."""
    return jnp.zeros(2 + (len(streams) if are_scaled(streams) else 0))


def noted_of(inner: InnerProblem, phis, states, rollout: Rollout) -> tuple[PyTree, ...]:
    """What the transforms have noted once they have seen a rollout."""
    bare = task_signal(rollout, inner.discount)
    task = inner.streams[0].transform.observe(phis[0], states[0], rollout, bare)

    def noted(stream: Stream, phi: PyTree, own: PyTree) -> PyTree:
        if stream.of is not None:
            return own
        transform = stream.transform
        return transform.observe(phi, given(transform, own, task), rollout, bare)

    return task, *(noted(*of) for of in list(zip(inner.streams, phis, states, strict=True))[1:])


def _valued(inner: InnerProblem, phis, states, params: Params, rollout: Rollout):
    """Signals, values and advantages of every stream, and the steps on advice."""
    values = value_rollout(inner.critic, params.critic, rollout)
    all_signals = signals(inner.streams, phis, states, rollout, inner.discount, values)
    advantages = stream_advantages(all_signals, values, rollout, inner.gae_lambda)
    return all_signals, values, advantages, advice_steps(advantages, inner.streams, phis, states)


def influence_on(inner: InnerProblem, phis, states, params: Params, rollout: Rollout) -> Influence | None:
    """How far each source would move the policy if it were updated on a rollout that the states have noted; None where
    no source has weights."""
    all_signals, _, advantages, advice = _valued(inner, phis, states, params, rollout)
    return influence(inner.streams, phis, states, rollout, all_signals, advantages, advice)


def reported(
    streams: Sequence[Stream], reward: RewardState, credit: Credit, rollout: Rollout, aux_names: Sequence[str]
) -> dict[str, Scalar]:
    """What every stream's transform has to say of a rollout, and how far each source moves the policy."""
    metrics: dict[str, Scalar] = {}
    for stream, phi, noted in stream_states(streams, reward.phis, reward.transform_states):
        metrics = metrics | stream.transform.report(phi, noted, rollout)
    metrics |= correction_share(streams, reward.phis, reward.transform_states, rollout, credit.signals)
    moved = influence(
        streams, reward.phis, reward.transform_states, rollout, credit.signals, credit.advantages, credit.advice
    )
    return metrics if moved is None else metrics | influence_metrics(moved, rollout, aux_names)
