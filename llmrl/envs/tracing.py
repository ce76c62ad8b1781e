"""A user's function, tried on shapes alone before anything is trained: it has to be pure jax."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from llmrl.settings.errors import BadType, BadValue, first_line

_ADDRESS = re.compile(r"0x[0-9a-f]+|<[^<>]*at [^<>]*>")
_LONGEST = 200

_once_more = jax.make_user_context(False)
"""Functions that are jitted are remembered by jax; not from one value of this to the other."""


def traced(what: str, function: Any, *arguments: Any, hint: str, **keywords: Any) -> Any:
    """What a function returns, as shapes and dtypes; it is traced, never run.

    Args:
        what: the function's name and role, as errors begin.
        function: a callable of arrays.
        *arguments: shapes and dtypes, or arrays.
        hint: what is expected of it, as errors end.
        **keywords: more of them, by name.

    Raises:
        TypeError: it cannot be traced, takes other arguments, or returns something that is no pytree of arrays.
        ValueError: it raises anything else; it is not pure: traced twice it gives two different programs, it draws
            from numpy's global random generator, or it reads or writes something outside; or ``jax.vmap`` cannot make
            many instances of it.
    """
    try:
        first, returned = _trace(function, arguments, keywords)
    except _NoArrayError as error:
        raise BadType(f"{what} returned {error}; {hint}") from None
    except Exception as error:
        # Untraceable code and a wrong number of arguments both raise TypeErrors; the rest is the function's own affair.
        kind = BadType if isinstance(error, TypeError) else BadValue
        raise kind(f"{what} failed: {first_line(error)}; {hint}{_advice(error)}") from error
    if impurity := _impurity(first, function, arguments, keywords):
        raise BadValue(f"{what} is not pure: {impurity}; {hint}")
    try:
        _trace(jax.vmap(function), *jax.tree.map(_side_by_side, (arguments, keywords)))
    except Exception as error:
        raise BadValue(f"{what} failed under jax.vmap: {first_line(error)}; {hint}") from error
    return returned


def _side_by_side(argument: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an argument for two instances."""
    one = jax.typeof(argument) if not isinstance(argument, jax.ShapeDtypeStruct) else argument
    return jax.ShapeDtypeStruct((2, *one.shape), one.dtype)


class _NoArrayError(TypeError):
    """Something in a returned pytree is no array; the message says what, and where."""


def _trace(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[ClosedJaxpr, Any]:
    """The program that a function is, and the shapes that it returns."""

    # A function of its own each time, or jax would remember the first.
    def called(*arguments, **keywords):
        returned = function(*arguments, **keywords)
        _require_arrays(returned)
        return returned

    return jax.make_jaxpr(called, return_shape=True)(*arguments, **keywords)


def _require_arrays(returned: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(returned):
        try:
            jax.typeof(leaf)
        except TypeError:
            where = f" as {jax.tree_util.keystr(path)}" if path else ""
            raise _NoArrayError(f"{described(leaf)}{where}, which is no array") from None


def _impurity(first: ClosedJaxpr, function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str | None:
    before = _numpys_generator()
    try:
        with _once_more(True):
            second, _ = _trace(function, arguments, keywords)
    except Exception as error:
        return f"traced once more it failed ({first_line(error)})"
    if not _same(first, second):
        return (
            "traced twice it gave two different programs, as with numpy's random numbers, the clock or a counter, "
            "whose first value would be frozen into all of training"
        )
    if _numpys_generator() != before:
        return "it draws from numpy's random numbers, whose first value would be frozen into all of training"
    outside = sorted(str(effect) for effect in first.effects if "Debug" not in type(effect).__name__)
    return f"it reads or writes something outside ({', '.join(outside)})" if outside else None


def _numpys_generator() -> list[Any]:
    """Where numpy's global generator stands. Equal lists mean that it was not drawn from.

    Python's own is no sign: type checkers such as beartype draw from it to choose what they look at.
    """
    return [*map(_bits, jax.tree.leaves(np.random.get_state(legacy=False)))]


def _same(first: ClosedJaxpr, second: ClosedJaxpr) -> bool:
    return all(a == b for a, b in itertools.zip_longest(_words(first), _words(second)))


def _words(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """A program as a sequence of comparable things: constants, operations, what they read, and what they are told."""
    if isinstance(program, ClosedJaxpr):
        yield from map(_bits, program.consts)
        program = program.jaxpr
    numbers: dict[Any, int] = {}

    def number(variable: Any) -> Any:
        is_constant = isinstance(variable, Literal)
        return _bits(variable.val) if is_constant else numbers.setdefault(variable, len(numbers))

    yield [(number(variable), str(variable.aval)) for variable in (*program.constvars, *program.invars)]
    for operation in program.eqns:
        yield operation.primitive.name, [number(variable) for variable in operation.invars]
        for name, told in operation.params.items():
            yield name
            for leaf in jax.tree.leaves(told):
                yield from _told(leaf)
        yield [(number(variable), str(variable.aval)) for variable in operation.outvars]
    yield [number(variable) for variable in program.outvars]


def _told(leaf: Any) -> Iterator[Any]:
    if isinstance(leaf, ClosedJaxpr | Jaxpr):
        yield from _words(leaf)
    else:
        yield _bits(leaf) if hasattr(leaf, "dtype") else _ADDRESS.sub("", str(leaf))


def _bits(value: Any) -> Any:
    """A constant, comparable; bytes, so that NaN is itself."""
    if isinstance(value, jax.core.Tracer):  # left over from another trace
        return object()
    if hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    return array.dtype, array.shape, array.tobytes()


# --- in words -------------------------------------------------------------------------------------------------------


def described(returned: Any) -> str:
    """What a function returned, as Python shows it in one line, but arrays by dtype and shape."""
    text = " ".join(repr(jax.tree.map(_word, returned)).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _word(leaf: Any) -> Any:
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    return _Word(f"{leaf.dtype.name}{list(leaf.shape)}") if is_array else leaf


class _Word(str):
    """A text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _advice(error: BaseException) -> str:
    return ". Use jnp.where instead of `if`, and jnp instead of numpy or float(...)" if _is_concrete(error) else ""


def _is_concrete(error: BaseException) -> bool:
    """Whether code asked for a number where there is only a shape."""
    return isinstance(
        error,
        jax.errors.ConcretizationTypeError
        | jax.errors.TracerArrayConversionError
        | jax.errors.TracerIntegerConversionError
        | jax.errors.NonConcreteBooleanIndexError,
    )
