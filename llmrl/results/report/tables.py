"""The tables of a report: plain words and numbers; the page sets them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrl.analysis.answers import Answer
from llmrl.analysis.comparison import IGNORES, TRUSTS, improvement_interval, regret
from llmrl.analysis.statistics import Interval, area_under_curve, interquartile_interval, last_tenth, mean_interval
from llmrl.analysis.tables import about_seeds, known, number, told_of_certificate, written
from llmrl.analysis.trust import RIGHT_SIGNS, TrustMap, right_signs, shares
from llmrl.assembly.identity import flat
from llmrl.learner.arms import arms_of
from llmrl.results.report.entries import Entry, Method, Repeat, Task

NOT_SHOWN = ("run_dir", "resume", "progress")
SOLVER_PANELS = {
    "meta_residual": "residual",
    "meta_solution_norm": "solution / gradient",
    "meta_cut": "share cut back",
}
"""How the inverse-curvature solves went, metric -> title."""


COUNTED_ONCE = (
    "A seed is counted once where runs agree in all that can matter to their method: for one that hears no source, "
    "whatever the source is."
)
MOST_LETTERS = 60
"""Labels of more letters together do not stand side by side."""


class Table(NamedTuple):
    """A table in words.

    Attributes:
        header: one word or two per column.
        rows: cells, of the header's length.
        note: what must be known to read it.
    """

    header: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""


def common_folder(entries: Sequence[Entry]) -> str:
    """The directory that all runs are below; empty for a single run."""
    paths = [os.path.abspath(entry.path) for entry in entries]
    folder = os.path.commonpath(paths) if len(paths) > 1 else ""
    return "" if folder == os.sep else folder


def below(folder: str, entries: Sequence[Entry]) -> list[str]:
    """The runs' directories as seen from a common one."""
    return [_seen(entry.path, folder) for entry in entries]


def runs_table(entries: Sequence[Entry], folder: str, repeats: Mapping[Path, Repeat] | None = None) -> Table:
    """What was read, and how far each run is; directories as seen from ``folder``."""
    repeats, rows = repeats or {}, []
    for entry, name in zip(entries, below(folder, entries), strict=True):
        summary = entry.summary or {}
        speed = summary.get("steps_per_second")
        seconds = summary.get("seconds", {})
        rows.append(
            [
                name,
                entry.progress,
                _counted(entry, repeats.get(entry.path)),
                f"{int(entry.curves['env_steps'].max()):,}",
                f"{seconds['run'] / 60:.1f} min" if "run" in seconds else "-",
                f"{speed:,.0f}" if speed else "-",
                str(summary.get("device", "-")),
            ]
        )
    header = ("directory", "state", "seeds", "steps a seed", "training", "steps/s", "device")
    elsewhere = "; ".join(f"{_seen(path, folder)} in {_seen(one.path, folder)}" for path, one in repeats.items())
    return Table(header, rows, f"{COUNTED_ONCE} Counted elsewhere: {elsewhere}." if repeats else "")


def _counted(entry: Entry, repeat: Repeat | None) -> str:
    seeds = entry.curves["seed"].shape[0]
    if repeat is None:
        return str(seeds)
    return f"{seeds} (counted elsewhere)" if repeat.seeds == seeds else f"{seeds} ({repeat.seeds} counted elsewhere)"


def _seen(path: Path, folder: str) -> str:
    return os.path.relpath(path, folder) if folder else str(path)


def final_table(task: Task) -> Table:
    """Area and end of every method on a task."""
    header = ("method", "seeds", "steps", "area, mean", "end, mean", "end, IQM", "worst seed", "best seed")
    rows = []
    for method in task.methods.values():
        if task.measure not in method.curves:
            rows.append([marked(method), *["-"] * (len(header) - 1)])
            continue
        curves = np.asarray(method.curves[task.measure], np.float64)
        area, end = area_under_curve(curves), last_tenth(curves)
        row = [marked(method), str(len(curves)), f"{_steps(method):,}"]
        row += [known(mean_interval(area)), known(mean_interval(end)), known(interquartile_interval(end))]
        rows.append([*row, _extreme(end, np.min), _extreme(end, np.max)])
    numbers = sorted({len(method.curves["seed"]) for method in task.methods.values()}, reverse=True)
    return Table(header, rows, " ".join(f"{about_seeds(number)}." for number in numbers))


