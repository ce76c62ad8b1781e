"""Pictures that compare methods: learning curves with bands, performance profiles, solver health."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from llmrl.analysis.colors import DASHES, Style, styles
from llmrl.analysis.comparison import Band, performance_profile, sample_efficiency, thin
from llmrl.analysis.statistics import Estimate, Scores, mean_interval, task_means, trimmed_means

LEGEND_LETTERS = 72
"""About how many letters of a legend stand side by side."""

END_LABELS, END_LETTERS, END_SIZE = 8, 16, 11
"""So many lines, with names of so many letters, are labelled where they end, in points; more have a legend."""


Statistic: TypeAlias = Callable[[Float[np.ndarray, "points tasks seeds"]], Estimate]
"""What a curve shows of all seeds, at each point of training."""


class Curve(NamedTuple):
    """One method's learning curves.

    Attributes:
        steps: environment steps of one seed, [iterations].
        values: [seeds, iterations].
    """

    steps: Shaped[np.ndarray, " iterations"]
    values: Float[np.ndarray, "seeds iterations"]


def learning_curves(
    methods: Mapping[str, Curve],
    measure: str,
    path: str | Path | None = None,
    labels: Sequence[str] = (),
    statistic: Statistic = trimmed_means,
    title: str = "",
) -> Figure:
    """A statistic over seeds (the interquartile mean) with its 95 % band, one colour per method.

    A few lines with short names are labelled where they end; else there is a legend.

    Args:
        methods: label -> curves.
        measure: what the curves show, for the axis.
        path: where to save the picture, if anywhere.
        labels: all labels that have colours, in pictures that belong together.
        statistic: as for ``sample_efficiency``.
        title: what was trained, above the picture.
    """
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_curves(axes, methods, styles(labels or list(methods)), statistic)
    axes.set_xlabel("environment steps of one seed", fontsize=12)
    axes.set_ylabel(measure.replace("_", " "), fontsize=12)
    if len(methods) <= END_LABELS and all(len(label) <= END_LETTERS for label in methods):
        _label_ends(figure, axes)
    else:
        _legend(figure, axes, len(methods))
    if title:
        figure.suptitle(title, fontsize=12)
    return _saved(figure, path)


def _label_ends(figure: Figure, axes: Axes) -> None:
    """Every line's name beside its last value, moved up or down as far as names would overlap."""
    ends = []
    for line in axes.get_lines():
        values = np.asarray(line.get_ydata(), np.float64)
        ends.append((values[~np.isnan(values)][-1], line))
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    room = axes.get_window_extent().height / figure.dpi * 72  # points
    gap = 1.5 * END_SIZE / room * (high - low)
    places = _apart(np.array([value for value, _ in ends]), gap, high)
    for place, (_, line) in zip(places, ends, strict=True):
        at = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": END_SIZE, "color": line.get_color()}
        axes.text(1.02, place, str(line.get_label()), **at)
    axes.set_ylim(low, high)


def _apart(wanted: Float[np.ndarray, " labels"], gap: float, high: float) -> Float[np.ndarray, " labels"]:
    """Places at least a gap apart, near the wanted ones, which ascend; the last at most ``high``."""
    places = wanted.copy()
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    limit = high
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places


def draw_curves(
    axes: Axes,
    methods: Mapping[str, Curve],
    colors: Mapping[str, Style],
    statistic: Statistic = trimmed_means,
    points: int = 60,
) -> None:
    """Draws each method's statistic over seeds and its band; a method without any value is left out."""
    for label, (steps, values) in methods.items():
        if np.isnan(values).all():
            continue
        ends, means = thin(np.asarray(values, np.float64), points)
        band = sample_efficiency(means, statistic)
        _draw_band(axes, np.asarray(steps)[ends - 1], band, label, colors[label])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _plain(axes)


def profiles(
    methods: Mapping[str, Scores], measure: str, path: str | Path | None = None, labels: Sequence[str] = ()
) -> Figure:
    """Share of seeds that end above each score: a method is better where its line is higher.

    Args:
        methods: label -> final scores, [seeds].
        measure: what the scores are, for the axis.
        path, labels: as for ``learning_curves``.
    """
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    every = np.concatenate([np.ravel(scores) for scores in methods.values()])
    every = every[~np.isnan(every)]
    low, high = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    thresholds = np.linspace(low - margin, high + margin, 101)
    colors = styles(labels or list(methods))
    for label, scores in methods.items():
        scores = np.asarray(scores, np.float64)
        known = scores[~np.isnan(scores)]
        if known.size:
            _draw_band(axes, thresholds, performance_profile(known, thresholds), label, colors[label])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(f"{measure.replace('_', ' ')}, last tenth of training", fontsize=12)
    axes.set_ylabel("share of seeds above", fontsize=12)
    _plain(axes)
    _legend(figure, axes, len(methods))
    return _saved(figure, path)


