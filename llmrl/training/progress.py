"""What a person watching sees: a bar that moves in a terminal, plain lines in a log, and a table at the end."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llmrl.analysis.statistics import LEAST_SEEDS, known_mean
from llmrl.analysis.tables import about_seeds, told_of_certificate
from llmrl.training.stopping import Unheard

Update: TypeAlias = Callable[[int, Mapping[str, np.ndarray]], None]
"""``(iterations done, metrics of the last chunk)``, called between two chunks."""

SHOWN = {
    "episode_return": "return",
    "episode_length": "length",
    "success_rate": "success",
    "discount": "discount",
    "language_coverage": "answered",
}
"""Metrics beside the bar, where a run has them: the table's, as if training ended now. The influence of every source
comes after them."""

OF_SOURCES = {
    "influence": "",
    "weight_before_units": "",
    "weight_mean_active": ", after units",
}
"""Metrics of every source in the table, with what has to be said of each: how far it moves the policy, and its weight
where it speaks."""

COUNTED = {
    "language_cost": "cost",
    "language_failures": "failures",
    "language_cache_hits": "from cache",
}
"""Metrics beside the bar where they are not 0: sums up to now."""

NOT_ZERO = ("success_rate", *COUNTED)
"""Metrics that are shown where they are not 0: not every task says what success is."""

COMPILING = "compiling: seconds to two minutes, cached for the next run"

COUNTS = ("failures", "from cache", "updates skipped")

TABLED = (
    "episode_return",
    "episode_length",
    "success_rate",
    "greedy_episode_return",
    "greedy_episode_length",
    "greedy_success_rate",
    "discount",
    "language_coverage",
    "entropy",
    "meta_residual",
)
"""Metrics in the table; those of every source come after them."""


@contextmanager
def progress(
    total: int, start: int = 0, enabled: bool = True, console: Console | None = None, unit: str = "iteration"
) -> Iterator[Update]:
    """Shows how far training is: iterations, what the table at the end says of them, time left.

    Args:
        total: iterations of the run.
        start: iterations that an earlier process has done.
        enabled: False shows nothing.
        console: where to; standard error where not given, in a notebook the cell's output.
        unit: what is counted, where it is not a training's iterations.

    Yields:
        The function to call between two chunks. The first chunk contains the compilation, so time left is told from the
        second on.
    """
    console = console or make_console(stderr=True)
    if not enabled:
        yield lambda done, metrics: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _moving(bar, total, start, unit)
    else:
        yield _lines(console, total, unit)


def sources_of(metrics: Mapping[str, Any]) -> list[str]:
    """The sources that metrics tell the influence or the weight of, in order."""
    found = [name.partition("/") for name in metrics]
    return list(dict.fromkeys(source for kind, _, source in found if kind in OF_SOURCES and source))


def plural(count: int, thing: str) -> str:
    """A number of things, as one says it."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def note(message: str) -> None:
    """Tells the user, in one line on standard error, what was decided for her."""
    make_console(stderr=True).print(Text(message), soft_wrap=True)


