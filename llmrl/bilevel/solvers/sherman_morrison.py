"""Rank-one updates of a damped identity's inverse."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from llmrl.bilevel.solvers.base import Number, checked_number, required, solution
from llmrl.bilevel.types import LinearSolution, MatVec, Solver

SMALLEST_DENOMINATOR = 1e-2
"""An update may take at most 99 % of the curvature away from its direction; one that would take more is skipped."""

_Factor: TypeAlias = tuple[Int[Array, ""], Float[Array, ""]]
_Update: TypeAlias = tuple[Int[Array, ""], Float[Array, ""], Float[Array, " samples"], Bool[Array, ""]]


def sherman_morrison(damping: Number = 1e-3) -> Solver:
    """Exact inverse of a damped sum of outer products, ``x = (damping I + sum_i w_i u_i u_i^T)^-1 b``.

    One factor after the other, with ``v = A_{i-1}^-1 u_i``:

        A_i^-1 y = A_{i-1}^-1 y - w_i v (u_i^T A_{i-1}^-1 y) / (1 + w_i u_i^T v),

    of which only the products u_j^T A_i^-1 u_k are ever asked for and kept: samples^2 numbers, and samples^3 +
    samples^2 x parameters operations. In the end A x = b itself says what x is made of: ``damping x = b - sum_i w_i u_i
    (u_i^T x)``. Weights may be negative (advantages); an update that would make A_i indefinite, or nearly singular
    (denominator under ``SMALLEST_DENOMINATOR``), is left out and reported in ``was_cut``.

    The damping is the solver's own because a product-only start does not exist. If the operator was damped as well,
    give both the same number: the residual is measured against the operator as passed.

    Args:
        damping: above 0, shape [].

    Raises:
        ValueError: ``damping`` is out of range.
        TypeError: (from the solve) the operator has no ``factors``.

    Reference: the seed paper, appendix A, remark 3; Sherman and Morrison (1950).
    """
    damping = checked_number("damping", damping, above=0.0)

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        del key
        scores, weights = required(matvec, "factors", "sherman_morrison")()
        flat_b, unravel = ravel_pytree(b)
        flat_scores = jax.vmap(lambda u: ravel_pytree(u)[0])(scores)
        x, skipped = rank_one_solve(flat_scores, weights, flat_b, damping)
        return solution(matvec, unravel(x), b, 0, jnp.any(skipped))

    return Solver(solve)


def rank_one_solve(
    scores: Float[Array, "samples dim"],
    weights: Float[Array, " samples"],
    b: Float[Array, " dim"],
    damping: Number,
) -> tuple[Float[Array, " dim"], Bool[Array, " samples"]]:
    """``(damping I + sum_i w_i u_i u_i^T)^-1 b`` and which updates had to be skipped.

    Args:
        scores: the u_i.
        weights: the w_i.
        b: right-hand side.
        damping: above 0, shape [].
    """
    highest = jax.lax.Precision.HIGHEST  # the updates cancel: tensor cores' short mantissas would be all that is left
    weights, damping = weights.astype(b.dtype), jnp.asarray(damping).astype(b.dtype)

    def update(products: Float[Array, "samples samples"], factor: _Factor) -> tuple[Array, _Update]:
        index, w = factor
        column = products[index]  # products are symmetric, and rows lie together
        denominator = 1 + w * column[index]
        safe = denominator > SMALLEST_DENOMINATOR
        share = jnp.where(safe, w / jnp.where(safe, denominator, 1), 0)
        return products - share * jnp.outer(column, column), (index, share, column, safe)

    start = jnp.matmul(scores, scores.T, precision=highest) / damping
    updates = jax.lax.scan(update, start, (jnp.arange(len(weights)), weights))[1]
    safe = updates[-1]
    taken = jnp.where(safe, weights, 0)

    def span(coefficients: Float[Array, " samples"]) -> Float[Array, " dim"]:
        return jnp.matmul(coefficients, scores, precision=highest)

    def along(x: Float[Array, " dim"]) -> Float[Array, " samples"]:
        return jnp.matmul(scores, x, precision=highest)

    def inverse(y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        def follow(met: Float[Array, " samples"], update: _Update) -> tuple[Array, None]:
            index, share, column, _ = update
            return met - share * column * met[index], None

        return (y - span(taken * jax.lax.scan(follow, along(y) / damping, updates)[0])) / damping

    x = inverse(b)
    # The last division blew up what rounding had left of a difference; solving for the remainder mends that.
    return x + inverse(b - damping * x - span(taken * along(x))), ~safe
