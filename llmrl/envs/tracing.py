"""A user's function, tried on shapes alone before anything is trained: it has to be pure jax."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.core
import numpy as np

_ADDRESS = re.compile(r"0x[0-9a-f]+|<[^<>]*at [^<>]*>")


def traced(what: str, function: Any, *arguments: Any, hint: str, **keywords: Any) -> Any:
    """What a function returns, as shapes and dtypes; it is traced, never run.

    Args:
        what: the function's name and role, as errors begin.
        function: a callable of arrays.
        *arguments: shapes and dtypes, or arrays.
        hint: what is expected of it, as errors end.
        **keywords: more of them, by name.

    Raises:
        TypeError: it cannot be traced, or takes other arguments.
        ValueError: it raises anything else; or it is not pure: traced twice it gives two different programs, or it
            reads or writes something outside.
    """
    try:
        returned = jax.eval_shape(function, *arguments, **keywords)
    except Exception as error:
        # Untraceable code and a wrong number of arguments both raise TypeErrors; the rest is the function's own affair.
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what} failed: {first_line(error)}; {hint}{_advice(error)}") from error
    arrays = all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(returned))
    if arrays and (impurity := _impurity(function, arguments, keywords)):
        raise ValueError(f"{what} is not pure: {impurity}; {hint}")
    return returned


def _impurity(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str | None:
    try:
        # A function of its own each time, or jax would remember the first.
        first, second = (jax.make_jaxpr(lambda *a, **k: function(*a, **k))(*arguments, **keywords) for _ in range(2))
    except Exception as error:
        return f"traced once more it failed ({first_line(error)})"
    if not _same(first, second):
        return (
            "traced twice it gave two different programs, as with numpy's random numbers, the clock or a counter, "
            "whose first value would be frozen into all of training"
        )
    outside = sorted(str(effect) for effect in first.effects if "Debug" not in type(effect).__name__)
    return f"it reads or writes something outside ({', '.join(outside)})" if outside else None


def first_line(error: BaseException) -> str:
    """What an error is and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _same(first: Any, second: Any) -> bool:
    if _ADDRESS.sub("", str(first)) != _ADDRESS.sub("", str(second)) or len(first.consts) != len(second.consts):
        return False
    return all(_equal(a, b) for a, b in zip(first.consts, second.consts, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):  # left over from the trace before
        return False
    if a is b:
        return True
    if hasattr(a, "dtype") and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    # Bytes, so that NaN is itself.
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _advice(error: BaseException) -> str:
    untraceable = isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
    return ". Use jnp.where instead of `if`, and jnp instead of numpy or float(...)" if untraceable else ""
