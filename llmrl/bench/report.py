"""What ``llmrl bench`` shows and keeps: a table per suite, and every single measurement as JSON."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from llmrl.bench.timing import Spread, spread
from llmrl.runs.metrics import versions, write_summary
from llmrl.training.progress import make_console

BUSY = 0.25
"""Share of the cores that others may keep busy before a reader is warned."""


class Row(NamedTuple):
    """One program's measurements.

    Attributes:
        name: the program.
        values: one per round, in the table's unit.
        ratios: to the reference, one per round; empty where there is no reference.
        note: what else is to be said.
    """

    name: str
    values: list[float]
    ratios: list[float]
    note: str = ""


class Table(NamedTuple):
    """A suite's result.

    Attributes:
        title: what was measured.
        unit: of the values, such as "steps/s".
        reference: what the ratios are relative to; "" where to nothing.
        rows: the programs, each reference before those that are compared with it.
    """

    title: str
    unit: str
    reference: str
    rows: Sequence[Row]


def show(table: Table, console: Console | None = None) -> None:
    """Prints a table: medians over rounds, and in brackets the smallest and the largest.

    Args:
        table: what to print.
        console: where to; standard output where not given.
    """
    console = console or make_console(stderr=False, width=140)
    shown = RichTable(box=SIMPLE_HEAD)
    headings = [table.unit, *([f"x {table.reference}"] if table.reference else []), ""]
    shown.add_column("", no_wrap=True)
    for heading in headings:
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for row in table.rows:
        ratio = [_worded(spread(row.ratios)) if row.ratios else ""] if table.reference else []
        shown.add_row(row.name, _worded(spread(row.values)), *ratio, row.note)
    console.print(Text(table.title), soft_wrap=True)
    console.print(shown)


def write(path: str, tables: dict[str, Table], command: str, load: float | None) -> None:
    """Writes everything as JSON: machine, versions, command, medians, extremes and every round's value.

    Args:
        path: the file.
        tables: suite -> its result.
        command: what the user typed.
        load: as ``load_average`` said before the first measurement.
    """
    values = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"load_before": load},
        "versions": versions(),
        "suites": {name: _table_values(table) for name, table in tables.items()},
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_summary(Path(path), values)


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()}


def load_average() -> float | None:
    """Cores that were busy during the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def busy_warning(load: float | None) -> str | None:
    """What to say if other work keeps the machine busy, else None."""
    cores = os.cpu_count() or 1
    if load is None or load <= BUSY * cores:
        return None
    return f"the machine is busy (load {load} on {cores} cores): believe ratios, which share its troubles, not speeds"


def _table_values(table: Table) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "value": spread(row.values)._asdict(),
            "ratio": spread(row.ratios)._asdict() if row.ratios else None,
            "note": row.note,
            "by_round": {"values": row.values, "ratios": row.ratios},
        }
        for row in table.rows
    ]
    return {"title": table.title, "unit": table.unit, "reference": table.reference, "rows": rows}


def _worded(values: Spread) -> str:
    if values.low == values.high:
        return _number(values.median)
    return f"{_number(values.median)} ({_number(values.low)} .. {_number(values.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _processor() -> str:
    """The model's name; ``platform`` knows only the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
