"""Gradients of an outer loss through the solution, or the solving, of an inner problem.

    phi* = argmin_phi outer(theta*(phi), phi)    with    theta*(phi) = argmin_theta inner(theta, phi)

Losses are any scalar functions of two pytrees; nothing here knows of reinforcement learning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import Number, checked_integer, checked_number, is_automatic
from llmrl.bilevel.solvers.bounded import bounded
from llmrl.bilevel.solvers.conjugate_gradient import conjugate_gradient
from llmrl.bilevel.solvers.operators import damped, hessian
from llmrl.bilevel.solvers.reduction import reduction
from llmrl.bilevel.types import HypergradientInfo, LinearOperator, LinearSolution, MetaGradient, MetaProblem, Solver
from llmrl.types import Scalar

AUTO_DAMPING_PRODUCTS = 10
"""Products spent on the spectrum when the damping is to be found automatically."""

DEFAULT_SOLVER = conjugate_gradient(num_steps=20)

LARGE_RESIDUAL = 1e-2
"""Relative residual above which a gradient that is computed outside of ``jit`` comes with a warning."""

Loss: TypeAlias = Callable[[PyTree, PyTree], Scalar]
"""``(theta, phi) -> scalar``."""


def implicit_gradient(
    inner_loss: Loss,
    outer_loss: Loss,
    theta: PyTree,
    phi: PyTree,
    *,
    solver: Solver = DEFAULT_SOLVER,
    damping: Number | str = 0.0,
    key: PRNGKeyArray,
    operator: Callable[[PyTree, PyTree], LinearOperator] | None = None,
    max_ratio: Number | None = None,
    outer_gradient: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] | None = None,
    mixed_product: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None,
) -> tuple[PyTree, HypergradientInfo]:
    """d outer(theta*(phi), phi) / d phi at ``theta = theta*(phi)``, by the implicit function theorem.

        x ~ (H + damping I)^-1 g,    g = grad_theta outer,    H = grad_theta^2 inner
        gradient = grad_phi outer - grad_phi <grad_theta inner(theta, phi), x>

    As the optimum moves with phi so that ``grad_theta inner`` stays zero. Neither H nor the mixed derivative is formed:
    the solver takes products, and the last term is one vector-Jacobian product, or, where the solver asks for it
    (``mixed_by_difference``, Algorithm 1 of the seed paper), the difference ``grad_phi inner(theta + x, phi) -
    grad_phi inner(theta, phi)``, undivided because x has the length to be multiplied by.

    Args:
        inner_loss: ``(theta, phi) -> scalar``, to be minimised over theta.
        outer_loss: ``(theta, phi) -> scalar``, to be minimised over phi. A direct dependence on phi is included.
        theta: (near) a minimiser of the inner loss; any pytree of floats.
        phi: any pytree of floats.
        solver: see ``llmrl.bilevel.solvers``.
        damping: at least 0, shape [], or "auto": enough to make the operator positive definite, see ``damped``.
        key: for solvers that draw, and for automatic damping.
        operator: ``(theta, phi) -> LinearOperator`` in place of H, such as a ``fisher``; None means H.
        max_ratio: the bound on |x| / |g|, above 0, shape []; None means none. See ``bounded``. A bound makes gradients
            too small wherever curvature is below ``1 / max_ratio``.
        outer_gradient: the gradient of ``outer_loss`` in theta and in phi, where it is at hand.
        mixed_product: ``(theta, phi, x) -> grad_phi <grad_theta inner, x>``, where there is a cheaper way to the exact
            one.

    Returns:
        The gradient, structured like ``phi``, and how the solve went. ``info.residual_norm`` is relative to the damped
        operator: what the damping itself costs is not in it. Above ``LARGE_RESIDUAL`` there is a warning too, unless
        this is compiled (``jit``, ``vmap``): then look at the number.

    Raises:
        ValueError: a setting is out of range.
        TypeError: the solver needs what the operator lacks.

    Reference: the seed paper, equations 6 and 12; Lorraine, Vicol and Duvenaud (2020), theorem 1.
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, as conjugate_gradient(20) makes one, got {solver!r}")
    damping_key, solver_key = jax.random.split(key)
    g, direct = (outer_gradient or jax.grad(outer_loss, argnums=(0, 1)))(theta, phi)
    guarded = solver if max_ratio is None else bounded(solver, max_ratio)
    # Products with a curvature are differences of nearly equal numbers; on a GPU they would be rounded to 10 bits.
    with jax.default_matmul_precision("highest"):
        curvature = hessian(lambda t: inner_loss(t, phi), theta) if operator is None else operator(theta, phi)
        space = reduction(curvature, g, solver.krylov_products)
        curvature, used_damping = damped(space.operator, damping, damping_key, space.b, AUTO_DAMPING_PRODUCTS)
        found = guarded(curvature, space.b, solver_key)
        x = space.lift(found.x)
    if solver.mixed_by_difference:
        through_optimum = _difference_product(inner_loss, theta, phi, x)
    elif mixed_product is not None:
        through_optimum = mixed_product(theta, phi, x)
    else:
        through_optimum = _exact_product(inner_loss, theta, phi, x)
    gradient = optax.tree.sub(direct, through_optimum)

    _warn_if_large(found)
    g_norm = trees.norm(g)
    return gradient, HypergradientInfo(
        residual_norm=found.residual_norm,
        num_matvecs=found.num_matvecs + jnp.int32(AUTO_DAMPING_PRODUCTS if is_automatic(damping) else 0),
        was_cut=found.was_cut,
        damping=jnp.asarray(used_damping).astype(g_norm.dtype),
        solution_norm=trees.norm(x) / jnp.where(g_norm > 0, g_norm, 1),
        outer_gradient_norm=g_norm,
    )


