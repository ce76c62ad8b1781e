"""Vector algebra of pytrees, where ``optax.tree`` does not have it or has it for one dtype only.

What ``optax.tree`` and ``jax.tree`` do well (sums, differences, zeros, selection by a predicate) is called there
directly. The functions here differ in two ways: scalars are cast to every leaf's own dtype, so that a float32 setting
meets float64 or bfloat16 parameters under strict promotion; and norms neither overflow nor underflow before their
result does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, PRNGKeyArray, PyTree

from llmrl.types import Scalar


def common_dtype(tree: PyTree) -> jnp.dtype:
    """The narrowest float dtype that holds every leaf of ``tree``."""
    # Mixed precision is chosen by the caller; the scalars computed from it have to live somewhere, strict or not.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*jax.tree.leaves(tree))


def dot(a: PyTree, b: PyTree) -> Scalar:
    """Inner product, ``sum_i a_i b_i`` over all elements of all leaves.

    Args:
        a: pytree of floats.
        b: pytree of the same structure and shapes.
    """
    dtype = common_dtype(a)
    return jnp.asarray(optax.tree.vdot(optax.tree.cast(a, dtype), optax.tree.cast(b, dtype)))


def norm(tree: PyTree) -> Scalar:
    """Euclidean norm of all elements; infinite or NaN if an element is, or if the norm itself cannot be represented."""
    tree = optax.tree.cast(tree, common_dtype(tree))
    largest = optax.tree.norm(tree, ord=jnp.inf)
    # Squares leave float32's range at 1e19 already: a diverging series and a vanishing policy gradient both get there.
    unit = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1)
    return unit * optax.tree.norm(jax.tree.map(lambda x: x / unit, tree))


def scale(tree: PyTree, scalar: ArrayLike) -> PyTree:
    """``scalar * tree``, in the dtypes of ``tree``."""
    return jax.tree.map(lambda x: jnp.asarray(scalar).astype(jnp.result_type(x)) * x, tree)


def add_scaled(tree: PyTree, scalar: ArrayLike, other: PyTree) -> PyTree:
    """``tree + scalar * other``, in the dtypes of ``tree``."""
    return optax.tree.add(tree, scale(other, scalar))


def normalized(tree: PyTree) -> tuple[PyTree, Scalar]:
    """``(tree / |tree|, |tree|)``; a zero tree stays zero."""
    size = norm(tree)
    return scale(tree, jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)), size


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no element of any leaf of floats is infinite or NaN; other leaves have no such elements."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    # A dot, not `all`: XLA would write out the `and` of all leaves again in every fusion that reads the answer.
    each = jnp.asarray([jnp.all(jnp.isfinite(x)) for x in floats], jnp.float32)
    return jnp.dot(each, each) == len(floats)


def normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Independent standard normal elements, shaped and typed like ``tree``."""
    return _drawn_like(jax.random.normal, key, tree)


def rademacher_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Independent elements -1 or +1 with equal probability, shaped and typed like ``tree``."""
    return _drawn_like(jax.random.rademacher, key, tree)


def _drawn_like(sampler: Callable[..., Array], key: PRNGKeyArray, tree: PyTree) -> PyTree:
    # One draw, then cut to shape: a sampler for each leaf takes longer to compile than all of a solver, and a vector
    # would be drawn otherwise than the same vector in pieces.
    leaves, structure = jax.tree.flatten(tree)
    ends = list(itertools.accumulate(jnp.size(leaf) for leaf in leaves))
    drawn = jnp.split(sampler(key, (ends[-1],), common_dtype(tree)), ends[:-1])
    pieces = [x.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)) for x, leaf in zip(drawn, leaves, strict=True)]
    return jax.tree.unflatten(structure, pieces)
