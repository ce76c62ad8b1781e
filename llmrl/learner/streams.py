"""K reward streams to K advantages: every stream has its own signal and its own critic head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.nets import Critic
from llmrl.ops.losses import held_constant
from llmrl.ops.returns import generalized_advantage
from llmrl.rewards.task import task_signal
from llmrl.trust.task_statistics import WithTask
from llmrl.types import HeadValues, RewardTransform, Rollout, Scalar, Signal, Stream


class Values(NamedTuple):
    """Critic heads on a rollout, held constant.

    Attributes:
        now: of the observations acted on, [t, n, k].
        next: of the observations after the step, before any reset, [t, n, k].
    """

    now: Float[Array, "t n k"]
    next: Float[Array, "t n k"]


def value_rollout(critic: Critic, params: PyTree, rollout: Rollout) -> Values:
    """Evaluate all heads on a rollout."""
    steps = rollout.steps
    return Values(held_constant(critic.value(params, steps.obs)), held_constant(critic.value(params, steps.next_obs)))


def signals(
    streams: Sequence[Stream],
    phis: Sequence[PyTree],
    states: Sequence[PyTree],
    rollout: Rollout,
    discount: float | Scalar,
    values: Values | None = None,
) -> list[Signal]:
    """What each stream makes of the task's signal.

    Args:
        streams: the reward streams.
        phis, states: the parameters and memories of their transforms.
        rollout: the experience.
        discount: gamma of the task.
        values: of the critic, for transforms that correct their signal by it; None leaves signals uncorrected.
    """
    bare, found = task_signal(rollout, discount), []
    for head, (stream, phi, state) in enumerate(stream_states(streams, phis, states)):
        signal, corrected = stream.transform.apply(phi, state, rollout, bare), stream.transform.corrected
        if corrected is not None and values is not None:
            signal = corrected(phi, state, signal, bare, head_values(values, head))
        found.append(signal)
    return found


def head_values(values: Values, head: int) -> HeadValues:
    """The task's head and another one."""
    return HeadValues(values.now[..., 0], values.next[..., 0], values.now[..., head], values.next[..., head])


CORRECTION_SHARE = "correction_share"
"""The metric of ``correction_share``."""


def correction_share(
    streams: Sequence[Stream],
    phis: Sequence[PyTree],
    states: Sequence[PyTree],
    rollout: Rollout,
    all_signals: Sequence[Signal],
) -> dict[str, Scalar]:
    """The metric: the share of the steps whose reward the critics have changed; empty where none may.

    Args:
        streams: the reward streams.
        phis, states: the parameters and memories of their transforms.
        rollout: the experience.
        all_signals: their signals, corrected.
    """
    changed = [
        jnp.mean(stream.transform.apply(phi, state, rollout, all_signals[0]).reward != all_signals[head].reward)
        for head, (stream, phi, state) in enumerate(stream_states(streams, phis, states))
        if stream.transform.corrected is not None
    ]
    return {CORRECTION_SHARE: reduce(add, changed) / len(changed)} if changed else {}


def stream_states(
    streams: Sequence[Stream], phis: Sequence[PyTree], states: Sequence[PyTree]
) -> Iterator[tuple[Stream, PyTree, PyTree]]:
    """Every stream with its phi and the state that it goes by, as its transform takes it."""
    for i, stream in enumerate(streams):
        own = i if stream.of is None else stream.of
        yield stream, phis[i], given(stream.transform, states[own], states[0])


def given(transform: RewardTransform, own: PyTree, task: PyTree) -> PyTree:
    """A state as the transform takes it: with the task's statistics, where it needs them."""
    return WithTask(own, task) if transform.needs_task else own


def stream_advantage(signal: Signal, values: Values, head: int, rollout: Rollout, gae_lambda) -> Float[Array, "t n"]:
    """Generalised advantage of one stream, by its own head; see ``stream_advantages``."""
    chosen = Values(values.now[..., head : head + 1], values.next[..., head : head + 1])
    return stream_advantages([signal], chosen, rollout, gae_lambda)[..., 0]


