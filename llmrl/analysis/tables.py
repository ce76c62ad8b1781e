"""Numbers and tables in words: how an estimate is written, and markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmrl.analysis.statistics import LEAST_SEEDS, Interval, missed_share


def number(value: float) -> str:
    """One decimal from 10 on, three below."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def estimate(interval: Interval) -> str:
    """A value and its interval, as in ``0.980 [0.971, 0.992]``; the value alone where there is no interval."""
    return written(interval, number)


def written(interval: Interval, form: Callable[[float], str], unit: str = "") -> str:
    """A value in a form of its own, such as ``80 % [60, 95]``, with its interval where there is one."""
    value = f"{form(interval.value)}{unit}"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return value
    return f"{value} [{form(interval.low)}, {form(interval.high)}]"


def known(interval: Interval) -> str:
    """``estimate``, or a dash where there is no value."""
    return estimate(interval) if math.isfinite(interval.value) else "-"


def about_seeds(seeds: int) -> str:
    """What so many seeds can tell, in a sentence."""
    if seeds < LEAST_SEEDS:
        return f"{seeds} seed{'' if seeds == 1 else 's'}: too few for intervals and verdicts, which need {LEAST_SEEDS}"
    return (
        f"95 % intervals over {seeds} seeds; a failure of up to {missed_share(seeds):.0%} of seeds may not show in them"
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a row that is too short ends in empty cells."""
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    lines = [header, ["---"] * len(header), *padded]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def told_of_certificate(last: Iterable[Any]) -> str:
    """How many seeds have kept what ignoring the sources would have earned, by the certificates at their ends."""
    last, kept = list(last), {"yes": 1.0, "no": -1.0, "not yet known": 0.0}
    counts = {word: last.count(value) for word, value in kept.items()}
    return ", ".join(f"{word} {count}" for word, count in counts.items() if count)
