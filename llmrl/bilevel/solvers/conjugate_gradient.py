"""Conjugate gradients, for few steps and operators that may turn out indefinite."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import Number, checked_integer, checked_number, geometry, solution
from llmrl.bilevel.types import LinearSolution, MatVec, Solver
from llmrl.types import Scalar


class _Progress(NamedTuple):
    """Where the iteration stands.

    Attributes:
        x: the iterate.
        residual: b - A x, by recurrence.
        direction: p, the next to be searched.
        squared: |b - A x|^2.
        active: whether there is anything left to do.
        blocked: whether a direction without positive curvature ended it.
        products: spent so far.
    """

    x: PyTree
    residual: PyTree
    direction: PyTree
    squared: Scalar
    active: Bool[Array, ""]
    blocked: Bool[Array, ""]
    products: Int[Array, ""]


def conjugate_gradient(num_steps: int = 10, tolerance: Number = 1e-5) -> Solver:
    """The best solution within the Krylov space of ``num_steps`` products, for positive definite A.

    Exact after as many steps as A has distinct eigenvalues; as costly as a von Neumann series of that many terms and
    closer. It stops early, and stops counting products, when

    * ``|A x - b| <= tolerance |b|`` by its own recurrence, or
    * a direction p shows ``p^T A p <= 0``, up to rounding: A is not positive definite and the next step would run to a
      saddle. The iterate so far, which has seen positive curvature only, stays. At the very first step there is none,
      and ``x = b |b| / |A b|`` is returned, b scaled by the size of the curvature along it (``x = b`` if that is 0 or
      not finite). ``was_cut`` is 1 then.

    Args:
        num_steps: the most products to spend.
        tolerance: at least 0, shape [].

    Raises:
        ValueError: a setting is out of range.

    Reference: Nocedal and Wright (2006), Numerical Optimization, Algorithms 5.2 and 7.1 (its negative-curvature exit).
    """
    num_steps = checked_integer("num_steps", num_steps, at_least=1)
    tolerance = checked_number("tolerance", tolerance, at_least=0.0)

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        del key
        # Squares of a policy gradient that has all but vanished would underflow; those of a unit vector do not.
        dot, _, normalized, _ = geometry(matvec)
        unit, size = normalized(b)
        precision = float(jnp.finfo(size.dtype).eps)
        target = jnp.maximum(jnp.asarray(tolerance).astype(size.dtype), precision)

        def step(now: _Progress, _: None) -> tuple[_Progress, None]:
            return _step(matvec, now, target, precision), None

        squared = dot(unit, unit)
        no = jnp.asarray(False)
        start = _Progress(optax.tree.zeros_like(b), unit, unit, squared, jnp.sqrt(squared) > target, no, jnp.int32(0))
        end, _ = jax.lax.scan(step, start, None, length=num_steps)
        return solution(matvec, trees.scale(end.x, size), b, end.products, end.blocked)

    return Solver(solve, krylov_products=num_steps + 1)


def _step(matvec: MatVec, now: _Progress, target: Scalar, precision: Number) -> _Progress:
    dot, norm, _, _ = geometry(matvec)
    product = matvec(now.direction)
    curvature = dot(now.direction, product)
    product_norm = norm(product)
    # Relative to what rounding alone can make of the inner product, and not to the number of parameters: a bound that
    # grows with it refuses well-conditioned but weakly curved problems.
    curved = curvature > precision * norm(now.direction) * product_norm
    moves = now.active & curved
    length = now.squared / jnp.where(moves, curvature, 1)
    residual = trees.add_scaled(now.residual, -length, product)
    squared = dot(residual, residual)
    ratio = squared / jnp.where(now.squared > 0, now.squared, 1)
    usable = jnp.isfinite(product_norm) & (product_norm > 0)
    scaled_b = trees.scale(now.direction, 1 / jnp.where(usable, product_norm, 1))
    blocks = now.active & ~curved
    kept = optax.tree.where(blocks & (now.products == 0), scaled_b, now.x)
    return _Progress(
        x=optax.tree.where(moves, trees.add_scaled(now.x, length, now.direction), kept),
        residual=optax.tree.where(moves, residual, now.residual),
        direction=optax.tree.where(moves, trees.add_scaled(residual, ratio, now.direction), now.direction),
        squared=jnp.where(moves, squared, now.squared),
        active=moves & (jnp.sqrt(squared) > target),
        blocked=now.blocked | blocks,
        products=now.products + jnp.int32(now.active),
    )
