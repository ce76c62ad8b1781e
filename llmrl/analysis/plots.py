"""Pictures of runs. Figures are objects, without pyplot: a picture needs no display and leaves no state behind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from llmrl.analysis.colors import METHOD_COLORS, SOURCE_COLORS

Curves = Mapping[str, Shaped[np.ndarray, "seeds iterations"]]

INFLUENCE = "influence"
ACTIVE = "weight_mean_active"


def plot(result: Any, path: str | Path | None = None, title: str = "") -> Figure:
    """Draws what ``llmrl.train`` returned: return, influence of the sources, and the discount where it is learned.

    Args:
        result: a result, or anything with its ``metrics``.
        path: where to save the picture, if anywhere.
        title: a title; the run's directory where not given.

    Returns:
        The figure; a notebook shows it.
    """
    name = title or str(getattr(result.config, "run_dir", None) or "")
    method = getattr(getattr(result.config, "method", None), "name", "")
    return curves(result.metrics, path, name, method)


def curves(metrics: Curves, path: str | Path | None = None, title: str = "", method: str = "") -> Figure:
    """Three panels: return; how far each source moves the policy (of curves that do not tell, its mean weight where it
    speaks); discount if learned, else success, length or entropy.

    One thin line per seed, their mean on top.

    Args:
        metrics: name -> [seeds, iterations]; ``env_steps`` gives the horizontal axis where there is one.
        path: where to save the picture, if anywhere; a PNG, PDF or SVG by its ending.
        title: over the picture.
        method: the run's, for the colour.

    Returns:
        The figure.
    """
    own = [METHOD_COLORS.get(method, METHOD_COLORS["implicit"])]
    figure = Figure(figsize=(13.5, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    steps = steps_of(metrics)
    _panel(left, steps, {"": metrics.get("episode_return")}, "return of an episode", own)
    moved = _of_sources(metrics, INFLUENCE)
    title_of_it = "influence: share of the policy's step" if moved else "mean weight where the source is active"
    weights = moved or _weights(metrics)
    _panel(middle, steps, weights, title_of_it, SOURCE_COLORS if any(weights) else own)
    middle.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    name, label = _third(metrics)
    _panel(right, steps, {"": metrics.get(name)}, label, own)
    if title:
        figure.suptitle(title, fontsize=12)
    if path is not None:
        figure.savefig(path, dpi=130)
    show_in_notebooks(figure)
    return figure


def _panel(
    axes: Axes, steps: np.ndarray, sources: Mapping[str, np.ndarray | None], title: str, colors: Sequence[str]
) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel("environment steps" if steps[-1] > len(steps) else "iteration")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    drawn = [(name, values) for name, values in sources.items() if values is not None and not np.isnan(values).all()]
    for (name, values), color in zip(drawn, itertools.cycle(colors), strict=False):
        axes.plot(steps, values.T, color=color, linewidth=0.7, alpha=_alpha(len(values)))
        axes.plot(steps, _mean_over_seeds(values), color=color, linewidth=2.2, label=name)
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=9)
    if not drawn:
        axes.text(0.5, 0.5, "not learned in this run", transform=axes.transAxes, ha="center", color="0.5")
        axes.set_yticks([])


def _of_sources(metrics: Curves, kind: str) -> dict[str, np.ndarray | None]:
    return {name.partition("/")[2]: values for name, values in metrics.items() if name.startswith(f"{kind}/")}


def _weights(metrics: Curves) -> dict[str, np.ndarray | None]:
    return _of_sources(metrics, ACTIVE) or {"": metrics.get(ACTIVE)}


def _third(metrics: Curves) -> tuple[str, str]:
    if "discount" in metrics and np.ptp(metrics["discount"]) > 0:
        return "discount", "learned discount"
    if "success_rate" in metrics and np.nanmax(metrics["success_rate"]) > 0:
        return "success_rate", "success rate of episodes"
    if "episode_length" in metrics:
        return "episode_length", "length of an episode"
    return "entropy", "entropy of the policy"


def steps_of(metrics: Curves) -> Shaped[np.ndarray, " iterations"]:
    """Environment steps of one seed at the end of each iteration, or the iterations' numbers."""
    if "env_steps" in metrics:
        return np.asarray(metrics["env_steps"])[0]
    return np.arange(1, np.shape(next(iter(metrics.values())))[1] + 1)


def _mean_over_seeds(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def _alpha(seeds: int) -> float:
    return float(np.clip(3.0 / seeds, 0.15, 0.6))


def show_in_notebooks(figure: Figure) -> None:
    """Notebooks know how to show pyplot's figures only; any object with this method they show too."""

    def png() -> bytes:
        from io import BytesIO

        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=100)
        return picture.getvalue()

    figure._repr_png_ = png  # pyright: ignore[reportAttributeAccessIssue]
