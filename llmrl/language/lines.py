"""Files of answers: JSON lines, the first of which says what they are and where they come from.

    {"format": "llmrl-answers", "version": 1, "source": "written by hand"}
    {"state": "the pole leans to the left", "event": "push the cart to the left", "score": 1.0}

``state`` and ``event`` are an environment's own words, ``score`` lies in [0, 1]. ``events`` and ``scores`` may hold
several; ``context`` restricts an answer to one task's words. Whatever else a line holds is left alone: what a cache
exports is such a file too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrl.settings.errors import BadValue

FORMAT = "llmrl-answers"
VERSION = 1


def header(source: str) -> dict[str, Any]:
    """The first line of a file.

    Args:
        source: where its answers come from, in words.
    """
    return {"format": FORMAT, "version": VERSION, "source": source}


def is_score(value: object) -> bool:
    """Whether a value read from JSON is a number in [0, 1]."""
    return type(value) in (int, float) and math.isfinite(value) and 0.0 <= value <= 1.0  # type: ignore[operator, arg-type]


def read_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file of answers with their line numbers; its first line names the format. A byte order mark is skipped.

    Raises:
        ValueError: a line is no JSON object, or the first one names another format.
    """
    with Path(path).open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise BadValue(f"{path}:{number}: no JSON object")
            if number == 1:
                if row.get("format") != FORMAT or row.get("version") != VERSION:
                    raise BadValue(f'{path}:1: must read {{"format": "{FORMAT}", "version": {VERSION}, "source": ...}}')
                continue
            yield number, row
