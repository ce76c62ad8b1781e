"""The same hypergradient by other libraries, to measure ours beside."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from llmrl.bilevel.types import HypergradientInfo, MetaGradient


def root_vjp(num_steps: int, damping: float) -> MetaGradient:
    """jaxopt's implicit differentiation of the root of grad_theta L_aux, by conjugate gradients on the whole batch.

    Args:
        num_steps: of conjugate gradients, all of which are taken.
        damping: added to the Hessian's diagonal.

    Returns:
        A ``MetaGradient`` that ignores its key; of its info only the number of steps applies.

    Raises:
        ImportError: jaxopt is not installed.

    Reference: Blondel et al. (2022), Efficient and modular implicit differentiation.
    """
    from jaxopt import implicit_diff, linear_solve

    solve = partial(linear_solve.solve_cg, ridge=damping, tol=0.0, maxiter=num_steps)

    def meta_gradient(problem, theta, phi, key):
        del key
        g, direct = jax.grad(problem.outer_loss, argnums=(0, 1))(theta, phi)
        root = jax.grad(problem.inner_loss)
        (along_phi,) = implicit_diff.root_vjp(root, theta, (phi,), g, solve=solve)
        zero = jnp.zeros(())
        return optax.tree.add(direct, along_phi), HypergradientInfo(zero, jnp.int32(num_steps), zero, zero, zero, zero)

    return meta_gradient
