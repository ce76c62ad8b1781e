"""Tunes the baselines alike: the same small grid for each, over its own main number and the size of its source.

    python scripts/tune.py --methods dpba pies --envs cartpole --sources beneficial harmful --seeds 4
    python scripts/tune.py --methods eipo select adops decoupled irpo ranked_potential thresholded --envs development

Tasks are those of the suite's set ``development``, each with the PPO setting that it has there; those of ``report`` are
refused. A baseline gets one setting for all tasks and sources, as its user does not know which kind hers is; so
settings are ranked by their mean over them. What may differ inside one program (``llmrl.sweep``) is one program's grid;
its points are ordinary run directories under --out, and what is finished there is not trained again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from measures import scores
from study import QUICK

from llmrl.analysis.tables import markdown, number
from llmrl.settings.errors import BadValue, unknown
from llmrl.studies.carry_out import Found, Run, carry_out, config_of, read_finished, train_anew
from llmrl.studies.suite_tasks import DEVELOPMENT, TASKS, Task, refuse_report, tasks_of

if TYPE_CHECKING:
    from llmrl.settings.config import Config

COEFFICIENTS = (0.1, 0.3, 1.0)
OUTER = "method.outer.learning_rate"
POTENTIAL = "method.potential.learning_rate"
FACTOR = "method.potential.coefficient"
"""Of the shaping reward; for methods without one ``aux.scale``, a factor on the source itself, is the same thing."""


class Knobs(NamedTuple):
    """What a baseline has to turn.

    Attributes:
        inside: dotted name -> values, of what may differ inside one program.
        outside: the same of what is compiled in.
        fixed: overrides under which coefficients mean what they say, whatever is in the method's yaml.
        hears: whether it hears sources at all.
    """

    inside: Mapping[str, tuple[float, ...]] = {}
    outside: Mapping[str, tuple[float, ...]] = {}
    fixed: tuple[str, ...] = ()
    hears: bool = True


SCALED = {"aux.scale": COEFFICIENTS}
DYNAMIC = {POTENTIAL: (1e-3, 3e-3, 1e-2), FACTOR: COEFFICIENTS}
BIPARS = Knobs({OUTER: (3e-3, 1e-2, 3e-2)}, SCALED, ("method.weight.bound=2", "method.weight.initial=1"))
"""Times the paper's own range, 2 tanh(.) from 1; a setting that is chosen goes into the yaml as a smaller range."""

BASELINES: dict[str, Knobs] = {
    "ppo": Knobs(hears=False),
    "add": Knobs(outside=SCALED),
    "pbrs": Knobs({FACTOR: COEFFICIENTS}),
    "dpba": Knobs(DYNAMIC),
    "pies": Knobs(DYNAMIC),
    "bipars_em": BIPARS,
    "bipars_mgl": BIPARS,
    "bipars_imgl": BIPARS,
    # What LIRPG sees of a source is bounded anyway; its own coefficient is no setting.
    "lirpg": Knobs({OUTER: (7e-4, 2e-3, 6e-3)}),
    "barfi": Knobs({OUTER: (7e-4, 2e-3, 6e-3)}, SCALED),
    # Alpha hardly moves in runs of so few iterations, so where it starts is what counts.
    "eipo": Knobs({"method.eipo.alpha": (0.17, 0.5, 1.5)}, SCALED),
    "select": Knobs({"method.select.confidence": (0.1, 0.3, 1.0)}, SCALED),
    "adops": Knobs({"method.correction.ramp": (0.0, 0.25, 0.5)}, SCALED),
    "decoupled": Knobs(outside=SCALED),
    # It divides what its source says by the deviation, so that a factor on it changes nothing.
    "irpo": Knobs({"method.irpo.step_size": (0.3, 1.0, 3.0), "method.irpo.temperature": (0.03, 0.1, 0.3)}),
    "ranked_potential": Knobs({"aux.ranking.learning_rate": (3e-4, 1e-3, 3e-3)}, SCALED),
    "thresholded": Knobs({"aux.error_rate": (0.03, 0.1, 0.3)}, SCALED),
}
"""A new baseline is one more line. Numbers are a third of a middle one, itself, and three times as much."""

TUNING_SEED = 1000
"""Base seed of the runs here, so that nothing is tuned on the seeds that a study shows."""

MEASURES = {
    "cartpole": ("episode_length", 0.0),
    "cartpole_continuous": ("episode_length", 0.0),
    "gridworld": ("success_rate", 0.0),
    "place_table": ("success_rate", 0.0),
    "MountainCar-v0": ("episode_return", -200.0),
}
"""What is measured on each task, and the least that it can be: shares of the best are counted from there."""

