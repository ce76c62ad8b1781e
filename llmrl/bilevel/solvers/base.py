"""What all solvers share: how a solution is reported, what is asked of an operator, how settings are checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

from llmrl.bilevel import trees
from llmrl.bilevel.types import LinearOperator, LinearSolution, MatVec
from llmrl.types import Scalar

Number: TypeAlias = int | float | np.number | Scalar
"""A setting of a solver: a plain number, or an array of shape [], traced or not."""


class Geometry(NamedTuple):
    """How long vectors are, and at what angles.

    Attributes:
        dot: ``(v, w) -> <v, w>``.
        norm: ``v -> |v|``; infinite or NaN if an element is, or if the norm itself cannot be represented.
        normalized: ``v -> (v / |v|, |v|)``; zero stays zero.
        drawn: ``(key, like) -> v``, of independent standard normal numbers as far as they are free.
    """

    dot: Callable[[PyTree, PyTree], Scalar]
    norm: Callable[[PyTree], Scalar]
    normalized: Callable[[PyTree], tuple[PyTree, Scalar]]
    drawn: Callable[[PRNGKeyArray, PyTree], PyTree]


def geometry(matvec: MatVec) -> Geometry:
    """The geometry in which an operator is symmetric: that of the numbers, unless it brings an inner product along."""
    own = matvec.dot if isinstance(matvec, LinearOperator) else None
    if own is None:
        return Geometry(trees.dot, trees.norm, trees.normalized, trees.normal_like)
    dot = own
    completed = matvec.completed if isinstance(matvec, LinearOperator) else None

    def norm(v: PyTree) -> Scalar:
        # As ``trees.norm``: neither overflow nor underflow of squares. Rounding may leave a square below zero.
        largest = optax.tree.norm(v, ord=jnp.inf)
        unit = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1)
        scaled = jax.tree.map(lambda x: x / unit, v)
        squared = dot(scaled, scaled)
        return unit * jnp.sqrt(jnp.where(squared < 0, 0, squared))

    def normalized(v: PyTree) -> tuple[PyTree, Scalar]:
        size = norm(v)
        return trees.scale(v, jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)), size

    def drawn(key: PRNGKeyArray, like: PyTree) -> PyTree:
        numbers = trees.normal_like(key, like)
        return numbers if completed is None else completed(numbers)

    return Geometry(dot, norm, normalized, drawn)


def solution(
    matvec: MatVec, x: PyTree, b: PyTree, num_matvecs: ArrayLike, was_cut: ArrayLike = False
) -> LinearSolution:
    """Report ``x`` with its true relative residual, ``|A x - b| / |b|``, for which A is multiplied once more.

    The compiler removes the product where the caller does not use the residual.

    Args:
        matvec: ``v -> A v``.
        x: the solution found, structured like ``b``.
        b: the right-hand side. Where it is zero the residual is ``|A x|``: 0 for the only sensible answer, x = 0.
        num_matvecs: products spent on finding ``x``, shape [].
        was_cut: whether a guard changed ``x``, shape [].
    """
    norm = geometry(matvec).norm
    error = norm(optax.tree.sub(matvec(x), b))
    size = norm(b)
    return LinearSolution(
        x=x,
        residual_norm=error / jnp.where(size > 0, size, 1),
        num_matvecs=jnp.asarray(num_matvecs, jnp.int32),
        was_cut=jnp.asarray(was_cut).astype(size.dtype),
    )


def required(matvec: MatVec, part: str, solver: str) -> Callable[..., Any]:
    """The named part of an operator, for a solver that cannot do without it.

    Args:
        matvec: what was given to the solver as its operator.
        part: a field of ``LinearOperator``.
        solver: the solver's name, for the message.

    Raises:
        TypeError: ``matvec`` is a bare function, or an operator without that part.
    """
    found = getattr(matvec, part) if isinstance(matvec, LinearOperator) else None
    if found is None:
        raise TypeError(
            f"{solver} needs a LinearOperator that has `{part}`, as products alone are not enough for it; "
            f"received {matvec!r}. `hessian` has `gradient`; `fisher` has `diagonal` and `factors`."
        )
    return found


def is_automatic(value: Any) -> bool:
    """Whether a setting that may be a number or "auto" is the latter (asked of no array: those compare by element)."""
    return isinstance(value, str) and value == "auto"


def checked_integer(name: str, value: Any, at_least: int) -> int:
    """``value`` as an int, if it is one.

    Raises:
        ValueError: not an integer known at compile time, or below ``at_least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, fixed before tracing; received {value!r}")
    return int(value)


def checked_number(
    name: str, value: Any, *, above: float = -math.inf, at_least: float = -math.inf, or_else: str = ""
) -> Any:
    """``value`` itself, if it is a finite scalar in range. Tracers pass: their values are not known yet.

    Args:
        name: the setting's name, for the message.
        value: a number or an array of shape [].
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        or_else: what else would have been welcome, for the message.

    Raises:
        ValueError: not a number, not a scalar, not finite, or out of range.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    number = isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
    if not (number and np.shape(value) == () and np.isfinite(value) and value > above and value >= at_least):
        bound = f" above {above:g}" if above > -math.inf else f" of at least {at_least:g}"
        raise ValueError(f"{name} must be {or_else and or_else + ' or '}a finite number{bound}; received {value!r}")
    return value
