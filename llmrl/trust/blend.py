"""The learned blend of task and auxiliary sources: r_phi = r_p + sum_m w_m(s, a; phi) r_m + eps(s, a; phi)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.nets import make_features, make_reward_net
from llmrl.ops.losses import held_constant, with_clipped_cotangent, with_cotangent_beside
from llmrl.ops.moments import Moments, active_mean, no_moments, observed
from llmrl.trust.advice import Advice, AdviceState
from llmrl.trust.evidence import Significance
from llmrl.trust.limits import LimitsState, WeightLimits, no_limits
from llmrl.trust.task_statistics import WithTask
from llmrl.types import EnvSpec, RewardTransform, Rollout, Scalar, Signal, SourceWeights

INITIAL_ETA = 4.6
"""sigmoid(4.6) = 0.990."""

LEAST_SHARE = 0.1
"""Share of a learned weight that is applied without any evidence: a source without weight could earn none."""
TRUSTED_FROM = 0.05
"""From which share on, of the policy's step or of full trust, a source counts as used or as turned around; below it, as
ignored."""


class Weights(NamedTuple):
    """The learned part of the blend, before trust's own limits.

    Attributes:
        init: ``key -> phi``.
        weight: ``(phi, state, rollout) -> w``, [t, n, m]; of the state ``seen`` and ``significance`` matter.
        offset: ``(phi, rollout) -> eps``, [t, n].
        size: the largest |w|; 1 where it has no bound.
        of_state: ``(phi, obs [..., *obs]) -> w``, [..., m], as if all its evidence were 1; None where w looks at more
            than the state.
        look: ``(seen, rollout) -> seen``; None where w does not ask what has been seen.
        nothing_seen: before the first rollout.
    """

    init: Callable[[PRNGKeyArray], dict[str, PyTree]]
    weight: Callable[..., Float[Array, "t n m"]]
    offset: Callable[[PyTree, Rollout], Float[Array, "t n"]]
    size: float = 1.0
    of_state: Callable[[PyTree, Float[Array, "..."]], Float[Array, "... m"]] | None = None
    look: Callable[..., Moments] | None = None
    nothing_seen: Moments | None = None


class MixtureState(NamedTuple):
    """What a blend goes by; written by ``observe``, ``significance`` by the outer level.

    Attributes:
        limits: what limits the weights.
        seen: moments of the observations' features; None where no network needs them.
        advice: how the task's advice stands; None where none is given.
        significance: how far learned weights and advice may be trusted.
    """

    limits: LimitsState
    seen: Moments | None = None
    advice: AdviceState | None = None
    significance: Significance = Significance()


def significance_in(states: Sequence[PyTree]) -> Significance:
    """What the one stream with learned weights goes by, from the states of all streams."""
    return next((state.significance for state in states if hasattr(state, "significance")), Significance())


def with_significance(states: Sequence[PyTree], known: Significance) -> tuple[PyTree, ...]:
    """The streams' states, where the one with learned weights goes by ``known``."""
    return tuple(s._replace(significance=known) if hasattr(s, "significance") else s for s in states)


def nothing_known(phi: PyTree, num_aux: int, advised: bool = False) -> Significance:
    """Before the first rollout, of the weights that phi holds and of advice, where any is given."""
    fields = ("scalar" in phi, "network" in phi, advised, advised)
    return Significance(*(jnp.zeros(num_aux) if learned else None for learned in fields))


