"""``llmrl compare``: a method beside ignoring and trusting its auxiliary reward, in one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmrl.analysis.comparison import IGNORES, MEASURES, TRUSTS, regret
from llmrl.analysis.comparison_plots import Curve, learning_curves
from llmrl.analysis.plots import steps_of
from llmrl.analysis.statistics import area_under_curve, last_tenth, mean_interval, task_means
from llmrl.analysis.tables import about_seeds, known, markdown, number
from llmrl.runs import describe_task
from llmrl.runs.metrics import replace_file
from llmrl.settings.errors import BadValue
from llmrl.settings.overrides import compose
from llmrl.studies.carry_out import Results, Run, Train, carry_out, config_of, read_finished
from llmrl.training.loop import check
from llmrl.training.progress import plural, show_table, sources_of

PICTURE, TABLE = "comparison.png", "comparison.md"

OF_THE_METHOD = ("method", "solver", "reward_from", "reward_seed")
OF_THE_SOURCES = ("aux", "llm", "captioner")
"""Groups and keys that only one who learns a weight, or only one who hears a source, has a use for."""


def compare(
    overrides: Sequence[str], beside: Sequence[str], out: str | Path, command: str = "", train: Train | None = None
) -> Path:
    """Trains what is not finished yet, each method in a directory of its own, and shows all side by side.

    Args:
        overrides: what ``llmrl train`` would be told for the method in question.
        beside: methods to compare it with; they hear the same sources, with settings of their own.
        out: directory of the runs, the picture and the table.
        command: what was typed, to be kept beside the table.
        train: how a run is trained, see ``llmrl.studies.carry_out``.

    Returns:
        The picture.

    Raises:
        ValueError: an override is wrong, or one of the methods cannot be had (before anything is trained), or runs have
            failed (after everything else is done).
    """
    config, out = compose(*overrides), Path(out)
    methods = dict.fromkeys([config.method.name, *beside])
    runs = [Run(name, tuple(overrides) if name == config.method.name else told(overrides, name)) for name in methods]
    for one in (config_of(run, out, config.seeds, progress=config.progress) for run in runs):
        if read_finished(one) is None:
            check(one)
    outcome = carry_out(runs, out, seeds=config.seeds, progress=config.progress, train=train, near=out.parent)
    picture = out / PICTURE
    if outcome.results:
        wanted = MEASURES.get(config.env.name, "episode_return")
        header, rows = rows_of(outcome.results, wanted)
        curves = {name: Curve(steps_of(found.curves), found.curves[wanted]) for name, found in outcome.results.items()}
        out.mkdir(parents=True, exist_ok=True)
        learning_curves(curves, wanted, picture, statistic=task_means, title=describe_task(config))
        replace_file(out / TABLE, (f"    {command}\n\n" if command else "") + markdown(header, rows))
        show_table(header, rows, title=str(out), caption=costs(outcome.results))
    if outcome.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in outcome.failures.items())
        raise BadValue(f"not everything was trained (the same command tries again): {failed}")
    return picture


def told(overrides: Sequence[str], method: str) -> tuple[str, ...]:
    """The overrides of a method to compare with: those of the method in question, without what is that one's alone."""
    foreign = (*OF_THE_METHOD, *OF_THE_SOURCES) if method == IGNORES else OF_THE_METHOD
    kept = [override for override in overrides if _group(override) not in foreign]
    return (*kept, f"method={method}", *(["aux=none"] if method == IGNORES else []))


def _group(override: str) -> str:
    """``aux`` of ``aux=random``, ``aux.scale=2`` and ``+aux.sources.mine=1``."""
    return override.lstrip("+~").partition("=")[0].partition(".")[0].partition("@")[0]


def rows_of(results: Results, measure: str) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows: area and end of each method, and whether there is anything to regret beside the simple two."""
    header = ("method", f"{measure.replace('_', ' ')}, whole training", "last tenth", "worst seed")
    header += ("influence, whole training", "area / better of the two", "no regret")
    curves = {name: np.asarray(found.curves[measure], np.float64) for name, found in results.items()}
    rows = []
    for name, values in curves.items():
        area, end = area_under_curve(values), last_tenth(values)
        row = [name, known(mean_interval(area)), known(mean_interval(end)), number(float(end.min()))]
        row.append(_influence(results[name].curves))
        rows.append([*row, *_regretted(name, curves)])
    return header, rows


def _influence(curves: Mapping[str, np.ndarray]) -> str:
    """How far each source moved the policy, over the whole training."""
    moved = {source: curves.get(f"influence/{source}") for source in sources_of(curves)}
    means = {name: number(float(area_under_curve(curve).mean())) for name, curve in moved.items() if curve is not None}
    return ", ".join(means.values() if len(means) == 1 else (f"{name} {mean}" for name, mean in means.items()))


def _regretted(name: str, curves: Mapping[str, np.ndarray]) -> list[str]:
    if name in (IGNORES, TRUSTS) or not {IGNORES, TRUSTS} <= curves.keys():
        return ["", ""]
    found = regret(curves[name], {simple: curves[simple] for simple in (IGNORES, TRUSTS)})
    return [known(found.area), found.words]


def costs(results: Results) -> str:
    """How much was trained, and what a language model had to say to it."""
    first = next(iter(results.values())).curves
    seeds = len(first["seed"])
    words = f"{plural(seeds, 'seed')} x {int(first['env_steps'].max()):,} steps each; {about_seeds(seeds)}"
    for name, found in results.items():
        if "language_coverage" in found.curves:
            share = float(last_tenth(found.curves["language_coverage"]).mean())
            return f"{words}; {share:.0%} of the states that {name} visits have an answer"
    return words
