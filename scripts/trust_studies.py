"""Two studies of what was learned about a source: where it was trusted, and what it is worth to somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from measures import CARTPOLE, CARTPOLES, scores

import llmrl
from llmrl.analysis.comparison import verdict
from llmrl.analysis.statistics import area_under_curve, difference_interval, last_tenth, mean_interval
from llmrl.analysis.tables import known, markdown, number
from llmrl.analysis.trust import TrustMap, sides, telling_dims
from llmrl.analysis.trust_plots import heat_maps, shares_over_training
from llmrl.studies.carry_out import Found, Results, Run
from llmrl.trust.blend import TRUSTED_FROM

# --- half right -------------------------------------------------------------------------------------------------------

HALF_RIGHT = "half_right"
DIMS = ("cart position", "pole angle")
"""What the source looks at: the first decides whether it is right, the second what it says."""


def half_right_runs() -> Iterator[Run]:
    defaults = ("env=cartpole", f"aux={HALF_RIGHT}", "method=implicit")
    yield Run("cartpole/half_right/implicit", (*defaults, *CARTPOLE))
    yield Run("cartpole/half_right/told_apart", ("experiment=half_right",))


def half_right_table(results: Results) -> str:
    """For each seed, what was made of the source where it is right and where it is wrong, and over training."""
    header = ("run", "seed", "speaks", "is right", "correct", "correct where right", "correct where wrong")
    header += ("weight where right", "weight where wrong", *KINDS)
    rows, words = [], [HOW_MEASURED]
    for name, found in results.items():
        if found.path is None:
            continue
        visited = map_of(found.path)
        measured = half_right_measures(visited, found)
        run = name.split("/")[-1]
        rows += [[run, str(seed), *map(number, row)] for seed, row in enumerate(measured.T)]
        rows.append([run, "mean", *(known(mean_interval(column)) for column in measured)])
        good, telling = (measured[2] >= 0.9).sum(), telling_dims(visited, HALF_RIGHT)
        words.append(f"{name}: correct on at least 90 % of the steps in {good} of {measured.shape[1]} seeds.")
        words.append(f"Most of the weight is told by {' and '.join(visited.obs_names[dim] for dim in telling)}.")
    return "\n".join([markdown(header, rows), *words, ""])


KINDS = tuple(f"{kind}, {when}" for when in ("last tenth", "training") for kind in ("used", "turned around"))

HOW_MEASURED = f"""\
Counted are the steps of fresh rollouts of the trained policies on which the source speaks ("speaks": their share).
"Correct" is a weight above 0 where the source is right, and one below {TRUSTED_FROM:g} of full trust (ignored, or
turned around) where it is wrong. Weights are means, as shares of full trust, evidence included. "Used" and "turned
around" are as noted in training, in its last tenth and over all of it: shares of the steps on which the source speaks
that have an influence of at least {TRUSTED_FROM:g} of the policy's step, of either sign."""


def half_right_measures(visited: TrustMap, found: Found) -> np.ndarray:
    """The table's columns but for the seed, [columns, seeds]."""
    either = sides(visited, HALF_RIGHT)
    speaks = (visited.aux[:, :, 0, visited.sources.index(HALF_RIGHT)] != 0).mean(axis=1)
    curves = [found.curves[f"trust_{kind}/{HALF_RIGHT}"] for kind in ("used", "turned")]
    over_training = [score(curve) for score in (last_tenth, area_under_curve) for curve in curves]
    correct = (either.right, either.correct, either.correct_right, either.correct_wrong)
    return np.stack([speaks, *correct, either.weight_right, either.weight_wrong, *over_training])


@cache
def map_of(path: Path) -> TrustMap:
    """Played once for the table and the pictures."""
    return llmrl.trust_map(path, num_steps=400)


def half_right_pictures(results: Results, out: Path) -> None:
    """The learned weight with the source's border, and what was made of the source over training."""
    for name, found in results.items():
        run = name.split("/")[-1]
        if found.path is not None:
            heat_maps(map_of(found.path), HALF_RIGHT, DIMS, out / f"weights_{run}.png")
            shares_over_training(found.curves, HALF_RIGHT, out / f"shares_{run}.png")


# --- transfer ---------------------------------------------------------------------------------------------------------

LEARNERS = ("implicit", "bipars_mgl")
FRESH = "seed=1000"
"""Agents under a frozen reward start from other random numbers than the one that has learned it."""


def transfer_runs() -> Iterator[Run]:
    for env in CARTPOLES:
        setting = (f"env={env}", "aux=harmful", *CARTPOLE)
        yield Run(f"{env}/any/ppo", (f"env={env}", "aux=none", *CARTPOLE, "method=ppo", FRESH))
        yield Run(f"{env}/harmful/add", (*setting, "method=add", FRESH))
        for method in LEARNERS:
            learner = f"{env}/learning/{method}"
            yield Run(learner, (*setting, f"method={method}"))
            yield Run(f"{env}/frozen/{method}", (*setting, "method=frozen", FRESH), learner)


def transfer_table(results: Results) -> str:
    """Fresh agents beside PPO and beside those that learned their reward."""
    header = ("environment", "reward", "method", "area", "last tenth", "worst seed", "active weight")
    compared = ("area - ppo", "end - ppo", "not slower")
    rows = []
    for name, found in results.items():
        env, reward, method = name.split("/")
        area, end = scores(found, "episode_length")
        row = [env, reward, method, known(mean_interval(area)), known(mean_interval(end)), number(end.min())]
        weight = found.curves.get("weight_mean_active")
        row.append("" if weight is None else number(area_under_curve(weight).mean()))
        if method != "ppo" and f"{env}/any/ppo" in results:
            row += beside(found, results[f"{env}/any/ppo"])
        rows.append(row)
    return markdown((*header, *compared), rows)


def beside(found: Found, ppo: Found) -> list[str]:
    """Differences to PPO, seed by seed, and whether the area is within 3 % of PPO's."""
    (ours, end), (ignoring, others_end) = (scores(one, "episode_length") for one in (found, ppo))
    within = verdict([difference_interval(ours, ignoring, factor=0.97)])
    return [known(difference_interval(ours, ignoring)), known(difference_interval(end, others_end)), within]