def marked(method: Method) -> str:
    """A method's label, and whether a run of it is unfinished."""
    return method.label if method.finished else f"{method.label} (unfinished)"


def _extreme(scores: np.ndarray, which: Any) -> str:
    kept = scores[~np.isnan(scores)]
    return number(float(which(kept))) if kept.size else "-"


def regret_table(task: Task) -> Table:
    """Each finished method beside the better of ignoring and trusting the source; in the note, why others are not.

    A baseline has the same length and the same settings of what both it and the method look at.
    """
    header = ("method", "area / better", "end / better", f"end - {IGNORES}", f"end - {TRUSTS}", "no regret (seeds)")
    rows, missing = [], []
    learners = [method for method in task.methods.values() if method.name not in (IGNORES, TRUSTS)]
    for method in learners:
        found = {name: _baseline(task, method, name) for name in (IGNORES, TRUSTS)}
        lacks = [_unfit(task, method)] + [each for each in found.values() if isinstance(each, str)]
        baselines = {name: _values(task, each) for name, each in found.items() if isinstance(each, Method)}
        reasons = "; ".join(reason for reason in lacks if reason)
        if reasons:
            missing.append(f"{method.label}: {reasons}")
            continue
        beside = regret(_values(task, method), baselines)
        row = [method.label, known(beside.area), known(beside.final)]
        rows.append([*row, *(known(beside.differences[name]) for name in baselines), beside.words])
    if not learners:
        missing = [f"there is no method here but {IGNORES} and {TRUSTS}"]
    return Table(header, rows, f"Not compared: {'. '.join(missing)}." if missing else "")


def _baseline(task: Task, method: Method, name: str) -> Method | str:
    """The runs of a simple method that a method is to be compared with, or why there are none."""
    candidates = [other for other in task.methods.values() if other.name == name]
    if not candidates:
        return f"there is no run of {name}"
    differences = [_differences(method, other) for other in candidates]
    nearest, other = min(zip(differences, candidates, strict=True), key=lambda pair: len(pair[0]))
    if nearest:
        more = f" and {len(nearest) - 2} more" if len(nearest) > 2 else ""
        return f"{name} ran only with other settings, {', '.join(nearest[:2])}{more}"
    unfit = _unfit(task, other)
    if unfit:
        return f"{name}: {unfit}"
    if _steps(other) != _steps(method):
        return f"{name} has {_steps(other):,} steps where {method.label} has {_steps(method):,}"
    return other


def _differences(method: Method, other: Method) -> list[str]:
    """Settings that both look at and that differ; what is asked of a language model is part of the task."""
    return [
        f"{key}={value} in place of {method.settings[key]}"
        for key, value in other.settings.items()
        if not key.startswith(("method.", "solver.", "llm.", "num_chunks"))
        and key in method.settings
        and method.settings[key] != value
    ]


def _unfit(task: Task, method: Method) -> str:
    """Why a method cannot be compared; empty where it can."""
    if not method.finished:
        return "unfinished"
    if task.measure not in method.curves or np.isnan(method.curves[task.measure]).all():
        return f"without {task.measure.replace('_', ' ')}"
    return ""


def improvement_table(task: Task) -> Table | None:
    """Probability that a seed of the row's method ends higher than one of the column's; None without two of a length.

    Columns are numbered where labels are long.
    """
    fit = [method for method in task.methods.values() if not _unfit(task, method)]
    lengths = [_steps(method) for method in fit]
    compared = [method for method, steps in zip(fit, lengths, strict=True) if lengths.count(steps) > 1]
    if len(compared) < 2:
        return None
    labels = [method.label for method in compared]
    numbered = sum(map(len, labels)) > MOST_LETTERS
    names = [f"{i}: {label}" for i, label in enumerate(labels, 1)] if numbered else labels
    rows = [
        [name, *(_improved(task, row, other) for other in compared)] for name, row in zip(names, compared, strict=True)
    ]
    heads = [str(i) for i in range(1, len(labels) + 1)] if numbered else labels
    several = len({_steps(method) for method in compared}) > 1
    note = "Empty where the numbers of steps differ." if several else ""
    return Table(("higher than", *heads), rows, note)


def _improved(task: Task, method: Method, other: Method) -> str:
    if method is other or _steps(method) != _steps(other):
        return ""
    return _share(improvement_interval(last_tenth(_values(task, method)), last_tenth(_values(task, other))))