def implicit(
    solver: Solver = DEFAULT_SOLVER,
    damping: Number | str = 0.0,
    max_ratio: Number | None = None,
) -> MetaGradient:
    """``implicit_gradient`` as a ``MetaGradient``, with the curvature that the problem names.

    Args:
        solver: see ``llmrl.bilevel.solvers``.
        damping: at least 0, shape [], or "auto".
        max_ratio: the bound on |x| / |g|, above 0, shape []; None means none.

    Raises:
        ValueError: a setting is out of range.
    """
    # Checked here as well, so that a wrong number is refused where it was written and not once training has begun.
    if not is_automatic(damping):
        checked_number("damping", damping, at_least=0.0, or_else="'auto'")
    if max_ratio is not None:
        checked_number("max_ratio", max_ratio, above=0.0)

    def meta_gradient(
        problem: MetaProblem, theta: PyTree, phi: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, HypergradientInfo]:
        return implicit_gradient(
            problem.inner_loss,
            problem.outer_loss,
            theta,
            phi,
            solver=solver,
            damping=damping,
            key=key,
            operator=problem.operator,
            max_ratio=max_ratio,
            outer_gradient=problem.outer_gradient,
            mixed_product=problem.mixed_product,
        )

    return meta_gradient


def unrolled(num_steps: int = 1, recompute: bool = True) -> MetaGradient:
    """d outer(theta_n(phi), phi) / d phi for theta_n reached from theta by n inner steps, by backpropagation through
    them.

    With n = 1 the meta-gradient of LIRPG. As n grows, and the steps converge, it goes to the implicit gradient.

    Args:
        num_steps: n, at least 1.
        recompute: compute each step again on the way back, which keeps one theta per step; else all of every step's
            intermediate values are kept, which is faster and takes n times the memory.

    Returns:
        A ``MetaGradient`` that ignores its key; of its info only the outer gradient, that at theta_n, applies.

    Raises:
        ValueError: ``num_steps`` is out of range.

    Reference: Zheng, Oh and Singh (2018), On learning intrinsic rewards for policy gradient methods, equation 7.
    """
    num_steps = checked_integer("num_steps", num_steps, at_least=1)

    def meta_gradient(
        problem: MetaProblem, theta: PyTree, phi: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, HypergradientInfo]:
        del key

        def solve_inner(p: PyTree) -> PyTree:
            def step(t, _):
                return problem.inner_step(t, p), None

            # Inside a scan nothing can be merged across the recomputation, so no barrier is needed against that.
            kept = jax.checkpoint(step, prevent_cse=False) if recompute else step
            return jax.lax.scan(kept, theta, None, length=num_steps)[0]

        theta_n, pull = jax.vjp(solve_inner, phi)
        g, direct = jax.grad(problem.outer_loss, argnums=(0, 1))(theta_n, phi)
        g_norm = trees.norm(g)
        zero = jnp.zeros_like(g_norm)
        info = HypergradientInfo(zero, jnp.int32(0), zero, zero, zero, outer_gradient_norm=g_norm)
        return optax.tree.add(direct, pull(g)[0]), info

    return meta_gradient