def make_weights(
    spec: EnvSpec,
    *,
    scalar: bool,
    network: bool,
    bound: float | None,
    initial: float | Float[Array, ""],
    hidden: Sequence[int],
    sees_action: bool,
    sees_aux: bool,
    whiten: bool,
    spread: float | Scalar,
    clip_steps: float | None,
    residual: float | None,
    offset: bool,
    discount: bool,
) -> Weights:
    """w = bound * tanh(e_b b_m + e_n net_m(s, a)), or e_b b_m + e_n net_m(s, a) where ``bound`` is None.

    e is how far what a group has learned can be trusted (``trust.evidence.gain_significance``), for each source, from
    ``LEAST_SHARE`` to 1; 1 where no evidence is counted.

    Args:
        spec: the environment, for shapes.
        scalar: whether b_m is learned; it starts so that w = ``initial``.
        network: whether net_m is learned; it starts at 0.
        bound: largest |w|.
        initial: w_0.
        hidden: widths of the network.
        sees_action: whether the networks see the action, or the state alone.
        sees_aux: whether they see the auxiliary values too.
        whiten: whether the network of the weights sees features in deviations from what has been seen on average.
            Scaled by their limits alone, they hardly move while a task is solved, and the network has next to no way
            to tell states apart. Codes are left as they are.
        spread: how far apart the network of the weights starts to tell whitened states; see ``make_reward_net``. For
            features that are not whitened it has no meaning, and is 0.
        clip_steps: how much a single step may say of what the network of the weights learns, in root mean squares of
            all; None does not clip. What more weight on a step is worth differs widely between states, most where an
            agent seldom is, and what a smooth network makes of a border between good and bad is decided by the louder
            side. With few of them each step has about one vote. A source's own number and all evidence go by what steps
            are worth.
        residual: share of what w already says, before its bound, that is left out of what the network learns next, on
            the source's reward events; None learns all. The return is linear in small weights, and along its
            gradient the network grows most where it is right already; what is at right angles to it changes its shape.
        offset: whether eps(s, a; phi) is learned; it starts at 0 and is bounded by 1.
        discount: whether eta of gamma_eta = sigmoid(eta) is learned.

    Returns:
        Functions of phi, a dict with the groups ``scalar`` [m], ``network``, ``offset``, ``discount`` [] that are
        learned.
    """
    num_aux = len(spec.aux_names)
    start = initial if bound is None else jnp.arctanh(jnp.asarray(initial / bound, jnp.float32))
    features = make_features(spec)
    whiten = whiten and network and not spec.encoding
    weight_net = make_reward_net(spec, hidden, num_aux, sees_aux, sees_action, spread if whiten else 0.0)
    offset_net = make_reward_net(spec, hidden, 1, sees_aux, sees_action)

    def init(key):
        weight_key, offset_key = jax.random.split(key)
        phi: dict[str, PyTree] = {}
        if scalar:
            phi["scalar"] = jnp.full(num_aux, start, jnp.float32)
        if network:
            phi["network"] = weight_net.init(weight_key)
        if offset:
            phi["offset"] = offset_net.init(offset_key)
        if discount:
            phi["discount"] = jnp.asarray(INITIAL_ETA, jnp.float32)
        return phi

    def shrunk(x, known):
        """x times its evidence, differentiated as if that were 1: a weight without evidence must be able to earn it.

        The derivative in the evidence itself is that in the size of x, in units of its present one: what more of it
        would be worth, however much there is by now.
        """
        if known is None:
            return x
        share = jnp.maximum(known, LEAST_SHARE)
        direction = held_constant(x / jnp.maximum(_size(x), 1e-8))
        return x + held_constant(share * x - x) + direction * (known - held_constant(known))

    def bounded(phi, known: Significance, raw, *seen, events=None):
        raw = raw + (shrunk(phi["scalar"], known.scalar) if scalar else start)
        if network:
            learned = weight_net.apply(phi["network"], *seen)
            if clip_steps is not None:
                learned = with_clipped_cotangent(learned, clip_steps)
            if residual is not None and events is not None:
                learned = with_cotangent_beside(learned, events * (raw + shrunk(learned, known.network)), residual)
            raw = raw + shrunk(learned, known.network)
        return raw if bound is None else bound * jnp.tanh(raw)

    def weight(phi, state, rollout):
        steps = rollout.steps
        events = (steps.aux != 0).astype(steps.aux.dtype)
        seen = (steps.obs, steps.action, steps.aux, state.seen)
        return bounded(phi, state.significance, jnp.zeros_like(steps.aux), *seen, events=events)

    def look(seen, rollout):
        return observed(seen, features.of(rollout.steps.obs).reshape(-1, features.num))

    def of_state(phi, obs):
        batch = obs.shape[: obs.ndim - len(spec.obs_shape)]
        return bounded(phi, Significance(), jnp.zeros((*batch, num_aux)), obs, None)

    def offset_of(phi, rollout):
        steps = rollout.steps
        if not offset:
            return jnp.zeros_like(steps.reward)
        return jnp.tanh(offset_net.apply(phi["offset"], steps.obs, steps.action, steps.aux)[..., 0])

    state_only = None if sees_action or sees_aux or whiten else of_state
    size = 1.0 if bound is None else bound
    if not whiten:
        return Weights(init, weight, offset_of, size, state_only)
    return Weights(init, weight, offset_of, size, state_only, look, no_moments((features.num,)))


