"""Solvers of A x = b for symmetric A known by its products, and the operators they solve. Nothing here knows of RL."""

from llmrl.bilevel.solvers.bounded import bounded
from llmrl.bilevel.solvers.conjugate_gradient import conjugate_gradient
from llmrl.bilevel.solvers.dense import dense
from llmrl.bilevel.solvers.diagonal import diagonal
from llmrl.bilevel.solvers.identity import identity
from llmrl.bilevel.solvers.neumann import neumann, neumann_finite_difference
from llmrl.bilevel.solvers.operators import (
    damped,
    extreme_eigenvalues,
    fisher,
    hessian,
)
from llmrl.bilevel.solvers.sherman_morrison import sherman_morrison

__all__ = [
    "bounded",
    "conjugate_gradient",
    "damped",
    "dense",
    "diagonal",
    "extreme_eigenvalues",
    "fisher",
    "hessian",
    "identity",
    "neumann",
    "neumann_finite_difference",
    "sherman_morrison",
]
