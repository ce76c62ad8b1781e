"""The paper's second figure: success in four tasks of Crafter over training, a panel each.

Every task pays once, for one achievement, in episodes of 400 steps (Craftax-Classic, its own rules). ``implicit``
learns how far to trust suggested goals, ``ellm`` adds them, ``rnd`` and ``apt`` pay for what is new, ``ppo`` has the
task alone. Who suggests the goals is chosen: ``plausible``, a table written by hand of what a language model typically
says, or ``oracle``, what is possible and leads to the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from llmrl.analysis.colors import styles
from llmrl.analysis.comparison_plots import Curve, draw_curves, shared_legend
from llmrl.analysis.plots import steps_of
from llmrl.analysis.statistics import area_under_curve, difference_interval, last_tenth, mean_interval, task_means
from llmrl.analysis.tables import known, markdown, number
from llmrl.studies.carry_out import Results, Run

MEASURE = "success_rate"
TASKS = {
    "place_table": "place table",
    "eat_cow": "attack cow",
    "make_wood_sword": "make wood sword",
    "collect_stone": "mine stone",
}
OURS, IGNORES = "implicit", "ppo"
METHODS = (OURS, "ellm", "rnd", "apt", IGNORES)
GUIDED = (OURS, "ellm")
"""Those that hear goals."""
GOALS = ("plausible", "oracle")
SETTING = ("env=craftax_classic", "env.horizon=400", "ppo=crafter", "total_steps=1024000")
"""250 iterations: pieces of ten, where a million steps would make two lengths, each to be compiled."""
QUICK = ("total_steps=307200", "num_chunks=5")
"""A third of the steps: an hour on two cores."""
SEEDS, QUICK_SEEDS = 10, 3


def runs(methods: Sequence[str], goals: str) -> Iterator[Run]:
    """The runs of these methods, named ``task/method``."""
    for task in TASKS:
        for method in methods:
            heard = ("aux=goals", f"llm={goals}") if method in GUIDED else ("aux=none",)
            yield Run(f"{task}/{method}", (*SETTING, f"env.task={task}", *heard, f"method={method}"))


def draw(methods: Sequence[str], results: Results, path: Path) -> Figure:
    """Two by two panels, a line per method: means over seeds with 95 % bands."""
    drawing = Figure(figsize=(10.4, 7.4), layout="constrained")
    FigureCanvasAgg(drawing)
    colors = styles(METHODS)
    grid = drawing.subplots(2, 2, sharex=True)
    for axes, (task, title) in zip(grid.flat, TASKS.items(), strict=True):
        draw_curves(axes, _curves(methods, results, task), colors, statistic=task_means, points=40)
        axes.set_title(title, fontsize=12, loc="left")
        # Tasks differ tenfold in how hard they are: each has a scale of its own, from 0.
        axes.set_ylim(bottom=0.0)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    for row in grid:
        row[0].set_ylabel("success", fontsize=12)
    for axes in grid[-1]:
        axes.set_xlabel("environment steps of one seed", fontsize=12)
    shared_legend(drawing)
    drawing.savefig(path, dpi=130)
    return drawing


def table(methods: Sequence[str], results: Results) -> str:
    """Success of each method; ours also beside ppo and beside the best of the others, at the end of training."""
    header = ("task", "method", "seeds", "success, area", "last tenth", "worst seed", "end - ppo", "end - best other")
    rows = []
    for task in TASKS:
        ends = {method: last_tenth(curve.values) for method, curve in _curves(methods, results, task).items()}
        for method, end in ends.items():
            values = np.asarray(results[f"{task}/{method}"].curves[MEASURE], np.float64)
            row = [task, method, str(len(end)), *map(known, map(mean_interval, (area_under_curve(values), end)))]
            row.append(number(float(end.min())))
            if method != IGNORES:
                row.append(known(difference_interval(end, ends[IGNORES])) if IGNORES in ends else "")
            if method == OURS and len(ends) > 1:
                best = max((other for other in ends if other != OURS), key=lambda other: float(ends[other].mean()))
                row.append(f"{known(difference_interval(end, ends[best]))} ({best})")
            rows.append(row)
    return markdown(header, rows)


def _curves(methods: Sequence[str], results: Results, task: str) -> Mapping[str, Curve]:
    found = {method: results.get(f"{task}/{method}") for method in methods}
    return {
        method: Curve(steps_of(of.curves), np.asarray(of.curves[MEASURE], np.float64))
        for method, of in found.items()
        if of is not None
    }