def _size(x: Float[Array, "*t m"]) -> Float[Array, " m"]:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(x.ndim - 1))))


def mixture(
    spec: EnvSpec,
    weights: Weights,
    limits: WeightLimits | None = None,
    advice: Advice | None = None,
    *,
    judged: bool = False,
) -> RewardTransform:
    """The blend with weights that an outer level learns.

    Args:
        spec: the environment; it must have at least one auxiliary source or the weights an offset.
        weights: the learned part.
        limits: what limits them; None applies them as they are.
        advice: how far each source is followed in addition: weight and advice together are at most 1.
        judged: whether the outer level counts evidence. Without it weights are applied as they are learned, and advice
            knows of no gains.

    Returns:
        A transform; its phi is the weights'.

    Reference: Place 2023, eq. 5.
    """
    limits = limits if limits is not None else no_limits(len(spec.aux_names))

    def init(key):
        phi, advised = weights.init(key), None if advice is None else advice.init()
        known = nothing_known(phi, len(spec.aux_names), advised is not None) if judged else Significance()
        return phi, MixtureState(limits.init(), weights.nothing_seen, advised, known)

    def effective(phi, state: MixtureState, rollout: Rollout) -> Float[Array, "t n m"]:
        return limits.limit(state.limits, weights.weight(phi, state, rollout))

    def trusted(phi, state: WithTask, rollout: Rollout) -> SourceWeights:
        own, task = state
        factors = limits.scale(own.limits, task)
        weight = effective(phi, own, rollout) * factors
        if advice is not None:
            weight = jnp.minimum(weight, jnp.maximum(0.0, 1.0 - advice.share(own.advice, own.significance, task)))
        return SourceWeights(weight, weights.size * factors)

    def apply(phi, state, rollout, signal: Signal):
        paid = jnp.sum(trusted(phi, state, rollout).weight * rollout.steps.aux, axis=-1)
        reward = signal.reward + paid + weights.offset(phi, rollout)
        if "discount" not in phi:
            return signal._replace(reward=reward)
        return Signal(reward, jnp.where(rollout.steps.terminated, 0.0, jax.nn.sigmoid(phi["discount"])))

    def observe(phi, state: WithTask, rollout: Rollout, signal: Signal) -> MixtureState:
        own, task = state
        seen = own.seen if weights.look is None else weights.look(own.seen, rollout)
        advised = own.advice if advice is None else advice.observe(own.advice, task, rollout)
        return MixtureState(limits.observe(own.limits, task, rollout, signal), seen, advised, own.significance)

    def report(phi, state: WithTask, rollout):
        own, task = state
        aux, weight = rollout.steps.aux, trusted(phi, state, rollout).weight
        active, before_units = active_mean(weight, aux), active_mean(effective(phi, own, rollout), aux)
        metrics = {
            "weight_mean": jnp.mean(weight),
            "weight_mean_active": jnp.mean(active),
            "weight_size": jnp.mean(jnp.abs(weight)),
            "trust_scale": jnp.mean(limits.scale(own.limits, task)),
            **{f"weight_mean_active/{name}": active[i] for i, name in enumerate(spec.aux_names)},
            **{f"weight_before_units/{name}": before_units[i] for i, name in enumerate(spec.aux_names)},
            **limits.report(own.limits),
        }
        for group, share in own.significance._asdict().items():
            if share is not None:
                metrics["advice_balance" if group == "balance" else f"evidence_{group}"] = jnp.mean(share)
        if "discount" in phi:
            metrics["discount"] = jax.nn.sigmoid(phi["discount"])
        return metrics

    return RewardTransform(
        init=init,
        apply=apply,
        observe=observe,
        report=report,
        weights=trusted,
        settled=lambda state: state._replace(own=state.own._replace(limits=limits.settled(state.own.limits))),
        needs_task=True,
    )
