"""Nearest neighbours among the samples of one batch, in chunks: no array of all pairs is ever made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def nearest_distances(
    x: Float[Array, "b f"], references: Int[Array, " r"], k: int, chunk: int = 128
) -> Float[Array, "b k"]:
    """Euclidean distances from every sample to its k nearest neighbours among the references, nearest first.

    Differences are squared as they are, not as |a|^2 - 2 ab + |b|^2: that loses the digits that tell two visits of one
    state from two states. Equal samples are neighbours at distance 0; only the sample itself is none.

    Args:
        x: samples, [b, f].
        references: which samples may be neighbours, each at most once, [r]; k < r.
        k: neighbours of each.
        chunk: samples whose distances are computed at once; memory is chunk * r.

    Raises:
        ValueError: there are not enough references.
    """
    if not 0 < k < references.shape[0]:
        raise ValueError(f"k neighbours need more than k references, got k={k} and {references.shape[0]} references")
    others = x[references]

    def of_one(sample):
        index, row = sample
        squared = jnp.where(references == index, jnp.inf, jnp.sum(jnp.square(others - row), axis=-1))
        return jnp.sqrt(-jax.lax.top_k(-squared, k)[0])

    return jax.lax.map(of_one, (jnp.arange(x.shape[0]), x), batch_size=chunk)
