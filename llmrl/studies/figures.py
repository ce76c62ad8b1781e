"""``llmrl figure``: the paper's figures, from the runs that they need to picture and table; for 2 see ``figure_2``.

Figure 1 in our reading: steps that the pole stays up, over training; a row for each CartPole (discrete, continuous), a
column for each source (harmful: -0.1 whenever the pole's angle gets smaller; random: a fixed random function of state
and action in [-1, 1]). The paper has ours, BiPaRS and DPBA there; we add its other variants, PIES, static potentials,
and the two simple choices, ignoring the source and adding it. ``helpful`` is a third column that the paper has not:
0.1 for pushing to the side that the pole leans to. The paper's axis of time has no unit; ours is environment steps.

Reference: Place 2023, Figure 1 and section 4.1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llmrl.analysis.colors import styles
from llmrl.analysis.comparison import regret
from llmrl.analysis.comparison_plots import Curve, draw_curves, shared_legend
from llmrl.analysis.plots import steps_of
from llmrl.analysis.statistics import area_under_curve, last_tenth, mean_interval, task_means
from llmrl.analysis.tables import known, markdown, number
from llmrl.runs.metrics import replace_file
from llmrl.settings.errors import BadValue, unknown
from llmrl.studies import figure_2
from llmrl.studies.carry_out import Outcome, Results, Run, Train, carry_out, parse_shard
from llmrl.training.progress import note

MEASURE = "episode_length"
ENVS = {"cartpole": "discrete CartPole", "cartpole_continuous": "continuous CartPole"}
SOURCES = ("harmful", "random")
HELPFUL = "beneficial"
IGNORES, TRUSTS = "ppo", "add"
"""The simple choices: each source ignored, and added as it is."""
FIGURE_METHODS = ("implicit", "bipars_em", "bipars_mgl", "bipars_imgl", "dpba", "pies", "pbrs", "add", "ppo")
STEPS = ("total_steps=204800",)
QUICK = ("total_steps=40960", "num_chunks=2")
SEEDS, QUICK_SEEDS = 20, 3


class Plan(NamedTuple):
    """What a figure needs.

    Attributes:
        runs: all runs; of figure 1 named ``environment/source/method``, where ``ppo`` hears no source and has one run
            for all.
        columns: the sources; the tasks of figure 2.
        methods: in the order of the legend.
        dropped: methods of the figure that this version does not know.
    """

    runs: tuple[Run, ...]
    columns: tuple[str, ...]
    methods: tuple[str, ...]
    dropped: tuple[str, ...]


def plan(helpful: bool = False, methods: Sequence[str] = ()) -> Plan:
    """The runs of Figure 1, without methods that do not exist here.

    Raises:
        ValueError: a method was asked for that the figure does not have.
    """
    from llmrl.assembly.methods import METHODS

    for method in methods:
        if method not in FIGURE_METHODS:
            raise unknown("method of figure 1", method, FIGURE_METHODS)
    wanted = [method for method in FIGURE_METHODS if not methods or method in methods]
    here = tuple(method for method in wanted if method in METHODS)
    columns = (*SOURCES, HELPFUL) if helpful else SOURCES
    runs = {
        run_name(env, source, method): (f"env={env}", f"aux={_heard(source, method)}", f"method={method}", *STEPS)
        for env in ENVS
        for source in columns
        for method in here
    }
    dropped = tuple(method for method in wanted if method not in METHODS)
    return Plan(tuple(Run(name, chosen) for name, chosen in runs.items()), columns, here, dropped)


def plan_figure_2(goals: str = figure_2.GOALS[0], methods: Sequence[str] = ()) -> Plan:
    """The runs of Figure 2.

    Raises:
        ValueError: a method, or somebody who suggests goals, was asked for that the figure does not have.
    """
    for method in methods:
        if method not in figure_2.METHODS:
            raise unknown("method of figure 2", method, figure_2.METHODS)
    if goals not in figure_2.GOALS:
        raise unknown("goals of figure 2", goals, figure_2.GOALS)
    wanted = tuple(method for method in figure_2.METHODS if not methods or method in methods)
    return Plan(tuple(figure_2.runs(wanted, goals)), tuple(figure_2.TASKS), wanted, ())


def run_name(env: str, source: str, method: str) -> str:
    """The run that a line of a panel shows; who hears no source has one for all panels of a row."""
    return f"{env}/{'any' if method == IGNORES else source}/{method}"


def _heard(source: str, method: str) -> str:
    return "none" if method == IGNORES else source


def figure(
    which: int,
    *,
    seeds: int | None = None,
    quick: bool = False,
    helpful: bool = False,
    goals: str = figure_2.GOALS[0],
    methods: Sequence[str] = (),
    processes: int = 1,
    shard: str = "1/1",
    out: str | None = None,
    command: str = "",
    train: Train | None = None,
) -> Path:
    """Trains the runs that are missing, and draws and tabulates all that are there.

    Args:
        which: its number in the paper.
        seeds, quick, helpful, goals, methods, processes, shard, out: as in ``llmrl.settings.requests.Reproduction``.
        command: what was typed, to be kept beside the table.
        train: how a run is trained, see ``llmrl.studies.carry_out``.

    Returns:
        The picture.

    Raises:
        ValueError: there is no such figure, method or shard, or runs have failed (after everything else is done).
    """
    if which not in FIGURES:
        raise unknown("figure", which, map(str, FIGURES))
    recipe = FIGURES[which]
    planned = recipe.plan(helpful, goals, methods)
    part = parse_shard(shard)
    variant = f"_{goals}" if which == 2 and goals != figure_2.GOALS[0] else ""
    folder = Path(out or f"runs/figures/{which}{variant}{'_quick' if quick else ''}")
    if planned.dropped:
        note(f"left out, since this version does not have them: {', '.join(planned.dropped)}")
    began = time.monotonic()
    outcome = carry_out(
        planned.runs,
        folder,
        seeds=seeds or (recipe.quick_seeds if quick else recipe.seeds),
        extra=recipe.quick if quick else (),
        shard=part,
        processes=processes,
        train=train,
    )
    picture = folder / f"figure{which}.png"
    folder.mkdir(parents=True, exist_ok=True)
    recipe.draw(planned, outcome.results, picture)
    written = _page(planned, outcome, folder, command, time.monotonic() - began)
    written = f"{written}\n\n{recipe.table(planned, outcome.results)}"
    replace_file(folder / f"figure{which}.md", written)
    if outcome.failures:
        raise BadValue(
            f"{len(outcome.failures)} of the runs failed, the first is {next(iter(outcome.failures))}: "
            f"{next(iter(outcome.failures.values()))} (the same command tries them again; {picture} shows the others)"
        )
    return picture


def draw_figure_1(planned: Plan, results: Results, path: Path) -> Figure:
    """A row per environment, a column per source, a line per method: means over seeds with 95 % bands."""
    drawing = Figure(figsize=(1.2 + 4.4 * len(planned.columns), 7.4), layout="constrained")
    FigureCanvasAgg(drawing)
    colors = styles(FIGURE_METHODS)
    grid = drawing.subplots(len(ENVS), len(planned.columns), squeeze=False, sharex=True, sharey=True)
    for row, (env, title) in zip(grid, ENVS.items(), strict=True):
        for axes, source in zip(row, planned.columns, strict=True):
            curves = _curves(planned, results, env, source)
            # The first method last, so that nothing lies on top of ours.
            draw_curves(axes, dict(reversed(curves.items())), colors, statistic=task_means, points=40)
            axes.set_title(f"{title}, {source} reward", fontsize=12, loc="left")
        row[0].set_ylabel("steps of 200", fontsize=12)
    for axes in grid[-1]:
        axes.set_xlabel("environment steps of one seed", fontsize=12)
    shared_legend(drawing, planned.methods)
    drawing.savefig(path, dpi=130)
    return drawing


def _curves(planned: Plan, results: Results, env: str, source: str) -> dict[str, Curve]:
    found = {method: results.get(run_name(env, source, method)) for method in planned.methods}
    return {
        method: Curve(steps_of(of.curves), np.asarray(of.curves[MEASURE], np.float64))
        for method, of in found.items()
        if of is not None
    }


def table(planned: Plan, results: Results) -> str:
    """Area and end of each method, and whether there is anything to regret beside ignoring and adding the source."""
    header = ("environment", "source", "method", "seeds", "area", "last tenth", "worst seed")
    header += ("area / better", "no regret")
    rows = []
    for env in ENVS:
        for source in planned.columns:
            curves = {method: curve.values for method, curve in _curves(planned, results, env, source).items()}
            for method, values in curves.items():
                area, end = area_under_curve(values), last_tenth(values)
                row = [env, source, method, str(len(values)), known(mean_interval(area)), known(mean_interval(end))]
                row.append(number(float(end.min())))
                if method not in (IGNORES, TRUSTS) and {IGNORES, TRUSTS} <= curves.keys():
                    beside = regret(values, {simple: curves[simple] for simple in (IGNORES, TRUSTS)})
                    row += [known(beside.area), beside.words]
                rows.append(row)
    return markdown(header, rows)


class Recipe(NamedTuple):
    """How a figure is made.

    Attributes:
        plan: ``(helpful, goals, methods) -> plan``.
        draw: ``(plan, results, path) -> picture``, saved there.
        table: ``(plan, results) -> markdown``.
        seeds, quick_seeds: of each run.
        quick: overrides for a look.
    """

    plan: Callable[[bool, str, Sequence[str]], Plan]
    draw: Callable[[Plan, Results, Path], Figure]
    table: Callable[[Plan, Results], str]
    seeds: int
    quick_seeds: int
    quick: tuple[str, ...]


FIGURES = {
    1: Recipe(lambda helpful, goals, methods: plan(helpful, methods), draw_figure_1, table, SEEDS, QUICK_SEEDS, QUICK),
    2: Recipe(
        lambda helpful, goals, methods: plan_figure_2(goals, methods),
        lambda planned, results, path: figure_2.draw(planned.methods, results, path),
        lambda planned, results: figure_2.table(planned.methods, results),
        figure_2.SEEDS,
        figure_2.QUICK_SEEDS,
        figure_2.QUICK,
    ),
}
"""The paper's figures that can be regenerated, by number."""


def _page(planned: Plan, outcome: Outcome, folder: Path, command: str, seconds: float) -> str:
    """What it took, and what is missing."""
    missing = [run.name for run in planned.runs if run.name not in outcome.results]
    lines = [f"    {command}\n"] if command else []
    lines.append(f"{len(outcome.trained)} runs trained by this command, in {seconds / 60:.1f} minutes.")
    total = _training_seconds(folder, outcome.results)
    if total:
        lines.append(f"All {len(outcome.results)} runs together: {total / 60:.1f} minutes of compiling and training.")
    if planned.dropped:
        lines.append(f"Left out, since this version does not have them: {', '.join(planned.dropped)}.")
    if missing:
        lines.append(f"Not finished yet: {', '.join(missing)}.")
    lines += [f"Failed: {name} ({reason})." for name, reason in outcome.failures.items()]
    return "\n".join(lines)


def _training_seconds(folder: Path, results: Mapping[str, object]) -> float:
    summaries = [folder / name / "summary.json" for name in results]
    seconds = [json.loads(path.read_text()).get("seconds", {}) for path in summaries if path.is_file()]
    return sum(sum(each.values()) for each in seconds)
