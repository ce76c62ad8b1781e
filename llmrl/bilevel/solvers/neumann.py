"""The von Neumann series in Richardson's form, with exact products or with differences of gradients."""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import (
    Number,
    checked_integer,
    checked_number,
    geometry,
    is_automatic,
    required,
    solution,
)
from llmrl.bilevel.solvers.operators import extreme_eigenvalues
from llmrl.bilevel.types import LinearSolution, MatVec, Solver
from llmrl.types import Scalar

SAFETY = 0.9
"""Automatic steps aim at this multiple of 1 / |lambda|_max; the series bears an estimate 2.2 times too low."""

SLACK = 2.0
"""A partial sum counts as diverging when it is this many times longer than a semi-definite operator could make it."""

_Carry: TypeAlias = tuple[PyTree, Int[Array, ""], Bool[Array, ""]]


def neumann(
    num_terms: int = 20,
    step_size: Number | str = "auto",
    power_iterations: int = 4,
    max_step_size: Number = 0.5,
) -> Solver:
    """Truncated von Neumann series, ``x = a sum_{k=0..K} (I - a A)^k b``.

    Evaluated as ``x_0 = a b, x_{k+1} = x_k + a (b - A x_k)``. It converges where all eigenvalues of A lie in (0, 2/a):

        |x_K - A^-1 b| <= |I - a A|^(K+1) |A^-1 b|.

    An indefinite A makes it diverge. Then it stops at the last partial sum within reach (see ``richardson``), says so
    in ``was_cut``, and never overflows.

    Args:
        num_terms: K, products to spend on the series; 0 gives ``a b``.
        step_size: a > 0, shape [], or "auto": ``min(max_step_size, 0.9 / |lambda|_max)``, |lambda|_max estimated anew
            at each solve.
        power_iterations: for "auto", products to spend on powers of A, from which the estimate is made; the first
            vector is half b and half noise from the key, as it is in b's directions that the series would diverge
            first.
        max_step_size: for "auto", the largest step, shape [].

    Raises:
        ValueError: a setting is out of range.

    Reference: the seed paper, section 3.3; Lorraine, Vicol and Duvenaud (2020), Optimizing millions of hyperparameters.
    """
    num_terms = checked_integer("num_terms", num_terms, at_least=0)
    power_iterations = checked_integer("power_iterations", power_iterations, at_least=1)
    max_step_size = checked_number("max_step_size", max_step_size, above=0.0)
    automatic = is_automatic(step_size)
    if not automatic:
        step_size = checked_number("step_size", step_size, above=0.0, or_else="'auto'")

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        step = _automatic_step(matvec, b, key, power_iterations, max_step_size) if automatic else jnp.asarray(step_size)
        x, products, was_cut = richardson(matvec, b, step, num_terms)
        return solution(matvec, x, b, products + power_iterations * automatic, was_cut)

    return Solver(solve, krylov_products=num_terms + power_iterations * automatic + 1)


