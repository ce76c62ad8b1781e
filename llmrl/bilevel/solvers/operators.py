"""Symmetric linear maps to invert, apart from the solvers that invert them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.solvers.base import Number, checked_integer, checked_number, geometry, is_automatic
from llmrl.bilevel.solvers.reduction import on_samples
from llmrl.bilevel.types import Jacobian, LinearOperator, MatVec, Reduction
from llmrl.types import Scalar

FLOOR = 1e-3
"""Automatic damping is never less than this share of the largest curvature ..."""

MARGIN = 1e-2
"""... and lifts the lowest estimated eigenvalue above zero by this share of it, ..."""

DISTRUST = 0.1
"""... after taking a negative one for this much larger than estimated: a Krylov estimate never errs to the far side."""


def hessian(loss: Callable[[PyTree], Scalar], point: PyTree) -> LinearOperator:
    """The Hessian of ``loss`` at ``point``, ``H v = d/ds grad loss(point + s v) at s = 0``.

    Products differentiate the gradient forwards (forward over reverse), which costs less time and memory than reverse
    over reverse, and as much as linearising once.

    Args:
        loss: pytree -> scalar, twice differentiable.
        point: where, any pytree of floats.

    Returns:
        An operator with ``gradient``. In general it is indefinite.

    Reference: Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """
    gradient = jax.grad(loss)
    return LinearOperator(
        matvec=lambda v: jax.jvp(gradient, (point,), (v,))[1],
        gradient=lambda delta: gradient(optax.tree.add(point, delta)),
    )


def fisher(
    log_likelihood: Callable[[PyTree], Float[Array, " samples"]],
    point: PyTree,
    weights: Float[Array, " samples"] | None = None,
    scores: Callable[[], PyTree] | None = None,
    jacobian: Jacobian | None = None,
) -> LinearOperator:
    """Weighted second moment of the score, ``F = 1/S sum_i w_i u_i u_i^T`` with ``u_i = grad log p_i(point)``.

    Positive semi-definite if no weight is negative. Products need no per-sample gradient: ``J^T (w * (J v)) / S``.

    Args:
        log_likelihood: point -> log-probability of each sample, [samples].
        point: where, any pytree of floats.
        weights: w, [samples]; None means 1.
        scores: the u_i as a pytree with a leading sample axis, where there is a cheaper way to them, such as ``vmap``
            of ``grad`` over examples. ``log_likelihood`` alone cannot be taken apart: without this, ``factors`` and
            ``diagonal`` cost one backward pass over the whole batch for each sample.
        jacobian: the u_i layer by layer, where they can be had so: products pass through the network no more, and the
            operator can ``reduce`` itself.

    Returns:
        An operator with ``factors`` and ``diagonal``; both hold samples x parameters numbers. For a diagonal in less
        memory drop it (``operator._replace(diagonal=None)``) and the solver will probe.

    Reference: Amari (1998), Natural gradient works efficiently in learning.
    """

    def shares(values: Float[Array, " samples"]) -> Float[Array, " samples"]:
        each = jnp.ones_like(values) if weights is None else weights.astype(values.dtype)
        return each / values.size

    def matvec(v: PyTree) -> PyTree:
        if jacobian is not None:
            slopes = jacobian.along(v)
            return jacobian.back(shares(slopes) * slopes)
        values, slopes = jax.jvp(log_likelihood, (point,), (v,))
        return jax.vjp(log_likelihood, point)[1](shares(values) * slopes)[0]

    def factors() -> tuple[PyTree, Float[Array, " samples"]]:
        values, pull = jax.vjp(log_likelihood, point)
        if scores is not None:
            return scores(), shares(values)
        # One after the other: together they would hold every sample's activations once for each sample.
        return jax.lax.map(lambda one: pull(one)[0], jnp.eye(values.size, dtype=values.dtype)), shares(values)

    def diagonal() -> PyTree:
        u, w = factors()
        return jax.tree.map(lambda leaf: jnp.tensordot(w.astype(leaf.dtype), leaf * leaf, axes=1), u)

    def reduce(b: PyTree, products: int) -> Reduction | None:
        assert jacobian is not None
        return on_samples(jacobian, shares, b, products)

    reduced = None if jacobian is None else reduce
    return LinearOperator(matvec=matvec, diagonal=diagonal, factors=factors, reduce=reduced)


def damped(
    operator: LinearOperator,
    damping: Number | str,
    key: PRNGKeyArray | None = None,
    like: PyTree | None = None,
    power_iterations: int = 10,
) -> tuple[LinearOperator, Number]:
    """``A + damping I``, the damping given or taken from the spectrum.

    "auto" spends ``power_iterations`` products on estimates ``low`` and ``high`` of the extreme eigenvalues, and takes

        damping = max(FLOOR r, -low (1 + DISTRUST [low < 0]) + MARGIN r),    r = max(|low|, |high|),

    so that the damped operator is positive definite with a condition number of about 1 / MARGIN at worst, unless it was
    better than that before, where the floor alone is added.

    Args:
        operator: A.
        damping: a number of at least 0, shape [], or "auto".
        key: for "auto".
        like: for "auto", a pytree with the structure that A multiplies.
        power_iterations: for "auto", products to spend.

    Returns:
        The damped operator and the damping. ``gradient`` and ``diagonal`` are damped as well. ``factors`` stay those of
        A, as no sum of few outer products is an identity: ``sherman_morrison`` has a damping of its own.

    Raises:
        ValueError: ``damping`` is neither "auto" nor a number of at least 0, or "auto" lacks ``key`` or ``like``.
    """
    if is_automatic(damping):
        if key is None or like is None:
            raise ValueError(f"damping 'auto' needs key and like; received key={key!r} and like={like!r}")
        value = _automatic_damping(operator, like, key, power_iterations)
    else:
        value = checked_number("damping", damping, at_least=0.0, or_else="'auto'")
    gradient, diagonal = operator.gradient, operator.diagonal
    return LinearOperator(
        matvec=lambda v: trees.add_scaled(operator(v), value, v),
        gradient=gradient and (lambda delta: trees.add_scaled(gradient(delta), value, delta)),
        diagonal=diagonal and (lambda: jax.tree.map(lambda d: d + jnp.asarray(value).astype(d.dtype), diagonal())),
        factors=operator.factors,
        dot=operator.dot,
        completed=operator.completed,
    ), value


def _automatic_damping(matvec: MatVec, like: PyTree, key: PRNGKeyArray, iterations: int) -> Scalar:
    low, high = extreme_eigenvalues(matvec, geometry(matvec).drawn(key, like), iterations)
    radius = jnp.maximum(jnp.abs(low), jnp.abs(high))
    lift = jnp.where(low < 0, -(1 + DISTRUST) * low, -low) + MARGIN * radius
    return jnp.maximum(FLOOR * radius, lift)


EXHAUSTED = 5e-3
"""Share of A's size below which what a product adds to the space is rounding: norms may err by a root of epsilon."""


