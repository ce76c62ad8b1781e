"""Words of the command line as Hydra must read them: text and paths as they are, whole numbers in any notation.

Hydra's grammar gives a meaning to ``=``, ``,``, ``#``, brackets and most letters beyond ASCII. A path may hold any of
them, so the values of text keys are quoted before Hydra sees them. Importing needs no jax.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from llmrl.settings.errors import BadValue
from llmrl.settings.requests import SCHEMAS

TEXT = ("str", "str | None")
WHOLE = ("int", "int | None", "tuple[int, ...]")
"""Types of the settings whose values are read here, as they are annotated."""

ONE_CHOICE = ("env", "method", "solver", "llm", "ppo", "launcher")
"""Groups of which a run has one choice. Hydra would take the last one of a list."""

OF_HYDRA = ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir")
"""Hydra's own keys that hold paths."""

_WORD = re.compile(r"(\+{0,2}([\w.]+)=)(.*)", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?(?![\w.])")


def as_hydra_reads(words: Sequence[str], command: str, multirun: bool = False) -> list[str]:
    """The same words, but with values that Hydra reads as they were meant.

    Args:
        words: e.g. ``"run_dir=runs/lr=0.1", "total_steps=1e5", "method=add"``.
        command: whose keys they are, one of ``SCHEMAS``.
        multirun: whether a comma separates the values of a sweep; without it a comma is part of a text.

    Returns:
        E.g. ``"run_dir='runs/lr=0.1'", "total_steps=100000", "method=add"``.

    Raises:
        ValueError: a group of which a run has one choice was given a list.
    """
    types, read = _types(command), []
    for word in words:
        match = _WORD.fullmatch(word)
        beginning, key, value = match.groups() if match else (word, "", "")
        if key in ONE_CHOICE and value.startswith("["):
            choices = value.strip("[]")
            raise BadValue(f"{key} takes one choice, got {value}; {key}={choices} --multirun runs each")
        if types.get(key) in TEXT:
            value = literal(value, multirun)
        elif types.get(key) in WHOLE:
            value = _NUMBER.sub(_whole, value)
        read.append(beginning + value)
    return read


def literal(text: str, multirun: bool = False) -> str:
    """A text as a value that Hydra reads as this very text; a leading ``~`` is the home directory.

    A text in quotes stands for what they enclose, ``null`` for no text, and ``${...}`` for another setting. In a
    multirun, a comma separates several texts.
    """
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        if multirun and "," in text:
            return ",".join(literal(part.strip()) for part in text.split(","))
        return quoted(os.path.expanduser(text))
    if parsed.is_sweep_override():
        return text if multirun else quoted(text)
    value = parsed.value()
    if isinstance(value, str) and text[:1] in ("'", '"'):
        return quoted(os.path.expanduser(value)) if value.startswith("~") else text
    return text if value is None or value == text else quoted(text)


def quoted(text: str) -> str:
    """A text in quotes, as Hydra reads it back."""
    return QuotedString(text, Quote.single).with_quotes()


def is_word(argument: str, command: str) -> bool:
    """Whether an argument of a command with positional words is one: a flag and ``key=value`` are none, but a path may
    look like the latter.

    Args:
        argument: e.g. ``runs/lr=0.1``.
        command: whose keys are known.
    """
    if argument.startswith(("-", "+", "~hydra")):
        return False
    key, equals, _ = argument.partition("=")
    if not equals or argument.startswith("~"):
        return True
    known = key in _types(command) or key.startswith("hydra")
    return not known and ("/" in key or os.path.exists(argument))


@functools.cache
def _types(command: str) -> dict[str, str]:
    """Dotted key -> its annotation."""
    return dict(_annotated(SCHEMAS[command]())) | dict.fromkeys(OF_HYDRA, "str")


def _annotated(section: Any, path: str = "") -> Iterator[tuple[str, str]]:
    for entry in fields(section):
        value = getattr(section, entry.name)
        if is_dataclass(value):
            yield from _annotated(value, f"{path}{entry.name}.")
        else:
            yield f"{path}{entry.name}", str(entry.type)


def _whole(match: re.Match[str]) -> str:
    """A number without its point and exponent, where it is whole."""
    number = Decimal(match[0].replace("_", ""))
    return str(int(number)) if number == number.to_integral_value() else match[0]
