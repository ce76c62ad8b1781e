"""A language model's scores as an auxiliary source: looked up for a whole rollout at once, the unknown ones counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from llmrl.ops.tables import NO_KEY, lookup, tally
from llmrl.types import Rollout, Scalar

MISSES = 256
"""Different states reported as not yet answered, between two visits of the host; a model answers fewer in that time."""

MEMORY = 0.99
"""What the running mean of the scores keeps per rollout."""


class Heard(NamedTuple):
    """What the source has noted.

    Attributes:
        missed: keys of the states that had no answer, most frequent first, [k].
        counts: how often each was visited since the host last asked, [k].
        total: sum of the scores of the visited steps, fading, [].
        weight: number of those steps, fading alike, [].
    """

    missed: UInt32[Array, " k"]
    counts: Int[Array, " k"]
    total: Scalar
    weight: Scalar


class Language(NamedTuple):
    """The source as pure functions.

    Attributes:
        init: ``() -> Heard``.
        forget: ``Heard -> Heard`` without misses, for when the host has taken note of them.
        fill: ``(heard, rollout, keys, scores) -> (rollout, heard, {metric: scalar})``; table as in ``ops.lookup``.
    """

    init: Callable[[], Heard]
    forget: Callable[[Heard], Heard]
    fill: Callable[..., tuple[Rollout, Heard, dict[str, Scalar]]]


def language(column: int | None, factor: float | Scalar = 1.0, center: Any = 0.5, size: int = MISSES) -> Language:
    """r_m = factor (score(state, event) - center), and 0 where there is no answer yet.

    In [0, 1] every score, right or wrong, is also a bonus for staying alive, which hides both its help and its harm;
    hence the centre.

    Args:
        column: the source's place among the auxiliary sources; None only notes what has no answer, for sources that
            make something else of the answers.
        factor: of the source.
        center: what counts as neutral: a number, or "mean" for the running mean of the scores met so far.
        size: how many different states to report as missing.

    Returns:
        The source. Its metrics: ``language_coverage``, the share of the visited steps that had an answer, and
        ``language_score``, the mean of those answers as they were given (NaN where there was none).
    """

    def init() -> Heard:
        nothing = jnp.zeros(size, jnp.int32)
        return Heard(jnp.full(size, NO_KEY), nothing, jnp.zeros(()), jnp.zeros(()))

    def forget(heard: Heard) -> Heard:
        return heard._replace(missed=jnp.full_like(heard.missed, NO_KEY), counts=jnp.zeros_like(heard.counts))

    def fill(
        heard: Heard, rollout: Rollout, keys: UInt32[Array, " r"], scores: Float[Array, "r e"]
    ) -> tuple[Rollout, Heard, dict[str, Scalar]]:
        steps = rollout.steps
        score, known = lookup(keys, scores, steps.state_key, steps.event)
        met, answered = jnp.sum(score), jnp.sum(known.astype(jnp.float32))
        heard = Heard(
            *_missing(heard, jnp.where(known, NO_KEY, steps.state_key).reshape(-1)),
            total=MEMORY * heard.total + met,
            weight=MEMORY * heard.weight + answered,
        )
        neutral = heard.total / jnp.maximum(heard.weight, 1.0) if center == "mean" else center
        reward = jnp.where(known, factor * (score - neutral), 0.0)
        aux = steps.aux if column is None else steps.aux.at[..., column].set(reward)
        metrics = {
            "language_coverage": jnp.mean(known.astype(jnp.float32)),
            "language_score": jnp.where(answered > 0, met / jnp.maximum(answered, 1.0), jnp.nan),
        }
        return rollout._replace(steps=steps._replace(aux=aux)), heard, metrics

    return Language(init, forget, fill)


def _missing(heard: Heard, missed: UInt32[Array, " b"]) -> tuple[UInt32[Array, " k"], Int[Array, " k"]]:
    """The misses so far and those of another rollout."""
    return _noted(heard.missed, heard.counts, missed)


@jax.custom_batching.custom_vmap
def _noted(keys, counts, missed):
    return _if_any(_tallied, keys, counts, missed)


@_noted.def_vmap
def _noted_of_many(axis_size, batched, *operands):
    """Counting costs more than looking up. A branch for each seed would be none; one for all of them is."""
    operands = [x if b else jnp.broadcast_to(x, (axis_size, *x.shape)) for x, b in zip(operands, batched, strict=True)]
    return _if_any(jax.vmap(_tallied), *operands), (True, True)


def _if_any(note, keys, counts, missed):
    return jax.lax.cond(
        jnp.any(missed != NO_KEY), note, lambda keys, counts, missed: (keys, counts), keys, counts, missed
    )


def _tallied(keys, counts, missed):
    return tally(
        jnp.concatenate([keys, missed]),
        jnp.concatenate([counts, jnp.ones(missed.shape, jnp.int32)]),
        keys.shape[0],
    )
