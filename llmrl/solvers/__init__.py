"""Solvers of A x = b for symmetric A known by its products, and the operators they solve. Nothing here knows of RL."""

from llmrl.solvers.bounded import bounded
from llmrl.solvers.conjugate_gradient import conjugate_gradient
from llmrl.solvers.dense import dense
from llmrl.solvers.diagonal import diagonal
from llmrl.solvers.identity import identity
from llmrl.solvers.neumann import neumann, neumann_finite_difference
from llmrl.solvers.operators import (
    damped,
    extreme_eigenvalues,
    fisher,
    hessian,
    largest_eigenvalue,
    smallest_eigenvalue,
)
from llmrl.solvers.sherman_morrison import sherman_morrison

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
    "largest_eigenvalue",
    "neumann",
    "neumann_finite_difference",
    "sherman_morrison",
    "smallest_eigenvalue",
]