def show_summary(summary: Mapping[str, Any], title: str, console: Console | None = None) -> None:
    """Prints the table of a run's final numbers, or of an evaluation's.

    Args:
        summary: as ``llmrl.runs.metrics.summary`` or ``llmrl.results.evaluate.evaluate`` makes it.
        title: what it is about, e.g. the run's directory.
        console: where to; standard output where not given.
    """
    console = console or make_console(stderr=False)
    final, area = summary["final"], summary.get("area", {})
    of_sources = {f"{kind}/{source}": say for source in sources_of(final) for kind, say in OF_SOURCES.items()}
    lines = [_costs(summary), about_seeds(summary["seeds"])]
    if "certificate" in final:
        # Means over the last tenth: in between where a verdict changed, and then it is not known for sure.
        kept = told_of_certificate([float(int(x)) for x in final["certificate"]["by_seed"] if x is not None])
        lines.append(f"at least 95 % of what ignoring the sources earns, with 95 % confidence: {kept} (seeds)")
    caption = "\n".join(line for line in lines if line)
    header = ("last tenth of training" if area else "evaluation", "mean", "95 % interval", "worst seed", "best seed")
    rows = []
    for name in [name for name in (*TABLED, *of_sources) if name in final]:
        row = final[name]
        scores = [score for score in row["by_seed"] if score is not None]
        if scores:
            # A summary that was written before intervals needed seeds has some of one seed.
            known = len(scores) >= LEAST_SEEDS and row["low"] is not None
            interval = f"{_number(row['low'])} .. {_number(row['high'])}" if known else "-"
            whole = [_number(area[name]["mean"])] if name in area else []
            ends = _number(min(scores)), _number(max(scores))
            rows.append((name + of_sources.get(name, ""), _number(row["mean"]), interval, *ends, *whole))
    show_table((*header, *(["whole training"] if area else [])), rows, title, caption, console)
    if "acting" in summary:
        console.print(Text(_acting(summary["acting"])), soft_wrap=True)
    for where, others in summary.get("beside", {}).items():
        told = ", ".join(f"{name} {_number(others[name]['mean'])}" for name in TABLED if name in others)
        console.print(Text(f"{where}: {told}"), soft_wrap=True)


