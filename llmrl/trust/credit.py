"""Credit that cannot be farmed: what each source says of a single action, whatever the size of what it pays."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.ops.moments import Moments, active_mean, running_peak
from llmrl.trust.blend import Weights, nothing_known
from llmrl.trust.evidence import Significance
from llmrl.types import EnvSpec, RewardTransform, Rollout, Scalar, Signal, SourceWeights, Stream

MEMORY = 0.998
"""What a source's mean and its largest deviation keep per rollout."""


class CreditState(NamedTuple):
    """What has been noted; written only by ``observe``.

    Attributes:
        mean: of each source over the last rollouts, [m].
        deviation: largest deviation of each source so far, slowly forgotten, [m].
        seen: moments of the observations' features; None where no network needs them.
        significance: how far learned weights may be trusted; written by the outer level.
    """

    mean: Float[Array, " m"]
    deviation: Float[Array, " m"]
    seen: Moments | None = None
    significance: Significance = Significance()


def credit_stream(
    spec: EnvSpec, follow: float | Scalar | Float[Array, " m"], weights: Weights | None = None, *, judged: bool = False
) -> Stream:
    """A stream that pays sum_m w_m (r_m - mean_m) / deviation_m, with the discount 0, scaled to the task's advantage.

    A hint judges a single action. With the discount 0 the stream's advantage is r - V(s): what this action brought
    compared with what the policy usually brings in this state. So a reward that a later action takes back, or that can
    be collected for ever, is worth no more than the action itself. Divided by their deviations, sources of any size and
    with any offset count alike.

    Args:
        spec: the environment; it has at least one source.
        follow: of the stream or of each source: deviation of its advantage with full weights, where the task's is 1.
            At 0 nothing is paid, so that the critic learns as if the stream were not there.
        weights: w, learned by an outer level; None is 1 everywhere.
        judged: whether that level counts evidence; without it weights are applied as they are learned.
    """
    num_aux = len(spec.aux_names)
    follow = jnp.broadcast_to(jnp.asarray(follow, jnp.float32), (num_aux,))

    def unit(state: CreditState) -> Float[Array, " m"]:
        share = follow / jnp.maximum(jnp.max(follow), 1e-30)
        return jnp.where(state.deviation > 0, share / jnp.maximum(state.deviation, 1e-30), 0.0)

    def weight(phi: PyTree, state: CreditState, rollout: Rollout) -> Float[Array, "t n m"]:
        if weights is None:
            return jnp.ones_like(rollout.steps.aux)
        return weights.weight(phi, state, rollout)

    def said(state: CreditState, rollout: Rollout) -> Float[Array, "t n m"]:
        return unit(state) * (rollout.steps.aux - state.mean)

    def trusted(phi: PyTree, state: CreditState, rollout: Rollout) -> SourceWeights:
        return SourceWeights(unit(state) * weight(phi, state, rollout), unit(state))

    def size(phi: PyTree, state: CreditState, rollout: Rollout) -> Scalar:
        # Sources of weight 1 have the size of the task; those of less weight have less, or weights would not matter;
        # and so have sources that contradict each other.
        whole = jnp.sum(jnp.square(said(state, rollout)))
        weighted = jnp.sum(jnp.square(paid(phi, state, rollout)))
        return jnp.max(follow) * jnp.minimum(1.0, jnp.sqrt(weighted / jnp.maximum(whole, 1e-12)))

    def paid(phi: PyTree, state: CreditState, rollout: Rollout) -> Float[Array, "t n"]:
        return jnp.sum(weight(phi, state, rollout) * said(state, rollout), axis=-1)

    def apply(phi: PyTree, state: CreditState, rollout: Rollout, signal: Signal) -> Signal:
        return Signal(paid(phi, state, rollout), jnp.zeros_like(signal.discount))

    def observe(phi: PyTree, state: CreditState, rollout: Rollout, signal: Signal) -> CreditState:
        aux = rollout.steps.aux
        now = jnp.mean(aux, axis=(0, 1))
        mean = jnp.where(jnp.all(state.deviation == 0), now, MEMORY * state.mean + (1.0 - MEMORY) * now)
        seen = state.seen if weights is None or weights.look is None else weights.look(state.seen, rollout)
        deviation = running_peak(state.deviation, jnp.std(aux, axis=(0, 1)), MEMORY)
        return CreditState(mean, deviation, seen, state.significance)

    def report(phi: PyTree, state: CreditState, rollout: Rollout) -> dict[str, Scalar]:
        active = active_mean(weight(phi, state, rollout), rollout.steps.aux)
        return {f"weight_before_units/{name}": active[i] for i, name in enumerate(spec.aux_names)}

    def init(key):
        state = CreditState(*jnp.zeros((2, num_aux)))
        if weights is None:
            return {}, state
        phi = weights.init(key)
        known = nothing_known(phi, num_aux) if judged else Significance()
        return phi, state._replace(seen=weights.nothing_seen, significance=known)

    return Stream(RewardTransform(init, apply, observe, report, trusted), 1.0, size=size)