def _share(interval: Interval) -> str:
    return "-" if np.isnan(interval.value) else written(interval, "{:.2f}".format)


def _values(task: Task, method: Method) -> np.ndarray:
    return np.asarray(method.curves[task.measure], np.float64)


def _steps(method: Method) -> int:
    return int(method.curves["env_steps"].max())


def solver_table(entries: Mapping[str, Entry]) -> Table | None:
    """How well the outer level's systems were solved, over the whole of each run; None where nothing was solved."""
    rows = []
    for label, entry in entries.items():
        curves = entry.curves
        if "meta_residual" not in curves:
            continue
        steps = np.nansum(curves["meta_step"]) if "meta_step" in curves else np.nan
        products = np.nansum(curves["meta_matvecs"]) / steps if "meta_matvecs" in curves and steps else np.nan
        rows.append(
            [
                label,
                f"{entry.config.solver.name}, {entry.config.solver.curvature}",
                _mean(curves, "meta_residual"),
                _largest(curves, "meta_residual"),
                _mean(curves, "meta_solution_norm"),
                _largest(curves, "meta_solution_norm"),
                _percent(curves, "meta_cut"),
                _percent(curves, "meta_skipped"),
                "-" if np.isnan(products) else number(float(products)),
            ]
        )
    header = ("run", "solver", "residual", "largest", "|x| / |g|", "largest", "cut back", "left out", "products a step")
    return Table(header, rows) if rows else None


def _mean(curves: Mapping[str, np.ndarray], name: str) -> str:
    values = curves.get(name)
    return "-" if values is None or np.isnan(values).all() else number(float(np.nanmean(values)))


def _largest(curves: Mapping[str, np.ndarray], name: str) -> str:
    values = curves.get(name)
    return "-" if values is None or np.isnan(values).all() else number(float(np.nanmax(values)))


def _percent(curves: Mapping[str, np.ndarray], name: str) -> str:
    values = curves.get(name)
    return "-" if values is None or np.isnan(values).all() else f"{100 * float(np.nanmean(values)):.1f} %"


# --- policies side by side --------------------------------------------------------------------------------------------


def arms_names(entry: Entry) -> list[str]:
    """What the policies of a run follow, where it has several."""
    if "arm_share/0" not in entry.curves:
        return []
    return [arm.name for arm in arms_of(entry.config.method.arms.follow, tuple(entry.config.aux.sources))]


def arms_table(entries: Mapping[str, Entry]) -> Table | None:
    """Who acted, and why: of every policy of runs with several, on average over seeds; None where there is no such run.

    A share is that of new episodes, over four quarters of the training; a return is the discounted one at its end.
    """
    rows = []
    for label, entry in entries.items():
        curves = entry.curves
        for arm, name in enumerate(arms_names(entry)):
            shares = np.array_split(np.asarray(curves[f"arm_share/{arm}"], np.float64), 4, axis=1)
            rows.append(
                [
                    label,
                    f"{arm}: {name}",
                    *(f"{100 * np.nanmean(share):.0f} %" for share in shares),
                    number(float(np.nanmean(curves[f"arm_return/{arm}"][:, -1]))),
                    number(float(np.nanmean(curves[f"arm_error/{arm}"][:, -1]))),
                    number(float(np.nanmean(np.nansum(curves["arm_copied"], axis=1)))) if arm == 0 else "",
                    told_of_certificate(curves["certificate"][:, -1]) if arm == 0 else "",
                ]
            )
    quarters = ("acts, 1st quarter", "2nd", "3rd", "4th")
    header = ("run", "policy", *quarters, "return", "standard error", "taken over, times", "95 % kept, seeds")
    return Table(header, rows) if rows else None


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_tables(entries: Sequence[Entry], folder: str) -> tuple[Table, Table | None]:
    """The settings that all runs share, and those in which they differ (None for a single run)."""
    settings = [_shown(entry) for entry in entries]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    shared = [key for key in keys if all(values.get(key, "") == settings[0].get(key, "") for values in settings)]
    common = Table(("setting", "value"), [[key, settings[0].get(key, "")] for key in shared])
    if len(entries) < 2:
        return common, None
    differing = [key for key in keys if key not in shared]
    rows = [[key, *(values.get(key, "") for values in settings)] for key in differing]
    return common, Table(("setting", *below(folder, entries)), rows)


