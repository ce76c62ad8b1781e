"""A setting's default, type and bounds, all in one line of its dataclass; one checker reads them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmrl.settings.errors import BadValue, unknown


@dataclass(frozen=True)
class Bounds:
    """What a setting may be, beside its annotation.

    Attributes:
        low: smallest value, included.
        high: largest value, included.
        above: largest value that is too small.
        word: a text that stands for a number, as in ``auto``.
        whole: whether only whole numbers are meant, where the annotation does not say it.
        choices: the names to choose from; none where any will do.
        at_least_one: whether at least one value is needed.
        private: whether errors keep the value to themselves.
    """

    low: float = -inf
    high: float = inf
    above: float | None = None
    word: str | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()
    at_least_one: bool = False
    private: bool = False


_ANY = Bounds()


def _setting(default: Any, bounds: Bounds) -> Any:
    return field(default=default, metadata={"bounds": bounds})


def number(
    default: float | str | None,
    *,
    low: float = -inf,
    high: float = inf,
    above: float | None = None,
    word: str | None = None,
    whole: bool = False,
) -> Any:
    """A field with one number, or none.

    Args:
        default: its default.
        low: smallest value, included.
        high: largest value, included.
        above: largest value that is too small.
        word: a text that stands for a number, as in ``auto``.
        whole: whether only whole numbers are meant, where the annotation does not say it.
    """
    return _setting(default, Bounds(low, high, above, word, whole))


def positive(default: float | None) -> Any:
    """A field with one number above 0, or none."""
    return number(default, above=0)


def choice(default: str, choices: tuple[str, ...]) -> Any:
    """A field with one of some names."""
    return _setting(default, Bounds(choices=choices))


def widths(*default: int) -> Any:
    """A field with the widths of a network's hidden layers, at least one."""
    return _setting(default, Bounds(above=0, at_least_one=True))


def positives(*default: float) -> Any:
    """A field with any number of positive numbers, whole ones where the annotation says so."""
    return _setting(default, Bounds(above=0))


def private(default: str | None) -> Any:
    """A field with a text that no error repeats: it may be a secret in the wrong place."""
    return _setting(default, Bounds(private=True))


def check(settings: Any, path: str = "") -> None:
    """Refuses a value of another type than its annotation, or outside of the bounds beside it.

    Args:
        settings: a dataclass, whose sections are checked too.
        path: of that section, with its dot.

    Raises:
        ValueError: names the first such key, its value and what is expected.
    """
    for entry in fields(settings):
        key, value, hint = f"{path}{entry.name}", getattr(settings, entry.name), hints(type(settings))[entry.name]
        if isinstance(hint, type) and is_dataclass(hint):
            if not isinstance(value, hint):
                raise BadValue(f"{key} must be a {hint.__name__}, got {value!r}")
            check(value, f"{key}.")
        else:
            _check_value(key, value, hint, entry.metadata.get("bounds", _ANY))


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """Name -> annotation of a dataclass's fields."""
    return get_type_hints(cls)


def _check_value(key: str, value: Any, hint: Any, bounds: Bounds) -> None:
    if isinstance(value, str) and value == bounds.word:
        return
    if bounds.word is not None:
        hint = int if bounds.whole else float
    if not _fits(value, hint):
        got = f"a value of type {type(value).__name__}" if bounds.private else repr(value)
        raise BadValue(f"{key} must be {_in_words(hint, bounds)}, got {got}")
    if isinstance(value, str) and bounds.choices:
        _check_choice(key, value, bounds.choices)
    for where, number in _numbers(key, value):
        if not isfinite(number):
            raise BadValue(f"{where} must be a finite number, got {number}")
        if not (bounds.low <= number <= bounds.high) or (bounds.above is not None and number <= bounds.above):
            raise BadValue(f"{key} must {_range_in_words(bounds)}, got {_shown(value)}")
    if bounds.at_least_one and not value:
        raise BadValue(f"{key} needs at least one positive width, got []")


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if "," in value and set(value.split(",")) <= {*choices}:
        raise BadValue(f"{key}={value} is several values: add --multirun to run each")
    if value not in choices:
        raise unknown(key, value, choices)


def _range_in_words(bounds: Bounds) -> str:
    least = bounds.low if bounds.above is None else bounds.above
    if bounds.high < inf and least > -inf:
        return f"lie in {'[' if bounds.above is None else '('}{least}, {bounds.high}]"
    if bounds.high < inf:
        return f"be at most {bounds.high}"
    if bounds.above is None:
        return f"be at least {least}"
    return "be positive" if least == 0 else f"be above {least}"


def _numbers(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The plain numbers that a setting holds, each with its dotted key; traced ones are not known yet."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _numbers(f"{key}.{name}", entry)
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _numbers(key, entry)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield key, value


# --- types ------------------------------------------------------------------------------------------------------------


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; a number may be an array of no dimension, and traced."""
    kind, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if kind is tuple:
        return isinstance(value, tuple | list) and all(_fits(one, arguments[0]) for one in value)
    if kind is dict:
        name, entry = arguments
        return isinstance(value, Mapping) and all(_fits(k, name) and _fits(v, entry) for k, v in value.items())
    if hint in (int, float):
        is_array = getattr(value, "shape", None) == () and hint is float
        is_number = isinstance(value, Integral if hint is int else Real)
        return not isinstance(value, bool) and (is_number or is_array)
    return isinstance(value, hint)


_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}


def _in_words(hint: Any, bounds: Bounds) -> str:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(_in_words(one, bounds) for one in arguments)
    if kind is tuple:
        return f"a list of {_WORDS[arguments[0]]}s"
    if kind is dict:
        return f"{_WORDS.get(arguments[1], 'value')}s by name"
    one = _WORDS[hint] if hint in (bool, type(None)) else f"a {_WORDS[hint]}"
    if bounds.word is not None:
        return f"{one} or {bounds.word!r}"
    return f"one of {', '.join(map(repr, bounds.choices))}" if bounds.choices else one
