"""The last guard on a solution."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import Number, checked_number, geometry, solution
from llmrl.bilevel.types import LinearSolution, MatVec, Solver


def bounded(solver: Solver, max_ratio: Number = 10.0) -> Solver:
    """Any solver, its solution held to ``|x| <= max_ratio |b|``.

    A longer x is scaled back, keeping its direction. One that is not finite has no direction to keep and becomes b
    itself (``max_ratio b`` if that is shorter): the first-order answer. Either sets ``was_cut``. The residual is that
    of the x returned.

    Args:
        solver: the solver to guard.
        max_ratio: above 0, shape [].

    Raises:
        ValueError: ``max_ratio`` is out of range.
    """
    max_ratio = checked_number("max_ratio", max_ratio, above=0.0)

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        found = solver(matvec, b, key)
        norm = geometry(matvec).norm
        length = norm(found.x)
        bound = jnp.asarray(max_ratio).astype(length.dtype)
        longest = bound * norm(b)
        finite, long = jnp.isfinite(length), length > longest
        cut = trees.scale(found.x, jnp.where(long, longest / jnp.where(long, length, 1), 1))
        first_order = trees.scale(b, jnp.minimum(bound, 1))
        # The solver's own residual may be of another x. It is not used, so the compiler removes it.
        x = optax.tree.where(finite, cut, first_order)
        was_cut = (found.was_cut > 0) | long | ~finite
        return solution(matvec, x, b, found.num_matvecs, was_cut)

    return solver._replace(solve=solve)
