"""Linear systems in the space that a batch spans: as many coordinates as samples, however many parameters there are."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.types import Jacobian, LinearOperator, MatVec, Reduction, SampleGradients
from llmrl.types import Scalar

LARGEST = 4096
"""Most samples: their inner products with each other have to be kept."""


def reduction(matvec: MatVec, b: PyTree, products: int) -> Reduction:
    """A smaller form of ``A x = b`` for a solver that spends so many products, or, where there is none, itself.

    Args:
        matvec: A, any callable or a ``LinearOperator``.
        b: the right-hand side.
        products: as ``Solver.krylov_products``; 0 leaves the system as it is.
    """
    as_it_is = matvec if isinstance(matvec, LinearOperator) else LinearOperator(matvec)
    whole = Reduction(as_it_is, b, lambda x: x)
    if not products or as_it_is.reduce is None:
        return whole
    return as_it_is.reduce(b, products) or whole


def on_samples(
    jacobian: Jacobian,
    shares: Callable[[Float[Array, " samples"]], Float[Array, " samples"]],
    b: PyTree,
    products: int,
) -> Reduction | None:
    """A Fisher information ``F = U^T diag(w) U``, U the samples' gradients, among the vectors ``x = c b/|b| + U^T z``.

    They hold b and F b, F^2 b, ..., so whatever is made of these is found here, exactly:

        F x = U^T w (c p + G z),    <x, x'> = c c' + c p.z' + c' p.z + z.G z',    p = U b/|b|,    G = U U^T.

    G is the sum over layers of ``(1 + inputs inputs^T) * (slopes slopes^T)``. After it a product costs S^2 operations
    for S samples, where differentiating forwards and backwards costs four times S times the number of weights. G z is
    kept beside c and z: it is linear in them as everything else is, and then no inner product has to multiply with G.

    Args:
        jacobian: U, its samples on one axis.
        shares: any numbers [s] -> w, [s].
        b: the right-hand side.
        products: how many will be spent.

    Returns:
        The reduction; None where it would cost more than it saves.

    Reference: Ren and Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient methods for training
    neural networks, section 3, for solving among the samples.
    """
    layers = jacobian.layers
    samples = layers[0].slope.shape[0]
    widths = sum((0 if one.input is None else one.input.shape[1]) + one.slope.shape[1] for one in layers)
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(b))
    # Two products' worth is spent in any case, on p and on the way back.
    if samples > LARGEST or samples * widths > 4 * weights * (products - 2):
        return None
    unit, size = trees.normalized(b)
    along_b = jacobian.along(unit)
    gram = sum(_inner_products(one) for one in layers)
    share = shares(along_b)

    def dot(x, y) -> Scalar:
        # <U x, z'> is shared by two of the four terms.
        (c, z, seen), (d, w, _) = x, y
        return c * d + d * jnp.dot(along_b, z) + jnp.dot(c * along_b + seen, w)

    def completed(x):
        c, z, _ = x
        return c, z, gram @ z

    def matvec(x):
        c, _, seen = x
        return completed((jnp.zeros_like(c), share * (c * along_b + seen), None))

    def lift(x):
        c, z, _ = x
        return trees.add_scaled(jacobian.back(z), c, unit)

    nothing = jnp.zeros_like(along_b)
    return Reduction(LinearOperator(matvec, dot=dot, completed=completed), (size, nothing, nothing), lift)


def _inner_products(layer: SampleGradients) -> Float[Array, "s s"]:
    of_slopes = layer.slope @ layer.slope.T
    return of_slopes if layer.input is None else of_slopes * (1.0 + layer.input @ layer.input.T)
