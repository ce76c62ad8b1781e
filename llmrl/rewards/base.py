"""What most reward transforms have in common: nothing learned, nothing noted."""

from __future__ import annotations

from collections.abc import Callable

from llmrl.types import RewardTransform, Rollout, Signal


def stateless(apply: Callable[[Rollout, Signal], Signal]) -> RewardTransform:
    """A transform without parameters and without memory."""
    return RewardTransform(
        init=lambda key: ({}, ()),
        apply=lambda phi, state, rollout, signal: apply(rollout, signal),
        observe=lambda phi, state, rollout, signal: state,
        report=lambda phi, state, rollout: {},
    )


def beyond_task(transform: RewardTransform) -> RewardTransform:
    """What a transform pays beyond the task's reward, as a stream of its own.

    The task keeps its own critic head then, so that a transform that pays nothing changes nothing: with
    zero-initialised heads the agent learns exactly as if the stream were not there. For transforms that leave the
    discount alone.
    """

    def apply(phi, state, rollout: Rollout, signal: Signal) -> Signal:
        changed = transform.apply(phi, state, rollout, signal)
        return changed._replace(reward=changed.reward - signal.reward)

    return transform._replace(apply=apply)


def frozen(transform: RewardTransform) -> RewardTransform:
    """The same transform, noting nothing any more: what it makes of a signal no longer changes by itself."""
    settled, weights = transform.settled or (lambda state: state), transform.weights
    own = (lambda state: state.own) if transform.needs_task else (lambda state: state)
    return transform._replace(
        apply=lambda phi, state, rollout, signal: transform.apply(phi, settled(state), rollout, signal),
        observe=lambda phi, state, rollout, signal: own(state),
        report=lambda phi, state, rollout: transform.report(phi, settled(state), rollout),
        weights=weights and (lambda phi, state, rollout: weights(phi, settled(state), rollout)),
    )
