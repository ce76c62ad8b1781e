"""The diagonal in place of the operator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import Number, checked_integer, checked_number, solution
from llmrl.bilevel.types import LinearOperator, LinearSolution, MatVec, Solver


def diagonal(num_probes: int = 8, damping: Number = 1e-3) -> Solver:
    """Divide by the operator's diagonal, ``x_i = b_i / (|d_i| + damping)``.

    The modulus keeps every component's sign: where curvature is negative its size still says how far to go, and x never
    turns against b. d is the operator's own ``diagonal`` if it has one (a Fisher's is the paper's E[psi o psi], o the
    Hadamard product), else Hutchinson's estimate

        d ~ 1/P sum_p z_p o A z_p,    z_p of independent signs,

    whose error comes from the elements off the diagonal only.

    Args:
        num_probes: P, products to spend where the operator does not know its diagonal.
        damping: above 0, shape []; bounds ``|x| <= |b| / damping``.

    Raises:
        ValueError: a setting is out of range.

    Reference: the seed paper, appendix A.1; Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a
        matrix.
    """
    num_probes = checked_integer("num_probes", num_probes, at_least=1)
    damping = checked_number("damping", damping, above=0.0)

    def solve(matvec: MatVec, b: PyTree, key: PRNGKeyArray) -> LinearSolution:
        known = matvec.diagonal if isinstance(matvec, LinearOperator) else None
        d = probed_diagonal(matvec, b, key, num_probes) if known is None else known()
        x = jax.tree.map(lambda bi, di: bi / (jnp.abs(di) + jnp.asarray(damping).astype(di.dtype)), b, d)
        return solution(matvec, x, b, num_probes if known is None else 0)

    return Solver(solve)


def probed_diagonal(matvec: MatVec, like: PyTree, key: PRNGKeyArray, num_probes: int) -> PyTree:
    """Hutchinson's estimate of a diagonal, the mean of ``z o A z`` over ``num_probes`` vectors z of random signs.

    Args:
        matvec: ``v -> A v``.
        like: a pytree with the structure that A multiplies.
        key: for the signs.
        num_probes: products to spend, one after the other to save memory.
    """

    def add_probe(total: PyTree, probe_key: PRNGKeyArray) -> tuple[PyTree, None]:
        z = trees.rademacher_like(probe_key, like)
        return optax.tree.add(total, optax.tree.mul(z, matvec(z))), None

    total, _ = jax.lax.scan(add_probe, optax.tree.zeros_like(like), jax.random.split(key, num_probes))
    return trees.scale(total, 1 / num_probes)
