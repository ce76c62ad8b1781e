"""What became of runs: which are finished, which are at work, which failed, and where each would go on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmrl.results.report.entries import find
from llmrl.runs import checkpoint
from llmrl.runs import directory as runs
from llmrl.training.progress import make_console


class Status(NamedTuple):
    """How a run stands.

    Attributes:
        path: its directory.
        state: ``finished``, ``running``, ``failed``, ``stopped`` (it can go on), or ``unreadable``.
        done: iterations that a checkpoint holds.
        of: iterations of the whole run; 0 where that cannot be read.
        note: who is at work there, or why it failed.
    """

    path: Path
    state: str
    done: int
    of: int
    note: str

    @property
    def can_go_on(self) -> bool:
        return self.state in ("failed", "stopped")


def status(paths: Iterable[str]) -> list[Status]:
    """Every run at or below the given paths, as ``report.entries.find`` finds them.

    Args:
        paths: run directories, directories that hold some, or glob patterns.
    """
    found, missing = find(paths)
    return [_status(path) for path in found] + [
        Status(broken.path, "unreadable", 0, 0, broken.reason) for broken in missing
    ]


def show(statuses: list[Status], console: Console | None = None) -> None:
    """Prints a line for each run, what there is to say of some, and how many there are of each kind."""
    console = console or make_console(stderr=False)
    if not console.is_terminal:  # a file has room
        console.width = max([console.width, *(len(str(one.path)) + 60 for one in statuses)])
    table = Table(box=SIMPLE_HEAD)
    for heading in ("state", "iterations", "goes on from"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    table.add_column("run", overflow="fold")  # whole, as its end is what tells it from others
    for one in statuses:
        goes_on = ("the start" if not one.done else f"{one.done:,}") if one.can_go_on else ""
        iterations = f"{one.done:,} / {one.of:,}" if one.of else ""
        # As text: a path may look like markup.
        table.add_row(one.state, iterations, goes_on, Text(str(one.path)))
    console.print(table)
    for one in statuses:
        if one.note:
            console.print(Text(f"{one.path}: {one.note}"), soft_wrap=True)
    states = [one.state for one in statuses]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    going = "; the command that started a run lets it go on" if any(one.can_go_on for one in statuses) else ""
    console.print(f"{counts}{going}")


def _status(path: Path) -> Status:
    holder, failure = runs.holder(path), runs.failure(path)
    try:
        run = runs.load_run(path)
    except Exception as error:  # whatever is wrong with one directory must not hide the others
        return Status(path, "unreadable", 0, 0, str(error).partition("\n")[0])
    whole = run.config.num_iterations
    done = whole if run.finished else max(checkpoint.steps(run.checkpoints_path), default=0)
    if holder is not None:
        return Status(path, "running", done, whole, holder)
    if run.finished:
        return Status(path, "finished", done, whole, "")
    return Status(path, "failed" if failure else "stopped", done, whole, failure or "")
