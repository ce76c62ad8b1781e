"""How far each auxiliary source moves the policy: by its weight in the blend, as advice, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.learner.streams import AdviceSteps, stream_states
from llmrl.ops.moments import active_mean
from llmrl.trust.blend import TRUSTED_FROM
from llmrl.types import Rollout, Scalar, Signal, SourceWeights, Stream

METRICS = ("influence", "trust_used", "trust_ignored", "trust_turned")
"""What is logged of every source."""

LEAST_SIZE = 1e-6
"""Added to the size of a source's values, so that a source without reward events in a rollout has its share of what its
critic still expects."""


class Influence(NamedTuple):
    """The share of the policy's step that comes from each source: ``per_weight * weight + advice``.

    Above 0 the policy follows the source, below 0 it does the opposite, at 0 it ignores it. The means of all sources
    have sizes that sum up to 1 at most; the rest comes from the task.

    Attributes:
        weight: factor that a source is multiplied with in the blend, all limits and units included, [t, n, m].
        per_weight: share of the policy's step that a weight of 1 there would be, [m].
        advice: share of the policy's step that follows the source as advice, [m].
    """

    weight: Float[Array, "t n m"]
    per_weight: Float[Array, " m"]
    advice: Float[Array, " m"]

    def at(self, weight: Float[Array, "*steps m"]) -> Float[Array, "*steps m"]:
        """Where the source has this weight."""
        return self.per_weight * weight + self.advice


def influence(
    streams: Sequence[Stream],
    phis: Sequence[PyTree],
    states: Sequence[PyTree],
    rollout: Rollout,
    signals: Sequence[Signal],
    advantages: Float[Array, "t n k"],
    advice: AdviceSteps | None,
) -> Influence | None:
    """What an update of the policy on these advantages owes to each source.

    The policy takes steps of length ``left`` on the blend and of length ``share`` on advice
    (``streams.AdviceSteps``). In either, a stream counts by the deviation of its advantage, which is what PPO divides
    by, and within a stream a source counts by |w_m r_m|, on average over the rollout:

        i_m = (left b_m + share f_m) / (left + share)

    where b_m and f_m are sum_k (d_k / sum_j d_j) mean(w_km |r_m|) / mean(|paid|_k) over the streams k of either, and
    d_k is the deviation of stream k's advantage times its weight.

    Args:
        streams: the reward streams.
        phis, states: the parameters and memories that their transforms use in this update.
        rollout: the experience.
        signals: what they make of the task's signal.
        advantages: of all streams.
        advice: as ``advice_steps`` makes it of them.

    Returns:
        The influence; None where no stream has weights of sources.
    """
    trusted = [
        None if stream.transform.weights is None else stream.transform.weights(phi, state, rollout)
        for stream, phi, state in stream_states(streams, phis, states)
    ]
    if all(weights is None for weights in trusted):
        return None
    deviation = jnp.std(advantages, axis=(0, 1))
    size = jnp.stack([jnp.abs(jnp.asarray(stream.weight, jnp.float32)) for stream in streams]) * deviation
    left, share = (1.0, 0.0) if advice is None else (advice.left, advice.share)
    nothing = jnp.zeros(rollout.steps.aux.shape[-1])
    weight, per_weight, advised = jnp.zeros_like(rollout.steps.aux), nothing, nothing
    for of_blend, length in ((True, left), (False, share)):
        chosen = [i for i, stream in enumerate(streams) if (stream.advice is None) == of_blend]
        whole = sum((size[i] for i in chosen), jnp.zeros(()))
        for i in chosen:
            weights = trusted[i]
            if weights is None:
                continue
            part = length / (left + share) * size[i] / jnp.maximum(whole, 1e-12)
            of_one = part * _per_weight(weights, rollout, signals[i])
            if of_blend:
                weight, per_weight = weight + weights.weight, per_weight + of_one
            else:
                advised = advised + of_one * jnp.mean(weights.weight, axis=(0, 1))
    return Influence(weight, per_weight, advised)


def _sizes(rollout: Rollout) -> Float[Array, "t n m"]:
    return jnp.abs(rollout.steps.aux) + LEAST_SIZE


def _per_weight(trusted: SourceWeights, rollout: Rollout, signal: Signal) -> Float[Array, " m"]:
    """Share of what a stream pays that each source has for a weight of 1."""
    rest = jnp.mean(jnp.abs(signal.reward - jnp.sum(trusted.weight * rollout.steps.aux, axis=-1)))
    paid = rest + jnp.sum(jnp.mean(jnp.abs(trusted.weight) * _sizes(rollout), axis=(0, 1)))
    return jnp.where(paid > 1e-12, jnp.mean(_sizes(rollout), axis=(0, 1)) / jnp.maximum(paid, 1e-12), 0.0)


def influence_metrics(found: Influence, rollout: Rollout, names: Sequence[str]) -> dict[str, Scalar]:
    """What is logged of it, for each source.

    ``influence`` is the mean over the rollout, in which a step counts by the size of the source's value.
    ``trust_used``, ``trust_ignored`` and ``trust_turned`` are shares of the source's reward events, by the influence
    there.
    """
    sizes, moved = _sizes(rollout), found.at(found.weight)
    mean = jnp.mean(sizes * moved, axis=(0, 1)) / jnp.mean(sizes, axis=(0, 1))
    kinds = moved >= TRUSTED_FROM, jnp.abs(moved) < TRUSTED_FROM, moved <= -TRUSTED_FROM
    shares = [active_mean(kind.astype(moved.dtype), rollout.steps.aux) for kind in kinds]
    found_shares = zip(METRICS, (mean, *shares), strict=True)
    return {f"{kind}/{name}": of[i] for kind, of in found_shares for i, name in enumerate(names)}
