"""The runs of ``llmrl suite``, what they cost, and which cells their results make.

A cell is a task with a source. What hears no source is trained once per task; so is random play, which scores are
counted from: the policy that PPO starts from, at a learning rate that moves nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmrl.analysis.comparison import IGNORES, MEASURES, TRUSTS
from llmrl.analysis.no_regret import Cell, reached
from llmrl.analysis.statistics import area_under_curve, known_mean
from llmrl.assembly.methods import METHODS
from llmrl.runs import directory as runs
from llmrl.settings.errors import BadValue, unknown
from llmrl.studies.carry_out import Outcome, Results, Run, config_of, read_finished
from llmrl.studies.suite_tasks import REPORT, TASKS, Task, tasks_of
from llmrl.training.progress import plural

RANDOM = "random"
"""Name of random play among the runs."""
NO_LEARNING = ("method=ppo", "ppo.learning_rate=1e-12")
FEW_ENVS = ("ppo.num_envs=8", "ppo.num_steps=128", "ppo.num_minibatches=4")
"""So that several episodes of each environment end, however many the task has."""
RANDOM_SHARE = 10
"""Random play has a tenth of the task's steps."""

SEEDS, QUICK_SEEDS = 30, 8
QUICK_STEPS = {"cartpole": 40_960, "gridworld": 61_440, "MountainCar-v0": 122_880}
QUICK_SOURCES = ("fair", "farmable", "useless", "harmful")
QUICK_METHODS = ("implicit",)
"""What ``quick=true`` has: a part of the development set, shorter runs, few sources and methods."""

ON = "on two CPU cores"
COMPILING = 15.0
"""Seconds of starting and compiling a run, on two CPU cores."""
SPEEDS = {"cartpole": 6e5, "cartpole_continuous": 6e5, "gridworld": 6e5, "craftax_classic": 2e4}
USUAL_SPEED, MINATAR_SPEED = 5e5, 1e5
"""Environment steps per second of all seeds of ``ppo`` together, there; what learns more takes twice the time."""


class Plan(NamedTuple):
    """What a suite needs.

    Attributes:
        tasks: with the sources that were asked for.
        methods: to be compared, ``ppo`` and ``add`` first.
        runs: all of them, named ``task/source/method``; the source is ``any`` for what hears none.
        seeds: of each run.
    """

    tasks: tuple[Task, ...]
    methods: tuple[str, ...]
    runs: tuple[Run, ...]
    seeds: int


# --- what is run ------------------------------------------------------------------------------------------------------


def plan(
    set: str,
    quick: bool = False,
    tasks: Sequence[str] = (),
    sources: Sequence[str] = (),
    methods: Sequence[str] = (),
    seeds: int | None = None,
) -> Plan:
    """The runs of a suite; arguments as for ``suite``.

    Raises:
        ValueError: there is no such task in the set, source or method, or a quick look at ``report`` was asked for.
    """
    if quick and set == REPORT:
        raise BadValue("quick=true is for set=development: a few seeds on a report task would only tempt to tune on it")
    here = {task.name: task for task in tasks_of(set)}
    if quick:
        here = {name: replace(here[name], total_steps=steps) for name, steps in QUICK_STEPS.items()}
    for name in tasks:
        if name in TASKS and TASKS[name].set != set:
            raise BadValue(f"{name} is a task of set={TASKS[name].set}, got set={set}")
    _check(tasks, here, f"task of {'quick=true' if quick else f'set={set}'}")
    chosen = [here[name] for name in tasks or here]
    known = dict.fromkeys(source for task in chosen for source in task.sources)
    _check(sources, known, "source of these tasks")
    wanted = sources or (QUICK_SOURCES if quick else known)
    chosen = [
        replace(one, sources={name: one.sources[name] for name in wanted if name in one.sources}) for one in chosen
    ]
    usable = [name for name, recipe in METHODS.items() if not recipe.needs_more]
    _check(methods, usable, "method that needs nothing but a source")
    compared = tuple(dict.fromkeys((IGNORES, TRUSTS, *(methods or (QUICK_METHODS if quick else usable)))))
    runs_of_all = tuple(run for task in chosen for run in runs_of(task, compared))
    return Plan(tuple(chosen), compared, runs_of_all, seeds or (QUICK_SEEDS if quick else SEEDS))


def _check(names: Iterable[str], choices: Collection[str], kind: str) -> None:
    for name in names:
        if name not in choices:
            raise unknown(kind, name, choices)


def runs_of(task: Task, methods: Iterable[str]) -> list[Run]:
    """Random play and ``ppo`` first, then the others, mixed: every part of the list has slow and fast methods."""
    steps = f"total_steps={task.total_steps}"
    played = f"total_steps={task.total_steps // RANDOM_SHARE}"
    first = [Run(run_name(task.name, "", RANDOM), (*task.overrides, "aux=none", *NO_LEARNING, *FEW_ENVS, played))]
    hearing = []
    for method in methods:
        if not METHODS[method].hears:
            first.append(Run(run_name(task.name, "", method), (*task.overrides, "aux=none", f"method={method}", steps)))
            continue
        for source, words in task.sources.items():
            told = (*task.overrides, *words, f"method={method}", steps)
            hearing.append(Run(run_name(task.name, source, method), told))
    return [*first, *sorted(hearing, key=lambda run: zlib.crc32(run.name.encode()))]


