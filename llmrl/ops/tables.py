"""Tables on the device: a value is found by binary search, what is not there is counted; sizes are fixed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

NO_KEY = np.uint32(0xFFFFFFFF)
"""Fills the rows without an answer. It is the largest key, so that it is sorted last, and no state has it."""


def lookup(
    keys: UInt32[Array, " r"],
    values: Float[Array, "r e"],
    asked: UInt32[Array, "*batch"],
    columns: Int[Array, "*batch"],
) -> tuple[Float[Array, "*batch"], Bool[Array, "*batch"]]:
    """Values of a table by key and column; one binary search per question.

    Args:
        keys: ascending, filled up with ``NO_KEY``, [r].
        values: a row for each key, [r, e].
        asked: keys to look for, [...].
        columns: which value of the row, [...].

    Returns:
        The values, 0 where the key or the column does not exist; and whether the key does; [...] each.
    """
    row = jnp.minimum(jnp.searchsorted(keys, asked), keys.shape[0] - 1)
    known = (keys[row] == asked) & (asked != NO_KEY)
    listed = (columns >= 0) & (columns < values.shape[1])
    return jnp.where(known & listed, values[row, jnp.where(listed, columns, 0)], 0.0), known


def tally(
    keys: UInt32[Array, " b"], counts: Int[Array, " b"], size: int
) -> tuple[UInt32[Array, " size"], Int[Array, " size"]]:
    """Adds up the counts of equal keys and keeps the keys with the highest, in descending order.

    Nothing is lost while there are at most ``size`` different keys. Beyond that the rarest are forgotten, and what is
    tallied once more later on begins at 0 for them.

    Args:
        keys: in any order, equal ones anywhere, [b]; ``NO_KEY`` does not count.
        counts: how often each, [b].
        size: how many keys to keep, at most b.

    Returns:
        Keys and counts, [size] each, filled up with ``NO_KEY`` and 0.
    """
    keys, counts = jax.lax.sort((keys, jnp.where(keys == NO_KEY, 0, counts)), num_keys=1)
    differs = keys[1:] != keys[:-1]
    first, last = jnp.concatenate([jnp.ones(1, bool), differs]), jnp.concatenate([differs, jnp.ones(1, bool)])
    so_far = jnp.cumsum(counts)
    before_run = jax.lax.cummax(jnp.where(first, so_far - counts, 0))
    # A run's sum stands at its end alone, so that every key is kept once.
    sums, places = jax.lax.top_k(jnp.where(last, so_far - before_run, 0), size)
    return jnp.where(sums > 0, keys[places], NO_KEY), sums
