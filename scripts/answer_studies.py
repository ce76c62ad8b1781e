"""A study of a language model's answers, of which a share is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from measures import CARTPOLE, WRONG, regretted, scores

from llmrl.analysis.comparison_plots import Curve, learning_curve_grid, score_lines
from llmrl.analysis.plots import steps_of
from llmrl.analysis.statistics import area_under_curve, last_tenth, mean_interval
from llmrl.analysis.tables import estimate, markdown, number
from llmrl.studies.carry_out import Found, Results, Run

WRONG_METHODS = ("add", "implicit", "dpba", "bipars_mgl")

CENTRES = {"centred": ("aux.center=0.5",), "uncentred": ("aux.center=0",)}


def wrong_answers_runs() -> Iterator[Run]:
    yield Run("any/any/ppo", ("env=cartpole", *CARTPOLE, "method=ppo"))
    setting = ("env=cartpole", *CARTPOLE, "aux=language", "llm=recorded")
    for centre, chosen in CENTRES.items():
        for share in WRONG:
            for method in WRONG_METHODS:
                name = f"{centre}/{share:g}/{method}"
                yield Run(name, (*setting, *chosen, f"llm.noise={share:g}", f"method={method}"))


def wrong_answers_table(results: Results) -> str:
    """What a share of wrong answers does to each method, compared with ignoring the model and with trusting it."""
    header = ("score", "wrong answers", "method", "area", "last tenth", "worst seed", "active weight")
    compared = ("area / better", "end - ppo", "end - add", "no regret")
    rows = []
    for name, found in results.items():
        centre, share, method = name.split("/")
        area, end = scores(found, "episode_length")
        row = [centre, share, method, estimate(mean_interval(area)), number(end.mean()), number(end.min())]
        if "weight_mean_active" in found.curves:
            row.append(number(last_tenth(found.curves["weight_mean_active"]).mean()))
        row += [""] * (len(header) - len(row))
        row += regretted(found, method, results, {"ppo": "any/any/ppo", "add": f"{centre}/{share}/add"})
        rows.append(row)
    return markdown((*header, *compared), rows)


def wrong_answers_pictures(results: Results, out: Path) -> None:
    """Scores over the share of wrong answers, and the learning curves behind them."""
    heard = {(centre, share): wrong_answers_cell(results, centre, share) for centre in CENTRES for share in WRONG}
    measures = {"steps survived, whole training": area_under_curve, "steps survived, last tenth": last_tenth}
    lines = {
        measure: {centre: by_method({share: heard[centre, share] for share in WRONG}, score) for centre in CENTRES}
        for measure, score in measures.items()
    }
    score_lines(lines, "share of the answers that are wrong", out / "wrong_answers.png")
    curves = {
        centre: {
            f"{share:.0%} wrong": {
                method: Curve(steps_of(found.curves), found.curves["episode_length"])
                for method, found in heard[centre, share].items()
            }
            for share in WRONG
        }
        for centre in CENTRES
    }
    learning_curve_grid(curves, "steps survived", out / "curves.png")


def wrong_answers_cell(results: Results, centre: str, share: float) -> dict[str, Found]:
    """What has finished of one panel; plain PPO hears no answers and is in all of them."""
    names = {"ppo": "any/any/ppo"} | {method: f"{centre}/{share:g}/{method}" for method in WRONG_METHODS}
    return {method: results[name] for method, name in names.items() if name in results}


def by_method(cells: Mapping[float, Mapping[str, Found]], score: Callable[[np.ndarray], np.ndarray]) -> dict:
    """Method -> share of wrong answers -> scores."""
    methods = dict.fromkeys(method for cell in cells.values() for method in cell)
    return {
        method: {share: score(cell[method].curves["episode_length"]) for share, cell in cells.items() if method in cell}
        for method in methods
    }