def extreme_eigenvalues(matvec: MatVec, start: PyTree, iterations: int) -> tuple[Scalar, Scalar]:
    """Estimates ``(low, high)`` of a symmetric A's smallest and largest eigenvalue, from a few products.

    The extreme values of v^T A v over unit v in span{s, A s, ..., A^(iterations-1) s}, by Lanczos' recurrence. A power
    iteration looks at the last of these vectors only: for the same products it finds one end, later, and a small
    negative eigenvalue beside a large positive one practically never. The basis is not kept nor made orthogonal again:
    rounding then repeats extreme values, but does not move them.

    Args:
        matvec: ``v -> A v``.
        start: s, not zero; structured like what A multiplies. Nothing orthogonal to it is seen.
        iterations: products to spend, at least 1.

    Returns:
        Two scalars within the range of A's spectrum, exact once ``iterations`` reaches the number of distinct
        eigenvalues.

    Reference: Golub and Van Loan (2013), Matrix Computations, section 10.1.
    """
    checked_integer("iterations", iterations, at_least=1)

    dot, _, normalized, _ = geometry(matvec)

    def step(carry: tuple[PyTree, PyTree, Scalar], _: None) -> tuple[tuple[PyTree, PyTree, Scalar], tuple]:
        previous, current, coupling = carry
        product = matvec(current)
        quotient = dot(current, product)
        rest = trees.add_scaled(trees.add_scaled(product, -quotient, current), -coupling, previous)
        following, next_coupling = normalized(rest)
        return (current, following, next_coupling), (quotient, next_coupling)

    first = normalized(start)[0]
    init = (optax.tree.zeros_like(first), first, jnp.zeros((), trees.common_dtype(first)))
    _, (quotients, couplings) = jax.lax.scan(step, init, None, length=iterations)
    # A space that is exhausted early continues with zero vectors, or with what rounding left: neither's quotient need
    # lie within the spectrum.
    least = EXHAUSTED * (jnp.abs(quotients[0]) + couplings[0])
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(couplings[:-1] > least) > 0])
    quotients = jnp.where(alive, quotients, quotients[0])
    return _tridiagonal_extremes(quotients, jnp.where(alive[1:], couplings[:-1], 0))


def _tridiagonal_extremes(
    diagonal: Float[Array, " n"], beside: Float[Array, " n-1"], halvings: int = 30
) -> tuple[Scalar, Scalar]:
    """Smallest and largest eigenvalue of a small symmetric tridiagonal matrix, by bisection on Sturm's sequence.

    ``eigvalsh`` would do, were it not a library call that waits on a thread pool: several simulated CPU devices share
    one pool, and their programs then wait for each other for ever.
    """
    padded = jnp.pad(jnp.abs(beside), 1)
    reach = padded[:-1] + padded[1:]
    # Gershgorin's discs hold all eigenvalues; a little wider, so that neither end is an eigenvalue itself.
    low, high = jnp.min(diagonal - reach), jnp.max(diagonal + reach)
    width = high - low
    low, high = low - 1e-3 * width, high + 1e-3 * width
    tiny = jnp.finfo(diagonal.dtype).tiny ** 0.5 + 1e-6 * width

    def below(x: Float[Array, " points"]) -> Array:
        """How many eigenvalues are smaller than each x: the negative pivots of A - x I."""
        pivot, count = diagonal[0] - x, (diagonal[0] < x).astype(jnp.int32)
        for i in range(1, diagonal.size):
            # A pivot keeps the sign it was counted with: turned around, the next one would be counted for it again.
            safe = jnp.where(pivot < 0, jnp.minimum(pivot, -tiny), jnp.maximum(pivot, tiny))
            pivot = diagonal[i] - x - jnp.square(beside[i - 1]) / safe
            count = count + (pivot < 0).astype(jnp.int32)
        return count

    # The smallest eigenvalue is where the count leaves 0, the largest where it reaches n.
    wanted = jnp.array([1, diagonal.size], jnp.int32)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = 0.5 * (left + right)
        beyond = below(middle) >= wanted
        return jnp.where(beyond, left, middle), jnp.where(beyond, middle, right)

    left, right = jax.lax.fori_loop(0, halvings, halve, (jnp.stack([low, low]), jnp.stack([high, high])))
    ends = 0.5 * (left + right)
    return ends[0], ends[1]
