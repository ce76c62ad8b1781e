"""Parameters by name, as files and command lines give them, in the types that their owner declares."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.settings.errors import BadValue, unknown

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    list: "a list",
    tuple: "a list",
    types.NoneType: "null",
}
"""The types that are checked, and what errors call them."""


def fitted(what: str, value: Any, declared: Any) -> Any:
    """A value in a declared type: as it is, or the same number written otherwise (1 for 1.0, 1.0 for 1).

    Args:
        what: the parameter and its owner, as errors begin.
        value: whatever was given; an array is taken as it is.
        declared: an annotation, such as ``int`` or ``float | None``; one that is not made of plain types, such as
            ``Any``, takes everything.

    Raises:
        ValueError: the value is of another type.
    """
    kinds = _kinds(declared)
    value = value.item() if isinstance(value, np.generic) else value
    if not kinds or type(value) in kinds or isinstance(value, jax.Array):
        return value
    for kind in kinds:
        if _fits(value, kind):
            return kind(value)
    raise BadValue(f"{what} must be {' or '.join(dict.fromkeys(_WORDS[kind] for kind in kinds))}, got {value!r}")


def fitted_like(what: str, value: Any, default: Any) -> Any:
    """A value in the type of a default; where that is an array, an array of the same shape and dtype.

    Args:
        what: the parameter and its owner, as errors begin.
        value: whatever was given.
        default: one that fits.

    Raises:
        ValueError: the value is of another type or shape.
    """
    if not isinstance(default, jax.Array | np.ndarray):
        return fitted(what, value, Any if default is None else type(default))
    try:
        given = np.asarray(value)
        fits = given.shape == default.shape and np.all(given.astype(default.dtype) == given)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise BadValue(f"{what} must be {default.dtype.name} of shape {list(default.shape)}, got {value!r}")
    return jnp.asarray(value, default.dtype)


def fitted_arguments(owner: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for a factory, in the types of its annotations.

    Args:
        owner: the factory's name, as errors call it.
        factory: a function of keywords.
        given: parameter -> value.

    Raises:
        ValueError: the factory has no such parameter (the nearest are named), needs one that is not given, or declares
            another type.
    """
    parameters = _parameters(factory)
    named = {name: each for name, each in parameters.items() if each.kind not in _OPEN}
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for name in given:
        if name not in named and not takes_all:
            raise unknown(f"parameter of {owner}", name, named)
    for name, each in named.items():
        if each.default is each.empty and name not in given:
            raise BadValue(f"{owner} needs its parameter {name!r}, got {sorted(given) or 'none'}")
    kinds = {name: each.annotation for name, each in named.items()}
    return {name: fitted(f"parameter {name} of {owner}", x, kinds.get(name, Any)) for name, x in given.items()}


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except Exception:  # an annotation that only a type checker can read
        return inspect.signature(factory).parameters


def _kinds(declared: Any) -> tuple[Any, ...]:
    """The plain types that a declaration is made of; none where it has others too."""
    union = typing.get_origin(declared) in (typing.Union, types.UnionType)
    kinds = tuple(typing.get_origin(x) or x for x in (typing.get_args(declared) if union else (declared,)))
    return kinds if all(isinstance(kind, type) and kind in _WORDS for kind in kinds) else ()


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is float and value.is_integer()
    if kind is float:
        return type(value) is int
    return kind in (list, tuple) and isinstance(value, list | tuple)
