"""Two studies of Crafter: hints that help or distract, and suggested goals of which a share is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from measures import WRONG, scores

from llmrl.analysis.comparison import regret
from llmrl.analysis.statistics import difference_interval, last_tenth, mean_interval
from llmrl.analysis.tables import estimate, markdown, number
from llmrl.studies.carry_out import Found, Results, Run

CRAFTER = ("env=craftax_classic", "env.horizon=400", "ppo=crafter", "total_steps=500000")
"""As ELLM plays it: 400 steps an episode."""
CRAFTER_TASKS = ("make_wood_sword", "place_table")
HELPS, DISTRACTS = "hints", "distracting"


def crafter_no_regret_runs() -> Iterator[Run]:
    for task in CRAFTER_TASKS:
        setting = (*CRAFTER, f"env.task={task}")
        yield Run(f"{task}/any/ppo", (*setting, "aux=none", "method=ppo"))
        for source in (HELPS, DISTRACTS):
            for method in ("add", "implicit"):
                yield Run(f"{task}/{source}/{method}", (*setting, f"aux={source}", f"method={method}"))


def wrong_goals_runs() -> Iterator[Run]:
    for task in CRAFTER_TASKS:
        setting = (*CRAFTER, f"env.task={task}")
        yield Run(f"{task}/any/ppo", (*setting, "aux=none", "method=ppo"))
        for share in WRONG:
            for method in ("implicit", "ellm"):
                goals = ("aux=goals", "llm=oracle", f"llm.noise={share:g}")
                yield Run(f"{task}/{share:g}/{method}", (*setting, *goals, f"method={method}"))


# --- tables -----------------------------------------------------------------------------------------------------------


MEASURED = ("success, area", "last tenth", "worst seed", "active weight")


def measured(found: Found) -> list[str]:
    """A run's own cells; the active weight is the learned factor on the source where it speaks, at the end."""
    area, end = scores(found, "success_rate")
    curves = found.curves.get("weight_mean_active")
    weight = "" if curves is None else number(last_tenth(curves).mean())
    return [*(estimate(mean_interval(score)) for score in (area, end)), number(end.min()), weight]


def crafter_no_regret_table(results: Results) -> str:
    """Success over training; what learns is to keep up with trust where a source helps, with ppo where it distracts."""
    header = ("task", "source", "method", *MEASURED)
    compared = ("area / add", "end / add", "area - ppo", "end - ppo", "no regret")
    rows = []
    for name, found in results.items():
        task, source, method = name.split("/")
        row = [task, source, method, *measured(found)]
        if method not in ("ppo", "add"):
            row += kept_up(found, source, results.get(f"{task}/any/ppo"), results.get(f"{task}/{source}/add"))
        rows.append(row)
    return markdown((*header, *compared), rows)


def kept_up(found: Found, source: str, ppo: Found | None, add: Found | None) -> list[str]:
    """Cells that compare success with trusting and with ignoring the source; none before those are finished, and no
    comparison with trust where a source distracts and its weight was never learned."""
    if ppo is None or (add is None and source == HELPS):
        return []
    ours, ignoring = (scores(one, "success_rate") for one in (found, ppo))
    trusting = ours if add is None else scores(add, "success_rate")
    ratios = [x.mean() / y.mean() if y.mean() > 0.0 else float("nan") for x, y in zip(ours, trusting, strict=True)]
    gains = [difference_interval(x, y) for x, y in zip(ours, ignoring, strict=True)]
    simple = ppo if source != HELPS or add is None else add
    beside = regret(found.curves["success_rate"], {"simple": simple.curves["success_rate"]}, least=0.95)
    told = ["", ""] if add is None else [*map(number, ratios)]
    return [*told, *map(estimate, gains), beside.words]


def wrong_goals_table(results: Results) -> str:
    """Success over training; what learns is compared with ignoring the goals and with adding them."""
    header = ("task", "wrong goals", "method", *MEASURED)
    rows = []
    for name, found in results.items():
        task, share, method = name.split("/")
        row = [task, share, method, *measured(found)]
        for simple in (f"{task}/any/ppo", f"{task}/{share}/ellm"):
            compared = simple != name and simple in results
            ends = (scores(results[run], "success_rate")[1] for run in (name, simple)) if compared else ()
            row.append(estimate(difference_interval(*ends)) if compared else "")
        rows.append(row)
    return markdown((*header, "end - ppo", "end - ellm"), rows)
