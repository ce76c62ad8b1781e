"""What a grid inside one program is: which settings may differ there, and which combinations of them were asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from llmrl.assembly.parts import numbers_of
from llmrl.settings.config import Config
from llmrl.settings.errors import BadValue, unknown
from llmrl.settings.validation import renamed

OUTSIDE = ("llm", "track", "run_dir", "resume", "progress", "devices", "num_chunks", "seeds_per_batch")
OUTSIDE += ("distributed", "coordinator", "num_processes", "process_id")
"""Sections and keys that nothing compiled looks at."""

KINDS = {"int": "a whole number", "bool": "a switch", "str": "a name", "tuple": "a list", "dict": "a dictionary"}
"""How an annotation begins -> what such a setting is called."""


def points_of(config: Config, grid: Mapping[str, Iterable[float | int]]) -> list[dict[str, float]]:
    """Every combination of a grid's values, by dotted key; the last key's values change fastest.

    Args:
        config: any config.
        grid: dotted key, or its last parts where they are unambiguous -> values.

    Raises:
        ValueError: there is no key, one is unknown, ambiguous, named twice or cannot be swept, or its values are not
            different numbers.
    """
    if not grid:
        raise BadValue("a grid needs a setting to sweep, as in sweep.vmap.ppo.entropy=[0,0.01]")
    axes: dict[str, list[float]] = {}
    for said, values in grid.items():
        key = _resolved(config, said, values)
        if key in axes:
            raise BadValue(f"{key} is swept twice, the second time as {said}")
        axes[key] = _checked(key, values)
    return [dict(zip(axes, choice, strict=True)) for choice in itertools.product(*axes.values())]


def names_of(points: Sequence[Mapping[str, float]]) -> list[str]:
    """A name for each point: the last parts of its keys, as many as tell them apart, and its values."""
    labels = {key: _label(key, list(points[0])) for key in points[0]}
    return ["-".join(f"{labels[key]}-{value!r}" for key, value in values.items()) for values in points]


def _label(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    endings = [".".join(parts[-n:]) for n in range(1, len(parts))]
    return next((end for end in endings if sum(_ends_with(other, end) for other in keys) == 1), key)


def _ends_with(key: str, last: str) -> bool:
    return f".{key}".endswith(f".{last}")


def _checked(key: str, values: Any) -> list[float]:
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not listed or any(isinstance(value, bool) or not isinstance(value, int | float | np.number) for value in listed):
        raise BadValue(f"{key} is swept over a list of numbers, as in [1e-3,1e-2], got {values}")
    if len(set(listed)) < len(listed):
        raise BadValue(f"{key} is swept over different numbers, got {listed}")
    return [float(value) for value in listed]


# --- which settings ---------------------------------------------------------------------------------------------------


def _resolved(config: Config, said: str, values: Any) -> str:
    """The dotted key that was meant."""
    numbers, fixed = list(numbers_of(config)), dict(_fixed(config))
    if said in numbers:
        return said
    if why := next((why for key, why in fixed.items() if f"{said}.".startswith(f"{key}.")), None):
        raise _cannot_differ(said, why, values)
    meant = [key for key in numbers if _ends_with(key, said)]
    if len(meant) > 1:
        raise BadValue(f"{said} may be {', '.join(meant[:-1])} or {meant[-1]}: write the one that you mean")
    if meant:
        return meant[0]
    namesakes = [key for key in fixed if _ends_with(key, said)]
    if len(namesakes) == 1:
        raise _cannot_differ(namesakes[0], fixed[namesakes[0]], values)
    raise renamed(said) or unknown("setting to sweep", said, _nearby(said, numbers))


def _cannot_differ(key: str, why: str, values: Any) -> BadValue:
    told = ",".join(map(str, values)) if isinstance(values, list | tuple) else values
    return BadValue(
        f"{key} cannot differ within one program: {why}; `llmrl train --multirun {key}={told}` trains a run for each"
    )


def _nearby(said: str, keys: list[str]) -> list[str]:
    """Settings with a similar last part, or else with a similar name at all."""
    tails = {key.rpartition(".")[2] for key in keys}
    close = get_close_matches(said.rpartition(".")[2], tails, n=3)
    return [key for key in keys if key.rpartition(".")[2] in close] or get_close_matches(said, keys, n=5, cutoff=0.2)


def _fixed(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key that cannot be swept, and why."""
    numbers = numbers_of(config, path)
    for field in fields(config):
        key, value, kind = f"{path}{field.name}", getattr(config, field.name), str(field.type)
        if is_dataclass(value):
            yield from _fixed(value, f"{key}.")
        elif key.partition(".")[0] in OUTSIDE:
            yield key, "it is used outside of it"
        elif path in ("env.", "aux."):
            yield key, "the environment and its sources are compiled in"
        elif kind == "float" and key not in numbers:
            yield key, "it decides what is compiled"
        elif kind != "float":
            word = next(
                (word for start, word in KINDS.items() if kind.startswith(start)), "what is not always a number"
            )
            yield key, f"{word} is compiled in"
