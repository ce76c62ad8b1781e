"""Parameters by name, as files and command lines give them, in the types that their owner declares."""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmrl.settings.errors import BadValue, unknown

_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a word", "words"),
    list: ("a list", "lists"),
    tuple: ("a list", "lists"),
    types.NoneType: ("null", "null"),
}
"""The types that are checked, and what errors call one and several of them."""

_UNFIT = object()


def fitted(what: str, value: Any, declared: Any) -> Any:
    """A value in a declared type: as it is, or the same number written otherwise (1 for 1.0, 1.0 for 1).

    Args:
        what: the parameter and its owner, as errors begin.
        value: whatever was given; an array is taken as it is.
        declared: an annotation, such as ``int``, ``list[float] | None`` or ``Literal["a", "b"]``; one that is not made
            of plain types, such as ``Any``, takes everything.

    Raises:
        ValueError: the value is of another type.
    """
    if (taken := _taken(value, declared)) is _UNFIT:
        raise BadValue(f"{what} must be {_in_words(declared)}, got {value!r}")
    return taken


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


def _alternatives(declared: Any) -> tuple[Any, ...]:
    """The declarations that a declaration offers; none where it has one that is not checked."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        offered = [_alternatives(each) for each in typing.get_args(declared)]
        return tuple(itertools.chain(*offered)) if all(offered) else ()
    if typing.get_origin(declared) is typing.Annotated:
        return _alternatives(declared.__origin__)
    known = _kind(declared) in _WORDS or _kind(declared) is typing.Literal
    return (declared,) if known else ()


def _kind(declared: Any) -> Any:
    kind = typing.get_origin(declared) or declared
    return kind if isinstance(kind, type) or kind is typing.Literal else None


def _taken(value: Any, declared: Any) -> Any:
    """A value in a declared type; ``_UNFIT`` where it is of another."""
    alternatives = _alternatives(declared)
    value = value.item() if isinstance(value, np.generic) else value
    if not alternatives or isinstance(value, jax.Array):
        return value
    taken = [each for kind in alternatives if (each := _as(value, kind)) is not _UNFIT]
    # The number as it is written, where a declaration has a place for it.
    return next((each for each in taken if type(each) is type(value)), taken[0] if taken else _UNFIT)


def _as(value: Any, declared: Any) -> Any:
    kind, arguments = _kind(declared), typing.get_args(declared)
    if kind is typing.Literal:
        fitting = (each for each in arguments if _as(value, type(each)) == each or value is each)
        return next(fitting, _UNFIT)
    if kind in (list, tuple):
        return _as_list(value, kind, arguments)
    same = type(value) is kind
    whole = kind is int and type(value) is float and value.is_integer()
    return kind(value) if whole or (kind is float and type(value) is int) else value if same else _UNFIT


def _as_list(value: Any, kind: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return _UNFIT
    if kind is list or arguments[1:] == (...,):
        arguments = arguments[:1] * len(value)
    elif arguments and len(arguments) != len(value):
        return _UNFIT
    items = [_taken(*pair) for pair in zip(value, arguments, strict=True)] if arguments else value
    return _UNFIT if any(each is _UNFIT for each in items) else kind(items)


def _in_words(declared: Any, several: bool = False) -> str:
    return " or ".join(dict.fromkeys(_word(each, several) for each in _alternatives(declared)))


def _word(declared: Any, several: bool) -> str:
    kind, arguments = _kind(declared), typing.get_args(declared)
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    word = _WORDS[kind][several]
    if kind not in (list, tuple) or not arguments:
        return word
    if kind is list or arguments[1:] == (...,):
        items = _in_words(arguments[0], several=True)
        return f"{word} of {items}" if items else word
    return f"{word} of {len(arguments)} ({', '.join(_in_words(each) or 'anything' for each in arguments)})"
