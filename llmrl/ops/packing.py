"""Small arrays side by side in one.

A loop costs what it runs, and every small array that it carries is computed and copied by operations of its own: one
array of twenty rows needs one of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

WIDEST = 64
"""Arrays of more numbers per instance stay as they are: moving them costs more than one more operation."""

_WORDS = (jnp.float32, jnp.int32, jnp.uint32, jnp.bool_)


class Packed(NamedTuple):
    """A pytree of arrays with a leading axis [n].

    Attributes:
        words: its small arrays, bit by bit, [..., w, n]; time and other axes may come first.
        others: what is too large, or of another kind, as it was.
    """

    words: UInt32[Array, "*t w n"]
    others: list[Array]


def packing(like: PyTree) -> tuple[Callable[[PyTree], Packed], Callable[[Packed], PyTree]]:
    """How to put a pytree into one array and how to get it back, exactly.

    Args:
        like: a pytree of arrays, or of their shapes, with a leading axis [n] on all that can be packed.

    Returns:
        ``pack`` and ``unpack``; what ``unpack`` is given may have gained leading axes. ``pack`` raises a ``TypeError``
        where a tree has another structure, shape or dtype than ``like``: its bits would be read as other numbers.
    """
    leaves, structure = jax.tree.flatten(like)
    count = next((leaf.shape[0] for leaf in leaves if leaf.ndim), 0)
    small = [_is_small(leaf, count) for leaf in leaves]

    def pack(tree: PyTree) -> Packed:
        _require_alike(like, tree)
        arrays = jax.tree.leaves(tree)
        rows = [_rows(x) for x, packs in zip(arrays, small, strict=True) if packs]
        words = jnp.concatenate(rows) if rows else jnp.zeros((0, count), jnp.uint32)
        return Packed(words, [x for x, packs in zip(arrays, small, strict=True) if not packs])

    def unpack(packed: Packed) -> PyTree:
        others, arrays, start = iter(packed.others), [], 0
        for leaf, packs in zip(leaves, small, strict=True):
            if packs:
                end = start + math.prod(leaf.shape[1:])
                arrays.append(_from_rows(packed.words[..., start:end, :], leaf))
                start = end
            else:
                arrays.append(next(others))
        return jax.tree.unflatten(structure, arrays)

    return pack, unpack


def _require_alike(like: PyTree, tree: PyTree) -> None:
    expected, structure = jax.tree.flatten_with_path(like)
    arrays, found = jax.tree.flatten(tree)
    if found != structure:
        raise TypeError(f"what is packed has the structure {found}; expected {structure}")
    for (path, one), other in zip(expected, arrays, strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise TypeError(
                f"leaf {jax.tree_util.keystr(path) or 'itself'} of what is packed is {_described(other)}; "
                f"expected {_described(one)}"
            )


def _described(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _is_small(leaf: Any, count: int) -> bool:
    return (
        leaf.ndim > 0
        and leaf.shape[0] == count
        and 0 < math.prod(leaf.shape[1:]) <= WIDEST
        and any(leaf.dtype == kind for kind in _WORDS)
    )


def _rows(x: Array) -> UInt32[Array, "w n"]:
    flat = x.reshape(x.shape[0], -1).T
    return flat.astype(jnp.uint32) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(flat, jnp.uint32)


def _from_rows(rows: UInt32[Array, "*t w n"], like: Any) -> Array:
    flat = jnp.moveaxis(rows, -1, -2).reshape(*rows.shape[:-2], *like.shape)
    return flat.astype(jnp.bool_) if like.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(flat, like.dtype)
