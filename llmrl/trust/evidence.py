"""What confirms an outer step: the other half of the environments, and later rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from llmrl.types import Scalar


def agreement(first: PyTree, second: PyTree, group: str) -> PyTree:
    """How far two estimates of one group's gradient agree, from 0 to 1, shaped to multiply the group's step.

    For ``scalar`` each source by itself: 1 where the signs agree, else 0. Otherwise max(0, cosine).
    """
    if group == "scalar":
        return (first * second > 0).astype(first.dtype)
    product = optax.tree.vdot(first, second)
    norms = optax.tree.norm(first) * optax.tree.norm(second)
    return jnp.maximum(0.0, product / jnp.maximum(norms, 1e-12))


class GainSums(NamedTuple):
    """Running sums, for each source, of what more of something would have been worth on later rollouts.

    Attributes:
        gain: of the gains themselves, [m].
        spread: of their squares, the variance of ``gain`` if they were noise, [m].
    """

    gain: Float[Array, " m"]
    spread: Float[Array, " m"]


class EventGains(NamedTuple):
    """What each source's reward events gained for the task, in a rollout or summed over several.

    Attributes:
        net: what followed them, good less bad, [m].
        total: both added up, [m].
    """

    net: Float[Array, " m"]
    total: Float[Array, " m"]


class Significance(NamedTuple):
    """What is known of each source, from 0 to 1; the blend applies learned weights and advice by it.

    Each field is None where there is nothing to know it for, or where evidence is switched off.

    Attributes:
        scalar: ``gain_significance`` of more of the source's own number, [m].
        network: the same of more of what the network says of the source, [m].
        advice: the same of following the source directly, [m].
        balance: ``balance`` of what followed the source's reward events, [m].
    """

    scalar: Float[Array, "*b m"] | None = None
    network: Float[Array, "*b m"] | None = None
    advice: Float[Array, "*b m"] | None = None
    balance: Float[Array, "*b m"] | None = None


class SourceEvidence(NamedTuple):
    """What later rollouts have shown of each source: the sums of which each field of ``Significance`` is made."""

    scalar: GainSums | None = None
    network: GainSums | None = None
    advice: GainSums | None = None
    balance: EventGains | None = None


def no_evidence(known: Significance) -> SourceEvidence:
    """Before the first rollout, for whatever has a significance."""
    scalar, network, advice, balanced = (None if x is None else (jnp.zeros_like(x), jnp.zeros_like(x)) for x in known)
    return SourceEvidence(
        scalar and GainSums(*scalar),
        network and GainSums(*network),
        advice and GainSums(*advice),
        balanced and EventGains(*balanced),
    )


def recorded(
    evidence: SourceEvidence,
    slopes: Significance,
    worth: EventGains,
    silent: float | Scalar,
    memory: float | Scalar,
) -> SourceEvidence:
    """The evidence after one more rollout.

    Args:
        evidence: so far.
        slopes: of the outer loss in the significances. Losses are minimised, so a slope's negative is a gain. Those of
            advice and balance are not used.
        worth: of the sources' reward events in the rollout.
        silent: share of the rollout's episodes without a reward event of the task: what the rollout counts for in the
            balance. A solved task is seldom surprised, least of all by what goes wrong after good advice: what is known
            of a source from before that shall stay.
        memory: what the sums keep per rollout.
    """

    def added(sums: GainSums | None, gain: Array | None) -> GainSums | None:
        if sums is None or gain is None:
            return None
        return GainSums(memory * sums.gain + gain, memory**2 * sums.spread + jnp.square(gain))

    gains, events = jax.tree.map(jnp.negative, slopes), evidence.balance
    if events is not None:
        events = EventGains(memory * events.net + silent * worth.net, memory * events.total + silent * worth.total)
    return SourceEvidence(
        added(evidence.scalar, gains.scalar),
        added(evidence.network, gains.network),
        added(evidence.advice, worth.net),
        events,
    )


def significance(evidence: SourceEvidence) -> Significance:
    """What is known by some evidence."""
    scalar, network, advice = (sums if sums is None else gain_significance(sums) for sums in evidence[:3])
    return Significance(scalar, network, advice, None if evidence.balance is None else balance(evidence.balance))


LEAST_SIGNIFICANCE, FULL_SIGNIFICANCE = 1.0, 2.0


def gain_significance(sums: GainSums) -> Float[Array, " m"]:
    """How far what was learned may be trusted: 0 where its gains so far are up to one standard error, 1 from two on.

    Weights were learned from earlier rollouts, so the derivative of the task's return in their size is evidence of its
    own: around 0 if they have learned noise, above 0 again and again if they have learned what is true of the source.
    It is one number for each source, however many parameters were learned, and its sum exceeds its standard error in
    time even where a single rollout says next to nothing.

    Reference: Dawid (1984), Statistical theory: the prequential approach, for judging forecasts by what comes next.
    """
    in_errors = sums.gain / jnp.sqrt(jnp.maximum(sums.spread, 1e-20))
    return jnp.clip((in_errors - LEAST_SIGNIFICANCE) / (FULL_SIGNIFICANCE - LEAST_SIGNIFICANCE), 0.0, 1.0)


def balance(events: EventGains) -> Float[Array, " m"]:
    """Good less bad, over both: 1 where only good followed a source's reward events, 0 where as much bad as good did.
    Unlike significance it does not grow with the number of events."""
    return jnp.clip(events.net / jnp.maximum(events.total, 1e-20), 0.0, 1.0)


def event_gains(aux: Float[Array, "t n m"], advantage: Float[Array, "t n"]) -> EventGains:
    """How far the task's own advantage agrees with each source's values: the sum over steps of r_m A.

    In a table of states with an action's probability in each, the natural gradient of one-step rewards r_m moves the
    policy by r_m itself, and sum r_m A is what the task's return gains: the implicit gradient with the Fisher
    information, where nothing has to be generalised and nothing to be solved for. A handful of successes suffices. A is
    less its mean, which is the critic's being late. Where the critic errs state by state, so does this; sparse tasks,
    for which it serves, have a critic that says next to nothing.

    Reference: Kakade (2001), A natural policy gradient, for the tabular case.
    """
    surprise = advantage - jnp.mean(advantage)
    each = aux * surprise[..., None]
    return EventGains(jnp.sum(each, axis=(0, 1)), jnp.sum(jnp.abs(each), axis=(0, 1)))


def gated_steps(steps: Any, first: Sequence[dict], second: Sequence[dict]):
    """Every group's step times its agreement, and the mean agreement."""
    gated, agreements = [], []
    for step, a, b in zip(steps, first, second, strict=True):
        gates = {group: agreement(a[group], b[group], group) for group in step}
        gated.append({g: jax.tree.map(lambda s, gate=gates[g]: s * gate, step[g]) for g in step})
        agreements += [jnp.mean(gate) for gate in gates.values()]
    return tuple(gated), jnp.mean(jnp.stack(agreements))