HEADER = ("method", "setting", "mean of best")


# --- what is run ------------------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """What is compiled and trained at once, and the values by which it differs from others of the same method.

    Attributes:
        run: ``task/source/method``, and below that the values.
        values: dotted name -> value.
    """

    run: Run
    values: dict[str, float]


class Point(NamedTuple):
    """One setting on one task with one source: a run of a program's grid.

    Attributes:
        cell: task and source.
        method: its name.
        values: dotted name -> value.
        config: of the run.
    """

    cell: tuple[str, str]
    method: str
    values: dict[str, float]
    config: Config


def tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names; ``development`` is all of that set.

    Raises:
        ValueError: one is a ``report`` task, or none at all.
    """
    refuse_report(names)
    found = [each for name in names for each in (tasks_of(name) if name == DEVELOPMENT else (TASKS.get(name),))]
    if None in found:
        name = next(name for name in names if name not in (*TASKS, DEVELOPMENT))
        raise unknown("--envs", name, [DEVELOPMENT, *MEASURES])
    return [task for task in found if task is not None]


def programs(
    methods: Sequence[str], envs: Sequence[str], sources: Sequence[str], steps: int | None = None
) -> Iterator[Program]:
    """All programs; a method that hears no sources has one on each task. ``steps`` are the task's own where not given.

    Raises:
        ValueError: as ``tasks``.
    """
    for method, task in product(methods, tasks(envs)):
        knobs = BASELINES[method]
        for source, choice in product(sources if knobs.hears else ("any",), product(*knobs.outside.values())):
            values = dict(zip(knobs.outside, choice, strict=True))
            setting = (*task.overrides, f"total_steps={steps or task.total_steps}", f"seed={TUNING_SEED}")
            aux = task.sources.get(source, (f"aux={source}",)) if knobs.hears else ("aux=none",)
            chosen = tuple(f"{key}={value:g}" for key, value in values.items())
            below = [f"{key.rpartition('.')[2]}-{value:g}" for key, value in values.items()]
            words = (*setting, f"method={method}", *aux, *knobs.fixed, *chosen)
            yield Program(Run("/".join((task.name, source, method, *below)), words), values)


def points(program: Program, config: Config) -> list[Point]:
    """The runs that a program trains, where it leaves them."""
    from llmrl.assembly.parts import with_numbers
    from llmrl.studies.grids import names_of, points_of

    env, source, method, *_ = program.run.name.split("/")
    inside = BASELINES[method].inside
    if not inside:
        return [Point((env, source), method, program.values, config)]
    choices = points_of(config, inside)
    paths = [str(Path(str(config.run_dir)) / name) for name in names_of(choices)]
    return [
        Point((env, source), method, choice | program.values, replace(with_numbers(config, choice), run_dir=path))
        for choice, path in zip(choices, paths, strict=True)
    ]


def train_grid(config: Config) -> Found:
    """Trains a program's whole grid; by name, so that other processes find it."""
    import jax

    import llmrl

    inside = BASELINES[config.method.name].inside
    if not inside:
        return train_anew(config)
    llmrl.sweep(config, inside)
    jax.clear_caches()
    return Found({})  # a grid has no curves of its own: its points do


# --- what came out ----------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting of a method over all cells.

    Attributes:
        method: its name.
        values: dotted name -> value.
        found: cell -> mean area and mean last tenth, as far as it is finished.
        score: mean over cells of its area, as a share of the largest that any setting of any method has there, both
            above the least that there can be; NaN before all of them are finished.
    """

    method: str
    values: dict[str, float]
    found: dict[tuple[str, str], tuple[float, float]]
    score: float = math.nan


def ranked(asked: Sequence[Point], results: Mapping[str, Found]) -> list[Setting]:
    """All settings, the methods in their order and the best setting of each first."""
    cells = cells_of(asked)
    settings: dict[tuple[str, tuple[tuple[str, float], ...]], Setting] = {}
    for point in asked:
        setting = settings.setdefault(
            (point.method, tuple(point.values.items())), Setting(point.method, point.values, {})
        )
        run = results.get(str(point.config.run_dir))
        if run is not None:
            area, end = scores(run, MEASURES[point.cell[0]][0])
            heard = [cell for cell in cells if cell[0] == point.cell[0] and point.cell[1] in ("any", cell[1])]
            setting.found.update(dict.fromkeys(heard, (float(area.mean()), float(end.mean()))))
    areas = {cell: [one.found[cell][0] for one in settings.values() if cell in one.found] for cell in cells}
    best = {cell: max(reached, default=math.nan) for cell, reached in areas.items()}
    scored = [setting._replace(score=_mean_of_best(setting.found, best)) for setting in settings.values()]
    methods = list(dict.fromkeys(setting.method for setting in scored))
    return sorted(scored, key=lambda one: (methods.index(one.method), math.isnan(one.score), -one.score))


def cells_of(asked: Sequence[Point]) -> list[tuple[str, str]]:
    """Tasks and sources; what hears no sources belongs to all of its task's."""
    cells = dict.fromkeys(point.cell for point in asked)
    return [cell for cell in cells if cell[1] != "any"] or list(cells)