def _acting(found: Mapping[str, Any]) -> str:
    """Which way to act is better, with the return of both."""
    verdict = {
        "drawn": "better drawn, policy.act(obs)",
        "deterministic": "better the most probable one, policy.act(obs, deterministic=True)",
        "neither": "no difference beyond chance",
    }[found["better"]]
    drawn, likeliest = _number(found["drawn"]), _number(found["deterministic"])
    return f"actions: {verdict}; episode_return {drawn} drawn, {likeliest} with the most probable one"


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str = "", console: Console | None = None
) -> None:
    """Prints a table of words and numbers; a row of the first column names what the others tell of.

    No cell is broken over lines. Headings are, where the table is too wide; where that isn't enough, a terminal has a
    line for each cell, and a log has long lines.

    Args:
        header: a heading per column.
        rows: cells, of the header's length.
        title: what it is about.
        caption: what must be known to read it.
        console: where to; standard output where not given.
    """
    console = console or make_console(stderr=False)
    console.print(Text(title), soft_wrap=True)
    table = _table(header, rows, caption)
    if (width := _width(table, console)) > console.width:
        table = _table([_narrowed(*column) for column in zip(header, *rows, strict=True)], rows, caption)
        width = _width(table, console)
    if not console.is_terminal:
        console.width = max(width, console.width)
    if width <= console.width:
        console.print(table)
        return
    for name, *cells in rows:
        told = [f"  {heading}: {cell}" for heading, cell in zip(header[1:], cells, strict=True) if cell]
        console.print(Text("\n".join(("", name, *told))), soft_wrap=True)
    console.print(Text(f"\n{caption}"), soft_wrap=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> Table:
    table = Table(caption=Text(caption), caption_justify="left", box=SIMPLE_HEAD)
    for i, heading in enumerate(header):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _width(table: Table, console: Console) -> int:
    """Columns of the screen that a table takes if it may have as many as it likes."""
    return console.measure(table, options=console.options.update_width(10_000)).maximum


def _narrowed(heading: str, *cells: str) -> str:
    """A heading broken into lines no longer than the longest cell below it."""
    return textwrap.fill(heading, max(1, *map(len, cells)), break_long_words=False)


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise Unheard


def make_console(stderr: bool, width: int = 120) -> Console:
    """A console on standard error or standard output, as wide as the terminal.

    A log has no width of its own, and rich would wrap tables to 80 columns there.

    A notebook is served like a log, with plain lines: rich's own way into one needs widgets, and colours every line
    that goes to standard error as if it were a failure.

    Args:
        stderr: whether it is on standard error.
        width: columns where there is no terminal.
    """
    if _in_notebook():  # whose streams pass for terminals
        return _Console(width=width, force_jupyter=False, force_terminal=False)
    console = _Console(stderr=stderr, force_jupyter=False)
    return console if console.is_terminal else _Console(stderr=stderr, width=width, force_jupyter=False)


def _in_notebook() -> bool:
    """Whether a person reads this below a notebook's cell; nothing is imported to find out."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _bar(console: Console) -> Progress:
    columns = (
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=console)


def _moving(bar: Progress, total: int, start: int, unit: str) -> Update:
    task = bar.add_task("compiling", total=total, completed=start, left="")
    left, shown = _clock(total), _teller()

    def update(done: int, metrics: Mapping[str, np.ndarray]) -> None:
        bar.update(task, completed=done, description=shown(done, metrics) or unit, left=left(done))

    return update


def _lines(console: Console, total: int, unit: str) -> Update:
    left, shown = _clock(total), _teller()
    console.print(Text(COMPILING), soft_wrap=True)

    def update(done: int, metrics: Mapping[str, np.ndarray]) -> None:
        told = filter(None, (f"{unit} {done}/{total}", shown(done, metrics), left(done)))
        console.print(Text("  ".join(told)), soft_wrap=True)

    return update


def _clock(total: int) -> Callable[[int], str]:
    """Time left, from the speed since the end of the first chunk."""
    began: list[tuple[int, float]] = []

    def left(done: int) -> str:
        began.append((done, time.monotonic()))
        (first, at_first), (_, now) = began[0], began[-1]
        if done == first or done >= total:
            return ""
        seconds = round((now - at_first) / (done - first) * (total - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"

    return left


def _teller() -> Callable[[int, Mapping[str, np.ndarray]], str]:
    """``(iterations done, metrics of the last chunk) -> words``; earlier chunks are remembered."""
    curves: dict[str, np.ndarray] = {}

    def tell(done: int, metrics: Mapping[str, np.ndarray]) -> str:
        labels = {**SHOWN, **{f"influence/{source}": f"influence {source}" for source in sources_of(metrics)}}
        labels = {name: label for name, label in labels.items() if name in metrics}
        for name in labels:
            earlier = curves.get(name, metrics[name][:, :0])
            curves[name] = np.concatenate([earlier, metrics[name]], axis=1)
        told = [(name, label, _ending(curves[name], done)) for name, label in labels.items()]
        told += [(name, label, _latest(metrics[name])) for name, label in COUNTED.items() if name in metrics]
        shown = [(label, value) for name, label, value in told if value or name not in NOT_ZERO]
        if skipped := float(np.sum(metrics.get("skipped_update", 0.0))):
            shown.append(("updates skipped", skipped))
        return "  ".join(f"{label} {_number(value, whole=label in COUNTS)}" for label, value in shown)

    return tell


def _ending(curves: np.ndarray, done: int) -> float | None:
    """The mean of the last tenth of what is done, as in the table; where that has no value yet, the newest there is."""
    over_seeds = known_mean(np.asarray(curves, np.float64)[:, -max(1, done // 10) :])
    known = over_seeds[~np.isnan(over_seeds)]
    return float(known.mean()) if known.size else _latest(curves)


def _latest(curves: np.ndarray) -> float | None:
    """Mean over seeds of the newest iteration that has values."""
    for column in np.asarray(curves, np.float64).T[::-1]:
        known = column[~np.isnan(column)]
        if known.size:
            return float(known.mean())
    return None


def _number(value: float | None, whole: bool = False) -> str:
    if value is None:
        return "-"
    if whole and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _costs(summary: Mapping[str, Any]) -> str:
    if "episodes" in summary:
        return (
            f"{plural(summary['seeds'], 'seed')} x {plural(summary['episodes'], 'episode')} "
            f"in {summary['env']['name']}, "
            f"after {summary['iterations']} iterations of training"
        )
    if "seconds" not in summary:
        return ""
    seconds, speed = summary["seconds"], summary["steps_per_second"]
    trained = f"trained in {seconds['run']:.0f} s after {seconds['compile']:.0f} s of compilation"
    return f"{plural(summary['seeds'], 'seed')} x {summary['env_steps']:,} steps, {trained}" + (
        f", {speed:,.0f} steps/s on {summary['device']}" if speed else ""
    )
