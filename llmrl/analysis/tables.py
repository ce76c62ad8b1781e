"""Numbers and tables in words: how an estimate is written, and markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llmrl.analysis.statistics import Interval


def number(value: float) -> str:
    """One decimal from 10 on, three below."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def estimate(interval: Interval) -> str:
    """A value and its interval, as in ``0.980 [0.971, 0.992]``."""
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def known(interval: Interval) -> str:
    """``estimate``, or a dash where there is no value."""
    return estimate(interval) if math.isfinite(interval.value) else "-"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a row that is too short ends in empty cells."""
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    lines = [header, ["---"] * len(header), *padded]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
