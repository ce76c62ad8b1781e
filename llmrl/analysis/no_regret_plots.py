"""Pictures of the no-regret suite: what a method loses and gains in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llmrl.analysis.colors import TURNED, USED
from llmrl.analysis.no_regret import Score

REGRET = LinearSegmentedColormap.from_list("regret", ["#ffffff", TURNED])
GAIN = LinearSegmentedColormap.from_list("gain", ["#ffffff", USED])
"""From nothing to all of it."""

NO_RATIO = "-"
"""In the place of a number that a scored cell does not have."""


def heat_map(
    found: Mapping[tuple[str, str], Score],
    tasks: Sequence[str],
    sources: Sequence[str],
    path: str | Path | None = None,
    failed: Sequence[tuple[str, str]] = (),
) -> Figure:
    """One method's regret (left) and gain (right), a row per task and a column per source.

    Regret is the share that is lost of what the better of ``ppo`` and ``add`` reached above random play, in the area or
    in the end, whichever is larger. A frame marks regret beyond chance. Gain is what the area has above that of
    ``ppo``, as a share of what the best method of the cell has above random play. Grey cells have no result.

    Args:
        found: the method's score in each cell, by task and source.
        tasks, sources: rows and columns, in order.
        path: where to save the picture, if anywhere.
        failed: cells whose run failed.
    """
    figure = Figure(figsize=(2.4 + 1.04 * len(sources), 1.7 + 0.36 * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    shape = len(tasks), len(sources)
    regret, gain = np.full(shape, np.nan), np.full(shape, np.nan)
    for (task, source), score in found.items():
        place = tasks.index(task), sources.index(source)
        regret[place], gain[place] = lost(score), score.area.gain
        if score.clear:
            corner = place[1] + 0.06, place[0] + 0.06
            left.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, linewidth=1.5, zorder=3))
    words = {(tasks.index(task), sources.index(source)): "failed" for task, source in failed}
    words |= {(tasks.index(task), sources.index(source)): NO_RATIO for task, source in found}
    _draw(figure, left, regret, words, REGRET, "regret")
    _draw(figure, right, gain, words, GAIN, "gain over ppo")
    for axes in (left, right):
        axes.set_xticks(np.arange(len(sources)) + 0.5, sources, rotation=40, ha="left", fontsize=10)
        axes.set_yticks(np.arange(len(tasks)) + 0.5, tasks, fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure


def lost(score: Score) -> float:
    """Share lost of what the better of the two reached, in area or end; NaN where there is no ratio, never below 0."""
    ratios = [each.value for each in (score.area.ratio, score.end.ratio) if not np.isnan(each.value)]
    return max(0.0, 1.0 - min(ratios)) if ratios else float("nan")


def _draw(
    figure: Figure,
    axes: Axes,
    values: Float[np.ndarray, "tasks sources"],
    words: Mapping[tuple[int, int], str],
    colors: LinearSegmentedColormap,
    title: str,
) -> None:
    """A map of numbers; ``words`` stand where there is none."""
    norm = Normalize(0.0, 1.0)
    axes.set_facecolor("0.9")
    axes.pcolormesh(values, cmap=colors, norm=norm, edgecolors="white", linewidth=1.5)
    for row, column in np.ndindex(*values.shape):
        value = values[row, column]
        text = words.get((row, column), "") if np.isnan(value) else f"{round(float(value), 2) + 0.0:.2f}"
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": "white" if value > 0.6 else "0.15"}
        axes.text(column + 0.5, row + 0.5, text, **style)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylim(len(values), 0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, location="bottom", shrink=0.6, aspect=30)
