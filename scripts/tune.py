"""Tunes the baselines alike: the same small grid for each, over its own learning rate and its main coefficient.

    python scripts/tune.py --methods dpba pies --envs cartpole --sources beneficial harmful --seeds 4

A baseline gets one setting for all sources, as whoever uses it does not know which kind hers is; so settings are ranked
by their mean over sources. Every run has its own directory under --out: what is finished there is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from study import Results, Run, Study, carry_out, markdown, number, scores


class Knobs(NamedTuple):
    """What a baseline has to turn, by dotted name; None where there is nothing."""

    learning_rate: str | None = None
    coefficient: str | None = None


BASELINES: dict[str, Knobs] = {
    "ppo": Knobs(),
    "add": Knobs(coefficient="aux.scale"),
    "pbrs": Knobs(coefficient="method.potential.coefficient"),
    "dpba": Knobs("method.potential.learning_rate", "method.potential.coefficient"),
    "pies": Knobs("method.potential.learning_rate", "method.potential.coefficient"),
    "lirpg": Knobs("method.outer.learning_rate"),
}
"""A new baseline is one more line."""

TUNING_SEED = 1000
"""Base seed of the runs here, so that nothing is tuned on the seeds that a study shows."""

LEARNING_RATES = (1e-3, 3e-3, 1e-2)
COEFFICIENTS = (0.3, 1.0, 3.0)
MEASURES = {"gridworld": "success_rate"}
"""What is measured where it is not the length of an episode."""

HEADER = ("method", "learning rate", "coefficient", "mean of best")


def settings(knobs: Knobs, quick: bool) -> Iterator[dict[str, float]]:
    """Every combination of what there is to turn; of each the two outermost values for a quick look."""
    rates, coefficients = ((grid[0], grid[-1]) if quick else grid for grid in (LEARNING_RATES, COEFFICIENTS))
    for rate in rates if knobs.learning_rate else (None,):
        for coefficient in coefficients if knobs.coefficient else (None,):
            pairs = zip(knobs, (rate, coefficient), strict=True)
            yield {key: value for key, value in pairs if key is not None and value is not None}


def setting_name(chosen: Mapping[str, float]) -> str:
    return ",".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in chosen.items()) or "plain"


def tuning_runs(
    methods: Sequence[str], envs: Sequence[str], sources: Sequence[str], steps: int, quick: bool
) -> Iterator[Run]:
    """One run for each method's setting in each environment with each source, ``env/source/method/setting``; a method
    that ignores sources runs once in each environment."""
    for method in methods:
        for chosen in settings(BASELINES[method], quick):
            values = tuple(f"{key}={value:g}" for key, value in chosen.items())
            for env in envs:
                for source in ("any",) if method == "ppo" else sources:
                    setting = (f"env={env}", f"total_steps={steps}", f"seed={TUNING_SEED}", f"method={method}", *values)
                    aux = () if source == "any" else (f"aux={source}",)
                    yield Run(f"{env}/{source}/{method}/{setting_name(chosen)}", (*setting, *aux))


def table_of(runs: Sequence[Run], results: Results) -> str:
    """Area and last tenth in every cell (environment and source), the best setting of each method first.

    "Mean of best" is the mean over the cells of a setting's area, as a share of the largest area there.
    """
    names = [run.name.split("/") for run in runs]
    cells = list(dict.fromkeys((env, source) for env, source, *_ in names if source != "any"))
    cells = cells or [(env, "any") for env in dict.fromkeys(name[0] for name in names)]
    by_setting = {
        (method, setting): [_found(results, cell, method, setting) for cell in cells]
        for method, setting in dict.fromkeys((method, setting) for *_, method, setting in names)
    }
    best = [max((found[i][0] for found in by_setting.values() if found[i]), default=0.0) for i in range(len(cells))]
    methods = list(dict.fromkeys(method for method, _ in by_setting))
    ranked = sorted(by_setting, key=lambda key: (methods.index(key[0]), -_mean_of_best(by_setting[key], best)))
    rows = []
    for method, setting in ranked:
        found = by_setting[method, setting]
        values = dict(part.split("=") for part in setting.split(",") if "=" in part)
        coefficient = values.get("coefficient", values.get("scale", ""))
        row = [method, values.get("learning_rate", ""), coefficient, number(_mean_of_best(found, best))]
        rows.append([*row, *(f"{number(cell[0])} / {number(cell[1])}" if cell else "" for cell in found)])
    return markdown((*HEADER, *("/".join(cell) for cell in cells)), rows)


def _found(results: Results, cell: tuple[str, str], method: str, setting: str) -> tuple[float, float] | None:
    """Mean area and mean last tenth, or None where there is no finished run."""
    env, source = cell
    run = results.get(f"{env}/{source}/{method}/{setting}") or results.get(f"{env}/any/{method}/{setting}")
    if run is None:
        return None
    area, end = scores(run, MEASURES.get(env, "episode_length"))
    return float(area.mean()), float(end.mean())


def _mean_of_best(found: Sequence[tuple[float, float] | None], best: Sequence[float]) -> float:
    """NaN-free: what is not finished counts as nothing, and so does a cell in which nobody gets anywhere."""
    return float(np.mean([cell[0] / top if cell and top > 0 else 0.0 for cell, top in zip(found, best, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Tunes the baselines alike, and prints one table.")
    parser.add_argument("--methods", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--envs", nargs="+", default=["cartpole", "cartpole_continuous"])
    parser.add_argument("--sources", nargs="+", default=["harmful", "random", "beneficial"])
    parser.add_argument("--steps", type=int, default=204_800, help="environment steps of one seed")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each run")
    parser.add_argument("--out", type=Path, help="where runs and table go; runs/studies/tune where not given")
    parser.add_argument("--only", default="", help="train only runs whose name contains this")
    parser.add_argument("--quick", action="store_true", help="seconds instead of results: does everything run?")
    asked = parser.parse_args()

    seeds = 2 if asked.quick else asked.seeds
    out = asked.out or Path("runs/studies") / ("tune_quick" if asked.quick else "tune")
    runs = tuple(tuning_runs(asked.methods, asked.envs, asked.sources, asked.steps, asked.quick))
    study = Study(seeds, runs, lambda results: table_of(runs, results))
    table = study.table(carry_out(study, out, seeds, asked.only, asked.quick))
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"    python {' '.join(sys.argv)}\n\n{table}")
    print(table)


if __name__ == "__main__":
    main()
