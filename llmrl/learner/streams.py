"""K reward streams to K advantages: every stream has its own signal and its own critic head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.nets import Critic
from llmrl.ops.losses import held_constant
from llmrl.ops.returns import generalized_advantage
from llmrl.rewards.base import task_signal
from llmrl.types import Rollout, Scalar, Signal, Stream


class Values(NamedTuple):
    """Critic heads on a rollout; nobody differentiates them.

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
) -> list[Signal]:
    """What each stream makes of the task's signal, and what it carries of it."""
    bare = task_signal(rollout, discount)

    def signal_of(stream: Stream, phi: PyTree, state: PyTree) -> Signal:
        own = stream.transform.apply(bare, phi, state, rollout)
        if stream.carries is None:
            return own
        return own._replace(reward=own.reward + stream.carries(phi, state) * bare.reward)

    return [signal_of(*each) for each in zip(streams, phis, states, strict=True)]


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
    return generalized_advantage(
        reward,
        discount,
        values.now,
        jnp.where(goes_on, following, values.next),
        (steps.terminated | steps.truncated)[..., None] & ~goes_on,
        gae_lambda,
    )


def blended(
    advantages: Float[Array, "t n k"],
    streams: Sequence[Stream],
    phis: Sequence[PyTree],
    states: Sequence[PyTree],
    *,
    lasting: bool = False,
) -> Float[Array, "t n"]:
    """The advantage that the inner level follows: the streams' weighted sum; ``lasting`` leaves out those that pass.

    What a stream carries of the task, stream 0 does not count.
    """
    counted = [i for i, stream in enumerate(streams) if not (lasting and stream.passing is not None)]
    weights = {i: _weight(streams[i], phis[i], states[i]) for i in counted}
    for i in counted:
        carries = streams[i].carries
        if carries is not None:
            weights[0] = weights[0] - weights[i] * carries(phis[i], states[i])
    return reduce(add, [advantages[..., i] * weight for i, weight in weights.items()])


def _weight(stream: Stream, phi: PyTree, state: PyTree) -> float | Scalar:
    if stream.passing is None:
        return stream.weight
    # Of one that has ended nothing is left but what its critic, which is late, still expects.
    return jnp.where(stream.passing(phi, state) > 0, stream.weight, 0.0)


def unit_of_advantages(
    streams: Sequence[Stream], phis: Sequence[PyTree], states: Sequence[PyTree], peaks: Float[Array, " 2"]
) -> Scalar:
    """The largest deviation that the blended advantage has had, as far as the streams that made it still have a say.

    Advice moves the policy far more than a sparse task's first successes. In its unit those would be small for the rest
    of the training: on a sword in Crafter, an agent that had followed a misleading source for a while, and no longer
    did, learned at half of plain PPO's pace. But while the task is silent, it is the unit in which advice that is
    followed less moves the policy less.

    Args:
        streams: the streams.
        phis: their parameters.
        states: what their transforms have noted.
        peaks: the deviation of what lasts, and that of everything.
    """
    passing = [(stream.passing, *of) for stream, *of in zip(streams, phis, states, strict=True)]
    say = [each(phi, state) for each, phi, state in passing if each is not None]
    return reduce(jnp.maximum, [share * peaks[1] for share in say], peaks[0])
