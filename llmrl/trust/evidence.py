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


class Record(NamedTuple):
    """Running sums, for each source, of what more of a learned weight would have been worth on later rollouts.

    Attributes:
        gain: of the gains themselves, [m].
        spread: of their squares, the variance of ``gain`` if they were noise, [m].
    """

    gain: Array
    spread: Array


class EventGains(NamedTuple):
    """What each source's reward events gained for the task in a rollout.

    Attributes:
        net: what followed them, good less bad, [m].
        total: both added up, [m].
    """

    net: Float[Array, " m"]
    total: Float[Array, " m"]


def recorded(record: Record, gain: Array | EventGains, memory: float | Scalar) -> Record:
    if isinstance(gain, EventGains):  # whose spread is no variance
        return Record(memory * record.gain + gain.net, memory * record.spread + gain.total)
    return Record(memory * record.gain + gain, memory**2 * record.spread + jnp.square(gain))


LEAST_SIGNIFICANCE, FULL_SIGNIFICANCE = 1.0, 2.0


def confirmed(record: Record) -> Array:
    """How far what was learned may be trusted: 0 where its gains so far are up to one standard error, 1 from two on.

    Weights were learned from earlier rollouts, so the derivative of the task's return in their size is evidence of its
    own: around 0 if they have learned noise, above 0 again and again if they have learned what is true of the source.
    It is one number for each source, however many parameters were learned, and its sum exceeds its standard error in
    time even where a single rollout says next to nothing.

    Reference: Dawid (1984), Statistical theory: the prequential approach, for judging forecasts by what comes next.
    """
    significance = record.gain / jnp.sqrt(jnp.maximum(record.spread, 1e-20))
    return jnp.clip((significance - LEAST_SIGNIFICANCE) / (FULL_SIGNIFICANCE - LEAST_SIGNIFICANCE), 0.0, 1.0)


def balance(record: Record) -> Array:
    """Good less bad, over both: 1 where only good followed a source's reward events, 0 where as much bad as good did.
    Unlike evidence it does not grow with the number of events."""
    return jnp.clip(record.gain / jnp.maximum(record.spread, 1e-20), 0.0, 1.0)


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


def gains_of(
    gradients: Sequence[PyTree], worth: EventGains, silent: float | Scalar = 1.0
) -> tuple[dict[str, Any], ...]:
    """What more of each group would be worth: losses are minimised.

    Args:
        gradients: of every stream's phi.
        worth: of the sources' reward events.
        silent: share of the rollout's episodes without a reward event of the task: what the rollout counts for in the
            balance. A solved task is seldom surprised, least of all by what goes wrong after good advice: what is known
            of a source from before that shall stay.
    """
    slopes = tuple({group: -slope for group, slope in of.get("evidence", {}).items()} for of in gradients)
    balanced = EventGains(silent * worth.net, silent * worth.total)
    return tuple(of | {"advice": worth.net, "balance": balanced} if "advice" in of else of for of in slopes)


def learned_alone(gradients: Sequence[PyTree]) -> tuple[PyTree, ...]:
    """Gradients without what they say of evidence, which follows its record and not a gradient."""
    return tuple(
        of | {"evidence": jax.tree.map(jnp.zeros_like, of["evidence"])} if "evidence" in of else of for of in gradients
    )


def with_evidence(phis, records):
    """phi with the evidence for each group in it, where phi has a place for it."""

    def known(group: str, record: Record) -> Array:
        return balance(record) if group == "balance" else confirmed(record)

    return tuple(
        phi | {"evidence": {group: known(group, record[group]) for group in phi["evidence"]}}
        if "evidence" in phi
        else phi
        for phi, record in zip(phis, records, strict=True)
    )


def gated_steps(steps: Any, first: Sequence[dict], second: Sequence[dict]):
    """Every group's step times its agreement, and the mean agreement."""
    gated, agreements = [], []
    for step, a, b in zip(steps, first, second, strict=True):
        gates = {group: agreement(a[group], b[group], group) for group in step}
        gated.append({g: jax.tree.map(lambda s, gate=gates[g]: s * gate, step[g]) for g in step})
        agreements += [jnp.mean(gate) for group, gate in gates.items() if group != "evidence"]
    return tuple(gated), jnp.mean(jnp.stack(agreements))
