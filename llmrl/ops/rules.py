"""Rules about states, asked for whole arrays: on the host with numpy, inside compiled programs with jax."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from llmrl.types import Rules, Scalar


def rule_scores(
    rules: Rules,
    state_key: UInt32[Array, "*batch"],
    event: Int[Array, "*batch"],
    *,
    noise: float | Scalar = 0.0,
    seed: int = 0,
    each: bool = False,
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """What an event is worth in a state, a share of the answers made wrong: 1 - score.

    What no line allows stays at 0, wrong or not: it cannot happen there.

    Args:
        rules: the rules.
        state_key: captions of states, [...].
        event: what happened in them, [...].
        noise: share of answers made wrong, by ``is_wrong``.
        seed: which ones.
        each: whether each answer is wrong by itself, or all that are about a state.

    Returns:
        The scores, and whether any line holds in the state; [...] each.
    """
    holds = (state_key[..., None] & rules.masks) == rules.values
    speaks = holds & (jnp.asarray(rules.events, event.dtype) == event[..., None])
    score = jnp.max(jnp.where(speaks, jnp.asarray(rules.scores, jnp.float32), 0.0), axis=-1)
    wrong = is_wrong(state_key, event if each else None, noise, seed)
    score = jnp.where(wrong & jnp.any(speaks, axis=-1), 1.0 - score, score)
    return score, jnp.any(holds, axis=-1)


def is_wrong(
    state_key: UInt32[Array, "*batch"], event: Int[Array, "*batch"] | None, share: float | Scalar, seed: int
) -> Bool[Array, "*batch"]:
    """Whether an answer is among the share that is wrong: decided by a hash of state and event, so that whatever is
    asked in whichever order, the same answers are wrong. More of them are at a larger share, never others."""
    mixed = mix(state_key ^ mix(jnp.asarray(seed, jnp.uint32)))
    if event is not None:
        mixed = mix(mixed + event.astype(jnp.uint32))
    uniform = (mixed >> 8).astype(jnp.float32) / 2.0**24
    return uniform < share


def mix(x: UInt32[Array, "*batch"]) -> UInt32[Array, "*batch"]:
    """A bijection of 32 bits that leaves no pattern.

    Reference: the finaliser of MurmurHash3 (Appleby 2008).
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
