"""What a bi-level problem is made of: linear maps and solvers, sample gradients, problems and their hypergradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from llmrl.types import Scalar

MatVec: TypeAlias = Callable[[PyTree], PyTree]
"""A linear map from a pytree of floats to one of the same structure."""


class SampleGradients(NamedTuple):
    """One layer in the gradients of single samples: its kernel's is the outer product of both, its bias's ``slope``.

    Attributes:
        input: what the layer multiplies with its kernel, [*s, i]; None where there is a bias alone.
        slope: the gradient of what the layer gives before any nonlinearity, [*s, o].
    """

    input: Float[Array, "*s i"] | None
    slope: Float[Array, "*s o"]


class Scores(NamedTuple):
    """Gradients of log-probabilities in all parameters, sample by sample and layer by layer.

    Attributes:
        log_prob: of each sample, [*s].
        layers: what the gradients are made of.
    """

    log_prob: Float[Array, "*s"]
    layers: Sequence[SampleGradients]


class Jacobian(NamedTuple):
    """A matrix U whose rows are samples' gradients, never formed.

    Attributes:
        layers: the rows, layer by layer.
        along: ``v -> U v``, one number per sample.
        back: ``z -> U^T z``, structured like the parameters.
    """

    layers: Sequence[SampleGradients]
    along: Callable[[PyTree], Float[Array, "*s"]]
    back: Callable[[Float[Array, "*s"]], PyTree]


class LinearSolution(NamedTuple):
    """What a solver found, and how well.

    Attributes:
        x: the approximate solution of ``A x = b``, structured like ``b``.
        residual_norm: |A x - b| / |b|, measured with one more product, never estimated; NaN where not measured.
        num_matvecs: products with A that were spent, the residual's own not counted.
        was_cut: 1 where a guard had to cut the solution back, else 0.
    """

    x: PyTree
    residual_norm: Scalar
    num_matvecs: Int[Array, ""]
    was_cut: Float[Array, ""]


class LinearOperator(NamedTuple):
    """A symmetric linear map, with what some solvers know to use beyond its products. Calling it multiplies.

    Attributes:
        matvec: ``v -> A v``.
        gradient: for the Hessian of a loss: ``delta -> grad loss(point + delta)``, so that a solver can difference
            gradients.
        diagonal: ``() -> diag(A)`` as a pytree, where it is cheaper or better than probing for it.
        factors: ``() -> (scores, weights)`` with A = sum_i weights_i scores_i scores_i^T; scores are a pytree with a
            leading sample axis, weights has shape [samples].
        dot: ``(v, w) -> scalar``, the inner product under which A is symmetric; None means that of the numbers.
        completed: makes a vector of any numbers, where some of the numbers follow from others; None where none do.
        reduce: ``(b, products) -> Reduction``, where there is a smaller space to solve in; None in place of it where so
            few products are cheaper as they are.
    """

    matvec: MatVec
    gradient: Callable[[PyTree], PyTree] | None = None
    diagonal: Callable[[], PyTree] | None = None
    factors: Callable[[], tuple[PyTree, Float[Array, " samples"]]] | None = None
    dot: Callable[[PyTree, PyTree], Scalar] | None = None
    completed: Callable[[PyTree], PyTree] | None = None
    reduce: Callable[[PyTree, int], Reduction | None] | None = None

    def __call__(self, v: PyTree) -> PyTree:
        return self.matvec(v)


class Reduction(NamedTuple):
    """A linear system in coordinates of a smaller space, which holds the right-hand side and which A does not leave.

    Attributes:
        operator: A in these coordinates, with the inner product that they have.
        b: the right-hand side's coordinates.
        lift: coordinates -> the vector that they stand for.
    """

    operator: LinearOperator
    b: PyTree
    lift: Callable[[PyTree], PyTree]


class Solver(NamedTuple):
    """A way to solve A x = b with few products. Calling it solves.

    Attributes:
        solve: ``(matvec, b, key) -> LinearSolution``; ``matvec`` is any callable or a ``LinearOperator``.
        mixed_by_difference: whether the mixed derivative that follows should be a difference of two gradients too (the
            paper's Algorithm 1) instead of one exact vector-Jacobian product.
        krylov_products: for a solver that asks for nothing but products and inner products, and so finds x among b,
            A b, A^2 b, ...: how many products it spends; 0 for any other.
    """

    solve: Callable[[MatVec, PyTree, PRNGKeyArray], LinearSolution]
    mixed_by_difference: bool = False
    krylov_products: int = 0

    def __call__(self, matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        return self.solve(matvec, b, key)


class PastSteps(NamedTuple):
    """Inner updates that were taken, oldest first, each with where it was taken and on what; the leading axis is [b].

    Attributes:
        step: ``(theta, phi, data) -> theta``, one update as a function of where it starts; ``data`` without the axis.
        theta: where each update started, [b, ...].
        phi: what it was taken with, [b, ...].
        data: what else defined it, [b, ...].
        taken: 1, or 0 where there has been no update yet, [b].
    """

    step: Callable[[PyTree, PyTree, PyTree], PyTree]
    theta: PyTree
    phi: PyTree
    data: PyTree
    taken: Float[Array, " b"]


class MetaProblem(NamedTuple):
    """All that a hypergradient may know about reinforcement learning. Losses are minimised.

    Attributes:
        inner_loss: ``(theta, phi) -> scalar``, L_aux.
        outer_loss: ``(theta, phi) -> scalar``, L_prim.
        inner_step: ``(theta, phi) -> theta``, one optimiser step on L_aux, for unrolled gradients.
        operator: ``(theta, phi) -> LinearOperator``, the curvature to invert; None means the Hessian of ``inner_loss``.
        past: the inner updates that led to the present theta, for gradients that follow them; None where they are not
            kept.
        outer_gradient: ``(theta, phi) -> (in theta, in phi)``, the gradient of ``outer_loss`` where it is at hand, else
            None.
        mixed_product: ``(theta, phi, x) -> grad_phi <grad_theta inner_loss, x>``, where there is a cheaper way to it
            than differentiating ``inner_loss`` twice, else None.
    """

    inner_loss: Callable[[PyTree, PyTree], Scalar]
    outer_loss: Callable[[PyTree, PyTree], Scalar]
    inner_step: Callable[[PyTree, PyTree], PyTree]
    operator: Callable[[PyTree, PyTree], LinearOperator] | None = None
    past: PastSteps | None = None
    outer_gradient: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None
    mixed_product: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None


class HypergradientInfo(NamedTuple):
    """How well a hypergradient was computed; scalars, 0 where a term does not apply.

    Attributes:
        residual_norm: relative residual of the inverse-curvature solve.
        num_matvecs: products spent.
        was_cut: 1 where the solution was cut back to its bound.
        damping: the damping used.
        solution_norm: |x| / |g|.
        outer_gradient_norm: |g|.
    """

    residual_norm: Scalar
    num_matvecs: Int[Array, ""]
    was_cut: Scalar
    damping: Scalar
    solution_norm: Scalar
    outer_gradient_norm: Scalar


MetaGradient: TypeAlias = Callable[[MetaProblem, PyTree, PyTree, PRNGKeyArray], tuple[PyTree, HypergradientInfo]]
"""``(problem, theta, phi, key) -> (d outer / d phi, info)``."""
