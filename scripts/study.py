"""Reproduces the tables of docs/benchmarks.md: a study is a list of named runs, and a function from results to a table.

    python scripts/study.py no_regret --seeds 30

Every run has its own directory under --out. What is finished there is not trained again, so an interrupted study goes
on with the same command; the table is printed, and kept beside the runs as table.md, with pictures where it has some.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from answer_studies import wrong_answers_pictures, wrong_answers_runs, wrong_answers_table
from crafter_studies import crafter_no_regret_runs, crafter_no_regret_table, wrong_goals_runs, wrong_goals_table
from measures import CARTPOLE, CARTPOLES, regretted, scores
from trust_studies import (
    half_right_pictures,
    half_right_runs,
    half_right_table,
    transfer_runs,
    transfer_table,
)

from llmrl.analysis.statistics import last_tenth, mean_interval
from llmrl.analysis.tables import estimate, markdown, number
from llmrl.studies.carry_out import Found, Results, Run, carry_out


class Study(NamedTuple):
    """Runs, the number of seeds of each, and what is made of them (of a part, while a part is finished).

    Attributes:
        seeds: of each run.
        runs: all of them.
        table: in markdown.
        pictures: draws into a directory.
    """

    seeds: int
    runs: tuple[Run, ...]
    table: Callable[[Results], str]
    pictures: Callable[[Results, Path], None] = lambda results, out: None


# --- what is run ------------------------------------------------------------------------------------------------------

GRID = ("env=gridworld", "env.horizon=50", "total_steps=122880")
QUICK = ("ppo=tiny", "ppo.num_envs=4", "ppo.num_minibatches=2", "total_steps=256", "num_chunks=2")
"""To see whether a study runs at all, also where its runs ask for more environments than they are given here."""

SOURCES = {
    "harmful": ("aux=harmful",),
    "random": ("aux=random",),
    "beneficial": ("aux=beneficial",),
    "harmful_x10": ("aux=harmful", "aux.scale=10"),
}

PARTS = {
    "nothing": (),
    "scalar": ("method.weight.scalar=false",),
    "network": ("method.weight.network=false",),
    "cross_fitting_and_gate": ("method.trust.cross_fitting=false", "method.trust.gate=false"),
    "gate": ("method.trust.gate=false",),
    "evidence": ("method.trust.evidence=false",),
    "units": ("method.trust.units=false",),
    "advice": ("method.trust.advice=0",),
    "fisher": ("solver.curvature=hessian",),
    "subsampling": ("solver.curvature_fraction=1",),
    "curvature": ("solver=identity",),
    "advantage_floor": ("ppo.advantage_floor=0",),
    "outer_lambda": ("method.outer.gae_lambda=0.95",),
}
"""What an ablation leaves out: parts of trust that are on by default, the Fisher information (for the Hessian), the
quarter of the batch that curvature is computed on (for all of it), curvature itself, the floor under the unit of
advantages, and the outer level's own lambda (for PPO's)."""

SOLVERS = {
    "identity": ("solver=identity",),
    "neumann_k1": ("solver=neumann", "solver.num_terms=1"),
    "neumann_k5": ("solver=neumann", "solver.num_terms=5"),
    "neumann_k20": ("solver=neumann", "solver.num_terms=20"),
    "neumann_finite_difference": ("solver=neumann_finite_difference",),
    "conjugate_gradient": ("solver=conjugate_gradient",),
    "diagonal": ("solver=diagonal",),
    "sherman_morrison": ("solver=sherman_morrison",),
}
CURVATURES = {"identity": ("none",), "neumann_finite_difference": ("hessian",)}
"""Of solvers that do not take both: one asks for no curvature, one differences the gradients of a loss."""


def no_regret_runs() -> Iterator[Run]:
    for env in CARTPOLES:
        yield Run(f"{env}/any/ppo", (f"env={env}", *CARTPOLE, "method=ppo"))
        for source, chosen in SOURCES.items():
            for method in ("add", "implicit", "implicit_paper"):
                yield Run(f"{env}/{source}/{method}", (f"env={env}", *CARTPOLE, *chosen, f"method={method}"))


def random_draws_runs(draws: int = 5) -> Iterator[Run]:
    """The rows of ``no_regret`` on several random functions in place of one."""
    for env in CARTPOLES:
        yield Run(f"{env}/any/ppo", (f"env={env}", *CARTPOLE, "method=ppo"))
        for draw in range(draws):
            drawn = ("aux=random", f"+aux.options.seed={draw}")
            for method in ("add", "implicit"):
                yield Run(f"{env}/random_{draw}/{method}", (f"env={env}", *CARTPOLE, *drawn, f"method={method}"))


def ablation_cells() -> dict[str, tuple[str, ...]]:
    cells = (
        ("cartpole", "harmful"),
        ("cartpole", "random"),
        ("cartpole", "beneficial"),
        ("cartpole_continuous", "harmful"),
    )
    settings = {f"{env}/{source}": (f"env={env}", *CARTPOLE, *SOURCES[source]) for env, source in cells}
    # Plain PPO solves the smaller grid by itself.
    return settings | {"gridworld/helpful_hackable": (*GRID, "env.size=15", "aux=helpful_hackable")}


def ablation_runs() -> Iterator[Run]:
    for cell, setting in ablation_cells().items():
        for part, without in PARTS.items():
            yield Run(f"{cell}/{part}", (*setting, "method=implicit", *without))


def solver_runs() -> Iterator[Run]:
    setting = ("env=cartpole", "aux=harmful", "method=implicit", *CARTPOLE)
    for solver, chosen in SOLVERS.items():
        for curvature in CURVATURES.get(solver, ("hessian", "fisher")):
            asked = () if curvature == "none" else (f"solver.curvature={curvature}",)
            yield Run(f"{solver}/{curvature}", (*setting, *chosen, *asked))


def gridworld_runs() -> Iterator[Run]:
    for size in (10, 15):
        setting = (*GRID, f"env.size={size}")
        yield Run(f"{size}/any/ppo", (*setting, "method=ppo"))
        for source in ("helpful_hackable", "harmful", "random"):
            for method in ("add", "implicit"):
                yield Run(f"{size}/{source}/{method}", (*setting, f"aux={source}", f"method={method}"))


# --- tables -----------------------------------------------------------------------------------------------------------


def no_regret_table(results: Results) -> str:
    """Area and end of training; for what learns, compared with ignoring the source and with trusting it."""
    header = ("environment", "source", "method", "area", "last tenth", "worst seed", "active weight", "largest weight")
    compared = ("area / better", "end - ppo", "end - add", "no regret")
    rows = []
    for name, found in results.items():
        env, source, method = name.split("/")
        area, end = scores(found, "episode_length")
        row = [env, source, method, estimate(mean_interval(area)), number(end.mean()), number(end.min())]
        if "weight_mean_active" in found.curves:
            # Over the whole training: once a task is solved it is silent, and so are sources that keep to its units.
            weight = np.mean(found.curves["weight_mean_active"], axis=1, dtype=float)
            row += [number(weight.mean()), number(weight.max())]
        row += [""] * (len(header) - len(row))
        row += regretted(found, method, results, {"ppo": f"{env}/any/ppo", "add": f"{env}/{source}/add"})
        rows.append(row)
    return markdown((*header, *compared), rows)


def random_draws_table(results: Results) -> str:
    """The rows of ``no_regret``, and below them each method's over draws: a draw's mean over seeds counts once."""
    header = ("environment", "source", "method", "draws", "area", "last tenth", "worst seed")
    header += ("area / better", "end - ppo")
    rows = []
    for env, method in product(CARTPOLES, ("add", "implicit")):
        names = [name for name in results if name.startswith(f"{env}/random_") and name.endswith(f"/{method}")]
        if not names or f"{env}/any/ppo" not in results:
            continue
        ppo = _means(results[f"{env}/any/ppo"])
        own = np.array([_means(results[name]) for name in names])
        better = np.array([max(_means(results[_added(name)])[0], ppo[0]) for name in names if _added(name) in results])
        row = [env, "random", method, str(len(names)), *(estimate(mean_interval(each)) for each in own.T)]
        row.append(number(min(scores(results[name], "episode_length")[1].min() for name in names)))
        if method != "add" and len(better) == len(names):
            row += [estimate(mean_interval(each)) for each in (own[:, 0] / better, own[:, 1] - ppo[1])]
        rows.append(row)
    return f"{no_regret_table(results)}\n{markdown(header, rows)}"


def _means(found: Found) -> tuple[float, float]:
    """Area and last tenth, means over seeds."""
    area, end = scores(found, "episode_length")
    return float(area.mean()), float(end.mean())


def _added(name: str) -> str:
    return f"{name.rpartition('/')[0]}/add"


def ablation_table(results: Results) -> str:
    """Area and last tenth of each setting (steps survived, success on the grid), one row per part left out."""
    cells = list(ablation_cells())
    rows = [[part.replace("_", " "), *(ablated(results, f"{cell}/{part}") for cell in cells)] for part in PARTS]
    return markdown(("left out", *cells), rows)


def ablated(results: Results, name: str) -> str:
    if name not in results:
        return ""
    measure = "success_rate" if name.startswith("gridworld") else "episode_length"
    return " / ".join(number(values.mean()) for values in scores(results[name], measure))


def solver_table(results: Results) -> str:
    """How well each solver trains, solves and runs."""
    header = ("solver", "curvature", "last tenth", "area", "residual", "products per outer step", "steps per second")
    rows = []
    for name, found in results.items():
        area, end = scores(found, "episode_length")
        residual = last_tenth(found.curves["meta_residual"]).mean()
        speed = "" if found.steps_per_second is None else f"{found.steps_per_second:,.0f}"
        rows.append(
            [
                *name.split("/"),
                estimate(mean_interval(end)),
                estimate(mean_interval(area)),
                number(residual),
                number(products_per_step(found.curves)),
                speed,
            ]
        )
    return markdown(header, rows)


def products_per_step(curves: Mapping[str, np.ndarray]) -> float:
    """Products with the curvature that an outer step took, on average over those that were taken."""
    taken = curves["meta_step"].sum()
    return float(curves["meta_matvecs"].sum() / taken) if taken else float("nan")


def gridworld_table(results: Results) -> str:
    """Success at the end, whether it fell once reached, and what it is beside plain PPO's."""
    header = ("size", "source", "method", "success, last tenth", "worst seed", "fall from its best", "end - ppo")
    rows = []
    for name, found in results.items():
        size, source, method = name.split("/")
        _, end = scores(found, "success_rate")
        row = [size, source, method, estimate(mean_interval(end)), number(end.min())]
        row.append(number(fall(found.curves["success_rate"])))
        ppo = results.get(f"{size}/any/ppo")
        if method != "ppo" and ppo is not None:
            row.append(estimate(mean_interval(end - scores(ppo, "success_rate")[1])))
        rows.append(row)
    return markdown(header, rows)


