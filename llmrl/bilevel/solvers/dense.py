"""The whole matrix, for tests and small problems."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.bilevel.solvers.base import solution
from llmrl.bilevel.types import LinearSolution, MatVec, Solver


def dense(least_squares: bool = False) -> Solver:
    """Form A and solve by elimination: exact, indefinite or not, in dim products, dim^2 memory and dim^3 time.

    What every other solver is held against, and a sound choice below a few hundred parameters. A singular A gives
    non-finite numbers unless ``least_squares`` is set.

    Args:
        least_squares: the shortest x that minimises ``|A x - b|``, by singular values, for an A that may be singular.
    """

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        del key
        flat_b, unravel = ravel_pytree(b)
        matrix = dense_matrix(matvec, b)
        x = jnp.linalg.lstsq(matrix, flat_b)[0] if least_squares else jnp.linalg.solve(matrix, flat_b)
        return solution(matvec, unravel(x), b, flat_b.size)

    return Solver(solve)


def dense_matrix(matvec: MatVec, like: PyTree) -> Float[Array, "dim dim"]:
    """A as a matrix over the elements of ``like`` in ``ravel_pytree``'s order.

    Args:
        matvec: ``v -> A v``.
        like: a pytree with the structure that A multiplies.
    """
    flat, unravel = ravel_pytree(like)
    columns = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
    return columns.T
