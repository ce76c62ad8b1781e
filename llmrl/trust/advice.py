"""Advice in a sparse task: following a source directly, while the task has had too few reward events to judge it."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from llmrl.ops.losses import held_constant
from llmrl.ops.moments import running_peak
from llmrl.trust.evidence import Significance
from llmrl.trust.task_statistics import TaskStatistics, WithTask
from llmrl.types import RewardTransform, Rollout, Scalar, Signal, SourceWeights, Stream

GOOD_BALANCE = 0.5
"""Balance from which on a source counts as good: its advice does not fade."""
VERY_GOOD_SHARE = 0.8
"""Share of ``GOOD_BALANCE`` from which on a source counts as very good, fully at 1."""
FREQUENT_SHARE, SHARE_MEMORY = 0.2, 0.99
"""Share of steps with reward events from which on a source counts as frequent; what the largest share keeps per
rollout."""
KEPT_DISCOUNT = 0.3
"""Smallest factor on the discount where a source that is not frequent has a reward event."""


class AdviceState(NamedTuple):
    """What has been seen so far; written only by ``observe``.

    Attributes:
        sparse: 1 where the task counts as sparse, else 0.
        event_share: share of a rollout's steps on which each source has a reward event, the largest so far, slowly
            forgotten, [m].
    """

    sparse: Scalar
    event_share: Float[Array, " m"]


class Advice(NamedTuple):
    """How far each source is followed, as functions; see ``advice_rule``.

    Attributes:
        observe: ``(state, task, rollout) -> AdviceState``.
        share: ``(state, significance, task) -> f``, before it fades, [m].
        fading: ``(significance, task) -> [m]``: the factor on f, from 0 to 1.
        very_good: ``significance -> [m]``, from 0 to 1: whether hardly anything bad followed a source's reward events.
        num_aux: number of sources, m.
    """

    observe: Callable[[AdviceState, TaskStatistics, Rollout], AdviceState]
    share: Callable[..., Float[Array, " m"]]
    fading: Callable[..., Float[Array, " m"]]
    very_good: Callable[..., Float[Array, " m"]]
    num_aux: int

    def init(self) -> AdviceState:
        """Before the first rollout."""
        return AdviceState(jnp.ones(()), jnp.zeros(self.num_aux))


def advice_rule(
    num_aux: int,
    *,
    largest: float | Scalar,
    patience: float | Scalar,
    decay: float | Scalar,
    rarity: float | Scalar,
    events: float | Scalar,
    fade: float | Scalar,
) -> Advice:
    """f, from 0 to ``largest``, for each source: the largest of three numbers, 0 in a dense task.

    * max(0, 1 - n / ``events``) (1 - ``decay``)^k after n reward events of the task, in the k-th rollout after
      ``patience`` steps. Before the first success nothing can be learned about a source, and without a source there
      may be no success. So sources are followed, but ever less, as one may mislead. The task's first reward events may
      be luck, so each takes only a part of this away.
    * e, the significance of the source's gains, from the task's first reward event on.
    * g n / (n + 1), where g, from 0 to 1, is ``very_good``: e needs many events, and a source after whose events hardly
      anything bad happened need not wait for them.

    A task with reward events on at least ``rarity`` of the steps is dense, counted over the first ``patience`` steps or
    up to ``events`` reward events. It can judge learned weights, so it needs no advice.

    Where the task has a reward event in an episode, it judges what was done there, and a source seldom suggests the
    shortest way. So the policy follows (1 - s)^p f: s is the share of the last episodes with a reward event of the
    task, and p falls from ``fade``, for a source whose events brought as much bad as good, to 0, for one with a balance
    of ``GOOD_BALANCE``. On a sword in Crafter, with what a language model typically suggests, an agent without fading
    makes one in 44 % of the episodes, and an agent with fading in 80 %; with goals that are all right it is the other
    way round.

    Args:
        num_aux: number of sources, m.
        largest: largest f.
        patience: number of environment steps before a source is followed.
        decay: share of f lost per rollout from then on.
        rarity: share of steps with reward events below which a task is sparse.
        events: number of the task's reward events from which on the evidence alone decides; above 0.
        fade: largest p; 0 never fades.
    """

    def observe(state: AdviceState, task: TaskStatistics, rollout: Rollout) -> AdviceState:
        # A source that is followed brings reward events, which would be no sign of a dense task.
        events_before = task.event_count - task.last_event_count
        undecided = (task.steps <= patience) & (events_before < events)
        rare = (task.event_count < rarity * task.steps).astype(jnp.float32)
        share = jnp.mean((rollout.steps.aux != 0).astype(jnp.float32), axis=(0, 1))
        return AdviceState(
            sparse=jnp.where(undecided, rare, state.sparse),
            event_share=running_peak(state.event_share, share, SHARE_MEMORY),
        )

    def known(x: Float[Array, " m"] | None) -> Float[Array, " m"]:
        return jnp.zeros(num_aux) if x is None else held_constant(x)

    def share(state: AdviceState, significance: Significance, task: TaskStatistics) -> Float[Array, " m"]:
        count = task.event_count
        waited = task.rollouts - patience * task.rollouts / jnp.maximum(task.steps, 1.0)  # in rollouts
        after_patience = jnp.where(waited > 0, (1.0 - decay) ** jnp.maximum(waited, 0.0), 0.0)
        by_gains = jnp.where(count > 0, known(significance.advice), 0.0)
        at_once = count / (count + 1.0) * very_good(significance)
        few_events = jnp.maximum(0.0, 1.0 - count / events)
        return largest * state.sparse * reduce(jnp.maximum, [few_events * after_patience, by_gains, at_once])

    def good(significance: Significance) -> Float[Array, " m"]:
        return jnp.minimum(1.0, known(significance.balance) / GOOD_BALANCE)

    def very_good(significance: Significance) -> Float[Array, " m"]:
        return jnp.maximum(0.0, (good(significance) - VERY_GOOD_SHARE) / (1.0 - VERY_GOOD_SHARE))

    def fading(significance: Significance, task: TaskStatistics) -> Float[Array, " m"]:
        without_event = jnp.maximum(0.0, 1.0 - task.event_share)
        return without_event ** (fade * (1.0 - good(significance)))

    return Advice(observe, share, fading, very_good, num_aux)


def advice_stream(rule: Advice, blend: int, source: int = 0, name: str = "") -> Stream:
    """A stream that pays f r_m, credited above all to the steps since the source's last reward event.

    A source's single reward is not dangerous, but the sum of its rewards is: an agent can collect for ever what is
    paid each time. So a frequent source, with reward events on more than a fifth of the steps, has the discount 0 on
    them: an event counts for what led to it, and nothing can be collected. In a grid, an agent that is paid for every
    step towards the goal walks into the goal; an agent that adds the same numbers up hovers before it.

    A source with rare reward events, for what is reached once in an episode, leaves little to collect, and its first
    events are often worth what they make possible: wood the table, the table the sword. There the discount keeps the
    factor ``KEPT_DISCOUNT``. Sums of all events are learned more slowly where a source pays steps on the way only, no
    sums where it pays the goal too; this factor lies between them in both cases. For a very good source the factor is
    larger, up to 1.

    The policy takes additional steps along this stream's advantage, f times as long as those on the task, which stay
    what they are. In one gradient the source, which has more reward events, would leave the task's next to nothing: an
    optimiser divides by the gradient's size, and remembers that size after the source is given up. Before the task's
    first reward event its own steps are noise of full size, and therefore 1 - f times as long. On a 15 x 15 grid 12 of
    30 seeds found the goal with noise of full size, and all of them without.

    Args:
        rule: decides f.
        blend: number of the stream of the blend, whose state this stream goes by.
        source: m.
        name: of the source, for reports.
    """

    def share(state: WithTask) -> Scalar:
        own, task = state
        return (rule.fading(own.significance, task) * rule.share(own.advice, own.significance, task))[source]

    def discount_factor(state: WithTask) -> Scalar:
        kept = jnp.maximum(KEPT_DISCOUNT, rule.very_good(state.own.significance)[source])
        return jnp.where(state.own.advice.event_share[source] > FREQUENT_SHARE, 0.0, kept)

    def apply(phi, state: WithTask, rollout: Rollout, signal: Signal) -> Signal:
        paid = rollout.steps.aux[..., source]
        kept = jnp.where(paid != 0, discount_factor(state), 1.0)
        return Signal(share(state) * paid, kept * signal.discount)

    def weights(phi, state: WithTask, rollout: Rollout) -> SourceWeights:
        alone = jnp.zeros(rule.num_aux).at[source].set(1.0)
        return SourceWeights(jnp.broadcast_to(share(state) * alone, rollout.steps.aux.shape), alone)

    transform = RewardTransform(
        init=lambda key: ({}, ()),
        apply=apply,
        observe=lambda phi, state, rollout, signal: state,
        report=lambda phi, state, rollout: {f"advice_share/{name}": share(state)},
        weights=weights,
        needs_task=True,
    )

    def lengths(phi, state: WithTask) -> tuple[Scalar, Scalar]:
        length = share(state)
        return length, jnp.where(state.task.event_count > 0, 0.0, length)

    return Stream(transform, 1.0, lengths, blend)
