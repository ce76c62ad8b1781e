"""Measuring several programs fairly on a machine that does other things too, and what may be said of the result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from llmrl.settings.errors import BadValue

Measure: TypeAlias = Callable[[], float]
"""``() -> seconds`` of one more measurement of a program, compilation excluded."""


class Spread(NamedTuple):
    """Several measurements of one thing.

    Attributes:
        median: their median.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and extremes of at least one value: with five rounds on a busy machine, more would be a pretence."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Quotients round by round: what slowed a whole round down cancels.

    Args:
        numerator: one value per round.
        denominator: one value per round, of the same rounds.

    Raises:
        ValueError: the rounds differ in number.
    """
    if len(numerator) != len(denominator):
        raise BadValue(f"ratios need the same rounds, got {len(numerator)} and {len(denominator)}")
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def interleaved(measures: Mapping[str, Measure], rounds: int) -> dict[str, list[float]]:
    """Seconds of every program in every round, the programs taking turns.

    Each is measured once before the first round, and that is thrown away; every round starts with another program, so
    that none always follows the same one.

    Args:
        measures: name -> its measurement.
        rounds: how often.

    Returns:
        name -> [rounds] seconds.
    """
    for measure in measures.values():
        measure()
    names = list(measures)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(measures[name]())
    return seconds


def repeated(call: Callable[[], Any], wished_seconds: float) -> Measure:
    """Measurement of something short: the mean over as many calls as fill the wished time.

    Args:
        call: returns arrays; they are waited for after every call, as programs in flight together would share cores.
        wished_seconds: of one measurement.
    """
    once = min(_seconds(call, 1) for _ in range(3))
    count = max(1, math.ceil(wished_seconds / max(once, 1e-6)))
    return lambda: _seconds(call, count) / count


def _seconds(call: Callable[[], Any], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(call())
    return time.perf_counter() - began
