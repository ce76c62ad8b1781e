"""Observations of bytes, and the features they stand for; integers as floats."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from llmrl.types import Codes


def num_features(encoding: Sequence[Codes]) -> int:
    """How many features the bytes of one observation stand for."""
    return sum(codes.count * len(codes.rows[0]) for codes in encoding)


def decode(encoding: Sequence[Codes], obs: UInt8[Array, "... bytes"]) -> Float[Array, "... features"]:
    """The features of every byte, one after the other.

    A dense layer on them equals the sum of one learned vector per byte: this is an embedding.

    Args:
        encoding: what the bytes stand for; their counts add up to ``bytes``.
        obs: codes; each is smaller than the number of its rows.

    Returns:
        Features, in the order of the bytes.
    """
    parts, start = [], 0
    for codes in encoding:
        part = obs[..., start : start + codes.count].astype(jnp.int32)
        rows = jnp.asarray(codes.rows, jnp.float32)
        parts.append(rows[part].reshape(*obs.shape[:-1], -1))
        start += codes.count
    return jnp.concatenate(parts, axis=-1)


def as_floats(obs: Shaped[Array, "*obs"]) -> Float[Array, "*obs"]:
    """The same numbers in float32, or in float64 where they are: integers and half floats hold no quotients."""
    return obs if obs.dtype == jnp.float64 else obs.astype(jnp.float32)