def run_name(task: str, source: str, method: str) -> str:
    """The run behind a method's part of a cell."""
    return f"{task}/{'any' if method == RANDOM or not METHODS[method].hears else source}/{method}"


# --- what it costs ----------------------------------------------------------------------------------------------------


def cost(planned: Plan, folder: Path, parts: int = 1) -> str:
    """Runs, environment steps and hours, in words; what is finished below ``folder`` says how fast this machine is."""
    steps = {run.name: planned.seeds * _steps(run) for run in planned.runs}
    expected = {run.name: _seconds(run, steps[run.name]) for run in planned.runs}
    taken = {name: seconds for name in expected if (seconds := _taken(folder / name)) is not None}
    # Compared with what was expected of the same runs.
    factor = sum(taken.values()) / sum(expected[name] for name in taken) if taken else 1.0
    whole = factor * sum(expected.values())
    left = factor * sum(seconds for name, seconds in expected.items() if name not in taken)
    what = (len(planned.tasks), "task"), (sum(len(task.sources) for task in planned.tasks), "cell")
    words = ", ".join(plural(*each) for each in (*what, (len(planned.methods), "method")))
    words += f": {plural(len(planned.runs), 'run')} of {plural(planned.seeds, 'seed')}, "
    words += f"{sum(steps.values()) / 1e6:,.0f} million environment steps, about {_time(whole)} "
    words += f"by the {plural(len(taken), 'run')} that {'is' if len(taken) == 1 else 'are'} finished" if taken else ON
    words += f"; {_time(left)} are left" if taken else ""
    return words + (f", {_time(left / parts)} in each of {parts} parts" if parts > 1 else "")


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:,.0f} hours"


def _steps(run: Run) -> int:
    return int(next(word for word in reversed(run.overrides) if word.startswith("total_steps=")).partition("=")[2])


def _seconds(run: Run, steps: int) -> float:
    """What a run is expected to take, of all its seeds' steps."""
    env = _env(run.overrides)
    minatar = any(word.startswith("env.id=") and word.endswith("MinAtar") for word in run.overrides)
    speed = MINATAR_SPEED if minatar else SPEEDS.get(env, USUAL_SPEED)
    plain = run.name.rpartition("/")[2] in (RANDOM, IGNORES, TRUSTS)
    return COMPILING + (1.0 if plain else 2.0) * steps / speed


def _taken(path: Path) -> float | None:
    """Seconds of a finished run; None of another."""
    file = path / "summary.json"
    return sum(json.loads(file.read_text()).get("seconds", {}).values()) if file.is_file() else None


def _env(overrides: Iterable[str]) -> str:
    return next(word.removeprefix("env=") for word in overrides if word.startswith("env="))


# --- what came out ----------------------------------------------------------------------------------------------------


def measure_of(task: Task) -> str:
    """The metric that is scored."""
    return MEASURES.get(_env(task.overrides), "episode_return")


def cells_of(planned: Plan, results: Results) -> list[Cell]:
    """The cells in which random play, ``ppo`` and ``add`` are finished."""
    found = []
    for task in planned.tasks:
        by_chance = random_play(task, results)
        for source in task.sources:
            curves = {
                method: results[name].curves[measure_of(task)]
                for method in planned.methods
                if (name := run_name(task.name, source, method)) in results
            }
            if by_chance is not None and {IGNORES, TRUSTS} <= curves.keys():
                scored = {method: reached(np.asarray(each, np.float64)) for method, each in curves.items()}
                found.append(Cell(task.name, source, by_chance, scored))
    return found


def random_play(task: Task, results: Results) -> float | None:
    """What random play reaches, mean over seeds; None where it is not finished or no episode of it has ended."""
    played = results.get(run_name(task.name, "", RANDOM))
    if played is None:
        return None
    mean = float(known_mean(area_under_curve(played.curves[measure_of(task)])))
    return mean if np.isfinite(mean) else None


def with_others(planned: Plan, results: Results, folder: Path, extra: Sequence[str]) -> Results:
    """The results, and those of runs that other processes have finished meanwhile."""
    found = {}
    for run in planned.runs:
        here = results.get(run.name)
        if here is None and (folder / run.name / "summary.json").is_file():
            here = read_finished(config_of(run, folder, planned.seeds, extra))
        if here is not None:
            found[run.name] = here
    return found


def failures(planned: Plan, outcome: Outcome, folder: Path) -> dict[str, str]:
    """Name -> why, of every run that failed, here or in another process that shares the directory."""
    missing = [run.name for run in planned.runs if run.name not in outcome.results]
    told = {name: outcome.failures.get(name) or runs.failure(folder / name) for name in missing}
    endless = {run_name(task.name, "", RANDOM) for task in planned.tasks if random_play(task, outcome.results) is None}
    told |= dict.fromkeys(endless & outcome.results.keys(), "no episode of random play has ended: no cell is scored")
    return {name: why for name, why in told.items() if why}
