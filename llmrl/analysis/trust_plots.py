"""Pictures of trust: maps of learned weights beside their sources, and what was made of each source over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from llmrl.analysis.colors import IGNORED, TURNED, USED
from llmrl.analysis.plots import Curves, show_in_notebooks, steps_of
from llmrl.analysis.statistics import known_mean
from llmrl.analysis.trust import BORDERS, TrustMap, cell_means, edges, find_dims, source_index, telling_dims

SHARE_COLORS = {"used": USED, "ignored": IGNORED, "turned": TURNED}
SHARE_WORDS = {"used": "used", "ignored": "ignored", "turned": "turned around"}
DPI = 140
COLORMAP = "RdBu"
"""Red is negative: turned around."""


def heat_maps(
    found: TrustMap, source: str, dims: Sequence[str | int] | None = None, path: str | Path | None = None
) -> Figure:
    """How far a source moves the policy, its weight, and what it says, over two components of the observation.

    From left to right: influence and weight at the end of training, weight in the largest units that the task has had
    (``TrustMap``), and the source's words. Each cell holds the mean over the visited states in it (all seeds) in which
    the source speaks of the action. Where a source is known to be right on one side of a border and wrong on the other,
    that is a dashed line.

    Args:
        found: a map.
        source: one of its sources.
        dims: two components; the most telling ones where not given.
        path: where to save the picture, if anywhere.

    Raises:
        ValueError: the source or a component does not exist.
    """
    i = source_index(found, source)
    across, up = find_dims(found, dims) if dims else telling_dims(found, source)
    x, y = found.obs[..., across].ravel(), found.obs[..., up].ravel()
    grid = edges(x), edges(y)
    probes = range(1, len(found.probes)) if len(found.probes) > 1 else [0]
    shown = {
        f"influence of {source}": found.influence,
        "weight at the end": found.weight,
        "weight in the largest units": found.settled,
        f"what {source} says": found.aux,
    }
    figure = Figure(figsize=(3.1 * len(shown), 0.5 + 2.5 * len(probes)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(probes), len(shown), squeeze=False, sharex=True, sharey=True)
    maps = [
        [
            cell_means(of[:, :, probe, i].ravel(), found.aux[:, :, probe, i].ravel() != 0, x, y, *grid)
            for probe in probes
        ]
        for of in shown.values()
    ]
    for column, cells, name in zip(rows.T, maps, shown, strict=True):
        titles = [f"{name}\n{found.probes[probe]}" for probe in probes]
        _draw_maps(figure, list(column), grid, cells, titles)
    for axes in rows.flat:
        _draw_border(axes, source, found.obs_names[across], found.obs_names[up])
    for row in rows:
        row[0].set_ylabel(found.obs_names[up], fontsize=11)
    for axes in rows[-1]:
        axes.set_xlabel(found.obs_names[across], fontsize=11)
    return _finished(figure, path)


def _draw_maps(
    figure: Figure,
    column: Sequence[Axes],
    grid: tuple[np.ndarray, np.ndarray],
    maps: Sequence[Float[np.ndarray, "y_cells x_cells"]],
    titles: Sequence[str],
) -> None:
    """Maps of one quantity below each other, in the same colours."""
    limit = _limit(maps)
    norm = TwoSlopeNorm(0.0, -limit, limit)
    for axes, cells, title in zip(column, maps, titles, strict=True):
        axes.set_facecolor("0.93")
        axes.pcolormesh(*grid, cells, cmap=COLORMAP, norm=norm)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=9.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if np.isnan(cells).all():
            axes.text(0.5, 0.5, "says nothing here", transform=axes.transAxes, ha="center", color="0.4", fontsize=10)
    bar = figure.colorbar(ScalarMappable(norm, COLORMAP), ax=column, shrink=0.9, aspect=30, extend="both")
    bar.ax.tick_params(labelsize=9.5)


def _draw_border(axes: Axes, source: str, across: str, up: str) -> None:
    border, style = BORDERS.get(source, {}), {"color": "0.15", "linewidth": 1.2, "linestyle": "--"}
    if across in border:
        axes.axvline(border[across], **style)
    if up in border:
        axes.axhline(border[up], **style)


def _limit(maps: Sequence[Float[np.ndarray, "y_cells x_cells"]]) -> float:
    sizes = np.abs(np.concatenate([cells[~np.isnan(cells)] for cells in maps]))
    # Not the largest: a single cell that few policies visit would make all others pale.
    limit = float(np.quantile(sizes, 0.98)) if sizes.size else 0.0
    return limit if limit > 0.0 else 1.0


def shares_over_training(metrics: Curves, source: str, path: str | Path | None = None) -> Figure | None:
    """Shares of the steps on which a source was used, ignored and turned around, over training, mean over seeds.

    Args:
        metrics: name -> [seeds, iterations].
        source: its name.
        path: where to save the picture, if anywhere.

    Returns:
        The figure, or None where the run did not note it.
    """
    curves = {kind: metrics.get(f"trust_{kind}/{source}") for kind in SHARE_COLORS}
    if any(curve is None for curve in curves.values()):
        return None
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # Bottom to top as on a scale: turned around, ignored, used.
    order = ("turned", "ignored", "used")
    means = [known_mean(np.asarray(curves[kind], np.float64).T) for kind in order]
    axes.stackplot(
        steps_of(metrics), means, colors=[SHARE_COLORS[kind] for kind in order], labels=[SHARE_WORDS[k] for k in order]
    )
    _over_steps(axes)
    axes.set_ylim(0.0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        fontsize=10,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        handlelength=1.2,
    )
    return _finished(figure, path)


def _over_steps(axes: Axes) -> None:
    axes.set_xlabel("environment steps", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=10)
    axes.margins(x=0.0)
    axes.spines[["top", "right"]].set_visible(False)


def _finished(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=DPI)
    show_in_notebooks(figure)
    return figure
