"""Draws the figures of docs/how.md; the pictures are committed, so that building the docs trains nothing.

    python scripts/draw_docs.py loop      # the two levels, a diagram
    python scripts/draw_docs.py twin      # two policies beside two sources; trains both runs
    python scripts/draw_docs.py trust     # what is learned about three sources

The last one takes the runs of `python scripts/study.py no_regret --seeds 20`, from the folder that RUNS names or from
where the study puts them; those that are not there it trains, with as many seeds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from llmrl.analysis.arms_plots import who_acted
from llmrl.analysis.colors import METHOD_COLORS, SIMPLE, SOURCE_COLORS

OUT = Path(__file__).resolve().parents[1] / "docs" / "figures"
INNER, OUTER, PLAIN = "#1f6f8b", "#c8553d", "#6b6b6b"
SOURCES = {"harmful": SOURCE_COLORS[4], "random": SOURCE_COLORS[1], "beneficial": SOURCE_COLORS[0]}
"""Methods are told apart by their dashes here."""
RUNS = Path(os.environ.get("RUNS", "runs/studies/no_regret"))
SEEDS = 20


def _box(axes: Axes, at: tuple[float, float, float, float], color: str, title: str, text: str) -> None:
    x, y, width, height = at
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((x, y), width, height, shape, facecolor="white", edgecolor=color, linewidth=1.8))
    middle = {"ha": "center", "va": "center"}
    axes.text(x + width / 2, y + height - 0.27, title, color=color, weight="bold", fontsize=11, **middle)
    axes.text(x + width / 2, y + (height - 0.4) / 2, text, fontsize=9.5, linespacing=1.5, **middle)


def _arrow(axes: Axes, start, end, color: str, text: str, at, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=style)
    axes.text(*at, text, ha="center", va="center", color=color, fontsize=9, linespacing=1.35)


STEPS = "$T \\times N$ steps: the task's\nreward $r_p$ and the sources'\nvalues $r_1 \\ldots r_M$"
BLEND = (
    "$\\theta$ follows the blend $r_p + \\sum_m w_m(s, a; \\phi)\\, r_m$\n\nand, in a sparse task, advice $f_m\\, r_m$"
)
ASKED = "would the task's own return\n$J(\\theta^*(\\phi);\\, r_p)$ rise\nif $\\phi$ moved?"
TWICE = (
    "$\\phi$ moves as far as two halves of the\nenvironments agree; $w_m$ is applied as far\n"
    "as later rollouts confirm its gain"
)
KNOWN = "policy $\\theta$, its curvature $H$,\nhow $\\theta$ depends on $\\phi$"
WEIGHTS = "weights $w_m$, between $-1$\n(turned around) and\n$1$ (fully used)"


def loop() -> Figure:
    """The inner and the outer level, and what passes between them."""
    figure = Figure(figsize=(10.4, 5.0))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, 10.4)
    axes.set_ylim(0, 5.0)
    axes.axis("off")

    _box(axes, (0.2, 1.75, 2.2, 1.5), PLAIN, "environments", STEPS)
    _box(axes, (3.5, 0.25, 3.3, 1.4), INNER, "inner level: PPO", BLEND)
    _box(axes, (3.1, 3.3, 2.5, 1.4), OUTER, "outer level", ASKED)
    _box(axes, (6.5, 3.3, 3.6, 1.4), OUTER, "gate and evidence", TWICE)

    _arrow(axes, (2.45, 2.95), (3.05, 3.75), PLAIN, "$r_p$ alone", (2.35, 3.62))
    _arrow(axes, (2.45, 2.05), (3.45, 1.3), PLAIN, "$r_p$ and sources", (3.42, 1.95))
    _arrow(axes, (5.65, 4.0), (6.45, 4.0), OUTER, "$dJ/d\\phi$", (6.05, 4.25))
    _arrow(axes, (8.3, 3.25), (6.85, 1.15), OUTER, WEIGHTS, (9.25, 2.2), bend=-0.25)
    _arrow(axes, (4.7, 1.7), (4.5, 3.25), INNER, KNOWN, (5.75, 2.5))
    _arrow(axes, (3.45, 0.7), (1.3, 1.7), INNER, "acts", (2.0, 0.85), bend=-0.3)
    return figure


def trust() -> Figure:
    """CartPole beside three sources: return, and the learned weight where the source speaks; the mean of all seeds.

    Raises:
        ValueError: the runs differ in their numbers of seeds.
    """
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    ignored = _curves("cartpole/any/ppo", "aux=none", "method=ppo")
    seeds = {len(ignored["episode_length"])}
    for source, color in SOURCES.items():
        learned = _curves(f"cartpole/{source}/implicit", f"aux={source}", "method=implicit")
        _line(left, learned, "episode_length", color, f"{source}, learned trust")
        trusted = _curves(f"cartpole/{source}/add", f"aux={source}", "method=add")
        _line(left, trusted, "episode_length", color, f"{source}, simply added", SIMPLE["add"])
        _line(right, learned, "weight_mean_active", color, source)
        seeds |= {len(learned["episode_length"]), len(trusted["episode_length"])}
    if len(seeds) > 1:
        raise ValueError(f"the runs below {RUNS} must have as many seeds as each other, got {sorted(seeds)}")
    _line(left, ignored, "episode_length", METHOD_COLORS["ppo"], "no source (plain PPO)", SIMPLE["ppo"])
    left.set_title("steps that the pole stays up, of 200", loc="left", fontsize=11)
    right.set_title("learned weight where the source speaks", loc="left", fontsize=11)
    right.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
    right.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1.0, 0.36))
    left.legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.36))
    for axes in (left, right):
        axes.set_xlabel("environment steps of a seed")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k")
        axes.spines[["top", "right"]].set_visible(False)
    figure.set_label(f"{seeds.pop()} seeds")
    return figure


def _curves(name: str, *overrides: str) -> dict[str, np.ndarray]:
    """Of a run of the study, trained with a few seeds where the study has not been run."""
    import llmrl
    from llmrl.runs import metrics

    place = RUNS / name
    if (place / "summary.json").exists():
        return metrics.read(place / "metrics.csv")
    chosen = (*overrides, "total_steps=204800", f"seeds={SEEDS}", f"run_dir={place}")
    return llmrl.train(llmrl.compose(*chosen)).metrics


def _line(axes: Axes, metrics: dict, name: str, color: str, label: str, style: str = "-") -> None:
    mean = np.nanmean(metrics[name], axis=0)
    axes.plot(metrics["env_steps"][0], mean, style, color=color, linewidth=1.8, label=label)


TWIN = {
    "MountainCar with a hint that helps": (
        "fair",
        "env=gymnax",
        "env.id=MountainCar-v0",
        "ppo.entropy=0.01",
        "total_steps=150000",
    ),
    "CartPole with a random one": ("useless", "env=cartpole", "total_steps=100000"),
}


def twin() -> Figure:
    """Two policies, beside a source that helps and beside one that does not."""
    import llmrl

    runs = {}
    for label, (source, *overrides) in TWIN.items():
        metrics = llmrl.train(llmrl.compose("method=twin", f"aux={source}", "seeds=8", *overrides)).metrics
        runs[label] = (metrics, ("the task alone", "follows the hint"))
    figure = who_acted(runs)
    figure.set_label("8 seeds")
    return figure


FIGURES = {"loop": loop, "twin": twin, "trust": trust}


def main(names: list[str]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name in names or FIGURES:
        path = OUT / f"{name}.png"
        figure = FIGURES[name]()
        figure.savefig(path, dpi=160, metadata={"Description": str(figure.get_label())})  # the docs' tests read it
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