def fall(curves: np.ndarray, window: int = 5) -> float:
    """How far the mean over seeds ends below its best, both as means of ``window`` iterations; [seeds, iterations]."""
    mean = curves.mean(axis=0)
    window = min(window, len(mean))
    smooth = np.convolve(mean, np.full(window, 1.0 / window), mode="valid")
    return float(smooth.max() - smooth[-1])


STUDIES = {
    "no_regret": Study(30, tuple(no_regret_runs()), no_regret_table),
    "random_draws": Study(10, tuple(random_draws_runs()), random_draws_table),
    "ablation": Study(10, tuple(ablation_runs()), ablation_table),
    "solvers": Study(10, tuple(solver_runs()), solver_table),
    "gridworld": Study(30, tuple(gridworld_runs()), gridworld_table),
    "wrong_answers": Study(10, tuple(wrong_answers_runs()), wrong_answers_table, wrong_answers_pictures),
    "crafter_no_regret": Study(5, tuple(crafter_no_regret_runs()), crafter_no_regret_table),
    "half_right": Study(10, tuple(half_right_runs()), half_right_table, half_right_pictures),
    "transfer": Study(10, tuple(transfer_runs()), transfer_table),
    "wrong_goals": Study(5, tuple(wrong_goals_runs()), wrong_goals_table),
}


# --- running ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Reproduces the tables of docs/benchmarks.md.")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, help="seeds of each run; the published number where not given")
    parser.add_argument("--out", type=Path, help="where runs and table go; runs/studies/<study> where not given")
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--processes", type=int, default=1, help="runs trained side by side")
    parser.add_argument("--quick", action="store_true", help="seconds instead of results: does everything run?")
    asked = parser.parse_args()

    study = STUDIES[asked.study]
    seeds = 2 if asked.quick else asked.seeds or study.seeds
    out = asked.out or Path("runs/studies") / (f"{asked.study}_quick" if asked.quick else asked.study)
    extra = QUICK if asked.quick else ()
    outcome = carry_out(study.runs, out, seeds=seeds, extra=extra, only=asked.only, processes=asked.processes)
    table = study.table(outcome.results)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"    python {' '.join(sys.argv)}\n\n{table}")
    study.pictures(outcome.results, out)
    print(table)
    if outcome.failures:
        sys.exit(f"{len(outcome.failures)} runs failed; the same command tries them again")


if __name__ == "__main__":
    main()
