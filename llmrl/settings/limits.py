"""Between which numbers a setting makes sense, where that concerns no other setting; checked before anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from math import inf, isfinite
from typing import Any

from llmrl.settings.errors import BadValue

LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "total_steps": (1, 2**53),
    "ppo.initial_log_std": (-20.0, 5.0),
    "solver.tolerance": (0.0, 1.0),
    "solver.max_step_size": (0.0, inf),
    "method.weight.spread": (0.0, inf),
    "method.weight.residual": (0.0, 1.0),
    "method.trust.evidence_memory": (0.0, 1.0),
    "method.trust.advice_patience": (0.0, inf),
    "method.outer.unroll_learning_rate": (0.0, inf),
    "method.outer.learning_rate": (0.0, inf),
    "method.outer.scalar_learning_rate": (0.0, inf),
    "method.outer.discount_learning_rate": (0.0, inf),
    "method.outer.converged_kl": (0.0, inf),
    "method.outer.weight_penalty": (0.0, inf),
    "method.goals.threshold": (0.0, 1.0),
}
"""Dotted key -> smallest and largest value; ``validation.validate`` has those that need more words."""


def check_numbers(settings: Any, path: str = "") -> None:
    """Refuses numbers that are none, or that lie outside of their limits, and networks without width.

    Args:
        settings: a config or a section of it.
        path: of that section, with its dot.

    Raises:
        ValueError: names the first such key, its value and what is expected.
    """
    for key, value in _leaves(settings, path):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not isfinite(number) for number in numbers):
            raise BadValue(f"{key} must be a finite number, got {value}")
        low, high = LIMITS.get(key, (-inf, inf))
        if key in LIMITS and isinstance(value, int | float) and not low <= value <= high:
            raise BadValue(f"{key} must lie in [{low}, {high}], got {value}")
        if key.endswith(".hidden") and not (numbers and all(width > 0 for width in numbers)):
            raise BadValue(f"{key} needs at least one positive width, got {list(numbers)}")


def _leaves(settings: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(settings):
        settings = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    for name, value in settings.items():
        if is_dataclass(value) or isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