def solver_health(
    runs: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]],
    panels: Mapping[str, str],
    path: str | Path | None = None,
) -> Figure:
    """How the inverse-curvature solves went over training: a panel per metric, the mean over seeds of each run.

    Args:
        runs: label -> (environment steps [iterations], metrics name -> [seeds, iterations]).
        panels: metric -> title.
        path: where to save the picture, if anywhere.
    """
    figure = Figure(figsize=(6.6, 0.6 + 2.1 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    colors = styles(list(runs))
    for axes, (metric, title) in zip(
        np.atleast_1d(figure.subplots(len(panels), 1, sharex=True)), panels.items(), strict=True
    ):
        shown = {
            label: Curve(steps, np.asarray(metrics[metric], np.float64))
            for label, (steps, metrics) in runs.items()
            if metric in metrics
        }
        draw_curves(axes, shown, colors, points=40)
        axes.set_title(title, fontsize=12, loc="left")
    figure.axes[-1].set_xlabel("environment steps of one seed", fontsize=12)
    _legend(figure, figure.axes[0], len(runs))
    return _saved(figure, path)


def learning_curve_grid(
    rows: Mapping[str, Mapping[str, Mapping[str, Curve]]], measure: str, path: str | Path
) -> Figure:
    """Means over seeds with 95 % bands, a panel per row and column, one colour per method.

    Args:
        rows: row title -> column title -> label -> curves; what is missing leaves its place empty.
        measure: what the curves show, for the axis.
        path: where to save the picture.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    labels = dict.fromkeys(label for row in rows.values() for methods in row.values() for label in methods)
    figure = Figure(figsize=(1.0 + 3.1 * max(1, len(columns)), 1.0 + 2.7 * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(rows)), max(1, len(columns)), squeeze=False, sharex=True, sharey=True)
    for axes_row, (title, row) in zip(grid, rows.items(), strict=False):
        for axes, column in zip(axes_row, columns, strict=False):
            draw_curves(axes, row.get(column, {}), styles(list(labels)), task_means, points=40)
            axes.set_title(f"{title}, {column}", fontsize=12, loc="left")
        axes_row[0].set_ylabel(measure.replace("_", " "), fontsize=12)
    for axes in grid[-1]:
        axes.set_xlabel("environment steps of one seed", fontsize=11)
    shared_legend(figure)
    return _saved(figure, path)


def score_lines(
    rows: Mapping[str, Mapping[str, Mapping[str, Mapping[float, Scores]]]], axis: str, path: str | Path
) -> Figure:
    """How scores change with a quantity: means over seeds with 95 % intervals, one colour per method.

    Args:
        rows: what the scores are -> column title -> label -> quantity -> scores, [seeds].
        axis: what the quantity is.
        path: where to save the picture.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    labels = dict.fromkeys(label for row in rows.values() for methods in row.values() for label in methods)
    figure = Figure(figsize=(1.2 + 4.2 * max(1, len(columns)), 0.8 + 2.9 * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(max(1, len(rows)), max(1, len(columns)), squeeze=False, sharex=True, sharey="row")
    colors = styles(list(labels))
    for axes_row, (measure, row) in zip(grid, rows.items(), strict=False):
        for axes, column in zip(axes_row, columns, strict=False):
            for label, scores in row.get(column, {}).items():
                estimates = [mean_interval(scores[x]) for x in sorted(scores)]
                band = Band(*np.array([[each.value, each.low, each.high] for each in estimates]).T)
                _draw_band(axes, np.array(sorted(scores)), band, label, colors[label])
            axes.set_title(column, fontsize=12, loc="left")
            _plain(axes)
        axes_row[0].set_ylabel(measure, fontsize=12)
    for axes in grid[-1]:
        axes.set_xlabel(axis, fontsize=12)
    shared_legend(figure)
    return _saved(figure, path)


def shared_legend(figure: Figure, order: Sequence[str] = ()) -> None:
    """One legend above all panels, each method once, in the order of drawing or in the given one."""
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    handles = {label: handles[label] for label in order if label in handles} or handles
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside upper left", ncols=5, frameon=False, fontsize=11
        )


def _draw_band(axes: Axes, x: np.ndarray, band: Band, label: str, style: Style) -> None:
    color, dash = style
    # What is dashed lies on what is not: lines that coincide stay visible.
    order = 2.0 + 0.1 * DASHES.index(dash)
    axes.plot(x, band.value, color=color, linestyle=dash, linewidth=2.0, label=label, zorder=order)
    axes.fill_between(x, band.low, band.high, color=color, alpha=0.16, linewidth=0)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=11)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, number: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles and number > 1:
        labels = [_shortened(label) for label in labels]
        columns = min(4, max(1, LEGEND_LETTERS // (max(map(len, labels)) + 6)))  # six letters for a line and a gap
        rows = -(-len(labels) // columns)
        figure.set_figheight(figure.get_figheight() + 0.24 * (rows - 1))  # or the legend lies on the axes
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=11)


def _shortened(label: str) -> str:
    """A label that fits into the picture: its middle is left out."""
    room = LEGEND_LETTERS - 6
    return label if len(label) <= room else f"{label[: room // 2 - 1]}…{label[-room // 2 :]}"


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=140)
    return figure
