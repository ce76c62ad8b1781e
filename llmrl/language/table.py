"""The table of answers: sorted state keys and a score per event, of fixed size, so that nothing recompiles."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, UInt32

from llmrl.settings.errors import BadValue

PADDING = 0xFFFFFFFF
"""The key of a free row; no state may have it."""

_log = logging.getLogger(__name__)


class Table(NamedTuple):
    """Scores of events by state, ready for a binary search on the device. Arrays are numpy's on the host.

    Attributes:
        keys: state keys in rising order, then ``PADDING`` in every free row, [r].
        scores: finite; a language model's in [0, 1]; 0 in free rows, [r, e].
    """

    keys: UInt32[Any, " r"]
    scores: Float[Any, "r e"]


def empty(capacity: int, num_events: int) -> Table:
    """A table of free rows.

    Args:
        capacity: rows, R.
        num_events: scores per row, E.
    """
    if capacity < 1 or num_events < 1:
        raise BadValue(f"a table needs rows and events, got capacity={capacity}, num_events={num_events}")
    return Table(np.full(capacity, PADDING, np.uint32), np.zeros((capacity, num_events), np.float32))


def build(answers: Mapping[int, np.ndarray], capacity: int, num_events: int) -> Table:
    """A table of these answers; see ``merge``."""
    return merge(empty(capacity, num_events), answers)


def merge(table: Table, answers: Mapping[int, np.ndarray]) -> Table:
    """The table with more answers in it; a state that it knew already gets its new ones. Shapes stay as they are.

    Where rows run out, the answers that come first in ``answers`` get the free ones and a warning counts the rest.

    Args:
        table: the table so far.
        answers: ``state key -> scores [e]``; finite and in [0, 1].

    Raises:
        ValueError: a score is not in [0, 1], a row has not E scores, or a key does not fit into 32 bits.
    """
    capacity, num_events = table.scores.shape
    rows = as_dict(table)
    left_out = 0
    for key, scores in answers.items():
        row = np.asarray(scores, np.float32)
        if not 0 <= key < PADDING:
            raise BadValue(f"a state key must lie in [0, {PADDING}), got {key}")
        if row.shape != (num_events,):
            raise BadValue(f"state {key} needs {num_events} scores, got shape {row.shape}")
        if not np.all((row >= 0.0) & (row <= 1.0)):
            raise BadValue(f"scores must lie in [0, 1], got {row.tolist()} for state {key}")
        if key in rows or len(rows) < capacity:
            rows[int(key)] = row
        else:
            left_out += 1
    if left_out:
        _log.warning(
            "the table of answers is full: %d of %d states stay neutral (raise llm.capacity)",
            left_out,
            len(rows) + left_out,
        )

    merged = empty(capacity, num_events)
    for index, key in enumerate(sorted(rows)):
        merged.keys[index] = key
        merged.scores[index] = rows[key]
    return merged


def size(table: Table) -> int:
    """How many states the table knows."""
    return int(np.sum(table.keys != PADDING))


def as_dict(table: Table) -> dict[int, np.ndarray]:
    """``state key -> scores [e]``."""
    known = size(table)
    return {int(key): row.copy() for key, row in zip(table.keys[:known], table.scores[:known], strict=True)}


def save(table: Table, path: str | Path) -> None:
    """Writes a table as a NumPy archive, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            np.savez(file, keys=table.keys, scores=table.scores)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: str | Path) -> Table:
    """Reads a table that ``save`` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            table = Table(file["keys"], file["scores"])
        known = size(table)
        sound = (
            table.keys.dtype == np.uint32
            and table.scores.dtype == np.float32
            and table.keys.shape == table.scores.shape[:1]
            and bool(np.all(np.diff(table.keys[:known].astype(np.int64)) > 0))
            and bool(np.all(table.keys[known:] == PADDING))
            and bool(np.all((table.scores >= 0.0) & (table.scores <= 1.0)))
        )
    except (ValueError, KeyError, EOFError, TypeError, BadZipFile) as error:
        raise BadValue(f"{path} is no table of answers") from error
    if not sound:
        raise BadValue(f"{path} is no table of answers, or a damaged one")
    return table