def _mean_of_best(found: Mapping[tuple[str, str], tuple[float, float]], best: Mapping[tuple[str, str], float]) -> float:
    """A cell in which no method gets anywhere tells nothing and counts as nothing."""
    if found.keys() != best.keys():
        return math.nan
    least = {cell: MEASURES[cell[0]][1] for cell in best}
    above = {cell: (found[cell][0] - low, best[cell] - low) for cell, low in least.items()}
    return float(np.mean([area / top if top > 0 else 0.0 for area, top in above.values()]))


def table_of(settings: Sequence[Setting], cells: Sequence[tuple[str, str]]) -> str:
    """Area and last tenth in every cell, the best setting of each method first."""
    rows = []
    for method, values, found, score in settings:
        setting = " ".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in values.items())
        row = [method, setting, "" if math.isnan(score) else number(score)]
        rows.append([*row, *(" / ".join(map(number, found[cell])) if cell in found else "" for cell in cells)])
    return markdown((*HEADER, *("/".join(cell) for cell in cells)), rows)


def best_of(settings: Sequence[Setting]) -> str:
    """The best setting of each method whose settings are all finished, as overrides."""
    methods = dict.fromkeys(one.method for one in settings if one.values)
    lines = []
    for method in methods:
        mine = [one for one in settings if one.method == method]
        if any(math.isnan(one.score) for one in mine):
            lines.append(f"{method}: not finished")
            continue
        words = " ".join(f"{key}={value:g}" for key, value in mine[0].values.items())
        second = f", the next {number(mine[1].score)}" if len(mine) > 1 else ""
        lines.append(f"{method}: {words}  # {number(mine[0].score)} of the best{second}, of {len(mine)} settings")
    return "".join(f"    {line}\n" for line in lines)


# --- running ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Tunes the baselines alike, and prints one table.")
    parser.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--envs", nargs="+", default=[DEVELOPMENT], help="tasks of the suite, or the set development")
    parser.add_argument("--sources", nargs="+", default=["fair", "farmable", "useless", "harmful"])
    parser.add_argument("--steps", type=int, help="environment steps of one seed; the task's own where not given")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each setting")
    parser.add_argument("--out", type=Path, help="where runs and table go; runs/studies/tune where not given")
    parser.add_argument("--only", default="", help="train only programs whose name contains this")
    parser.add_argument("--processes", type=int, default=1, help="programs trained side by side")
    parser.add_argument("--quick", action="store_true", help="seconds instead of results: does everything run?")
    asked = parser.parse_args()

    seeds, extra = (2, QUICK) if asked.quick else (asked.seeds, ())
    out = asked.out or Path("runs/studies") / ("tune_quick" if asked.quick else "tune")
    try:
        wanted = list(programs(asked.methods, asked.envs, asked.sources, asked.steps))
    except BadValue as error:
        parser.error(str(error))
    trained = {one.run.name: points(one, config_of(one.run, out, seeds, extra)) for one in wanted}
    missing = [one.run for one in wanted if any(read_finished(point.config) is None for point in trained[one.run.name])]
    print(f"{len(missing)} of {len(wanted)} programs to train", file=sys.stderr)
    outcome = carry_out(
        missing, out, seeds=seeds, extra=extra, only=asked.only, processes=asked.processes, train=train_grid
    )
    everything = [point for of_program in trained.values() for point in of_program]
    results = {str(point.config.run_dir): read_finished(point.config) for point in everything}
    settings = ranked(everything, {path: found for path, found in results.items() if found is not None})
    table = f"{table_of(settings, cells_of(everything))}\n{best_of(settings)}"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"    python {' '.join(sys.argv)}\n\n{table}")
    print(table)
    if outcome.failures:
        sys.exit(f"{len(outcome.failures)} programs failed; the same command tries them again")


if __name__ == "__main__":
    main()
