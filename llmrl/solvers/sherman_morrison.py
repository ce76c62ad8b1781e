"""Rank-one updates of a damped identity's inverse."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from llmrl.solvers.base import Number, checked_number, required, solution
from llmrl.types import LinearSolution, MatVec, Solver

SMALLEST_DENOMINATOR = 1e-2
"""An update may take at most 99 % of the curvature away from its direction; one that would take more is skipped."""

_Factor: TypeAlias = tuple[Int[Array, ""], Float[Array, " dim"], Float[Array, ""]]


def sherman_morrison(damping: Number = 1e-3) -> Solver:
    """Exact inverse of a damped sum of outer products, ``x = (damping I + sum_i w_i u_i u_i^T)^-1 b``.

    One factor after the other, with ``v = A_{i-1}^-1 u_i``:

        A_i^-1 y = A_{i-1}^-1 y - w_i v (u_i^T A_{i-1}^-1 y) / (1 + w_i u_i^T v),

    applied to b and to all factors at once, so that no inverse is ever formed: samples x parameters numbers are kept,
    and samples^2 x parameters operations spent. Weights may be negative (advantages); an update that would make A_i
    indefinite, or nearly singular (denominator under ``SMALLEST_DENOMINATOR``), is left out and reported in
    ``was_cut``.

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

    def update(solved: Float[Array, "rows dim"], factor: _Factor) -> tuple[Float[Array, "rows dim"], Bool[Array, ""]]:
        index, u, w = factor
        projections = jnp.matmul(solved, u, precision=highest)
        denominator = 1 + w * projections[index]
        safe = denominator > SMALLEST_DENOMINATOR
        share = jnp.where(safe, w / jnp.where(safe, denominator, 1), 0)
        return solved - share * jnp.outer(projections, solved[index]), ~safe

    rows = jnp.concatenate([scores, b[None]]) / jnp.asarray(damping).astype(b.dtype)
    factors = (jnp.arange(len(weights)), scores, weights.astype(b.dtype))
    solved, skipped = jax.lax.scan(update, rows, factors)
    return solved[-1], skipped