def incremental() -> MetaGradient:
    """Gradient through the inner updates that were really taken, each differentiated where it was taken.

        h_{i+1} = (d step_i / d theta) h_i + d step_i / d phi,    h = 0 before the oldest
        gradient = grad_phi outer + h^T grad_theta outer

    phi is taken to have been the same all along, as in the meta-gradient that BiPaRS keeps from one update to the next.
    h has as many numbers as theta and phi multiplied; so it is never formed: the outer gradient is carried backwards
    through the kept updates instead, which gives the very same product with two vectors in hand. What is lost is only
    what lies before the oldest update.

    With one kept update this is BiPaRS's plain meta-gradient, which forgets everything before the last update.

    Returns:
        A ``MetaGradient`` that ignores its key and needs ``problem.past``. Of its info, the outer gradient, the number
        of updates followed, and |v| / |g| of the outer gradient g and what has become of it before the oldest update:
        far above 1, the updates amplify, and the past outweighs the present.

    Raises:
        TypeError: (when called) the problem keeps no past updates.

    Reference: Hu et al. (2020), Learning to utilize shaping rewards, the (incremental) meta-gradient method.
    """

    def meta_gradient(
        problem: MetaProblem, theta: PyTree, phi: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, HypergradientInfo]:
        del key
        past = problem.past
        if past is None:
            raise TypeError("incremental needs the problem's past inner updates, and this problem keeps none")
        g, direct = jax.grad(problem.outer_loss, argnums=(0, 1))(theta, phi)

        def follow_back(carry, update):
            v, total = carry
            at, with_phi, data, taken = update
            _, pull = jax.vjp(lambda t, p: past.step(t, p, data), at, with_phi)
            # What was never taken may be anything, so it is chosen against, not multiplied away.
            v_before, along_phi = jax.tree.map(lambda x: jnp.where(taken > 0, x, 0.0), pull(v))
            v = jax.tree.map(lambda a, b: jnp.where(taken > 0, a, b), v_before, v)
            return (v, optax.tree.add(total, along_phi)), None

        updates = (past.theta, past.phi, past.data, past.taken)
        (v, gradient), _ = jax.lax.scan(follow_back, (g, direct), updates, reverse=True)
        g_norm = trees.norm(g)
        zero = jnp.zeros_like(g_norm)
        return gradient, HypergradientInfo(
            residual_norm=zero,
            num_matvecs=jnp.sum(past.taken).astype(jnp.int32),
            was_cut=zero,
            damping=zero,
            solution_norm=trees.norm(v) / jnp.where(g_norm > 0, g_norm, 1),
            outer_gradient_norm=g_norm,
        )

    return meta_gradient


def explicit() -> MetaGradient:
    """The outer loss's own gradient in phi, theta held where it is.

    All there is to follow where phi acts on the policy itself, as in BiPaRS's explicit mapping, whose policy sees the
    learned weights; 0 where phi acts through theta alone.

    Returns:
        A ``MetaGradient`` that ignores its key; of its info only the outer gradient applies.

    Reference: Hu et al. (2020), Learning to utilize shaping rewards, the explicit mapping method.
    """

    def meta_gradient(
        problem: MetaProblem, theta: PyTree, phi: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, HypergradientInfo]:
        del key
        g, gradient = (problem.outer_gradient or jax.grad(problem.outer_loss, argnums=(0, 1)))(theta, phi)
        g_norm = trees.norm(g)
        zero = jnp.zeros_like(g_norm)
        return gradient, HypergradientInfo(zero, jnp.int32(0), zero, zero, zero, outer_gradient_norm=g_norm)

    return meta_gradient


def _warn_if_large(found: LinearSolution) -> None:
    """Says that a solve has failed, where its numbers are known already."""
    residual = found.residual_norm
    if isinstance(residual, jax.core.Tracer) or residual <= LARGE_RESIDUAL:
        return
    cut = ", and a guard cut the solution (negative curvature, divergence or max_ratio)" if found.was_cut else ""
    warnings.warn(
        f"implicit_gradient: the relative residual |A x - g| / |g| is {residual:.2g}{cut}, so the gradient may be far "
        "off: give the solver more steps, take solver=dense() where there are few parameters, or damping='auto'",
        stacklevel=3,
    )


def _exact_product(inner_loss: Loss, theta: PyTree, phi: PyTree, x: PyTree) -> PyTree:
    # The slope along x forwards, then backwards to phi alone: nothing goes back through theta.
    return jax.grad(lambda p: jax.jvp(lambda t: inner_loss(t, p), (theta,), (x,))[1])(phi)


def _difference_product(inner_loss: Loss, theta: PyTree, phi: PyTree, x: PyTree) -> PyTree:
    gradient = jax.grad(inner_loss, argnums=1)
    return optax.tree.sub(gradient(optax.tree.add(theta, x), phi), gradient(theta, phi))