def _shown(entry: Entry) -> dict[str, str]:
    values = {key: value for key, value in asdict(entry.config).items() if key not in NOT_SHOWN}
    return {key: "-" if value is None else str(value) for key, value in flat(values).items()}


# --- trust ------------------------------------------------------------------------------------------------------------


MADE_OF_A_SOURCE = ("trust_used", "trust_ignored", "trust_turned")


def trust_table(found: TrustMap, curves: Mapping[str, np.ndarray]) -> Table:
    """What became of each source, over seeds: how far it moved the policy, and the weights that training left.

    Args:
        found: the map of the trained policies.
        curves: of the run; where they tell nothing of influence, the map's own numbers stand in.
    """
    header = ("source", "influence, whole training", "influence, end", "used", "ignored", "turned around")
    weights = ("weight, end", "weight, largest units", "full trust", "right sign", "both sides alike")
    rows = []
    for i, source in enumerate(found.sources):
        spoken = found.aux[:, :, 0, i] != 0
        at_end, lasting = (_mean_where(each[:, :, 0, i], spoken) for each in (found.weight, found.settled))
        row = [source, *(_made_in_training(source, curves) or _made_on_the_map(found, source))]
        row += [known(mean_interval(at_end)), known(mean_interval(lasting)), number(float(found.unit[:, i].mean()))]
        row += [_share_of_seeds(share) for share in right_signs(found, source)] if source in RIGHT_SIGNS else ["-", "-"]
        rows.append(row)
    return Table((*header, *weights), rows)


def _made_in_training(source: str, curves: Mapping[str, np.ndarray]) -> list[str]:
    """Influence over the whole training and at its end, then the shares of both; empty where that was not noted."""
    names = [f"{kind}/{source}" for kind in ("influence", *MADE_OF_A_SOURCE)]
    if any(name not in curves for name in names):
        return []
    moved, *made = (curves[name] for name in names)
    shares_of = [[_percent_of_seeds(of(each)) for of in (area_under_curve, last_tenth)] for each in made]
    return [known(mean_interval(of(moved))) for of in (area_under_curve, last_tenth)] + [
        f"{whole} / {end}" for whole, end in shares_of
    ]


def _made_on_the_map(found: TrustMap, source: str) -> list[str]:
    """The same of the trained policies alone."""
    i = found.sources.index(source)
    moved = _mean_where(found.influence[:, :, 0, i], found.aux[:, :, 0, i] != 0)
    made = [f"- / {_percent_of_seeds(share)}" for share in shares(found, source)]
    return ["-", known(mean_interval(moved)), *made]


def answer_table(told: Sequence[Answer], most: int = 1000) -> Table:
    """Answers in words: what the model said, what became of it, and how often it was heard."""
    header = ("state", "event", "score", "influence", "weight, largest units", "visits")
    rows = [
        [
            each.state,
            each.event,
            f"{each.score:.2f}",
            f"{each.influence:+z.2f}",
            number(each.weight),
            f"{each.visits:,}",
        ]
        for each in told[:most]
    ]
    note = f"{len(told) - most:,} more answers, about states that are visited less often." if len(told) > most else ""
    return Table(header, rows, note)


def sign_sentences(found: TrustMap) -> list[str]:
    """For each source of known quality: on which share of the visited states its weight has the right sign."""
    return [
        f"the weight of {source} has the right sign on {_share_of_seeds(right_signs(found, source).share)} of the "
        "visited states where it speaks"
        for source in found.sources
        if source in RIGHT_SIGNS
    ]


def _mean_where(values: np.ndarray, spoken: np.ndarray) -> np.ndarray:
    """Mean over the states in which the source speaks, [seeds]."""
    return area_under_curve(np.where(spoken, values.astype(np.float64), np.nan))


def _share_of_seeds(share: np.ndarray) -> str:
    interval = mean_interval(np.asarray(share, np.float64))
    if np.isnan(interval.value):
        return "-"
    return written(interval, lambda share: f"{100 * min(max(share, 0.0), 1.0):.0f}", " %")


def _percent_of_seeds(share: np.ndarray) -> str:
    mean = mean_interval(np.asarray(share, np.float64)).value
    return "-" if np.isnan(mean) else f"{100 * mean:.0f} %"
