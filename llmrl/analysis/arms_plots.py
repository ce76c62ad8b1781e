"""Who acted, of several policies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from llmrl.analysis.colors import METHOD_COLORS, SOURCE_COLORS
from llmrl.analysis.plots import Curves, steps_of


def who_acted(runs: Mapping[str, tuple[Curves, Sequence[str]]], path: str | Path | None = None) -> Figure:
    """A column per run, means over seeds: above, what each policy earns; below, its share of the new episodes.

    A tick marks where policy 0 has taken over another one's networks in any seed.

    Args:
        runs: label -> (metrics, the policies' names).
        path: where to save the picture, if anywhere.
    """
    figure = Figure(figsize=(1.0 + 4.0 * len(runs), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(runs), squeeze=False, sharex="col")
    for (above, below), (label, (metrics, names)) in zip(rows.T, runs.items(), strict=True):
        steps, colors = steps_of(metrics), (METHOD_COLORS["ppo"], *SOURCE_COLORS)
        shares = [np.mean(metrics[f"arm_share/{arm}"], axis=0) for arm in range(len(names))]
        for arm, (name, color) in enumerate(zip(names, colors, strict=False)):
            returns = np.asarray(metrics[f"arm_return/{arm}"], np.float64)
            # Before its first episode has ended, nothing is known of a policy, and 0 is logged.
            known = np.logical_or.accumulate(returns != 0.0, axis=1).all(axis=0) | (returns == 0.0).all()
            above.plot(steps[known], returns[:, known].T, color=color, linewidth=0.6, alpha=0.3)
            mean = np.mean(returns[:, known], axis=0)
            above.plot(steps[known], mean, color=color, linewidth=2.2, label=f"{arm}: {name}")
        below.stackplot(steps, shares, colors=colors[: len(names)], alpha=0.85)
        copied = steps[np.any(np.asarray(metrics["arm_copied"]) > 0, axis=0)]
        marks = below.plot(copied, np.full(len(copied), 1.04), "|", color="black", markersize=7, clip_on=False)
        marks[0].set_in_layout(False)
        above.set_title(label, fontsize=11, loc="left")
        above.legend(frameon=False, fontsize=9)
        below.set_ylim(0.0, 1.0)
        below.yaxis.set_major_formatter(PercentFormatter(1.0))
        below.set_xlabel("environment steps")
        below.xaxis.set_major_locator(MaxNLocator(5))
        below.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    rows[0, 0].set_ylabel("discounted return of the task")
    rows[1, 0].set_ylabel("share of new episodes")
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