def stream_advantages(
    all_signals: Sequence[Signal], values: Values, rollout: Rollout, gae_lambda
) -> Float[Array, "t n k"]:
    """Generalised advantages of all streams, each by its own head.

    A signal that a termination does not end goes on with the fresh episode, whose first state is the next one acted in.
    After a rollout's last step that state is not known; the terminal observation stands in for it.
    """
    # Side by side: a recursion over time costs its number of steps, hardly what it carries.
    reward = jnp.stack([signal.reward for signal in all_signals], axis=-1)
    discount = jnp.stack([signal.discount for signal in all_signals], axis=-1)
    steps = rollout.steps
    goes_on = steps.terminated[..., None] & (discount != 0)
    following = jnp.concatenate([values.now[1:], values.next[-1:]])
    advantages = generalized_advantage(
        reward,
        discount,
        values.now,
        jnp.where(goes_on, following, values.next),
        (steps.terminated | steps.truncated)[..., None] & ~goes_on,
        gae_lambda,
    )
    # Arms change where an episode ends, so what another one did never enters a return.
    return advantages if rollout.arm is None else jnp.where(rollout.arm[..., None] == 0, advantages, 0.0)


def deviations(advantages: Float[Array, "t n *k"], rollout: Rollout) -> Float[Array, " *k"]:
    """Deviation of each stream's advantage on the steps of the policy that learns."""
    spread = jnp.std(advantages, axis=(0, 1))
    if rollout.arm is None:
        return spread
    # Elsewhere they are 0, which leaves their squares' share.
    return spread / jnp.sqrt(jnp.maximum(jnp.mean((rollout.arm == 0).astype(jnp.float32)), 1e-6))


def blended(
    advantages: Float[Array, "t n k"], streams: Sequence[Stream], factors: Float[Array, " k"] | None = None
) -> Float[Array, "t n"]:
    """The advantage of the inner objective: the weighted sum of the streams that are part of it.

    Args:
        advantages: of all streams.
        streams: the streams; stream 0 is the bare task.
        factors: of each stream, beside its weight; None where no stream is scaled.
    """
    scaled = advantages if factors is None else factors * advantages
    parts = [stream.weight * scaled[..., i] for i, stream in enumerate(streams) if stream.advice is None]
    return reduce(add, parts)


def are_scaled(streams: Sequence[Stream]) -> bool:
    """Whether any stream's advantage is scaled to the task's."""
    return any(stream.size is not None for stream in streams)


def scaling(
    streams: Sequence[Stream],
    phis: Sequence[PyTree],
    states: Sequence[PyTree],
    rollout: Rollout,
    unit: Float[Array, " k"],
) -> Float[Array, " k"]:
    """Factors that scale each stream's advantage to the size that it asks for, constant to gradients.

    Args:
        streams: the streams; stream 0 is the bare task.
        phis, states: of their transforms.
        rollout: the experience.
        unit: deviation of each stream's advantage.
    """
    # A task that has paid nothing yet has no unit; any will do then, as nothing else is in the sum.
    task = jnp.where(unit[0] > 0, unit[0], 1.0)

    def factor(i: int, stream: Stream, phi: PyTree, state: PyTree) -> Scalar:
        if stream.size is None:
            return jnp.ones(())
        size = stream.size(phi, state, rollout) * task
        return jnp.where(unit[i] > 0, size / jnp.maximum(unit[i], 1e-12), 0.0)

    factors = [factor(i, *of) for i, of in enumerate(stream_states(streams, phis, states))]
    return held_constant(jnp.stack(factors))


class AdviceSteps(NamedTuple):
    """What the policy follows by additional steps.

    Attributes:
        advantage: as if the sources were followed in full, [t, n].
        share: length of those steps, from 0 to 1.
        left: length of the steps on the inner objective meanwhile, from 0 to 1.
    """

    advantage: Float[Array, "t n"]
    share: Scalar
    left: Scalar


def advice_steps(
    advantages: Float[Array, "t n k"], streams: Sequence[Stream], phis: Sequence[PyTree], states: Sequence[PyTree]
) -> AdviceSteps | None:
    """The streams of advice as one; None where there are none.

    Of several, the one with the largest share sets the length. A stream with share 0 counts for nothing: what is left
    of its advantage is what its critic, which is late, still expects.
    """
    chosen = [(i, *of) for i, of in enumerate(stream_states(streams, phis, states)) if of[0].advice is not None]
    if not chosen:
        return None
    shares, taken = zip(*(cast(Callable, stream.advice)(phi, state) for _, stream, phi, state in chosen), strict=True)
    share = reduce(jnp.maximum, shares)
    weighted = zip(chosen, shares, strict=True)
    parts = [jnp.where(x > 0, stream.weight, 0.0) * advantages[..., i] for (i, stream, _, _), x in weighted]
    return AdviceSteps(reduce(add, parts) / jnp.maximum(share, LEAST_SHARE), share, 1.0 - reduce(jnp.maximum, taken))


LEAST_SHARE = 1e-3
"""Smallest share that an advantage is divided by."""
