"""Drawing one of many by their probabilities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def choice(key: PRNGKeyArray, probability: Float[Array, " n"]) -> Int[Array, ""]:
    """The index that ``jax.random.choice(key, n, p=probability)`` draws, found in two steps.

    That one adds up all n probabilities, of which a CPU's compiler makes one window per sum. Here about sqrt(n) blocks
    are added up, and then the entries of a single one. The sums are rounded differently: once in a while the two draw
    neighbours among the entries that are not 0.

    Args:
        key: a key.
        probability: up to a common factor, not all 0, [n].

    Returns:
        An index of an entry that is not 0, int32 [].
    """
    width = max(1, math.isqrt(probability.size))
    blocks = jnp.pad(probability, (0, -probability.size % width)).reshape(-1, width)
    sums = jnp.sum(blocks, axis=1)
    up_to = jnp.cumsum(sums)
    aim = up_to[-1] * (1 - jax.random.uniform(key, dtype=up_to.dtype))
    block = jnp.minimum(jnp.sum(up_to < aim), blocks.shape[0] - 1)
    within = jnp.cumsum(blocks[block])
    # Rounding must not lead beyond the block's own entries that are not 0, on either side.
    rest = jnp.clip(aim - (up_to[block] - sums[block]), jnp.finfo(aim.dtype).tiny, within[-1])
    return (block * width + jnp.sum(within < rest)).astype(jnp.int32)
