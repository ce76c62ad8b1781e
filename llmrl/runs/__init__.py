"""A run's directory: its files, checkpoints, metrics and trackers."""

from llmrl.runs.directory import (
    EXTENDED,
    FAILURE,
    NOT_COMPARED,
    Run,
    describe,
    failure,
    finish,
    holder,
    load_run,
    load_state,
    open_run,
    read_answers,
    read_summary,
    record,
    restore,
    restore_language,
)

__all__ = [
    "EXTENDED",
    "FAILURE",
    "NOT_COMPARED",
    "Run",
    "describe",
    "failure",
    "finish",
    "holder",
    "load_run",
    "load_state",
    "open_run",
    "read_answers",
    "read_summary",
    "record",
    "restore",
    "restore_language",
]
