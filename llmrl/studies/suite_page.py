"""What ``llmrl suite`` leaves: ``suite.json`` with every seed, ``suite.md``, a heat map per method, and one page."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrl.analysis.comparison import IGNORES, TRUSTS
from llmrl.analysis.no_regret import LEAST, Beside, Cell, Score, Summary, reached, scores, summaries
from llmrl.analysis.no_regret_plots import heat_map
from llmrl.analysis.statistics import Interval
from llmrl.analysis.tables import about_seeds, known, markdown, number
from llmrl.results.report.page import drawer, render
from llmrl.results.report.tables import Table
from llmrl.runs.metrics import replace_file
from llmrl.studies.carry_out import Results
from llmrl.studies.suite_plan import Plan, cells_of, measure_of, run_name
from llmrl.training.progress import show_table

PAGE, DATA, TABLE = "index.html", "suite.json", "suite.md"

HEADER = ("method", "cells", "without regret", "beyond chance", "score", "worst cell (ratio)", "gain kept (cells)")


def write(planned: Plan, results: Results, failed: Mapping[str, str], folder: Path, command: str, warning: str) -> Path:
    """Writes everything into the directory of the runs, and shows the table of the methods.

    Args:
        planned: what was asked for.
        results: what is finished.
        failed: name -> why, of runs that failed.
        folder: the directory.
        command: what was typed.
        warning: what the set of tasks may not be used for.

    Returns:
        The page.
    """
    cells = cells_of(planned, results)
    in_cells = [scores(cell) for cell in cells]
    over_cells = summaries(cells)
    missing = [run.name for run in planned.runs if run.name not in results]
    table = Table(HEADER, [row_of(method, one) for method, one in over_cells.items()], about_seeds(planned.seeds))
    data = {
        "command": command,
        "warning": warning,
        "seeds": planned.seeds,
        "failed": dict(failed),
        "missing": missing,
        "summary": {method: one._asdict() for method, one in over_cells.items()},
        "tasks": _tasks(planned, cells),
        "runs": _runs(planned, results),
        "cells": [
            {"task": cell.task, "source": cell.source, "method": method, **_plain(score)}
            for cell, found in zip(cells, in_cells, strict=True)
            for method, score in found.items()
        ],
        "versions": _versions(results),
    }
    replace_file(folder / DATA, json.dumps(_for_json(data), indent=1, allow_nan=False) + "\n")
    replace_file(folder / TABLE, status(data["command"], data["warning"], table))
    draw = drawer(folder)
    maps = [
        {
            "method": method,
            "picture": draw(
                functools.partial(_draw, planned, cells, in_cells, failed, method),
                f"heat-{method}",
                f"regret and gain of {method} in each cell, a row per task and a column per source",
            ),
        }
        for method in over_cells
    ]
    contents = {
        "title": "The no-regret suite",
        "command": command,
        "warning": warning,
        "failed": dict(failed),
        "missing": [name for name in missing if name not in failed],
        "number": len(planned.runs),
        "summary": table,
        "maps": maps,
        "cells": _cell_tables(planned, cells, in_cells),
        "tasks": _task_table(planned, cells),
        "data": DATA,
        "versions": _versions(results),
        "ignores": IGNORES,
        "trusts": TRUSTS,
        "least": LEAST,
    }
    replace_file(folder / PAGE, render(contents, "suite.html.j2"))
    show_table(HEADER, table.rows, title=str(folder), caption=f"{warning}\n{table.note}")
    return folder / PAGE


def status(command: str, warning: str, table: Table) -> str:
    """The table of the methods in markdown, below its command."""
    return f"    {command}\n\n{warning} {table.note}.\n\n{markdown(table.header, table.rows)}"


# --- tables -----------------------------------------------------------------------------------------------------------


def row_of(method: str, one: Summary) -> list[str]:
    """A method over all cells, in words."""
    share = f"{one.kept} ({one.kept / one.cells:.0%})" if one.cells else "-"
    worst = f"{one.worst} ({number(one.worst_ratio.value)})" if one.worst else "-"
    kept = f"{known(one.gain_kept)} ({one.helped})" if one.helped else "-"
    return [method, str(one.cells), share, str(one.clear), known(one.score), worst, kept]


def _cell_tables(planned: Plan, cells: Sequence[Cell], in_cells: Sequence[dict[str, Score]]) -> list[tuple[str, Table]]:
    header = ("source", "method", "area", "end", "area ratio", "end ratio", "end - better", "without regret")
    tables = []
    for task in planned.tasks:
        rows = []
        for cell, found in zip(cells, in_cells, strict=True):
            if cell.task == task.name:
                rows += [[cell.source, method, *_cell_row(score)] for method, score in found.items()]
        if rows:
            tables.append((f"{task.name}: {measure_of(task).replace('_', ' ')}", Table(header, rows)))
    return tables


def _cell_row(score: Score) -> list[str]:
    row = [number(score.area.value), number(score.end.value), known(score.area.ratio), known(score.end.ratio)]
    return [*row, known(score.end.difference), f"{score.verdict}, beyond chance" if score.clear else score.verdict]


def _task_table(planned: Plan, cells: Sequence[Cell]) -> Table:
    header = ("task", "measure", "random play", "steps of one seed", "settings", "sources")
    rows = []
    for task in planned.tasks:
        by_chance = next((number(cell.random) for cell in cells if cell.task == task.name), "-")
        told = [measure_of(task).replace("_", " "), by_chance, f"{task.total_steps:,}"]
        rows.append([task.name, *told, " ".join(task.overrides), ", ".join(task.sources)])
    return Table(header, rows)


def _draw(
    planned: Plan,
    cells: Sequence[Cell],
    in_cells: Sequence[dict[str, Score]],
    failed: Mapping[str, str],
    method: str,
    path: Path,
) -> None:
    found = {
        (cell.task, cell.source): each[method] for cell, each in zip(cells, in_cells, strict=True) if method in each
    }
    tasks = [task.name for task in planned.tasks]
    sources = list(dict.fromkeys(source for task in planned.tasks for source in task.sources))
    broken = [
        (task.name, source)
        for task in planned.tasks
        for source in task.sources
        if run_name(task.name, source, method) in failed
    ]
    heat_map(found, tasks, sources, path, broken)


# --- every seed -------------------------------------------------------------------------------------------------------


def _tasks(planned: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    by_chance = {cell.task: cell.random for cell in cells}
    return {
        task.name: {
            "set": task.set,
            "overrides": task.overrides,
            "total_steps": task.total_steps,
            "measure": measure_of(task),
            "random": by_chance.get(task.name),
            "sources": task.sources,
        }
        for task in planned.tasks
    }


def _runs(planned: Plan, results: Results) -> dict[str, Any]:
    """Area and end of each seed of every finished run."""
    measures = {task.name: measure_of(task) for task in planned.tasks}
    found = {}
    for run in planned.runs:
        if run.name in results:
            curves = np.asarray(results[run.name].curves[measures[run.name.partition("/")[0]]], np.float64)
            found[run.name] = reached(curves)._asdict()
    return found


def _versions(results: Results) -> list[str]:
    """Each set of versions that the runs were made with, once."""
    files = [found.path / "summary.json" for found in results.values() if found.path is not None]
    sets = [json.loads(file.read_text()).get("versions", {}) for file in files if file.is_file()]
    return list(
        dict.fromkeys(", ".join(f"{name} {version}" for name, version in each.items()) for each in sets if each)
    )


def _plain(score: Score) -> dict[str, Any]:
    return {**score._asdict(), "area": score.area._asdict(), "end": score.end._asdict()}


def _for_json(value: Any) -> Any:
    """Arrays and tuples as lists, intervals by name, and null for what is no number."""
    if isinstance(value, Interval | Beside):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _for_json(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_for_json(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