def neumann_finite_difference(
    num_terms: int = 5,
    step_size: Number = 0.05,
    relative: bool = False,
    difference_step: Number = 1e-2,
) -> Solver:
    """The series with gradients only: products with the Hessian are differences of two gradients.

    By default the paper's Algorithm 1. With the letters of the paper, a the conditioner, g = b, L the loss of which A
    is the Hessian, it iterates from 0

        x <- x + g - [grad L(theta + a x) - grad L(theta)],

    which undoes ``I - a H`` and so goes to ``(a H)^-1 g``: a is the difference step as well, and there is nothing to
    divide by. In terms of ``y = a x``, which goes to ``H^-1 g`` and is what a ``LinearSolution`` holds, the same line
    reads

        y <- y + a (g - [grad L(theta + y) - grad L(theta)]),

    the series above with ``H y`` replaced by the undivided difference along y itself. The paper's last line, the mixed
    product ``grad_phi L(theta + a x) - grad_phi L(theta)``, is then ``grad_phi L(theta + y) - grad_phi L(theta)``:
    ``mixed_by_difference`` asks the hypergradient for it. The perturbation is as long as y, so the differences are as
    good as L is quadratic in theta over that distance, and the mixed product as good as ``grad_phi L`` is linear in
    theta. The residual says nothing of the mixed product.

    With ``relative`` the robust variant: central differences over the fixed distance c whatever v is,
    ``H v ~ |v| / (2 c) [grad L(theta + c v/|v|) - grad L(theta - c v/|v|)]``, and an exact mixed product.

    Args:
        num_terms: differences to spend. The algorithm's first pass, from 0, only finds g; it is not counted here, so
            its "number of iterations" is ``num_terms + 1``, and ``num_terms`` means the same as for ``neumann``.
        step_size: a > 0, the conditioner, shape []; smaller than 2 / lambda_max.
        relative: see above.
        difference_step: c > 0, in units of the parameters' norm, for ``relative`` only, shape []. Near the cube root of
            the precision rounding and curvature's own change cost about the same: 1e-2 suits float32, 1e-5 float64.

    Raises:
        ValueError: a setting is out of range.
        TypeError: (from the solve) the operator has no ``gradient``.

    Reference: the seed paper, Algorithm 1.
    """
    num_terms = checked_integer("num_terms", num_terms, at_least=0)
    step_size = checked_number("step_size", step_size, above=0.0)
    difference_step = checked_number("difference_step", difference_step, above=0.0)

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        del key
        gradient = required(matvec, "gradient", "neumann_finite_difference")
        at_point = gradient(optax.tree.zeros_like(b))

        def along_itself(y: PyTree) -> PyTree:
            return optax.tree.sub(gradient(y), at_point)

        def over_fixed_distance(v: PyTree) -> PyTree:
            direction, length = trees.normalized(v)
            offset = trees.scale(direction, difference_step)
            difference = optax.tree.sub(gradient(offset), gradient(trees.scale(offset, -1)))
            return trees.scale(difference, length / (2 * jnp.asarray(difference_step).astype(length.dtype)))

        product = over_fixed_distance if relative else along_itself
        x, products, was_cut = richardson(product, b, jnp.asarray(step_size), num_terms)
        return solution(matvec, x, b, products, was_cut)

    return Solver(solve, mixed_by_difference=not relative)


def richardson(
    matvec: MatVec, b: PyTree, step_size: Scalar, num_terms: int
) -> tuple[PyTree, Int[Array, ""], Bool[Array, ""]]:
    """``num_terms`` passes of ``x <- x + a (b - A x)`` from ``x = a b``, halted where they diverge.

    With a positive semi-definite A and ``a <= 2 / lambda_max`` no partial sum is longer than ``a (num_terms + 1) |b|``.
    One that is ``SLACK`` times longer, or not finite, has met negative curvature or too long a step; the one before it
    stays. (Scaling the long one back would keep nothing but the direction that diverges fastest.)

    Args:
        matvec: ``v -> A v``, or something near it.
        b: right-hand side.
        step_size: a, shape [].
        num_terms: passes.

    Returns:
        x, the products spent until the end or the halt, and whether it was halted.
    """
    norm = geometry(matvec).norm
    reach = norm(b)
    reach = SLACK * (num_terms + 1) * step_size.astype(reach.dtype) * reach

    def one_pass(carry: _Carry, _: None) -> tuple[_Carry, None]:
        x, products, halted = carry
        proposal = trees.add_scaled(x, step_size, optax.tree.sub(b, matvec(x)))
        halts = halted | ~(norm(proposal) <= reach)  # not `>`: a NaN has to halt
        return (optax.tree.where(halts, x, proposal), products + jnp.int32(~halted), halts), None

    start = (trees.scale(b, step_size), jnp.int32(0), jnp.asarray(False))
    return jax.lax.scan(one_pass, start, None, length=num_terms)[0]


def _automatic_step(
    matvec: MatVec, b: PyTree, key: PRNGKeyArray, iterations: int, max_step_size: Number
) -> Float[Array, ""]:
    _, _, normalized, drawn = geometry(matvec)
    # In one dimension the noise would be the opposite of b half of the time, and nothing be seen of the operator.
    noise = normalized(b if optax.tree.size(b) == 1 else drawn(key, b))[0]
    low, high = extreme_eigenvalues(matvec, optax.tree.add(normalized(b)[0], noise), iterations)
    radius = jnp.maximum(jnp.abs(low), jnp.abs(high))
    longest = jnp.asarray(max_step_size).astype(radius.dtype)
    # A zero or unusable estimate leaves the longest step.
    too_long = longest * radius > SAFETY
    return jnp.where(too_long, SAFETY / jnp.where(too_long, radius, 1), longest)
