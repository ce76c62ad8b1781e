"""No curvature at all."""

from __future__ import annotations

from jaxtyping import PRNGKeyArray, PyTree

from llmrl.bilevel.solvers.base import solution
from llmrl.bilevel.types import LinearSolution, MatVec, Solver


def identity() -> Solver:
    """``x = b``: curvature taken for the identity, the first-order approximation. Free but for its residual's product.

    Reference: Luketina, Berglund, Greff and Raiko (2016), Scalable gradient-based tuning of continuous regularization
    hyperparameters.
    """

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        del key
        return solution(matvec, b, b, 0)

    return Solver(solve, krylov_products=1)
